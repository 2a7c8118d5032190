"""The app's browser, for a page that is a file."""

from tests.app.conftest import chromium, tab, window

__all__ = ["chromium", "tab", "window"]
