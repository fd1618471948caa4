"""What runs when: requests, blanks, sequences, batches, events."""
