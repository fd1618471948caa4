"""GGUF files as checkpoints: transformers' log-probabilities with the numbers that gguf-py finds in the files."""

from pathlib import Path

import gguf
import pytest
import torch
from gguf.quants import quantize
from torch import Tensor

from model.checkpoint import Checkpoint, Description, entries, fill, load
from model.config import CheckpointError
from model.convert import Conversion, Recipe
from model.families import family_of
from model.format import QuantizedSource
from model.formats import FORMATS, format_of
from model.formats.gguf import GGUFSource
from model.network import Block, Network
from model.outline import Outline
from model.parallel import Ranks
from model.preferred import Matrix, preferred, told
from model.sharding import Slice, cuts_of
from model.storage import Storage
from model.tokenizer import Tokenizer
from model.weights import Weights
from tests.model.gguf.writing import SIZES, Written, write, write_sizes, write_tokenizer
from tests.model.test_references import GOLDEN, TOLERANCE, Case, case_of, whole

KINDS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
TOKENS = torch.randint(261, (20,), generator=torch.Generator().manual_seed(3))


def logprobs(checkpoint: Checkpoint) -> Tensor:
    zeros = torch.zeros(len(TOKENS), dtype=torch.long)
    return whole(checkpoint.model, Case(TOKENS, torch.arange(len(TOKENS)), zeros, 0, torch.empty(0)))


@pytest.fixture(scope="module")
def q4_0(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write(tmp_path_factory.mktemp("q4_0") / "tiny.Q4_0.gguf")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """As llama.cpp mixes kinds in Q4_0: the head has more bits."""
    return write(tmp_path_factory.mktemp("mixed") / "mixed.gguf", "chatglm", output="Q6_K")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["glm4", "chatglm"])
def test_floats_give_transformers_log_probabilities(tmp_path: Path, architecture: str, kind: str) -> None:
    written = write(tmp_path / "own.gguf", architecture, kind)
    found = logprobs(load(written.path, quant="none"))
    torch.testing.assert_close(found, written.logprobs(TOKENS), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("kind", "quant"), [("Q4_0", "int4"), ("Q8_0", "int8")])
def test_a_kept_form_has_the_file_s_numbers_bit_for_bit(tmp_path: Path, kind: str, quant: str) -> None:
    written = write(tmp_path / "own.gguf", kind=kind)
    checkpoint, kept = load(written.path), 0
    assert checkpoint.quant == quant
    assert checkpoint.origin == f"GGUF: kept as {quant} in groups of 32"
    source, state = GGUFSource(written.path), written.reference.state_dict()
    for name in source.entries:
        form = source.form(name)
        if form is not None:
            assert torch.equal(form.dequantize(source.stored(name)), state[name])
            kept += 1
    assert kept == 2 + 2 * 6


def test_a_file_that_llama_cpp_quantized() -> None:
    """Q4_K_M: three kinds, among the rows of one matrix too. See tests/golden/make_gguf.py."""
    path, case = GOLDEN / "gguf_q4_k_m.gguf", case_of("gguf_q4_k_m", "plain")
    form = format_of(path)
    assert form is not None
    family = family_of(form.config(path))
    architecture = family.architecture(form.config(path))
    with torch.device("meta"):
        model = Network(architecture)
    weights = Weights(path, family.namings, cuts_of(architecture))
    weights.check(entries(model))
    fill(model, weights, torch.float32, torch.device("cpu"))
    torch.testing.assert_close(whole(model, case), case.logprobs, atol=TOLERANCE, rtol=0)
    kinds = {own.name: own.kinds for own in weights.matrices()}
    assert kinds["transformer.layers.0.attention.query_key_value.weight"] == {"Q4_K", "Q6_K"}
    assert kinds["transformer.layers.0.attention.dense.weight"] == {"Q5_0"}
    assert preferred(weights.matrices()).scheme == "int8"


