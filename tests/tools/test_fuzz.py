"""Files as they are after accidents, through the command lines: exit 0 or 2, one line, nothing lost.

`SELFNPO_FUZZ=1200 pytest tests/tools/test_fuzz.py` tries so many mutations in place of 64; SUBJECT:NUMBER tries one.
SELFNPO_FUZZ_FROM=5000 begins with the mutation of that number, a seed, so that another run tries others.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from tests.image.ldm import single_file
from tests.tiny import cogvideox, sd15

from selfnpo_core.commands.running import run
from selfnpo_image.cli import selfnpo_image
from selfnpo_image.prompts import load_prompts
from selfnpo_video.cli import selfnpo_video
from selfnpo_video.video_files import write_video

ASKED = os.environ.get("SELFNPO_FUZZ", "64")
FIRST = int(os.environ.get("SELFNPO_FUZZ_FROM", "0"))
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    3,
    2.5,
    float("nan"),
    "",
    "x",
    "ü↓",
    [],
    [2, 2],
    ["x"],
    {},
    {"x": 1},
    [[1]],
)
DRY = ("--dry-run", "--set", "device=cpu")
DRAW = ("--prompt", "ein Bär", "--steps", "1", "--height", "16", "--width", "16", "--device", "cpu")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Files that go wrong, and the command that is given them.

    make: fills a folder. files: patterns of those that are mutated. words: of a folder, the command line after the
    program's name. codes: that it may end with; whole: that it ends with before they go wrong.
    """

    program: str
    make: Callable[[Path], None]
    files: tuple[str, ...]
    words: Callable[[Path], list[str]]
    codes: tuple[int, ...] = (0, 2)
    whole: int = 0


def image_model(folder: Path) -> None:
    sd15().save_pretrained(folder / "model")


def video_model(folder: Path) -> None:
    cogvideox().save_pretrained(folder / "model")


def from_image(folder: Path) -> None:
    """An image-to-video model, and first frames of every format that people have."""
    cogvideox("5b-i2v").save_pretrained(folder / "model")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    for ending in ("png", "jpg", "webp", "gif", "bmp", "tiff"):
        picture.save(folder / f"a.{ending}")
    marked = Image.Exif()
    marked[0x0112] = 6
    picture.save(folder / "a.jpeg", exif=marked)
    picture.convert("RGBA").save(folder / "a.PNG")
    picture.quantize(8).save(folder / "a.apng", format="png", save_all=True, append_images=[picture.quantize(8)])


def checkpoint(folder: Path) -> None:
    """A model in one file, beside a folder of its configurations."""
    pipe = sd15()
    pipe.save_pretrained(folder / "model")
    marks = {"format": "pt", "modelspec.prediction_type": "epsilon", "modelspec.architecture": "stable-diffusion-v1"}
    save_file(single_file(pipe), folder / "one.safetensors", metadata=marks)


def video_recipe(folder: Path) -> None:
    video_model(folder)
    values = {"steps": 4, "rank": 4, "frames": 9, "height": 16, "width": 16, "attention": "sdpa", "trackers": []}
    values |= {"rollout": "pool", "pool_size": 8, "batch_size": 2, "grid_steps": 4, "grad_accumulation": 1}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))


def recipe(folder: Path) -> None:
    image_model(folder)
    values = {
        "steps": 4,
        "learning_rate": 1e-3,
        "rank": 4,
        "targets": "attention",
        "batch_size": 2,
        "ema_decay": 0.9,
        "sample_prompts": ["a fox"],
        "trackers": [],
        "recommended": {"beta": 1.0, "alpha": 1.0, "guidance_scale": [3.0, 8.0]},
        "height": 32,
        "gradient_checkpointing": False,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))


def video_prompts(folder: Path) -> None:
    video_model(folder)
    prompt_files(folder)


def prompts(folder: Path) -> None:
    image_model(folder)
    prompt_files(folder)


def prompt_files(folder: Path) -> None:
    rows = [{"prompt": "a red fox, „quoted“", "image": "1.png"}, {"prompt": "ein Bär", "image": None}]
    (folder / "a.txt").write_text("a red fox\nein Bär\n", encoding="utf-8")
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "a.json").write_text(json.dumps({"prompts": rows}, indent=1))
    (folder / "a.csv").write_text('id,prompt\n1,"a red, round fox"\n2,ein Bär\n', encoding="utf-8")
    (folder / "a.tsv").write_text("id\tprompt\n1\ta fox\n", encoding="utf-16")


