"""InceptionV3's features, of which FID (1706.08500) and KID (1801.01401) are commonly given."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from selfnpo_core.evaluation import fidelity
from selfnpo_core.evaluation.networks import Look, Network
from selfnpo_core.evaluation.weights import Wanted, library
from selfnpo_core.sampling.medium import Frames


def inception_network() -> Network:
    """2,048 features of torch-fidelity's network, the port of TensorFlow's of 2015-12-05."""
    wanted = Wanted(repo="torch-fidelity", files=(fidelity.WEIGHTS,), hub=False, elsewhere=fidelity.SOURCE)
    return Network(
        name="inception",
        model="InceptionV3 of TensorFlow, 2015-12-05, layer 2048",
        preprocessing="299×299, bilinear as in TensorFlow 1 without antialiasing, [−1, 1]",
        library=library("torch-fidelity"),
        wanted=(wanted,),
        load=_load,
        check=fidelity.require,
    )


def _load(places: Sequence[Path], device: torch.device) -> Look:
    network = fidelity.inception(places[0], device)

    def look(samples: Sequence[Frames], prompts: Sequence[str]) -> Tensor:
        """Together if they are of one size; the network resizes them itself."""
        pictures = [torch.from_numpy(frames).permute(0, 3, 1, 2).to(device) for frames in samples]
        together = len({picture.shape for picture in pictures}) == 1
        return torch.cat([network(some)[0] for some in ([torch.cat(pictures)] if together else pictures)])

    return look