def test_a_kept_network_is_near_the_floats(q4_0: Written) -> None:
    """The weights are the same, the kernels round activations."""
    kept, floats = logprobs(load(q4_0.path)), q4_0.logprobs(TOKENS)
    assert float((kept.exp() * (kept - floats)).sum(-1).mean()) < 0.01


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q4_K", "Q6_K", "F16"])
@pytest.mark.parametrize(
    "part",
    [Slice(0, ((3, 5),)), Slice(0, ((0, 32), (96, 16))), Slice(1, ((64, 32),)), Slice(1, ((0, 8), (100, 28)))],
    ids=["rows", "spans", "inputs", "inputs within blocks"],
)
def test_slices_are_those_of_the_whole(tmp_path: Path, kind: str, part: Slice) -> None:
    source = GGUFSource(write(tmp_path / "own.gguf", kind=kind).path)
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(source.read(name, part), part.of(source.read(name)))


@pytest.mark.parametrize("part", [Slice(0, ((3, 5), (20, 4))), Slice(1, ((64, 96),))], ids=["rows", "inputs"])
def test_slices_of_a_kept_form(q4_0: Written, part: Slice) -> None:
    source, name = GGUFSource(q4_0.path), "model.layers.1.mlp.down_proj.weight"
    form = source.form(name)
    assert form is not None
    assert torch.equal(form.dequantize(source.stored(name, part)), source.read(name, part))


def test_a_cut_through_a_group_is_refused(q4_0: Written) -> None:
    with pytest.raises(CheckpointError, match="goes through a group of 32"):
        GGUFSource(q4_0.path).stored("model.layers.1.mlp.down_proj.weight", Slice(1, ((16, 64),)))


def first_block(checkpoint: Checkpoint) -> Block:
    block = checkpoint.model.transformer.layers[0]
    assert isinstance(block, Block)
    return block


