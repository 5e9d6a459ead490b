"""Search spaces that families do not ship."""

from pathlib import Path

SOFT_AND_HARD = str(Path(__file__).with_name("soft-and-hard.yaml"))
"""MobileViT's with soft and hard merges."""
