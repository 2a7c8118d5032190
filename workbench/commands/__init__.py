"""The verbs of the command line, by what they are about. What a verb needs is imported when it runs."""
