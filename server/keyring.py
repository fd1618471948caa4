"""The keyring: who a client is, by the key that it shows."""

import hashlib
import hmac
from dataclasses import dataclass

from starlette.datastructures import Headers

from engine.requests import Priority
from server.errors import ApiError
from server.keyfile import Entry, read_keys
from server.rates import Bucket, Rates
from server.settings import Settings


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks, and how much they may ask for. The name is "" where no keys are needed."""

    name: str
    is_admin: bool
    priority: Priority
    rates: Rates


class Keyring:
    """The clients of a server: those of a key file, or without one everybody as one client."""

    def __init__(self, settings: Settings) -> None:
        self._everybody = None if settings.api_keys else Client("", False, "interactive", _rates(settings, None))
        entries = read_keys(settings.api_keys) if settings.api_keys else []
        self._clients = [
            (bytes.fromhex(e.sha256), Client(e.name, e.role == "admin", e.priority, _rates(settings, e)))
            for e in entries
        ]

    @property
    def is_open(self) -> bool:
        """Whether no key is needed."""
        return self._everybody is not None

    def client(self, headers: Headers) -> Client:
        """The client by its key. Raises ApiError (401) for none and for an unknown one, in the same words."""
        if self._everybody is not None:
            return self._everybody
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            key = headers.get("x-api-key", "")
        digest = hashlib.sha256(key.strip().encode("latin-1")).digest()
        found = None
        # Every entry is compared, and in constant time: how long it takes tells nothing about the keys.
        for known, client in self._clients:
            if hmac.compare_digest(known, digest):
                found = client
        if found is None:
            message = "a valid API key is needed: Authorization: Bearer KEY, or X-Api-Key: KEY"
            raise ApiError(401, message, "invalid_api_key", headers={"www-authenticate": 'Bearer realm="glm-infill"'})
        return found


def _rates(settings: Settings, entry: Entry | None) -> Rates:
    """An entry's own rates, else the server's."""
    requests = (entry and entry.requests_per_minute) or settings.requests_per_minute
    tokens = (entry and entry.tokens_per_minute) or settings.tokens_per_minute
    return Rates(Bucket(requests) if requests else None, Bucket(tokens) if tokens else None)
