"""Serve the app: access, host names, compressed responses."""
