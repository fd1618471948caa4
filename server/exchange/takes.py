"""What a route takes: the part of its description that the framework cannot see, because the route reads its body."""

from typing import Any

from pydantic import BaseModel

REFERENCE = "#/components/schemas/{model}"


def takes(*bodies: type[BaseModel]) -> dict[str, Any]:
    """The `openapi_extra` of a route: its body's schema, or each one that it may have."""
    references = [{"$ref": REFERENCE.format(model=body.__name__)} for body in bodies]
    schema = references[0] if len(references) == 1 else {"anyOf": references}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
