"""Adapters: small changes of a network that are chosen request by request, read from the formats they are trained in.

LoRA (arXiv 2106.09685) changes linears, a prefix (arXiv 2101.00190; P-tuning v2, arXiv 2110.07602) is keys and values
before every text.
"""
