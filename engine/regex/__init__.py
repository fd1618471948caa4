"""Regular expressions: a process of their own compiles them, and their automata read token by token."""
