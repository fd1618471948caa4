"""Our network against the references: the same log-probabilities for every family, however its rows are fed.

The goldens are made by the scripts in `tests/golden`, from SwissArmyTransformer and transformers; the weights in them
have their published names and are read as from a folder.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.attention import Attend, DenseAttention, KVCache, PagedAttention, Span, part_b_start, visible
from model.checkpoint import entries, fill
from model.config import CheckpointError, Config
from model.families import family_of
from model.network import Network
from model.sharding import cuts
from model.weights import Weights
from quant.linear import Linear
from quant.schemes.int8 import Int8

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = (
    "glm_sat", "glm130b_sat", "chatglm_sat", "chatglm2", "glm4", "glm4_0414", "bert", "proteinglm_mlm",
    "proteinglm_clm", "llama", "qwen2", "starcoder2", "iglm", "roberta",
    "distilbert", "esm2", "modernbert",
)  # fmt: skip
GREEDY = (
    "glm_greedy", "glm130b_sat", "chatglm_sat", "chatglm2", "glm4", "glm4_0414", "proteinglm_clm", "llama", "qwen2",
    "starcoder2", "iglm",
)  # fmt: skip
# The references' softmax and ours sum in other orders; another GELU, or a bias forgotten, is off by far more.
TOLERANCE = 1e-4
# Angles in float16: the same rounded table, but the library behind cosines may differ in a last place of 2^-11.
TOLERANCE_FP16 = 2e-3


@dataclass(frozen=True, slots=True)
class Case:
    """A laid-out sequence and the reference's log-probabilities [rows, vocab_size]."""

    token_ids: Tensor
    positions: Tensor
    block_positions: Tensor
    context_len: int
    logprobs: Tensor

    def __len__(self) -> int:
        return len(self.token_ids)


def metadata(file: str) -> dict[str, Any]:
    with safe_open(GOLDEN / f"{file}.safetensors", framework="pt") as opened:
        return {key: json.loads(value) for key, value in opened.metadata().items()}


def golden(file: str, prefix: str) -> dict[str, Tensor]:
    with safe_open(GOLDEN / f"{file}.safetensors", framework="pt") as opened:
        names = [name for name in opened.keys() if name.startswith(f"{prefix}.")]  # noqa: SIM118
        return {name.removeprefix(f"{prefix}."): opened.get_tensor(name) for name in names}


def case_of(file: str, name: str, answer: str = "logprobs") -> Case:
    tensors = golden(file, name)
    count = len(tensors["token_ids"])
    return Case(
        tensors["token_ids"],
        tensors.get("positions", torch.arange(count)),
        tensors["token_types"] if "token_types" in tensors else tensors["block_positions"],
        int(tensors.get("context_len", torch.tensor(count))),
        tensors[answer],
    )


def read(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> Network:
    """A network from a folder with these files."""
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    family = family_of(Config.read(folder))
    a = family.architecture(Config.read(folder))
    with torch.device("meta"):
        model = Network(a)
    stored = Weights(folder, family.namings, cuts(a.qkv_sections, 1 + a.gated))
    stored.check(entries(model))
    fill(model, stored, torch.float32, torch.device("cpu"))
    return model.eval()


def config_of(file: str) -> dict[str, Any]:
    config: dict[str, Any] = metadata(file)["config"]
    return {"model_type": "glm", **config, "rotary_angles": "float32"}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Network]:
    return {f: read(tmp_path_factory.mktemp(f), config_of(f), golden(f, "weights")) for f in FILES}


def names_of(file: str) -> list[str]:
    with safe_open(GOLDEN / f"{file}.safetensors", framework="pt") as opened:
        return sorted({name.split(".")[0] for name in opened.keys() if name.endswith(".logprobs")} - {"pll"})  # noqa: SIM118


CASES = [(file, name) for file in FILES for name in names_of(file)]


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> Case:
    return case_of(*request.param)


@pytest.fixture
def model(request: pytest.FixtureRequest, networks: dict[str, Network], case: Case) -> Network:
    file, _ = request.node.callspec.params["case"]
    return networks[file]


