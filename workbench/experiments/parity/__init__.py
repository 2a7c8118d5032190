"""Parity: a real model's head scores against the figures of papers and repositories about the same model.

1. `published`: the figures with their sources; a model is identified by its shape.
2. `own_scores`: the same heads scored by the workbench, on a probe of the figure's kind.
3. `parity_scores`: rank correlation and overlap of the best heads, beside those of two halves of our own measurement.
"""
