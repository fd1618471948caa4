"""Networks and their files: GLM, its attention, positions, tokenizers and checkpoints. This package knows no server."""
