"""Merge schedules: token grids, keep ratios per layer, and the space of them that a search explores."""
