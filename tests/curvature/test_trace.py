"""Traces and diagonals: exact where they must be, calibrated where they are random."""

import pytest
import torch
from scipy.stats import t as student_t
from test_eigen import matrix

import landscape_core as lc
from landscape_core.curvature.probes import generator, probes_block

METHODS = ["hutchinson", "per_batch", "deflated", "hutch++", "xtrace"]
OUTLIERS = [10.0, 6.0, -4.0, 3.0]
SPECTRUM = [*OUTLIERS, *torch.linspace(-0.2, 1, 76).tolist()]
DECAY = (torch.arange(1, 81).double() ** -2 * 10).tolist()
REPEATS = 400


def coverage(truth, estimate, repeats=REPEATS):
    """The fraction of seeds for which the 95 % interval holds the truth."""
    hits = 0
    for seed in range(repeats):
        low, high = estimate(seed).interval()
        hits += low <= truth <= high
    return hits / repeats


def test_rademacher_probes_are_exact_on_a_diagonal_matrix():
    A = lc.Matrix(torch.diag(torch.tensor([3.0, -1.0, 4.0, 0.5], dtype=torch.float64)))
    estimate = lc.trace(A, probes=5)
    assert estimate.value == pytest.approx(6.5, rel=1e-14)
    assert estimate.stderr == pytest.approx(0, abs=1e-12)
    assert estimate.samples == estimate.matvecs == A.matvecs == 5


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian", "sphere"])
def test_variance_is_the_one_of_the_formula(distribution):
    A = matrix(torch.linspace(-1, 3, 30))
    squares, trace = A.matrix.square(), A.matrix.trace()
    exact = {
        "gaussian": 2 * squares.sum(),
        "rademacher": 2 * (squares.sum() - squares.diag().sum()),
        "sphere": 2 * 30 / 32 * (squares.sum() - trace**2 / 30),
    }
    estimate = lc.trace(A, probes=4000, distribution=distribution)
    measured = estimate.stderr**2 * 4000
    assert measured == pytest.approx(float(exact[distribution]), rel=0.1)


@pytest.mark.parametrize("spectrum", [SPECTRUM, DECAY], ids=["outliers", "decay"])
@pytest.mark.parametrize("method", METHODS)
def test_intervals_cover_the_trace_as_often_as_they_say(method, spectrum):
    A = matrix(spectrum)
    found = coverage(sum(spectrum), lambda s: lc.trace(A, probes=60, method=method, seed=s))
    assert 0.92 <= found <= 0.98


@pytest.mark.parametrize("method", METHODS)
def test_intervals_cover_the_trace_when_a_relative_error_stops_the_sampling(method):
    A = matrix(SPECTRUM)
    rtol = 0.08 if method in ("hutchinson", "per_batch") else 0.03
    options = {"probes": 200, "method": method, "rtol": rtol}
    # Stopping at an error that is itself estimated costs a little: Hutchinson's covers 92.7 %.
    repeats = 4000 if method in ("hutchinson", "per_batch") else REPEATS
    found = coverage(sum(SPECTRUM), lambda s: lc.trace(A, **options, seed=s), repeats)
    assert 0.92 <= found <= 0.98


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian", "sphere"])
def test_intervals_cover_the_trace_for_every_kind_of_probe(distribution):
    A = matrix([10.0, -4.0, *torch.linspace(0, 1, 38).tolist()])
    truth = float(A.matrix.trace())
    options = {"probes": 50, "distribution": distribution}
    assert 0.92 <= coverage(truth, lambda s: lc.trace(A, **options, seed=s)) <= 0.98


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spent", [12, 25, 60])
def test_no_method_spends_more_products_than_it_says_or_may(method, spent):
    A = matrix(SPECTRUM)
    estimate = lc.trace(A, probes=spent, method=method)
    assert estimate.matvecs == A.matvecs <= spent
    assert estimate.stopped == ""


@pytest.mark.parametrize(("method", "share"), [("hutch++", 3), ("deflated", 2), ("xtrace", 2)])
def test_low_rank_matrices_have_exact_traces(method, share):
    # Hutch++ for rank <= m/3; XTrace for rank < m/2, where every sketch leaves one vector out.
    rank = 9
    A = matrix([*torch.linspace(-3, 8, rank + 1).tolist()[:rank], *[0.0] * 70])
    truth = float(A.matrix.trace())
    probes = share * rank if method == "hutch++" else share * (rank + 1)
    estimate = lc.trace(A, probes=probes, method=method)
    assert estimate.value == pytest.approx(truth, rel=1e-9)
    assert estimate.stderr < 1e-7 * abs(truth)
    fewer = lc.trace(A, probes=share * (rank - 2), method=method)
    assert fewer.value != pytest.approx(truth, rel=1e-9)
    assert fewer.stderr > 1e-6