IN_UNET = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1"


def lora(folder: Path, width: int = 8, at: str = IN_UNET, family: str = "sd15") -> None:
    generator, part = torch.Generator().manual_seed(0), at.partition(".")[0]
    tensors = {}
    for layer in ("to_q", "to_v"):
        tensors[f"{at}.{layer}.lora_A.weight"] = torch.randn(2, width, generator=generator)
        tensors[f"{at}.{layer}.lora_B.weight"] = torch.randn(width, 2, generator=generator)
    adapter = json.dumps({f"{part}.r": 2, f"{part}.lora_alpha": 4, f"{part}.target_modules": ["to_q", "to_v"]})
    (folder / "npo").mkdir()
    file = folder / "npo" / "pytorch_lora_weights.safetensors"
    save_file(tensors, file, metadata={"format": "pt", "lora_adapter_metadata": adapter})
    about = {"schema": 1, "family": family, "base_model": family, "base_hash": "0" * 64, "base_fingerprint": [0.1] * 4}
    about |= {"train": "lora", "rank": 2, "recipe": {"steps": 4}, "recommended": {"beta": 1.0}, "versions": {"x": "1"}}
    (folder / "npo" / "npo_config.json").write_text(json.dumps(about))


def kohya(folder: Path) -> None:
    """A LoRA as kohya's scripts write it, and one as old diffusers did."""
    image_model(folder)
    numbers = torch.Generator().manual_seed(0)
    at = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_"
    old = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_"
    for ending, tensors in {
        "kohya": {f"lora_unet_{at}q.alpha": torch.tensor(2.0)},
        "old": {f"{old}q_lora.down.weight": torch.randn(2, 32), f"{old}q_lora.up.weight": torch.randn(32, 2)},
    }.items():
        for layer in ("q", "v") if ending == "kohya" else ():
            tensors[f"lora_unet_{at}{layer}.lora_down.weight"] = torch.randn(2, 32, generator=numbers)
            tensors[f"lora_unet_{at}{layer}.lora_up.weight"] = torch.randn(32, 2, generator=numbers)
        save_file(tensors, folder / f"a.{ending}.safetensors", metadata={"ss_network_module": "networks.lora"})


def fitting(folder: Path) -> None:
    """A model, and negative weights as a run writes them that fit it."""
    image_model(folder)
    lora(folder, width=32)


def video_lora(folder: Path) -> None:
    video_model(folder)
    lora(folder, width=64, at="transformer.transformer_blocks.0.attn1", family="cogvideox")


def pictures(folder: Path) -> None:
    numbers = np.random.default_rng(0)
    (folder / "samples").mkdir()
    lines = []
    for index, prompt in enumerate(load_prompts("builtin", "demo")[:4]):
        name = f"0000{index}-{index}.{('png', 'jpg', 'webp', 'TIFF')[index]}"
        Image.fromarray(numbers.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / "samples" / name)
        lines.append(json.dumps({"file": name, "prompt": prompt, "seed": index, "steps": 4}) + "\n")
    (folder / "samples" / "metadata.jsonl").write_text("".join(lines))


def clips(folder: Path) -> None:
    numbers = np.random.default_rng(0)
    (folder / "samples").mkdir()
    lines = []
    for index, ending in enumerate(("mp4", "webp", "gif", "frames")):
        name = f"0000{index}-{index}.{ending}"
        frames = numbers.integers(0, 256, (5, 32, 32, 3), np.uint8)
        write_video(folder / "samples" / name, frames=frames, fps=8, format=ending)
        lines.append(json.dumps({"file": name, "prompt": f"clip {index}", "seed": index, "fps": 8}) + "\n")
    (folder / "samples" / "metadata.jsonl").write_text("".join(lines))


def train(folder: Path, *words: str) -> list[str]:
    return ["train", "--model", str(folder / "model"), *words, *DRY]


