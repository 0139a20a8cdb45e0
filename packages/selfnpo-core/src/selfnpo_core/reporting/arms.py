"""Sample folders as a report: whose they are, which figures belong to them, and the samples that are shown."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from selfnpo_core.errors import InputError
from selfnpo_core.evaluation.samples import Sample, Samples, digest, pair, read_samples
from selfnpo_core.reporting import words
from selfnpo_core.reporting.figures import (
    Evaluated,
    Figure,
    Study,
    figures_in,
    read_compared,
    read_json_object,
)
from selfnpo_core.reporting.selection import Group, choose, choose_score, gains
from selfnpo_core.reporting.shown import Shown, shown
from selfnpo_core.reporting.words import Names
from selfnpo_core.sampling.medium import Medium
from selfnpo_core.sampling.sample_folder import METADATA

log = logging.getLogger(__name__)
WITHOUT, WITH, METRICS = "without", "with", "metrics.json"
"""In a folder that `compare` made."""


@dataclass(frozen=True, kw_only=True)
class Arms:
    """One folder, or two whose samples are pairs in the same order."""

    root: Path
    """Where the report lies, and figures are looked for."""
    one: Samples
    other: Samples | None
    names: Names
    different: Sequence[str] = ()
    alone: int = 0
    """Samples without a partner."""

    def part(self, files: Sequence[str], others: Sequence[str]) -> tuple[list[Sample], list[Sample]] | None:
        """The samples of these files, None if one is not there."""
        by_name = {s.path.name: s for s in self.one.good}
        other_by_name = {} if self.other is None else {s.path.name: s for s in self.other.good}
        try:
            return [by_name[name] for name in files], [other_by_name[name] for name in others]
        except KeyError:
            return None


@dataclass(frozen=True, kw_only=True)
class Told:
    """Figures that belong to the arms. compared: the metrics.json of `compare`."""

    evaluated: Evaluated | None = None
    studies: Sequence[Study] = ()
    compared: Mapping[str, Figure] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def metrics(self) -> Mapping[str, Figure]:
        return self.compared if self.evaluated is None else self.evaluated.metrics


@dataclass(frozen=True, kw_only=True)
class Card:
    """A sample or a pair on the page. sides: what each is called, and the picture."""

    prompt: str
    seed: int
    sides: Sequence[tuple[str, Shown]]
    scores: Sequence[tuple[str, Sequence[str]]]


def is_compared(path: Path) -> bool:
    return all((path / arm / METADATA).is_file() for arm in (WITHOUT, WITH))


def read_arms(folder: Path, against: Path | None, medium: Medium) -> Arms:
    """Both folders. Samples are hashed but not opened: figures are of bytes, and few samples are shown."""
    root = folder
    if is_compared(folder):
        if against is not None:
            raise InputError(f"{folder} holds both arms already: leave --against out, or give {folder / WITH}")
        folder, against = folder / WITH, folder / WITHOUT
    unopened = replace(medium, read=lambda path: np.empty((0, 0, 0, 3), np.uint8))
    one = read_samples(folder, unopened)
    other = None if against is None else read_samples(against, unopened)
    for samples in (one, other):
        if samples is not None:
            _check(samples)
    if other is None:
        return Arms(root=root, one=one, other=None, names=Names(folder.resolve().name, None))
    if folder.resolve() == other.path.resolve():
        raise InputError(f"{folder} and {other.path} are one folder: give two")
    lonely = len(one.good) + len(other.good)
    one, other, different = pair(one, other, allow_different=True)
    names = Names(folder.resolve().name, other.path.resolve().name)
    if names.one == names.other:
        names = Names(str(folder), str(other.path))
    return Arms(
        root=root,
        one=one,
        other=other,
        names=names,
        different=different,
        alone=lonely - len(one.good) - len(other.good),
    )


def _check(samples: Samples) -> None:
    """Raise for samples from elsewhere: a page is given to others."""
    if not samples.good:
        why = next((f"{problem.file}: {problem.reason}" for problem in samples.problems), "draw some first")
        raise InputError(f"{samples.path} has no sample to show: {why}")
    for sample in samples.good:
        if sample.path.parent != samples.path or sample.path.name == "..":
            raise InputError(f"{samples.path / METADATA} names {sample.path}, which is no file of that folder")


def gather(arms: Arms, given: Mapping[str, Evaluated | Study]) -> Told:
    """Figures that are given, by their files, must be of these samples; those found beside are taken if they are."""
    found: list[Evaluated | Study] = []
    for name, figures in given.items():
        own = _belonging(arms, figures)
        if own is None:
            raise InputError(f"{name} is of other samples than those in {arms.one.path}: evaluate these")
        found.append(own)
    if not found:
        found = _found_beside(arms)
    evaluated = [each for each in found if isinstance(each, Evaluated)]
    if len(evaluated) > 1 and given:
        raise InputError("several --figures are by evaluate: measure everything at once, with --metrics A,B,…")
    compared, notes = _compared(arms) if not evaluated else ({}, [])
    return Told(
        evaluated=evaluated[0] if evaluated else None,
        studies=[each for each in found if isinstance(each, Study)],
        compared=compared,
        notes=notes,
    )


def _found_beside(arms: Arms) -> list[Evaluated | Study]:
    """The newest figures by `evaluate`, and all studies."""
    found: list[Evaluated | Study] = []
    for file, figures in _near(arms):
        own = _belonging(arms, figures)
        if own is None or (isinstance(own, Evaluated) and any(isinstance(each, Evaluated) for each in found)):
            log.info("left out: %s is of other samples, or older than another", file)
            continue
        log.info("figures: %s", file)
        found.append(own)
    return found


def _near(arms: Arms) -> Iterator[tuple[Path, Evaluated | Study]]:
    """Figures in the folder, and above one of samples, where damaged files may be anybody's."""
    yield from figures_in(arms.root)
    if arms.root == arms.one.path:
        try:
            yield from figures_in(arms.root.resolve().parent)
        except InputError as error:
            log.warning("left out: %s", error)


