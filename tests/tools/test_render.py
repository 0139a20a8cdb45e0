"""tools/render.py: every clip once, whole, whoever draws it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from tests.tiny import cogvideox

from selfnpo_core.commands.running import run
from selfnpo_core.errors import InputError
from selfnpo_core.sampling.sample_folder import read_records
from selfnpo_video import rendering, sampling
from selfnpo_video.cogvideox import COGVIDEOX
from selfnpo_video.loading import save_lora
from selfnpo_video.shapes import ClipSize
from selfnpo_video.video_files import read_video

SCRIPT = Path(__file__).parents[2] / "tools" / "render.py"
PROMPTS = ["a red circle moves left", "a blue <square> grows"]
CLIP = ClipSize(frames=9, height=32, width=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    cogvideox().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def lora(folder, tmp_path_factory):
    transformer = cogvideox().transformer
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_v", "to_out.0"]), adapter_name="npo")
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=2.0)
    path = tmp_path_factory.mktemp("lora")
    save_lora(COGVIDEOX, transformer, path, "npo")
    return path / "pytorch_lora_weights.safetensors"


def words(folder: Path, lora: Path, output: Path) -> list[str]:
    prompts = [w for text in PROMPTS for w in ("--prompt", text)]
    size = ["--frames", CLIP.frames, "--height", CLIP.height, "--width", CLIP.width, "--steps", 2]
    given = ["--model", folder, "--npo", lora, *prompts, "--output", output, *size, "--seed", 4, "--scales", "2,6"]
    return [str(word) for word in given]


def job(folder: Path, lora: Path, tmp_path: Path) -> sampling.Job:
    taken: list[sampling.Job] = []
    import click

    from selfnpo_core.commands.options import sampling_options
    from selfnpo_video.family import clip_options

    @click.command()
    @sampling_options
    @clip_options
    @click.option("--scales")
    def take(scales: str, **options: object) -> None:
        taken.append(sampling.plan(options))

    assert run(take, words(folder, lora, tmp_path), name="take") == 0
    return taken[0]


FILES = sorted(
    [f"0000{i}-{4 + i}-g{scale}-{arm}.mp4" for i in range(2) for scale in (2, 6) for arm in ("with", "without")]
    + [f"0000{i}-{4 + i}-grid-2-6.mp4" for i in range(2)]
    + ["index.html", "metadata.jsonl"]
)


def check(output: Path) -> None:
    assert sorted(p.name for p in output.iterdir() if not p.name.startswith(".")) == FILES
    lines = [json.loads(line) for line in (output / "metadata.jsonl").read_text().splitlines()]
    assert sorted(line["file"] for line in lines) == [f for f in FILES if "-g2-" in f or "-g6-" in f]
    assert {line["guidance_scale"] for line in lines} == {2.0, 6.0}
    assert all((line["npo"] is not None) == ("-with." in line["file"]) for line in lines)
    for name in FILES:
        if name.endswith(".mp4"):
            assert len(read_video(output / name)[0]) == CLIP.frames


def test_a_grid_is_rendered_and_the_page_shows_it(folder, lora, tmp_path):
    assert rendering.render(job(folder, lora, tmp_path), [2.0, 6.0], tmp_path / "out") == 8
    check(tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text()
    assert "&lt;square&gt;" in page
    sources = re.findall(r'src="([^"]+)"', page)
    assert sorted(sources) == [f for f in FILES if "-g2-" in f or "-g6-" in f]  # beside it: plays offline
    first, other = (read_video(tmp_path / "out" / f"00000-4-g6-{arm}.mp4")[0] for arm in ("with", "without"))
    assert (first != other).any()


def test_what_is_whole_is_not_rendered_again(folder, lora, tmp_path, monkeypatch):
    wanted, write = job(folder, lora, tmp_path), sampling.write_video
    written = []

    def fail_later(path, frames, **options):
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(path.name)
        return write(path, frames, **options)

    monkeypatch.setattr(sampling, "write_video", fail_later)
    with pytest.raises(OSError, match="No space"):
        rendering.render(wanted, [2.0, 6.0], tmp_path / "out")
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.mp4")}
    assert len(stamps) == 3
    monkeypatch.setattr(sampling, "write_video", write)
    assert rendering.render(wanted, [2.0, 6.0], tmp_path / "out") == 5
    check(tmp_path / "out")
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


def test_processes_share_the_prompts(folder, lora, tmp_path):
    wanted = job(folder, lora, tmp_path)
    assert [rendering.render(wanted, [2.0, 6.0], tmp_path / "out", shard=(rank, 2)) for rank in (0, 1)] == [4, 4]
    check(tmp_path / "out")


def test_another_scale_keeps_the_clips_that_are_there(folder, lora, tmp_path):
    wanted = job(folder, lora, tmp_path)
    assert rendering.render(wanted, [2.0, 3.0], tmp_path / "out") == 8
    assert rendering.render(wanted, [2.0, 3.0, 6.0], tmp_path / "out") == 4


def test_other_settings_need_another_folder(folder, lora, tmp_path):
    wanted = job(folder, lora, tmp_path)
    rendering.render(wanted, [2.0], tmp_path / "out")
    with pytest.raises(InputError, match="choose a new folder"):
        rendering.render(wanted, [3.0], tmp_path / "out")


KILLED = """
import os, signal, sys
from selfnpo_video import rendering, video_files
def write(path, frames, **settings):
    def some():
        for index, frame in enumerate(frames):
            if "-grid-" in path.name and index == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            yield frame
    return video_files.write_video(path, some(), **settings)
rendering.write_video = write
sys.path.insert(0, sys.argv.pop(1))
import render
render.render()
"""


@pytest.mark.slow
def test_a_grid_whose_writing_was_killed_leaves_nothing(folder, lora, tmp_path):
    output = tmp_path / "out"
    killed = [sys.executable, "-c", KILLED, str(SCRIPT.parent), *words(folder, lora, output)]
    assert subprocess.run(killed, capture_output=True).returncode == -signal.SIGKILL
    assert not list(output.glob("*-grid-*"))
    subprocess.run([sys.executable, str(SCRIPT), *words(folder, lora, output)], check=True)
    check(output)
    assert {path.name for path in output.glob(".*")} <= {".lock"}


@pytest.mark.slow
def test_killed_half_way_and_gone_on_with_by_two_processes(folder, lora, tmp_path):
    output = tmp_path / "out"
    command = [sys.executable, str(SCRIPT), *words(folder, lora, output)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while first.poll() is None and len(list(output.glob("*.mp4"))) < 3:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    written = [record["file"] for record in read_records(output / "metadata.jsonl")]
    before = {name: (output / name).stat().st_mtime_ns for name in written if (output / name).exists()}
    assert 2 <= len(before) < 8
    both = [
        subprocess.Popen(command, env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"})
        for rank in (0, 1)
    ]
    assert [process.wait(timeout=600) for process in both] == [0, 0]
    check(output)
    assert {name: (output / name).stat().st_mtime_ns for name in before} == before  # none was rendered twice
    assert {path.name for path in output.glob(".*")} <= {".lock", ".lock-0-of-2", ".lock-1-of-2"}
