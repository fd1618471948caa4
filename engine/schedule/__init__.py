"""What runs next: sequences, their contexts and blocks, and the batch of a step."""
