"""The tokenizer of GLM-4 and CodeGeeX4: byte-level BPE over 151,329 pieces, in either of two file forms.

`tokenizer.json` belongs to the `tokenizers` library. `tokenizer.model` has one piece per line: the piece in base64 and
its rank, which is its id. Encoding is lossless.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, models, pre_tokenizers

from model.config import CheckpointError
from model.tokenizers.byte_level import ByteLevelBPE, byte_alphabet, piece_bytes
from model.tokenizers.files import (
    MissingFile,
    added_of,
    check_kind,
    check_roles,
    kind_of,
    plain_model,
    read_bytes,
    read_json,
    vocab_of,
)
from model.tokenizers.interface import roles_of

_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# In the order of their ids behind the pieces, where tokenizer_config.json does not give them.
_SPECIAL = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
)  # fmt: skip
_ENDS = ("eos", "user", "observation")


def read_glm4(folder: Path) -> ByteLevelBPE:
    """Reads `tokenizer.json`, or else `tokenizer.model`. Raises CheckpointError for unreadable or incomplete files."""
    return _read_json(folder) if (folder / "tokenizer.json").exists() else _read_ranks(folder)


def _read_json(folder: Path) -> ByteLevelBPE:
    path = folder / "tokenizer.json"
    data = read_json(path)
    check_kind(data, "BPE", path)
    vocab = vocab_of(data, path)
    special = added_of(data, path)
    return _tokenizer(plain_model(data, path), vocab, special, path)


def _read_ranks(folder: Path) -> ByteLevelBPE:
    path = folder / "tokenizer.model"
    if not path.exists():
        raise MissingFile(f"{folder}: lacks its tokenizer, the file tokenizer.json or tokenizer.model")
    data = read_bytes(path)
    try:
        lines = [line.split() for line in data.splitlines() if line]
        ranks = {base64.b64decode(piece, validate=True): int(rank) for piece, rank in lines}
    except (ValueError, binascii.Error):
        raise CheckpointError(
            f"{path}: is {kind_of(data)}; this model's has in each line a piece in base64 and its rank"
        ) from None
    if len(ranks) < 256 or any(bytes([byte]) not in ranks for byte in range(256)):
        raise CheckpointError(f"{path}: lacks pieces for single bytes")
    spelled = {byte: c for c, byte in byte_alphabet().items()}
    vocab = {"".join(spelled[byte] for byte in piece): rank for piece, rank in ranks.items()}
    merges = [tuple("".join(spelled[byte] for byte in part) for part in pair) for pair in merges_of(ranks)]
    model = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=True))  # type: ignore[arg-type]
    split = pre_tokenizers.Split(Regex(_PATTERN), "isolated")
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return _tokenizer(model, vocab, _special(folder, len(ranks)), path)


def _special(folder: Path, first: int) -> dict[str, int]:
    path = folder / "tokenizer_config.json"
    given: dict[str, Any] | None = read_json(path, {}).get("added_tokens_decoder")
    if not given:
        return {name: first + n for n, name in enumerate(_SPECIAL)}
    try:
        return {token["content"]: int(i) for i, token in given.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path}: added_tokens_decoder must map ids to tokens") from None


def _tokenizer(
    model: tokenizers.Tokenizer, vocab: Mapping[str, int], special: Mapping[str, int], path: Path
) -> ByteLevelBPE:
    roles = roles_of(special)
    check_roles(roles, ("gmask", "sop", *_ENDS), path)
    names = {i: name for name, i in special.items()}
    pieces = piece_bytes({piece: i for piece, i in vocab.items() if i not in names}, str(path))
    return ByteLevelBPE(model, pieces, roles | {"pad": roles["eos"]}, names, _ENDS, mask_strips=False)


def merges_of(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """The merge that makes each piece, by rank: the two pieces that the earlier merges make of its bytes."""
    for piece, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [piece[i : i + 1] for i in range(len(piece))]
        costs = [ranks.get(a + b, rank) for a, b in pairwise(parts)]
        while len(parts) > 2 and (best := min(costs)) < rank:
            at = costs.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
            del costs[at]
            for n in range(max(at - 1, 0), min(at + 1, len(costs))):
                costs[n] = ranks.get(parts[n] + parts[n + 1], rank)
        if len(parts) == 2:
            yield parts[0], parts[1]
