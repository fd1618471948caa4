"""Commands of `glm-infill`, a module each."""
