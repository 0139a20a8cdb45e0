"""`--preference`: tuned models and LoRAs on both branches, and their share of the negative one."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from tests.image.conftest import Command
from tests.image.ldm import single_file
from tests.tiny import sdxl

from selfnpo_core import attach_npo
from selfnpo_core.errors import InputError
from selfnpo_core.weights.npo_folder import load_npo
from selfnpo_core.weights.offsets import offset_of
from selfnpo_image import loading
from selfnpo_image.families import find_base
from selfnpo_image.loading import load_pipeline
from selfnpo_image.sampling import find_preference

WORDS = ("--prompt", "a red fox", "--prompt", "a boat", "--steps", 2, "--device", "cpu", "--guidance-scale", 4)


@pytest.fixture(scope="module")
def tuned(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tune of the tiny model: all weights a little off."""
    pipe, generator = load_pipeline(find_base(str(folder))), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in pipe.unet.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    path = tmp_path_factory.mktemp("tuned") / "model"
    pipe.save_pretrained(path)
    save_file(single_file(pipe), path.parent / "tuned.safetensors")
    return path


def pictures(path: Path) -> list[Any]:
    return [np.asarray(PIL.Image.open(file)).astype(int) for file in sorted(path.glob("*.png"))]


def same(one: list[Any], other: list[Any], within: int = 1) -> bool:
    assert len(one) == len(other) == 2
    return all(abs(a - b).max() <= within for a, b in zip(one, other, strict=True))


def test_whole_models_in_every_form(folder: Path, tuned: Path, tmp_path: Path, command: Command) -> None:
    """A pipeline's folder, a bare UNet's, one under unet/: all draw what the tuned model draws."""
    assert command("sample", "--model", tuned, *WORDS, "--output", tmp_path / "wanted") == 0
    bare = tmp_path / "bare" / "unet"
    load_pipeline(find_base(str(tuned))).unet.save_pretrained(bare)
    for number, place in enumerate((tuned, tuned / "unet", bare.parent)):
        output = tmp_path / str(number)
        assert command("sample", "--model", folder, "--preference", place, *WORDS, "--output", output) == 0
        assert same(pictures(output), pictures(tmp_path / "wanted"), within=0)
    line = json.loads((tmp_path / "0" / "metadata.jsonl").read_text().splitlines()[0])
    assert (line["preference"], line["preference_sha256"]) == (str(tuned), None)


def test_its_share_of_the_negative_branch(
    folder: Path, tuned: Path, finished_run: Path, tmp_path: Path, command: Command
) -> None:
    """α = 1 is the relative's own weights with δ, by --other-base; α = 0 has none of η on the negative branch."""
    npo = ("--npo", finished_run, "--beta", 0.01)
    words = ("sample", "--model", folder, "--preference", tuned, *npo, *WORDS)
    assert command("sample", "--model", tuned, *npo, "--other-base", *WORDS, "--output", tmp_path / "wanted") == 0
    assert command(*words, "--output", tmp_path / "one", "--alpha", 1) == 0
    assert same(pictures(tmp_path / "one"), pictures(tmp_path / "wanted"), within=0)
    assert command(*words, "--output", tmp_path / "none", "--alpha", 0) == 0
    assert not same(pictures(tmp_path / "none"), pictures(tmp_path / "one"))
    base, pipe = load_pipeline(find_base(str(folder))), load_pipeline(find_base(str(tuned)))
    eta = {n: p.detach() - base.unet.get_parameter(n).detach() for n, p in pipe.unet.named_parameters()}
    negative = {n: -tensor for n, tensor in eta.items()}
    for name, tensor in offset_of(load_npo(finished_run)).items():
        negative[name] = negative[name] + 0.01 * tensor
    from selfnpo_core import NegativeDelta

    seeds = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    pipe.set_progress_bar_config(disable=True)
    with NegativeDelta.attach(pipe, negative):
        drawn = pipe(["a red fox", "a boat"], num_inference_steps=2, guidance_scale=4.0, generator=seeds).images
    assert same(pictures(tmp_path / "none"), [np.asarray(picture).astype(int) for picture in drawn])
    for mode in ("swap", "bf16", "int8"):
        assert command(*words, "--output", tmp_path / mode, "--alpha", 0, "--negative-mode", mode) == 0
        assert same(pictures(tmp_path / mode), pictures(tmp_path / "none"), within=6)


