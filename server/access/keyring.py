"""The keyring: it identifies a client by its key."""

import hashlib
import hmac
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from structlog.typing import FilteringBoundLogger

from engine.requests import Priority
from quant.usage import UsageError
from server.access.rates import Bucket, Rates
from server.keyfile import Entry, read_keys
from server.settings import Settings
from server.wire.errors import ApiError


@dataclass(frozen=True, slots=True)
class Client:
    """A client and its limits. The name is "" if the server needs no keys."""

    name: str
    is_admin: bool
    priority: Priority
    rates: Rates


class Keyring:
    """The clients of a server: those of a key file, or without a file everybody as one client.

    It reads the file again after a change, so that keys come and go while the server runs. If the file cannot be used,
    it writes a line to the log and keeps the keys.
    """

    def __init__(self, settings: Settings, log: FilteringBoundLogger) -> None:
        """Raises UsageError for a key file that cannot be used."""
        self._settings = settings
        self._log = log
        self._path = settings.api_keys
        self._everybody = None if self._path else Client("", False, "interactive", _rates(settings, None))
        self._clients: dict[Entry, Client] = {}
        if self._path is not None:
            self._stamp = _stamp(self._path)
            self._take(read_keys(self._path))

    @property
    def is_open(self) -> bool:
        """Whether the server needs no key."""
        return self._everybody is not None

    def client(self, headers: Headers) -> Client:
        """The client of a key. Raises ApiError (401), with the same text, for a missing and for an unknown key."""
        if self._everybody is not None:
            return self._everybody
        assert self._path is not None
        if _stamp(self._path) != self._stamp:
            self.reread()
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            key = headers.get("x-api-key", "")
        digest = hashlib.sha256(key.strip().encode("latin-1")).digest()
        found = None
        # Every entry is compared, and in constant time: how long it takes tells nothing about the keys.
        for entry, client in self._clients.items():
            if hmac.compare_digest(bytes.fromhex(entry.sha256), digest):
                found = client
        if found is None:
            message = "a valid API key is needed: Authorization: Bearer KEY, or X-Api-Key: KEY"
            raise ApiError(401, message, "invalid_api_key", headers={"www-authenticate": 'Bearer realm="glm-infill"'})
        return found

    def reread(self) -> None:
        """Reads the file again, and writes the result to the log."""
        if self._path is None:
            self._log.info("keys read", keys=0, detail="there is no key file")
            return
        self._stamp = _stamp(self._path)
        try:
            entries = read_keys(self._path)
        except UsageError as error:
            self._log.error("keys not read", detail=str(error))
            return
        before = set(self._clients)
        self._take(entries)
        self._log.info("keys read", keys=len(entries), new=len(set(entries) - before), gone=len(before - set(entries)))

    def _take(self, entries: list[Entry]) -> None:
        """Replaces the clients. Unchanged entries keep their buckets."""
        before = self._clients
        self._clients = {
            e: before.get(e) or Client(e.name, e.role == "admin", e.priority, _rates(self._settings, e))
            for e in entries
        }


def _stamp(path: Path) -> tuple[int, ...] | None:
    """The identity of a file's content: it differs from that of another file in its place; None for no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _rates(settings: Settings, entry: Entry | None) -> Rates:
    """An entry's own rates, else the server's."""
    requests = (entry and entry.requests_per_minute) or settings.requests_per_minute
    tokens = (entry and entry.tokens_per_minute) or settings.tokens_per_minute
    return Rates(Bucket(requests) if requests else None, Bucket(tokens) if tokens else None)
