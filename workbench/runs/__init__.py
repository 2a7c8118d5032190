"""A run as tables, how far its scan is, and a summary of what emerged in it."""
