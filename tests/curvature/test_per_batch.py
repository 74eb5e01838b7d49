"""Operators of single batches, and the trace from new vectors for each of them."""

import pytest
import torch
import torch.nn.functional as F
from conftest import Once, labels, ragged
from test_eigen import matrix
from test_operators import BY_NAME, OPERATORS, every_operator
from test_trace import SPECTRUM, coverage

import landscape_core as lc
from landscape_core.curvature.operators import SymmetricOperator
from landscape_core.curvature.per_batch import _weighted


class Batches(SymmetricOperator):
    """The mean of dense matrices, weighted by the examples of each."""

    def __init__(self, sizes, matrices):
        super().__init__(len(matrices[0]), torch.float64, torch.device("cpu"))
        self.sizes, self.parts = sizes, [lc.Matrix(each) for each in matrices]
        pairs = zip(sizes, matrices, strict=True)
        self.matrix = sum(size * each for size, each in pairs) / sum(sizes)

    def _multiply(self, vectors):
        return self.matrix @ vectors

    def map_batches(self, function):
        results = [function(part) for part in self.parts]
        self.matvecs += max(part.matvecs for part in self.parts)
        for part in self.parts:
            part.matvecs = 0
        return list(zip(self.sizes, results, strict=True))


def batches(sizes, alike=0.5, seed=0):
    """Matrices that share a part and differ in another."""
    rng = torch.Generator().manual_seed(seed)
    common = matrix(SPECTRUM).matrix
    noise = [torch.randn(80, 80, generator=rng, dtype=torch.float64) for _ in sizes]
    own = [(1 - alike) * (x + x.T) / 4 for x in noise]
    return Batches(sizes, [alike * common + each for each in own])


def weighted(results):
    """The mean of what the batches gave."""
    total = sum(size for size, _ in results)
    return sum(size * each for size, each in results) / total


@every_operator
@pytest.mark.parametrize("budget", [0, 8e3, None])
def test_an_operator_is_the_mean_of_those_of_its_batches(objective, make, budget):
    A = make(objective, memory_budget=budget)
    truth, theta = make(objective).dense(), objective.theta
    pairs = lc.top_eigenpairs(A, 2)
    block, spent = A.block("*.bias"), A.matvecs
    parts = A.map_batches(lambda part: part.dense())
    assert [size for size, _ in parts] == [len(y) for _, y in objective.batches()]
    torch.testing.assert_close(weighted(parts), truth, rtol=1e-12, atol=1e-14)
    assert A.matvecs - spent == A.n
    for of in (A.deflate(pairs), A.scaled(theta.abs()), A.shifted(0.3), block):
        before = of.matvecs
        found = weighted(of.map_batches(lambda part: part.dense()))
        assert of.matvecs - before == of.n
        torch.testing.assert_close(found, of.dense(), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    "kind", ["Hessian", "Gauss-Newton", "exact Fisher", "empirical Fisher"]
)
def test_the_operator_of_a_batch_is_that_of_an_objective_of_this_batch(objective, kind):
    make = OPERATORS[kind]
    parts = make(objective).map_batches(lambda part: part.dense())
    for (_, found), batch in zip(parts, objective.batches(), strict=True):
        alone = lc.Objective(objective.model, objective.criterion, [batch])
        torch.testing.assert_close(found, make(alone).dense(), rtol=1e-12, atol=1e-14)


@every_operator
def test_products_of_the_whole_may_be_made_between_those_of_the_batches(objective, make):
    A, v = make(objective), torch.ones(objective.n, dtype=torch.float64)
    expected = make(objective) @ v
    differences = A.map_batches(lambda part: part @ v - A @ v)
    torch.testing.assert_close(weighted(differences), 0 * v, rtol=0, atol=1e-13)
    torch.testing.assert_close(A @ v, expected, rtol=1e-12, atol=1e-14)
    nested = A.map_batches(lambda _: weighted(A.map_batches(lambda part: part @ v)))
    for _, found in nested:
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("base", [lc.Hessian, lc.Fisher])
def test_an_operator_of_ones_own_keeps_its_product_in_every_batch(objective, base):
    class Damped(base):
        def _multiply(self, vectors):
            return super()._multiply(vectors) + 0.5 * vectors

    A = Damped(objective)
    parts = A.map_batches(lambda part: part.dense())
    torch.testing.assert_close(weighted(parts), A.dense(), rtol=1e-12, atol=1e-14)
    found = lc.trace(A, 300, method="per_batch")
    assert abs(found.value - float(A.dense().trace())) < 4 * found.stderr
    assert 0.5 * A.n > 20 * found.stderr  # as far away would be the trace without


