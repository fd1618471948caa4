"""Makes `vocab/chatglm2.model.gz` and `tokenizer_chatglm2.json.gz`: what ChatGLM2's and ChatGLM3's tokenizers make of
the lines of `tokenizers.json.gz`.

The published tokenizer.model comes with the checkpoints only. A small sentencepiece model is trained with its scheme:
BPE with byte fallback, a space before each text, white space kept, the ids of <unk>, <s>, </s> and the bytes first. The
SPTokenizer of the published tokenization_chatglm.py (of ChatGLM2-6B and of ChatGLM3-6B; Apache-2.0, THUDM) reads it:

- `hashes` of the ids of each line, `hard`: the ids of each hard line, `decoded`: their text;
- `onward`: of each hard line the ids behind a newline, as they are in the middle of a text;
- `special`: {"chatglm2": {name: id}, "chatglm3": {name: id}}, and `eos`.

Knows nothing of this repository's code, and the published files are no part of it. To rerun, in the repository root,
with the folders of both files (the venv: see make_tokenizers.py, with transformers 5.24.0 and torch):

    /tmp/sat/bin/python tests/golden/make_tokenizer_chatglm2.py CHATGLM2 CHATGLM3
"""

import gzip
import hashlib
import importlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import sentencepiece

HERE = Path(__file__).parent
GOLDEN, VOCAB = HERE / "tokenizer_chatglm2.json.gz", HERE / "vocab" / "chatglm2.model.gz"


def trained(lines: list[str]) -> bytes:
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(part for line in lines for part in line.split("\n")),
        model_writer=out,
        vocab_size=2400,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        num_threads=1,
        minloglevel=2,
    )
    return out.getvalue()


def published(folder: str, model: Path) -> Any:
    path = Path(folder).resolve()
    sys.path.insert(0, str(path.parent))
    return importlib.import_module(f"{path.name}.tokenization_chatglm").SPTokenizer(str(model))


def hashed(ids: list[int]) -> str:
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()[:8]


def main() -> None:
    texts = json.loads(gzip.decompress((HERE / "tokenizers.json.gz").read_bytes()))
    proto = trained(texts["lines"])
    VOCAB.write_bytes(gzip.compress(proto, 9, mtime=0))
    model = Path(tempfile.mkdtemp()) / "tokenizer.model"
    model.write_bytes(proto)
    second, third = (published(folder, model) for folder in sys.argv[1:])
    hard = [second.encode(text) for text in texts["hard"]]
    assert hard == [third.encode(text) for text in texts["hard"]]
    behind = len(second.encode("\n"))
    onward = [second.encode("\n" + text)[behind:] for text in texts["hard"]]
    golden = {
        "hashes": " ".join(hashed(second.encode(line)) for line in texts["lines"]),
        "hard": hard,
        "decoded": [third.decode(ids) for ids in hard],
        "onward": onward,
        "special": {"chatglm2": second.special_tokens, "chatglm3": third.special_tokens},
        "eos": second.eos_id,
    }
    GOLDEN.write_bytes(gzip.compress(json.dumps(golden, ensure_ascii=False).encode(), 9, mtime=0))
    for path in (VOCAB, GOLDEN):
        print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
