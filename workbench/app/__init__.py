"""The Dash app over finished and growing runs: how heads emerge, and one head closely."""

from workbench.app.server import build_app, serve, show

__all__ = ["build_app", "serve", "show"]
