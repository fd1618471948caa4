"""The tokenizer of a GGUF file, as the `tokenizer.json` of its original. Does not import torch."""

import json
from collections.abc import Mapping
from typing import Any

from model.config import CheckpointError
from model.gguf.header import Array, Header

# Types of tokens. Source: llama.cpp, gguf-py/gguf/constants.py (TokenType).
_NORMAL, _USER_DEFINED, _UNUSED = 1, 4, 5

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _bytes(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": use_regex}


_DIGITS = {"type": "Digits", "individual_digits": True}
_THREE_DIGITS = [_split(_WORDS + r"\p{N}{1,3}" + _REST), _bytes(False)]
# The splits of text before the merges, by `tokenizer.ggml.pre`, as the originals' tokenizer.json have them.
_SPLITS = {
    "glm4": _THREE_DIGITS,
    "chatglm-bpe": _THREE_DIGITS,
    "llama-bpe": _THREE_DIGITS,
    "qwen2": [_split(_WORDS + r"\p{N}" + _REST), _bytes(False)],
    "gpt-2": [_bytes(True)],
    "starcoder": [_DIGITS, _bytes(True)],
    "deepseek-coder": [
        *map(_split, (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")),
        _DIGITS,
        _bytes(False),
    ],
}
_WHOLE_PIECES = ("glm4", "chatglm-bpe", "llama-bpe")  # a word that is a piece is that piece, whatever the merges are
_NORMALIZED = {"qwen2": {"type": "NFC"}}
_BEGUN = ("llama-bpe",)  # texts begin with a token where the file does not say so


def tokenizer_files(header: Header) -> dict[str, bytes]:
    """The files that the tokenizer's own folder would have: name → content.

    Raises CheckpointError for a kind of tokenizer that is not read, and for damaged metadata.
    """
    kind = header.metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise _unread(header, f"the tokenizer {kind!r} is not read", "gpt2")
    tokens = _array(header, "tokens", str)
    files = {"tokenizer.json": _byte_level(header, tokens), "tokenizer_config.json": _ends(header, tokens)}
    return {name: json.dumps(content, ensure_ascii=False).encode() for name, content in files.items()}


def _ends(header: Header, tokens: list[str]) -> Mapping[str, Any]:
    """A tokenizer_config.json: the tokens that begin and end a text."""
    own = {key.removeprefix("tokenizer.ggml."): value for key, value in header.metadata.items()}
    found: dict[str, Any] = {"add_bos_token": bool(own.get("add_bos_token", own.get("pre") in _BEGUN))}
    for role in ("bos", "eos"):
        number = own.get(f"{role}_token_id")
        if type(number) is int and 0 <= number < len(tokens):
            found[f"{role}_token"] = tokens[number]
    return found


def _byte_level(header: Header, tokens: list[str]) -> Mapping[str, Any]:
    """A tokenizer.json of byte-level BPE."""
    split = header.metadata.get("tokenizer.ggml.pre")
    if split not in _SPLITS:
        raise _unread(header, f"the split of text {split!r} is not known", ", ".join(_SPLITS))
    types = _array(header, "token_type", int) if "tokenizer.ggml.token_type" in header.metadata else []
    types = types or [_NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise CheckpointError(f"{header.path}: {len(tokens)} tokens with {len(types)} types")
    vocab = {token: i for i, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind == _NORMAL}
    added = [
        (i, token, kind)
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind not in (_NORMAL, _UNUSED)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": kind != _USER_DEFINED,
            }
            for i, token, kind in added
        ],
        "normalizer": _NORMALIZED.get(split),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _SPLITS[split]},
        "post_processor": None,
        "decoder": _bytes(True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": split in _WHOLE_PIECES,
            "vocab": vocab,
            "merges": _array(header, "merges", str),
        },
    }  # fmt: skip


def _array(header: Header, name: str, kind: type) -> list[Any]:
    """An array of the tokenizer. Raises CheckpointError if it is missing or has elements of another type."""
    array = header.metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(array, Array):
        raise CheckpointError(f"{header.path}: lacks tokenizer.ggml.{name}")
    found = array.read()
    if found and type(found[0]) is not kind:
        raise CheckpointError(f"{header.path}: tokenizer.ggml.{name} must have elements of type {kind.__name__}")
    return found


def _unread(header: Header, what: str, known: str) -> CheckpointError:
    return CheckpointError(f"{header.path}: {what}; known: {known}. --tokenizer FOLDER takes the original's tokenizer")
