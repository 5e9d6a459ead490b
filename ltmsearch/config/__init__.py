"""Configuration: study settings, their defaults, and training recipes."""
