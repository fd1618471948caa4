"""Quantization: schemes of weights and their matrix products. This package knows no model and no rank."""
