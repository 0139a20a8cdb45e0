"""What other commands wrote as JSON: `evaluate --json`, `study --results --json`, the metrics.json of `compare`.

A difference is always that of the arm that is reported on minus the other. `evaluate`'s figures may have been taken the
other way round, and are then turned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from selfnpo_core.errors import InputError
from selfnpo_core.evaluation.intervals import Interval
from selfnpo_core.system.files import read_json

Command = Literal["evaluate", "study", "compare"]
"""What wrote a file."""


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True)


class Limit(_Stored):
    """A distance extrapolated to infinitely many samples."""

    infinity: float


class Figure(_Stored):
    """A metric of one arm, or of two."""

    better: Literal["higher", "lower", "neither"] = "higher"
    count: int
    value: Interval | None = None
    against: Interval | None = None
    change: Interval | None = None
    win_rate: Interval | None = None
    p: float | None = None
    p_holm: float | None = None
    test: str | None = None
    limit: Limit | None = None
    against_limit: Limit | None = None
    reference_count: int | None = None
    network: str | None = None
    model: str | None = None
    weights_sha256: Mapping[str, str] = {}
    library: str | None = None

    @property
    def is_biased(self) -> bool:
        """Whether it is a Fréchet distance, which is too large at every n."""
        return "limit" in self.model_fields_set

    def turned(self) -> Figure:
        """The other arm's figure."""
        wins = self.win_rate and Interval(1 - self.win_rate.value, 1 - self.win_rate.high, 1 - self.win_rate.low)
        change = self.change and Interval(-self.change.value, -self.change.high, -self.change.low)
        swapped: dict[str, Any] = {"value": self.against, "against": self.value, "change": change, "win_rate": wins}
        if self.is_biased:
            swapped |= {"limit": self.against_limit, "against_limit": self.limit}
        return self.model_copy(update=swapped)


class Folder(_Stored):
    """A folder, as `evaluate` saw it."""

    path: str
    samples: int
    made: Mapping[str, Any]


class Skipped(_Stored):
    folder: str
    file: str
    reason: str


ByMetric = Mapping[str, Sequence[float | None]]
"""By metric, a number a sample."""


class PerSample(_Stored):
    """Scores of single samples, and which samples those are."""

    value: ByMetric
    value_files: Sequence[str]
    value_sha256: str
    against: ByMetric = {}
    against_files: Sequence[str] = ()
    against_sha256: str | None = None

    @model_validator(mode="after")
    def _same_lengths(self) -> PerSample:
        for scores, files in ((self.value, self.value_files), (self.against, self.against_files)):
            if wrong := [name for name, column in scores.items() if len(column) != len(files)]:
                raise ValueError(f"per_sample has {len(scores[wrong[0]])} scores {wrong[0]} of {len(files)} files")
        if self.against_files and len(self.against_files) != len(self.value_files):
            raise ValueError("per_sample has arms of two lengths")
        return self

    def turned(self) -> PerSample:
        assert self.against_sha256 is not None
        return PerSample(
            value=self.against,
            value_files=self.against_files,
            value_sha256=self.against_sha256,
            against=self.value,
            against_files=self.value_files,
            against_sha256=self.value_sha256,
        )


class Evaluated(_Stored):
    """What `evaluate --json` wrote."""

    version: Literal[1] = Field(alias="schema")
    folder: Folder
    against: Folder | None
    reference: Folder | None = None
    skipped: Sequence[Skipped] = ()
    different: Sequence[str] = ()
    metrics: Mapping[str, Figure]
    per_sample: PerSample | None = None
    """Absent in files of earlier versions."""

    @model_validator(mode="after")
    def _whole(self) -> Evaluated:
        scores = self.per_sample
        if scores is not None and (self.against is None) != (scores.against_sha256 is None):
            raise ValueError("per_sample is not of these arms")
        if scores is not None and (strange := {*scores.value, *scores.against} - self.metrics.keys()):
            raise ValueError(f"per_sample has {min(strange)}, which is no metric")
        return self

    def turned(self) -> Evaluated:
        assert self.against is not None
        return self.model_copy(
            update={
                "folder": self.against,
                "against": self.folder,
                "metrics": {name: figure.turned() for name, figure in self.metrics.items()},
                "per_sample": self.per_sample and self.per_sample.turned(),
            }
        )


class Question(_Stored):
    key: str
    text: str
    votes: int
    wins: int
    ties: int
    losses: int
    win_rate: float | None
    wilson: tuple[float, float] | None
    bootstrap: tuple[float, float] | None
    alpha: float | None


class Participants(_Stored):
    counted: int
    finished: int
    excluded: int


class Study(_Stored):
    """What `study --results --json` wrote."""

    version: Literal[1] = Field(alias="schema")
    arms: Mapping[Literal["a", "b"], str]
    pairs: int
    participants: Participants
    questions: Sequence[Question]


def read_compared(values: Mapping[str, Any]) -> tuple[dict[str, Figure], str | None]:
    """The metrics.json of `compare` as figures, and what it says where it has none."""
    count, better = values["judged"], {"fid": "lower", "fvd": "lower"}
    if not count:
        return {}, str(values.get("note", "nothing was judged"))
    change = values["change"]
    found = {
        name: Figure.model_validate(
            {
                "better": better.get(name, "higher"),
                "count": count,
                "value": values["with"][name],
                "against": values["without"][name],
                "change": change.get(f"{name}_change"),
                **({"limit": None} if name in better else {}),
            }
        )
        for name in values["with"]
        if name != "by_attribute"
    }
    return found | {"preference": Figure(count=count, win_rate=Interval(*change["win_rate"]))}, None


def read_json_object(file: Path) -> dict[str, Any]:
    """The object in a file, or an empty one for other JSON. Raises `InputError` for what is no JSON."""
    try:
        stored = read_json(file)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}): give a file of figures") from None
    except ValueError as error:
        raise InputError(f"{file} is damaged, it is no JSON ({' '.join(str(error).split())}): write it anew") from None
    return stored if isinstance(stored, dict) else {}


def kind_of(stored: Mapping[str, Any]) -> Command | None:
    """Whose figures these are, if they are any."""
    kinds: Mapping[Command, set[str]] = {
        "evaluate": {"schema", "folder", "metrics"},
        "study": {"schema", "arms", "questions"},
        "compare": {"schema", "judged"},
    }
    return next((kind for kind, keys in kinds.items() if keys <= stored.keys()), None)


def read_figures(file: Path) -> Evaluated | Study:
    """Figures from a file of `evaluate` or `study`."""
    stored = read_json_object(file)
    kind = kind_of(stored)
    if kind not in ("evaluate", "study"):
        raise InputError(f"{file} holds no figures: give a file that `evaluate --json` or `study --json` wrote")
    try:
        return (Evaluated if kind == "evaluate" else Study).model_validate(stored)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{file} is damaged or of another version ({place}: {first['msg']}): write it anew") from None


def figures_in(folder: Path) -> Iterator[tuple[Path, Evaluated | Study]]:
    """All figures in a folder, the newest first. Raises `InputError` for JSON that is damaged."""
    files = [file for file in folder.glob("*.json") if file.is_file()]
    for file in sorted(files, key=lambda file: (-file.stat().st_mtime, file.name)):
        if kind_of(read_json_object(file)) in ("evaluate", "study"):
            yield file, read_figures(file)
