"""Distances between sets of features, and intervals, tests and agreement for what is measured on paired samples."""

from selfnpo_core.evaluation.agreement import krippendorff_alpha
from selfnpo_core.evaluation.distances import (
    Extrapolation,
    Moments,
    extrapolate,
    frechet_distance,
    frechet_to,
    kernel_distance,
    kernel_terms,
    manifold_covered,
    manifold_hits,
    manifold_radii,
)
from selfnpo_core.evaluation.intervals import Interval, bootstrap, bootstrap_crossed, wilson, win_rate
from selfnpo_core.evaluation.significance import holm, interval_test, normal_test, permutation_test, sign_test

__all__ = [
    "Extrapolation",
    "Interval",
    "Moments",
    "bootstrap",
    "bootstrap_crossed",
    "extrapolate",
    "frechet_distance",
    "frechet_to",
    "holm",
    "interval_test",
    "kernel_distance",
    "kernel_terms",
    "krippendorff_alpha",
    "manifold_covered",
    "manifold_hits",
    "manifold_radii",
    "normal_test",
    "permutation_test",
    "sign_test",
    "wilson",
    "win_rate",
]
