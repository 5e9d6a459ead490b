"""Training of a recipe from scratch, from the weights of a study, or from a checkpoint; validation of its network."""
