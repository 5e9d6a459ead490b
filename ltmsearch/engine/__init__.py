"""Training steps, evaluation and the information-bottleneck loss, on one device or several."""
