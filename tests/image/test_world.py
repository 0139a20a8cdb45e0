"""The demo world: captions and pictures say the same thing."""

import pytest
import torch

from selfnpo_image.demo import world


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_captions_parse_back_to_their_labels():
    g = generator()
    labels = world.draw_labels(500, g)
    for text, row in zip(world.draw_captions(labels, g), labels.tolist(), strict=True):
        assert world.parse_caption(text) == row


@pytest.mark.parametrize(
    "text", ["", "a cat", "a large red circle", "a red circle above", "a huge red ring on the left"]
)
def test_other_sentences_do_not_parse(text):
    assert world.parse_caption(text) is None


def test_the_same_seed_draws_the_same_pictures():
    a, b = world.draw_world(8, generator(3)), world.draw_world(8, generator(3))
    assert torch.equal(a[0], b[0])
    assert not torch.equal(a[0], world.draw_world(8, generator(4))[0])


def _one(shape: str, place: str = "in the middle", size: str = "large") -> torch.Tensor:
    """The mask of a black object drawn alone, 64×64 bool."""
    labels = torch.tensor([world.parse_caption(f"a {size} black {shape} {place}")])
    return world.render(world.draw_scenes(labels, generator(1)))[0].mean(0) < 0.4


@pytest.mark.parametrize(
    ("place", "axis", "sign"),
    [("on the left", 1, -1), ("on the right", 1, 1), ("at the top", 0, -1), ("at the bottom", 0, 1)],
)
def test_objects_stand_where_the_caption_says(place, axis, sign):
    centre = _one("circle", place).nonzero().float().mean(0) - 31.5
    assert sign * centre[axis] > 10
    assert abs(centre[1 - axis]) < 4


def test_areas_are_those_of_the_shapes():
    area = {shape: _one(shape).sum().item() for shape in world.SHAPES}
    circle = area["circle"]
    assert area["square"] / circle == pytest.approx(4 * 0.88**2 / torch.pi, rel=0.03)
    assert area["ring"] / circle == pytest.approx((1.02**2 - 0.54**2), rel=0.05)
    assert area["cross"] / circle == pytest.approx((4 * 2 * 0.34 - 4 * 0.34**2) / torch.pi, rel=0.05)
    assert area["star"] / circle == pytest.approx(
        5 * 1.15 * 0.5 * torch.sin(torch.tensor(torch.pi / 5)).item() / torch.pi, rel=0.05
    )
    assert _one("circle", size="small").sum() < 0.5 * circle
    middle = _one("ring")[24:40, 24:40]
    assert not middle[6:10, 6:10].any()


def test_first_object_is_left_or_above():
    labels = torch.tensor([world.parse_caption("a red circle to the left of a blue circle")] * 4)
    picture = world.render(world.draw_scenes(labels, generator(2)))
    left, right = picture[..., 20:44, :32].mean((0, 2, 3)), picture[..., 20:44, 32:].mean((0, 2, 3))
    assert left[0] > right[0]
    assert right[2] > left[2]
