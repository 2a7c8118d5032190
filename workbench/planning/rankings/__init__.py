"""Rankings of key/value heads by their need for the whole context."""