def test_a_single_file(folder: Path, tuned: Path, offline: None) -> None:
    """A whole checkpoint in one file, whose configuration is the model's own where sizes agree."""
    base, file = find_base(str(folder)), tuned.parent / "tuned.safetensors"
    pipe = load_pipeline(base)
    with pytest.raises(Exception, match="--model-config"):
        find_preference(str(file), base).apply(pipe, "unet", keep=False)


def test_what_the_hub_has(
    folder: Path, tuned: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole model, a denoiser alone (as Diffusion-DPO's), a LoRA alone (as SPO's)."""
    kinds = {"whole/model": tuned, "unet/only": tmp_path / "only", "lora/only": finished_run / "npo"}
    load_pipeline(find_base(str(tuned))).unet.save_pretrained(kinds["unet/only"] / "unet")

    def files(repo: str, **_: Any) -> list[str]:
        return [str(p.relative_to(kinds[repo])) for p in kinds[repo].rglob("*") if p.is_file() and p.suffix != ".md"]

    monkeypatch.setattr(huggingface_hub, "list_repo_files", files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **_: str(kinds[repo]))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, file, **_: str(kinds[repo] / file))
    monkeypatch.setattr(loading, "hf_hub_download", lambda repo, file, **_: str(kinds[repo] / file))
    monkeypatch.setattr(StableDiffusionPipeline, "download", lambda repo, **_: str(kinds[repo]))
    base = find_base(str(tuned))
    wanted = load_pipeline(base).unet.state_dict()
    for repo in ("whole/model", "unet/only"):
        found = find_preference(repo, base)
        assert found.whole is not None
        assert all(torch.equal(wanted[name], tensor) for name, tensor in found.whole().denoiser.state_dict().items())
    lora = find_preference("lora/only", base).lora
    assert lora is not None
    assert lora.samefile(finished_run / "npo" / "pytorch_lora_weights.safetensors")
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repo, **_: ["README.md"])
    with pytest.raises(InputError, match="neither a model, nor a unet, nor one LoRA"):
        find_preference("some/thing", base)


def test_what_is_refused(
    folder: Path,
    finished_run: Path,
    tuned: Path,
    tmp_path: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(*words: object) -> str:
        assert command("sample", "--model", folder, *WORDS, "--output", tmp_path / "out", *words) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
        assert len(lines) == 1
        return lines[0]

    sdxl().save_pretrained(tmp_path / "xl")
    assert "not of the SD1.5 family" in refused("--preference", tmp_path / "xl")
    assert "of another architecture than the model" in refused("--preference", tmp_path / "xl" / "unet")
    assert "neither a LoRA" in refused("--preference", tmp_path)
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 40)
    assert "not a whole safetensors file" in refused("--preference", tmp_path / "cut.safetensors")
    assert "--alpha is the share of --preference" in refused("--npo", finished_run, "--alpha", 0.5)
    assert "--negative-mode needs --npo" in refused("--negative-mode", "swap")
    assert "--negative-rank is for" in refused("--npo", finished_run, "--negative-rank", 4)
    assert "was made for" in refused("--npo", _other(finished_run, tmp_path), "--preference", tuned)
    pair = {"unet.nonsense.lora_A.weight": torch.zeros(2, 2), "unet.nonsense.lora_B.weight": torch.zeros(2, 2)}
    save_file(pair, tmp_path / "odd.safetensors")
    assert "is no LoRA for this model" in refused("--preference", tmp_path / "odd.safetensors")
    save_file({**load_npo(finished_run).tensors, **pair}, tmp_path / "half.safetensors")
    for option in ("--preference", "--npo"):
        assert "(not 'nonsense')" in refused(option, tmp_path / "half.safetensors")


def _other(run: Path, folder: Path) -> Path:
    """The same weights, said to be of another base."""
    import shutil

    copy = shutil.copytree(run / "npo", folder / "other")
    config = json.loads((copy / "npo_config.json").read_text())
    (copy / "npo_config.json").write_text(json.dumps({**config, "base_hash": "0" * 64, "base_fingerprint": []}))
    return copy


def test_attach_npo_says_how_it_keeps_weights(folder: Path, finished_run: Path, caplog: Any) -> None:
    pipe = load_pipeline(find_base(str(folder)))
    with caplog.at_level("INFO"), attach_npo(pipe, finished_run, mode="lowrank", rank=4):
        assert "negative weights kept as lowrank" in caplog.text
