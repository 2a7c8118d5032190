"""How files are written and read: whole after a crash, and JSON without NaN."""
