"""The tokenizers of glm-2b and glm-10b (GPT-2's BPE) and of glm-roberta-* (the same merges, RoBERTa's ids).

Both read `vocab.json` and `merges.txt`, and the ids of GLM's own tokens from `added_tokens.json`; or everything from
`tokenizer.json`. Without added tokens the ids are those of GLM's data_utils/tokenization.py. Encoding is lossless. The
originals give no ids for a text of white space alone; here it has ids like any other text.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import tokenizers
from tokenizers import models, pre_tokenizers

from model.config import CheckpointError
from model.tokenizers.byte_level import ByteLevelBPE, piece_bytes
from model.tokenizers.files import added_of, check_roles, plain_model, read_ids, read_json, read_text, vocab_of
from model.tokenizers.interface import roles_of

_EOS = "<|endoftext|>"
_GPT2_ADDED = ("<|startofpiece|>", "<|endofpiece|>", "[CLS]", "[MASK]", "[SEP]", "[UNK]", "[gMASK]", "[sMASK]")
_ROBERTA_ADDED = ("<|startofpiece|>", "<|endofpiece|>")
_ROBERTA = {"cls": "<s>", "pad": "</s>", "eos": "</s>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
_BASE = {_EOS, "<pad>", *_ROBERTA.values()}
# Rows that no text uses: fairseq's padding of the vocabulary, and GPT-2's end of a document.
_ROBERTA_UNUSED = re.compile(r"<s>|<pad>|</s>|<unk>|<mask>|<\|endoftext\|>|madeupword\d+")


def read_gpt2(folder: Path) -> ByteLevelBPE:
    """Reads GPT-2's files, or RoBERTa's, which have a <mask>. Raises CheckpointError for unreadable or incomplete
    files."""
    path = folder / "vocab.json"
    if path.exists():
        vocab = read_ids(path)
        where = folder / "added_tokens.json"
        given = read_ids(where) if where.exists() else {}
        return _tokenizer(bpe(vocab, folder / "merges.txt"), vocab, given, path, where)
    path = folder / "tokenizer.json"
    data = read_json(path)
    vocab = vocab_of(data, path)
    added = {name: i for name, i in added_of(data, path).items() if name not in _BASE}
    return _tokenizer(plain_model(data, path), vocab, added, path, path)


def _tokenizer(
    model: tokenizers.Tokenizer, vocab: Mapping[str, int], own: Mapping[str, int], path: Path, where: Path
) -> ByteLevelBPE:
    """`path` is the file of the vocabulary, `where` that of GLM's own tokens; if that names none, they follow the
    vocabulary."""
    roberta = "<mask>" in vocab
    given = _ROBERTA_ADDED if roberta else _GPT2_ADDED
    added = own or {name: len(vocab) + n for n, name in enumerate(given)}
    base = _ROBERTA if roberta else {"pad": _EOS, "eos": _EOS}
    missing = [name for name in base.values() if name not in vocab]
    if missing:
        raise CheckpointError(f"{path}: lacks {', '.join(dict.fromkeys(missing))}")
    special = {role: vocab[name] for role, name in base.items()} | roles_of(added)
    check_roles(special, ("cls", "mask", "sop", "eop"), where)
    names = {vocab[name]: name for name in base.values()} | {i: name for name, i in added.items()}
    if roberta:
        names[special["mask"]] = "[MASK]"
        text = {piece: i for piece, i in vocab.items() if not _ROBERTA_UNUSED.fullmatch(piece)}
    else:
        text = {piece: i for piece, i in vocab.items() if piece != _EOS}
    text = {piece: i for piece, i in text.items() if i not in names}
    return ByteLevelBPE(model, piece_bytes(text, str(path)), special, names)


def bpe(vocab: Mapping[str, int], merges: Path) -> tokenizers.Tokenizer:
    """GPT-2's split of text and the merges of a `merges.txt`. Raises CheckpointError for damaged files."""
    lines = [line.split() for line in read_text(merges).split("\n") if line and not line.startswith("#version")]
    if any(len(line) != 2 for line in lines):
        raise CheckpointError(f"{merges}: a merge is two pieces")
    try:
        model = tokenizers.Tokenizer(models.BPE(dict(vocab), [(first, second) for first, second in lines]))
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{merges}: does not fit vocab.json ({error})") from None
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return model
