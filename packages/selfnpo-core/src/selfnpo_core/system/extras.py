"""What only an extra of the package brings: where it is missing, one line says which extra has it."""

from importlib.util import find_spec
from typing import Any

from selfnpo_core.errors import InputError


def need(extra: str, *packages: str) -> None:
    """Raise `InputError` unless these packages of an extra are there."""
    if missing := [name for name in packages if find_spec(name) is None]:
        raise InputError(f"this needs {' and '.join(missing)}: pip install 'selfnpo-core[{extra}]'")


def pyplot() -> Any:
    """Matplotlib's pyplot, which draws into files only."""
    need("report", "matplotlib")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot
