"""The engine: requests, blanks, sequences, batches, events, and the order in which they run."""