@pytest.mark.parametrize("quant", [None, "none"])
def test_ranks_read_their_share(mixed: Written, quant: str | None) -> None:
    whole_one = first_block(load(mixed.path, quant=quant))
    x = torch.randn(16, SIZES["hidden_size"], generator=torch.Generator().manual_seed(0))
    queries, keys = (SIZES[f"num_{of}_heads"] * SIZES["head_dim"] for of in ("attention", "key_value"))
    for rank in range(2):
        part = first_block(load(mixed.path, quant=quant, ranks=Ranks(rank, 2)))
        sections = ((0, queries), (queries, keys), (queries + keys, keys))
        rows = [start + rank * n // 2 + row for start, n in sections for row in range(n // 2)]
        own, of_all = part.attention.query_key_value(x), whole_one.attention.query_key_value(x)[:, rows]
        torch.testing.assert_close(own, of_all, atol=1e-5, rtol=0)
        down, of_all = part.mlp.dense_4h_to_h, whole_one.mlp.dense_4h_to_h
        half = SIZES["intermediate_size"] // 2
        zeros = torch.zeros(16, half)
        inputs = torch.cat([zeros, x[:, :half]] if rank else [x[:, :half], zeros], 1)
        torch.testing.assert_close(down.product(x[:, :half]), of_all.product(inputs), atol=1e-4, rtol=0)


def test_numbers_that_no_scheme_has_are_converted(tmp_path: Path) -> None:
    path = write(tmp_path / "own.gguf", kind="Q4_K").path
    assert load(path).origin == (
        "GGUF: Q4_K converted to int8; no scheme here has those numbers, --quant int4 takes half the memory"
    )
    assert load(path, quant="int8").origin == "GGUF: Q4_K converted to int8"


def test_forms_may_be_mixed(mixed: Written) -> None:
    checkpoint = load(mixed.path)
    assert checkpoint.quant == "int4"
    assert checkpoint.origin == "GGUF: kept as int4 in groups of 32; Q4_0 and Q6_K converted to int8"
    assert checkpoint.model.lm_head.scheme.name == "int8"


class TestConversion:
    def test_gives_the_network_that_is_served_from_the_file(self, mixed: Written, tmp_path: Path) -> None:
        Conversion(mixed.path, tmp_path / "out", Recipe(Storage("int4"), keep_head=True)).run()
        converted = load(tmp_path / "out")
        assert torch.equal(logprobs(converted), logprobs(load(mixed.path)))
        assert converted.tokenizer.encode("the hen") == Description.read(mixed.path).tokenizer.encode("the hen")

    def test_takes_another_storage(self, q4_0: Written, tmp_path: Path) -> None:
        Conversion(q4_0.path, tmp_path / "out", Recipe(Storage("int8", head="int8"))).run()
        assert torch.equal(logprobs(load(tmp_path / "out")), logprobs(load(q4_0.path, quant="int8", head="int8")))


def test_the_plan_knows_the_storage(mixed: Written) -> None:
    outline = Outline.read(str(mixed.path))
    assert outline.storage(None, None, None) == Storage("int4", 32, "int8")
    assert outline.storage("none", None, None) == Storage()


def test_the_tokenizer_is_inside(q4_0: Written) -> None:
    tokenizer: Tokenizer = Description.read(q4_0.path).tokenizer
    text = "the hen in a 1234 tin, étude\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("the")) == 2  # th e: the only merge there
    assert set(tokenizer.masks) == {"[MASK]", "[gMASK]", "[sMASK]"}


class TestFiles:
    def test_a_folder_with_one(self, q4_0: Written) -> None:
        assert format_of(q4_0.path.parent) is format_of(q4_0.path)
        assert load(q4_0.path.parent).quant == "int4"

    def test_no_preset_replaces_its_own_sizes(self, q4_0: Written) -> None:
        for read in (lambda: load(q4_0.path, preset="glm-4-9b"), lambda: Outline.read(str(q4_0.path), "glm-4-9b")):
            with pytest.raises(CheckpointError, match=r"Q4_0\.gguf: has sizes of its own, so no preset can be given"):
                read()

    def test_a_folder_with_several_names_them(self, q4_0: Written, tmp_path: Path) -> None:
        for name in ("b.gguf", "a.gguf"):
            (tmp_path / name).symlink_to(q4_0.path)
        with pytest.raises(CheckpointError, match=r"holds a\.gguf, b\.gguf: serve one of these files"):
            load(tmp_path)

    def test_other_weights_come_first(self, q4_0: Written, tmp_path: Path) -> None:
        (tmp_path / "a.gguf").symlink_to(q4_0.path)
        (tmp_path / "model.safetensors").touch()
        assert format_of(tmp_path) is None

    def test_a_file_of_another_name_is_known_by_its_first_bytes(self, q4_0: Written, tmp_path: Path) -> None:
        (tmp_path / "blob").symlink_to(q4_0.path)
        assert load(tmp_path / "blob").quant == "int4"

    def test_parts_are_one_model(self, q4_0: Written, tmp_path: Path) -> None:
        first, second = (tmp_path / f"tiny-0000{n}-of-00002.gguf" for n in (1, 2))
        split(q4_0.path, first, second)
        for path in (tmp_path, first, second):
            assert torch.equal(logprobs(load(path)), logprobs(load(q4_0.path)))
        second.unlink()
        with pytest.raises(CheckpointError, match=r"00002-of-00002\.gguf: no such file"):
            load(first)


@pytest.mark.parametrize("kind", ["F16", "Q4_0", "Q8_0"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "starcoder2"])
def test_further_architectures_give_transformers_log_probabilities(
    tmp_path: Path, architecture: str, kind: str
) -> None:
    written = write(tmp_path / "own.gguf", architecture, kind)
    found = logprobs(load(written.path, quant="none"))
    torch.testing.assert_close(found, written.logprobs(TOKENS), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", ["F32", "Q4_0"])
def test_rows_that_the_converter_interleaved_are_put_back(tmp_path: Path, kind: str) -> None:
    """llama.cpp, conversion/llama.py (LlamaModel.permute): heads of halves become heads of pairs."""
    heads, size, width = 4, 8, 32
    rows = torch.randn(heads * size, width, generator=torch.Generator().manual_seed(0))
    permuted = rows.view(heads, 2, size // 2, width).transpose(1, 2).reshape(heads * size, width)
    writer = gguf.GGUFWriter(str(tmp_path / "own.gguf"), "llama")
    write_sizes(writer, "llama", SIZES | {"hidden_size": width, "num_attention_heads": heads, "head_dim": size})
    for name, matrix in (("token_embd", rows), ("blk.0.attn_q", permuted), ("blk.0.attn_v", rows)):
        raw = quantize(matrix.numpy(), gguf.GGMLQuantizationType[kind])
        writer.add_tensor(f"{name}.weight", raw, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = GGUFSource(tmp_path / "own.gguf")
    q, v = (f"model.layers.0.self_attn.{letter}_proj.weight" for letter in "qv")
    assert torch.equal(source.read(q), source.read(v))
    for part in (Slice(0, ((8, 8), (24, 4))), Slice(1, ((0, 32),))):
        assert torch.equal(source.read(q, part), part.of(source.read(v)))
        if kind == "Q4_0":
            assert torch.equal(source.stored(q, part)["weight"], source.stored(v, part)["weight"])


def split(path: Path, first: Path, second: Path) -> None:
    """The metadata and half of the tensors in one file, the rest in another."""
    reader = gguf.GGUFReader(path)
    half = len(reader.tensors) // 2
    for own, tensors in ((first, reader.tensors[:half]), (second, reader.tensors[half:])):
        writer = gguf.GGUFWriter(str(own), "glm4")
        if own is first:
            for field in reader.fields.values():
                if field.name.startswith("glm4."):
                    writer.add_key_value(field.name, field.contents(), field.types[0])
            write_tokenizer(writer, SIZES["vocab_size"])
        for tensor in tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


class TestRefusals:
    def refused(self, path: Path, changed: dict[str, object]) -> str:
        """The message for a file with other metadata."""
        writer = gguf.GGUFWriter(str(path), str(changed.get("general.architecture", "glm4")))
        for key, value in changed.items():
            if key != "general.architecture":
                kind = gguf.GGUFValueType.get_type(value)
                writer.add_key_value(key, value, kind)
        writer.add_tensor("token_embd.weight", torch.zeros(288, 32).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(CheckpointError) as error:
            Description.read(path)
        return str(error.value)

    @pytest.mark.parametrize(
        ("changed", "reason"),
        [
            (
                {"general.architecture": "glm4moe"},
                "'glm4moe' cannot be served: known are chatglm, glm4, llama, qwen2, starcoder2",
            ),
            ({"general.architecture": "bert"}, "leaves out the head that fills masks"),
            ({"glm4.embedding_length": "many"}, "embedding_length must be a positive number"),
            ({}, "missing embedding_length"),
        ],
        ids=["architecture", "encoder", "type", "missing"],
    )
    def test_of_metadata(self, tmp_path: Path, changed: dict[str, object], reason: str) -> None:
        assert reason in self.refused(tmp_path / "own.gguf", changed)


class TestPreferred:
    def test_most_numbers_decide_for_the_blocks(self, q4_0: Written) -> None:
        form = GGUFSource(q4_0.path).form("lm_head.weight")
        large = Matrix("transformer.layers.0.a.weight", (3, 64), form, frozenset({"Q4_0"}))
        small = Matrix("transformer.layers.0.b.weight", (2, 64), None, frozenset({"Q6_K"}))
        assert preferred([large, small]) == Storage("int4", 32, "none")
        assert preferred([small]) == Storage("int8")
        assert told([large, small], Storage("int4", 32), "X", False) == (
            "X: kept as int4 in groups of 32; Q6_K converted to int4 in groups of 32"
        )

    def test_floats_stay_floats(self) -> None:
        assert preferred([Matrix("lm_head.weight", (3, 64), None, frozenset())]) == Storage()
        assert told([Matrix("lm_head.weight", (3, 64), None, frozenset())], Storage(), "X", False) == "X"


def test_formats_open_quantized_sources(q4_0: Written) -> None:
    source: QuantizedSource = GGUFSource(q4_0.path)
    assert source.kind("lm_head.weight") == "Q4_0"
    assert source.kind("model.norm.weight") is None
    assert len({own.name for own in FORMATS}) == len(FORMATS)