def _belonging(arms: Arms, figures: Evaluated | Study) -> Evaluated | Study | None:
    """Figures as of these arms, turned if need be; None if they are of others."""
    if isinstance(figures, Study):
        names = sorted(Path(name).name for name in figures.arms.values())
        own = [each.path.resolve().name for each in (arms.one, arms.other) if each is not None]
        return figures if names == sorted(own) else None
    if (figures.against is None) != (arms.other is None):
        return None
    ways = [figures] if figures.against is None else [figures, figures.turned()]
    return next((way for way in ways if _is_of(arms, way)), None)


def _is_of(arms: Arms, figures: Evaluated) -> bool:
    """Whether figures are of these arms: by all samples' bytes or, of an earlier version's, by how they were made."""
    scores = figures.per_sample
    if scores is None:
        pairs = [(figures.folder, arms.one), (figures.against, arms.other)]
        return all(a is None or s is None or dict(a.made) == dict(s.model) for a, s in pairs)
    part = arms.part(scores.value_files, scores.against_files)
    if part is None:
        return False
    one, other = part
    return digest(one) == scores.value_sha256 and (not other or digest(other) == scores.against_sha256)


def _compared(arms: Arms) -> tuple[dict[str, Figure], list[str]]:
    file = arms.root / METRICS
    if arms.other is None or not is_compared(arms.root) or not file.is_file():
        return {}, []
    stored = read_json_object(file)
    try:
        figures, note = read_compared(stored)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file} is damaged ({type(error).__name__}): compare again, or remove it") from None
    return figures, [] if note is None else [f"{METRICS}: {note}."]


