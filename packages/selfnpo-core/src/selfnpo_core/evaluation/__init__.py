"""Distances between sets of features, and intervals for what is measured on paired samples."""

from selfnpo_core.evaluation.distances import Moments, frechet_distance, kernel_distance
from selfnpo_core.evaluation.intervals import Interval, bootstrap, wilson, win_rate

__all__ = ["Interval", "Moments", "bootstrap", "frechet_distance", "kernel_distance", "wilson", "win_rate"]
