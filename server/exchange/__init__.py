"""One request and its events, whatever the protocol."""
