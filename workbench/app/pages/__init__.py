"""The pages of the app, one file each; the header shows them in the order in which they are registered here."""

from importlib import import_module

for _name in ("overview", "head", "head_table", "compare", "plan", "jobs", "probe"):
    import_module(f"workbench.app.pages.{_name}")
