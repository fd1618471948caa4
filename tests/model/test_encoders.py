"""Masked language models as transformers itself writes them: the same log-probabilities from the same random weights.

The goldens of test_references.py are of one form each; here are the other forms that their configurations can say, the
files of transformers' `save_pretrained`, several ranks, and what quantization makes of them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.attention import DenseAttention, visible
from model.checkpoint import Checkpoint, Description, load, matrices
from model.config import CheckpointError, Config
from model.families import family_of
from model.parallel import Ranks
from quant.registry import build
from tests.model.test_families import Vocabularies, vocabularies  # noqa: F401
from tests.model.test_references import TOLERANCE
from tests.ranks import on_ranks

SIZES = {"num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96}
ROBERTA = {**SIZES, "vocab_size": 288, "max_position_embeddings": 66, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
ESM = {**SIZES, "vocab_size": 33, "max_position_embeddings": 66, "pad_token_id": 1, "mask_token_id": 32}
MODERN = {
    **SIZES, "num_hidden_layers": 5, "vocab_size": 288, "max_position_embeddings": 64, "local_attention": 8,
    "pad_token_id": 259, "bos_token_id": 257, "eos_token_id": 258, "cls_token_id": 257, "sep_token_id": 258,
}  # fmt: skip
BIASES = {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True}


@dataclass(frozen=True, slots=True)
class Kind:
    """A class of transformers with its configuration, the tokenizer's files, and the id of the mask."""

    model: str
    fields: dict[str, Any]
    vocabulary: str
    mask: int


KINDS = {
    "roberta": Kind("RobertaForMaskedLM", ROBERTA, "roberta", 260),
    "roberta-pad": Kind("RobertaForMaskedLM", {**ROBERTA, "pad_token_id": 4, "type_vocab_size": 2}, "roberta", 260),
    "xlm-roberta": Kind("XLMRobertaForMaskedLM", ROBERTA, "xlm-roberta", 35),
    "camembert": Kind("CamembertForMaskedLM", ROBERTA, "camembert", 38),
    "distilbert": Kind(
        "DistilBertForMaskedLM",
        {"n_layers": 3, "dim": 64, "n_heads": 4, "hidden_dim": 96, "vocab_size": 32, "max_position_embeddings": 64},
        "distilbert",
        4,
    ),
    "distilbert-sinusoids": Kind(
        "DistilBertForMaskedLM",
        {
            "n_layers": 1, "dim": 64, "n_heads": 4, "hidden_dim": 96, "vocab_size": 32, "max_position_embeddings": 64,
            "sinusoidal_pos_embds": True,
        },
        "distilbert",
        4,
    ),
    "esm2": Kind(
        "EsmForMaskedLM", {**ESM, "position_embedding_type": "rotary", "token_dropout": True}, "esm2", 32
    ),
    "esm2-base": Kind(
        "EsmForMaskedLM", {**ESM, "position_embedding_type": "rotary", "rope_theta": 500.0}, "esm2", 32
    ),
    "esm1b": Kind("EsmForMaskedLM", {**ESM, "token_dropout": True, "emb_layer_norm_before": True}, "esm2", 32),
    "modernbert": Kind("ModernBertForMaskedLM", MODERN, "modernbert", 260),
    "modernbert-biases": Kind("ModernBertForMaskedLM", {**MODERN, **BIASES}, "modernbert", 260),
    "modernbert-layers": Kind(
        "ModernBertForMaskedLM",
        {
            **MODERN, "local_attention": 5, "global_rope_theta": 900.0, "local_rope_theta": 70.0,
            "layer_types": ["sliding_attention", "full_attention", "full_attention", *["sliding_attention"] * 2],
        },
        "modernbert",
        260,
    ),
}  # fmt: skip
FAMILIES = ("roberta", "xlm-roberta", "camembert", "distilbert", "esm2", "modernbert")


def reference(kind: Kind) -> Any:
    """The class with random weights, none of its biases zero and none of its norms plain."""
    model_class = getattr(transformers, kind.model)
    model = model_class(model_class.config_class(**kind.fields)).float().eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        norm = "norm" in name.lower() and name.endswith("weight")
        parameter.data = 0.1 * noise + 1 if norm else 0.15 * noise
    model.tie_weights()
    return model


def written(model: Any, kind: Kind, folder: Path, vocabularies: Vocabularies) -> Path:  # noqa: F811
    model.save_pretrained(folder)
    for file in vocabularies[kind.vocabulary].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def texts(kind: Kind) -> list[list[int]]:
    """Ids of some texts, with masks and without."""
    draw = torch.randint(5, kind.fields["vocab_size"], (60,), generator=torch.Generator().manual_seed(2))
    ids = [i for i in draw.tolist() if i != kind.mask][:50]
    return [ids, [5, kind.mask], ids[:9], [*ids[:20], kind.mask, *ids[20:30], kind.mask, kind.mask, *ids[30:]]]


@torch.inference_mode()
def theirs(model: Any, ids: list[int]) -> Tensor:
    """Log-probabilities [rows, vocab_size]."""
    given = torch.tensor([ids])
    logits = model(input_ids=given, attention_mask=torch.ones_like(given)).logits[0]
    return torch.log_softmax(logits.float(), dim=-1)


@torch.inference_mode()
def ours(checkpoint: Checkpoint, ids: list[int]) -> Tensor:
    """Log-probabilities [rows, vocab_size]; on other ranks than 0 their own part."""
    model, positions = checkpoint.model, torch.arange(len(ids))[None]
    attend = DenseAttention(visible(len(ids), torch.tensor([len(ids)])))
    hidden = model(torch.tensor([ids]), positions, torch.zeros_like(positions), attend)[0]
    return model.vocabulary.whole(model.vocabulary.log_softmax(model.logits(hidden)))


