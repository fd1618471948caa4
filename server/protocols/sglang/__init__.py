"""SGLang's scores of label tokens. It has no route of its own: its `/v1/score` is the native route's path."""

from fastapi import APIRouter

from server.exchange.protocol import Protocol
from server.protocols.sglang.schemas import LabelsRequest

PROTOCOL = Protocol("sglang", APIRouter(), bodies=(LabelsRequest,), work=frozenset())
