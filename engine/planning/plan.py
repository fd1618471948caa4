"""The plan of a deployment: whether it fits, its capacity and speed, and alternatives if it does not fit."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from engine.loading import LONGEST_CONTEXT, fitting, least_blocks
from engine.planning.cards import Card
from engine.planning.deployment import Deployment
from engine.planning.footprint import Footprint, footprint
from engine.planning.roofline import Roofline
from model.config import CheckpointError
from model.storage import Storage
from quant.registry import FLOAT, scheme_facts, smaller_heads, smaller_schemes
from quant.usage import UsageError

_ENCODED = (128, 512, 1024, 2048)  # tokens whose encoding is predicted
_MOST_RANKS = 64  # maximum number of ranks in a proposal


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """The bytes on one device. `free_bytes` remain for keys and values; if negative, so many bytes are missing."""

    name: str
    memory_bytes: int
    weights_bytes: int
    kv_bytes_per_token: int
    workspace_bytes: int
    reserve_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Predicted:
    """Predicted seconds: of encoding contexts of these tokens, of generating these tokens, and of one token.

    The one token follows half of a full-length request. None if nothing can be predicted.
    """

    encode_s: dict[str, float]
    decode_s: dict[str, float]
    token_s: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan. `reason` says why it does not fit; `instead` proposes deployments that fit, as options of the command."""

    fits: bool
    reason: str | None
    devices: list[DevicePlan]
    max_tokens: int
    max_requests: int
    predicted: Predicted
    request_tokens: int
    kv_cache_gb: float  # of one device, for `serve --kv-cache-gb`
    instead: list[str]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """The JSON document of `plan` (docs/planning.md)."""
        return asdict(self)


def plan(deployment: Deployment, requantize: bool = True) -> Plan:
    """Plans a deployment. For an impossible one it raises nothing: the plan states the reason.

    Without `requantize` the weights are stored already, so that it proposes no other scheme.
    """
    d = deployment
    try:
        prints = _footprints(d)
    except (CheckpointError, UsageError) as error:
        instead = [*(_other_storages(d) if requantize else ()), *_instead(d, requantize)]
        return Plan(False, str(error), [], 0, 0, Predicted({}, {}, None), d.tokens, 0.0, instead, [])
    devices = [_device(card, f) for card, f in zip(d.devices, prints, strict=True)]
    blocks = _blocks(d, prints)
    reason = _reason(d, devices, blocks)
    return Plan(
        fits=reason is None,
        reason=reason,
        devices=devices,
        max_tokens=blocks * d.block_size,
        max_requests=blocks // d.request_blocks,
        predicted=_predicted(d, prints),
        request_tokens=d.tokens,
        kv_cache_gb=max(blocks * d.block_size * f.kv_bytes_per_token for f in prints) / 1e9,
        instead=[] if reason is None else [*_instead(d, requantize)],
        notes=[*_notes(d, prints, blocks, requantize)] if reason is None else [],
    )


def _footprints(d: Deployment) -> list[Footprint]:
    return [footprint(d, rank) for rank in range(d.ranks)]


def _device(card: Card, f: Footprint) -> DevicePlan:
    memory = card.memory_bytes
    return DevicePlan(
        name=card.name,
        memory_bytes=memory,
        weights_bytes=f.weights_bytes,
        kv_bytes_per_token=f.kv_bytes_per_token,
        workspace_bytes=f.workspace_bytes,
        reserve_bytes=f.reserve_bytes,
        free_bytes=memory - f.weights_bytes - f.workspace_bytes - f.reserve_bytes,
    )


