"""Formulas of docstrings and pages as MathML."""

import importlib.util
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

pytest.importorskip("latex2mathml")
SCRIPT = Path(__file__).parents[2] / "tools" / "documentation" / "formulas.py"


@pytest.fixture(scope="module")
def formulas() -> ModuleType:
    spec = importlib.util.spec_from_file_location("formulas", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_names_have_letters_hats_and_indices(formulas: ModuleType) -> None:
    math = formulas.plain("x_t = alpha_t·x̂0")
    assert "<msub><mi>x</mi><mi>t</mi></msub>" in math
    assert "<msub><mi>α</mi><mi>t</mi></msub>" in math
    assert '<mover accent="true"><mi>x</mi><mo stretchy="false">^</mo></mover><mi>0</mi>' in math


def test_powers_stand_on_names_with_indices(formulas: ModuleType) -> None:
    root = ElementTree.fromstring(formulas.plain("sqrt(sigma_s² − r²·sigma_t²)·eps"))
    (square_root,) = root.iter("msqrt")
    assert ["".join(power.itertext()) for power in square_root.iter("msup")] == ["σs2", "r2", "σt2"]


@pytest.mark.parametrize("text", ["run to the end of the grid", "x = whatever", "FOLDER/files.json", "sqrt(x"])
def test_what_is_no_formula_is_refused(formulas: ModuleType, text: str) -> None:
    with pytest.raises(formulas.NotAFormula):
        formulas.plain(text)


def test_a_block_is_a_table_if_it_has_a_formula(formulas: ModuleType) -> None:
    assert formulas.block("student   is trained       teacher   moving average") is None
    html = formulas.block("neon      θ′ = θ − w·δ             one model (Neon, 2510.03597)\n          and more")
    assert html.count("<tr>") == 2
    assert "<td>neon</td>" in html
    assert "<td></td><td></td><td>and more</td>" in html


def test_a_remark_behind_a_comma_stays_with_its_formula(formulas: ModuleType) -> None:
    html = formulas.block("x_s ~ q(x_s | x_t), s uniform in (t, T]")
    assert html.endswith("</math>, s uniform in (t, T]</td></tr></tbody></table>")


def test_latex_of_a_page(formulas: ModuleType) -> None:
    html = formulas.on_a_page('<p><span class="arithmatex">\\(a &lt; b\\)</span></p>')
    assert "<math" in html
    assert "arithmatex" not in html
