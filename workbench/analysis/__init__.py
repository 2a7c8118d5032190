"""Analyses of linear layers: crossover lengths, precision of states, implied attention."""
