"""The key file: the clients of a server, by the hashes of their keys.

It has one JSON object per line: `name`, `sha256` (of the key, in hex), and optionally `role`, `priority`,
`requests_per_minute` and `tokens_per_minute`. A key is 256 random bits, which nobody can guess from a plain hash. A
slow hash, as for passwords, would only let strangers keep the server busy.
"""

import errno
import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.requests import Priority
from quant.usage import UsageError
from server.wire.complaint import Complaint

PREFIX = "glmi_"
Rate = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]


class Entry(BaseModel):
    """One line of a key file. A key of priority `batch` never goes before interactive requests."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    role: Literal["user", "admin"] = "user"
    priority: Priority = "interactive"
    requests_per_minute: Rate | None = None
    tokens_per_minute: Rate | None = None


def read_keys(path: Path) -> list[Entry]:
    """The entries of a key file. Raises UsageError, naming the line, for anything else."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from None
    entries: list[Entry] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = Entry.model_validate(json.loads(line))
        except json.JSONDecodeError:
            raise UsageError(f"{path}, line {number}: not a JSON object") from None
        except ValidationError as error:
            raise UsageError(f"{path}, line {number}: {Complaint.first(error).message}") from None
        if any(entry.name == e.name or entry.sha256 == e.sha256 for e in entries):
            raise UsageError(f"{path}, line {number}: {entry.name} occurs twice")
        entries.append(entry)
    if not entries:
        raise UsageError(f"{path} holds no key; `glm-infill keys new NAME --file {path}` adds one")
    return entries


def new_key(path: Path, **fields: object) -> str:
    """Makes a key and adds its entry to a file, which only its owner may read.

    Raises UsageError for wrong fields and a name that is taken, and OSError; the file then stays unchanged.
    """
    key = PREFIX + secrets.token_urlsafe(32)
    try:
        entry = Entry.model_validate({**fields, "sha256": hashlib.sha256(key.encode()).hexdigest()})
    except ValidationError as error:
        raise UsageError(Complaint.first(error).message) from None
    before = path.read_bytes() if path.is_file() else b""
    if before.strip() and entry.name in {e.name for e in read_keys(path)}:
        raise UsageError(f"name: {path} has a key for {entry.name} already")
    line = entry.model_dump_json(exclude_none=True) + "\n"
    if before and not before.endswith(b"\n"):
        line = "\n" + line
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with open(descriptor, "ab", buffering=0) as file:
        written = file.write(line.encode())
        if written < len(line):
            # A part of a line would make the whole file useless.
            file.truncate(file.tell() - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    return key


def forget_key(path: Path, name: str) -> None:
    """Removes the last entry of a file, that of a key that nobody has seen. Raises OSError."""
    lines = path.read_bytes().splitlines(keepends=True)
    assert json.loads(lines[-1])["name"] == name
    os.truncate(path, sum(map(len, lines[:-1])))