def evaluate(metric: str) -> Callable[[Path], list[str]]:
    def words(folder: Path) -> list[str]:
        return ["evaluate", str(folder / "samples"), "--metrics", metric, "--json", str(folder / "figures.json")]

    return words


def sample(folder: Path, *words: str) -> list[str]:
    return ["sample", "--model", str(folder / "model"), *words, *DRAW, "--output", str(folder / "out")]


def only(folder: Path, pattern: str = "a.*") -> str:
    return str(next(folder.glob(pattern)))


def both_arms(folder: Path) -> None:
    """Samples and another arm of the same."""
    clips(folder)
    shutil.copytree(folder / "samples", folder / "others")


def run_folder(folder: Path) -> None:
    """What training leaves."""
    image_model(folder)
    (folder / "prompts.txt").write_text("a red fox\nein Bär\n", encoding="utf-8")
    settings = ("steps=2", "batch_size=1", "pool_size=2", "grid_steps=2", "trackers=[]", "device=cpu", "sample_every=1")
    settings = (*settings, "checkpoint_every=1", "sample_prompts=[a fox]", "learning_rate=0.1", "max_drift=100")
    words = [word for setting in settings for word in ("--set", setting)]
    words = ["train", "--model", str(folder / "model"), "--prompts", str(folder / "prompts.txt"), *words]
    words += ["--config", "paper", "--output", str(folder / "run")]
    assert run(selfnpo_image, words, name="selfnpo-image") == 0


