"""Prefixes against plain torch: the same log-probabilities as with keys and values put before those of the text."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from engine.runner import Runner
from engine.schedule.batch import Batch, PrefixCopy, Rows
from model.adapters.prefix import MAX_TOKENS
from model.adapters.reading import read_adapter
from model.attention import DenseAttention, Span, part_b_start, visible
from model.config import CheckpointError
from model.network import Network
from tests.model.adapters.test_lora import glm4, ours
from tests.model.test_references import FILES

BLOCK = 16


def table(model: Network, length: int) -> Tensor:
    a = model.architecture
    draw = torch.Generator().manual_seed(5)
    return torch.randn(length, 2 * a.num_layers * a.num_key_value_heads * a.head_dim, generator=draw) * 0.5


def write(folder: Path, config: dict[str, Any] | None, tensors: dict[str, Tensor], name: str) -> Path:
    folder.mkdir()
    if config is not None:
        (folder / ("adapter_config.json" if "peft_type" in config else "config.json")).write_text(json.dumps(config))
    if name.endswith(".bin"):
        torch.save(tensors, folder / name)
    else:
        save_file(tensors, folder / name)
    return folder


def peft_folder(folder: Path, numbers: Tensor, **config: Any) -> Path:
    whole = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": len(numbers), **config}
    return write(folder, whole, {"prompt_embeddings": numbers}, "adapter_model.safetensors")


class Behind(DenseAttention):
    """Attention in which every row also sees a prefix: the plain torch of it."""

    def __init__(self, mask: Tensor, numbers: Tensor, model: Network) -> None:
        a = model.architecture
        # [tokens, layers, 2, heads, head_dim], as the formats have it
        self.prefix = numbers.view(len(numbers), a.num_layers, 2, a.num_key_value_heads, a.head_dim)
        self.plain = DenseAttention(mask)
        super().__init__(torch.cat([torch.ones(*mask.shape[:-1], len(numbers), dtype=torch.bool), mask], dim=-1))

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, reach: int | None = None) -> Tensor:
        k = torch.cat([self.prefix[None, :, layer, 0], k], dim=1)
        v = torch.cat([self.prefix[None, :, layer, 1], v], dim=1)
        return super().__call__(layer, q, k, v)

    def share(self, marked: Tensor) -> Tensor:
        """Of the text: a prefix has no tokens."""
        return self.plain.share(marked)


@pytest.mark.parametrize("kv_cache_type", ["auto", "int8"])
@pytest.mark.parametrize("length", [5, 16, 37])
@pytest.mark.parametrize("file", [file for file in FILES if file != "modernbert"])  # its windows take no prefix
def test_logprobs_are_those_of_plain_torch(tmp_path: Path, file: str, length: int, kv_cache_type: str) -> None:
    model, target = ours(tmp_path / "model", file)
    numbers = table(model, length)
    folder = peft_folder(tmp_path / "prefix", numbers, num_layers=model.architecture.num_layers)
    runner = Runner(model, 16, BLOCK, kv_cache_type=kv_cache_type, target=target)
    runner.adapters.read(1, str(folder))
    prefix = runner.adapters.attach(1).prefix
    assert prefix is not None
    causal, masked = model.architecture.causal, model.architecture.masked
    assert prefix.shift == (length if causal else 0)
    context_len, rows = (12, 0) if masked else (12, 7)
    total = context_len + rows
    ids = torch.arange(total) + 10
    positions = torch.cat([torch.arange(context_len), torch.full((rows,), 4)])
    blocks = torch.cat([torch.zeros(context_len, dtype=torch.long), torch.arange(1, rows + 1)])
    if causal:
        positions, blocks = torch.arange(total), torch.zeros(total, dtype=torch.long)
    mask = visible(total, torch.tensor([0 if causal else context_len]))
    with torch.inference_mode():
        shifted = positions + prefix.shift
        hidden = model(ids[None], shifted[None], blocks[None], Behind(mask, numbers, model))[0]
        expected = torch.log_softmax(model.logits(hidden), -1)
    whole, over = length // BLOCK, length % BLOCK
    shared = tuple(range(3, 3 + whole))
    own, last = (8, 9), (11,)
    copies = [PrefixCopy(1, 0, shared)] * bool(whole) + [PrefixCopy(1, whole * BLOCK, own[:1])] * bool(over)

    def packed(first: int, end: int, start: int, cache: tuple[int, ...], visible: int) -> Rows:
        part = [tuple(x[first:end].tolist()) for x in (ids, shifted, blocks)]
        span = Span(end - first, start, length + visible, cache, causal)
        targets = tuple(7 for _ in range(first, end))
        return Rows(part[0], part[1], part[2], span, "scores", targets=targets, adapter=1)

    own = own[: -(-(over + context_len) // BLOCK)]  # type: ignore[assignment]
    batch = [packed(0, context_len, length, (*shared, *own), context_len)]
    if rows:
        start = part_b_start(length + context_len, BLOCK)
        batch.append(packed(context_len, total, start, (*shared, *own, *last), context_len))
    results, bad = runner.run(Batch(tuple(batch), prefixes=tuple(copies)), 0)
    assert bad == 0
    found = [item.logprob for line in results for item in line]  # type: ignore[union-attr]
    tolerance = 2e-4 if kv_cache_type == "auto" else 0.4  # codes in steps of 1 in 127
    assert found == pytest.approx(expected[:, 7].tolist(), abs=tolerance)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("projected", [False, True])
def test_logits_are_those_of_peft_s_own_prefix_on_transformers_glm4(tmp_path: Path, projected: bool) -> None:
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=6, prefix_projection=projected, encoder_hidden_size=32
    )
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(glm4(), config).eval()
    wrapped.save_pretrained(str(tmp_path / "prefix"))
    ids = torch.arange(12)
    with torch.inference_mode():
        expected = torch.log_softmax(wrapped(ids[None]).logits[0], -1)
    model, target = ours(tmp_path / "model", "glm4")
    runner = Runner(model, 8, BLOCK, target=target)
    runner.adapters.read(1, str(tmp_path / "prefix"))
    prefix = runner.adapters.attach(1).prefix
    assert prefix is not None
    positions = tuple(range(prefix.shift, prefix.shift + 12))
    rows = Rows(tuple(ids.tolist()), positions, (0,) * 12, Span(12, 6, 18, (2, 5), True), "scores", targets=(3,) * 12)
    (line,), _ = runner.run(Batch((rows,), prefixes=(PrefixCopy(1, 0, (2,)),)), 0)
    assert [item.logprob for item in line] == pytest.approx(expected[:, 3].tolist(), abs=1e-4)  # type: ignore[union-attr]


def encoder(model: Network, length: int, hidden: int) -> tuple[dict[str, Tensor], Tensor]:
    """ChatGLM's prefix encoder as its training saves it, and what it computes."""
    width = table(model, 1).shape[1]
    torch.manual_seed(2)
    embedding = nn.Embedding(length, hidden)
    trans = nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, width))
    own = {f"trans.{k}": v.detach() for k, v in trans.state_dict().items()} | {
        "embedding.weight": embedding.weight.data
    }
    return {f"transformer.prefix_encoder.{k}": v for k, v in own.items()}, trans(embedding.weight).detach()


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_p_tuning_v2_with_and_without_projection(tmp_path: Path, projected: bool, name: str) -> None:
    model, target = ours(tmp_path / "model", "chatglm_sat")
    if projected:
        tensors, numbers = encoder(model, 9, 32)
    else:
        numbers = table(model, 9)
        tensors = {"transformer.prefix_encoder.embedding.weight": numbers}
    folder = write(tmp_path / "prefix", {"pre_seq_len": 9, "model_type": "chatglm"}, tensors, name)
    prefix = read_adapter(folder, target).prefix
    assert prefix is not None
    # modeling_chatglm.py, get_prompt: view, permute and split into (key, value) of each layer.
    a = model.architecture
    past = numbers.view(1, 9, 2 * a.num_layers, a.num_attention_heads, a.head_dim).permute(2, 1, 0, 3, 4).split(2)
    for layer, (key, value) in enumerate(past):
        torch.testing.assert_close(prefix.keys[layer], key[:, 0], atol=1e-6, rtol=0)
        torch.testing.assert_close(prefix.values[layer], value[:, 0], atol=1e-6, rtol=0)
    assert prefix.shift == 0


