"""The pages and probes that every server has."""
