"""Taps: where the queries, keys, values and scores of each family of models are read while it runs."""
