"""The video demo's world: captions and clips say the same thing."""

from dataclasses import replace

import pytest
import torch

from selfnpo_core.errors import InputError
from selfnpo_video.demo import world


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_captions_parse_back_to_their_labels():
    g = generator()
    labels = world.draw_labels(500, g)
    for text, row in zip(world.draw_captions(labels, g), labels.tolist(), strict=True):
        assert world.parse_caption(text) == row


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a cat",
        "a cat moves",
        "a cat moves slowly",
        "a cat sleeps slowly up",
        "a fox moves slowly up",
        "cat moves slowly up",
    ],
)
def test_other_sentences_do_not_parse(text):
    assert world.parse_caption(text) is None


def test_the_same_seed_draws_the_same_clips():
    a, b = world.draw_world(3, generator(3)), world.draw_world(3, generator(3))
    assert a[0].shape == (3, 3, 9, 32, 32)
    assert torch.equal(a[0], b[0])
    assert not torch.equal(a[0], world.draw_world(3, generator(4))[0])


def centres(caption: str, frames: int, count: int = 6) -> torch.Tensor:
    """Where the thing is in `count` clips of a caption, (count, F, 2): x, y in pixels, from what differs from the
    ground. A thing that is cut off by the edge would seem to move less, so it is made small."""
    labels = torch.tensor([world.parse_caption(caption)] * count)
    clips = world.draw_clips(labels, generator(1), frames)
    clips = replace(clips, extent=torch.full((count,), 8.0))
    cover = (world.render(clips) - clips.ground[:, :, None]).abs().amax(1)
    axis = torch.arange(float(world.SIDE))
    area = cover.sum((-1, -2))
    return torch.stack([(cover * axis).sum((-1, -2)) / area, (cover * axis[:, None]).sum((-1, -2)) / area], dim=-1)


@pytest.mark.parametrize(
    ("direction", "axis", "sign"), [("to the left", 0, -1), ("to the right", 0, 1), ("up", 1, -1), ("down", 1, 1)]
)
def test_things_move_where_and_as_fast_as_the_caption_says(direction, axis, sign):
    for speed, least, most in (("slowly", 1.7, 2.7), ("quickly", 6.9, 8.6)):
        path = centres(f"a car moves {speed} {direction}", world.FRAMES)
        moved = path[:, -1] - path[:, 0]
        assert (sign * moved[:, axis] > least).all()
        assert (sign * moved[:, axis] < most).all()
        assert (sign * path.diff(dim=1)[..., axis] > -0.1).all()
        assert moved[:, 1 - axis].abs().max() < 0.3


def test_motions_go_on_through_the_whole_of_the_longest_clip():
    """Any nine frames of a long clip move as any other nine do, and the thing stays in sight."""
    path = centres("a car moves quickly to the right", world.LONGEST)
    for first in range(0, world.LONGEST - world.FRAMES + 1, world.FRAMES - 1):
        moved = path[:, first + world.FRAMES - 1] - path[:, first]
        assert (moved[:, 0] > 6.0).all()


def test_a_clip_longer_than_the_motions_go_on_is_refused():
    with pytest.raises(InputError, match="17"):
        world.draw_clips(world.draw_labels(1, generator()), generator(), world.LONGEST + 1)


def test_stills_are_frames_of_clips():
    stills, labels = world.draw_stills(200, generator(5))
    clips, same = world.draw_world(200, generator(5))
    assert stills.shape == (200, 3, 32, 32)
    assert torch.equal(labels, same)
    assert abs(stills.float().mean() - clips.float().mean()) < 6
