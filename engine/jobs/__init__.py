"""Jobs: requests under way, which turn log-probabilities into answers."""
