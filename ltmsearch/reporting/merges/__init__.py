"""Pictures and pages of merges, by numpy and Pillow; they need neither a network nor a browser."""

from ltmsearch.reporting.merges.page import merges_page
from ltmsearch.reporting.merges.regions import Place
from ltmsearch.reporting.merges.sheet import draw_merges, example_sheet, in_colour, pixels_seen

__all__ = ["Place", "draw_merges", "example_sheet", "in_colour", "merges_page", "pixels_seen"]
