"""The byte-level BPE of RoBERTa and ModernBERT: GPT-2's alphabet, and the special tokens of a masked language model.

Encoding is lossless, unless the files ask for a space before a text (`add_prefix_space`).
"""

import re
from collections.abc import Mapping
from pathlib import Path

import tokenizers
from tokenizers import pre_tokenizers

from model.config import CheckpointError
from model.tokenizers.byte_level import ByteLevelBPE, piece_bytes
from model.tokenizers.files import added_of, declared, read_ids, read_json, text_model, vocab_of
from model.tokenizers.gpt2 import bpe

ROLES = {
    "cls": ("<s>", "[CLS]"),
    "sep": ("</s>", "[SEP]"),
    "mask": ("<mask>", "[MASK]"),
    "pad": ("<pad>", "[PAD]"),
    "unk": ("<unk>", "[UNK]"),
}
# Rows that no text uses: fairseq's padding of the vocabulary, and what a vocabulary keeps free.
_UNUSED = re.compile(r"madeupword\d+|\[unused\d+\]")


class MaskedBPE(ByteLevelBPE):
    """Byte-level BPE whose words are those of its own split of text (letters, digits, other signs)."""

    def goes_on(self, before: int, token_id: int) -> bool:
        first, second = (self.decode_bytes([i]) for i in (before, token_id))
        if not first or not second:
            return False
        start = len(first.decode("utf-8", "ignore"))
        if len(first.decode("utf-8", "ignore").encode()) < len(first):
            return True  # inside a character
        text = (first + second).decode("utf-8", "ignore")
        split = self._model.pre_tokenizer.pre_tokenize_str(text) if self._model.pre_tokenizer is not None else []
        return all(begin != start for _, (begin, _) in split)


def read_masked_bpe(folder: Path) -> MaskedBPE:
    """Reads `tokenizer.json`, or else `vocab.json` and `merges.txt`. Raises CheckpointError for unreadable or
    incomplete files."""
    path = folder / "tokenizer.json"
    if path.exists():
        data = read_json(path)
        model, ids = text_model(data, path), {**vocab_of(data, path), **added_of(data, path)}
        special_names = {token["content"] for token in data["added_tokens"] if token.get("special")}
    else:
        path = folder / "vocab.json"
        ids = read_ids(path)
        model, special_names = bpe(ids, folder / "merges.txt"), {"<|endoftext|>"}
        if read_json(folder / "tokenizer_config.json", {}).get("add_prefix_space"):
            model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return _tokenizer(model, ids, special_names, folder, path)


def _tokenizer(
    model: tokenizers.Tokenizer, ids: Mapping[str, int], special_names: set[str], folder: Path, path: Path
) -> MaskedBPE:
    """`special_names` are tokens without a text, beside those with a role."""
    wrong = next((name for name, i in ids.items() if model.token_to_id(name) != i), None)
    if wrong is not None:
        raise CheckpointError(f"{path}: {wrong!r} has the id {ids[wrong]} of another token")
    special, names = declared(folder, ids, ROLES)
    added = {i for i, token in model.get_added_tokens_decoder().items() if not token.special}
    kept = {n: i for n, i in ids.items() if i not in names and n not in special_names and not _UNUSED.fullmatch(n)}
    # Added tokens are spelled as they are, pieces by GPT-2's characters for bytes.
    pieces = piece_bytes({n: i for n, i in kept.items() if i not in added}, str(path))
    pieces |= {i: n.encode() for n, i in kept.items() if i in added}
    names |= {i: name for name, i in ids.items() if i not in pieces}
    return MaskedBPE(model, pieces, special, names, ends=(), mask_strips=_mask_strips(model, special["mask"]))


def _mask_strips(model: tokenizers.Tokenizer, mask: int) -> bool:
    """Whether the mask swallows the white space before it, as RoBERTa's does if no file says otherwise."""
    token = model.get_added_tokens_decoder().get(mask)
    return True if token is None else token.lstrip
