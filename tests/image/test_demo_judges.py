"""What the judges are trained and asked on: labels, damage, pairs of known order."""

import pytest
import torch

from selfnpo_core.worlds.judge import change_one_attribute
from selfnpo_core.worlds.world import correct
from selfnpo_image.demo import world
from selfnpo_image.demo.build import judge as building
from selfnpo_image.demo.judges import Judge, Oracle


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_correct_ignores_what_a_caption_lacks():
    labels = torch.tensor([[0, 1, -1], [31, -1, 5]])
    logits = [torch.zeros(2, len(values)) for values in world.ATTRIBUTES.values()]
    for column, head in enumerate(logits):
        head[torch.arange(2), labels[:, column].clamp(min=0)] = 1.0
    assert correct(logits, labels).all()
    logits[1] = torch.eye(2)[[0, 1]]
    assert correct(logits, labels).tolist() == [[True, False, True], [True, True, True]]


def test_one_attribute_is_changed_and_the_scene_stays_possible():
    labels = world.draw_labels(400, generator(1))
    changed = change_one_attribute(labels, building.SIZES, generator(2))
    assert ((labels != changed).sum(dim=1) == 1).all()
    assert (labels != changed).any(dim=0).all()
    some = torch.where(torch.arange(3) == 1, -1, labels)
    assert (change_one_attribute(some, building.SIZES, generator(2))[:, 1] == -1).all()
    assert [world.parse_caption(world.caption(row)) for row in changed.tolist()] == changed.tolist()


@pytest.mark.parametrize("kind", range(building.KINDS))
def test_more_harm_changes_a_picture_or_its_latents_more(kind):
    """And what is of latents leaves pictures alone, and the other way round."""
    pictures = world.render(world.draw_labels(64, generator(3)), generator(4))
    latents = torch.randn(64, 4, 16, 16, generator=generator(6))
    change = []
    for level in (0.0, 0.3, 0.9):
        of = torch.full((64,), level), torch.full((64,), kind), generator(5)
        harmed = building.damage_pictures(pictures, *of) - pictures, building.damage_latents(latents, *of) - latents
        change.append([x.square().mean().item() for x in harmed])
    least, some, most = (pair[kind >= 3] for pair in change)
    assert least < 1e-6
    assert least < some < most
    assert max(pair[kind < 3] for pair in change) == 0


def test_networks_take_pictures_of_the_world():
    pictures, labels = world.draw_world(3, generator(7))
    assert [len(head[0]) for head in Oracle()(pictures / 255)] == [len(v) for v in world.ATTRIBUTES.values()]
    assert Judge()(pictures / 255, labels).shape == (3,)
