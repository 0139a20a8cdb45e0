"""Every mistake in the input ends with exit code 2 and one line, and harms nothing on disk."""

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.image.conftest import Command, quick
from tests.tiny import sd15

from selfnpo_core.system.locks import FolderLock
from selfnpo_core.training import streaming
from selfnpo_image.models import KNOWN

SETS = quick("steps=1")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def refused(capsys: pytest.CaptureFixture[str], code: int, words: Sequence[str], *, expected: int = 2) -> None:
    stderr = [line for line in capsys.readouterr().err.splitlines() if line.startswith("selfnpo-image: error: ")]
    assert code == expected
    assert len(stderr) == 1
    for word in words:
        assert word in stderr[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train", "--model is missing"),
        ("train --model sd51", "did you mean sd15?"),
        ("train --model MODEL --prompts gone.txt", "does not exist"),
        ("train --model MODEL --config gone.yaml", "cannot read the recipe"),
        ("train --model MODEL --set stepz=1", "did you mean steps?"),
        ("train --model MODEL --set steps=none", "steps is 'none'"),
        ("train --model MODEL --set targets=everything --output OUT", "use one of attention, all"),
        ("train --model MODEL --resume", "give --output RUN"),
        ("train --model MODEL --resume --output OUT", "nothing to resume"),
        ("train --model MODEL --steps 3", "No such option"),
        ("sample --model MODEL --prompt a", "Missing option '--output'"),
        ("sample --prompt a --output OUT", "--model is missing"),
        ("sample --model MODEL --output OUT", "nothing to draw"),
        ("sample --model MODEL --output OUT --prompt a --prompts builtin", "both given"),
        ("sample --model MODEL --output OUT --prompt a --beta 1", "--beta needs --npo"),
        ("sample --model MODEL --output OUT --prompt a --npo gone", "does not exist"),
        ("sample --model MODEL --output OUT --prompt a --device nonsense", "use cpu or cuda"),
        ("compare --model MODEL --output OUT --prompt a", "give the negative weights as --npo"),
        ("inspect gone", "does not exist"),
        ("evaluate OUT", "nothing to measure: give --metrics some of fid"),
    ],
)
def test_mistakes(
    arguments: str, message: str, folder: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"MODEL": str(folder), "OUT": str(tmp_path / "out")}
    code = command(*(places.get(word, word) for word in arguments.split()))
    refused(capsys, code, [message])
    assert not (tmp_path / "out" / "npo").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "no prompts"), (b"\n \n", "no prompts"), (b"a\n\xff\xfe\n", "not UTF-8 (line 2)")],
)
def test_prompts_files(
    content: bytes,
    message: str,
    folder: Path,
    tmp_path: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "p.txt").write_bytes(content)
    code = command("train", "--model", folder, "--prompts", tmp_path / "p.txt", "--output", tmp_path / "out")
    refused(capsys, code, [message])
    assert not (tmp_path / "out").exists()


def test_models_of_other_families_and_pickles(
    folder: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"x")
    refused(capsys, command("train", "--model", tmp_path / "model.ckpt"), ["pickle", ".safetensors"])
    save_file({"double_blocks.0.w": torch.zeros(1)}, tmp_path / "flux.safetensors")
    refused(capsys, command("train", "--model", tmp_path / "flux.safetensors"), ["a FLUX checkpoint", "SD1.5 or SDXL"])


