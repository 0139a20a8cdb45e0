"""The video demo's world: captions and clips say the same thing."""

import pytest
import torch

from selfnpo_core.errors import InputError
from selfnpo_core.worlds.shapes import SHAPES
from selfnpo_video.demo import world


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_captions_parse_back_to_their_labels():
    g = generator()
    labels = world.draw_labels(500, g)
    for text, row in zip(world.draw_captions(labels, g), labels.tolist(), strict=True):
        assert world.parse_caption(text) == row


@pytest.mark.parametrize("text", ["", "a cat", "a red circle", "a red circle sleeps", "a pink ring grows"])
def test_other_sentences_do_not_parse(text):
    assert world.parse_caption(text) is None


def test_the_same_seed_draws_the_same_clips():
    a, b = world.draw_world(3, generator(3)), world.draw_world(3, generator(3))
    assert a[0].shape == (3, 3, 9, 64, 64)
    assert torch.equal(a[0], b[0])
    assert not torch.equal(a[0], world.draw_world(3, generator(4))[0])


def test_what_is_round_does_not_turn():
    labels = world.draw_labels(3000, generator())
    turning = labels[labels[:, 2] == world.MOTIONS.index("turns")]
    assert len(turning) > 100
    assert not {SHAPES.index("circle"), SHAPES.index("ring")} & set(turning[:, 0].tolist())


def masks(motion: str, shape: str = "square", count: int = 6, frames: int = 17) -> torch.Tensor:
    """Where a black shape is, (count, F, 64, 64)."""
    labels = torch.tensor([world.parse_caption(f"a black {shape} {motion}")] * count)
    return world.render(world.draw_clips(labels, generator(1), frames)).mean(1) < 0.4


def centres(mask: torch.Tensor) -> torch.Tensor:
    """(count, F, 2): x, y in pixels."""
    axis = torch.arange(64.0)
    area = mask.sum((-1, -2))
    x = (mask * axis).sum((-1, -2)) / area
    y = (mask * axis[:, None]).sum((-1, -2)) / area
    return torch.stack([x, y], dim=-1)


@pytest.mark.parametrize(
    ("motion", "axis", "sign"),
    [("moves to the left", 0, -1), ("moves to the right", 0, 1), ("moves up", 1, -1), ("moves down", 1, 1)],
)
def test_shapes_move_where_the_caption_says(motion, axis, sign):
    path = centres(masks(motion))
    steps = path.diff(dim=1)
    assert (sign * steps[..., axis] > 0.3).all()
    assert steps[..., 1 - axis].abs().max() < 0.3
    assert (sign * (path[:, -1] - path[:, 0])[:, axis] > 13).all()


def test_shapes_grow_shrink_turn_and_bounce():
    for motion, sign in (("grows", 1), ("shrinks", -1)):
        area = masks(motion).sum((-1, -2)).float()
        assert (sign * area.diff(dim=1) >= 0).all()
        assert (sign * area[:, [0, -1]].log().diff(dim=1) > 0.6).all()
    turning = masks("turns")
    assert centres(turning).diff(dim=1).abs().max() < 0.5
    assert (turning[:, 0] != turning[:, 4]).sum((-1, -2)).min() > 20
    heights = centres(masks("bounces"))[..., 1]
    steps = heights.diff(dim=1)
    assert ((steps < -1).sum(1) >= 3).all()  # up, y points down
    assert ((steps > 1).sum(1) >= 3).all()
    assert (heights.amax(1) - heights.amin(1) > 18).all()


@pytest.mark.parametrize("motion", world.MOTIONS)
def test_motions_go_on_through_the_whole_of_the_longest_clip(motion):
    """Any nine frames of a long clip move as any other nine do."""
    mask = masks(motion, shape="cross", frames=world.LONGEST)
    path, area = centres(mask), mask.sum((-1, -2)).float().log()
    starts = range(0, world.LONGEST - world.FRAMES + 1, world.FRAMES - 1)
    for first in starts:
        part = slice(first, first + world.FRAMES)
        moved, swelled = path[:, part.stop - 1] - path[:, first], area[:, part.stop - 1] - area[:, first]
        if motion.startswith("moves"):
            axis, sign = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}[motion.split()[-1]]
            assert (sign * moved[:, axis] > 4).all()
        elif motion in ("grows", "shrinks"):
            assert ((1 if motion == "grows" else -1) * swelled > 0.2).all()
        elif motion == "turns":
            assert (mask[:, first] != mask[:, first + 4]).sum((-1, -2)).min() > 20
        else:
            assert (path[:, part, 1].amax(1) - path[:, part, 1].amin(1) > 15).all()


def test_a_clip_longer_than_the_motions_go_on_is_refused():
    with pytest.raises(InputError, match="33"):
        world.draw_clips(world.draw_labels(1, generator()), generator(), world.LONGEST + 1)


def test_shapes_stay_in_the_picture():
    clips, _ = world.draw_world(300, generator(5))
    edge = torch.cat([clips[..., 0], clips[..., -1], clips[..., 0, :], clips[..., -1, :]], dim=-1).float()
    assert (edge.amin((1, 2, 3)) < 120).float().mean() < 0.1  # the background is light
