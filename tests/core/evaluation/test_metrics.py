"""Figures of arms, from rows that a network is taken to have said."""

import pytest
import torch

from selfnpo_core.errors import InputError
from selfnpo_core.evaluation import Moments, frechet_distance, kernel_distance, kernel_terms, permutation_test
from selfnpo_core.evaluation.metrics import (
    Metric,
    Reference,
    adjust,
    cautions,
    check_counts,
    manifold_metrics,
    measure,
    table,
)
from selfnpo_core.evaluation.networks import Network

NETWORK = Network(
    name="toy", columns=("good", "right"), model="", preprocessing="", library="", load=lambda places, device: None
)
REAL = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
REFERENCE = Reference(features=REAL, moments=Moments.of(REAL))
NAMES = {"precision", "recall", "density", "coverage"}


def said(count: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(count, 1, generator=generator) + shift
    right = (torch.rand(count, 1, generator=generator) < 0.7).float()
    return torch.cat([scores, right, torch.randn(count, 4, generator=generator) + 1 - shift], dim=1)


def test_a_score_and_its_paired_change():
    one, other = said(80, 1, 0.5), said(80, 2)
    found = measure(Metric(name="good", kind="score", network=NETWORK), one, other, None)
    difference = one[:, 0] - other[:, 0]
    assert found["value"].value == pytest.approx(one[:, 0].mean().item())
    assert found["against"].value == pytest.approx(other[:, 0].mean().item())
    assert found["change"].value == pytest.approx(difference.mean().item())
    assert (found["wins"], found["losses"]) == ((difference > 0).sum(), (difference < 0).sum())
    assert found["win_rate"].value == found["wins"] / 80
    other_p = permutation_test(difference, generator=torch.Generator().manual_seed(3))
    assert found["p"] == pytest.approx(other_p, abs=0.02)
    assert "against" not in measure(Metric(name="good", kind="score", network=NETWORK), one, None, None)


def test_a_proportion_has_wilsons_interval():
    one = said(50, 1)
    found = measure(Metric(name="right", kind="proportion", network=NETWORK), one, None, None)
    assert found["value"].value == pytest.approx(one[:, 1].mean().item())
    one[:, 1] = 1
    full = measure(Metric(name="right", kind="proportion", network=NETWORK), one, None, None)["value"]
    assert full.low < 0.95 < full.high == 1


def test_distances_and_their_paired_change():
    one, other = said(200, 1, 0.5), said(200, 2)
    found = measure(Metric(name="fid", kind="frechet", network=NETWORK, better="lower"), one, other, REFERENCE)
    a, b = (frechet_distance(Moments.of(x[:, 2:]), REFERENCE.moments) for x in (one, other))
    assert (found["value"].value, found["against"].value) == pytest.approx((a, b))
    assert found["change"].value == pytest.approx(a - b)
    assert found["change"].high < 0
    assert found["p"] < 0.001
    assert found["limit"]["infinity"] < found["value"].value
    assert found["limit"]["sizes"] == [200, 100, 66, 50, 40]
    found = measure(Metric(name="kid", kind="kernel", network=NETWORK, better="lower"), one, other, REFERENCE)
    assert found["value"].value == pytest.approx(kernel_distance(one[:, 2:], REAL))
    terms = kernel_terms(one[:, 2:], REAL)[1]
    assert found["value"].high - found["value"].value == pytest.approx(
        1.96 * 2 * terms.std().item() / 200**0.5, rel=1e-3
    )
    assert found["change"].high < 0
    assert found["change"].value == pytest.approx(found["value"].value - found["against"].value)


def test_pairs_that_go_together_have_a_change_known_better_than_either():
    one = said(200, 1)
    other = one + 0.01 * torch.randn(200, 6, generator=torch.Generator().manual_seed(3))
    for kind in ("frechet", "kernel", "score"):
        found = measure(Metric(name="good", kind=kind, network=NETWORK), one, other, REFERENCE)
        value, change = found["value"], found["change"]
        assert change.high - change.low < 0.2 * (value.high - value.low), kind


def test_moments_alone_are_a_reference_for_a_frechet_distance():
    found = measure(
        Metric(name="fid", kind="frechet", network=NETWORK),
        said(10, 1),
        None,
        Reference(features=None, moments=REFERENCE.moments),
    )
    assert found["limit"]["sizes"] == [10, 5]
    assert found["reference_count"] == 300


def test_samples_of_the_reference_itself_and_of_elsewhere():
    fine, far = (torch.cat([torch.zeros(300, 2), x], dim=1) for x in (REAL + 1e-4, REAL + 100))
    for metric in manifold_metrics(NETWORK):
        found = measure(metric, fine, far, REFERENCE)
        assert found["value"].value > 0.9, metric.name
        assert found["against"].value == 0, metric.name
        if metric.name == "density":  # a point is in its own ball, in four others, and half the time in that it bounds
            assert found["value"].value == pytest.approx(5.5 / 5, abs=0.02)
    assert {metric.name for metric in manifold_metrics(NETWORK)} == NAMES


def test_too_few_are_refused_beforehand():
    fid, precision = Metric(name="fid", kind="frechet", network=NETWORK), manifold_metrics(NETWORK)[0]
    check_counts(fid, 2, None)
    check_counts(precision, 4, 4)
    for metric, samples, reference in ((fid, 1, 9), (precision, 3, 9), (precision, 9, 3)):
        with pytest.raises(InputError, match=r"needs [24]"):
            check_counts(metric, samples, reference)


def test_holm_over_all_metrics_and_the_table():
    one, other = said(40, 1, 0.4), said(40, 2)
    metrics = [
        Metric(name="good", kind="score", network=NETWORK),
        Metric(name="right", kind="proportion", network=NETWORK, better="neither"),
        Metric(name="fid", kind="frechet", network=NETWORK, better="lower"),
    ]
    figures = {m.name: measure(m, one, other, REFERENCE) for m in metrics}
    adjust(figures)
    smallest = min(figures.values(), key=lambda found: found["p"])
    assert smallest["p_holm"] == pytest.approx(min(1, 3 * smallest["p"]))
    head, rows = table(figures)
    assert [row[0] for row in rows] == ["good ↑", "right", "fid ↓", "  fid, n → ∞"]
    assert {len(row) for row in rows} == {len(head)}
    alone = {m.name: measure(m, one, None, REFERENCE) for m in metrics}
    adjust(alone)
    head, rows = table(alone)
    assert head == ("metric", "value")
    assert {len(row) for row in rows} == {2}


def test_distances_of_few_samples_are_cautioned_against():
    fid = Metric(name="fid", kind="frechet", network=NETWORK)
    few, enough = measure(fid, said(4, 1), None, REFERENCE), measure(fid, said(200, 1), said(200, 2), REFERENCE)
    assert enough["limit"]["infinity"] > 0
    assert "fid of 4 samples is mostly bias" in cautions({"fid": few})[0]
    assert cautions({"fid": enough, "good": {"count": 4}}) == []
    enough["against_limit"]["infinity"] = -0.1
    assert "fid extrapolates to less than 0" in cautions({"fid": enough})[0]
