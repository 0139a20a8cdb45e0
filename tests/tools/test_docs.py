"""README, CONTRIBUTING and the site's pages: links lead somewhere, files, modules and options that they name exist."""

import pkgutil
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT)
    for path in (
        *ROOT.glob("*.md"),
        *ROOT.glob("packages/*/README.md"),
        *(path for path in (ROOT / "docs").rglob("*.md") if path.name != "notes.md"),
    )
)
PRESENT = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which names what was, too
MADE = {"docs/reference": None, "docs/notebooks": "notebooks"}  # pages that are made with the site: of what
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")
FILE = re.compile(r"(?<![\w/.-])(?:packages|tools|tests|docs|recipes|notebooks|selfnpo_\w+)/[\w./*-]*[\w*]")
MODULE = re.compile(r"(?<![\w./-])selfnpo_(?:core|image|video)(?:\.\w+)+")


def text_of(page: Path) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_to_files(page: Path) -> None:
    for target, _ in LINK.findall(text_of(page)):
        path = Path(re.sub(r"[^/]+/\.\./", "", (page.parent / target).as_posix()))
        made = next((of for folder, of in MADE.items() if path.as_posix().startswith(folder)), "")
        if made == "":
            assert (ROOT / page.parent / target).exists(), f"{page} links to {target}"
        elif made is not None:
            assert (ROOT / made / path.name).with_suffix(".ipynb").is_file(), f"{page} links to {target}"


@pytest.mark.parametrize("page", PRESENT, ids=str)
def test_files_that_are_named_exist(page: Path) -> None:
    prose = LINK.sub("", text_of(page))
    for name in FILE.findall(prose):
        found = [*ROOT.glob(name), *ROOT.glob(f"packages/*/src/{name}")]
        assert found or name.startswith("docs/reference/"), f"{page} names {name}"


@pytest.mark.parametrize("page", PRESENT, ids=str)
def test_modules_that_are_named_exist(page: Path) -> None:
    for name in sorted(set(MODULE.findall(re.sub(r"\.py\b", "", text_of(page))))):
        pkgutil.resolve_name(name)


def commands() -> Iterator[tuple[Path, list[str]]]:
    """(page, words) of every command of ours that stands in an indented block."""
    for page in PAGES:
        for line in text_of(page).replace("\\\n", " ").splitlines():
            if re.match(r"    \s*(selfnpo-(image|video)|python tools/|torchrun |deepspeed |accelerate )", line):
                yield page, shlex.split(re.sub(r" {3,}\S.*", "", line.strip()), comments=True)


def option_names(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}


def test_options_of_commands_that_are_shown_exist(monkeypatch) -> None:
    import importlib.util

    from selfnpo_image.cli import selfnpo_image
    from selfnpo_video.cli import selfnpo_video

    groups = {"selfnpo-image": selfnpo_image, "selfnpo-video": selfnpo_video}
    monkeypatch.syspath_prepend(ROOT / "tools")  # as a script finds its own modules
    seen = 0
    for page, words in commands():
        script = next((n for n, word in enumerate(words) if word.startswith("tools/") and word.endswith(".py")), None)
        if words[0] in groups:
            group = groups[words[0]]
            command = group.get_command(click.Context(group), words[1])
            given = words[2:]
        else:
            assert script is not None, f"{page}: {shlex.join(words)}"
            spec = importlib.util.spec_from_file_location("shown", ROOT / words[script])
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            found = [value for value in vars(module).values() if isinstance(value, click.Command)]
            command = next((each for each in found if isinstance(each, click.Group)), found[0] if found else None)
            given = words[script + 1 :]
            if isinstance(command, click.Group) and given:
                command = command.get_command(click.Context(command), given[0])
        assert command is not None, f"{page}: {shlex.join(words)}"
        known = option_names(command)
        if (
            command.context_settings.get("ignore_unknown_options") and script is not None
        ):  # it hands them on to the command of its name
            known |= {
                name
                for group in groups.values()
                for name in option_names(group.get_command(click.Context(group), Path(words[script]).stem))
            }
        unknown = {word for word in given if word.startswith("--")} - known
        assert not unknown, f"{page}: {shlex.join(words)}"
        seen += 1
    assert seen > 40


def test_readme_begins_with_two_commands() -> None:
    first, second, *_ = re.findall(r"^    (\S.*)$", text_of(Path("README.md")), re.MULTILINE)
    assert first.startswith("make demo ")
    assert second.startswith("make test ")


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    """On the demo model, with a LoRA of random weights."""
    import torch
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    from selfnpo_image.families import find_base
    from selfnpo_image.loading import load_pipeline

    base = find_base("demo")
    pipe = load_pipeline(base)
    torch.manual_seed(0)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), "npo")
    pipe.save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(pipe.unet, adapter_name="npo"))
    (code,) = re.findall(r"```python\n(.*?)```", text_of(Path("README.md")), re.DOTALL)
    for shown, here in (
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", base.source.location),
        ("torch.float16", "torch.float32"),
        ("runs/sd15/npo", tmp_path),
        ("guidance_scale=7.5", "guidance_scale=7.5, num_inference_steps=3"),
    ):
        assert str(shown) in code
        code = code.replace(shown, str(here))
    names: dict[str, object] = {}
    exec(code, names)
    assert names["picture"].size == (64, 64)  # type: ignore[attr-defined]
