"""A study in optuna-dashboard: notes, attributes, files and plots, and the server.

Nothing is imported here: the server starts without torch.
"""
