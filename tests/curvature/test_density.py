"""The spectral density: Gauss quadrature is exact, its scatter is the error."""

import numpy as np
import pytest
import torch
from test_eigen import matrix
from test_trace import OUTLIERS, REPEATS, SPECTRUM

import landscape_core as lc
from landscape_core.curvature.probes import generator, probe

VALUES = torch.tensor(SPECTRUM, dtype=torch.float64)


def exact_pairs(A, count):
    """The eigenpairs of largest magnitude, from the dense matrix."""
    values, vectors = torch.linalg.eigh(A.matrix)
    chosen = values.abs().argsort(descending=True)[:count]
    zeros = torch.zeros(count, dtype=torch.float64)
    return lc.Eigenpairs(values[chosen], vectors[:, chosen], zeros, zeros == 0, 0)


def test_every_probe_is_the_gauss_quadrature_of_its_vector():
    A, steps = matrix(SPECTRUM), 6
    density = lc.spectral_density(A, steps, probes=3, seed=1)
    rng = generator(1, A.device)
    for row in range(3):
        v = probe(80, torch.float64, rng, "gaussian")
        power = v
        for exponent in range(2 * steps):
            expected = float(v @ power / (v @ v))  # v'A^p v / |v|^2
            found = float(density.weights[row] @ density.nodes[row] ** exponent)
            assert found == pytest.approx(expected, rel=1e-9)
            power = A.matrix @ power


def test_weights_are_probabilities_and_products_are_counted():
    A = matrix(SPECTRUM)
    density = lc.spectral_density(A, steps=20, probes=5)
    assert bool((density.weights >= 0).all())
    torch.testing.assert_close(density.weights.sum(1), torch.ones(5, dtype=torch.float64))
    assert density.matvecs == A.matvecs == 100
    assert density.points()[1].sum() == pytest.approx(1, rel=1e-12)
    low, high = density.support
    assert VALUES.min() - 1e-9 <= low <= high <= VALUES.max() + 1e-9


def test_quadratures_of_all_n_steps_are_the_spectrum_itself():
    density = lc.spectral_density(matrix(SPECTRUM), steps=500, probes=2)
    for nodes in density.nodes:
        torch.testing.assert_close(nodes, VALUES.sort().values, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("known", "probes"), [(0, 40), (4, 8)])  # outliers skew the samples
def test_intervals_of_moments_cover_the_truth_as_often_as_they_say(known, probes):
    A, hits = matrix(SPECTRUM), {1: 0, 2: 0, 3: 0}
    pairs = exact_pairs(A, known) if known else None
    for seed in range(REPEATS):
        density = lc.spectral_density(A, 2, probes, deflate=pairs, seed=seed)
        for power in hits:
            low, high = density.moment(power).interval()
            hits[power] += low <= float((VALUES**power).mean()) <= high
    for power, count in hits.items():
        assert 0.92 <= count / REPEATS <= 0.98, power


def test_intervals_of_other_means_and_counts_cover_the_truth():
    # As many steps as dimensions: the quadrature of functions that are no polynomials is exact.
    values = torch.tensor([5.0, -3.0, *torch.linspace(0, 1, 18).tolist()], dtype=torch.float64)
    A, hits = matrix(values), {"mean": 0, "count": 0}
    pairs = exact_pairs(A, 2)
    exact = {"mean": float(values.exp().mean()), "count": int((values > 0.4).sum())}
    for seed in range(REPEATS):
        density = lc.spectral_density(A, 18, 6, deflate=pairs, seed=seed)
        found = {"mean": density.mean(torch.exp), "count": density.count(0.4, 11)}
        for name, estimate in found.items():
            low, high = estimate.interval()
            hits[name] += low <= exact[name] <= high
    for name, count in hits.items():
        assert 0.92 <= count / REPEATS <= 0.98, name


