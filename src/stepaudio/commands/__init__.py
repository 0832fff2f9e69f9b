"""The work of command-line verbs that need no terminal."""
