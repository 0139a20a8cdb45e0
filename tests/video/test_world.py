"""The video demo's world: captions and clips say the same thing."""

from dataclasses import replace

import pytest
import torch

from selfnpo_core.errors import InputError
from selfnpo_video.demo import world

MOTIONS = {"to the left": (0, -1), "to the right": (0, 1), "up": (1, -1), "down": (1, 1)}
"""Direction → axis (x, y) and sign, y pointing down."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_captions_parse_back_to_their_labels():
    g = generator()
    labels = world.draw_labels(500, g)
    for text, row in zip(world.draw_captions(labels, g), labels.tolist(), strict=True):
        assert world.parse_caption(text) == row


@pytest.mark.parametrize("text", ["", "a cat", "a cat sleeps", "a unicorn moves slowly up", "a cat moves slowly north"])
def test_other_sentences_do_not_parse(text):
    assert world.parse_caption(text) is None


def test_the_same_seed_draws_the_same_clips():
    a, b = world.draw_world(3, generator(3)), world.draw_world(3, generator(3))
    assert a[0].shape == (3, 3, 9, 64, 64)
    assert torch.equal(a[0], b[0])
    assert not torch.equal(a[0], world.draw_world(3, generator(4))[0])


def centres(direction: str, speed: str, frames: int) -> torch.Tensor:
    """Where the red of a telephone on black is, (8, F, 2): x, y in pixels."""
    labels = torch.tensor([world.parse_caption(f"a telephone moves {speed} {direction}")] * 8)
    clips = world.draw_clips(labels, generator(1), frames)
    red = world.render(replace(clips, ground=torch.zeros_like(clips.ground)))[:, 0]
    axis = torch.arange(64.0)
    total = red.sum((-1, -2))
    return torch.stack([(red * axis).sum((-1, -2)) / total, (red * axis[:, None]).sum((-1, -2)) / total], dim=-1)


@pytest.mark.parametrize("direction", world.DIRECTIONS)
@pytest.mark.parametrize(("speed", "least", "most"), [("slowly", 2.7, 4.2), ("quickly", 9.0, 11.5)])
def test_things_move_where_and_as_fast_as_the_caption_says(direction, speed, least, most):
    axis, sign = MOTIONS[direction]
    path = centres(direction, speed, world.FRAMES)
    moved = path[:, -1] - path[:, 0]
    assert (sign * moved[:, axis]).median() > least
    assert (sign * moved[:, axis]).median() < most
    assert moved[:, 1 - axis].abs().max() < 0.4
    assert (sign * path.diff(dim=1)[..., axis] > 0).all()


@pytest.mark.parametrize("direction", world.DIRECTIONS)
def test_motions_go_on_through_the_whole_of_the_longest_clip(direction):
    """Any nine frames of a long clip move as any other nine do."""
    labels = torch.tensor([world.parse_caption(f"a cat moves quickly {direction}")] * 8)
    centre = world.draw_clips(labels, generator(1), world.LONGEST).centre
    steps = centre.diff(dim=1)
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), atol=1e-4, rtol=0)
    assert (steps.norm(dim=-1) * (world.FRAMES - 1) > 9.4).all()


def test_a_clip_is_a_part_of_the_longest_one():
    """With the same speed; its first frame is anywhere that leaves room for the others."""
    labels = torch.tensor([world.parse_caption("a cat moves quickly up")] * 200)
    clips = world.draw_clips(labels, generator(4))
    reach = 11.0 * (world.LONGEST - 1) / (world.FRAMES - 1) / 2 + 0.3 * 9
    assert clips.centre[..., 1].abs().max() <= reach
    assert clips.centre[..., 1].max() > 0.6 * reach
    assert clips.centre[..., 1].min() < -0.6 * reach


def test_a_clip_longer_than_the_motions_go_on_is_refused():
    with pytest.raises(InputError, match="33"):
        world.draw_clips(world.draw_labels(1, generator()), generator(), world.LONGEST + 1)


def test_a_still_is_a_frame_of_a_clip():
    pictures, labels = world.draw_stills(12, generator(6))
    assert pictures.shape == (12, 3, 64, 64)
    assert (labels == world.draw_labels(12, generator(6))).all()
    clips = world.to_uint8(world.render(world.draw_clips(labels, _after_labels(12, 6))))
    nearest = (clips.float() - pictures[:, :, None].float()).abs().mean((1, 3, 4)).amin(1)
    assert (nearest < 1e-6).all()


def _after_labels(count: int, seed: int) -> torch.Generator:
    left = generator(seed)
    world.draw_labels(count, left)
    return left
