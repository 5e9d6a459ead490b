"""The report of a run, `report.html`: all results on one page."""

from ltmsearch.reporting.html.page import PAGE, write_page

__all__ = ["PAGE", "write_page"]
