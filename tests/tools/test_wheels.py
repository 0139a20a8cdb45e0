"""What `pip install` of a built package brings: its files, its dependencies, and nothing of the other family."""

import ast
import re
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.markers import Marker

PACKAGES = Path(__file__).parents[2] / "packages"
DATA = {
    "selfnpo-core": [
        "selfnpo_core/study/page/pair.html",
        "selfnpo_core/study/page/static/study.js",
        "selfnpo_core/reporting/page/run.html",
        "selfnpo_core/reporting/page/report.css",
    ],
    "selfnpo-image": [
        "selfnpo_image/prompts.txt",
        "selfnpo_image/configs/sd15/unet/config.json",
        "selfnpo_image/configs/sdxl/text_encoder_2/config.json",
        "selfnpo_image/demo/assets/model/model_index.json",
    ],
    "selfnpo-video": [
        "selfnpo_video/prompts.txt",
        "selfnpo_video/page/sheet.html",
        "selfnpo_video/architectures.json",
        "selfnpo_video/demo/assets/judge.safetensors",
        "selfnpo_video/demo/assets/model/model_index.json",
    ],
}

FLOORS = {
    "commands/": {"train", "evaluate", "report"},
    "evaluation/": {"evaluate"},
    "experiments/": {"evaluate"},
    "models/embeddings.py": {"train"},
    "reporting/": {"report"},
    "sampling/": {"evaluate"},
    "study/": {"study"},
    "system/memory.py": {"train"},
    "system/pictures.py": {"evaluate"},
    "training/": {"train"},
    "worlds/": {"evaluate"},
}
"""The extras that bring what core's files import at their top. All others need what core itself asks for."""
FAMILIES = ["train", "evaluate", "report"]
"""The extras that both families ask for."""
HEAVY = ["tensorboard", "matplotlib", "jinja2", "scipy", "starlette", "uvicorn", "click", "torch_fidelity", "deepspeed"]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    dist = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(dist)]
    subprocess.run([*build, *(str(PACKAGES / name) for name in DATA)], check=True)
    return {name: next(dist.glob(name.replace("-", "_") + "-*.whl")) for name in DATA}


def required(path: Path) -> list[str]:
    """Requires-Dist of a wheel."""
    with zipfile.ZipFile(path) as wheel:
        meta = next(file for file in wheel.namelist() if file.endswith(".dist-info/METADATA"))
        return Parser().parsestr(wheel.read(meta).decode()).get_all("Requires-Dist") or []


def plain(name: str) -> str:
    """A distribution's normalised name."""
    return re.match(r"[\w.-]+", name)[0].lower().replace("_", "-")


def packages_distributions() -> dict[str, set[str]]:
    """Distributions by what lies at the top of their files: importlib's own, on Python 3.10, does not know them all."""
    owners: dict[str, set[str]] = {}
    for each in distributions():
        for file in each.files or ():
            owners.setdefault(file.parts[0].partition(".")[0], set()).add(each.name)
    return owners


@pytest.mark.parametrize("name", DATA)
def test_a_wheel_holds_its_files_and_names_its_dependencies(wheels, name):
    with zipfile.ZipFile(wheels[name]) as wheel:
        files = wheel.namelist()
    root = name.replace("-", "_") + "/"
    assert set(DATA[name]) <= set(files)
    assert all(file.startswith(root) or ".dist-info/" in file for file in files)
    ours = {match[0] for line in required(wheels[name]) if (match := re.match(r"selfnpo-\w+", line))}
    assert ours == (set() if name == "selfnpo-core" else {"selfnpo-core"})


def test_the_core_installs_light_and_the_families_ask_for_all(wheels):
    light = {plain(line) for line in required(wheels["selfnpo-core"]) if extra_of(line) is None}
    assert light == {"torch", "diffusers", "transformers", "peft", "safetensors", "pydantic", "pyyaml"}
    for name in ("selfnpo-image", "selfnpo-video"):
        (core,) = (line for line in required(wheels[name]) if plain(line) == "selfnpo-core" and extra_of(line) is None)
        assert set(re.search(r"\[(.*)\]", core)[1].split(",")) == set(FAMILIES)


def test_what_an_extra_is_for_is_in_it(wheels):
    brought: dict[str | None, set[str]] = {}
    for line in required(wheels["selfnpo-core"]):
        brought.setdefault(extra_of(line), set()).add(plain(line))
    assert {"accelerate", "psutil", "tensorboard"} <= brought["train"]
    assert "scipy" in brought["evaluate"]
    assert {"jinja2", "matplotlib"} <= brought["report"]
    assert {"starlette", "uvicorn", "jinja2"} <= brought["study"]
    assert set(brought) == {None, *FAMILIES, "study", "eval", "deepspeed", "adamw8bit", "int8", "wandb", "trackio"}


def test_the_video_packages_extras(wheels):
    brought: dict[str | None, list[str]] = {}
    for line in required(wheels["selfnpo-video"]):
        brought.setdefault(extra_of(line), []).append(line)
    assert set(brought) == {None, "deepspeed", "study", "eval", "xformers", "decord", "all"}
    for system, machine, wanted in (
        *[("linux", "x86_64", "decord"), ("win32", "AMD64", "decord")],
        *[("linux", "aarch64", "decord2"), ("darwin", "arm64", "decord2"), ("darwin", "x86_64", "decord2")],
    ):
        here = {"sys_platform": system, "platform_machine": machine, "extra": "decord"}
        markers = {plain(line): Marker(line.partition(";")[2]) for line in brought["decord"]}
        assert [name for name, marker in markers.items() if marker.evaluate(here)] == [wanted]


