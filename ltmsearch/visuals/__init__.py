"""Merges to look at: pictures and pages of what `traces` saw, by numpy and Pillow, without a network or a browser."""

from ltmsearch.visuals.page import merges_page
from ltmsearch.visuals.place import Place
from ltmsearch.visuals.sheet import draw_merges, example_sheet, pixels_seen

__all__ = ["Place", "draw_merges", "example_sheet", "merges_page", "pixels_seen"]