def cache_for(model: Network, block_size: int, num_blocks: int) -> KVCache:
    a = model.architecture
    device = torch.device("cpu")
    cache = KVCache(a.num_layers, num_blocks, block_size, a.num_key_value_heads, a.head_dim, torch.float32, device)
    cache.keys.numbers.fill_(1e4)  # what an earlier sequence left there must not matter
    cache.values.numbers.fill_(1e4)
    return cache


def steps(
    case: Case, context_len: int, causal: bool, block_size: int, part_b_rows: int
) -> list[list[tuple[slice, Span]]]:
    """Part A in one step, then part B `part_b_rows` rows a step, over blocks in no order; 0 means all at once."""
    first = part_b_start(context_len, block_size)
    num_blocks = -(-(first + len(case) - context_len) // block_size)
    blocks = tuple(torch.randperm(num_blocks, generator=torch.Generator().manual_seed(1)).tolist())
    part_a = slice(0, context_len), Span(context_len, 0, context_len, blocks, causal)
    pieces = []
    for row in range(context_len, len(case), part_b_rows or len(case)):
        rows = slice(row, min(len(case), row + (part_b_rows or len(case))))
        pieces.append((rows, Span(rows.stop - rows.start, first + row - context_len, context_len, blocks, causal)))
    return [[part_a, *pieces]] if part_b_rows == 0 else [[part_a], *([piece] for piece in pieces)]


@torch.inference_mode()
def logprobs(model: Network, case: Case, rows: Tensor, attend: Attend) -> Tensor:
    hidden = model(case.token_ids[rows], case.positions[rows], case.block_positions[rows], attend)
    return torch.log_softmax(model.logits(hidden), dim=-1)


def whole(model: Network, case: Case) -> Tensor:
    attend = DenseAttention(visible(len(case), torch.tensor([case.context_len])))
    return logprobs(model, case, torch.arange(len(case))[None], attend)[0]


def fed(model: Network, case: Case, block_size: int, part_b_rows: int) -> Tensor:
    """Log-probabilities of a case over a cache of blocks."""
    causal = model.architecture.causal
    # A causal case has no part A: take some of its rows as the prompt that is encoded before the others.
    plan = steps(case, len(case) // 3 if causal else case.context_len, causal, block_size, part_b_rows)
    cache = cache_for(model, block_size, len(plan[0][0][1].blocks))
    ours = torch.full_like(case.logprobs, torch.nan)
    for step in plan:
        rows = torch.cat([torch.arange(piece.start, piece.stop) for piece, _ in step])
        ours[rows] = logprobs(model, case, rows, PagedAttention(cache, [span for _, span in step]))
    return ours


def test_whole_sequences_give_the_reference_log_probabilities(model: Network, case: Case) -> None:
    torch.testing.assert_close(whole(model, case), case.logprobs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("part_b_rows", [0, 1, 3], ids=["one_step", "token_by_token", "three_a_step"])
@pytest.mark.parametrize("block_size", [4, 16])
def test_rows_over_permuted_cache_blocks_give_the_reference_log_probabilities(
    model: Network, case: Case, block_size: int, part_b_rows: int
) -> None:
    torch.testing.assert_close(fed(model, case, block_size, part_b_rows), case.logprobs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("file", FILES)
def test_sequences_of_unequal_lengths_share_a_step(networks: dict[str, Network], file: str) -> None:
    model = networks[file]
    causal = model.architecture.causal
    cases = [case_of(file, name) for name in names_of(file)]
    spans: list[Span] = []
    used = 0
    for case in cases:
        (plan,) = steps(case, len(case) // 3 if causal else case.context_len, causal, 4, 0)
        blocks = tuple(used + b for b in plan[0][1].blocks)
        spans += [replace(span, blocks=blocks) for _, span in plan if span.num_rows]
        used += len(blocks)
    attend = PagedAttention(cache_for(model, 4, used), spans)
    packed = [torch.cat([getattr(c, name) for c in cases]) for name in ("token_ids", "positions", "block_positions")]
    with torch.inference_mode():
        ours = torch.log_softmax(model.logits(model(*packed, attend)), dim=-1)
    torch.testing.assert_close(ours, torch.cat([c.logprobs for c in cases]), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("file", GREEDY)
def test_greedy_tokens_are_the_reference_s(networks: dict[str, Network], file: str) -> None:
    """Token by token over the cache: while all before it are the reference's, so is the best one."""
    model = networks["glm_sat" if file == "glm_greedy" else file]
    tensors = golden(file, "greedy")
    written = tensors["tokens"].tolist()
    rows = len(tensors["token_ids"])
    shape = torch.empty(rows, model.architecture.vocab_size)
    context_len = int(tensors["context_len"])
    case = Case(tensors["token_ids"], tensors["positions"], tensors["block_positions"], context_len, shape)
    ours = fed(model, case, 16, 1)[-len(written) :]
    assert ours.argmax(-1).tolist() == written
    picked = ours.gather(1, tensors["tokens"][:, None])[:, 0]
    torch.testing.assert_close(picked, tensors["token_logprobs"], rtol=0, atol=TOLERANCE)


class TestTraps:
    """The traps of GLM's history, by what goes wrong."""

    def test_gelu_is_the_tanh_approximation_in_glm_v1(self, networks: dict[str, Network]) -> None:
        case = case_of("glm_greedy", "erf", "logprobs_tanh")
        ours = whole(networks["glm_sat"], case)
        torch.testing.assert_close(ours, case.logprobs, rtol=0, atol=TOLERANCE)
        assert (ours - golden("glm_greedy", "erf")["logprobs"]).abs().max() > 2 * TOLERANCE

    @pytest.mark.parametrize("file", ["glm130b_sat", "chatglm_sat", "proteinglm_mlm", "proteinglm_clm"])
    def test_query_key_value_rows_go_by_head(self, networks: dict[str, Network], file: str) -> None:
        assert networks[file].architecture.qkv_rows == "heads"
        assert networks["glm_sat"].architecture.qkv_rows == "parts"

    def test_deepnorm_s_alpha_is_that_of_28_layers_in_chatglm(self, networks: dict[str, Network]) -> None:
        a = networks["chatglm_sat"].architecture
        assert a.num_layers == 2
        assert a.alpha == pytest.approx(metadata("chatglm_sat")["alpha"])

    @pytest.mark.parametrize("file", ["glm130b_sat", "chatglm_sat"])
    def test_angles_in_float16(self, tmp_path: Path, file: str) -> None:
        config = config_of(file) | {"rotary_angles": "float16"}
        model = read(tmp_path, config, golden(file, "weights"))
        for name in ("long", "part_a"):
            case = case_of(file, name, "logprobs_fp16_angles")
            torch.testing.assert_close(whole(model, case), case.logprobs, rtol=0, atol=TOLERANCE_FP16)
        assert (whole(model, case_of(file, "long")) - case_of(file, "long").logprobs).abs().max() > TOLERANCE

    def test_model_type_glm_names_two_things(self) -> None:
        assert family_of(Config(config_of("glm_sat"))).name == "glm"
        assert config_of("glm4")["model_type"] == "glm"
        assert family_of(Config(config_of("glm4"))).name == "glm-4"
        assert family_of(Config(metadata("glm4")["config_original"])).name == "glm-4"
        assert family_of(Config(config_of("chatglm_sat"))).name == "chatglm"
        assert family_of(Config(config_of("chatglm2"))).name == "chatglm2"
        assert family_of(Config(config_of("proteinglm_mlm"))).name == "proteinglm"
        assert family_of(Config(config_of("proteinglm_clm"))).name == "proteinglm-clm"


class TestGLM4:
    def test_the_original_s_names_and_config_give_the_same(self, networks: dict[str, Network], tmp_path: Path) -> None:
        facts = metadata("glm4")
        own = golden("glm4", "weights")
        weights = {name: torch.cat([own[s] for s in parts]) for name, parts in facts["original_names"].items()}
        model = read(tmp_path, facts["config_original"], weights)
        case = case_of("glm4", "long")
        assert torch.equal(whole(model, case), whole(networks["glm4"], case))


class TestChatGLM2:
    @pytest.mark.parametrize("scaled", ["positions", "base"])
    @pytest.mark.parametrize("told", ["_name_or_path", "rope_ratio_scales"])
    def test_rope_ratio_means_two_things(self, tmp_path: Path, scaled: str, told: str) -> None:
        """ChatGLM2-6B-32K divides positions by it, ChatGLM3-6B-32K multiplies the base of the angles."""
        names = {"positions": "THUDM/chatglm2-6b-32k", "base": "THUDM/chatglm3-6b-32k"}
        ratio = metadata("chatglm2")["rope_ratio"][scaled]
        says = {told: names[scaled] if told == "_name_or_path" else scaled}
        model = read(tmp_path, config_of("chatglm2") | {"rope_ratio": ratio} | says, golden("chatglm2", "weights"))
        case = case_of("chatglm2", "long", f"logprobs_{scaled}")
        torch.testing.assert_close(whole(model, case), case.logprobs, rtol=0, atol=TOLERANCE)
        assert (whole(model, case) - case_of("chatglm2", "long").logprobs).abs().max() > 10 * TOLERANCE

    def test_a_rope_ratio_that_could_mean_either_is_refused(self) -> None:
        config = Config(config_of("chatglm2") | {"rope_ratio": 16, "_name_or_path": "/models/mine"})
        with pytest.raises(CheckpointError, match="rope_ratio 16 divides positions in ChatGLM2-6B-32K and multiplies"):
            family_of(config).architecture(config)


class TestBert:
    @pytest.mark.parametrize("name", ["single", "pair", "other_pair", "long"])
    def test_next_sentence_log_probabilities(self, networks: dict[str, Network], name: str) -> None:
        model, case = networks["bert"], case_of("bert", name)
        attend = DenseAttention(visible(len(case), torch.tensor([len(case)])))
        with torch.inference_mode():
            hidden = model(case.token_ids[None], case.positions[None], case.block_positions[None], attend)
            ours = torch.log_softmax(model.next_sentence_logits(hidden[0, 0]), dim=-1)
        torch.testing.assert_close(ours, golden("bert", name)["nsp"], rtol=0, atol=TOLERANCE)

    def test_pseudo_log_likelihood(self, networks: dict[str, Network]) -> None:
        model, tensors = networks["bert"], golden("bert", "pll")
        ids, count = tensors["token_ids"], len(tensors["token_ids"])
        found = []
        for row in range(1, count - 1):
            masked = ids.clone()
            masked[row] = metadata("bert").get("mask", MASK_OF_BERT)
            case = Case(masked, torch.arange(count), tensors["token_types"], count, torch.empty(0))
            found.append(whole(model, case)[row, ids[row]])
        torch.testing.assert_close(torch.stack(found), tensors["logprobs"], rtol=0, atol=TOLERANCE)


MASK_OF_BERT = 4


def test_an_int8_network_stays_near_the_reference(model: Network, case: Case) -> None:
    quantized = Network(model.architecture, Int8())
    floats = dict(model.named_parameters())
    for path, module in quantized.named_modules():
        if isinstance(module, Linear):
            stored = module.scheme.quantize(floats[f"{path}.weight"].detach())
            for name, tensor in stored.items():
                getattr(module, name).data = tensor
            if module.bias is not None:
                module.bias.data = floats[f"{path}.bias"].detach()
        else:
            for name, parameter in module.named_parameters(recurse=False):
                parameter.data = floats[f"{path}.{name}"].detach()
    ours = whole(quantized, case)
    divergence = (case.logprobs.exp() * (case.logprobs - ours)).sum(-1)
    assert divergence.mean() < 0.03  # nats a row; the widest is ChatGLM, whose invented weights are the largest
