"""The command line: `main.py` and one file for each group of verbs. A verb imports its modules when it runs."""
