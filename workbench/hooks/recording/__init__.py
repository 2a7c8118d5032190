"""Recording: what is asked of every head, and the forward pass that sums it per sequence."""
