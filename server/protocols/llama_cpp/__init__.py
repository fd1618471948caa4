"""llama.cpp's `/infill`, for its editors. Errors are in llama.cpp's shape, whoever refuses."""

from server.exchange.protocol import Protocol
from server.protocols.llama_cpp.error_body import error_body
from server.protocols.llama_cpp.infill import PATH, router
from server.protocols.llama_cpp.schemas import EditorRequest

PROTOCOL = Protocol("llama_cpp", router, bodies=(EditorRequest,), work=frozenset({PATH}), error_body=error_body)