def test_negative_weights_of_another_base_or_without_effect(
    folder: Path, finished_run: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    other = sd15()
    with torch.no_grad():
        for parameter in other.unet.parameters():
            parameter.mul_(1.5)
    other.save_pretrained(tmp_path / "other")
    words = ("--prompt", "a", "--steps", 1, "--output", tmp_path / "out")
    code = command("sample", "--model", tmp_path / "other", "--npo", finished_run, *words)
    refused(capsys, code, ["was made for", str(folder)])
    assert not list((tmp_path / "out").glob("*.png"))
    zeroed = zero(finished_run, tmp_path / "zero")
    refused(capsys, command("sample", "--model", folder, "--npo", zeroed, *words), ["no effect"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--npo-rule third", "rule third needs its weight"),
        ("--npo-rule switch --npo-switch 0", "switch is 0.0"),
        ("--npo-weight 1", "rule two_branch has no weight"),
        ("--npo-rule neon --npo-weight 1 --beta 0.5", "--beta is not of rule neon"),
        ("--npo-rule third --npo-weight 1 --negative-condition prompt", "says itself what is asked"),
        ("--npo-rule neon --npo-weight 1 --beta-knots 1:1", "one strength at all noise levels"),
        ("--beta-knots 1", "such as 0.3:0"),
    ],
)
def test_rules_that_do_not_fit(
    given: str,
    message: str,
    folder: Path,
    finished_run: Path,
    tmp_path: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("--prompt", "a", "--output", tmp_path / "out", *given.split())
    refused(capsys, command("sample", "--model", folder, "--npo", finished_run, *words), [message])
    code = command("sample", "--model", folder, *words)
    refused(capsys, code, ["needs --npo"])
    assert not (tmp_path / "out").exists()


def test_inspect_tells_what_does_nothing(
    folder: Path, finished_run: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("inspect", zero(finished_run, tmp_path / "zero"), "--model", folder) == 1
    assert "it does nothing" in capsys.readouterr().out
    weights = tmp_path / "zero" / "npo" / "pytorch_lora_weights.safetensors"
    save_file({name: tensor * torch.nan for name, tensor in load_file(weights).items()}, weights)
    assert command("inspect", tmp_path / "zero") == 1
    assert "NaN" in capsys.readouterr().out


def zero(run: Path, copy: Path) -> Path:
    shutil.copytree(run, copy)
    weights = copy / "npo" / "pytorch_lora_weights.safetensors"
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(weights).items()}, weights)
    return copy


def test_output_folders_of_others_stay_as_they_are(
    folder: Path,
    finished_run: Path,
    prompts_file: Path,
    tmp_path: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train = ("train", "--model", folder, "--prompts", prompts_file, *SETS, "--output")
    before = snapshot(finished_run)
    refused(capsys, command(*train, finished_run), ["holds another run", "--resume"])
    changed = ("--resume", "--set", "learning_rate=0.1")
    refused(capsys, command(*train[:5], "--output", finished_run, *changed), ["changed recipe: learning_rate"])
    prompts = tmp_path / "other.txt"
    prompts.write_text("another\n")
    other = ("--resume", "--prompts", prompts)
    refused(capsys, command("train", "--output", finished_run, *other), ["changed recipe", "prompts"])
    refused(capsys, command("sample", "--model", folder, "--prompt", "a", "--output", finished_run), ["not empty"])
    assert snapshot(finished_run) == before
    lock = FolderLock(finished_run / ".lock")
    lock.acquire()
    try:
        code = command("train", "--resume", "--output", finished_run, "--set", "steps=3")
        refused(capsys, code, ["in use by another run"])
    finally:
        lock.release()
    assert snapshot(finished_run) == before


def test_a_full_disk_is_a_failed_run(
    folder: Path,
    prompts_file: Path,
    tmp_path: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(streaming, "HashedFile", full)
    code = command("train", "--model", folder, "--prompts", prompts_file, *SETS, "--output", tmp_path / "run")
    refused(capsys, code, ["disk is full", "--resume"], expected=1)
    monkeypatch.undo()
    assert command("train", "--resume", "--output", tmp_path / "run") == 0


def test_models_are_listed(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("models") == 0
    table = capsys.readouterr().out
    for word in ("stable-diffusion-v1-5/stable-diffusion-v1-5", "Lykon/dreamshaper-8", "859.5 M", "epsilon", "—"):
        assert word in table
    assert command("models", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["schema"] == 1
    assert [model["name"] for model in listed["models"]] == list(KNOWN)


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\nfrom selfnpo_image.cli import main\nsys.argv = ['selfnpo-image', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert not {'torch', 'diffusers', 'numpy', 'pydantic'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for name in ("models", "train", "sample", "compare", "evaluate", "inspect", "export", "demo"):
        assert f"  {name} " in result.stdout
