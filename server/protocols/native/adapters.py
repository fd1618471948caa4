"""`/v1/adapters`: loads, lists and unloads adapters while the server runs. `server.access` admits only admins.

A client names a folder below the operator's adapter root, and the server reads nothing outside it. The checks here give
clients good errors; the engine checks each file again after it has opened it (`model.adapters.files`).
"""

import asyncio
import os
import stat
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Request

from engine.requests import RequestError
from server.exchange.service import Service, service_of
from server.exchange.takes import takes
from server.protocols.native.models import adapter_entry
from server.protocols.native.schemas import AdapterRequest
from server.wire.answer import Answer
from server.wire.body import read_object

PATH = "/v1/adapters"
ONE = PATH + "/{name}"
MAX_FILES = 1000  # of an adapter's folder

router = APIRouter(tags=["adapters"])


@router.get(PATH)
async def adapters(service: Annotated[Service, Depends(service_of)]) -> Answer:
    """The loaded adapters."""
    card = service.engine.card
    return Answer({"object": "list", "data": [adapter_entry(adapter, card) for adapter in service.engine.adapters]})


@router.post(PATH, openapi_extra=takes(AdapterRequest))
async def load(request: Request, service: Annotated[Service, Depends(service_of)]) -> Answer:
    """Loads the adapter in a folder below --adapter-root. Other requests continue meanwhile."""
    body = AdapterRequest.model_validate(await read_object(request, service.settings.body_seconds))
    card, root = service.engine.card, service.settings.adapter_root
    if root is None:
        message = "this server was started without --adapter-root, a folder to load adapters from"
        raise RequestError(message, "path", "unsupported")
    if body.name in card.names:
        raise RequestError(f"{body.name!r} is the name of the model", "name", "adapter_exists")
    folder = await asyncio.to_thread(folder_below, root, body.path)
    # Relative: the engine reads nothing for it that lies elsewhere, whatever has been put in its place meanwhile.
    adapter = await service.engine.load_adapter(body.name, str(folder))
    service.log.info("adapter loaded", adapter=adapter.name, kind=adapter.kind)
    return Answer(adapter_entry(adapter, card))


@router.delete(ONE)
async def unload(name: str, service: Annotated[Service, Depends(service_of)]) -> Answer:
    """Unloads an adapter. The status is 409 if requests use it."""
    await service.engine.unload_adapter(name)
    service.log.info("adapter unloaded", adapter=name)
    return Answer({"id": name, "object": "model", "deleted": True})


def folder_below(root: Path, path: str) -> Path:
    """The folder of a path relative to the root.

    Raises RequestError for a path, or a file in the folder, that lies outside the root; for a missing folder; and for
    anything but regular files in it.
    """
    if "\0" in path or Path(path).is_absolute() or ".." in Path(path).parts:
        raise RequestError(f"path must lead down from the adapters' folder, not {path[:80]!r}", "path", "invalid_path")
    top = root.resolve()
    try:
        folder = (top / path).resolve(strict=True)
        if not folder.is_relative_to(top):
            raise RequestError(f"path {path[:80]!r} lies outside the adapters' folder", "path", "invalid_path")
        with os.scandir(folder) as entries:
            for number, entry in enumerate(entries):
                _check(top, entry, number)
    except (OSError, RuntimeError):  # not there, no folder, a loop of links, a name that is too long
        raise RequestError(f"there is no folder {path[:80]!r} among the adapters", "path", "path_not_found") from None
    return folder.relative_to(top)


def _check(top: Path, entry: "os.DirEntry[str]", number: int) -> None:
    name = ascii(entry.name)[1:-1][:80]
    if number >= MAX_FILES:
        raise RequestError(f"the folder has more than {MAX_FILES} entries", "path", "invalid_path")
    if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(top):
        raise RequestError(f"{name} lies outside the adapters' folder", "path", "invalid_path")
    kind = os.stat(entry.path).st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise RequestError(f"{name} is not a regular file", "path", "invalid_path")
