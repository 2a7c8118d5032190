"""Which attention heads need the whole context, since when in pretraining, and which may get a window."""
