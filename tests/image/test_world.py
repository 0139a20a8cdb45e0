"""The demo world: captions and pictures say the same thing."""

import pytest
import torch

from selfnpo_core.worlds import things
from selfnpo_image.demo import world


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_captions_parse_back_to_their_labels():
    g = generator()
    labels = world.draw_labels(500, g)
    for text, row in zip(world.draw_captions(labels, g), labels.tolist(), strict=True):
        assert world.parse_caption(text) == row


@pytest.mark.parametrize(
    "text",
    ["", "a cat", "a small cat on a blue floor", "a huge cat on a blue ground", "a small dog on a blue ground"],
)
def test_other_sentences_do_not_parse(text):
    assert world.parse_caption(text) is None


def test_the_same_seed_draws_the_same_pictures():
    a, b = world.draw_world(8, generator(3)), world.draw_world(8, generator(3))
    assert torch.equal(a[0], b[0])
    assert not torch.equal(a[0], world.draw_world(8, generator(4))[0])


def covered(size: str, thing: str = "camera", count: int = 16) -> torch.Tensor:
    """Where a dark thing is on white, (count, 64, 64) bool."""
    labels = torch.tensor([world.parse_caption(f"a {size} {thing} on a white ground")] * count)
    return world.render(labels, generator(1)).mean(1) < 0.4


def test_large_things_are_larger_than_small_ones():
    small, large = covered("small").sum((1, 2)), covered("large").sum((1, 2))
    assert small.min() > 60
    assert (large.min() / small.max()) > (50 / 34) ** 2 * 0.9
    assert (large.float().mean() / small.float().mean()).item() == pytest.approx((54 / 31) ** 2, rel=0.12)


def test_things_are_whole():
    for size in world.SIZES:
        mask = covered(size)
        edges = torch.stack([mask[:, 0], mask[:, -1], mask[:, :, 0], mask[:, :, -1]])
        assert not edges.any()


@pytest.mark.parametrize(("ground", "most"), [("blue", 2), ("green", 1)])
def test_grounds_have_their_colour(ground, most):
    labels = torch.tensor([world.parse_caption(f"a small cat on a {ground} ground")] * 20)
    corners = world.render(labels, generator(2))[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    seen = corners.median(dim=2).values
    assert (seen.argmax(dim=1) == most).all()


def test_both_sides_of_a_thing_are_seen():
    """A cat's head is at the right of its picture, or where it is mirrored at the left."""
    count = 400
    canvas = torch.ones(count, 3, 64, 64)
    still = {
        "centre": torch.zeros(count, 2),
        "extent": torch.full((count,), 64.0),
        "angle": torch.zeros(count),
    }
    cat = torch.full((count,), things.THINGS.index("cat"))
    plain = things.paste(canvas, cat, mirrored=torch.zeros(count, dtype=torch.bool), **still)
    mirrored = things.paste(canvas, cat, mirrored=torch.ones(count, dtype=torch.bool), **still)
    torch.testing.assert_close(mirrored, plain.flip(-1))
    assert not torch.allclose(mirrored, plain)


def test_a_thing_laid_on_as_it_is_is_its_tile():
    """At its own size, in the middle and upright: colours and coverage of the sheet, over the canvas."""
    tiles, _ = things.tiles()
    rows = torch.arange(len(things.THINGS))
    canvas = torch.rand(len(rows), 3, 64, 64, generator=generator(3))
    laid = things.paste(
        canvas,
        rows,
        centre=torch.zeros(len(rows), 2),
        extent=torch.full((len(rows),), 64.0),
        angle=torch.zeros(len(rows)),
        mirrored=torch.zeros(len(rows), dtype=torch.bool),
    )
    torch.testing.assert_close(laid, tiles[:, :3] + (1 - tiles[:, 3:]) * canvas, atol=1e-4, rtol=0)


def test_a_thing_moved_and_turned_lies_where_it_should():
    """A quarter turn, then eight pixels to the right and four down, of whole pixels: so nothing is interpolated."""
    row = torch.tensor([things.THINGS.index("key")])
    still = {"extent": torch.tensor([64.0]), "mirrored": torch.tensor([False])}
    canvas = torch.zeros(1, 3, 64, 64)
    upright = things.paste(canvas, row, centre=torch.zeros(1, 2), angle=torch.zeros(1), **still)
    moved = things.paste(canvas, row, centre=torch.tensor([[8.0, 4.0]]), angle=torch.zeros(1), **still)
    torch.testing.assert_close(moved[..., 4:, 8:], upright[..., :-4, :-8], atol=1e-4, rtol=0)
    turned = things.paste(canvas, row, centre=torch.zeros(1, 2), angle=torch.tensor([torch.pi / 2]), **still)
    torch.testing.assert_close(turned, upright.rot90(-1, (-2, -1)), atol=1e-4, rtol=0)


def test_every_thing_has_a_picture_of_its_own():
    tiles, half = things.tiles()
    assert tiles.shape == (len(things.THINGS), 4, 64, 64)
    assert half.shape == (len(things.THINGS), 4, 32, 32)
    assert (tiles[:, 3].mean((1, 2)) > 0.1).all()
    apart = torch.cdist(tiles.flatten(1), tiles.flatten(1))
    assert apart[~torch.eye(len(tiles), dtype=torch.bool)].min() > 5
