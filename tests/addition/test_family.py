"""A family is added by one file: its folders are recognised, read under their own names, and served by the engine."""

from collections.abc import Callable
from pathlib import Path

from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import ResultDone
from engine.requests import Fill, Mask
from tests.addition.conftest import Run
from tests.addition.toy_checkpoint import as_toy

REQUEST = Fill((("the ", Mask("[MASK]")),), (3,), (3,))
CODE = """
import json, sys
from pathlib import Path
from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import ResultDone
from engine.requests import Fill, Mask
from model.families import FAMILIES
from model.synth import of_preset, write_synthetic

engine = Engine(EngineConfig(sys.argv[1], kv_cache_gb=0.01))
events = engine.run(Fill((("the ", Mask("[MASK]")),), (3,), (3,)))
(result,) = (e.result for e in events if isinstance(e, ResultDone))
made = of_preset("toy-1", layers=None)
write_synthetic(Path(sys.argv[2]), made)
print(json.dumps({
    "families": [family.name for family in FAMILIES],
    "family": engine.card.family,
    "result": str(result),
    "made": sorted(json.loads((Path(sys.argv[2]) / "model.safetensors.index.json").read_text())["weight_map"]),
}))
"""


def test_a_family_is_one_file(
    addition: Callable[[str], Run], tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_checkpoint()
    toy = as_toy(folder, tmp_path / "toy")
    events = Engine(EngineConfig(str(folder), kv_cache_gb=0.01)).run(REQUEST)
    (expected,) = (e.result for e in events if isinstance(e, ResultDone))

    found = addition("families/toy.py")(CODE, str(toy), str(tmp_path / "made"))
    assert "toy" in found["families"]
    assert found["family"] == "toy"
    assert found["result"] == str(expected)  # the same network under other names
    assert "toy_words.weight" in found["made"]
