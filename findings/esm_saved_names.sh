#!/usr/bin/env bash
# transformers 5.24.0: an ESM model is saved under other names than it has, one of them with an asterisk in it.
#
# A good guess: save_pretrained writes the names of state_dict(), which are those of the published ESM-2 files. Seen: 5.24 saves
# LayerNorm.weight and LayerNorm.bias as LayerNorm.gamma and LayerNorm.beta, names of TensorFlow's first BERT that no ESM file ever
# had, and the one buffer of rotary frequencies as `esm.encoder.layer.*.attention.self.rotary_embeddings.inv_freq`, with the
# asterisk of its own renaming pattern. A reader of the published names finds no norm.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 torch==2.13.0 numpy 2> /dev/null
cd "$folder"
seen=$("$folder/venv/bin/python" -c '
import transformers
from safetensors import safe_open
from transformers import EsmConfig, EsmForMaskedLM

model = EsmForMaskedLM(EsmConfig(
    vocab_size=33, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, pad_token_id=1,
    mask_token_id=32, position_embedding_type="rotary"))
model.save_pretrained("saved")
print(transformers.__version__)
with safe_open("saved/model.safetensors", "pt") as file:
    saved = set(file.keys())
own = set(model.state_dict())
print(*sorted(name for name in own if name.endswith("attention.LayerNorm.weight")))
print(*sorted(name for name in saved if "attention.LayerNorm" in name))
print(*sorted(name for name in saved if "inv_freq" in name))
' 2> /dev/null)
echo "$seen"
[ "$seen" = "5.24.0
esm.encoder.layer.0.attention.LayerNorm.weight
esm.encoder.layer.0.attention.LayerNorm.beta esm.encoder.layer.0.attention.LayerNorm.gamma
esm.encoder.layer.*.attention.self.rotary_embeddings.inv_freq" ]
