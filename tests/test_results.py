"""Numbers that carry their errors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from landscape_core import Estimate, with_error


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (41.2837, 0.213, "41.3 ± 0.2"),
        (41.2837, 0.13, "41.28 ± 0.13"),
        (5115.0, 662.0, "5100 ± 700"),
        (-0.5, 2.0, "-0 ± 2"),
        (0.000012345, 0.0000013, "(1.23 ± 0.13)e-05"),
        (123456.0, 2000.0, "(1.23 ± 0.02)e+05"),
        (2.0, math.nan, "2 ± nan"),
        (2.0, 0.0, "2 ± 0"),
    ],
)
def test_values_are_written_to_the_digits_their_error_leaves(value, stderr, text):
    assert with_error(value, stderr) == text


@given(st.floats(-1e12, 1e12), st.floats(1e-12, 1e12))
def test_a_written_value_is_within_its_written_error(value, stderr):
    text = with_error(value, stderr)
    body, power = (text[1:].split(")e")) if text.startswith("(") else (text, "0")
    shown, error = (float(part) * 10.0 ** int(power) for part in body.split(" ± "))
    assert abs(shown - value) <= stderr + 1e-15 * abs(value)
    assert error == pytest.approx(stderr, rel=0.35)


def test_samples_in_a_list_keep_their_precision():
    assert Estimate.of([0.1, 0.1]).value == 0.1


def test_estimate_is_mean_and_standard_error_of_its_samples():
    samples = torch.tensor([1.0, 2.0, 4.0, 9.0])
    estimate = Estimate.of(samples, matvecs=4)
    assert estimate.value == 4.0
    assert estimate.stderr == pytest.approx(float(samples.std()) / 2)
    assert (estimate.samples, estimate.matvecs) == (4, 4)


def test_intervals_cover_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        low, high = Estimate.of(rng.normal(3.0, 2.0, size=5)).interval(0.95)
        hits += low <= 3.0 <= high
    assert 0.935 < hits / 2000 < 0.965


def test_one_sample_has_no_error_and_bad_input_is_refused():
    assert math.isnan(Estimate.of([1.0]).stderr)
    assert Estimate.of([1.0]).interval() == (-math.inf, math.inf)
    with pytest.raises(ValueError, match="at least one"):
        Estimate.of([])
    with pytest.raises(ValueError, match="between 0 and 1, got 95"):
        Estimate.of([1.0, 2.0]).interval(95)


@pytest.mark.parametrize("size", [10, 20, 60])
def test_the_interval_of_a_proportion_covers_the_truth_wherever_it_lies(size):
    """Exactly, from the binomial probabilities of every number of hits."""
    hits = np.arange(size + 1)
    intervals = [Estimate.of_hits(torch.arange(size) < h).interval() for h in hits]
    low, high = np.array(intervals).T
    assert low.min() == 0
    assert high.max() == pytest.approx(1)
    truths = np.linspace(0.5, 0.97, 48)
    covered = [binom.pmf(hits, size, p)[(low <= p) & (p <= high)].sum() for p in truths]
    assert np.mean(covered) > 0.945
    assert min(covered) > 0.88


def test_the_error_of_a_proportion_is_that_of_agresti_and_coull():
    found = Estimate.of_hits(torch.tensor([1.0] * 9 + [0.0]))
    assert found.value == pytest.approx(0.9)
    assert found.stderr == pytest.approx((11 / 14 * 3 / 14 / 14) ** 0.5)
    with pytest.raises(ValueError, match="between 0 and 1, got 95"):
        found.interval(95)
