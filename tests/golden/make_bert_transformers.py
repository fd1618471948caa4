"""Makes `bert.safetensors`: what transformers' BertForPreTraining answers.

transformers 5.24 (Apache-2.0, Hugging Face). A 2-layer model with random weights, none of its biases zero and none of
its norms plain, runs in float32 on a CPU with eager attention. The file holds `weights.NAME` as
BertForPreTraining.state_dict() names them (`cls.predictions.decoder.{weight,bias}` equal to the word embeddings and
`cls.predictions.bias`). Metadata `config` is the config.json. Then:

- cases, `CASE.token_ids`, `CASE.token_types`, `CASE.logits` and `CASE.logprobs` [rows, vocab_size] over all positions,
  and `CASE.nsp` [2], log-probabilities that the second part follows (0) and does not (1). Positions are 0, 1, ...;
- `loss.*`: a right-padded batch `token_ids`, `token_types`, `attention_mask`, `labels` (-100: none),
  `next_sentence_labels`; `mlm` and `nsp` are the mean losses, `loss` their sum, as the reference gives it;
- `pll.*`: pseudo-log-likelihood of `token_ids`: `logprobs` of each token but the first and the last with it masked,
  in turn; `sum`;
- `fill.*`: `token_ids` with masks, filled by the likeliest tokens: `parallel` all in one pass, `left_to_right` one a
  pass, `confident` one a pass, the one with the highest log-probability of its likeliest token first. Each is the
  whole sequence; the best token (and for `confident` place) leads by more than 1e-3 each time.

Knows nothing of this repository's code. To rerun, in the repository root (the venv: see make_glm_sat.py, where
transformers was 5.24.0):

    /tmp/sat/bin/python tests/golden/make_bert_transformers.py
"""

from collections.abc import Callable, Sequence

import torch
from making import named, randomise, save, tokens
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig, BertForPreTraining

PAD, _, CLS, SEP, MASK = range(5)
FIRST, LAST = 5, 109
CONFIG = {
    "model_type": "bert",
    "architectures": ["BertForPreTraining"],
    "vocab_size": 110,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 144,
    "max_position_embeddings": 160,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": PAD,
}


def reference() -> BertForPreTraining:
    config = BertConfig(**CONFIG)
    config._attn_implementation = "eager"
    model = BertForPreTraining(config).float().eval()
    randomise(model.named_parameters(), seed=20181011)
    model.tie_weights()
    model.cls.predictions.bias.data[:FIRST] -= 3  # special tokens are unlikely, as after training
    return model


def lay_out(first: Sequence[int], second: Sequence[int] = ()) -> dict[str, Tensor]:
    ids = [CLS, *first, SEP] + ([*second, SEP] if second else [])
    types = [0] * (len(first) + 2) + [1] * (len(ids) - len(first) - 2)
    return {"token_ids": torch.tensor(ids), "token_types": torch.tensor(types)}


CASES = {
    "single": lay_out([40, 7, MASK, 33, 88, MASK, MASK, 12]),
    "pair": lay_out([15, 60, MASK, 104, 9], [71, MASK, 28, 28, 50, 36]),
    "other_pair": lay_out([MASK, 5, 93], [66, 17]),
    "long": lay_out([*tokens(1, 60, FIRST, LAST), MASK], [*tokens(2, 60, FIRST, LAST), MASK, 8]),
}


