"""What the scripts here that make golden files share. Knows no reference implementation and nothing of this repository.

A case is `token_ids`, `positions`, `block_positions` and `context_len`: row i sees the columns < context_len and those
up to i. Its answers are `logprobs` [rows, vocab_size].
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import torch as safetensors
from torch import Tensor, nn

Case = dict[str, Tensor]
LIMIT = 700_000  # bytes a file

torch.set_num_threads(1)  # sums in one order, however many cores there are


def rows(ids: Sequence[int], positions: Sequence[int], blocks: Sequence[int], context_len: int) -> Case:
    columns = {"token_ids": ids, "positions": positions, "block_positions": blocks, "context_len": context_len}
    return {name: torch.tensor(column) for name, column in columns.items()}


def visible(case: Case) -> Tensor:
    """[rows, rows], 1 where a row sees a column."""
    mask = torch.ones(len(case["token_ids"]), len(case["token_ids"])).tril()
    mask[:, : int(case["context_len"])] = 1
    return mask


def tokens(seed: int, count: int, first: int, last: int) -> list[int]:
    """Some ordinary tokens, from `first` up to and including `last`."""
    return torch.randint(first, last + 1, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def randomise(
    parameters: Iterable[tuple[str, nn.Parameter]], seed: int, spread: float = 0.2, outputs: float | None = None
) -> None:
    """No usual zeros and ones: biases and norms of which forgetting one shows.

    `outputs` is the spread of the matrices that a layer's two branches end with, where the residual is a large multiple
    of what they are added to (else a tied head would answer each token with itself).
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in parameters:
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name.lower():
            parameter.data = 0.1 * noise + (1 if name.endswith("weight") else 0)
        else:
            last = name.endswith(("attention.dense.weight", "dense_4h_to_h.weight"))
            matrix = outputs if last and outputs is not None else spread
            parameter.data = (0.1 if name.endswith("bias") else matrix) * noise


def quieten(head: nn.Parameter, first: int) -> None:
    """Makes the tokens from `first` on unlikely, as training does: a greedy writing without them is found soon."""
    head.data[first:] *= 0.3


def greedy(
    context: Callable[[int], Sequence[int]],
    lay_out: Callable[[Sequence[int], Sequence[int]], Case],
    logprobs: Callable[[Case], Tensor],
    ordinary: range,
    steps: int = 64,
    distinct: int = 16,
) -> Case:
    """The likeliest token, `steps` times, the whole sequence computed again at each.

    `context(seed)` is part A, `lay_out(context, written)` the rows. Takes the first seed by which no float noise can
    change a choice (the best token leads by more than 1e-3 at every step), all tokens are ordinary (so that neither an
    end nor a token that a server bans is among them) and at least `distinct` different ones come. The answer is the
    case of the last step (`token_ids` lack the last token, which nothing is computed from), and `context`, `tokens`,
    `token_logprobs`, `smallest_lead`.
    """
    for seed in range(3000):
        written: list[int] = []
        chosen, leads = [], []
        for _ in range(steps):
            case = lay_out(context(seed), written)
            (best, second), (token, _) = (column.tolist() for column in logprobs(case)[-1].topk(2))
            if best - second <= 1e-3 or token not in ordinary:
                break
            written.append(token)
            chosen.append(best)
            leads.append(best - second)
        if len(written) == steps and len(set(written)) >= distinct:
            print(f"greedy: seed {seed}, {len(set(written))} different tokens, smallest lead {min(leads):.4f}")
            assert min(leads) > 1e-3
            return case | {
                "context": torch.tensor(list(context(seed))),
                "tokens": torch.tensor(written),
                "token_logprobs": torch.tensor(chosen),
                "smallest_lead": torch.tensor(min(leads)),
            }
    raise RuntimeError("no seed gives a writing that is fit")


def named(prefix: str, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{key}": value.detach().clone().contiguous() for key, value in columns.items()}


def save(script: str, name: str, tensors: Mapping[str, Tensor], **metadata: Any) -> None:
    """Beside `script`; each piece of metadata as JSON. The same tensors give the same bytes."""
    data = safetensors.save(dict(tensors), metadata={key: json.dumps(value) for key, value in metadata.items()})
    size = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))  # safetensors has them in any order
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    assert len(text) <= size - 8
    path = Path(script).with_name(name)
    path.write_bytes(data[:8] + text.ljust(size - 8) + data[size:])
    print(path, path.stat().st_size, "bytes")
    assert path.stat().st_size < LIMIT
