"""The pages and probes that are the same on every server."""
