"""The tokenizers of Qwen2, StarCoder2, DeepSeek-Coder and Llama.

In a `tokenizer.json` of the `tokenizers` library; Llama's also in sentencepiece's `tokenizer.model`.

Its model is byte-pair encoding over GPT-2's characters for bytes, or Llama's over sentencepiece's pieces. Tokens that
are added to the pieces are special; what the file does around a text is left to the layout. Encoding is lossless but
for the file's own normalization (Qwen2's is NFC).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from model.config import CheckpointError
from model.sentinels import ROLE_OF
from model.tokenizers.byte_level import ByteLevelBPE, piece_bytes
from model.tokenizers.files import added_of, check_roles, plain_model, read_json, vocab_of
from model.tokenizers.interface import Tokenizer, role_of
from model.tokenizers.llama_pieces import SPACE_MARK, LlamaPieces, encoder, read_pieces, special_pieces

_FILL = "<FILL_ME>"  # a mark in texts for transformers' Code Llama, which the model has no embedding of
_ROLES = {
    **ROLE_OF,
    "▁<EOT>": "fim_end",
    "</s>": "eos",
    "<｜end▁of▁sentence｜>": "eos",
    "<|end_of_text|>": "eos",
}


def read_byte_pairs(folder: Path, ends: Sequence[str]) -> Tokenizer:
    """Reads `tokenizer.json` and `add_bos_token` of tokenizer_config.json. `ends` are the roles that end a span.

    Raises CheckpointError for unreadable files, for another kind of model, and for one without an end.
    """
    path = folder / "tokenizer.json"
    data = read_json(path)
    steps = list(_steps(data.get("normalizer"), data.get("pre_tokenizer")))
    vocab, added = vocab_of(data, path), added_of(data, path)
    plain = [token for token in data["added_tokens"] if _is_text(token)]
    no_names = {_FILL, *(token["content"] for token in plain)}
    names = {i: name for name, i in added.items() if name not in no_names}
    special = special_roles(names, *before_and_behind(folder, _template_first(data.get("post_processor"))))
    check_roles(special, ("eos",), path)
    if any(step.get("type") == "ByteLevel" for step in steps):
        pieces = piece_bytes({piece: i for piece, i in vocab.items() if i not in added.values()}, str(path))
        pieces |= {token["id"]: token["content"].encode() for token in plain}
        return ByteLevelBPE(plain_model(data, path, plain), pieces, special, names, ends, mask_strips=False)
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or not model.get("byte_fallback"):
        raise CheckpointError(f"{path}: not byte-pair encoding of bytes, or with bytes for what it does not know")
    # Spaces become marks everywhere; the one before a text is the layout's.
    normalizer = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
    bare = plain_model({**data, "normalizer": normalizer, "pre_tokenizer": None}, path)
    pieces_of_llama = LlamaPieces(lambda text: bare.encode(text).ids, vocab, special, names, ends)
    pieces_of_llama.opens_with_space = _opens(steps)
    return pieces_of_llama


def read_llama_pieces(folder: Path, ends: Sequence[str]) -> LlamaPieces:
    """Reads `tokenizer.model`, and `add_bos_token` (default true) of tokenizer_config.json. `ends` are the roles that
    end a span.

    Raises CheckpointError for unreadable files, and for pieces of another kind.
    """
    path = folder / "tokenizer.model"
    pieces, opens = read_pieces(path)
    names = special_pieces(pieces)
    special = special_roles(names, *before_and_behind(folder, names.get(pieces.bos_id())))
    check_roles(special, ("eos",), path)
    vocab = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    tokenizer = LlamaPieces(encoder(pieces, names), vocab, special, names, ends)
    tokenizer.opens_with_space = opens
    return tokenizer


def special_roles(names: Mapping[int, str], first: str | None, last: str | None) -> dict[str, int]:
    """Role → id of special tokens, by their spelling. `first` is the token that texts begin with, `last` the one that
    ends them, if its spelling does not say so."""
    found: dict[str, int] = {}
    for i, name in sorted(names.items()):
        role = _ROLES.get(name, role_of(name))
        found.setdefault(name if role == "bos" else role, i)
    ids = {name: i for i, name in names.items()}
    if last in ids:
        found.setdefault("eos", ids[last])
    return found | ({"bos": ids[first]} if first in ids else {})


def before_and_behind(folder: Path, default: str | None = None) -> tuple[str | None, str | None]:
    """The tokens before and behind a text, by tokenizer_config.json.

    `default` is the token before one if the file does not say whether there is one. Raises CheckpointError for an
    unreadable file.
    """
    fields = read_json(folder / "tokenizer_config.json", {})
    found = []
    for role in ("bos_token", "eos_token"):
        token = fields.get(role)
        token = token.get("content") if isinstance(token, dict) else token
        found.append(token if isinstance(token, str) else None)
    adds = fields.get("add_bos_token")
    return (found[0] or default if adds else None) if isinstance(adds, bool) else default, found[1]


def _is_text(token: Mapping[str, Any]) -> bool:
    """Whether an added token is a piece of text, such as the letters that DeepSeek-Coder's pieces lack."""
    content = token.get("content")
    return token.get("special") is False and isinstance(content, str) and content[:1] not in "<["


def _steps(*parts: Any) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer, those of a sequence apart."""
    for part in parts:
        if isinstance(part, dict) and part.get("type") == "Sequence":
            yield from _steps(*part.get("normalizers", []), *part.get("pretokenizers", []))
        elif isinstance(part, dict):
            yield part


def _opens(steps: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a space is encoded before a text."""
    prepends = (step.get("prepend_scheme", "always" if step.get("add_prefix_space") else "never") for step in steps)
    return any(step.get("type") == "Prepend" for step in steps) or any(scheme != "never" for scheme in prepends)


def _template_first(part: Any) -> str | None:
    """The special token that a post-processor begins a single text with."""
    if not isinstance(part, dict):
        return None
    if part.get("type") == "Sequence":
        return next((found for p in part.get("processors", []) if (found := _template_first(p)) is not None), None)
    single = part.get("single")
    first = single[0] if isinstance(single, list) and single else None
    token = first.get("SpecialToken") if isinstance(first, dict) else None
    return token.get("id") if isinstance(token, dict) else None