def test_negative_weights_need_no_extra(tmp_path):
    """The README's two usages, with what the extras bring out of reach."""
    done = subprocess.run(
        [sys.executable, "-c", LIGHT.format(heavy=HEAVY, folder=str(tmp_path))],
        capture_output=True,
        text=True,
        cwd=PACKAGES.parent,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "this needs matplotlib: pip install 'selfnpo-core[report]'",
        "this needs jinja2 and matplotlib: pip install 'selfnpo-core[report]'",
        "this needs scipy: pip install 'selfnpo-core[evaluate]'",
    ]


LIGHT = """
import sys
sys.modules.update(dict.fromkeys({heavy!r}))
from selfnpo_core import GuidanceRule, NegativeAdapters, NoiseSchedule, attach_npo, tdft_loss
from selfnpo_core.adapters.rules import GuidanceInterval, Projected
from tests.core.adapters.reference import add_lora
from tests.tiny import sample, sd15
from peft.utils import get_peft_model_state_dict

made = sd15()
add_lora(made.unet, "npo", seed=1)
layers, metadata = get_peft_model_state_dict(made.unet, adapter_name="npo"), made.unet.peft_config["npo"].to_dict()
made.save_lora_weights({folder!r}, unet_lora_layers=layers, unet_lora_adapter_metadata=metadata)
pipe = sd15()
plain = sample("sd15", pipe)
pipe.load_lora_weights({folder!r}, adapter_name="npo")
with NegativeAdapters.attach(pipe, {{"npo": 1.0}}):
    changed = sample("sd15", pipe)
with NegativeAdapters.attach(pipe, {{"npo": 1.0}}), GuidanceRule.attach(pipe, GuidanceInterval(rule=Projected())):
    sample("sd15", pipe)
pipe.delete_adapters("npo")
with attach_npo(pipe, {folder!r}):
    assert (sample("sd15", pipe) == changed).all()
assert not (changed == plain).all()
NoiseSchedule.from_scheduler(pipe.scheduler)
from selfnpo_core.weights.inspection import plot
try:
    plot({{}}, "never")
except ValueError as error:
    print(error)
try:
    import selfnpo_core.reporting
except ValueError as error:
    print(error)
from selfnpo_core.evaluation import sign_test
try:
    sign_test(plain)
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize("name", DATA)
def test_what_a_package_imports_it_asks_for(wheels, name):
    """Third-party imports at the top of its modules; what is imported within functions may be an extra."""
    lines = [line for each in {name, "selfnpo-core"} for line in required(wheels[each])]
    owners, others, unasked = packages_distributions(), set(), set()
    source = PACKAGES / name / "src" / name.replace("-", "_")
    for file in source.rglob("*.py"):
        extras = extras_of(file.relative_to(source).as_posix()) if name == "selfnpo-core" else set(FAMILIES)
        asked = {plain(line) for line in lines if extra_of(line) in {None, *extras}}
        for module in imported(file) - sys.stdlib_module_names:
            if not module.startswith("selfnpo_"):
                others.add(module)
                if not asked & {plain(owner) for owner in owners[module]}:
                    unasked.add(module)
    assert "torch" in others
    assert not unasked


def extra_of(line: str) -> str | None:
    """The extra that a line of Requires-Dist belongs to."""
    found = re.search(r"extra == [\'\"]([\w-]+)[\'\"]", line)
    return found and found[1]


def extras_of(path: str) -> set[str]:
    return next((extras for floor, extras in FLOORS.items() if path.startswith(floor)), set())


def imported(file: Path) -> set[str]:
    """Packages that a module imports at its top."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.slow
def test_the_video_package_works_from_its_wheels_alone(wheels, tmp_path):
    target = tmp_path / "site"
    for name in ("selfnpo-core", "selfnpo-video"):
        zipfile.ZipFile(wheels[name]).extractall(target)
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r})\n"
        "from selfnpo_video.cli import selfnpo_video\n"
        "from selfnpo_video.demo import moving\n"
        "moving.demo().pipeline(), moving.MovingThings().judges\n"
        "selfnpo_video(['models'], standalone_mode=False)\n"
        "ours = {n: m.__file__ for n, m in sys.modules.items() if n.startswith('selfnpo') and m.__file__}\n"
        "print(*ours.values(), sep='\\n')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "cogvideox-5b" in done.stdout
    files = [line for line in done.stdout.splitlines() if line.endswith(".py")]
    assert files
    assert all(file.startswith(str(target)) for file in files)
    assert not any("selfnpo_image" in file for file in files)


@pytest.fixture(scope="module")
def installed(wheels, tmp_path_factory) -> Path:
    """A new environment with core and video from their wheels; other packages are found in this one's folder."""
    folder = tmp_path_factory.mktemp("env")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))  # of which no .pth is read: nothing editable
    some = [str(wheels[name]) for name in ("selfnpo-core", "selfnpo-video")]
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--force-reinstall"]
    subprocess.run([*pip, "--no-index", *some], check=True)
    return folder


@pytest.mark.slow
def test_the_commands_run_from_the_wheels_in_any_folder(installed, tmp_path):
    def run(*words: str) -> str:
        command = [installed / "bin" / "selfnpo-video", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=500)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run([installed / "bin" / "python", "-c", "import selfnpo_image"], check=True, capture_output=True)
    small = [f"--set={text}" for text in ("steps=2", "pool_size=4", "batch_size=2", "sample_every=0", "grid_steps=4")]
    assert "negative weights in run/npo" in run("train", "--model", "demo", "--output", "run", *small)
    (tmp_path / "prompts.txt").write_text("a red circle grows\n")
    words = ["--prompts", "prompts.txt", "--npo", "run", "--steps", "3", "--output", "clips"]
    run("sample", "--model", "demo", *words)
    assert len(list((tmp_path / "clips").glob("*.mp4"))) == 1
