"""Coloured shapes: what the demo worlds are drawn from.

A shape is a signed distance d(u, v) of about unit radius, negative inside, so one pixel of antialiasing is
clamp(1/2 − r·d, 0, 1) with r the radius in pixels.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "black")
RGB = torch.tensor(
    [
        [0.86, 0.12, 0.12],
        [0.96, 0.52, 0.08],
        [0.98, 0.86, 0.15],
        [0.13, 0.62, 0.22],
        [0.13, 0.30, 0.85],
        [0.55, 0.17, 0.70],
        [0.07, 0.07, 0.09],
    ]
)
"""(7, 3) in [0, 1], in the order of `COLOURS`."""


def _circle(u: Tensor, v: Tensor) -> Tensor:
    return (u.square() + v.square()).sqrt() - 1


def _ring(u: Tensor, v: Tensor) -> Tensor:
    return ((u.square() + v.square()).sqrt() - 0.78).abs() - 0.24


def _square(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(u.abs(), v.abs()) - 0.88


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    side = 0.5 * math.sqrt(3.0) * u.abs() - 0.5 * v
    return torch.maximum(side, v) - 0.62


def _cross(u: Tensor, v: Tensor) -> Tensor:
    long, short = torch.maximum(u.abs(), v.abs()), torch.minimum(u.abs(), v.abs())
    return torch.maximum(long - 1.0, short - 0.34)


def _star(u: Tensor, v: Tensor) -> Tensor:
    """Five points of radius 1.15, five notches of radius 0.5: signed distance to the edge line of the folded sector."""
    sector = math.pi / 5
    phi = torch.remainder(torch.atan2(u, -v), 2 * sector)
    phi = torch.minimum(phi, 2 * sector - phi)
    rho = (u.square() + v.square()).sqrt()
    tip, notch = (1.15, 0.0), (0.5 * math.cos(sector), 0.5 * math.sin(sector))
    ex, ey = notch[0] - tip[0], notch[1] - tip[1]
    length = math.hypot(ex, ey)
    return ((rho * phi.cos() - tip[0]) * ey - (rho * phi.sin() - tip[1]) * ex) / length


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
}
SHAPES = tuple(DISTANCES)
