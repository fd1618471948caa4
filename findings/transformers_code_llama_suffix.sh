#!/usr/bin/env bash
# transformers 5.24.0: CodeLlamaTokenizer puts a space before the suffix of an infill.
#
# A good guess: tokenizer(prefix, suffix=suffix) makes the prompt of Code Llama's own code and of the method's docstring,
# " <PRE> {pre} <SUF>{suf} <MID>", in which nothing stands between <SUF> and the suffix (Meta encodes it behind a character
# that it takes away again, so that sentencepiece adds no space). Seen: for the suffix "return x" the ids behind <SUF> are those
# of " return x". And a call with a suffix changes the tokenizer: before it " a" is one piece, behind it two, as sentencepiece has
# them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    transformers==5.24.0 sentencepiece==0.2.2 protobuf==6.33.1 2> /dev/null
seen=$("$folder/venv/bin/python" - "$folder" 2> /dev/null <<'PYTHON'
import io, sys
from pathlib import Path
import sentencepiece, transformers
from transformers import CodeLlamaTokenizer

folder, out = Path(sys.argv[1]), io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["def f(x): return x", "return a", "a return x"] * 20), model_writer=out, model_type="bpe",
    vocab_size=300, hard_vocab_limit=False, byte_fallback=True, normalization_rule_name="identity",
    remove_extra_whitespaces=False, control_symbols=["▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"], minloglevel=2,
)
(folder / "tokenizer.model").write_bytes(out.getvalue())
(folder / "config.json").write_text('{"model_type": "llama"}')
pieces = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
tokenizer = CodeLlamaTokenizer.from_pretrained(folder)
before = tokenizer(" a", add_special_tokens=False)["input_ids"]
ids = tokenizer("a", suffix="return x")["input_ids"]
suffix = ids[ids.index(pieces.piece_to_id("▁<SUF>")) + 1 : -1]
print(transformers.__version__, repr(pieces.decode(pieces.encode("☺") + suffix)[1:]))
behind = tokenizer(" a", add_special_tokens=False)["input_ids"]
print(*("".join(map(pieces.id_to_piece, i)) for i in (before, behind, pieces.encode(" a"))))
PYTHON
)
printf '%s\n' "$seen"
[ "$seen" = "5.24.0 ' return x'
▁a ▁▁a ▁▁a" ]
