"""The drawing of the packages: what it counts, and that an arrow that runs upwards is named."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "draw_architecture.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_architecture", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def graph(tool: ModuleType):
    return tool.build_graph()


def test_no_arrow_runs_upwards(tool: ModuleType, graph) -> None:
    for house in tool.houses(graph, tool.read_contracts()):
        assert tool.upward(graph, house) == []


def test_an_arrow_that_runs_upwards_is_named(tool: ModuleType, graph) -> None:
    contracts = tool.read_contracts()
    layers = contracts["selfnpo_core"]
    weights, adapters = layers.index("weights"), layers.index("adapters | training")
    layers[weights], layers[adapters] = layers[adapters], layers[weights]
    wrong = tool.upward(graph, tool.core_house(graph, contracts))
    assert wrong
    assert all(line.split()[2].startswith("selfnpo_core.weights") for line in wrong)


def test_rooms_of_one_floor_are_apart(tool: ModuleType, graph) -> None:
    contracts = tool.read_contracts()
    layers = contracts["selfnpo_core"]
    layers.remove("weights")
    layers[layers.index("adapters | training")] = "adapters | training | weights"
    assert tool.upward(graph, tool.core_house(graph, contracts))


def test_the_drawing_has_every_room_and_line_of_code(tool: ModuleType, graph) -> None:
    house = tool.core_house(graph, tool.read_contracts())
    drawn = tool.grounded(graph, house)
    svg = ElementTree.fromstring(tool.draw(drawn))
    texts = {element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")}
    assert {"commands", "training", tool.GROUND, "selfnpo_image"} <= texts
    packages = SCRIPT.parents[1] / "packages"
    files = [*packages.glob("*/src/*/**/*.py")]
    roof = packages / "selfnpo-core" / "src" / "selfnpo_core" / "__init__.py"  # above all floors
    lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files if file != roof)
    assert sum(room.lines for room in drawn.rooms) == lines
