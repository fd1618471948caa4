"""The processes of an engine: one for each rank, supervised, and the messages between them."""
