"""Training a preference judge on pairs whose better side is known.

Each sample has an asked caption, a damage level in [0, 1] and, in some of them, one attribute drawn otherwise than
asked. Samples come as twins: two of one caption, placed alike and harmed in the same way, to levels of their own. Of
two samples the better is the one that is as asked when the damage is alike, or the less damaged when both are as asked;
between samples that are no twins levels are of different harms, so there only hardly any damage against much counts.
The loss is Bradley–Terry's −log σ(score_better − score_worse).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from selfnpo_core.system.files import write_tensors
from selfnpo_core.worlds.building import cosine, progress, save

HARDLY, MUCH = 0.05, 0.3
"""Damage below the first is less than any above the second, whatever the harm."""


@dataclass(frozen=True, kw_only=True)
class Rated:
    """data (N, 3, …) uint8, asked labels (N, attributes), damage (N,) in [0, 1], wrong (N,) bool.

    Rows 2i and 2i + 1 are twins.
    """

    data: Tensor
    asked: Tensor
    damage: Tensor
    wrong: Tensor


@dataclass(frozen=True, kw_only=True)
class Twins:
    """What is to be drawn: asked and drawn labels (N, attributes), damage and wrong as of `Rated`."""

    asked: Tensor
    drawn: Tensor
    damage: Tensor
    wrong: Tensor


def draw_twins(asked: Tensor, sizes: Sequence[int], generator: torch.Generator) -> Twins:
    """Two rows for each of the labels asked (N/2, attributes); `sizes`: of values that each attribute has.

    Four rows in ten have one attribute otherwise than asked, two in ten have no damage.
    """
    asked = asked.repeat_interleave(2, dim=0)
    count = len(asked)
    wrong = torch.rand(count, generator=generator) < 0.4
    drawn = torch.where(wrong[:, None], change_one_attribute(asked, sizes, generator), asked)
    damage = torch.rand(count, generator=generator) * (torch.rand(count, generator=generator) < 0.8)
    return Twins(asked=asked, drawn=drawn, damage=damage, wrong=wrong)


def draw_kinds(count: int, kinds: int, generator: torch.Generator) -> Tensor:
    """A kind of harm for each row, (count,) int64: twins have the same."""
    return torch.randint(kinds, (count // 2,), generator=generator).repeat_interleave(2)


def change_one_attribute(labels: Tensor, sizes: Sequence[int], generator: torch.Generator) -> Tensor:
    """Labels with one attribute that they name set to another of its `sizes` values."""
    changed, limits = labels.clone(), torch.tensor(sizes)
    weights = (labels >= 0).float()
    column = torch.multinomial(weights, 1, generator=generator)[:, 0]
    rows = torch.arange(len(labels))
    shift = 1 + (torch.rand(len(labels), generator=generator) * (limits[column] - 1)).long()
    changed[rows, column] = (labels[rows, column] + shift) % limits[column]
    return changed


def known_pairs(rated: Rated, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (better, worse) of pairs whose order is known, and whether the damage (True) or the content decided.

    Half of the `count` pairs that are looked at are twins.
    """
    a = torch.randint(len(rated.damage), (count,), generator=generator)
    b = torch.randint(len(rated.damage), (count,), generator=generator)
    b = torch.where(torch.rand(count, generator=generator) < 0.5, a ^ 1, b)
    twins, more = b == a ^ 1, rated.damage[b] - rated.damage[a]
    plainly = (rated.damage[a] < HARDLY) & (rated.damage[b] > MUCH)
    by_damage = ~rated.wrong[a] & ~rated.wrong[b] & (twins & (more > 0.1) | plainly)
    by_content = ~rated.wrong[a] & rated.wrong[b] & (more.abs() < 0.15)
    keep = by_damage | by_content
    return a[keep], b[keep], by_damage[keep]


def train_judge(
    judge: nn.Module, rated: Rated, path: Path, *, steps: int, batch: int, generator: torch.Generator
) -> None:
    """Train a judge `(x, labels)` → scores and keep it at `path`. `batch` is drawn before pairs are filtered."""
    optimizer = torch.optim.AdamW(judge.parameters(), 1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: cosine(s, steps))
    bar = progress(steps, "judge")
    for step in bar:
        better, worse, _ = known_pairs(rated, batch, generator)
        rows = torch.cat([better, worse])
        data = rated.data[rows].float() / 255
        data = data + 0.02 * torch.randn(data.shape, generator=generator)
        first, second = judge(data, rated.asked[rows]).chunk(2)
        loss = -F.logsigmoid(first - second).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    save(judge, path)


def kept(path: Path, make: Callable[[], Rated]) -> Rated:
    """Rated samples from disk, or made now and put there."""
    if not path.exists():
        write_tensors(path, {k: v.to(torch.uint8) if v.dtype == torch.bool else v for k, v in vars(make()).items()})
    stored = load_file(path)
    return Rated(**{**stored, "wrong": stored["wrong"].bool()})


@torch.no_grad()
def agreement(judge: nn.Module, rated: Rated, generator: torch.Generator, pairs: int = 40_000) -> dict[str, float]:
    """Share of known pairs of fresh samples that the judge orders rightly, by what decides them."""
    parts = zip(rated.data.split(128), rated.asked.split(128), strict=True)
    scores = torch.cat([judge(some.float() / 255, asked) for some, asked in parts])
    better, worse, by_damage = known_pairs(rated, pairs, generator)
    right = scores[better] > scores[worse]
    return {
        "damage": round(right[by_damage].float().mean().item(), 4),
        "content": round(right[~by_damage].float().mean().item(), 4),
    }


@torch.no_grad()
def preferred_share(judge: nn.Module, first: Tensor, second: Tensor, asked: Tensor) -> float:
    """Share of pairs in which the judge prefers the first. first, second: (N, 3, …) uint8; asked: (N, attributes)."""

    def scores(data: Tensor) -> Tensor:
        parts = zip(data.split(128), asked.split(128), strict=True)
        return torch.cat([judge(some.float() / 255, labels) for some, labels in parts])

    return round((scores(first) > scores(second)).float().mean().item(), 4)
