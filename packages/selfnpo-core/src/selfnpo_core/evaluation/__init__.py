"""Distances between sets of features, and intervals for what is measured on paired samples."""

from selfnpo_core.evaluation.agreement import krippendorff_alpha
from selfnpo_core.evaluation.distances import Moments, frechet_distance, kernel_distance
from selfnpo_core.evaluation.intervals import Interval, bootstrap, bootstrap_crossed, wilson, win_rate

__all__ = [
    "Interval",
    "Moments",
    "bootstrap",
    "bootstrap_crossed",
    "frechet_distance",
    "kernel_distance",
    "krippendorff_alpha",
    "wilson",
    "win_rate",
]
