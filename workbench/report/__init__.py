"""One or several runs, or a plan, as a single HTML file that needs no network (`workbench report`). No torch."""

from workbench.report.contents import Contents, contents_of
from workbench.report.html_page import write_page
from workbench.report.plan_page import plan_claims, write_plan_page

__all__ = ["Contents", "contents_of", "plan_claims", "write_page", "write_plan_page"]
