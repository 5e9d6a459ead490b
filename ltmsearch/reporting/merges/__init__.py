"""Merges to look at: pictures and pages of what `traces` saw, by numpy and Pillow, without a network or a browser."""

from ltmsearch.reporting.merges.page import merges_page
from ltmsearch.reporting.merges.place import Place
from ltmsearch.reporting.merges.sheet import draw_merges, example_sheet, pixels_seen

__all__ = ["Place", "draw_merges", "example_sheet", "merges_page", "pixels_seen"]