def test_prefixes_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    model, target = ours(tmp_path / "model", "glm4")
    numbers = table(model, 4)
    key = "transformer.prefix_encoder.embedding.weight"
    cases = [
        (peft_folder, (numbers[:, :-1].contiguous(),), {}, "a prefix is [4, 127], this model needs"),
        (peft_folder, (numbers,), {"num_virtual_tokens": 5}, "of 4 tokens, adapter_config.json says 5"),
        (peft_folder, (numbers,), {"num_layers": 28}, "num_layers is 28, this model has 2"),
        (peft_folder, (numbers,), {"num_attention_heads": 4}, "num_attention_heads is 4, this model has 2"),
        (peft_folder, (numbers * torch.nan,), {}, "holds NaN"),
        (peft_folder, (numbers[:1].expand(MAX_TOKENS + 1, -1).contiguous(),), {}, "this model needs [1 … 4096"),
        (write, ({"pre_seq_len": 7}, {key: numbers}, "pytorch_model.bin"), {}, "config.json says 7 tokens"),
        (write, (None, {key.replace("embedding", "x"): numbers}, "pytorch_model.bin"), {}, "no prefix encoder"),
        (write, (None, {"transformer.w": numbers}, "pytorch_model.bin"), {}, "no prefix_encoder in pytorch_model.bin"),
        (write, (None, encoder(model, 4, 8)[0] | {key: numbers}, "pytorch_model.bin"), {}, "do not fit together"),
    ]
    for number, (make, arguments, options, message) in enumerate(cases):
        folder = make(tmp_path / str(number), *arguments, **options)  # type: ignore[operator]
        with pytest.raises(CheckpointError) as raised:
            read_adapter(folder, target)
        assert message in str(raised.value)
