"""Measure what is claimed: memory of streaming and of training by windows, what is seen at the seams of long clips,
what each way to hold negative weights costs and what it keeps of them in 16 bits, what a LoRA made of an offset of all
weights loses, what the switches of a recipe that save memory save, what a recipe takes on this machine, and what an
update costs beside what people would use instead.

Figures go to docs/results as JSON.

    python tools/benchmark.py memory
    python tools/benchmark.py long --npo RUN
    python tools/benchmark.py modes
    python tools/benchmark.py precision
    python tools/benchmark.py ranks --npo RUN
    python tools/benchmark.py levers
    python tools/benchmark.py recipe CONFIG --family video
    python tools/benchmark.py update --shape demo
    python tools/benchmark.py sample --shape demo
    python tools/benchmark.py counts
    python tools/benchmark.py page

Compared figures come from one run on one machine.
"""

import click
import torch
from benchmarks.counts import counts
from benchmarks.levers import levers
from benchmarks.long import long
from benchmarks.memory import memory
from benchmarks.modes import modes
from benchmarks.page import page
from benchmarks.precision import precision
from benchmarks.ranks import ranks
from benchmarks.recipe import recipe
from benchmarks.sample import sample
from benchmarks.update import update


@click.group(help=__doc__)
def main() -> None:
    torch.manual_seed(0)


for command in (memory, long, modes, precision, ranks, levers, recipe, update, sample, counts, page):
    main.add_command(command)

if __name__ == "__main__":
    main()