MAY_FAIL = (0, 1, 2)
"""Codes of drawing: weights that give NaN are seen by what comes out, and that is a run that failed."""
CONFIGS = ("model/*.json", "model/*/*config.json")
WEIGHTS = ("model/*/*.safetensors", "model/*/tokenizer.json", "model/*.json")
SUBJECTS = {
    "image-model": Subject(program="selfnpo-image", make=image_model, files=CONFIGS, words=train),
    "video-model": Subject(program="selfnpo-video", make=video_model, files=CONFIGS, words=train),
    "image-weights": Subject(program="selfnpo-image", make=image_model, files=WEIGHTS, words=sample, codes=MAY_FAIL),
    "video-weights": Subject(
        program="selfnpo-video",
        make=video_model,
        files=WEIGHTS,
        words=lambda folder: sample(folder, "--frames", "9"),
        codes=MAY_FAIL,
    ),
    "checkpoint": Subject(
        program="selfnpo-image",
        make=checkpoint,
        files=("one.safetensors",),
        words=lambda folder: [
            *("train", "--model", str(folder / "one.safetensors"), "--model-config", str(folder / "model"), *DRY)
        ],
    ),
    "checkpoint-drawn": Subject(
        program="selfnpo-image",
        make=checkpoint,
        files=("one.safetensors", "model/*/*config.json"),
        words=lambda folder: [
            *("sample", "--model", str(folder / "one.safetensors"), "--model-config", str(folder / "model")),
            *(*DRAW, "--output", str(folder / "out")),
        ],
        codes=MAY_FAIL,
    ),
    "checkpoint-inspected": Subject(
        program="selfnpo-image",
        make=checkpoint,
        files=("one.safetensors",),
        words=lambda folder: ["inspect", str(folder / "one.safetensors")],
        codes=(0, 1, 2),  # 1: it does nothing
        whole=2,  # it is no LoRA
    ),
    "video-recipe": Subject(
        program="selfnpo-video",
        make=video_recipe,
        files=("recipe.yaml",),
        words=lambda folder: train(folder, "--config", str(folder / "recipe.yaml")),
    ),
    "video-prompts": Subject(
        program="selfnpo-video",
        make=video_prompts,
        files=("a.*",),
        words=lambda folder: train(folder, "--prompts", only(folder)),
    ),
    "first-frame": Subject(
        program="selfnpo-video",
        make=from_image,
        files=("a.*",),
        words=lambda folder: [
            *sample(folder, "--frames", "9", "--image", only(folder)),
            *("--height", "64", "--width", "64"),  # the only ones that it knows
        ],
        codes=MAY_FAIL,
    ),
    "npo": Subject(
        program="selfnpo-image",
        make=fitting,
        files=("npo/*",),
        words=lambda folder: sample(folder, "--npo", str(folder / "npo"), "--other-base"),
        codes=MAY_FAIL,
    ),
    "npo-compared": Subject(
        program="selfnpo-video",
        make=video_lora,
        files=("npo/*",),
        words=lambda folder: [
            *("compare", "--model", str(folder / "model"), "--npo", str(folder / "npo"), "--other-base", *DRAW),
            *("--frames", "9", "--output", str(folder / "out")),
        ],
        codes=MAY_FAIL,
    ),
    "npo-exported": Subject(
        program="selfnpo-image",
        make=lora,
        files=("npo/*",),
        words=lambda folder: [
            *("export", "--npo", str(folder / "npo"), "--format", "diffusers", "--output", str(folder / "out"))
        ],
    ),
    "preference": Subject(
        program="selfnpo-image",
        make=kohya,
        files=("a.*",),
        words=lambda folder: sample(folder, "--preference", only(folder)),
        codes=MAY_FAIL,
    ),
    "run": Subject(
        program="selfnpo-image",
        make=run_folder,
        files=("run/*.*", "run/npo/*.json", "run/samples/*"),
        words=lambda folder: ["report", str(folder / "run"), "--output", str(folder / "page.html")],
    ),
    "run-resumed": Subject(
        program="selfnpo-image",
        make=run_folder,
        files=("run/*.*", "run/checkpoints/*/*"),
        words=lambda folder: ["train", "--output", str(folder / "run"), "--resume", *DRY],
    ),
    "arms": Subject(
        program="selfnpo-video",
        make=both_arms,
        files=("samples/*.*", "samples/*/*"),
        words=lambda folder: [
            *("report", str(folder / "samples"), "--against", str(folder / "others")),
            *("--output", str(folder / "page.html")),
        ],
    ),
    "recipe": Subject(
        program="selfnpo-image",
        make=recipe,
        files=("recipe.yaml",),
        words=lambda folder: train(folder, "--config", str(folder / "recipe.yaml")),
    ),
    "prompts": Subject(
        program="selfnpo-image",
        make=prompts,
        files=("a.*",),
        words=lambda folder: train(folder, "--prompts", only(folder)),
    ),
    "lora": Subject(
        program="selfnpo-image",
        make=lora,
        files=("npo/*.safetensors", "npo/*.json"),
        words=lambda folder: ["inspect", str(folder / "npo"), "--json"],
        codes=(0, 1, 2),  # 1: it does nothing
    ),
    "pictures": Subject(program="selfnpo-image", make=pictures, files=("samples/*",), words=evaluate("oracle")),
    "clips": Subject(
        program="selfnpo-video", make=clips, files=("samples/*.*", "samples/*/*"), words=evaluate("motion")
    ),
}


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where there is something in a tree of objects and lists."""
    for key, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*at, key)
        yield from places(each, (*at, key))


def changed(value: Any, chance: Random) -> Any:
    """A tree with one thing dropped, renamed, retyped, doubled, or nested."""
    found = list(places(value))
    if not found:
        return chance.choice(VALUES)
    *above, key = chance.choice(found)
    holder = value
    for step in above:
        holder = holder[step]
    how = chance.choice(("drop", "rename", "retype", "retype", "nest", "double"))
    if how == "drop":
        del holder[key]
    elif how == "rename" and isinstance(holder, dict):
        holder[f"{key}_x" if chance.random() < 0.5 else str(key)[1:]] = holder.pop(key)
    elif how == "nest":
        holder[key] = chance.choice(([holder[key]], {"x": holder[key]}, {key: holder[key]}))
    elif how == "double" and isinstance(holder[key], list | str):
        holder[key] = holder[key] + holder[key]
    else:
        holder[key] = chance.choice(VALUES)
    return value


def spoilt(data: bytes, chance: Random) -> bytes:
    """Bytes cut, flipped, zeroed, filled, or in another encoding."""
    how = chance.choice(("cut", "cut", "flip", "flip", "zero", "fill", "mark", "utf-16", "empty"))
    place = chance.randrange(len(data) + 1)
    if how == "cut":
        return data[:place]
    if how == "flip":
        spoiled = bytearray(data)
        for _ in range(chance.choice((1, 1, 8))):
            spoiled[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        return bytes(spoiled)
    if how in ("zero", "fill"):
        some = bytes(16) if how == "zero" else chance.randbytes(16)
        return data[:place] + some + data[place + 16 :]
    if how == "mark":
        return b"\xef\xbb\xbf" + data
    return data.decode("latin-1").encode("utf-16") if how == "utf-16" else b""


def reheaded(data: bytes, chance: Random) -> bytes:
    """A safetensors file with another header before the same numbers."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(changed(json.loads(data[8 : 8 + size]), chance)).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def mutate(file: Path, chance: Random) -> None:
    data = file.read_bytes()
    if chance.random() < 0.35:
        file.write_bytes(spoilt(data, chance))
    elif file.suffix == ".safetensors":
        file.write_bytes(reheaded(data, chance))
    elif file.suffix == ".json":
        file.write_text(json.dumps(changed(json.loads(data), chance)))
    elif file.suffix == ".yaml":
        file.write_text(yaml.safe_dump(changed(yaml.safe_load(data), chance)))
    elif file.suffix == ".jsonl":
        rows = [json.loads(line) for line in data.decode().splitlines()]
        made = changed(rows, chance)
        file.write_text("".join(json.dumps(row) + "\n" for row in (made if isinstance(made, list) else [made])))
    else:
        file.write_bytes(spoilt(data, chance))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def prepared(subject: Subject, whole: Path, folder: Path, chance: Random) -> None:
    """A copy of the subject with one or two mutations in one file; of several prompts files that one only."""
    shutil.copytree(whole, folder, copy_function=os.link)
    found = [path for pattern in subject.files for path in folder.glob(pattern) if path.is_file()]
    file = chance.choice(sorted(found))
    data = file.read_bytes()
    file.unlink()  # it is linked
    file.write_bytes(data)
    for other in folder.glob("a.*"):
        if other != file:
            other.unlink()
    for _ in range(chance.choice((1, 1, 2))):
        try:
            mutate(file, chance)
        except (ValueError, yaml.YAMLError):  # the first mutation has left nothing to change
            break


