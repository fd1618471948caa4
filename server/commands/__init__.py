"""The commands of `glm-infill`, one module each."""