@every_operator
def test_the_trace_of_a_batch_is_its_own(objective, make):
    def far(part):
        found = lc.trace(part, 200, method="per_batch")
        return abs(found.value - float(part.dense().trace())) / found.stderr

    assert max(errors for _, errors in make(objective).map_batches(far)) < 4


def test_a_batch_has_blocks_of_its_own(objective):
    H = lc.Hessian(objective)
    blocks = H.map_batches(lambda part: part.block("*.bias").dense())
    torch.testing.assert_close(weighted(blocks), H.block("*.bias").dense(), rtol=1e-12, atol=0)


def test_errors_of_the_function_are_its_own(objective):
    def refuse(part):
        raise NotImplementedError("not implemented, differentiate twice")

    with pytest.raises(NotImplementedError, match="not implemented, differentiate twice"):
        lc.Hessian(objective).map_batches(refuse)


def test_layers_of_a_batch_are_those_of_the_whole(objective):
    H = lc.Hessian(objective)
    for _, sizes in H.scaled(objective.theta).map_batches(lambda part: part.layer_sizes):
        assert sizes == H.layer_sizes


def test_a_matrix_is_its_only_batch():
    A = matrix([3.0, 1.0, -2.0])
    assert A.map_batches(lambda part: part is A) == [(1, True)]
    alone, plain = (lc.trace(A, 6, method=m, seed=4) for m in ("per_batch", "hutchinson"))
    assert (alone.value, alone.stderr) == pytest.approx((plain.value, plain.stderr), rel=1e-12)
    assert alone.samples == plain.samples == 6


def test_finite_differences_have_no_batches(objective):
    H = lc.Hessian(objective, method="finite_difference")
    with pytest.raises(ValueError, match="with method='autograd', got 'finite_difference'"):
        lc.trace(H, 4, method="per_batch")


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_the_variance_is_the_weighted_sum_of_those_of_the_batches(distribution):
    A = batches([30, 30, 10, 5])
    variances = []
    for part in A.parts:
        squares = part.matrix.square()
        spared = squares.diagonal().sum() if distribution == "rademacher" else 0
        variances.append(2 * float(squares.sum() - spared))
    exact = sum((size / 75) ** 2 * each for size, each in zip(A.sizes, variances, strict=True))
    found = lc.trace(A, 4000, method="per_batch", distribution=distribution)
    assert found.stderr**2 * 4000 == pytest.approx(exact, rel=0.1)
    assert abs(found.value - float(A.matrix.trace())) < 4 * found.stderr
    assert found.matvecs == A.matvecs == 4000


@pytest.mark.parametrize("probes", [2, 3, 8])
@pytest.mark.parametrize("sizes", [[10] * 20, [10] * 19 + [3], [100] + [10] * 20], ids=str)
def test_intervals_from_few_products_cover_the_trace(sizes, probes):
    A = batches(sizes)
    truth = float(A.matrix.trace())
    options = {"probes": probes, "method": "per_batch"}
    assert 0.92 <= coverage(truth, lambda s: lc.trace(A, **options, seed=s)) <= 0.98


def test_intervals_from_eight_products_cover_where_one_batch_exceeds_all_others():
    A = batches([10] * 21)
    A.parts[3] = lc.Matrix(10 * A.parts[3].matrix)
    truth = float(sum(part.matrix.trace() for part in A.parts) / 21)
    options = {"probes": 8, "method": "per_batch"}
    assert 0.92 <= coverage(truth, lambda s: lc.trace(A, **options, seed=s)) <= 0.98


def test_intervals_cover_the_trace_when_a_relative_error_stops_the_sampling():
    A = batches([10] * 6)
    truth = float(A.matrix.trace())
    options = {"probes": 400, "method": "per_batch", "rtol": 0.06}
    assert 0.92 <= coverage(truth, lambda s: lc.trace(A, **options, seed=s)) <= 0.98
    found = lc.trace(A, **options)
    assert found.stopped == "rtol"
    assert found.relative_error <= 0.06
    assert found.matvecs < 400
    spent = lc.trace(A, 5, method="per_batch", rtol=1e-9)
    assert (spent.stopped, spent.matvecs) == ("budget", 5)


def test_batches_that_are_alike_divide_the_variance_by_their_number():
    A = batches([10] * 16, alike=1.0)
    once = lc.trace(A, 500, method="per_batch").stderr
    assert lc.trace(A, 500).stderr / once == pytest.approx(4, rel=0.1)


