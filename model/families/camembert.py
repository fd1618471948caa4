"""CamemBERT (arXiv 1911.03894): RoBERTa in French, over sentencepiece's unigrams."""

import torch

from model.families.roberta import ROBERTA_NAMING, config, read_roberta
from model.family import Family, Published
from model.layout import MaskedLayout
from model.tokenizers.metaspace import read_camembert

FAMILY = Family(
    name="camembert",
    recognises=lambda c: c.get("model_type") == "camembert",
    architecture=read_roberta,
    tokenizer=read_camembert,
    layout=MaskedLayout(),
    strategies=("parallel", "reencode"),
    namings=(ROBERTA_NAMING,),
    published=Published(dtype=torch.float32),
    presets={"camembert-base": config("camembert", 12, 768, 12, 32005) | {"architectures": ["CamembertForMaskedLM"]}},
)
