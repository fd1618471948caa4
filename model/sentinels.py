"""Sentinels: the tokens by which causal models are trained to fill in the middle (arXiv 2207.14255).

Each name has three: before the prefix, before the suffix, and before the middle. Does not import torch.
"""

SENTINELS: dict[str, tuple[str, str, str]] = {
    "qwen": ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    "starcoder": ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    "santacoder": ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    "codellama": ("▁<PRE>", "▁<SUF>", "▁<MID>"),
    "deepseek": ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
}
ROLES = ("fim_prefix", "fim_suffix", "fim_middle")
ROLE_OF = {token: role for tokens in SENTINELS.values() for token, role in zip(tokens, ROLES, strict=True)}