def fault(subject: Subject, folder: Path, capsys: pytest.CaptureFixture[str]) -> str | None:
    """What the command does that it may not."""
    before = contents(folder)
    program = selfnpo_image if subject.program == "selfnpo-image" else selfnpo_video
    try:
        code = run(program, subject.words(folder), name=subject.program)
    except BaseException as error:
        capsys.readouterr()
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    told = capsys.readouterr().err
    errors = [line for line in told.splitlines() if line.startswith(f"{subject.program}: error:")]
    if code not in subject.codes:
        return f"exit {code}: {told[-200:]}"
    if "Traceback" in told or (code == 2) != (len(errors) == 1) or (code == 2 and told.splitlines()[-1] != errors[0]):
        return f"exit {code} with {len(errors)} lines of error: {told[-300:]}"
    after = contents(folder)
    lost = [name for name, data in before.items() if after.get(name) != data]
    return f"{lost[0]} is gone or another" if lost else None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SUBJECTS)
def test_no_accident_ends_in_a_traceback(name, tmp_path, tmp_path_factory, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subject, whole = SUBJECTS[name], tmp_path_factory.mktemp("whole") / "it"
    whole.mkdir()
    subject.make(whole)
    wanted, _, number = ASKED.rpartition(":")
    if wanted not in ("", name):
        pytest.skip(f"only {wanted} is asked for")
    numbers = [int(number)] if wanted else range(FIRST, FIRST - (-int(number) // len(SUBJECTS)))
    found = []
    for each in numbers:
        folder = tmp_path / str(each)
        prepared(subject, whole, folder, Random(f"{name}:{each}"))
        if told := fault(subject, folder, capsys):
            found.append(f"{name}:{each} {told}")
        if not wanted:
            shutil.rmtree(folder)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_whole_files_are_taken(name, tmp_path, capsys):
    subject = SUBJECTS[name]
    subject.make(tmp_path)
    for other in sorted(tmp_path.glob("a.*"))[1:]:
        other.unlink()
    program = selfnpo_image if subject.program == "selfnpo-image" else selfnpo_video
    code = run(program, subject.words(tmp_path), name=subject.program)
    assert code == subject.whole, capsys.readouterr().err
