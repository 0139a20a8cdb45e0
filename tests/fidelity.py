"""torch-fidelity in tests, out of the wheel that `make setup` fetches.

It is not installed: it asks for torchvision, whose build has to fit torch's, and torchmetrics would import it too.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock, patch

import pytest


@contextmanager
def on_path() -> Iterator[None]:
    """torch_fidelity can be found, as if it were installed."""
    wheel = next((Path(sys.prefix) / "wheels").glob("torch_fidelity-*.whl"), None)
    if wheel is None:
        pytest.skip("no wheel of torch-fidelity: make setup")
    with patch.object(sys, "path", [str(wheel), *sys.path]):
        yield


@contextmanager
def formulas() -> Iterator[Callable[[str], ModuleType]]:
    """Its modules of formulas by name; torchvision, which they import, is not needed for those."""
    parts = ("", ".datasets", ".transforms", ".transforms.functional", ".models")
    with on_path(), patch.dict(sys.modules, {f"torchvision{part}": MagicMock() for part in parts}):
        yield lambda name: importlib.import_module(f"torch_fidelity.{name}")
