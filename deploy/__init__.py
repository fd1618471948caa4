"""Deployment beyond a command line: images, charts, clusters."""
