"""The server's telemetry: log, metrics, traces."""
