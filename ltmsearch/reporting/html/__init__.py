"""The report of a run: one page with everything that is known of it, `report.html`."""

from ltmsearch.reporting.html.render import PAGE, write_page

__all__ = ["PAGE", "write_page"]
