"""Lanczos against matrices with chosen eigenvalues."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import landscape_core as lc
from landscape_core.curvature.lanczos import KrylovBasis


def matrix(values, seed=0):
    """A dense symmetric matrix with these eigenvalues."""
    values = torch.as_tensor(values, dtype=torch.float64)
    rng = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(
        torch.randn(len(values), len(values), generator=rng, dtype=torch.float64)
    )[0]
    full = q @ torch.diag(values) @ q.T
    return lc.Matrix((full + full.T) / 2)


def eigenvectors(A, rows):
    """Exact eigenvectors, numbered from the largest eigenvalue down."""
    return torch.linalg.eigh(A.matrix)[1].flip(1)[:, rows]


def test_krylov_basis_holds_its_decomposition_through_restarts():
    A = matrix(torch.randn(60, generator=torch.Generator().manual_seed(1)))
    basis = KrylovBasis(A, 12, torch.Generator().manual_seed(0))
    for _ in range(3):
        while basis.size < 12:
            basis.grow()
        Q, T = basis.vectors, basis.projected
        error = A.matrix @ Q - Q @ T
        error[:, -1] -= basis.remainder
        assert error.norm() < 1e-12
        assert (Q.T @ Q - torch.eye(12)).norm() < 1e-12
        assert (Q.T @ basis.remainder).norm() < 1e-12
        basis.restart(torch.linalg.eigh(T)[1][:, :5])


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("LM", [-9.0, 8.0, 7.0, -6.0]),
        ("LA", [8.0, 7.0, 5.0, 4.0]),
        ("SA", [-9.0, -6.0, -1.0, 0.0]),
        ("BE", [8.0, -9.0, 7.0, -6.0]),
    ],
)
def test_each_end_of_the_spectrum_is_found_with_its_sign(which, expected):
    A = matrix([8, 7, 5, 4, 0, -1, -6, -9, *torch.linspace(0.5, 3.5, 92).tolist()])
    pairs = lc.top_eigenpairs(A, 4, which, tol=1e-8)
    torch.testing.assert_close(pairs.values, torch.tensor(expected).double(), rtol=0, atol=1e-6)
    assert bool(pairs.converged.all())


def test_residuals_are_what_they_say_and_bound_the_error():
    values = torch.logspace(1, -3, 300, dtype=torch.float64)
    A = matrix(values)
    pairs = lc.top_eigenpairs(A, 10, tol=1e-4)
    actual = (A.matrix @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
    assert bool((actual <= pairs.residuals * 1.01 + 1e-12).all())
    distance = (pairs.values[:, None] - values).abs().min(dim=1).values
    assert bool((distance <= pairs.residuals).all())
    assert bool((pairs.residuals <= 1e-4 * pairs.values.abs()).all())
    eye = torch.eye(10, dtype=torch.float64)
    torch.testing.assert_close(pairs.vectors.T @ pairs.vectors, eye)


def test_restarts_keep_memory_bounded_and_still_converge():
    values = torch.linspace(1, 2, 1500, dtype=torch.float64)  # close together: many steps
    A = lc.Matrix(torch.diag(values))
    pairs = lc.top_eigenpairs(A, 3, "LA", tol=1e-7, max_matvecs=2000)
    assert bool(pairs.converged.all())
    assert pairs.matvecs > 200  # several times the basis of 40
    torch.testing.assert_close(pairs.values, values.flip(0)[:3], rtol=1e-7, atol=0)


def test_no_ghost_copies_of_a_converged_eigenvalue():
    A = matrix([100.0, *torch.linspace(0, 1, 199).tolist()])
    pairs = lc.top_eigenpairs(A, 5, "LA", tol=1e-10, max_matvecs=400)
    assert int((pairs.values > 50).sum()) == 1


def test_running_out_of_products_is_said():
    A = matrix(torch.linspace(1, 2, 400))
    pairs = lc.top_eigenpairs(A, 5, tol=1e-12, max_matvecs=8)
    assert pairs.matvecs == A.matvecs == 8
    assert not bool(pairs.converged.all())
    assert "of 5 converged, 8 products" in str(pairs)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.floats(-10, 10), min_size=1, max_size=12),
    st.integers(0, 5),
)
def test_small_matrices_of_any_spectrum_are_solved_whole(values, seed):
    # Zero matrices, repeated eigenvalues and n = 1 included: the basis breaks down on each.
    pairs = lc.top_eigenpairs(matrix(values, seed), len(values), "LA", tol=1e-10)
    expected = torch.tensor(values, dtype=torch.float64).sort(descending=True).values
    torch.testing.assert_close(pairs.values, expected, rtol=1e-9, atol=1e-9)
    assert bool(pairs.converged.all())


def test_same_seed_same_numbers():
    A = matrix(torch.linspace(1, 2, 100))
    first, second = (lc.top_eigenpairs(A, 3, seed=7) for _ in range(2))
    assert torch.equal(first.values, second.values)
    assert torch.equal(first.vectors, second.vectors)


def test_a_quadratic_diverges_exactly_above_two_over_the_top_eigenvalue():
    A = matrix([3.0, 1.0, 0.2])
    limit = 2 / float(lc.top_eigenpairs(A, 1, tol=1e-12).values[0])
    for rate, grows in [(0.99 * limit, False), (1.01 * limit, True)]:
        theta = torch.ones(3, dtype=torch.float64)
        for _ in range(2000):
            theta = theta - rate * (A @ theta)
        assert bool(theta.norm() > 10) is grows


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_krylov_basis_holds_its_decomposition_in_any_unit(scale):
    A = lc.Matrix((matrix(torch.linspace(-1, 3, 50)).matrix * scale).float())
    basis = KrylovBasis(A, 20, torch.Generator().manual_seed(0))
    for _ in range(20):
        basis.grow()
    Q, T = basis.vectors, basis.projected
    error = (A.matrix / scale) @ Q - Q @ (T / scale)
    error[:, -1] -= basis.remainder / scale
    assert error.norm() < 1e-4
    assert (Q.T @ Q - torch.eye(20)).norm() < 1e-5


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
@pytest.mark.parametrize("find", [lc.top_eigenpairs, lc.power_iteration])
def test_eigenvalues_scale_with_the_matrix_in_single_precision(find, scale):
    # Squares of the entries underflow or overflow in float32 here.
    values = torch.tensor([-6.0, 3.0, *torch.linspace(-1, 1, 48).tolist()])
    A = lc.Matrix((matrix(values).matrix * scale).float())
    pairs = find(A, tol=1e-4)
    assert float(pairs.values[0]) / scale == pytest.approx(-6, rel=1e-4)
    assert bool(pairs.converged.all())
    assert 0 < float(pairs.residuals[0]) <= 1.01e-4 * 6 * scale


def test_sums_over_ritz_values_are_the_moments_of_the_start():
    # Weights w are the squared first entries of the eigenvectors of T.
    A = matrix(torch.linspace(-1, 3, 40))
    v = torch.randn(40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    basis = KrylovBasis(A, 6, torch.Generator(), v)
    for _ in range(6):
        basis.grow()
    values, rotation, _, _ = basis.ritz()
    weights, power = rotation[0].square(), v
    for exponent in range(12):  # exact up to twice the steps less one
        expected = float(v @ power / (v @ v))
        assert float(weights @ values**exponent) == pytest.approx(expected, rel=1e-10)
        power = A.matrix @ power
    assert float(weights @ values**12) != pytest.approx(float(v @ power / (v @ v)), rel=1e-10)


@pytest.mark.parametrize(("k", "which"), [(1, "LM"), (3, "LA")])
def test_a_search_from_known_eigenvectors_needs_fewer_products(k, which):
    A = matrix(torch.linspace(0, 1, 200) ** 3)
    cold = lc.top_eigenpairs(A, k, which, tol=1e-6)
    noise = 1e-6 * torch.randn(200, k, generator=torch.Generator().manual_seed(0))
    start = eigenvectors(A, slice(0, k)) + noise
    warm = lc.top_eigenpairs(A, k, which, tol=1e-6, start=start if k > 1 else start[:, 0])
    torch.testing.assert_close(warm.values, cold.values, rtol=1e-6, atol=0)
    assert warm.matvecs <= 0.8 * cold.matvecs  # part of the start is random, to miss nothing
    assert bool(warm.converged.all())


def test_the_start_leads_only_where_it_has_a_part():
    # From an exact eigenvector the space is invariant at once; the search goes on elsewhere.
    A = matrix([5.0, 4.0, *torch.linspace(0, 1, 38).tolist()])
    pairs = lc.top_eigenpairs(A, 2, tol=1e-8, start=eigenvectors(A, 1))
    torch.testing.assert_close(pairs.values, torch.tensor([5.0, 4.0]).double())


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (torch.ones(4), r"shape \(3,\) or \(3, p\), got \(4,\)"),
        (torch.ones(3, 1, 1), r"shape \(3,\) or \(3, p\), got \(3, 1, 1\)"),
        (torch.zeros(3), "start must be finite and not zero"),
        (torch.full((3,), torch.nan), "start must be finite and not zero"),
        (torch.full((3,), torch.inf), "start must be finite and not zero"),
    ],
)
def test_a_start_that_is_no_direction_is_refused(start, message):
    with pytest.raises(ValueError, match=message):
        lc.top_eigenpairs(matrix([1.0, 2.0, 3.0]), start=start)


def test_a_start_that_is_no_tensor_is_refused():
    with pytest.raises((TypeError, ValueError), match="start must"):
        lc.top_eigenpairs(matrix([1.0, 2.0, 3.0]), start=[1.0, 2.0, 3.0])


def test_negative_values_and_the_condition_number_are_counted_from_the_pairs():
    values = [8.0, 2.0, 0.5, -1e-3, -4.0]
    pairs = lc.top_eigenpairs(matrix(values), 5, tol=1e-10)
    assert pairs.negative == 2
    assert pairs.condition_number == pytest.approx(8e3, rel=1e-6)
    assert lc.top_eigenpairs(matrix(values), 2, "LA", tol=1e-10).negative == 0
    # A value that its residual does not tell from zero is not negative.
    wide = lc.Eigenpairs(
        torch.tensor([-1.0, -3.0]), torch.eye(2), torch.tensor([2.0, 2.0]), torch.ones(2) > 0, 1
    )
    assert wide.negative == 1
    assert lc.top_eigenpairs(matrix([1.0, 0.0, 0.0]), 3).condition_number > 1e12


@pytest.mark.parametrize("top", [3.0, -3.0])
def test_power_iteration_finds_the_dominant_value_with_its_sign(top):
    A = matrix([top, *torch.linspace(-1.5, 1.5, 59).tolist()])
    pair = lc.power_iteration(A, tol=1e-6)
    v, value = pair.vectors[:, 0], float(pair.values[0])
    assert value == pytest.approx(top, rel=1e-10)  # its error is the square of the residual's
    assert float(v.norm()) == pytest.approx(1, rel=1e-12)
    assert float(v @ A.matrix @ v) == pytest.approx(value, rel=1e-12)
    residual = float((A.matrix @ v - value * v).norm())
    assert float(pair.residuals[0]) == pytest.approx(residual, rel=1e-6)
    assert residual <= 1e-6 * 3
    assert pair.matvecs == A.matvecs
    assert lc.top_eigenpairs(A, tol=1e-6).matvecs <= pair.matvecs


@pytest.mark.parametrize("budget", [1, 2, 9])
def test_power_iteration_out_of_products_returns_a_pair_that_belongs_together(budget):
    A = matrix(torch.linspace(-1, 1.001, 50))
    pair = lc.power_iteration(A, tol=1e-9, max_matvecs=budget)
    v = pair.vectors[:, 0]
    residual = (A.matrix @ v - pair.values * v).norm()
    torch.testing.assert_close(pair.residuals[0], residual)
    torch.testing.assert_close(v @ A.matrix @ v, pair.values[0])
    assert pair.matvecs == A.matvecs == budget
    assert not bool(pair.converged[0])


def test_power_iteration_on_a_zero_matrix_stops_at_once():
    pair = lc.power_iteration(matrix([0.0, 0.0, 0.0]))
    assert (float(pair.values[0]), pair.matvecs) == (0.0, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k must lie between 1 and n = 3, got 0"),
        ({"k": 4}, "k must lie between 1 and n = 3, got 4"),
        ({"which": "SM"}, "which must be one of 'LM'.* got 'SM'"),
        ({"tol": 0}, "tol must be positive, got 0"),
        ({"k": 2, "max_matvecs": 1}, "max_matvecs must be at least k = 2, got 1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        lc.top_eigenpairs(matrix([1.0, 2.0, 3.0]), **arguments)
    if "k" not in arguments and "which" not in arguments:
        with pytest.raises(ValueError, match=message):
            lc.power_iteration(matrix([1.0, 2.0, 3.0]), **arguments)


def test_products_that_are_not_finite_are_refused():
    class Broken(lc.SymmetricOperator):
        def _multiply(self, vectors):
            return vectors * torch.nan

    with pytest.raises(FloatingPointError, match="not finite"):
        lc.top_eigenpairs(Broken(5, torch.float64, torch.device("cpu")), 1)


@pytest.mark.parametrize("n", [1000, 30_000])
def test_a_start_at_another_eigenvector_does_not_hide_the_largest(n):
    values = torch.rand(n, generator=torch.Generator().manual_seed(0))
    values[0], values[1] = 5.0, 10.0
    start = torch.zeros(n)
    start[0] = 1.0

    class Diagonal(lc.SymmetricOperator):
        def _multiply(self, vectors):
            return values[:, None] * vectors

    A = Diagonal(n, torch.float32, torch.device("cpu"))
    pairs = lc.top_eigenpairs(A, 1, "LA", tol=1e-2, start=start)
    assert float(pairs.values[0]) == pytest.approx(10.0, rel=1e-2)


def test_a_matrix_close_to_a_multiple_of_one_is_not_taken_for_it():
    values = torch.ones(100_000)
    values[0] = 3.0

    class Diagonal(lc.SymmetricOperator):
        def _multiply(self, vectors):
            return values[:, None] * vectors

    A = Diagonal(len(values), torch.float32, torch.device("cpu"))
    assert float(lc.top_eigenpairs(A, 1, "LA").values[0]) == pytest.approx(3.0, rel=1e-3)


def test_a_deflated_or_shifted_operator_knows_what_rounding_hides():
    A = lc.Matrix(matrix([1e6, *torch.linspace(0, 1, 299).tolist()]).matrix.float())
    for B in (A.deflate(lc.top_eigenpairs(A, 1)), A.shifted(1e4).shifted(-1e4)):
        pairs = lc.top_eigenpairs(B, 3)
        actual = torch.stack([B @ v for v in pairs.vectors.T], 1) - pairs.vectors * pairs.values
        assert bool((actual.norm(dim=0) <= pairs.residuals * 1.1).all())


@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_largest_eigenvalue_of_a_sample_and_of_others_enclose_that_of_all(size):
    """On average over all samples; where every sample is drawn the averages are exact."""
    torch.manual_seed(0)
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 3
    model = torch.nn.Linear(3, 3).double()

    def hessian(rows):
        rows = list(rows)
        return lc.Hessian(
            lc.Objective(model, torch.nn.functional.cross_entropy, (x[rows], y[rows]))
        )

    whole = lc.top_eigenpairs(hessian(range(6)), 1, "LA", tol=1e-9).values[0]
    above, below = [], []
    for sample in combinations(range(6), size):
        top = lc.top_eigenpairs(hessian(sample), 1, "LA", tol=1e-9)
        v = top.vectors[:, 0]
        others = sorted({*range(6)} - {*sample})
        above.append(float(top.values[0]))
        below.append(float(v @ (hessian(others) @ v)))
    assert sum(below) / len(below) < whole < sum(above) / len(above)
