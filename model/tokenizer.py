"""The choice of tokenizer: `Tokenizer` and the kinds of GLM v1 folders. Other families have one kind each.

Text is never read as a special token: `model.layout` inserts masks. Does not import torch.
"""

from pathlib import Path

from model.config import CheckpointError
from model.tokenizers.chinese import ChinesePieces
from model.tokenizers.decoder import Decoder
from model.tokenizers.files import read_json
from model.tokenizers.gpt2 import read_gpt2
from model.tokenizers.interface import Tokenizer
from model.tokenizers.sentence_pieces import SentencePieces
from model.tokenizers.word_pieces import WordPieces

__all__ = ["FILES", "Decoder", "Tokenizer", "read_tokenizer"]

# All files of the tokenizers of any kind, beside config.json.
FILES = (
    "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "added_tokens.json", "cog-pretrain.model",
    "ice_text.model", "sentencepiece.bpe.model", "vocab.json", "merges.txt", "vocab.txt",
)  # fmt: skip


def read_tokenizer(folder: Path) -> Tokenizer:
    """Reads the tokenizer of a GLM v1 folder: Chinese, GPT-2, RoBERTa, BERT, or the demo's own kind.

    The names of the files give the kind; a `tokenizer.json` alone names its kind. Raises CheckpointError, in one line,
    with file and reason.
    """
    if (folder / "cog-pretrain.model").exists():
        return ChinesePieces.read(folder)
    if (folder / "vocab.json").exists():
        return read_gpt2(folder)
    if (folder / "vocab.txt").exists():
        return WordPieces.read(folder, glm=True)
    if (folder / "tokenizer.json").exists() and not (folder / "tokenizer.model").exists():
        return _read_json(folder)
    return SentencePieces.read(folder)


def _read_json(folder: Path) -> Tokenizer:
    """Of the kind that a `tokenizer.json` names."""
    model = read_json(folder / "tokenizer.json").get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if kind == "BPE":
        return read_gpt2(folder)
    if kind == "WordPiece":
        return WordPieces.read(folder, glm=True)
    raise CheckpointError(
        f"{folder / 'tokenizer.json'}: the model's type is {kind!r}; GLM's are 'BPE' (GPT-2, RoBERTa) and 'WordPiece' "
        "(BERT), and the Chinese one has cog-pretrain.model"
    )
