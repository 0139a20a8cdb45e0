"""Strength and norms against what they must be."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.image.conftest import Command

from selfnpo_core import NULL
from selfnpo_core.errors import InputError
from selfnpo_core.weights import inspection
from selfnpo_core.weights.npo_folder import LORA_FILE, Npo, load_npo
from selfnpo_image.families import find_base
from selfnpo_image.family import IMAGE
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


def test_a_lora_at_half_strength(folder: Path, finished_run: Path, tmp_path: Path) -> None:
    """θ + β·δ is the LoRA whose second factors are β times as large, and the next use is at full strength again."""
    npo = load_npo(finished_run)
    weak = {name: tensor * (0.5 if "lora_B" in name else 1) for name, tensor in npo.tensors.items()}
    save_file(weak, tmp_path / LORA_FILE)
    inputs = torch.randn(2, 4, 16, 16), torch.tensor([500, 500]), torch.tensor([NULL, NULL])
    answers = []
    for some, betas in ((npo, (0.5, 1.0)), (load_npo(tmp_path), (1.0, 2.0))):
        backbone = SD15(find_base(str(folder)), device="cpu")
        with torch.no_grad(), inspection.on_base(some, backbone) as negative:
            plain = backbone.predict(*inputs)
            for beta in betas:
                with negative(beta):
                    answers.append(backbone.predict(*inputs))
            assert torch.equal(backbone.predict(*inputs), plain)
    half, whole, same_half, same_whole = answers
    assert (whole - half).norm() > 1e-3 * half.norm()
    torch.testing.assert_close(half, same_half)
    torch.testing.assert_close(whole, same_whole)


def test_a_run_is_taken_apart_on_its_own_prompts(
    folder: Path, finished_run: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file from elsewhere on the built-in ones."""
    shutil.copy(finished_run / "npo" / LORA_FILE, tmp_path)
    embedded: list[list[str]] = []
    embed = SD15.embed
    monkeypatch.setattr(SD15, "embed", lambda self, prompts: embedded.append(list(prompts)) or embed(self, prompts))
    for path in (finished_run, finished_run / "npo", tmp_path / LORA_FILE):
        assert command("inspect", path, "--model", folder, "--trajectories", 3) == 0
    own = ["a red fox", "ein blauer Würfel", "a small boat"]
    assert embedded[:2] == [own, own]
    assert len(set(embedded[2])) == 3
    assert set(embedded[2]) <= set(IMAGE.prompts("builtin", str(folder)))


def test_strength_alone(folder: Path, finished_run: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("inspect", finished_run, "--model", folder, "--trajectories", 0, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["decomposition"] is None
    strength = inspection.measure_strength(load_npo(finished_run), SD15(find_base(str(folder)), device="cpu"))
    assert facts["strength"]["overall"] == pytest.approx(strength.overall)


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
