"""`evaluate`: a sample folder, and another at the same prompts and seeds, measured by metrics by name."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from selfnpo_core.errors import InputError
from selfnpo_core.evaluation.distances import Moments
from selfnpo_core.evaluation.metrics import (
    Metric,
    Reference,
    adjust,
    cautions,
    check_counts,
    measure,
    per_sample,
)
from selfnpo_core.evaluation.networks import Cache, Ready, look
from selfnpo_core.evaluation.samples import Problem, Samples, digest, pair, read_reference, read_samples, refuse_bad
from selfnpo_core.ranks import Ranks
from selfnpo_core.sampling.medium import Medium
from selfnpo_core.system.devices import best_device
from selfnpo_core.system.files import write_text
from selfnpo_core.system.paths import check_file, user_path
from selfnpo_core.system.text import writable

log = logging.getLogger(__name__)
CACHE = ".evaluation"
"""In the folder that is evaluated; `sample` takes no notice of it."""


@dataclass(frozen=True, kw_only=True)
class MetricSet:
    """What can be measured of a family's samples.

    metrics: the options of the command line → all metrics by name. groups: names that stand for several.
    others: figures that are not what a network says, by the name that asks for them; of the options at once, so that
    mistakes are found early, and then of the samples.
    export: puts samples elsewhere if the options ask for it, and says what it did.
    """

    metrics: Callable[[Mapping[str, Any]], Sequence[Metric]]
    groups: Mapping[str, Sequence[str]]
    others: Mapping[str, Callable[[Mapping[str, Any]], Others]] = field(default_factory=dict)
    export: Callable[[Mapping[str, Any]], str | None] = lambda options: None


@dataclass(frozen=True, kw_only=True)
class Folders:
    """What is evaluated, checked and paired."""

    one: Samples
    other: Samples | None
    reference: Samples | None
    skipped: list[Problem]
    different: list[str]

    @property
    def all(self) -> list[Samples]:
        return [each for each in (self.one, self.other, self.reference) if each is not None]


Others = Callable[[Folders], dict[str, dict[str, Any]]]


def evaluate(offered: MetricSet, medium: Medium, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Measure, and write --json. Returns the results, or None of any process but the first.

    Several processes share the work when RANK and WORLD_SIZE say so, as torchrun sets them.
    """
    ranks = Ranks(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    chosen, others = choose(offered, options)
    for metric in chosen:
        metric.network.check()
    target = None if options["json"] is None else Path(options["json"])
    if target is not None:
        check_file(target, "--json")
    folders = read_folders(medium, options)
    if ranks.index == 0:
        for problem in folders.skipped:
            log.warning("left out: %s", problem)
        for remark in (remark for each in folders.all for remark in each.remarks(medium.unit)):
            log.warning("%s", remark)
    _check(chosen, folders)
    weights = None if options["weights"] is None else Path(options["weights"])
    ready: dict[str, Ready] = {}
    for metric in chosen:
        if metric.network.name not in ready:
            ready[metric.network.name] = Ready.of(metric.network, weights, metric.name)
    cut = _said_cut(ready, folders) if ranks.index == 0 else {}
    said = _looked(medium, chosen, ready, folders, ranks, options)
    if said is None:
        return None
    figures: dict[str, dict[str, Any]] = {}
    scores: dict[str, Any] = {}
    for metric in chosen:
        arms = said[metric.network.name]
        scores[metric.name] = [None if arm is None else per_sample(metric, arm) for arm in arms[:2]]
        figures[metric.name] = measure(metric, arms[0], arms[1], _reference(metric, arms[2]))
        figures[metric.name] |= {**ready[metric.network.name].about, **cut[metric.network.name]}
    for other in others:
        figures |= other(folders)
    scores |= {name: found.pop("per_sample") for name, found in figures.items() if "per_sample" in found}
    for caution in cautions(figures):
        log.warning("%s", caution)
    adjust(figures)
    results = _results(folders, figures, scores, medium.reader())
    if target is not None:
        write_text(target, writable(_json(results)))
    return results


def choose(offered: MetricSet, options: Mapping[str, Any]) -> tuple[list[Metric], list[Others]]:
    """The metrics that are asked for. Raises `InputError` for names that are none."""
    known = {metric.name: metric for metric in offered.metrics(options)}
    asked = [name.strip() for name in (options["metrics"] or "").split(",") if name.strip()]
    names = dict.fromkeys(each for name in asked for each in offered.groups.get(name, (name,)))
    wrong = [name for name in names if name not in known and name not in offered.others]
    listed = ", ".join([*known, *offered.groups, *offered.others])
    if wrong:
        raise InputError(f"unknown metric '{wrong[0]}': use {listed}")
    if not names:
        raise InputError(f"nothing to measure: give --metrics some of {listed}")
    others = [offered.others[name](options) for name in names if name in offered.others]
    return [known[name] for name in names if name in known], others


def read_folders(medium: Medium, options: Mapping[str, Any]) -> Folders:
    """Open every file, before any network is loaded. Raises `InputError` for what cannot be read or compared."""
    one = read_samples(options["folder"], medium)
    other = None if options["against"] is None else read_samples(options["against"], medium)
    reference = None if options["reference"] is None else read_reference(options["reference"], medium)
    before = [each for each in (one, other, reference) if each is not None]
    if not options["skip_bad"]:
        refuse_bad(before, skip=False)
    different: list[str] = []
    if other is not None:
        one, other, different = pair(one, other, allow_different=options["allow_different"])
    folders = Folders(one=one, other=other, reference=reference, skipped=[], different=different)
    return replace(folders, skipped=refuse_bad(folders.all, skip=options["skip_bad"]))


def _said_cut(ready: Mapping[str, Ready], folders: Folders) -> dict[str, dict[str, int]]:
    """Of each network, what it does not read of the prompts."""
    arms = [folders.one, *([] if folders.other is None else [folders.other])]
    prompts = list(dict.fromkeys(sample.prompt or "" for arm in arms for sample in arm.good))
    found = {name: each.cut(prompts) for name, each in ready.items()}
    for name, cut in found.items():
        if cut:
            told = (name, cut["prompts_cut"], len(prompts), cut["tokens"])
            log.warning("%s: %d of %d prompts are longer than %d tokens: the rest of them is not read", *told)
    return found


def _check(chosen: Sequence[Metric], folders: Folders) -> None:
    """Whether these samples can be measured so: asked before any network is loaded."""
    for metric in chosen:
        ships = metric.kind == "frechet" and metric.network.reference is not None
        if metric.needs_reference and folders.reference is None and not ships:
            raise InputError(f"{metric.name} compares with real data: give a folder of it as --reference DIR")
        real = None if folders.reference is None else len(folders.reference.good)
        check_counts(metric, len(folders.one.good), real)
        for sample in (sample for folder in folders.all for sample in folder.good):
            if reason := metric.network.refuses(sample):
                raise InputError(f"{metric.name} cannot be measured of {sample.path}: {reason}; leave it out")


def _looked(
    medium: Medium,
    chosen: Sequence[Metric],
    ready: Mapping[str, Ready],
    folders: Folders,
    ranks: Ranks,
    options: Mapping[str, Any],
) -> dict[str, tuple[Tensor, Tensor | None, Tensor | None]] | None:
    """What each network said of the samples, of those they are compared with, and of the reference."""
    cache = Cache(user_path(options["cache"] or folders.one.path / CACHE), ranks)
    device, said = best_device(options["device"]), {}
    with cache.held():
        for name in dict.fromkeys(metric.network.name for metric in chosen):
            real = folders.reference
            if not any(metric.needs_reference for metric in chosen if metric.network.name == name):
                real = None
            parts = [
                folders.one.good,
                [] if folders.other is None else folders.other.good,
                [] if real is None else real.good,
            ]
            everything = [sample for part in parts for sample in part]
            rows = look(ready[name], everything, medium, cache=cache, device=device, batch=options["batch_size"])
            if rows is not None:
                one, other, reference = rows.split([len(part) for part in parts])
                said[name] = (one, other if len(other) else None, reference if len(reference) else None)
    return said if ranks.index == 0 else None


def _reference(metric: Metric, said: Tensor | None) -> Reference | None:
    if not metric.needs_reference:
        return None
    if said is None:
        assert metric.network.reference is not None
        return Reference(features=None, moments=metric.network.reference())
    features = said[:, len(metric.network.columns) :]
    return Reference(features=features, moments=Moments.of(features))


def _json(results: Mapping[str, Any]) -> str:
    """JSON with one value a line; "per_sample", which has many, is one line."""
    rest = {key: value for key, value in results.items() if key != "per_sample"}
    text = json.dumps(rest, indent=1, ensure_ascii=False).removesuffix("\n}")
    return f'{text},\n "per_sample": {json.dumps(results["per_sample"], ensure_ascii=False)}\n}}\n'


def _per_sample(folders: Folders, scores: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Scores by metric, in the order of the files; null of a sample that was not measured."""
    arms = {"value": folders.one, "against": folders.other}
    found: dict[str, Any] = {}
    for (arm, samples), column in zip(arms.items(), (0, 1), strict=True):
        if samples is not None:
            found[f"{arm}_files"] = [sample.path.name for sample in samples.good]
            found[f"{arm}_sha256"] = digest(samples.good)
            found[arm] = {name: each[column] for name, each in scores.items() if each[column] is not None}
    return found


def _results(
    folders: Folders, figures: Mapping[str, Mapping[str, Any]], scores: Mapping[str, Sequence[Any]], reader: str
) -> dict[str, Any]:
    def described(samples: Samples | None) -> dict[str, Any] | None:
        if samples is None:
            return None
        return {
            "path": str(samples.path),
            "samples": len(samples.good),
            "passed_over": dict(samples.passed_over),
            "with_black_frames": samples.black,
            "made": samples.model,
        }

    return {
        "schema": 1,
        "folder": described(folders.one),
        "against": described(folders.other),
        "reference": described(folders.reference),
        "skipped": [{"folder": p.folder, "file": p.file, "reason": p.reason} for p in folders.skipped],
        "different": folders.different,
        "reader": reader,
        "metrics": figures,
        "per_sample": _per_sample(folders, scores),
    }
