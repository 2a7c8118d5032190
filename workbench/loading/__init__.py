"""Checkpoint to model, strictly: every weight in its place and finite, or an error that says why not."""
