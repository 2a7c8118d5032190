"""What is computed about kernels and linear layers: crossover lengths, precision of states, implied attention."""
