"""ProteinGLM of proteins from left to right (`-clm`): it continues the residues before a [gMASK] at the text's end."""

import torch

from model.families.proteinglm import MODEL_TYPES, PROTEINGLM_NAMING, architecture, config
from model.family import Family, Published
from model.layout import InfillLayout
from model.tokenizers.residues import Residues

FAMILY = Family(
    name="proteinglm-clm",
    recognises=lambda c: c.get("model_type") in MODEL_TYPES and bool(c.get("is_causal", False)),
    architecture=architecture,
    tokenizer=Residues.read_causal,
    layout=InfillLayout(first=("gmask", "sop", "eos")),
    strategies=("reencode", "parallel"),
    namings=(PROTEINGLM_NAMING,),
    published=Published(dtype=torch.float32),
    presets={
        "proteinglm-1b-clm": config(24, 2048, 32, 5461, causal=True),
        "proteinglm-3b-clm": config(36, 2560, 40, 6832, causal=True),
        "proteinglm-7b-clm": config(36, 4096, 32, 10922, causal=True),
    },
)
