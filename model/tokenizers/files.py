"""The files of a tokenizer. Every error is one line that names the file."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers

from model.config import CheckpointError
from model.lfs import ADVICE, is_pointer


class MissingFile(CheckpointError):
    """A file of a tokenizer that is not there: the folder may have another kind of tokenizer."""


def read_text(path: Path) -> str:
    """Reads a UTF-8 file, its line ends as \\n. Raises CheckpointError if it is missing or unreadable."""
    try:
        text = read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: unreadable ({error})") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, default: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Reads a JSON object; returns the default, if given, for a missing file. Raises CheckpointError for other
    content."""
    if default is not None and not path.exists():
        return dict(default)
    try:
        data = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return data


def read_ids(path: Path, default: Mapping[str, int] | None = None) -> dict[str, int]:
    """Reads a JSON object of tokens and their ids. Raises CheckpointError for other content."""
    return checked_ids(read_json(path, default), str(path))


def vocab_of(data: Mapping[str, Any], path: Path) -> dict[str, int]:
    """The pieces of a `tokenizer.json` and their ids. Raises CheckpointError for other content."""
    model = data.get("model")
    return checked_ids(model.get("vocab") if isinstance(model, dict) else None, f"{path}: model.vocab")


def added_of(data: Mapping[str, Any], path: Path) -> dict[str, int]:
    """The ids of the tokens that a `tokenizer.json` adds to its pieces. Raises CheckpointError for other content."""
    try:
        added = {token["content"]: token["id"] for token in data["added_tokens"]}
    except (KeyError, TypeError):
        added = {"": None}
    if not all(isinstance(name, str) and type(i) is int and i >= 0 for name, i in added.items()):
        raise CheckpointError(f"{path}: added_tokens must be tokens with their ids")
    return added


def plain_model(data: Mapping[str, Any], path: Path, kept: Sequence[Mapping[str, Any]] = ()) -> tokenizers.Tokenizer:
    """The tokenizer of a `tokenizer.json`, without special tokens. `kept` are added tokens that are text.

    Raises CheckpointError if it is unreadable.
    """
    bare = {**data, "added_tokens": list(kept), "post_processor": None, "truncation": None, "padding": None}
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(bare))
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{path}: unreadable tokenizer ({error})") from None


def text_model(data: Mapping[str, Any], path: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a `tokenizer.json` as it reads plain text: added tokens that are not special, such as runs of
    spaces, are tokens, and what spells a special one is text.

    Raises CheckpointError if the file is unreadable.
    """
    try:
        model = tokenizers.Tokenizer.from_str(
            json.dumps({**data, "post_processor": None, "truncation": None, "padding": None})
        )
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{path}: unreadable tokenizer ({error})") from None
    model.encode_special_tokens = True
    return model


def declared(
    folder: Path, ids: Mapping[str, int], usual: Mapping[str, Iterable[str]]
) -> tuple[dict[str, int], dict[int, str]]:
    """Role → id and id → spelling of the special tokens that `tokenizer_config.json` names (`mask_token`, …), or else
    of the first `usual` spelling of a role in the vocabulary.

    Raises CheckpointError for a role without a token in the vocabulary, and for two roles of one token among them.
    """
    path = folder / "tokenizer_config.json"
    fields = read_json(path, {})
    special, names = {}, {}
    for role, spellings in usual.items():
        given = fields.get(f"{role}_token")
        name = given.get("content") if isinstance(given, dict) else given
        if name is None:
            name = next((spelling for spelling in spellings if spelling in ids), None)
        if not isinstance(name, str) or name not in ids:
            wanted = " or ".join(spellings) if name is None else repr(name)
            raise CheckpointError(f"{folder}: the vocabulary has no {wanted} for {role}_token")
        special[role] = ids[name]
        names[ids[name]] = name
    if len(names) < len(special):
        raise CheckpointError(f"{path}: two of {', '.join(usual)} are one token")
    return special, names


def checked_ids(ids: object, where: str) -> dict[str, int]:
    """Returns a mapping of names to ids. Raises CheckpointError for anything else."""
    if not isinstance(ids, dict) or not ids or any(type(i) is not int or i < 0 for i in ids.values()):
        raise CheckpointError(f"{where}: must map tokens to ids")
    return ids


def check_roles(special: Mapping[str, int], roles: Iterable[str], where: Path) -> None:
    """Raises CheckpointError unless every role has a special token."""
    missing = [role for role in roles if role not in special]
    if missing:
        raise CheckpointError(f"{where}: no special token for {', '.join(missing)}")


def read_pieces(path: Path) -> sentencepiece.SentencePieceProcessor:
    """Reads a sentencepiece model. Raises CheckpointError if it is missing or damaged."""
    return pieces_of(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """Reads a file. Raises CheckpointError if it is missing, unreadable, or a pointer of Git LFS."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise MissingFile(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: unreadable ({error})") from None
    if is_pointer(content):
        raise CheckpointError(f"{path}: {ADVICE}")
    return content


def kind_of(data: bytes) -> str:
    """What a `tokenizer.model` is, whose kinds share the name: for errors about one of another kind."""
    first = data.split(b"\n", 1)[0].strip()
    if re.fullmatch(rb"[A-Za-z0-9+/]+=* \d+", first):
        return "a vocabulary of GLM-4's kind (in each line a piece in base64 and its rank)"
    if first == b"<pad>":
        return "a vocabulary of ProteinGLM's kind (in each line a token)"
    if data.startswith(b"\n"):  # field 1 of a ModelProto
        return "a sentencepiece model"
    return "empty" if not data else "of no known kind"


def pieces_of(proto: bytes, path: Path) -> sentencepiece.SentencePieceProcessor:
    """A sentencepiece model from its bytes, which come from `path`. Raises CheckpointError if they are damaged."""
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=proto or b"empty")
    except RuntimeError as error:
        kind = kind_of(proto)
        reason = f"it is {kind}" if kind.startswith("a vocabulary") else error
        raise CheckpointError(f"{path}: not a sentencepiece model ({reason})") from None


def check_kind(data: Mapping[str, Any], kind: str, path: Path) -> None:
    """Raises CheckpointError if a `tokenizer.json` says that it is of another kind than BPE, WordPiece, …"""
    model = data.get("model")
    found = model.get("type") if isinstance(model, dict) else None
    if found not in (None, kind):
        raise CheckpointError(f"{path}: a tokenizer of the kind {found!r}; this model has {kind}")
