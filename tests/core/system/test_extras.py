"""A library that only an extra brings: one line says which."""

import sys

import pytest

from selfnpo_core.errors import InputError
from selfnpo_core.system.extras import need, pyplot


def test_what_is_missing_is_named_with_its_extra(monkeypatch):
    need("train", "torch", "numpy")
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(InputError) as error:
        need("train", "numpy", "torch", "no_such_library")
    assert str(error.value) == "this needs numpy and no_such_library: pip install 'selfnpo-core[train]'"


def test_plots_are_drawn_without_a_screen(tmp_path):
    plt = pyplot()
    assert plt.get_backend().lower() == "agg"
    figure, _ = plt.subplots()
    figure.savefig(tmp_path / "a.png")
    plt.close(figure)
