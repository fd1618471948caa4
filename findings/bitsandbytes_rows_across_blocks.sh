#!/usr/bin/env bash
# bitsandbytes 0.50.2: dequantize_4bit on a CPU gives wrong numbers for a matrix whose rows are no multiple of the block size.
#
# A good guess: dequantize_4bit undoes what quantize_4bit did, up to the error of NF4 (about 7 % of a normal distribution's
# spread), whatever the shape is. quantize_4bit takes the matrix as one long row, so that blocks of 64 run across the rows of a
# 64 × 96 matrix. Seen: the CPU's dequantize_4bit begins a new block in each row, so it takes other blocks' absmaxes from the
# second row on: the mean error is 0.18 instead of 0.07, without a warning. With the shape of one long row the same function
# gives the right numbers from the same bytes. A 4-bit file of such a matrix therefore means two things, by the device.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check bitsandbytes==0.50.2 torch==2.13.0 numpy==2.4.6 2> /dev/null
seen=$("$folder/venv/bin/python" - 2> /dev/null <<'PYTHON'
import bitsandbytes, torch
from bitsandbytes import functional

torch.manual_seed(0)
weight = torch.randn(64, 96)
for shape in (torch.Size([64, 96]), torch.Size([64 * 96])):
    codes, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    state.shape = shape
    error = (functional.dequantize_4bit(codes, state).view(64, 96) - weight).abs().mean()
    print(bitsandbytes.__version__, list(shape), f"mean error {error:.2f}")
PYTHON
)
printf '%s\n' "$seen"
[ "$seen" = "0.50.2 [64, 96] mean error 0.18
0.50.2 [6144] mean error 0.07" ]