def _blocks(d: Deployment, prints: list[Footprint]) -> int:
    """Cache blocks that there is room for on every device; all have the same ones."""
    free = [_device(card, f).free_bytes for card, f in zip(d.devices, prints, strict=True)]
    return max(min(n // (f.kv_bytes_per_token * d.block_size) for n, f in zip(free, prints, strict=True)), 0)


def _reason(d: Deployment, devices: list[DevicePlan], blocks: int) -> str | None:
    """Why it does not fit, of the device with the least room; None if it does."""
    if blocks >= d.request_blocks:
        return None
    least = min(devices, key=lambda device: device.free_bytes)
    parts = (
        f"{_gb(least.weights_bytes)} of weights, {_gb(least.workspace_bytes)} of workspace and "
        f"{_gb(least.reserve_bytes)} of reserve"
    )
    if least.free_bytes < 0:
        return f"{parts} are {_gb(-least.free_bytes)} more than the {_gb(least.memory_bytes)} of {least.name}"
    needed = d.request_blocks * d.block_size * least.kv_bytes_per_token
    return (
        f"{parts} leave {_gb(least.free_bytes)} of the {_gb(least.memory_bytes)} of {least.name} for keys and values, "
        f"enough for {blocks * d.block_size} tokens; a request of {d.tokens} needs {_gb(needed)}"
    )


def _predicted(d: Deployment, prints: list[Footprint]) -> Predicted:
    """The slowest rank's times: all wait for it."""
    lines = [Roofline(d, card, f) for card, f in zip(d.devices, prints, strict=True)]
    limit = d.architecture.max_sequence_length
    lengths = sorted({n for n in (*_ENCODED, d.tokens) if n <= limit})
    encode_s = {str(n): max(line.encode(n) for line in lines) for n in lengths}
    if d.architecture.masked:  # a text is computed as a whole for the words in it
        return Predicted(encode_s, {}, max(line.encode(d.tokens) for line in lines))
    decode_s = {str(n): max(line.generate(n) for line in lines) for n in lengths}
    return Predicted(encode_s, decode_s, max(line.token(d.tokens / 2) for line in lines))


def _notes(d: Deployment, prints: list[Footprint], blocks: int, requantize: bool) -> Iterator[str]:
    """Notes on a plan that fits."""
    longest = min(d.architecture.max_sequence_length, LONGEST_CONTEXT)
    least, most = least_blocks(longest, d.block_size), fitting(blocks, d.block_size)
    if blocks < least:
        roomy = [
            options
            for options, other in _single_changes(d, requantize)
            if other.tokens == d.tokens and _room(other) >= least
        ]
        yield (
            f"serve takes contexts and spans of up to {most} tokens each there, not of {longest}"
            + (f"; with {' or '.join(roomy)} it does" if roomy else "")
        )
    if d.devices[0].shared:
        yield f"times are those of the machine that engine/planning/cards.toml has as {d.devices[0].name}; see --cards"


def _instead(d: Deployment, requantize: bool) -> Iterator[str]:
    """Deployments like this one that fit, as the options that make the difference."""
    changes = dict(_single_changes(d, requantize))
    found = [options for options, other in changes.items() if _fits(other)]
    found += _other_ranks(d)
    scheme, head = smaller_schemes(FLOAT)[-1], smaller_heads(FLOAT)[0]
    smallest_scheme = f"--quant {scheme}"
    if smallest_scheme in changes and smallest_scheme not in found:
        found += [f"{smallest_scheme} {ranks}" for ranks in _other_ranks(changes[smallest_scheme])]
    if not found:
        smallest, options = replace(d, kv_cache_type="int8"), ["--kv-cache-type int8"]
        if requantize:
            storage = _in_scheme(d.storage, scheme)
            if storage.head == FLOAT:
                storage, options = replace(storage, head=head), [f"--quant-head {head}", *options]
            smallest, options = replace(smallest, storage=storage), [smallest_scheme, *options]
        found = [" ".join(options)] if _fits(smallest) else []
        found += [f"{' '.join(options)} {ranks}" for ranks in _other_ranks(smallest)]
    yield from found


def _single_changes(d: Deployment, requantize: bool) -> Iterator[tuple[str, Deployment]]:
    s = d.storage
    for scheme in smaller_schemes(s.scheme) if requantize else ():
        if s.group_size is None or s.group_size in scheme_facts(scheme).group_sizes:
            yield f"--quant {scheme}", replace(d, storage=_in_scheme(s, scheme))
    if s.head == FLOAT and requantize:
        head = smaller_heads(FLOAT)[0]
        yield f"--quant-head {head}", replace(d, storage=replace(s, head=head))
    if d.kv_cache_type == "auto":
        yield "--kv-cache-type int8", replace(d, kv_cache_type="int8")
    shorter = d.tokens // 2
    while shorter >= d.block_size and not _fits(replace(d, request_tokens=shorter)):
        shorter //= 2
    yield f"--context {shorter}", replace(d, request_tokens=max(shorter, 1))


def _other_storages(d: Deployment) -> Iterator[str]:
    """Storages that can hold widths which the deployment's own cannot, and fit: a scale a row, and more bits."""
    s = d.storage
    facts = scheme_facts(s.scheme)
    if 0 in facts.group_sizes and _fits(replace(d, storage=replace(s, group_size=0))):
        yield "--group-size 0"
    for scheme in smaller_schemes(FLOAT):
        if scheme_facts(scheme).bits > facts.bits and _fits(
            replace(d, storage=replace(_in_scheme(s, scheme), group_size=None))
        ):
            yield f"--quant {scheme}"


def _in_scheme(storage: Storage, scheme: str) -> Storage:
    """The storage with another scheme. A head that is its scheme's default becomes the other scheme's."""
    is_default = storage.head == scheme_facts(storage.scheme).default_head
    return replace(storage, scheme=scheme, head=scheme_facts(scheme).default_head if is_default else storage.head)


def _other_ranks(d: Deployment) -> list[str]:
    """The next larger number of such cards that fits, and if these cannot divide the model the next smaller one."""
    card = d.devices[0]
    if card.shared or len(set(d.devices)) > 1:
        return []
    larger = next((n for n in range(d.ranks + 1, _MOST_RANKS + 1) if _fits(replace(d, devices=(card,) * n))), None)
    smaller = next((n for n in range(d.ranks - 1, 0, -1) if _fits(replace(d, devices=(card,) * n))), None)
    return [f"--gpus {n}x{card.name}" for n in (smaller, larger) if n is not None]


def _fits(d: Deployment) -> bool:
    return _room(d) >= d.request_blocks


def _room(d: Deployment) -> int:
    """Cache blocks that there is room for, none where the model cannot be divided or stored so."""
    try:
        return _blocks(d, _footprints(d))
    except (CheckpointError, UsageError):
        return 0


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
