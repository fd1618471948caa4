"""Adapters: small changes to a network, chosen per request and read from the formats that training writes.

LoRA (arXiv 2106.09685) changes linears. A prefix (arXiv 2101.00190; P-tuning v2, arXiv 2110.07602) puts keys and values
before every text.
"""
