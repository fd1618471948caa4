"""Replicas on Ray Serve, on one machine or many: `serve run deploy.ray:app`."""

from deploy.ray.application import app

__all__ = ["app"]
