"""Taps: read the queries, keys, values and scores of each family of models while it runs."""
