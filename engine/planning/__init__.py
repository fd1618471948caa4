"""What a model will need and how fast it will be, from its shape, without loading it."""
