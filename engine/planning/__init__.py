"""The plan of a model: its memory and speed from its shape, without loading it."""
