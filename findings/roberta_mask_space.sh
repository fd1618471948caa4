#!/usr/bin/env bash
# transformers 5.24.0: RoBERTa read from vocab.json and merges.txt has a space token before <mask>, which it never saw in training.
#
# A good guess: a RoBERTa folder with vocab.json and merges.txt (what every tool before tokenizer.json wrote) gives the ids that it
# gave in transformers 4, where RobertaTokenizer's <mask> swallowed the space before it (lstrip), as in fairseq's training. Seen:
# 5.24 makes the same class without that; "is <mask>" gets a token Ġ before the mask, so that another thing is predicted (a word
# without its space), and fills of the two versions differ. Only folders with a tokenizer.json, which says lstrip, are as before.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python3 -m venv "$folder/older"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 2> /dev/null
"$folder/older/bin/pip" install --quiet --disable-pip-version-check transformers==4.57.1 2> /dev/null
cd "$folder"
cat > seen.py <<'PYTHON'
import json
import transformers
from pathlib import Path

pieces = ["<s>", "<pad>", "</s>", "<unk>", "i", "s", "Ġ", ".", "is", "<mask>"]
Path("vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
Path("merges.txt").write_text("#version: 0.2\ni s\n")
Path("config.json").write_text(json.dumps({"model_type": "roberta"}))
tokenizer = transformers.AutoTokenizer.from_pretrained(".")
print(transformers.__version__, *tokenizer.convert_ids_to_tokens(tokenizer("is <mask>.")["input_ids"]))
PYTHON
seen=$(for venv in older venv; do PYTHONIOENCODING=utf-8 "$folder/$venv/bin/python" seen.py 2> /dev/null; done)
echo "$seen"
[ "$seen" = "4.57.1 <s> is <mask> . </s>
5.24.0 <s> is Ġ <mask> . </s>" ]
