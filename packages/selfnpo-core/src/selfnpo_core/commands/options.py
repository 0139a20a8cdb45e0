"""The options of the commands, in the order in which help lists them. Only click is imported here."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from selfnpo_core.system.paths import user_path

Function = TypeVar("Function", bound=Callable[..., Any])


if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # the oldest click that we take knows no parameter of it


class UserPath(_ParamType):
    """A path, or a name that may be one, with `~` as the home folder also where the shell leaves it, as in --to=~/x."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = user_path(value)  # refuses what can be no path
        return str(path) if str(value).startswith("~") else value


PATH = UserPath()


class Decorator(Protocol):
    """What puts options on a command: whatever function it is given comes back with them."""

    def __call__(self, function: Function, /) -> Function: ...


def stack(*decorators: Decorator) -> Decorator:
    """Several click decorators as one, in the order in which help lists them."""

    def decorate(function: Function) -> Function:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


model_options = stack(
    click.option(
        "--model", type=PATH, metavar="NAME|DIR|FILE", help="Known name, hub id, diffusers folder or .safetensors file."
    ),
    click.option(
        "--model-config",
        type=PATH,
        metavar="NAME|DIR",
        help="For a single FILE: known name, hub id or diffusers folder with its configs and tokenizer.",
    ),
)

device_options = stack(
    click.option("--dtype", type=click.Choice(["auto", "fp32", "fp16", "bf16"]), default="auto", show_default=True),
    click.option("--device", metavar="NAME", default="auto", show_default=True, help="cpu, cuda, cuda:1, …"),
)

sampling_options = stack(
    model_options,
    click.option(
        "--npo", type=PATH, metavar="RUN|FILE", help="Negative weights: a training run, its npo folder, or a file."
    ),
    click.option("--prompt", "prompt", metavar="TEXT", multiple=True, help="What to draw; may be repeated."),
    click.option(
        "--prompts", type=PATH, metavar="FILE|builtin", help="File with one prompt a line, or the built-in list."
    ),
    click.option(
        "--output", type=PATH, metavar="DIR", required=True, help="Folder for the samples and metadata.jsonl."
    ),
    click.option("--guidance-scale", type=float, help="1 is none. Default: what the negative weights recommend."),
    click.option("--beta", type=float, help="Strength of the negative weights. Default: as recommended."),
    click.option(
        "--preference",
        type=PATH,
        metavar="NAME|DIR|FILE",
        help="A preference-tuned model or LoRA of this base, to sample with: a known name, hub id, folder or file.",
    ),
    click.option(
        "--alpha", type=float, help="Share of --preference on the negative branch. Default: as recommended, 1."
    ),
    click.option(
        "--negative-mode",
        type=click.Choice(["auto", "adapters", "swap", "bf16", "int8", "lowrank"]),
        help="How the negative branch gets its weights: a LoRA as it is; a second copy in a forward of its own; in one "
        "forward from differences of 16 or 8 bits, or from low-rank products. Default: adapters for a LoRA, else swap.",
    ),
    click.option("--negative-rank", type=click.IntRange(1), help="Rank of --negative-mode lowrank. Default: 32."),
    click.option("--other-base", is_flag=True, help="Let --npo act on a relative of the base it was made for."),
    click.option(
        "--negative-prompt",
        "--null-prompt",
        "negative_prompt",
        metavar="TEXT",
        help="For the negative branch. Default: what --npo was trained with, else the model's own, the empty prompt.",
    ),
    click.option(
        "--negative-condition",
        type=click.Choice(["null", "prompt"]),
        help="What the negative weights are asked: the null (or negative) prompt, or the prompt itself.",
    ),
    click.option(
        "--npo-rule",
        type=click.Choice(["two_branch", "third", "switch", "neon", "neon_both"]),
        help="By which rule of guidance the negative weights are used. Default: as recommended.",
    ),
    click.option(
        "--npo-weight", type=float, metavar="W", help="Of rule third: its weight; of neon, neon_both: θ − W·δ."
    ),
    click.option(
        "--npo-switch", type=float, metavar="LEVEL", help="Of rule switch: σ/α up to which the negative weights act."
    ),
    click.option(
        "--beta-knots",
        metavar="LEVEL:SHARE,…",
        help="Share of --beta by noise level σ/α, linear in its logarithm; `none`: the same at all levels.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Sample number n has the seed SEED + n."),
    click.option("--count", type=click.IntRange(min=1), default=1, show_default=True, help="Samples a prompt."),
    click.option("--steps", type=click.IntRange(min=1), help="Sampling steps. Default: the model's."),
    click.option("--height", type=click.IntRange(min=1), help="Pixels. Default: what the model was made for."),
    click.option("--width", type=click.IntRange(min=1), help="Pixels. Default: what the model was made for."),
    click.option("--batch-size", type=click.IntRange(min=1), help="Default: 8 pictures, 1 clip."),
    device_options,
)
"""Options of `sample` and `compare`."""