def warnings(arms: Arms, told: Told) -> list[str]:
    found = list(told.notes)
    if arms.different:
        found.append(f"The folders differ in {', '.join(arms.different)}: what is seen may come from that.")
    if arms.alone:
        found.append(f"Without a partner of their prompt and seed, and so left out: {arms.alone} samples.")
    for samples in (arms.one, arms.other):
        missing = [] if samples is None else samples.problems
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            found.append(f"Left out of the page: {missing[0]}{more}.")
    if told.evaluated is not None:
        found += words.spoilt(told.evaluated)
        if told.evaluated.per_sample is None:
            found.append("The figures are of an earlier version, which does not tell exactly which files it measured.")
    for name, figure in told.metrics.items():
        found += words.cautions(name, figure, arms.names)
    return found


def title(arms: Arms) -> str:
    told = arms.names.one if arms.names.other is None else f"{arms.names.one} against {arms.names.other}"
    return told if arms.root == arms.one.path else f"{arms.root.resolve().name}: {told}"


def conditions(arms: Arms) -> list[tuple[str, Sequence[str]]]:
    """How the samples were made: a value for both arms, or one for each from the left to the right."""
    count = len(arms.one.good)
    seeds = [sample.seed or 0 for sample in arms.one.good]
    texts = len({sample.prompt for sample in arms.one.good})
    what = "pairs" if arms.other else "samples"
    found: list[tuple[str, Sequence[str]]] = [
        (what, [f"{count}, of {texts} prompts, seeds {min(seeds)} to {max(seeds)}"])
    ]
    made = [each.model for each in (arms.other, arms.one) if each is not None]
    for key in dict.fromkeys(key for each in made for key in each):
        values = [_value(each.get(key)) for each in made]
        if any(value != "—" for value in values):
            found.append((key.replace("_", " "), values[:1] if len(set(values)) == 1 else values))
    return found


def _value(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"):
        return value[:16] + "…"
    return "—" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def groups(
    arms: Arms, told: Told, medium: Medium, *, by: str | None, most: int, seed: int
) -> tuple[list[tuple[Group, list[Card]]], str | None]:
    """Groups of cards to show, and why there is none by a score."""
    evaluated = told.evaluated
    score, why = choose_score(evaluated, by)
    scored: list[float | None] | None = None
    if score is not None:
        assert evaluated is not None
        scored = _in_order(arms, evaluated, gains(evaluated, score))
    chosen = choose(len(arms.one.good), scored, score=score, most=most, seed=seed, paired=arms.other is not None)
    return [(group, [_card(arms, evaluated, row, medium) for row in group.rows]) for group in chosen], why


def _in_order(arms: Arms, evaluated: Evaluated, values: Sequence[float | None]) -> list[float | None]:
    """Values in the order of the arms' samples, from that of the measured files."""
    assert evaluated.per_sample is not None
    by_file = dict(zip(evaluated.per_sample.value_files, values, strict=True))
    return [by_file.get(sample.path.name) for sample in arms.one.good]


def _card(arms: Arms, evaluated: Evaluated | None, row: int, medium: Medium) -> Card:
    sample = arms.one.good[row]
    samples = [sample] if arms.other is None else [arms.other.good[row], sample]
    return Card(
        prompt=str(sample.prompt),
        seed=sample.seed or 0,
        sides=[
            (name, shown(each.path, medium, each.record.get("fps")))
            for name, each in zip(arms.names.sides, samples, strict=True)
        ],
        scores=_scores(arms, evaluated, sample.path.name),
    )


def _scores(arms: Arms, evaluated: Evaluated | None, file: str) -> list[tuple[str, Sequence[str]]]:
    """Every metric's scores of a sample, in the order of the sides, then their difference."""
    scores = None if evaluated is None else evaluated.per_sample
    if scores is None or file not in scores.value_files:
        return []
    row = scores.value_files.index(file)
    found: list[tuple[str, Sequence[str]]] = []
    for name, column in scores.value.items():
        values = [column[row]]
        if arms.other is not None:
            before = scores.against[name][row] if name in scores.against else None
            values.insert(0, before)
        known = [value for value in values if value is not None]
        cells = ["—" if value is None else f"{value:.3g}" for value in values]
        if len(known) == 2:
            cells.append(f"{known[1] - known[0]:+.3g}")
        found.append((name, cells))
    return found
