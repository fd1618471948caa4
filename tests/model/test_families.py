"""Every family in every layout of files and every storage, and the traps of GLM's history."""

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tokenizers import models, pre_tokenizers
from torch import Tensor

from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import ResultDone
from engine.requests import Fill, Mask, Sampling, Score, Segments
from model.calibration import windows
from model.checkpoint import Checkpoint, Description, load, matrices
from model.config import CheckpointError, Config
from model.convert import Conversion, Recipe
from model.families import FAMILIES, PRESETS, family_of, glm, glm130b
from model.family import Family, Format
from model.layout import Layout, Segment, parse
from model.naming import Naming, arranged
from model.network import Network
from model.sharding import cuts
from model.storage import Storage
from model.synth import Synthetic, layers_field, of_preset, write_synthetic
from model.tokenizer import Tokenizer
from model.tokenizers.byte_level import byte_alphabet
from model.tokenizers.word_pieces import WordPieces
from quant.packing import unpack_nibbles
from quant.registry import build
from quant.usage import UsageError
from tests.answers import wire
from tests.conftest import WORDS
from tests.model.test_references import TOLERANCE, Case, case_of, config_of, golden, whole
from tests.model.tokenizers import fim_files
from tests.model.tokenizers.conftest import RESIDUES

ESM_TOKENS = [*["<cls>", "<pad>", "<eos>", "<unk>"], *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]
BERT_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
CONFIGS: dict[str, dict[str, Any]] = {
    "glm": {
        "model_type": "glm", "num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 448,
        "max_sequence_length": 64,
    },
    "glm-130b": {
        "model_type": "glm-130b", "num_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
        "inner_hidden_size": 96, "vocab_size": 20480, "max_sequence_length": 64,
    },
    "chatglm": {
        "model_type": "chatglm", "num_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
        "inner_hidden_size": 96, "vocab_size": 768, "max_sequence_length": 64,
    },
    "chatglm2": {
        "model_type": "chatglm", "num_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
        "multi_query_group_num": 2, "kv_channels": 16, "ffn_hidden_size": 96, "padded_vocab_size": 480,
        "seq_length": 64, "add_qkv_bias": True, "multi_query_attention": True, "eos_token_id": 2,
    },
    "glm-4": {
        "model_type": "chatglm", "num_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
        "multi_query_group_num": 2, "kv_channels": 16, "ffn_hidden_size": 96, "padded_vocab_size": 288,
        "seq_length": 64, "add_qkv_bias": True, "multi_query_attention": True,
    },
    "glm-4-hf": {
        "model_type": "glm", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96, "vocab_size": 288,
        "max_position_embeddings": 64, "attention_bias": True,
    },
    "glm-4-0414": {
        "model_type": "glm4", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96, "vocab_size": 288,
        "max_position_embeddings": 64, "attention_bias": False,
    },
    "proteinglm": {
        "model_type": "ProteinGLM", "num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "kv_channels": 16,
        "ffn_hidden_size": 96, "padded_vocab_size": 64, "seq_length": 64, "is_causal": False,
    },
    "proteinglm-clm": {
        "model_type": "ProteinGLM", "num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "kv_channels": 16,
        "ffn_hidden_size": 96, "padded_vocab_size": 64, "seq_length": 64, "is_causal": True,
    },
    "bert": {
        "model_type": "bert", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
        "intermediate_size": 128, "vocab_size": 32, "max_position_embeddings": 64,
    },
    "llama": {
        "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 288, "max_position_embeddings": 64,
    },
    "qwen2": {
        "model_type": "qwen2", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 288, "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    },
    "starcoder2": {
        "model_type": "starcoder2", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 288, "max_position_embeddings": 64,
        "sliding_window": 48,
    },
    "iglm": {
        "model_type": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 4, "n_positions": 64, "vocab_size": 33,
    },
    "roberta": {
        "model_type": "roberta", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
        "intermediate_size": 128, "vocab_size": 288, "max_position_embeddings": 66, "type_vocab_size": 1,
    },
    "xlm-roberta": {
        "model_type": "xlm-roberta", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
        "intermediate_size": 128, "vocab_size": 64, "max_position_embeddings": 66, "type_vocab_size": 1,
    },
    "camembert": {
        "model_type": "camembert", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
        "intermediate_size": 128, "vocab_size": 72, "max_position_embeddings": 66, "type_vocab_size": 1,
    },
    "distilbert": {
        "model_type": "distilbert", "n_layers": 2, "dim": 64, "n_heads": 4, "hidden_dim": 128, "vocab_size": 32,
        "max_position_embeddings": 64,
    },
    "esm2": {
        "model_type": "esm", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
        "intermediate_size": 128, "vocab_size": 33, "max_position_embeddings": 64, "pad_token_id": 1,
        "position_embedding_type": "rotary", "mask_token_id": 32, "token_dropout": True,
    },
    "modernbert": {
        "model_type": "modernbert", "num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4,
        "intermediate_size": 128, "vocab_size": 288, "max_position_embeddings": 64, "local_attention": 8,
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Files:
    """A layout of files: names, format, ranks."""

    naming: Naming
    format: Format
    ranks: int = 1


def layouts_of(name: str) -> dict[str, Files]:
    """The layouts of files that a tiny config's family was published in: all its names, and its ranks."""
    family = family_of(Config(CONFIGS[name]))
    layouts = {f"safetensors-{n}": Files(naming, "hf") for n, naming in enumerate(family.namings)}
    layouts["bin"] = Files(family.namings[0], "bin")
    if family.published.rank_naming is not None:
        layouts |= {f"sat-mp{n}": Files(family.published.rank_naming, "sat", n) for n in (1, 2, 4)}
    return layouts


FORMATS = {name: layouts_of(name) for name in CONFIGS}
FORMATS["glm"]["original-mp2"] = Files(glm.GLM_NAMING, "sat", 2)
EVERY = [(name, layout) for name, layouts in FORMATS.items() for layout in layouts]
QUANTS = ("none", "int8", "int4")
Vocabularies = dict[str, Path]
Canonical = Callable[[str], Path]
Answer = Callable[[str, str], Tensor]


def synthetic(name: str, naming: Naming) -> Synthetic:
    """The network of a tiny config, in files so small that there are several."""
    config = Config(CONFIGS[name])
    a = family_of(config).architecture(config)
    with torch.device("meta"):
        shapes = {n: tuple(p.shape) for n, p in Network(a).named_parameters()}
    own = cuts(a.qkv_sections, 1 + a.gated)
    return Synthetic(shapes, naming, own, CONFIGS[name], seed=5, shard_bytes=100_000)


def logprobs(checkpoint: Checkpoint) -> Tensor:
    """Of a made-up sequence, part B from the seventh token on."""
    a = checkpoint.model.architecture
    token_ids = torch.randint(a.vocab_size, (14,), generator=torch.Generator().manual_seed(1))
    blocks = torch.tensor([0] * 6 + [min(n, a.block_rows - 1 if a.block_rows else 9) for n in range(1, 9)])
    return whole(checkpoint.model, Case(token_ids, torch.arange(14), blocks, 6, torch.empty(0)))


def segments(text: str) -> Segments:
    return tuple(part if isinstance(part, str) else Mask(part[0]) for part in parse(text) if part != "")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small only wait for a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def vocabularies(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Vocabularies:
    """A folder of each family's kind of tokenizer, with few pieces."""
    ice = tmp_path_factory.mktemp("ice")
    with (ice / "ice_text.model").open("wb") as out:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(WORDS * 3),
            model_writer=out,
            vocab_size=60,
            hard_vocab_limit=False,
            user_defined_symbols=["<n>"],
            num_threads=1,
            minloglevel=2,
        )
    offset = tmp_path_factory.mktemp("chatglm")
    (offset / "ice_text.model").write_bytes((ice / "ice_text.model").read_bytes())
    (offset / "tokenizer_config.json").write_text(json.dumps({"num_image_tokens": 0}))
    ranks = tmp_path_factory.mktemp("ranks")
    lines = (base64.b64encode(bytes([byte])) + f" {byte}".encode() for byte in range(256))
    (ranks / "tokenizer.model").write_bytes(b"\n".join(lines))
    fim: dict[str, Path] = {}
    for name, write in (
        ("llama", fim_files.deepseek),
        ("qwen2", fim_files.qwen2),
        ("starcoder2", fim_files.starcoder2),
    ):
        fim[name] = tmp_path_factory.mktemp(name)
        (fim[name] / "tokenizer.json").write_text(write(list(byte_alphabet()), []), encoding="utf-8")
    antibodies = tmp_path_factory.mktemp("antibodies")
    (antibodies / "vocab.txt").write_text("\n".join(fim_files.IGLM))
    fallback = tmp_path_factory.mktemp("fallback")
    with (fallback / "tokenizer.model").open("wb") as out:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(WORDS * 3),
            model_writer=out,
            vocab_size=340,
            hard_vocab_limit=False,
            byte_fallback=True,
            num_threads=1,
            minloglevel=2,
        )
    residues = tmp_path_factory.mktemp("residues")
    (residues / "tokenizer.model").write_bytes(RESIDUES)
    words = tmp_path_factory.mktemp("words")
    (words / "vocab.txt").write_text("\n".join(BERT_WORDS))
    roberta = tmp_path_factory.mktemp("roberta")
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *byte_alphabet(), "<mask>"]
    (roberta / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (roberta / "merges.txt").write_text("#version: 0.2\n")
    unigrams = tmp_path_factory.mktemp("unigrams")
    (unigrams / "sentencepiece.bpe.model").write_bytes((ice / "ice_text.model").read_bytes())
    amino_acids = tmp_path_factory.mktemp("amino_acids")
    (amino_acids / "vocab.txt").write_text("\n".join(ESM_TOKENS))
    modern = tmp_path_factory.mktemp("modern")
    made = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(byte_alphabet())}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", "[PAD]", tokenizers.AddedToken("[MASK]", lstrip=True)])
    made.save(str(modern / "tokenizer.json"))
    return {
        "glm": tokenizer_folder, "glm-130b": ice, "chatglm": offset, "chatglm2": fallback, "glm-4": ranks,
        "glm-4-hf": ranks, "glm-4-0414": ranks, "bert": words, "proteinglm": residues, "proteinglm-clm": residues,
        "iglm": antibodies, **fim,
        "roberta": roberta, "xlm-roberta": unigrams, "camembert": unigrams, "distilbert": words, "esm2": amino_acids,
        "modernbert": modern,
    }  # fmt: skip


@pytest.fixture(scope="session")
def canonical(tmp_path_factory: pytest.TempPathFactory) -> Canonical:
    """`canonical("glm")`: a folder of the network's own names, in one safetensors file."""
    folders: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name) / "canonical"
            write_synthetic(folders[name], replace(synthetic(name, Naming({})), shard_bytes=10**9))
            (folders[name] / "model.safetensors.index.json").unlink()
            next(folders[name].glob("*.safetensors")).rename(folders[name] / "model.safetensors")
        return folders[name]

    return make


