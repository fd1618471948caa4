#!/usr/bin/env bash
# transformers 5.24.0: a config with rope_scaling and rope_parameters loses the base of its angles; and a given dict is changed.
#
# A good guess: `rope_scaling` (the layout of transformers 4, which tools and forks still write into published folders) adds to
# `rope_parameters` (the layout of 5), or the two are refused together. Seen: where both are there, `rope_scaling` replaces all of
# `rope_parameters`, so that its `rope_theta` of 500 silently becomes the default of 10,000, and the model computes other angles.
# And the dict that a caller gives as `rope_parameters` is filled in place: the same dict used for
# a second config already says what the first one's class added.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 2> /dev/null
cd "$folder"
seen=$("$folder/venv/bin/python" -c '
import transformers
from transformers import GlmConfig

sizes = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
print(transformers.__version__)
both = GlmConfig(**sizes, rope_scaling={"rope_type": "linear", "factor": 4.0},
                 rope_parameters={"rope_type": "default", "rope_theta": 500.0})
print(both.rope_parameters["rope_type"], both.rope_parameters["rope_theta"])
alone = GlmConfig(**sizes, rope_parameters={"rope_type": "default", "rope_theta": 500.0})
print(alone.rope_parameters["rope_type"], alone.rope_parameters["rope_theta"])
given = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}
GlmConfig(**sizes, rope_parameters=given)
print(sorted(given))
' 2> /dev/null)
echo "$seen"
[ "$seen" = "5.24.0
linear 10000.0
default 500.0
['factor', 'partial_rotary_factor', 'rope_theta', 'rope_type']" ]
