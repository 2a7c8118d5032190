"""Recording: the statistics of every head, reduced to sums per sequence during one forward pass."""
