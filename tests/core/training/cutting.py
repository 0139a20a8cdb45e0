"""An engine under ZeRO-3 in a process that a launcher has started: says what making it took, for a test."""

import json
import sys

import torch
from tests.core.training.toy import ToyBackbone, toy_recipe
from torch import Tensor, nn

from selfnpo_core.training import sharding
from selfnpo_core.training.accelerators import make_accelerator, zero3_settings
from selfnpo_core.training.steps import make_steps
from selfnpo_core.training.students import make_student


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(256, 256) for _ in range(16))
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) * self.scale
        return x


if __name__ == "__main__":
    what, output = sys.argv[1:]
    recipe = toy_recipe(engine="zero3", train=what, targets="all")
    backbone = ToyBackbone()
    torch.manual_seed(0)
    backbone.denoiser, backbone.lora_targets = Wide(), {"all": ["layers.0", "layers.1"]}
    x = torch.randn(2, 256)
    whole = backbone.denoiser(x)
    accelerator = make_accelerator(recipe)
    student = make_student(backbone, recipe)
    asked: list[bool] = []
    moved, cut = nn.Module.to, sharding.Cutter.__call__
    nn.Module.to = lambda module, *args: asked.append(module is student.network) or moved(module, *args)
    most = 0

    def counted(cutter: sharding.Cutter, parameter: nn.Parameter) -> None:
        """The bytes that are whole on the device while another parameter comes there."""
        global most
        if what == "full":
            here = [p for p in student.network.parameters() if not p.is_meta]
            most = max(most, sum(p.data.nbytes for p in (*here, parameter)))
        cut(cutter, parameter)

    sharding.Cutter.__call__ = counted
    student.place(accelerator.device, zero3_settings(accelerator))
    trained = sum(p.ds_numel for p in student.parameters.values())
    steps = make_steps(accelerator, recipe, student.network, student.parameters)
    student.use(steps.network)
    with torch.no_grad():
        same = bool((steps.network(x) - whole).abs().max() < 1e-6)
    buckets = [bucket.buffer.numel() for bucket in steps.network.optimizer.ipg_buckets.values()]
    if accelerator.is_main_process:
        with open(output, "w") as file:
            json.dump({"most": most, "moved": any(asked), "trained": trained, "same": same, "buckets": buckets}, file)
