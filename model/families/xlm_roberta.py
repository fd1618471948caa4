"""XLM-R (arXiv 1911.02116): RoBERTa in 100 languages, over sentencepiece's unigrams."""

import torch

from model.families.roberta import ROBERTA_NAMING, config, read_roberta
from model.family import Family, Published
from model.layout import MaskedLayout
from model.tokenizers.metaspace import read_xlm_roberta

_WORDS = 250002

FAMILY = Family(
    name="xlm-roberta",
    recognises=lambda c: c.get("model_type") == "xlm-roberta",
    architecture=read_roberta,
    tokenizer=read_xlm_roberta,
    layout=MaskedLayout(),
    strategies=("parallel", "reencode"),
    namings=(ROBERTA_NAMING,),
    published=Published(dtype=torch.float32),
    presets={
        "xlm-roberta-base": config("xlm-roberta", 12, 768, 12, _WORDS) | {"architectures": ["XLMRobertaForMaskedLM"]},
        "xlm-roberta-large": config("xlm-roberta", 24, 1024, 16, _WORDS) | {"architectures": ["XLMRobertaForMaskedLM"]},
    },
)
