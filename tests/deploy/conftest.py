"""Ray, imported once: its own use of pydantic warns while it is."""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", category=DeprecationWarning, message="Using extra keyword arguments on `Field`")
    import ray.serve  # noqa: F401
