"""How much moves in a clip, so that a metric that is won by freezing the picture is seen to be.

motion = mean |I_{f+1} − I_f|, of pixels in [0, 1]
speed  = Σ |∂I/∂t| / Σ |∇I|, of grey pictures: how many pixels a frame contours travel across themselves, from
         the constancy of brightness (Horn and Schunck 1981); contrast cancels
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from selfnpo_core.evaluation.networks import Look, Network
from selfnpo_core.evaluation.weights import library
from selfnpo_core.sampling.medium import Frames

GREY = torch.tensor([0.299, 0.587, 0.114])
"""ITU-R BT.601."""


def motion_network() -> Network:
    """No network at all; both are 0 of a single frame."""

    def load(places: Sequence[Path], device: torch.device) -> Look:
        return lambda samples, prompts: torch.stack([measured(frames) for frames in samples])

    return Network(
        name="motion",
        columns=("motion", "speed"),
        model="differences of frames",
        preprocessing="pixels in [0, 1]",
        library=library("torch"),
        load=load,
    )


def measured(samples: Frames) -> Tensor:
    """Frames (F, H, W, 3) uint8 → motion and speed, (2,)."""
    frames = torch.from_numpy(samples) / 255
    if len(frames) < 2:
        return torch.zeros(2)
    grey = frames @ GREY
    middle = (grey[1:] + grey[:-1]) / 2
    across, down = torch.gradient(middle, dim=(2, 1))
    contrast = (across.square() + down.square()).sqrt().sum()
    changes = grey.diff(dim=0).abs().sum()
    return torch.stack([frames.diff(dim=0).abs().mean(), changes / contrast.clamp(min=1e-6)])