@pytest.mark.parametrize("name", KINDS)
def test_what_transformers_writes_gives_its_log_probabilities(
    name: str,
    tmp_path: Path,
    vocabularies: Vocabularies,  # noqa: F811
) -> None:
    kind = KINDS[name]
    model = reference(kind)
    loaded = load(written(model, kind, tmp_path, vocabularies))
    assert loaded.tokenizer.special["mask"] == kind.mask
    for ids in texts(kind):
        torch.testing.assert_close(ours(loaded, ids), theirs(model, ids), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", FAMILIES)
def test_two_ranks_give_its_log_probabilities(name: str, tmp_path: Path, vocabularies: Vocabularies) -> None:  # noqa: F811
    kind = KINDS[name]
    model = reference(kind)
    folder = written(model, kind, tmp_path, vocabularies)

    def work(ranks: Ranks) -> list[Tensor]:
        loaded = load(folder, ranks=ranks)
        return [ours(loaded, ids) for ids in texts(kind)]

    for ids, found in zip(texts(kind), on_ranks(2, work)[0], strict=True):
        torch.testing.assert_close(found, theirs(model, ids), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("quant", ["int8", "int4"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_quantized_model_gives_the_log_probabilities_of_its_dequantized_weights(
    name: str,
    quant: str,
    tmp_path: Path,
    vocabularies: Vocabularies,  # noqa: F811
) -> None:
    kind = KINDS[name]
    model = reference(kind)
    folder = written(model, kind, tmp_path / "floats", vocabularies)
    loaded, floats, scheme = load(folder, quant), load(folder), build(quant)
    naming = family_of(Config.read(folder)).namings[0]
    state = model.state_dict()
    for (path, module), (_, plain) in zip(matrices(loaded.model), matrices(floats.model), strict=True):
        if path == "word_embeddings":
            continue
        stored = scheme.quantize(plain.get_parameter("weight").detach())
        packed = scheme.pack(stored)
        assert all(torch.equal(tensor, packed[name]) for name, tensor in module.packed().items()), path
        published = naming.published(f"{path}.weight")
        for part, tensor in zip(published, scheme.dequantize(stored).float().chunk(len(published)), strict=True):
            state[part].copy_(tensor)
    written(model, kind, tmp_path / "dequantized", vocabularies)
    exact = load(tmp_path / "dequantized")
    for ids in texts(kind):
        wanted = theirs(model, ids)
        torch.testing.assert_close(ours(exact, ids), wanted, rtol=0, atol=TOLERANCE)
        # The kernels make int8 of the activations too.
        assert ((wanted.exp() * (wanted - ours(loaded, ids))).sum(-1)).max() < 0.05


@pytest.mark.parametrize(
    "name",
    [
        "RobertaForSequenceClassification", "RobertaModel", "XLMRobertaForTokenClassification",
        "CamembertForSequenceClassification", "DistilBertForSequenceClassification", "DistilBertForQuestionAnswering",
        "EsmForTokenClassification", "ModernBertForSequenceClassification", "ModernBertModel",
        "BertForSequenceClassification", "BertModel",
    ],
)  # fmt: skip
def test_a_classifier_is_called_one(name: str, tmp_path: Path, vocabularies: Vocabularies) -> None:  # noqa: F811
    model_class = getattr(transformers, name)
    config_class = model_class.config_class
    (family,) = {kind.vocabulary for kind in KINDS.values() if kind.model.startswith(name.partition("For")[0])} or {
        next((k for k in ("roberta", "modernbert") if name.lower().startswith(k)), "bert")
    }
    fields = next((kind.fields for kind in KINDS.values() if kind.vocabulary == family), {**SIZES, "vocab_size": 32})
    written(model_class(config_class(**fields)), Kind(name, fields, family, 0), tmp_path, vocabularies)
    what = "the head of a classifier" if "For" in name else "no head at all"
    with pytest.raises(CheckpointError, match=f"has {what}.*need a language model's"):
        load(tmp_path)


def test_the_mask_that_esm2_leaves_out_must_be_the_tokenizer_s(tmp_path: Path, vocabularies: Vocabularies) -> None:  # noqa: F811
    kind = KINDS["esm2"]
    other = Kind(kind.model, {**kind.fields, "mask_token_id": 30}, kind.vocabulary, 30)
    written(reference(other), other, tmp_path, vocabularies)
    with pytest.raises(CheckpointError, match="mask_token_id is 30, the tokenizer's mask 32"):
        Description.read(tmp_path)


def test_esm2_s_first_files_have_a_table_of_positions_without_a_use(
    tmp_path: Path,
    vocabularies: Vocabularies,  # noqa: F811
) -> None:
    kind = KINDS["esm2"]
    model = reference(kind)
    folder = written(model, kind, tmp_path, vocabularies)
    tensors = load_file(folder / "model.safetensors")
    tensors["esm.embeddings.position_embeddings.weight"] = torch.ones(66, 64)
    tensors["esm.encoder.layer.0.attention.self.rotary_embeddings.inv_freq"] = torch.ones(8)
    save_file(tensors, folder / "model.safetensors")
    ids = texts(kind)[0]
    torch.testing.assert_close(ours(load(folder), ids), theirs(model, ids), rtol=0, atol=TOLERANCE)
