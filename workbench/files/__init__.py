"""How files are written and read: whole after a crash, JSON without NaN, bytes of tokens as text."""
