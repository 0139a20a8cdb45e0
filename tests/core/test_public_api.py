"""What `import selfnpo_core` gives, and what it does not drag in."""

import subprocess
import sys

import pytest

import selfnpo_core

HEAVY = ("diffusers", "transformers", "peft", "accelerate", "pydantic", "click", "PIL")


def test_the_mathematics_needs_torch_only() -> None:
    code = (
        "import sys, selfnpo_core, selfnpo_core.testing\n"
        "assert selfnpo_core.NoiseSchedule and 'torch' in sys.modules\n"
        f"print(*[name for name in {HEAVY} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_names_of_the_public_interface_exist() -> None:
    for name in selfnpo_core.__all__:
        assert getattr(selfnpo_core, name) is not None
    assert set(dir(selfnpo_core)) == set(selfnpo_core.__all__)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        selfnpo_core.Nonsense  # noqa: B018
