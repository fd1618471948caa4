"""What takes the server beyond a command line: images, charts, clusters."""