@pytest.fixture(scope="session")
def expected(canonical: Canonical, vocabularies: Vocabularies) -> Answer:
    """`expected("glm", "int8")`: log-probabilities of the canonical folder, float or quantized while it is read."""
    known: dict[tuple[str, str], Tensor] = {}

    def answer(name: str, quant: str) -> Tensor:
        if (name, quant) not in known:
            loaded = load(canonical(name), quant, tokenizer=vocabularies[name])
            known[name, quant] = logprobs(loaded)
        return known[name, quant]

    return answer


@pytest.fixture(scope="module", params=EVERY, ids="-".join)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A family and a folder of it as published."""
    name, layout = request.param
    folder, form = tmp_path_factory.mktemp(name) / "published", FORMATS[name][layout]
    write_synthetic(folder, synthetic(name, form.naming), form.format, form.ranks)
    return name, folder


@pytest.mark.parametrize("quant", QUANTS)
def test_every_published_layout_is_the_same_network(
    published: tuple[str, Path], quant: str, vocabularies: Vocabularies, expected: Answer
) -> None:
    name, folder = published
    loaded = load(folder, quant, tokenizer=vocabularies[name])
    assert loaded.quant == quant
    assert torch.equal(logprobs(loaded), expected(name, quant))


@pytest.mark.parametrize("quant", QUANTS[1:])
def test_every_published_layout_is_quantized_to_the_same_folder(
    published: tuple[str, Path], quant: str, vocabularies: Vocabularies, expected: Answer, tmp_path: Path
) -> None:
    name, folder = published
    recipe = Recipe(Storage.asked(quant, None, None), shard_bytes=200_000, tokenizer=vocabularies[name])
    Conversion(folder, tmp_path / "quantized", recipe).run()
    loaded = load(tmp_path / "quantized")
    assert loaded.quant == quant
    assert torch.equal(logprobs(loaded), expected(name, quant))


@pytest.mark.parametrize("name", CONFIGS)
def test_quantization_changes_little(expected: Answer, name: str) -> None:
    """That the matrix above compares more than equal nonsense."""
    floats = expected(name, "none")
    assert floats.isfinite().all()
    for quant, most in (("int8", 1e-3), ("int4", 5e-2)):
        divergence = (floats.exp() * (floats - expected(name, quant))).sum(-1)
        assert 0 < divergence.abs().max() < most


@pytest.mark.parametrize("quant", QUANTS[1:])
@pytest.mark.parametrize(
    ("name", "scales"), [("chatglm", torch.float16), ("chatglm2", torch.float16), ("chatglm2", torch.bfloat16)]
)
def test_chatglm_s_own_quantized_files_are_loaded_as_stored(
    canonical: Canonical, vocabularies: Vocabularies, tmp_path: Path, quant: str, name: str, scales: torch.dtype
) -> None:
    """One scale a row in the dtype of the weights, and `quantization_bit` for a description."""
    recipe = Recipe(Storage(quant, group_size=0), tokenizer=vocabularies[name])
    Conversion(canonical(name), tmp_path / "quantized", recipe).run()
    converted = load(tmp_path / "quantized")
    (shard,) = (tmp_path / "quantized").glob("*.safetensors")
    (naming,) = family_of(Config(CONFIGS[name])).namings
    tensors = {naming.published(name)[0]: tensor for name, tensor in load_file(shard).items()}
    halved = {name: tensor.to(scales) if name.endswith("scale") else tensor for name, tensor in tensors.items()}
    own = tmp_path / "own"
    own.mkdir()
    torch.save(halved, own / "pytorch_model.bin")
    (own / "config.json").write_text(json.dumps(CONFIGS[name] | {"quantization_bit": int(quant[3:])}))
    loaded = load(own, tokenizer=vocabularies[name])
    assert loaded.quant == quant
    if quant == "int4" and scales == torch.float16:
        assert torch.equal(logprobs(loaded), logprobs(converted))
    else:  # our own scales are float32
        torch.testing.assert_close(logprobs(loaded), logprobs(converted), rtol=0, atol=1e-2)


class TestPreset:
    """Folders without config.json."""

    @pytest.fixture
    def folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        monkeypatch.setitem(PRESETS, "tiny", (glm130b.FAMILY, Config(CONFIGS["glm-130b"])))
        write_synthetic(tmp_path / "tiny", replace(of_preset("tiny", format="sat"), seed=5), "sat", 2)
        assert not (tmp_path / "tiny" / "config.json").exists()
        return tmp_path / "tiny"

    @pytest.mark.parametrize("quant", QUANTS)
    def test_says_the_sizes(self, folder: Path, vocabularies: Vocabularies, expected: Answer, quant: str) -> None:
        loaded = load(folder, quant, preset="tiny", tokenizer=vocabularies["glm-130b"])
        assert torch.equal(logprobs(loaded), expected("glm-130b", quant))

    def test_goes_into_what_it_is_quantized_to(
        self, folder: Path, vocabularies: Vocabularies, expected: Answer, tmp_path: Path
    ) -> None:
        recipe = Recipe(Storage.asked("int4", None, None), preset="tiny", tokenizer=vocabularies["glm-130b"])
        Conversion(folder, tmp_path / "quantized", recipe).run()
        assert torch.equal(logprobs(load(tmp_path / "quantized")), expected("glm-130b", "int4"))

    @pytest.mark.parametrize(
        ("preset", "format", "layers"),
        [("glm-130b", "sat", None), ("glm-10b", "sat", None), ("glm-10b", "hf", 2), ("bert-base", "hf", 1)],
    )
    def test_of_a_published_model(self, preset: str, format: Format, layers: int | None) -> None:
        made = of_preset(preset, layers, format)
        family, config = PRESETS[preset]
        assert (made.config is None) == (format == "sat")
        a = family.architecture(config)
        found = sum(name.endswith("attention.dense.bias") for name in made.shapes)
        assert found == (layers or a.num_layers)
        assert made.shapes["word_embeddings.weight"] == (a.vocab_size, a.hidden_size)

    def test_what_there_is_not(self) -> None:
        with pytest.raises(UsageError, match="chatglm-6b is not published in the format sat"):
            of_preset("chatglm-6b", format="sat")
        with pytest.raises(UsageError, match="no preset 'glm-7b'; there are bert-base, "):
            of_preset("glm-7b")


class TestGLM130BsOwnFiles:
    """Tensors by GLM-130B's own tools: golden/make_glm130b_sat.py."""

    @pytest.fixture(autouse=True)
    def small_vocabulary(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # The goldens have 120 tokens; every tokenizer of icetk's has thousands.
        family = replace(glm130b.FAMILY, tokenizer=WordPieces.read)
        monkeypatch.setattr("model.checkpoint.family_of", lambda config: family)
        monkeypatch.setitem(PRESETS, "tiny", (family, Config(config_of("glm130b_sat"))))

    def folder(self, path: Path, vocabularies: Vocabularies, ranks: list[dict[str, Tensor]], **config: Any) -> Path:
        (path / "49300").mkdir(parents=True)
        (path / "latest").write_text("49300")
        for rank, tensors in enumerate(ranks):
            torch.save({"module": tensors}, path / "49300" / f"mp_rank_{rank:02}_model_states.pt")
        (path / "vocab.txt").write_bytes((vocabularies["bert"] / "vocab.txt").read_bytes())
        if config:
            (path / "config.json").write_text(json.dumps(config))
        return path

    @pytest.mark.parametrize("ranks", [2, 4])
    def test_ranks_are_the_weights_they_were_cut_from(
        self, tmp_path: Path, vocabularies: Vocabularies, ranks: int
    ) -> None:
        shards = [golden("glm130b_sat_shards", f"mp{ranks}.{rank}") for rank in range(ranks)]
        merged = load(self.folder(tmp_path, vocabularies, shards, **config_of("glm130b_sat"))).model
        uncut = {k.replace("transformer.word", "word"): t for k, t in golden("glm130b_sat", "weights").items()}
        for name, parameter in merged.named_parameters():
            assert torch.equal(parameter, uncut[name]), name
        case = case_of("glm130b_sat", "two_spans")
        torch.testing.assert_close(whole(merged, case), case.logprobs, rtol=0, atol=TOLERANCE)

    @pytest.mark.parametrize("described", [True, False], ids=["quantization_bit", "preset"])
    @pytest.mark.parametrize("quant", ["int8", "int4"])
    def test_quantized_files_are_loaded_as_stored(
        self, tmp_path: Path, vocabularies: Vocabularies, quant: str, described: bool
    ) -> None:
        own, floats = golden("glm130b_sat_quantized", quant), golden("glm130b_sat", "weights")
        tensors = {name: t.half() for name, t in floats.items()} | own
        config = config_of("glm130b_sat") | {"quantization_bit": int(quant[3:])} if described else {}
        folder = self.folder(tmp_path / "quantized", vocabularies, [tensors], **config)
        loaded = load(folder, preset=None if described else "tiny")
        assert loaded.quant == quant
        scheme = build(quant, group_size=0)
        for path, module in matrices(loaded.model):
            if path == "word_embeddings":
                continue
            scale = own[f"{path}.weight_scale"]
            stored = {"weight": own[f"{path}.weight"], "weight_scale": scale.float() if quant == "int8" else scale}
            packed = scheme.pack(stored)
            assert {name: t.shape for name, t in packed.items()} == {n: t.shape for n, t in module.packed().items()}
            assert all(torch.equal(tensor, packed[name]) for name, tensor in module.packed().items()), path
            floats[f"{path}.weight"] = scheme.dequantize(stored)
        # The kernels make int8 of the activations too; of the weights alone the answer is that of GLM-130B's code.
        save_file(floats, self.float_folder(tmp_path / "float", vocabularies) / "model.safetensors")
        for name in ("one_span", "two_spans", "gmask", "part_a"):
            case = replace(
                case_of("glm130b_sat", name), logprobs=golden("glm130b_sat_quantized", name)[f"logprobs_{quant}"]
            )
            exact = whole(load(tmp_path / "float").model, case)
            torch.testing.assert_close(exact, case.logprobs, rtol=0, atol=TOLERANCE)
            divergence = (case.logprobs.exp() * (case.logprobs - whole(loaded.model, case))).sum(-1)
            assert divergence.max() < 0.05

    def float_folder(self, path: Path, vocabularies: Vocabularies) -> Path:
        path.mkdir()
        (path / "vocab.txt").write_bytes((vocabularies["bert"] / "vocab.txt").read_bytes())
        (path / "config.json").write_text(json.dumps(config_of("glm130b_sat")))
        return path


class TestTraps:
    """Traps of GLM's history that show in layouts, jobs and storage. Those of the network are in test_references.py,
    those of vocabularies (8: one row for [gMASK] and the end; 10: ids 20,000 lower) in tests/model/tokenizers. The
    others (3: caches of hidden states, 13: nested sampling, 15: running without a GPU) are the references' own."""

    @pytest.fixture
    def tokenizers(self, vocabularies: Vocabularies) -> dict[str, Tokenizer]:
        return {name: family_of(Config(CONFIGS[name])).tokenizer(vocabularies[name]) for name in CONFIGS}

    @pytest.fixture
    def lay_out(self, tokenizers: dict[str, Tokenizer]) -> Callable[..., Layout]:
        def laid(name: str, text: str, scored: bool = False) -> Layout:
            parts: list[Segment] = [p if isinstance(p, str) else (p[0],) for p in parse(text) if p != ""]
            return family_of(Config(CONFIGS[name])).layout.lay_out(parts, tokenizers[name], scored)

        return laid

    @pytest.fixture
    def engine(self, canonical: Canonical, vocabularies: Vocabularies) -> Callable[[str], Engine]:
        return lambda name: Engine(
            EngineConfig(str(canonical(name)), kv_cache_gb=0.01, tokenizer=str(vocabularies[name]))
        )

    @pytest.mark.parametrize(
        ("name", "mask", "counts", "blocks"),
        [
            ("glm", "[MASK]", False, True), ("glm", "[gMASK]", False, True),
            ("glm-130b", "[MASK]", False, False), ("glm-130b", "[gMASK]", True, False),
            ("chatglm", "[MASK]", False, True), ("chatglm", "[gMASK]", False, True),
        ],
    )  # fmt: skip
    def test_4_positions_stay_at_the_mask_or_count_on(
        self, lay_out: Callable[..., Layout], tokenizers: dict[str, Tokenizer],
        name: str, mask: str, counts: bool, blocks: bool,
    ) -> None:  # fmt: skip
        part = lay_out(name, f"the {mask} sang")
        (blank,) = part.blanks
        at = part.token_ids.index(tokenizers[name].masks[mask])
        positions = [len(part) + n if counts else at for n in range(4)]
        assert [blank.place(n) for n in range(4)] == [(p, (n + 1) * blocks) for n, p in enumerate(positions)]

    def test_4_positions_of_a_causal_model_count_on(self, lay_out: Callable[..., Layout]) -> None:
        part = lay_out("glm-4", "the [gMASK]")
        (blank,) = part.blanks
        assert [blank.place(n) for n in range(3)] == [(len(part) + n, 0) for n in range(3)]

    @pytest.mark.parametrize("scored", [False, True])
    @pytest.mark.parametrize(
        ("name", "inside", "at_the_end", "gmask_at_the_end"),
        [
            ("glm", True, True, False), ("glm-130b", True, False, False), ("chatglm", False, False, False),
        ],
    )  # fmt: skip
    def test_5_the_end_token_behind_part_a(
        self, lay_out: Callable[..., Layout], tokenizers: dict[str, Tokenizer],
        name: str, inside: bool, at_the_end: bool, gmask_at_the_end: bool, scored: bool,
    ) -> None:  # fmt: skip
        texts = {"the [MASK] sang": inside, "the [MASK]": at_the_end, "the [gMASK]": gmask_at_the_end}
        for text, ends in texts.items():
            # GLM-130B's evaluation has none at all.
            expected = ends and not (name == "glm-130b" and scored)
            last = lay_out(name, text, scored).token_ids[-1]
            assert (last == tokenizers[name].special["eos"]) == expected, text

    def test_6_how_a_family_fills_several_blanks(self) -> None:
        default = {name: family_of(Config(config)).strategies[0] for name, config in CONFIGS.items()}
        assert default == {
            "glm": "append", "glm-130b": "reencode", "chatglm": "reencode", "chatglm2": "reencode",
            "glm-4": "reencode", "glm-4-hf": "reencode", "glm-4-0414": "reencode", "bert": "parallel",
            "proteinglm": "parallel", "proteinglm-clm": "reencode", "llama": "reencode", "qwen2": "reencode",
            "starcoder2": "reencode", "iglm": "reencode",
            "roberta": "parallel", "xlm-roberta": "parallel",
            "camembert": "parallel", "distilbert": "parallel", "esm2": "parallel", "modernbert": "parallel",
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("name", "default", "other"), [("glm", "append", "reencode"), ("glm-130b", "reencode", "append")]
    )
    def test_6_unasked_it_fills_so(self, engine: Callable[[str], Engine], name: str, default: Any, other: Any) -> None:
        text = segments("the [MASK] sang and the [MASK] found")
        running = engine(name)

        def last_blank(strategy: Any) -> list[float]:
            events = running.run(Fill((text,), max_tokens=(3,), min_tokens=(3,), strategy=strategy))
            (result,) = (wire(event.result) for event in events if isinstance(event, ResultDone))
            found: list[float] = result["blanks"][1]["token_logprobs"]
            return found

        assert last_blank(None) == last_blank(default)
        assert last_blank(None) != last_blank(other)

    @pytest.mark.parametrize("name", ["glm", "glm-130b", "chatglm"])
    def test_7_the_end_token_is_counted_if_asked_for(self, engine: Callable[[str], Engine], name: str) -> None:
        text, running = segments("the [MASK] sang"), engine(name)

        def scored(**options: Any) -> dict[str, Any]:
            events = running.run(Score(text=text, spans=(("red cat",),), **options))
            (result,) = (wire(event.result) for event in events if isinstance(event, ResultDone))
            return dict(result)

        plain, ended = scored(), scored(include_end=True)
        (span,) = plain["spans"]
        assert plain["logprob"] == pytest.approx(sum(span["token_logprobs"]), abs=1e-6)
        assert ended["logprob"] == pytest.approx(plain["logprob"] + span["end_logprob"], abs=1e-6)
        assert ended["num_tokens"] == plain["num_tokens"] + 1

    @pytest.mark.parametrize("name", ["chatglm2", "glm-4", "proteinglm-clm"])
    def test_a_causal_model_s_fill_goes_on_from_the_text(
        self, engine: Callable[[str], Engine], tokenizers: dict[str, Tokenizer], name: str
    ) -> None:
        """A vocabulary's space before a text is none of the fill's, and a space that the fill begins with is kept."""
        running, tokenizer = engine(name), tokenizers[name]
        for text in ("MKVL", "MK VL\n", "MKV  "):
            events = running.run(Fill((segments(f"{text}[gMASK]"),), max_tokens=(6,), sampling=Sampling(2.0, seed=1)))
            (result,) = (wire(event.result) for event in events if isinstance(event, ResultDone))
            (blank,) = result["blanks"]
            whole = tokenizer.decode([*tokenizer.encode(text), *blank["token_ids"]])
            assert whole == tokenizer.decode(tokenizer.encode(text)) + blank["text"]

    def test_12_the_first_of_two_int4_numbers_is_in_the_high_nibble(self) -> None:
        assert unpack_nibbles(torch.tensor([[0x2F, -0x6D]], dtype=torch.int8)).tolist() == [[2, -1, -7, 3]]
        path = "transformer.layers.0.mlp.dense_h_to_4h.weight"
        own, floats = golden("glm130b_sat_quantized", "int4"), golden("glm130b_sat", "weights")
        meant = unpack_nibbles(own[path]) * own[f"{path}_scale"][:, None]
        half = own[f"{path}_scale"].float().max() / 2
        assert (meant - floats[path]).abs().max() <= half * 1.01


@pytest.mark.parametrize("name", list(CONFIGS))
def test_calibration_lowers_the_error_in_every_family(
    name: str, canonical: Canonical, vocabularies: Vocabularies, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(" ".join(WORDS[n:] + WORDS[:n]) + "." for n in range(20)))
    if "protein" in name or name == "iglm":
        text.write_text(text.read_text().upper())
    exact = load(canonical(name), tokenizer=vocabularies[name]).model
    fresh = windows(text, Description.read(canonical(name), tokenizer=vocabularies[name]), 12, seed=9)
    error = {}
    for kind, calibrate in (("plain", None), ("calibrated", text)):
        recipe = Recipe(Storage("int4", 32), calibrate, windows=24, tokenizer=vocabularies[name])
        assert Conversion(canonical(name), tmp_path / kind, recipe).run()["calibrated"] == (calibrate is not None)
        other = load(tmp_path / kind).model
        cases = [Case(w.token_ids, w.positions, w.block_positions, w.context_len, torch.empty(0)) for w in fresh]
        error[kind] = sum(float((whole(exact, case) - whole(other, case)).square().sum()) for case in cases)
    assert error["calibrated"] < error["plain"]


@pytest.mark.parametrize("preset", PRESETS)
def test_exactly_one_family_recognises_a_preset(preset: str) -> None:
    family, config = PRESETS[preset]
    assert [f.name for f in FAMILIES if f.recognises(config)] == [family.name]


def test_every_family_has_a_tiny_config() -> None:
    """By which all of this file's tests run over it."""
    assert {family_of(Config(config)).name for config in CONFIGS.values()} == {family.name for family in FAMILIES}
    for config in CONFIGS.values():
        assert sum(family.recognises(Config(config)) for family in FAMILIES) == 1


def test_presets_of_families_have_names_of_their_own() -> None:
    assert len(PRESETS) == sum(len(family.presets) for family in FAMILIES)


def test_what_two_families_recognise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.families.FAMILIES", (glm.FAMILY, replace(glm.FAMILY, name="other")))
    with pytest.raises(CheckpointError, match="recognised by glm and other"):
        family_of(Config(CONFIGS["glm"]))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_published_names_of_a_family_lead_back_to_its_network(family: Family) -> None:
    config = next(iter(family.presets.values()))
    count = layers_field(config)
    with torch.device("meta"):
        names = [n for n, _ in Network(family.architecture(Config({**config, count: 2}))).named_parameters()]
    for naming in (*family.namings, *filter(None, [family.published.rank_naming])):
        published = [p for name in names for p in naming.published(name)]
        assert sorted(arranged(published, family.namings)) == sorted(names)
