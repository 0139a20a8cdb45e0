"""docs/results/performance.md, from the figures beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from benchmarks.update import OURS

FOLDER = Path("docs/results/performance")
NAMES = {
    OURS: "**Self-NPO, the default recipe**",
    "reference": "the published algorithm: five steps and an estimate of the teacher, both branches, two models, all "
    "weights, pictures encoded",
    "full_simulation": "full simulation: 25 steps of the teacher, both branches, all weights",
    "plain_lora": "a supervised LoRA on stored latents",
    "plain": "plain guidance",
    "negative_lora": "**negative LoRA**",
    "offset, swap": "**offset of all weights**, a second copy (the default)",
    "offset, bf16": "offset of all weights, differences in 16 bits",
    "offset, int8": "offset of all weights, differences in 8 bits",
    "two_models": "two whole models",
    "two_forwards": "one model asked twice, a LoRA switched on and off",
    "patched": "weights patched before the negative forward and restored after it",
}
TEXT = """# Performance

Ratios from one process each, arms in turn; on other machines they differ. What was not measured on a GPU is not here.
`tools/measure_on_gpus.sh` makes these figures for real models' sizes.

## An update

Drawing the finished samples is counted in: a share for each update. Bytes are of tensors held at the peak of an update,
weights included. FLOPs are counted, backward passes included.

{updates}

On the picture demo drawing is what ours costs beside a plain LoRA. Half as many samples did as well there
([ablations](README.md#what-each-setting-is-worth)), and presets of real models have half. Memory is activations on so
small a network, and alike for all.

## A denoising step

As ratios to plain guidance, in turn with it. The demo's network is 32 wide, where a LoRA of rank 16 on all layers is
much: 15 % of a step's FLOPs, and many small operations.

{samples}

## What may not grow

[counts.json](performance/counts.json) holds what an update of four rows consists of: FLOPs, operations, numbers that
the host waits for, rows, bytes. A test fails when one of them grows. Times are never tested.
"""


@click.command("page")
def page() -> None:
    """docs/results/performance.md, from what `update` and `sample` wrote."""
    updates = "\n\n".join(_update(json.loads(file.read_text())) for file in sorted(FOLDER.glob("update-*.json")))
    samples = "\n\n".join(_sample(json.loads(file.read_text())) for file in sorted(FOLDER.glob("sample-*.json")))
    target = FOLDER.with_suffix(".md")
    target.write_text(TEXT.format(updates=updates, samples=samples), encoding="utf-8")
    click.echo(f"the page is {target}")


def _update(found: Mapping[str, Any]) -> str:
    ours = found["arms"][OURS]
    seconds = {name: pair[f"seconds, {name}"] for name, pair in found["in turn"].items()}
    pairs = list(found["in turn"].values())
    own = [pair[f"seconds, {OURS}"] for pair in pairs]
    drawing = [pair.get("seconds, drawing", 0.0) for pair in pairs]
    seconds[OURS] = sorted(a + b for a, b in zip(own, drawing, strict=True))[len(pairs) // 2]
    share = sum(drawing) / (sum(drawing) + sum(own))
    lines = [
        f"Of {found['model']}; {found['rows an update']} rows an update; {found['machine']}. "
        f"Drawing is {share:.0%} of ours.",
        "",
        f"    {found['command']}",
        "",
        "| | seconds | of ours | GFLOP | MiB held | of the rate of matrix products |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, arm in found["arms"].items():
        flops = arm["flops"] + arm.get("drawing", {}).get("flops", 0)
        lines.append(
            f"| {NAMES[name]} | {seconds[name]:.3g} | {seconds[name] / seconds[OURS]:.2f} | {flops / 1e9:.3g} "
            f"| {arm['bytes'] / 2**20:.0f} ({arm['bytes'] / ours['bytes']:.2f}) | {found['utilisation'][name]:.0%} |"
        )
    return "\n".join(lines)


def _sample(found: Mapping[str, Any]) -> str:
    lines = [
        f"Of {found['model']}; {found['rows a step']} rows a step; {found['machine']}.",
        "",
        f"    {found['command']}",
        "",
        "| | time | bytes | FLOPs |",
        "| --- | --- | --- | --- |",
    ]
    plain = found["arms"]["plain"]
    for name, arm in found["arms"].items():
        time = "1" if name == "plain" else f"{arm['time']:.2f}"
        lines.append(
            f"| {NAMES[name]} | {time} | {found['memory ratios'][name]:.2f} | {arm['flops'] / plain['flops']:.2f} |"
        )
    return "\n".join(lines)
