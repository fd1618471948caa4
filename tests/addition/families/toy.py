"""A toy family: GLM's blocks and layout, with another config.json and other names of tensors, in a file of its own."""

from model.architecture import Architecture
from model.config import Config
from model.families import glm
from model.family import Family
from model.layout import BlankLayout
from model.naming import Naming
from model.tokenizer import read_tokenizer


def _read(c: Config) -> Architecture:
    return glm.architecture(c.whole("depth"), c.whole("width"), c.whole("heads"), c.whole("tokens"), c.whole("length"))


FAMILY = Family(
    name="toy",
    recognises=lambda c: c.get("model_type") == "toy",
    architecture=_read,
    tokenizer=read_tokenizer,
    layout=BlankLayout(),
    strategies=("append", "reencode", "parallel"),
    namings=(Naming({"word_embeddings": "toy_words"}),),
    presets={"toy-1": {"model_type": "toy", "depth": 2, "width": 64, "heads": 2, "tokens": 384, "length": 128}},
)
