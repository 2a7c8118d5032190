"""The Dash app over finished and growing runs: how heads emerge, and one head closely."""

from workbench.app.server.serving import Access, build_app, serve, show

__all__ = ["Access", "build_app", "serve", "show"]