def test_known_eigenvalues_enter_exactly():
    A = matrix(SPECTRUM)
    pairs = lc.top_eigenpairs(A, 4, tol=1e-9)
    density = lc.spectral_density(A, steps=15, probes=4, deflate=pairs)
    assert sorted(density.known.tolist()) == pytest.approx(sorted(OUTLIERS))
    for value in OUTLIERS:
        count = density.count(value - 0.5, value + 0.5)
        assert count.value == pytest.approx(1, rel=1e-12)
        assert count.stderr == pytest.approx(0, abs=1e-12)
    assert float(density.nodes[density.weights > 1e-20].max()) < 1 + 1e-6
    blind = lc.spectral_density(A, steps=15, probes=4)
    assert density.moment(2).stderr < blind.moment(2).stderr / 10


def test_the_second_moment_has_what_unconverged_pairs_leave_out():
    spectrum = [30.0, *torch.linspace(-1, 1, 99).tolist()]
    exact = sum(value**2 for value in spectrum)
    found = []
    for seed in range(40):
        A = matrix(spectrum)
        pairs = lc.top_eigenpairs(A, 1, max_matvecs=2, seed=seed)
        density = lc.spectral_density(A, steps=15, probes=8, deflate=pairs, seed=1000 + seed)
        found.append(100 * density.moment(2).value)
    mean = lc.Estimate.of(found)
    assert abs(mean.value - exact) < 3 * mean.stderr < 0.2 * exact


def test_the_default_device_does_not_matter():
    A = matrix(SPECTRUM)
    pairs, one = lc.top_eigenpairs(A, 4, tol=1e-9), matrix([2.0])
    with torch.device("meta"):
        blind = lc.spectral_density(A, steps=5, probes=2)
        known = lc.spectral_density(A, steps=5, probes=2, deflate=pairs)
        whole = lc.spectral_density(one, deflate=lc.top_eigenpairs(one))
        summary = lc.curvature_summary(A, k=2, steps=5, probes=2)
        tops = lc.trace_of_square(A, 40)
        heights = blind.smooth(np.linspace(0, 1, 3))
    assert np.isfinite(heights).all()
    assert np.isfinite([summary.lambda_max, tops.value, known.moment(1).value]).all()
    assert whole.matvecs == 0


def test_a_spectrum_known_whole_needs_no_products():
    A = matrix([3.0, 2.0, 1.0])
    density = lc.spectral_density(A, deflate=exact_pairs(A, 3))
    assert density.matvecs == A.matvecs == 0
    assert density.moment(1).value == pytest.approx(2)
    assert density.moment(1).stderr == 0
    torch.testing.assert_close(
        torch.tensor(density.cdf(torch.tensor([0.9, 1.5, 2.5, 3.5]))),
        torch.tensor([0, 1 / 3, 2 / 3, 1], dtype=torch.float64),
    )
    assert density.support == (pytest.approx(1), pytest.approx(3))


@pytest.mark.parametrize("scale", [1e-12, 3.0, 1e9])
def test_the_density_of_c_times_A_is_that_of_A_rescaled(scale):
    A = matrix(SPECTRUM)
    here = lc.spectral_density(A, 12, 3)
    there = lc.spectral_density(lc.Matrix(A.matrix * scale), 12, 3)
    x = torch.linspace(-5, 11, 200, dtype=torch.float64)
    assert scale * there.smooth(scale * x) == pytest.approx(here.smooth(x), rel=1e-6, abs=1e-9)
    assert there.cdf(scale * (x + 1e-3)) == pytest.approx(here.cdf(x + 1e-3), abs=1e-9)
    assert there.wasserstein(scale * VALUES) / scale == pytest.approx(here.wasserstein(VALUES))


