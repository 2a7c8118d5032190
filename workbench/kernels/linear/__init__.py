"""Linear attention and the delta rule: chunked torch, Triton, and the rows that the layers imply."""