def test_known_eigenpairs_are_taken_exactly():
    A = batches([10, 10, 7], alike=0.9)
    pairs = lc.top_eigenpairs(A, 6, tol=1e-10)
    options = {"probes": 400, "method": "per_batch"}
    found, plain = lc.trace(A, **options, deflate=pairs), lc.trace(A, **options)
    assert found.stderr < plain.stderr / 1.5
    assert abs(found.value - float(A.matrix.trace())) < 4 * found.stderr
    with pytest.raises(TypeError, match="deflate needs the Eigenpairs of this operator"):
        lc.trace(A, 4, method="per_batch", deflate=torch.eye(80))
    everything = lc.top_eigenpairs(matrix([5.0, 1.0, -3.0]), 3)
    exact = lc.trace(matrix([5.0, 1.0, -3.0]), 2, method="per_batch", deflate=everything)
    assert exact.value == pytest.approx(3, rel=1e-12)


def test_the_trace_of_a_network_needs_a_fraction_of_the_products():
    data = lc.load("digits", subset=(400, 50))
    model = lc.MLP(data.input_shape, data.classes, width=16, seed=0)
    lc.train(model, data, lc.TrainConfig(epochs=10, lr=0.1), progress=False)
    model.double()
    split = lc.Split(data.train.inputs.double(), data.train.targets)
    H = lc.Hessian(lc.Objective(model, F.cross_entropy, split.batches(20)))
    truth = float(H.dense().trace())
    shared, own = (lc.trace(H, 16, method=m) for m in ("hutchinson", "per_batch"))
    assert abs(own.value - truth) < 4 * own.stderr
    assert own.stderr < shared.stderr / 2  # as of four times the products
    relative = H.scaled(torch.linspace(0, 1, H.n, dtype=torch.float64))
    found = lc.trace(relative, 8, method="per_batch")
    assert abs(found.value - float(relative.dense().trace())) < 4 * found.stderr


FISHERS = {name: make for name, make in OPERATORS.items() if "Fisher" in name}
every_fisher = pytest.mark.parametrize("make", FISHERS.values(), ids=FISHERS)


def root_and_jacobian(A, batch, index):
    """R, M and J of one batch, dense, from unit vectors and torch.func."""
    objective = A.objective

    def flat(theta):
        pieces = objective.space.unflatten(theta)
        return objective.batch_outputs(pieces, batch[0], A._statistics).flatten()

    outputs = objective.batch_outputs(A._leaves, batch[0], A._statistics).detach()
    inner = A._output_product(
        outputs, objective.output_loss(outputs, batch[1]), batch[1], index
    )
    units = torch.eye(inner.shape.numel(), dtype=torch.float64)
    R = torch.stack([inner.root(unit.view(inner.shape)).flatten() for unit in units], dim=1)
    everywhere = torch.eye(outputs.numel(), dtype=torch.float64)
    M = torch.stack([inner(w.view_as(outputs)).flatten() for w in everywhere], dim=1)
    return R, M, torch.func.jacrev(flat)(objective.theta)


@every_fisher
def test_a_fisher_matrix_is_sampled_by_gradients_with_the_variance_of_its_gram_matrix(
    objective, make
):
    A = make(objective)
    exact, variance = 0.0, 0.0
    total = sum(len(y) for _, y in objective.batches())
    for index, batch in enumerate(objective.batches()):
        R, M, J = root_and_jacobian(A, batch, index)
        torch.testing.assert_close(R @ R.T, M, rtol=1e-12, atol=1e-15)
        gram, weight = R.T @ J @ J.T @ R, len(batch[1]) / total
        exact += weight * float(gram.trace())
        off = gram.square().sum() - gram.diagonal().square().sum()
        variance += weight**2 * 2 * float(off)
    assert exact == pytest.approx(float(A.dense().trace()), rel=1e-10)
    before = A.matvecs
    found = lc.trace(A, 1000, method="per_batch")
    assert abs(found.value - exact) < 4 * found.stderr
    assert found.stderr**2 * 1000 == pytest.approx(variance, rel=0.1)
    assert A.matvecs - before == found.matvecs == 1000


@every_fisher
def test_a_block_of_a_fisher_matrix_is_sampled_as_the_whole(objective, make):
    block = make(objective).block("*.bias")
    found = lc.trace(block, 400, method="per_batch")
    assert abs(found.value - float(block.dense().trace())) < 4 * found.stderr
    by_products = lc.trace(block.shifted(0.0), 400, method="per_batch")
    assert abs(found.value - by_products.value) < 4 * (found.stderr + by_products.stderr)