train_options = stack(
    model_options,
    click.option("--prompts", type=PATH, metavar="FILE|builtin", help="One prompt a line. Default: the built-in list."),
    click.option("--output", type=PATH, metavar="RUN", help="Run folder. Default: a new runs/MODEL-N."),
    click.option("--config", type=PATH, metavar="FILE|paper", help="Recipe: a YAML file, or the paper's own."),
    click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="One key of the recipe; repeatable."),
    click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in --output."),
    click.option("--dry-run", is_flag=True, help="Print the resolved recipe and its cost, and stop."),
)
"""Options of `train`."""


inspect_options = stack(
    click.argument("path", type=PATH, metavar="FILE|RUN"),
    model_options,
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    click.option(
        "--plot",
        type=PATH,
        metavar="FILE",
        help="Write a picture: strength over timesteps, which layers carry it, and what it is made of.",
    ),
    click.option(
        "--trajectories",
        type=click.IntRange(min=0),
        default=24,
        show_default=True,
        help="Guided samples of the base on which the change is taken apart; 0 measures strength only.",
    ),
    click.option("--keep", is_flag=True, help="Put what was taken apart into RUN, where `report` shows it."),
)
"""Argument and options of `inspect`."""

export_options = stack(
    click.option(
        "--npo",
        type=PATH,
        metavar="RUN|FILE",
        required=True,
        help="Negative weights: a run, its npo folder, or a file.",
    ),
    click.option(
        "--format",
        "form",
        type=click.Choice(["diffusers", "lora", "kohya", "merged", "neon"]),
        required=True,
        help="A LoRA for diffusers (lora: made of a full-weight run), for ComfyUI, or a merged denoiser.",
    ),
    click.option(
        "--output", type=PATH, metavar="DIR|FILE", required=True, help="Folder; for kohya a .safetensors file."
    ),
    click.option("--rank", type=int, help="Rank of the LoRA that is made of a full-weight run."),
    click.option("--beta", type=float, help="θ + β·δ of merged. Default: as the weights recommend."),
    click.option("--strength", type=float, help="w of neon, θ − w·δ."),
    click.option(
        "--push-to-hub", metavar="OWNER/NAME", help="Bring what is written to this repository too, made if need be."
    ),
    click.option("--private", is_flag=True, help="Make that repository a private one."),
    click.option("--into", type=click.Choice(["lora", "merged"]), help="What neon writes. Default: as the run is."),
    model_options,
)
"""Options of `export`."""


demo_options = stack(
    click.option("--output", type=PATH, metavar="DIR", help="Folder for everything. Default: a new runs/demo-N."),
    click.option("--full", is_flag=True, help="Five guidance scales and 2,000 samples of each arm (an hour or more)."),
    click.option("--seed", default=0, show_default=True, help="Seed of the training run."),
    click.option("--samples", type=click.IntRange(8), help="Samples of each arm and scale."),
)
"""Options of `demo`."""