@torch.inference_mode()
def answers(model: BertForPreTraining, ids: Tensor, types: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [rows, vocab_size], and the log-probabilities of the two relations [2]."""
    out = model(input_ids=ids[None], token_type_ids=types[None])
    return out.prediction_logits[0], torch.log_softmax(out.seq_relationship_logits[0], dim=-1)


@torch.inference_mode()
def losses(model: BertForPreTraining) -> dict[str, Tensor]:
    parts = (CASES["pair"], CASES["single"], CASES["other_pair"])
    longest = max(len(part["token_ids"]) for part in parts)

    def padded(name: str, fill: int) -> Tensor:
        return torch.stack([F.pad(part[name], (0, longest - len(part[name])), value=fill) for part in parts])

    lengths = torch.tensor([len(part["token_ids"]) for part in parts])
    batch = {
        "token_ids": padded("token_ids", PAD),
        "token_types": padded("token_types", 0),
        "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
    }
    answer = torch.tensor(tokens(3, batch["token_ids"].numel(), FIRST, LAST)).view_as(batch["token_ids"])
    chosen = batch["token_ids"] == MASK
    chosen[0, 4] = chosen[1, 2] = True  # a labelled token may also stand there unmasked
    batch |= {"labels": answer.where(chosen, -100), "next_sentence_labels": torch.tensor([0, 0, 1])}
    out = model(
        input_ids=batch["token_ids"],
        token_type_ids=batch["token_types"],
        attention_mask=batch["attention_mask"],
        labels=batch["labels"],
        next_sentence_label=batch["next_sentence_labels"],
    )
    mlm = F.cross_entropy(out.prediction_logits.flatten(0, 1), batch["labels"].flatten())
    nsp = F.cross_entropy(out.seq_relationship_logits, batch["next_sentence_labels"])
    torch.testing.assert_close(mlm + nsp, out.loss)
    print("loss", out.loss.item(), "of which mlm", mlm.item(), "nsp", nsp.item())
    return batch | {"loss": out.loss, "mlm": mlm, "nsp": nsp}


def pseudo_log_likelihood(model: BertForPreTraining) -> dict[str, Tensor]:
    text = lay_out([22, 81, 5, 5, 47, 100, 63])
    ids, found = text["token_ids"], []
    for place in range(1, len(ids) - 1):
        masked = ids.clone()
        masked[place] = MASK
        logits, _ = answers(model, masked, text["token_types"])
        found.append(torch.log_softmax(logits[place], dim=-1)[ids[place]])
    return text | {"logprobs": torch.stack(found), "sum": torch.stack(found).sum()}


def fills(model: BertForPreTraining) -> dict[str, Tensor]:
    text = lay_out([30, MASK, MASK, 76, 14, MASK, 58, MASK, MASK, MASK, 91])

    def leads(values: Tensor) -> bool:
        best, second = values.topk(2).values.tolist()
        return best - second > 1e-3

    def fill(order: Callable[[Tensor, list[int]], list[int]]) -> Tensor:
        ids = text["token_ids"].clone()
        while places := (ids == MASK).nonzero()[:, 0].tolist():
            found = torch.log_softmax(answers(model, ids, text["token_types"])[0], dim=-1)
            for place in order(found, places):
                assert leads(found[place])
                ids[place] = found[place].argmax()
                assert ids[place] >= FIRST
        return ids

    def confident(found: Tensor, places: list[int]) -> list[int]:
        best = found[places].amax(dim=-1)
        assert len(places) == 1 or leads(best)
        return [places[int(best.argmax())]]

    filled = {
        "parallel": fill(lambda found, places: places),
        "left_to_right": fill(lambda found, places: places[:1]),
        "confident": fill(confident),
    }
    for name, ids in filled.items():
        print("fill", name, ids.tolist())
    assert len({tuple(ids.tolist()) for ids in filled.values()}) == 3  # else an order mistaken does not show
    return text | filled


def main() -> None:
    model = reference()
    tensors = named("weights", model.state_dict())
    for name, case in CASES.items():
        logits, relation = answers(model, case["token_ids"], case["token_types"])
        columns = case | {"logits": logits, "logprobs": torch.log_softmax(logits, dim=-1), "nsp": relation}
        tensors |= named(name, columns)
    tensors |= named("loss", losses(model)) | named("pll", pseudo_log_likelihood(model)) | named("fill", fills(model))
    save(__file__, "bert.safetensors", tensors, config=CONFIG)


if __name__ == "__main__":
    main()
