"""The command line: `main.py` and one file for each group of verbs. A verb imports what it needs when it runs."""
