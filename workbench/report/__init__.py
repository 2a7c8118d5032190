"""One or several runs as a single HTML file that needs no network (`workbench report`). No torch."""

from workbench.report.contents import Contents, contents_of
from workbench.report.html_page import write_page

__all__ = ["Contents", "contents_of", "write_page"]
