"""Regular expressions: compiled in a process of their own, and read token by token."""
