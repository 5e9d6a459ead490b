"""Training a recipe: from scratch, from a supernet's weights, or from a checkpoint."""
