"""Which samples a page shows: the largest gains, the largest losses, and some at random, which alone are typical."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from selfnpo_core.errors import InputError
from selfnpo_core.reporting.figures import Evaluated


@dataclass(frozen=True, kw_only=True)
class Group:
    """Indices of samples that are shown together."""

    title: str
    about: str
    rows: Sequence[int]


def choose_score(evaluated: Evaluated | None, asked: str | None) -> tuple[str | None, str | None]:
    """The metric by whose scores samples are chosen, or why there is none.

    Unless one is asked for: the first that has a better direction and of which few differences are equal.
    """
    per_sample = None if evaluated is None else evaluated.per_sample
    if evaluated is None or per_sample is None or not per_sample.value:
        if asked is not None:
            raise InputError(f"--by {asked}: no figures with scores of single samples; let evaluate --json write them")
        if evaluated is None:
            return None, "No figures by evaluate are at hand, so there is no score of a single sample to choose by."
        return None, "The figures hold no scores of single samples to choose by."
    if asked is not None:
        if asked not in per_sample.value:
            raise InputError(f"--by {asked} is not among the scores: use {', '.join(per_sample.value)}")
        return asked, None
    names = [name for name in per_sample.value if name in evaluated.metrics]
    names = [name for name in names if evaluated.metrics[name].better != "neither"]
    fine = [name for name in names if len({g for g in gains(evaluated, name) if g is not None}) > 3]
    if not names:
        return None, "No metric with scores of single samples says which is better."
    return (fine or names)[0], None


def gains(evaluated: Evaluated, metric: str) -> list[float | None]:
    """How much better each sample is than its partner, or alone how good it is; None where that is not known."""
    scores, figure = evaluated.per_sample, evaluated.metrics[metric]
    assert scores is not None
    sign = -1 if figure.better == "lower" else 1
    one, other = scores.value[metric], scores.against.get(metric)
    if evaluated.against is None or other is None:
        return [None if a is None else sign * a for a in one]
    return [None if a is None or b is None else sign * (a - b) for a, b in zip(one, other, strict=True)]


def choose(
    count: int, scored: Sequence[float | None] | None, *, score: str | None, most: int, seed: int, paired: bool
) -> list[Group]:
    """At most `most` samples a group. scored: `gains`, the more the better.

    Only what gained is among the gains, and only what lost among the losses. The random ones are of all samples.
    """
    groups = []
    if scored is not None:
        known = [(gain, row) for row, gain in enumerate(scored) if gain is not None]
        up = sorted(known, key=lambda each: (-each[0], each[1]))
        down = sorted(known)
        if paired:
            up, down = [each for each in up if each[0] > 0], [each for each in down if each[0] < 0]
            titles = "Largest gains", "Largest losses"
        else:
            titles = "Best", "Worst"
        for title, rows, all_ in zip(titles, (up, down), (len(up), len(down)), strict=True):
            about = f"By {score}" + (f", {all_} of {len(known)} pairs in all." if paired else ".")
            groups.append(Group(title=title, about=about, rows=[row for _, row in rows[:most]]))
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most].tolist()
    what = "pairs" if paired else "samples"
    about = f"{len(drawn)} of {count} {what}, drawn without looking (seed {seed})."
    return [*groups, Group(title="At random", about=about, rows=sorted(drawn))]
