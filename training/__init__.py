"""Objectives and training of GLM models."""