@pytest.mark.parametrize("method", ["deflated", "hutch++", "xtrace"])
def test_on_decaying_spectra_the_error_falls_faster_than_by_sampling(method):
    A = matrix(DECAY)
    few, many = (lc.trace(A, probes=m, method=method).stderr for m in (15, 90))
    sampled = [lc.trace(A, probes=m).stderr for m in (15, 90)]
    assert few / many > 2 * sampled[0] / sampled[1]
    assert many < sampled[1] / 5


def left_out(A, omega, indices):
    """Q of the sketch without some of its vectors."""
    keep = [i for i in range(omega.shape[1]) if i not in indices]
    return torch.linalg.qr(A @ omega[:, keep])[0]


def share(A, Q, w):
    """XTrace's t: the trace on span Q, and a probe w of the rest, at the length of a sphere."""
    n, k = Q.shape
    rest = w - Q @ (Q.T @ w)
    rest = rest * (n - k) ** 0.5 / rest.norm()
    return float((Q.T @ A @ Q).trace() + rest @ A @ rest)


@pytest.mark.parametrize("rtol", [None, 1e-9])  # at once, or grown by and by
@pytest.mark.parametrize("spectrum", [SPECTRUM, DECAY], ids=["outliers", "decay"])
def test_xtrace_is_the_mean_over_sketches_that_leave_one_vector_out(spectrum, rtol):
    A, k = matrix(spectrum).matrix, 14
    omega = probes_block(k, 80, torch.float64, generator(5, A.device), "sphere")
    samples = torch.tensor([share(A, left_out(A, omega, {i}), omega[:, i]) for i in range(k)])
    estimate = lc.trace(lc.Matrix(A), probes=2 * k, method="xtrace", rtol=rtol, seed=5)
    assert estimate.value == pytest.approx(float(samples.mean()), rel=1e-6)
    assert (estimate.samples, estimate.matvecs) == (k, 2 * k)


def test_the_error_of_xtrace_takes_the_correlation_of_its_samples_into_account():
    # effect[j, i]: what vector j in the sketch does to t_i; shared by t_i and t_j.
    A, k = matrix(SPECTRUM).matrix, 10
    omega = probes_block(k, 80, torch.float64, generator(2, A.device), "sphere")
    t = [share(A, left_out(A, omega, {i}), omega[:, i]) for i in range(k)]
    effect = torch.zeros(k, k, dtype=torch.float64)
    for j in range(k):
        for i in set(range(k)) - {j}:
            effect[j, i] = t[i] - share(A, left_out(A, omega, {i, j}), omega[:, i])
    effect = (effect - effect.sum(0) / (k - 1)).fill_diagonal_(0)
    shared = max(0.0, float((effect * effect.T).sum()) / (k * (k - 1)))
    expected = (float(torch.tensor(t).double().var()) / k + shared) ** 0.5
    estimate = lc.trace(lc.Matrix(A), probes=2 * k, method="xtrace", seed=2)
    assert estimate.stderr == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rtol", [None, 1e-3])
def test_matrices_smaller_than_the_budget_have_traces_within_their_error(n, method, rtol):
    A = matrix(torch.linspace(1, 2, n))
    estimate = lc.trace(A, probes=24, method=method, rtol=rtol)
    truth = float(A.matrix.trace())
    assert abs(estimate.value - truth) <= 5 * estimate.stderr + 1e-12
    assert estimate.stderr >= 0


