"""Krippendorff's alpha against examples worked by hand."""

import pytest
import torch

from selfnpo_core.evaluation import krippendorff_alpha

RATERS = ["1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 ."]
"""The example of Krippendorff (2011), section C: four observers, twelve units, some not rated. Nominal α = 0.743."""


def test_the_example_of_its_author():
    units = [[r for r in unit if r != "."] for unit in zip(*(line.split() for line in RATERS), strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)


def test_worked_by_hand():
    """Units AA, AB, BBC and a single A, which counts for nothing.

    o: AA 2; AB 1, BA 1; of BBC, with weight ½: BB 2·½ = 1, BC 2·½ = 1, CB 1. n_A = 3, n_B = 3, n_C = 1, n = 7.
    Σ_{c≠k} o = 4, Σ_{c≠k} n_c n_k = 49 − 19 = 30, α = 1 − 6 · 4/30 = 0.2.
    """
    assert krippendorff_alpha(["AA", "AB", "BBC", "A"]) == pytest.approx(0.2)


def test_limits():
    assert krippendorff_alpha([["a", "a"], ["b", "b", "b"]]) == pytest.approx(1)
    assert krippendorff_alpha([["a", "b"]] * 50) == pytest.approx(-0.98)  # D_o = 1, D_e = 50/99
    assert krippendorff_alpha([["a", "a"], ["a", "a"]]) is None
    assert krippendorff_alpha([["a"], ["b"], []]) is None


def test_chance_gives_nothing():
    ratings = torch.randint(3, (4000, 3), generator=torch.Generator().manual_seed(0)).tolist()
    assert abs(krippendorff_alpha(ratings)) < 0.02
