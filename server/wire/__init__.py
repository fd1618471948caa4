"""Bytes in, bytes out, and one shape of errors."""
