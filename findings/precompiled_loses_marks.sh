#!/usr/bin/env bash
# tokenizers 0.23.3: the normalizer of XLM-R's and CamemBERT's tokenizer.json drops accents that sentencepiece keeps.
#
# A good guess: `Precompiled`, which holds the very table of a sentencepiece model, normalizes as sentencepiece does; XLM-R's, T5's
# and CamemBERT's tokenizer.json were made from such models. Seen: where a character that the table folds is followed by a mark
# of the same visible character, the mark is gone: full-width a with an acute accent gives "a", not "á"; an Arabic ligature loses
# its vowel, 1/2 its accent; half-width ﾊﾟ becomes ハ and a separate mark, not パ. The ids differ from those of training.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3 sentencepiece==0.2.1 protobuf 2> /dev/null
cd "$folder"
seen=$("$folder/venv/bin/python" -c '
import io
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

out = io.BytesIO()
lines = ["the quick brown fox jumps over the lazy dog"] * 9
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines), model_writer=out, vocab_size=40, normalization_rule_name="nmt_nfkc",
    add_dummy_prefix=False, hard_vocab_limit=False, minloglevel=2)
proto = sentencepiece_model_pb2.ModelProto.FromString(out.getvalue())
table = tokenizers.normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)
original = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
print(tokenizers.__version__, sentencepiece.__version__)
for text in ("e\u0301", "\uff41\u0301", "\ufefb\u064e", "\u00bd\u0301", "\uff8a\uff9f"):
    print(ascii(text), ascii(original.normalize(text)), ascii(table.normalize_str(text)))
' 2> /dev/null)
echo "$seen"
[ "$seen" = "0.23.3 0.2.1
'e\u0301' '\xe9' '\xe9'
'\uff41\u0301' '\xe1' 'a'
'\ufefb\u064e' '\u0644\u0627\u064e' '\u0644\u0627'
'\xbd\u0301' '1\u20442\u0301' '1\u20442'
'\uff8a\uff9f' '\u30d1' '\u30cf\u309a'" ]
