"""Distances between sets of features, and intervals and tests for what is measured on paired samples."""

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
from selfnpo_core.evaluation.intervals import Interval, bootstrap, wilson, win_rate
from selfnpo_core.evaluation.significance import holm, normal_test, permutation_test, sign_test
    "Extrapolation",
    "extrapolate",
    "frechet_to",
    "holm",
    "kernel_terms",
    "manifold_covered",
    "manifold_hits",
    "manifold_radii",
    "normal_test",
    "permutation_test",
    "sign_test",
    "wilson",
    "win_rate",
]
