"""Does a detector find the heads that were published? A real model's scores against figures of papers and repositories.

1. `published`: the figures with their sources, and which model's they are, by its shape.
2. `own`: the same heads scored by the workbench, on a probe of the figure's kind.
3. `parity`: correlation of ranks and overlap of the best, beside what two halves of our own measurement reach.
"""
