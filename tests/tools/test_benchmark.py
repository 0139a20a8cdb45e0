"""Which parts of long clips are compared."""

import importlib.util
from itertools import pairwise
from pathlib import Path

from selfnpo_video.long import default_overlap, window_starts

SCRIPT = Path(__file__).parents[2] / "tools" / "benchmark.py"


def test_the_parts_beside_the_seams_have_them_in_the_middle():
    spec = importlib.util.spec_from_file_location("benchmark", SCRIPT)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    starts = window_starts(9, 3, default_overlap(3))
    parts = benchmark.parts_of(33, 3)
    assert len(parts[benchmark.SEAMS]) == len(starts) - 1
    for first, (before, after) in zip(parts[benchmark.SEAMS], pairwise(starts), strict=True):
        shared = [4 * latent - k for latent in range(after, before + 3) for k in range(4)]  # frames of the overlap
        assert abs((first + 4) - sum(shared) / len(shared)) <= 0.5
    for first, start in zip(parts[benchmark.WITHIN], starts, strict=True):
        assert first == max(0, min(4 * start, 24))
    assert all(0 <= first <= 33 - 9 for firsts in parts.values() for first in firsts)