@pytest.mark.parametrize("scale", [1e-25, 1e25])
@pytest.mark.parametrize("method", METHODS)
def test_traces_and_their_errors_scale_with_the_matrix_in_single_precision(method, scale):
    A = matrix(SPECTRUM).matrix
    here, there = (lc.trace(lc.Matrix((A * c).float()), 30, method=method) for c in (1, scale))
    assert there.value / scale == pytest.approx(here.value, rel=1e-4)
    assert there.stderr / scale == pytest.approx(here.stderr, rel=1e-3)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_the_diagonal_and_its_errors_scale_with_the_matrix_in_single_precision(scale):
    A = matrix(SPECTRUM).matrix
    here, there = (lc.diagonal(lc.Matrix((A * c).float()), 30) for c in (1, scale))
    torch.testing.assert_close(there.value / scale, here.value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(there.stderr / scale, here.stderr, rtol=1e-3, atol=0)


@pytest.mark.parametrize("estimate", [lc.trace, lc.trace_of_square, lc.effective_rank])
def test_deflation_with_exact_pairs_leaves_only_the_rest_to_chance(estimate):
    # With all but equal eigenvalues known, nothing is left that scatters (in the trace).
    A = matrix([9.0, -5.0, *[1.0] * 58])
    pairs = lc.top_eigenpairs(A, 2, tol=1e-10)
    method = {"method": "hutchinson"}
    known = estimate(A, 64, deflate=pairs, **method, distribution="sphere")
    plain = estimate(A, 64, **method)
    assert known.stderr < plain.stderr / 3
    truth = {"trace": 62.0, "trace_of_square": 164.0, "effective_rank": 62.0**2 / 164}
    assert abs(known.value - truth[estimate.__name__]) < 4 * known.stderr + 1e-9


@pytest.mark.parametrize("estimate", [lc.trace, lc.trace_of_square, lc.effective_rank])
def test_deflation_with_inexact_pairs_is_unbiased(estimate):
    A = matrix(SPECTRUM)
    rough = lc.top_eigenpairs(A, 4, tol=1.0, max_matvecs=6)  # residuals of a tenth
    assert float(rough.residuals.max()) > 0.1
    values = torch.tensor(SPECTRUM, dtype=torch.float64)
    truth = {
        "trace": values.sum(),
        "trace_of_square": values.square().sum(),
        "effective_rank": values.sum() ** 2 / values.square().sum(),
    }[estimate.__name__]
    options = {"deflate": rough, "method": "hutchinson"}
    found = estimate(A, 4000, **options)
    assert abs(found.value - float(truth)) < 3 * found.stderr
    assert found.relative_error < 0.01
    covered = coverage(float(truth), lambda s: estimate(A, 60, **options, seed=s))
    assert 0.92 <= covered <= 0.98


@pytest.mark.parametrize("method", METHODS)
def test_sampling_stops_at_the_error_asked_for_and_says_so(method):
    A = matrix(SPECTRUM)
    reached = lc.trace(A, probes=5000, method=method, rtol=0.05)
    assert reached.stopped == "rtol"
    assert reached.relative_error <= 0.05
    assert reached.matvecs == A.matvecs < 5000
    spent = lc.trace(A, probes=24, method=method, rtol=1e-9)
    assert spent.stopped == "budget"
    assert spent.relative_error > 1e-9
    assert spent.matvecs <= 24


def test_the_diagonal_has_the_variance_of_the_formula_and_calibrated_entries():
    A = matrix(SPECTRUM)
    exact = A.matrix.diagonal()
    variance = A.matrix.square().sum(1) - exact.square()
    many = lc.diagonal(A, probes=4000)
    torch.testing.assert_close(many.stderr.square() * 4000, variance, rtol=0.25, atol=0)
    quantile = student_t.ppf(0.975, 39)
    hits = 0.0
    for seed in range(REPEATS):
        found = lc.diagonal(A, probes=40, seed=seed)
        hits += float(((found.value - exact).abs() <= quantile * found.stderr).double().mean())
    assert 0.92 <= hits / REPEATS <= 0.98


def test_the_diagonal_stops_at_the_error_asked_for_and_stays_calibrated():
    A = matrix(SPECTRUM)
    exact, hits = A.matrix.diagonal(), 0.0
    for seed in range(REPEATS):
        found = lc.diagonal(A, probes=400, rtol=0.15, seed=seed)
        assert found.stopped == "rtol"
        assert found.relative_error <= 0.15
        quantile = student_t.ppf(0.975, found.samples - 1)
        hits += float(((found.value - exact).abs() <= quantile * found.stderr).double().mean())
    assert 0.92 <= hits / REPEATS <= 0.98
    spent = lc.diagonal(A, probes=9, rtol=1e-9)
    assert (spent.stopped, spent.samples, spent.matvecs) == ("budget", 9, 9)


def test_the_diagonal_of_a_diagonal_matrix_is_exact():
    values = torch.tensor([3.0, -1.0, 4.0, 0.0], dtype=torch.float64)
    found = lc.diagonal(lc.Matrix(torch.diag(values)), probes=5)
    assert torch.equal(found.value, values)
    assert not bool(found.stderr.any())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probes": 1}, "probes must be at least 2, got 1"),
        ({"probes": 3, "method": "deflated"}, "probes must be at least 4, got 3"),
        ({"probes": 11, "method": "hutch++"}, "probes must be at least 12, got 11"),
        ({"probes": 11, "method": "xtrace"}, "probes must be at least 12, got 11"),
        ({"probes": 8.0}, "probes must be at least 2, got 8.0|whole number"),
        ({"rtol": 0}, "rtol must be positive or None, got 0"),
        ({"rtol": -0.1}, "rtol must be positive or None, got -0.1"),
        ({"rtol": float("nan")}, "rtol must be positive or None, got nan"),
        ({"method": "exact"}, "method must be one of 'hutchinson', .* got 'exact'"),
        ({"distribution": "uniform"}, "'rademacher', .* got 'uniform'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        lc.trace(matrix([1.0, 2.0]), **arguments)


def test_deflation_goes_with_plain_sampling_only():
    A = matrix([1.0, 2.0, 3.0])
    pairs = lc.top_eigenpairs(A, 1)
    for method in METHODS[2:]:
        with pytest.raises(ValueError, match="deflate goes with method='hutchinson' or"):
            lc.trace(A, method=method, deflate=pairs)