def test_the_trace_of_the_fisher_matrix_is_that_of_the_hessian_of_a_relu_network():
    objective = BY_NAME["ReLU MLP"].objective()
    truth = float(lc.Hessian(objective).dense().trace())
    found = lc.trace(lc.Fisher(objective), 800, method="per_batch")
    assert found.relative_error < 0.03
    assert abs(found.value - truth) < 4 * found.stderr


def test_a_layer_with_one_derivative_has_the_trace_of_a_fisher_matrix():
    torch.manual_seed(0)

    class Squares(torch.nn.Module):
        def forward(self, x):
            return Once.apply(x)

    model = torch.nn.Sequential(
        torch.nn.Linear(3, 4), Squares(), torch.nn.Linear(4, 2)
    ).double()
    x, y = torch.randn(23, 3, dtype=torch.float64), torch.arange(23) % 2
    objective = lc.Objective(model, F.cross_entropy, ragged(x, y))
    singles = [
        lc.Objective(model, F.cross_entropy, [(x[i : i + 1], y[i : i + 1])]) for i in range(23)
    ]
    gradients = torch.stack([each.gradient() for each in singles])
    found = lc.trace(lc.Fisher(objective, kind="empirical"), 500, method="per_batch")
    assert abs(found.value - float(gradients.square().sum() / 23)) < 4 * found.stderr


def test_outputs_without_an_axis_of_their_own_have_an_empirical_fisher_matrix():
    class Flat(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x).squeeze(-1)

    x, y = torch.randn(23, 3, dtype=torch.float64), torch.randn(23, dtype=torch.float64)
    objective = lc.Objective(Flat(3, 1).double(), F.mse_loss, ragged(x, y))
    A = lc.Fisher(objective, kind="empirical")
    gradients = torch.cat(list(objective.per_example_gradients()))
    expected = gradients.T @ gradients / 23
    torch.testing.assert_close(A.dense(), expected, rtol=1e-12, atol=1e-14)
    found = lc.trace(A, 300, method="per_batch")
    assert abs(found.value - float(expected.trace())) < 4 * found.stderr


def test_outputs_may_have_another_type_than_theta():
    class Single(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x).float()

    x = torch.randn(23, 3, dtype=torch.float64)
    objective = lc.Objective(Single(3, 3).double(), F.cross_entropy, ragged(x, labels()))
    for make in FISHERS.values():
        A = make(objective)
        found = lc.trace(A, 300, method="per_batch")
        assert abs(found.value - float(A.dense().trace())) < 4 * found.stderr


def test_a_large_matrix_is_multiplied_by_one_vector_at_a_time():
    seen = []

    class Wide(lc.Matrix):
        def _multiply(self, vectors):
            seen.append(vectors.shape[1])
            return super()._multiply(vectors)

    A = Wide(matrix([3.0, 1.0, -2.0]).matrix)
    together = lc.trace(A, 8, method="per_batch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("landscape_core.curvature.operators.SMALL", 2)
        alone = lc.trace(A, 8, method="per_batch")
    assert seen == [8] + [1] * 8
    assert alone.value == pytest.approx(together.value, rel=1e-12)


def test_degrees_of_freedom_are_those_of_the_batches_that_scatter():
    # One batch alone has probes - 1 of them; equal variances in b batches b times as many.
    rng = torch.Generator().manual_seed(0)
    samples = torch.randn(1, 5, generator=rng, dtype=torch.float64)
    assert _weighted((7,), samples)[2] == pytest.approx(4)
    still = torch.zeros(6, 5, dtype=torch.float64)
    still[2] = samples[0]
    assert _weighted((1,) * 6, still)[2] == pytest.approx(4)
    same = torch.randn(4000, 2, generator=rng, dtype=torch.float64)
    assert _weighted((1,) * 4000, same)[2] == pytest.approx(4000, rel=0.1)
    uneven = _weighted((100, *[10] * 20), same[:21])[2]
    assert uneven == pytest.approx(3 * 12_000**2 / (100**4 + 20 * 10**4) - 2, rel=1e-9)
    assert _weighted((2, 2), torch.ones(2, 4, dtype=torch.float64))[1:] == (0.0, 6.0)


def test_a_loss_that_is_not_finite_is_told():
    x = torch.randn(23, 3)
    x[13] = float("nan")
    model = torch.nn.Linear(3, 2)
    H = lc.Hessian(lc.Objective(model, F.cross_entropy, ragged(x, torch.arange(23) % 2)))
    with pytest.raises(FloatingPointError, match="finite"):
        lc.trace(H, 2, method="per_batch")
