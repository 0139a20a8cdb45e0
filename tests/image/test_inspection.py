"""Strength and norms against what they must be."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from selfnpo_core.errors import InputError
from selfnpo_core.weights import inspection
from selfnpo_core.weights.npo_folder import LORA_FILE, Npo, load_npo
from selfnpo_image.families import find_base
from selfnpo_image.loading import load_pipeline
from selfnpo_image.sd15 import SD15


def test_strength_of_an_offset_that_scales_the_output(folder: Path) -> None:
    """conv_out(1 + c)(x) = (1 + c)·ε, so ‖Δε‖/‖ε‖ = |c| at every point."""
    output = load_pipeline(find_base(str(folder))).unet.conv_out
    for c in (0.25, -0.1):
        tensors = {f"conv_out.{name}": c * p.detach() for name, p in output.named_parameters()}
        npo = Npo(path=Path("delta.safetensors"), kind="delta", tensors=tensors, config=None)
        strength = inspection.measure_strength(npo, SD15(find_base(str(folder)), device="cpu"), rows=2, steps=3)
        assert strength.overall == pytest.approx(abs(c), rel=1e-4)
        assert strength.noisiest == pytest.approx(abs(c), rel=1e-4)
        assert strength.cleanest == pytest.approx(abs(c), rel=1e-4)


def test_strength_of_a_lora_grows_with_it(folder: Path, finished_run: Path, tmp_path: Path) -> None:
    npo = load_npo(finished_run)
    weak = {name: tensor * (0.01 if "lora_B" in name else 1) for name, tensor in npo.tensors.items()}
    save_file(weak, tmp_path / LORA_FILE)
    whole, part = (
        inspection.measure_strength(some, SD15(find_base(str(folder)), device="cpu"), rows=2, steps=3).overall
        for some in (npo, load_npo(tmp_path))
    )
    assert 0 < part < 0.5 * whole


def test_strength_on_another_base_is_refused(finished_run: Path, folder: Path, tmp_path: Path) -> None:
    other = load_pipeline(find_base(str(folder)))
    with torch.no_grad():
        for parameter in other.unet.parameters():
            parameter.mul_(1.1)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="was made for"):
        inspection.measure_strength(
            load_npo(finished_run), SD15(find_base(str(tmp_path / "other")), device="cpu"), rows=1, steps=2
        )


@pytest.mark.parametrize(
    ("a", "b"),
    [(".lora_A.weight", ".lora_B.weight"), (".lora_down.weight", ".lora_up.weight")],
)
def test_norm_layers_and_rank_of_a_lora(tmp_path: Path, a: str, b: str) -> None:
    linear = torch.randn(3, 8), torch.randn(5, 3)
    conv = torch.randn(3, 4, 3, 3), torch.randn(6, 3, 1, 1)
    zero = torch.randn(3, 8), torch.zeros(5, 3)
    layers = {"unet.x": linear, "unet.y": conv, "unet.z": zero}
    save_file({f"{n}{end}": t[i] for n, t in layers.items() for i, end in enumerate((a, b))}, tmp_path / LORA_FILE)
    facts = inspection.describe(inspection.inspect_npo(tmp_path))
    products = [second.flatten(1) @ first.flatten(1) for first, second in layers.values()]
    assert facts["norm"] == pytest.approx(float(torch.cat([p.flatten() for p in products]).norm()), rel=1e-5)
    assert (facts["layers"], facts["layers_without_effect"], facts["ranks"]) == (3, 1, [3])
    assert (facts["kind"], facts["base_model"], facts["has_effect"]) == ("LoRA", None, True)
    json.dumps(facts)
