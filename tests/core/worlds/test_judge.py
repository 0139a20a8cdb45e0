"""Pairs whose better side is known, and a judge that learns to find it."""

import torch
from torch import nn

from selfnpo_core.worlds.judge import (
    HARDLY,
    MUCH,
    Rated,
    agreement,
    change_one_attribute,
    draw_kinds,
    draw_twins,
    kept,
    known_pairs,
    preferred_share,
    train_judge,
)


def test_known_pairs_are_ordered_as_they_say():
    g = torch.Generator().manual_seed(6)
    rated = Rated(
        data=torch.zeros(200, 0),
        asked=torch.zeros(200, 7),
        damage=torch.rand(200, generator=g),
        wrong=torch.rand(200, generator=g) < 0.5,
    )
    better, worse, by_damage = known_pairs(rated, 5000, g)
    assert by_damage.any()
    assert (~by_damage).any()
    assert (rated.damage[worse] > rated.damage[better])[by_damage].all()
    assert not rated.wrong[better].any()
    assert torch.equal(rated.wrong[worse], ~by_damage)
    twins = better == worse ^ 1
    assert 0.4 < twins.float().mean() < 0.8
    strangers = by_damage & ~twins
    assert strangers.any()
    assert (rated.damage[better][strangers] < HARDLY).all()
    assert (rated.damage[worse][strangers] > MUCH).all()


def test_twins_are_asked_alike_and_harmed_alike():
    g = torch.Generator().manual_seed(8)
    asked = torch.stack([torch.randint(n, (2000,), generator=g) for n in (3, 5)], dim=1)
    twins = draw_twins(asked, (3, 5), g)
    assert torch.equal(twins.asked[::2], asked)
    assert torch.equal(twins.asked[1::2], asked)
    assert torch.equal((twins.drawn != twins.asked).any(dim=1), twins.wrong)
    assert abs(twins.wrong.float().mean() - 0.4) < 0.03
    assert abs((twins.damage == 0).float().mean() - 0.2) < 0.03
    assert (twins.damage[::2] != twins.damage[1::2]).any()
    kinds = draw_kinds(4000, 6, g)
    assert torch.equal(kinds[::2], kinds[1::2])
    assert len(kinds.unique()) == 6


def test_one_named_attribute_is_changed():
    g = torch.Generator().manual_seed(7)
    labels = torch.stack([torch.randint(n, (300,), generator=g) for n in (3, 5, 2)], dim=1)
    labels[::3, 1] = -1
    changed = change_one_attribute(labels, (3, 5, 2), g)
    assert ((labels != changed).sum(dim=1) == 1).all()
    assert (labels != changed).any(dim=0).all()
    assert ((labels < 0) == (changed < 0)).all()
    assert (changed < torch.tensor([3, 5, 2])).all()


class Sees(nn.Module):
    """Scores by brightness, once it knows which way."""

    def __init__(self):
        super().__init__()
        self.way = nn.Parameter(torch.zeros(1))

    def forward(self, x, labels):
        return self.way * x.flatten(1).mean(1)


def rated(count, seed):
    """The more damaged, the darker; all are as asked."""
    g = torch.Generator().manual_seed(seed)
    damage = torch.rand(count, generator=g)
    data = (255 * (1 - damage))[:, None, None, None].expand(-1, 3, 4, 4).to(torch.uint8)
    wrong = torch.zeros(count, dtype=torch.bool)
    return Rated(data=data, asked=torch.zeros(count, 1, dtype=torch.long), damage=damage, wrong=wrong)


def test_a_judge_learns_what_the_pairs_say(tmp_path):
    judge, seen = Sees(), rated(200, 0)
    g = torch.Generator().manual_seed(1)
    train_judge(judge, seen, tmp_path / "judge.safetensors", steps=20, batch=64, generator=g)
    assert judge.way > 0
    assert agreement(judge, rated(200, 2), g)["damage"] > 0.99
    assert [file.name for file in tmp_path.iterdir()] == ["judge.safetensors"]


def test_the_share_that_a_judge_prefers():
    judge = Sees()
    with torch.no_grad():
        judge.way.fill_(1)
    dark, bright = (torch.full((4, 3, 2, 2), value, dtype=torch.uint8) for value in (10, 200))
    mixed = torch.cat([bright[:1], torch.zeros_like(dark[1:])])
    assert preferred_share(judge, bright, dark, torch.zeros(4, 1)) == 1
    assert preferred_share(judge, mixed, dark, torch.zeros(4, 1)) == 0.25


def test_rated_samples_are_made_once(tmp_path):
    first = kept(tmp_path / "rated.safetensors", lambda: rated(5, 3))
    again = kept(tmp_path / "rated.safetensors", lambda: 1 / 0)
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in ("data", "asked", "damage", "wrong"))
    assert again.wrong.dtype == torch.bool
    assert again.data.dtype == torch.uint8
