"""The tokenizers of the published GLM families, one kind a file; `model.tokenizer` chooses among them."""
