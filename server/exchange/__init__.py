"""One request and its events, in any protocol."""
