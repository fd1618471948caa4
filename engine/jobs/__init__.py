"""Jobs: requests that run. They turn log-probabilities into answers."""
