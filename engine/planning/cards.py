"""Cards: the facts of the devices that a plan can use."""

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from quant.usage import UsageError

CARDS = Path(__file__).parent / "cards.toml"
_GIB = 2**30
_MOST = 1024  # maximum number of devices in a plan


class CardError(UsageError):
    """A table of cards or a list of devices that cannot be used. The message is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A kind of device. engine/planning/cards.toml explains the fields and their units."""

    name: str
    memory_gib: float
    bandwidth_gb_s: float
    float_tflops: float
    int8_tops: float
    link_gb_s: float
    hop_us: float
    capability: float | None = None
    shared: bool = False

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory."""
        return int(self.memory_gib * _GIB)

    @property
    def kind(self) -> str:
        """torch's device type, "cpu" or "cuda"."""
        return "cpu" if self.capability is None else "cuda"

    def divided(self, ranks: int) -> "Card":
        """The share of the device that each of so many ranks has."""
        if not self.shared:
            return self
        names = ("memory_gib", "bandwidth_gb_s", "float_tflops", "int8_tops")
        return replace(self, **{name: getattr(self, name) / ranks for name in names})


def read_cards(added: Path | None = None) -> dict[str, Card]:
    """The cards of engine/planning/cards.toml and of a file of that form (TOML or JSON), by `plain` name.

    A card in the file replaces one of the same name. Raises CardError for a file that cannot be read as cards.
    """
    found = _read(CARDS)
    return found if added is None else found | _read(added)


def devices(text: str, cards: Mapping[str, Card]) -> tuple[Card, ...]:
    """The devices of a list such as "4xRTX3090" or "2xA100-40,2xA100-80", one per rank.

    Raises CardError for another form, unknown cards, too many devices, and CPUs mixed with GPUs.
    """
    listed: list[Card] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(?:(\d{1,9})\s*[x×*])?\s*(\S.*?)\s*", part, re.IGNORECASE)
        count = int(match[1] or 1) if match else 0
        if match is None or count < 1:
            raise CardError(f"not a list of devices such as 4xRTX3090: {text!r}")
        if len(listed) + count > _MOST:
            raise CardError(f"more than {_MOST} devices: {text!r}")
        card = cards.get(plain(match[2]))
        if card is None:
            raise CardError(f"no card {match[2]!r}; the cards are {', '.join(c.name for c in cards.values())}")
        listed += [card] * count
    if len({card.kind for card in listed}) > 1:
        raise CardError(f"CPUs and GPUs cannot share one model: {text!r}")
    return tuple(card.divided(len(listed)) for card in listed)


def plain(name: str) -> str:
    """A card's name for comparison: without case, spaces, hyphens and underscores."""
    return re.sub(r"[\s_-]", "", name).lower()


def _read(path: Path) -> dict[str, Card]:
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise CardError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise CardError(f"{path}: not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise CardError(f"{path}: not {'JSON' if path.suffix == '.json' else 'TOML'} ({error})") from None
    if not isinstance(data, dict):
        raise CardError(f"{path}: not an object of cards by name")
    found: dict[str, Card] = {}
    for name, table in data.items():
        if not plain(name) or not name.isprintable() or "," in name or re.match(r"\d+\s*[x×*]", name, re.IGNORECASE):
            raise CardError(f"{path}: {name!r} is not a valid name of a card")
        if plain(name) in found:
            raise CardError(f"{path}: {name} occurs twice")
        found[plain(name)] = _card(f"{path}: {name}", name, table)
    return found


def _card(where: str, name: str, table: Any) -> Card:
    if not isinstance(table, dict):
        raise CardError(f"{where} is not a table of its fields")
    known = {field.name for field in fields(Card)} - {"name"}
    if unknown := table.keys() - known:
        raise CardError(f"{where}: no such field: {sorted(unknown)[0]!r}; there are {', '.join(sorted(known))}")
    given = dict(table)
    if "capability" not in given and "memory_gib" not in given:
        given["memory_gib"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    for field in sorted(known - {"shared"}):
        value = given.get(field)
        if value is None and field == "capability":
            continue
        if value is None:
            raise CardError(f"{where}: {field} is missing")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < 1e9:
            raise CardError(f"{where}: {field} must be a positive number below 10⁹, not {value!r}")
    if not isinstance(given.get("shared", False), bool):
        raise CardError(f"{where}: shared must be true or false, not {given['shared']!r}")
    return Card(name=name, **given)
