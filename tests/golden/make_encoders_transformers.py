"""Makes `roberta.safetensors`, `distilbert.safetensors`, `esm2.safetensors`, `modernbert.safetensors`: what
transformers' masked language models answer.

transformers 5.24 (Apache-2.0, Hugging Face). Models of a few layers with random weights, none of their biases zero and
none of their norms plain, run in float32 on a CPU with eager attention. Each file holds `weights.NAME` as the class's
state_dict() names them, rounded to float16 before anything is computed. Metadata `config` is the config.json, `special`
the ids of cls, sep and mask. Then:

- cases, `CASE.token_ids`, `CASE.token_types` (zeros) and `CASE.logprobs` [rows, vocab_size] over all positions;
- `pll.*`: pseudo-log-likelihood of `token_ids`: `logprobs` of each token but the first and the last with it masked,
  in turn; `sum`;
- `fill.*`: `token_ids` with masks, filled by the likeliest tokens: `parallel` all in one pass, `left_to_right` one a
  pass, `confident` one a pass, the one with the highest log-probability of its likeliest token first. Each is the
  whole sequence; the best token (and for `confident` place) leads by more than 1e-3 each time.

Knows nothing of this repository's code. To rerun, in the repository root (the venv: see make_glm_sat.py, where
transformers was 5.24.0):

    /tmp/sat/bin/python tests/golden/make_encoders_transformers.py
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from making import named, randomise, save, tokens
from torch import Tensor
from transformers import (
    DistilBertConfig,
    DistilBertForMaskedLM,
    EsmConfig,
    EsmForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)


@dataclass(frozen=True)
class Model:
    """A class, its configuration, the ids of cls, sep and mask, and its first and last ordinary token."""

    model: Any
    config_class: Any
    config: dict[str, Any]
    special: tuple[int, int, int]
    ordinary: tuple[int, int]
    seed: int


MODELS = {
    "roberta": Model(
        RobertaForMaskedLM,
        RobertaConfig,
        {
            "model_type": "roberta",
            "architectures": ["RobertaForMaskedLM"],
            "vocab_size": 72,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "max_position_embeddings": 66,
            "type_vocab_size": 1,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
            "pad_token_id": 1,
        },
        (0, 2, 71),
        (4, 70),
        20190726,
    ),
    "distilbert": Model(
        DistilBertForMaskedLM,
        DistilBertConfig,
        {
            "model_type": "distilbert",
            "architectures": ["DistilBertForMaskedLM"],
            "vocab_size": 72,
            "dim": 32,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 48,
            "max_position_embeddings": 64,
            "activation": "gelu",
            "pad_token_id": 0,
        },
        (2, 3, 4),
        (5, 71),
        20191002,
    ),
    "esm2": Model(
        EsmForMaskedLM,
        EsmConfig,
        {
            "model_type": "esm",
            "architectures": ["EsmForMaskedLM"],
            "vocab_size": 33,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "max_position_embeddings": 1026,
            "position_embedding_type": "rotary",
            "layer_norm_eps": 1e-5,
            "pad_token_id": 1,
            "mask_token_id": 32,
            "token_dropout": True,
            "emb_layer_norm_before": False,
        },
        (0, 2, 32),
        (4, 30),
        20220720,
    ),
    "modernbert": Model(
        ModernBertForMaskedLM,
        ModernBertConfig,
        {
            "model_type": "modernbert",
            "architectures": ["ModernBertForMaskedLM"],
            "vocab_size": 72,
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "max_position_embeddings": 64,
            "norm_eps": 1e-5,
            "pad_token_id": 0,
            "cls_token_id": 2,
            "sep_token_id": 3,
            "bos_token_id": 2,
            "eos_token_id": 3,
            "local_attention": 8,
            "global_attn_every_n_layers": 3,
            "global_rope_theta": 160000.0,
            "local_rope_theta": 10000.0,
        },
        (2, 3, 4),
        (5, 71),
        20241218,
    ),
}


def reference(own: Model) -> Any:
    config = own.config_class(**{key: value for key, value in own.config.items() if key != "model_type"})
    config._attn_implementation = "eager"
    model = own.model(config).float().eval()
    randomise(model.named_parameters(), seed=own.seed)
    for parameter in model.parameters():  # the buffers stay: rotary frequencies
        parameter.data = parameter.data.half().float()
    model.tie_weights()
    return model


class Reference:
    def __init__(self, own: Model) -> None:
        self.model = reference(own)
        (self.cls, self.sep, self.mask), (self.first, self.last) = own.special, own.ordinary

    def lay_out(self, text: Sequence[int | None]) -> dict[str, Tensor]:
        """None is a mask; other numbers count from the first ordinary token."""
        count = self.last - self.first + 1
        ids = [self.mask if i is None else self.first + i % count for i in text]
        whole = torch.tensor([self.cls, *ids, self.sep])
        return {"token_ids": whole, "token_types": torch.zeros_like(whole)}

    def cases(self) -> dict[str, dict[str, Tensor]]:
        long = tokens(1, 50, 0, self.last - self.first)
        return {
            "single": self.lay_out([40, 7, None, 33, 88, None, None, 12]),
            "short": self.lay_out([None, 5]),
            "unmasked": self.lay_out([9, 21, 3, 3, 60, 14]),
            "long": self.lay_out([*long[:20], None, *long[20:], None]),
        }

    @torch.inference_mode()
    def logprobs(self, ids: Tensor) -> Tensor:
        """[rows, vocab_size]."""
        logits = self.model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits[0]
        return torch.log_softmax(logits, dim=-1)

    def pseudo_log_likelihood(self) -> dict[str, Tensor]:
        text = self.lay_out([22, 81, 5, 5, 47, 100, 63])
        ids, found = text["token_ids"], []
        for place in range(1, len(ids) - 1):
            masked = ids.clone()
            masked[place] = self.mask
            found.append(self.logprobs(masked)[place, ids[place]])
        return text | {"logprobs": torch.stack(found), "sum": torch.stack(found).sum()}

    def fills(self, seed: int) -> dict[str, Tensor] | None:
        draw = tokens(seed, 11, 0, self.last - self.first)
        text = self.lay_out([None if place in (1, 2, 5, 7, 8, 9) else token for place, token in enumerate(draw)])

        def leads(values: Tensor) -> bool:
            best, second = values.topk(2).values.tolist()
            return best - second > 1e-3

        def fill(order: Callable[[Tensor, list[int]], list[int]]) -> Tensor | None:
            ids = text["token_ids"].clone()
            while places := (ids == self.mask).nonzero()[:, 0].tolist():
                found = self.logprobs(ids)
                chosen = order(found, places)
                if not chosen:
                    return None
                for place in chosen:
                    ids[place] = found[place].argmax()
                    if not leads(found[place]) or not self.first <= ids[place] <= self.last:
                        return None
            return ids

        def confident(found: Tensor, places: list[int]) -> list[int]:
            best = found[places].amax(dim=-1)
            return [places[int(best.argmax())]] if len(places) == 1 or leads(best) else []

        filled = {
            "parallel": fill(lambda found, places: places),
            "left_to_right": fill(lambda found, places: places[:1]),
            "confident": fill(confident),
        }
        whole = {name: ids for name, ids in filled.items() if ids is not None}
        # Else an order mistaken does not show.
        return text | whole if len({tuple(ids.tolist()) for ids in whole.values()}) == 3 else None


def main() -> None:
    for name, own in MODELS.items():
        found = Reference(own)
        kept = {key: value for key, value in found.model.state_dict().items() if "inv_freq" not in key}
        tensors = {key: value.half() for key, value in named("weights", kept).items()}
        for case, columns in found.cases().items():
            tensors |= named(case, columns | {"logprobs": found.logprobs(columns["token_ids"])})
        tensors |= named("pll", found.pseudo_log_likelihood())
        fills = next(filled for seed in range(5000) if (filled := found.fills(seed)) is not None)
        tensors |= named("fill", fills)
        special = dict(zip(("cls", "sep", "mask"), own.special, strict=True))
        save(__file__, f"{name}.safetensors", tensors, config=own.config, special=special)


if __name__ == "__main__":
    main()
