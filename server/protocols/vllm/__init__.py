"""vLLM's scores besides completions: the probability of labels, and the ranking of documents."""

from fastapi import APIRouter

from server.exchange.protocol import Protocol
from server.protocols.vllm import generative_scoring, rerank
from server.protocols.vllm.schemas import GenerativeScoringRequest, RerankRequest

PARTS = (generative_scoring.router, rerank.router)

PROTOCOL = Protocol(
    "vllm",
    APIRouter(routes=[route for part in PARTS for route in part.routes]),
    bodies=(GenerativeScoringRequest, RerankRequest),
    work=frozenset({generative_scoring.PATH, rerank.PATH, rerank.VERSIONED}),
)
