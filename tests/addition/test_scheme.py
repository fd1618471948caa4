"""A scheme is added by one file: it is listed, planned, loaded, converted to, and served by the engine."""

from collections.abc import Callable
from pathlib import Path

from tests.addition.conftest import Run

CODE = """
import json, sys
from pathlib import Path
from engine.planning.cards import devices, read_cards
from engine.config import EngineConfig
from engine.planning.deployment import Deployment
from engine.engine import Engine
from engine.events import ResultDone
from engine.planning.plan import plan
from engine.requests import Fill, Mask
from model.checkpoint import Description, load
from model.convert import Conversion, Recipe
from model.storage import Storage
from quant.registry import head_names, scheme_class, scheme_names, smaller_schemes


folder, target = map(Path, sys.argv[1:])
half = Storage("half", head="half")
Conversion(folder, target, Recipe(half)).run()
assert str(load(target).quant) == "half"


def filled(config):
    engine = Engine(config)
    events = engine.run(Fill((("the ", Mask("[MASK]")),), (3,), (3,)))
    (result,) = (e.result for e in events if isinstance(e, ResultDone))
    return engine.card.quant, str(result)


options = {"quant": "half", "quant_head": "half", "kv_cache_gb": 0.01}
planned = plan(Deployment(Description.read(folder).architecture, half, devices("1xCPU", read_cards(None))))
print(json.dumps({
    "names": [*scheme_names()],
    "heads": [*head_names()],
    "smaller": [*smaller_schemes("none")],
    "kernels": scheme_class("half").kernels(),
    "quantized while it is read": filled(EngineConfig(str(folder), **options)),
    "stored": filled(EngineConfig(str(target), kv_cache_gb=0.01)),
    "dummy": filled(EngineConfig(str(folder), load_format="dummy", **options))[0],
    "fits": planned.fits,
}))
"""


def test_a_scheme_is_one_file(
    addition: Callable[[str], Run], tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    found = addition("schemes/half.py")(CODE, str(tiny_checkpoint()), str(tmp_path / "halves"))
    assert "half" in found["names"]
    assert "half" in found["heads"]
    assert found["smaller"] == ["half", "int8", "int4"]
    assert found["kernels"] == "torch linear over float32 copies"
    assert found["quantized while it is read"] == found["stored"]
    assert found["stored"][0] == found["dummy"] == "half"
    assert found["fits"]
