"""The Dash app over finished and growing runs: all heads over training, and one head in detail."""

from workbench.app.registry import page
from workbench.app.server.serving import Access, build_app, serve, show

__all__ = ["Access", "build_app", "page", "serve", "show"]
