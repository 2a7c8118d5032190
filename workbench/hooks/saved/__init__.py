"""A model under a plan as a folder that transformers loads by itself."""
