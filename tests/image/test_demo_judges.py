"""What the judges are trained and asked on: labels, damage, pairs of known order."""

import pytest
import torch

from selfnpo_core.errors import RunError
from selfnpo_image.demo import world
from selfnpo_image.demo.build import judge as building
from selfnpo_image.demo.build import pack
from selfnpo_image.demo.judges import Judge, Oracle, correct


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_correct_ignores_what_a_caption_lacks():
    labels = torch.tensor([[0, 2, 1, 3, 4, -1, -1], [1, -1, -1, 3, 4, 5, 6]])
    logits = [torch.zeros(2, len(values)) for values in world.ATTRIBUTES.values()]
    for column, head in enumerate(logits):
        head[torch.arange(2), labels[:, column].clamp(min=0)] = 1.0
    assert correct(logits, labels).all()
    logits[3][0] = torch.eye(len(world.SHAPES))[0]
    assert correct(logits, labels).tolist() == [[True, True, True, False, True, True, True], [True] * 7]


def test_one_attribute_is_changed_and_the_scene_stays_possible():
    labels = world.draw_labels(400, generator(1))
    changed = building.change_one_attribute(labels, generator(2))
    assert ((labels != changed).sum(dim=1) == 1).all()
    assert ((labels < 0) == (changed < 0)).all()
    assert torch.equal(labels[:, 0], changed[:, 0])
    assert [world.parse_caption(world.caption(row)) for row in changed.tolist()] == changed.tolist()


def test_more_damage_changes_a_picture_more():
    pictures = world.render(world.draw_scenes(world.draw_labels(64, generator(3)), generator(4)))
    change = [
        (building.damage_pictures(pictures, torch.full((64,), level), generator(5)) - pictures).square().mean().item()
        for level in (0.0, 0.3, 0.9)
    ]
    assert change[0] < 1e-6
    assert change[0] < change[1] < change[2]


def test_known_pairs_are_ordered_as_they_say():
    g = generator(6)
    rated = building.Rated(
        pictures=torch.zeros(200, 0),
        asked=torch.zeros(200, 7),
        damage=torch.rand(200, generator=g),
        wrong=torch.rand(200, generator=g) < 0.5,
    )
    better, worse, by_damage = building.known_pairs(rated, 5000, g)
    assert by_damage.any()
    assert (~by_damage).any()
    assert (rated.damage[worse] > rated.damage[better])[by_damage].all()
    assert not rated.wrong[better].any()
    assert torch.equal(rated.wrong[worse], ~by_damage)


def test_networks_take_pictures_of_the_world():
    pictures, labels = world.draw_world(3, generator(7))
    assert [len(head[0]) for head in Oracle()(pictures / 255)] == [len(v) for v in world.ATTRIBUTES.values()]
    assert Judge()(pictures / 255, labels).shape == (3,)


def test_a_ragged_demo_model_is_refused():
    pack.refuse_ragged(0.85, 3.0)
    with pytest.raises(RunError, match=r"joint prompt accuracy 0\.790"):
        pack.refuse_ragged(0.79, 3.0)
    with pytest.raises(RunError, match="reconstruction FID"):
        pack.refuse_ragged(0.85, pack.MAX_RECONSTRUCTION_FID + 0.1)
