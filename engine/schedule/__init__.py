"""The schedule: sequences, their contexts and blocks, and the batch of the next step."""