def test_the_distribution_function_rises_from_zero_to_one():
    density = lc.spectral_density(matrix(SPECTRUM), 12, 3)
    low, high = density.support
    x = torch.linspace(low - 1, high + 1, 300, dtype=torch.float64)
    values = density.cdf(x)
    assert values[0] == 0
    assert values[-1] == pytest.approx(1, rel=1e-12)
    assert bool((values[1:] >= values[:-1]).all())
    last = torch.tensor([high], dtype=torch.float64)
    assert density.cdf(last)[0] == pytest.approx(1, rel=1e-12)
    assert density.cdf(x.reshape(30, 10)).shape == (30, 10)


def test_histograms_add_up_to_n_and_smooth_densities_to_one():
    for pairs in (None, exact_pairs(matrix(SPECTRUM), 3)):
        density = lc.spectral_density(matrix(SPECTRUM), 12, 3, deflate=pairs)
        counts, edges = density.histogram(25)
        assert (len(counts), len(edges)) == (25, 26)
        assert counts.sum() == pytest.approx(80, rel=1e-12)
        above = counts[edges[:-1] > 9].sum()  # one eigenvalue, and known to be one
        assert above == pytest.approx(1, abs=0.7 if pairs is None else 1e-9)
        x = torch.linspace(-6, 12, 4000, dtype=torch.float64)
        assert torch.trapezoid(torch.tensor(density.smooth(x)), x) == pytest.approx(1, rel=1e-3)


def test_the_band_is_students_interval_over_the_probes():
    x = torch.linspace(-5, 11, 50, dtype=torch.float64)
    few, many = (lc.spectral_density(matrix(SPECTRUM), 12, m) for m in (3, 24))
    for density in (few, many):
        low, high = density.band(x, width=0.5)
        middle = density.smooth(x, 0.5)
        assert bool((low >= 0).all() and (low <= middle).all() and (middle <= high).all())
    few_widths, many_widths = (d.band(x, 0.5)[1] - d.smooth(x, 0.5) for d in (few, many))
    assert many_widths.sum() < few_widths.sum() / 2
    low, high = lc.spectral_density(matrix(SPECTRUM), 12, 1).band(x)
    assert bool((low == 0).all())
    assert bool((high == float("inf")).all())


def test_the_distance_to_the_spectrum_falls_with_steps_and_with_probes():
    A = matrix(SPECTRUM)

    def distance(steps, probes):
        found = [lc.spectral_density(A, steps, probes, seed=seed) for seed in range(12)]
        return sum(density.wasserstein(VALUES) for density in found)

    # One step knows the mean only; past ten, the noise of the probes is left, as 1 / sqrt.
    by_steps = [distance(steps, 64) for steps in (1, 2, 4, 10)]
    assert by_steps == sorted(by_steps, reverse=True)
    assert by_steps[-1] < by_steps[0] / 5
    by_probes = [distance(20, probes) for probes in (1, 4, 16)]
    assert by_probes[0] / by_probes[2] == pytest.approx(4, rel=0.4)
    assert lc.spectral_density(A, 200, 1).wasserstein(lc.spectral_density(A, 200, 1)) == 0


def test_small_and_flat_spectra_have_densities():
    for values in ([2.0], [0.0], [1.0] * 5, [0.0] * 4, [-1.0, 1.0]):
        A = matrix(values)
        density = lc.spectral_density(A, 10, 4)
        square = sum(v * v for v in values) / len(values)
        assert density.moment(2).value == pytest.approx(square)
        assert bool(torch.isfinite(torch.tensor(density.smooth(torch.zeros(3)))).all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be a whole number >= 1, got 0"),
        ({"steps": 2.5}, "steps must be a whole number >= 1, got 2.5"),
        ({"probes": 0}, "probes must be a whole number >= 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        lc.spectral_density(matrix([1.0, 2.0]), **arguments)


def test_widths_and_levels_that_mean_nothing_are_refused():
    density, x = lc.spectral_density(matrix([1.0, 2.0]), 2, 2), torch.zeros(1)
    with pytest.raises(ValueError, match=r"width must be positive, got -1.0"):
        density.smooth(x, width=-1.0)
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 95"):
        density.band(x, level=95)
