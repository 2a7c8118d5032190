"""Serve the app: who is answered, under which address, and in how many bytes."""
