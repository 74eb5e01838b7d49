"""The summary: the same numbers as dense truth, no product twice, its errors calibrated."""

import pytest
import torch
from test_eigen import matrix
from test_trace import REPEATS, SPECTRUM

import landscape_core as lc

ESTIMATES = ["trace", "trace_of_square", "effective_rank"]


def truths(values):
    first, second = float(values.sum()), float(values.square().sum())
    return {"trace": first, "trace_of_square": second, "effective_rank": first**2 / second}


@pytest.mark.parametrize("make", [lc.Hessian, lc.GaussNewton])
def test_the_summary_of_an_operator_is_dense_truth_within_its_errors(objective, make):
    A = make(objective)
    values = torch.linalg.eigvalsh(A.dense())
    A.matvecs = 0
    summary = lc.curvature_summary(A, k=3, tol=1e-6, trace_rtol=0.05, steps=10)
    assert summary.matvecs == A.matvecs
    torch.testing.assert_close(summary.top.values, values.flip(0)[:3], rtol=1e-8, atol=0)
    assert summary.lambda_max == float(summary.top.values[0])
    assert summary.lambda_min == pytest.approx(float(values[0]), abs=1e-6)
    for name, truth in truths(values).items():
        estimate = getattr(summary, name)
        assert abs(estimate.value - truth) <= 4 * estimate.stderr + 1e-9 * abs(truth)
        assert estimate.stopped == "rtol"
    assert summary.density.n == summary.n == objective.n
    assert summary.density.wasserstein(values) < 0.02 * float(values[-1] - values[0])
    assert bool(summary.top.converged.all())


def test_a_smallest_eigenvalue_of_zero_does_not_eat_the_budget():
    # Of Gauss-Newton matrices it is zero: an error relative to it is never reached.
    A = matrix([*torch.linspace(5, 1, 10).tolist(), *[0.0] * 30, *torch.logspace(-6, 0, 60)])
    summary = lc.curvature_summary(A, k=3)
    assert abs(summary.lambda_min) < 1e-3 * summary.lambda_max
    assert summary.top.matvecs < 200
    assert summary.converged


@pytest.mark.parametrize("rtols", [(0.02, 0.02), (1e-9, 1e-9)], ids=["rtol", "budget"])
def test_intervals_of_all_three_estimates_cover_the_truth_as_often_as_they_say(rtols):
    A = matrix([*SPECTRUM[:4], *torch.linspace(-0.2, 1, 76).tolist()])
    exact = truths(torch.linalg.eigvalsh(A.matrix))
    options = {"k": 2, "tol": 0.1, "steps": 4, "probes": 4, "max_matvecs": 70}
    options |= {"trace_rtol": rtols[0], "square_rtol": rtols[1]}
    hits = dict.fromkeys(exact, 0)
    for seed in range(REPEATS):
        summary = lc.curvature_summary(A, **options, seed=seed)
        for name, truth in exact.items():
            low, high = getattr(summary, name).interval()
            hits[name] += low <= truth <= high
    for name, count in hits.items():
        assert 0.92 <= count / REPEATS <= 0.98, name


@pytest.mark.parametrize("probes", [2, 4, 8])
@pytest.mark.parametrize("max_matvecs", [0, 30, 300])  # beyond the least that is accepted
def test_the_budget_is_kept_and_what_it_did_not_allow_is_said(probes, max_matvecs):
    A = matrix(torch.linspace(-1, 1.001, 400))
    max_matvecs += 2 * 6 + 10 * probes
    summary = lc.curvature_summary(
        A, k=5, tol=1e-9, trace_rtol=1e-9, square_rtol=1e-9, steps=10, probes=probes,
        max_matvecs=max_matvecs,
    )  # fmt: skip
    assert summary.matvecs == A.matvecs <= max_matvecs
    assert not summary.converged
    assert {getattr(summary, name).stopped for name in ESTIMATES} == {"budget"}
    assert "(not converged)" in str(summary)
    assert not bool(summary.table()["converged"].iloc[2:].any())


def test_the_table_has_every_number_with_its_error():
    summary = lc.curvature_summary(matrix(SPECTRUM), k=4)
    table = summary.table()
    assert list(table.index) == [
        "largest eigenvalue", "smallest eigenvalue", "trace", "trace of square",
        "effective rank",
    ]  # fmt: skip
    assert list(table.columns) == ["value", "error", "converged"]
    assert table.loc["trace", "value"] == summary.trace.value
    assert table.loc["trace", "error"] == summary.trace.stderr
    assert table.loc["largest eigenvalue", "error"] == float(summary.top.residuals[0])
    assert summary.lambda_min == pytest.approx(-4, rel=1e-3)
    assert f"{summary.matvecs} products" in str(summary)


@pytest.mark.parametrize("n", [1, 2, 3, 12, 45])
def test_small_operators_are_summarized_whole(n):
    values = torch.linspace(-1, 2, n, dtype=torch.float64) if n > 1 else torch.tensor([2.0])
    A = matrix(values)
    summary = lc.curvature_summary(A, k=n, max_matvecs=2000)
    torch.testing.assert_close(
        summary.top.values, values.double().flip(0), rtol=1e-6, atol=1e-6
    )
    assert summary.lambda_min == pytest.approx(float(values[0]))
    for name, truth in truths(values).items():
        assert getattr(summary, name).value == pytest.approx(truth, rel=1e-6)
    low, high = summary.density.support
    assert (low, high) == (pytest.approx(float(values[0])), pytest.approx(float(values[-1])))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k must lie between 1 and n = 3, got 0"),
        ({"k": 4}, "k must lie between 1 and n = 3, got 4"),
        ({"k": 1, "tol": 0}, "tol must be positive, got 0"),
        ({"k": 1, "trace_rtol": -1}, "trace_rtol must be positive, got -1"),
        ({"k": 1, "square_rtol": 0}, "square_rtol must be positive, got 0"),
        ({"k": 1, "probes": 1}, "probes must be a whole number >= 2, got 1"),
        ({"k": 1, "steps": 1}, "steps must be a whole number >= 2, got 1"),
        ({"k": 1, "max_matvecs": 100}, "max_matvecs must be at least 124 here, got 100"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        lc.curvature_summary(matrix([1.0, 2.0, 3.0]), **arguments)
