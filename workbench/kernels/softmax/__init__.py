"""Softmax attention: output, row statistics and pooled patterns, in float64, blocked torch and Triton."""
