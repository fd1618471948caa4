"""The sizes of published models by name, for measurements and plans without their files."""

from model.config import GLMConfig

# THUDM/GLM config_tasks/*.sh; vocabularies padded to a multiple of 128 as the released files are. chatglm-6b has
# GLM v1's matrices (a plain feed-forward of four times the width, biases everywhere) and other positions.
PRESETS: dict[str, GLMConfig] = {
    "glm-large": GLMConfig(24, 1024, 16, 30592, 512),
    "glm-roberta-large": GLMConfig(24, 1024, 16, 50304, 512),
    "glm-2b": GLMConfig(36, 2048, 32, 50304, 1024),
    "glm-10b": GLMConfig(48, 4096, 64, 50304, 1024),
    "glm-large-chinese": GLMConfig(24, 1024, 16, 50048, 1024),
    "glm-10b-chinese": GLMConfig(48, 4096, 64, 50048, 1024),
    "chatglm-6b": GLMConfig(28, 4096, 32, 130528, 2048),
}