study_options = stack(
    click.argument("dir_a", type=PATH, metavar="DIR_A"),
    click.argument("dir_b", type=PATH, metavar="DIR_B"),
    click.option(
        "--database", type=PATH, metavar="FILE", help="Where votes are kept. Default: study-A-B.sqlite, here."
    ),
    click.option(
        "--question",
        metavar="KEY=TEXT",
        multiple=True,
        help="What is asked of each pair; repeatable. The first decides attention checks. Default: overall preference, "
        "fit to the text, detail.",
    ),
    click.option("--limit", type=click.IntRange(1), metavar="N", help="So many pairs, at random. Default: all."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of --limit, orders and sides."),
    click.option(
        "--attention-checks",
        type=click.IntRange(0),
        metavar="N",
        help="Pairs beside the others of a sample and the same one damaged. Default: one for ten pairs, at least one.",
    ),
    click.option(
        "--allow-failures",
        type=click.IntRange(0),
        metavar="N",
        help="Who fails more attention checks is left out of the results. Default: a quarter of them, rounded down.",
    ),
    click.option("--allow-different", is_flag=True, help="Let the arms differ in steps, scheduler or size."),
    click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 opens the page to others, by a link."),
    click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free one."),
    click.option("--open", is_flag=True, help="Open the page in a browser."),
    click.option("--results", is_flag=True, help="Print what the votes say, and stop. No server is needed."),
    click.option("--json", type=PATH, metavar="FILE", help="With --results: write them as JSON."),
    click.option("--csv", type=PATH, metavar="FILE", help="With --results: write every vote as CSV."),
)
"""Arguments and options of `study`."""


evaluate_options = stack(
    click.argument("folder", type=PATH, metavar="DIR"),
    click.option("--against", type=PATH, metavar="DIR", help="Another sample folder, of the same prompts and seeds."),
    click.option(
        "--reference", type=PATH, metavar="DIR", help="Real pictures or clips, for distances, precision and recall."
    ),
    click.option("--metrics", metavar="A,B,…", help="What to measure."),
    click.option("--json", type=PATH, metavar="FILE", help="Write all figures there."),
    click.option(
        "--weights", type=PATH, metavar="DIR", help="The judges' weights, as DIR/OWNER/NAME/FILE. Default: the hub."
    ),
    click.option(
        "--cache", type=PATH, metavar="DIR", help="Where what networks say is kept. Default: DIR/.evaluation."
    ),
    click.option("--skip-bad", is_flag=True, help="Leave out samples that cannot be read, and their partners."),
    click.option(
        "--allow-different", is_flag=True, help="Compare folders whose steps, size, … differ, where they pair."
    ),
    click.option("--batch-size", type=click.IntRange(min=1), help="Samples that a network sees at a time."),
    click.option("--device", metavar="NAME", default="auto", show_default=True, help="cpu, cuda, cuda:1, …"),
)
"""Options of `evaluate`."""


report_options = stack(
    click.argument("folder", type=PATH, metavar="DIR|RUN"),
    click.option("--against", type=PATH, metavar="DIR", help="Another sample folder, of the same prompts and seeds."),
    click.option(
        "--figures",
        type=PATH,
        metavar="FILE",
        multiple=True,
        help="What `evaluate --json` or `study --results --json` wrote; repeatable. Default: what lies beside.",
    ),
    click.option("--output", type=PATH, metavar="FILE", help="The page. Default: DIR/report.html."),
    click.option("--markdown", type=PATH, metavar="FILE", help="The same in Markdown, without samples."),
    click.option("--by", metavar="METRIC", help="By whose scores samples are chosen. Default: the first that can."),
    click.option(
        "--count", type=click.IntRange(1), default=6, show_default=True, help="Samples, or pairs, of each kind."
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Of the random ones."),
)
"""Options of `report`."""


def set_key(key: str, value: object) -> str:
    """An option as a `key=value` override of the recipe; JSON is YAML, so any text survives."""
    return f"{key}={json.dumps(value)}"
