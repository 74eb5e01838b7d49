"""Bad input gives one clear sentence, and changes nothing."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import Once, dense_hessian, ragged, relative
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import landscape_core as lc

NAN, INF = math.nan, math.inf


def data(count=23):
    rng = torch.Generator().manual_seed(0)
    return torch.randn(count, 4, generator=rng, dtype=torch.float64), torch.arange(count) % 3


def network():
    return lc.MLP((4,), 3, width=5, activation="tanh").double()


@pytest.fixture
def untouched():
    """A network, and a check that it and the random state are as they were."""
    model = network()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    rng = torch.get_rng_state()
    yield model
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), rng)


class Squares(nn.Module):
    def __init__(self, square=Once.apply):
        super().__init__()
        self.first, self.second, self.square = nn.Linear(4, 5), nn.Linear(5, 3), square

    def forward(self, x):
        return self.second(self.square(self.first(x)))


class Dropping(nn.Linear):
    def forward(self, x):
        return super().forward(F.dropout(x, 0.5, training=True))


class Noisy(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, i):
        return torch.randn(4, dtype=torch.float64), i % 3


def nan_in_batch_two():
    x, y = data()
    x[10] = NAN  # of 7, 7, 7, 2
    return ragged(x, y)


X, Y = data()
OBJECTIVES = {
    "no examples": (F.cross_entropy, (X[:0], Y[:0]), {}, "data are empty"),
    "no batches": (F.cross_entropy, [], {}, "data are empty"),
    "nan in the first batch": (F.cross_entropy, (X * NAN, Y), {}, "must be finite, got nan"),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), (X, Y), {}, "mean over .* got their sum"),
    "each": (nn.CrossEntropyLoss(reduction="none"), (X, Y), {}, r"scalar, got shape \(23,\)"),
    "no such block": (F.cross_entropy, (X, Y), {"parameters": "9.*"}, r"match '9\.\*'"),
    "no such policy": (F.cross_entropy, (X, Y), {"batchnorm": "train"}, "one of 'eval'"),
    "shuffled": (
        F.cross_entropy, DataLoader(TensorDataset(X, Y), shuffle=True), {}, "shuffle=False",
    ),
    "augmented": (F.cross_entropy, DataLoader(Noisy(), batch_size=3), {}, "augmentation off"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("criterion", "batches", "options", "message"), OBJECTIVES.values(), ids=OBJECTIVES
)
def test_an_objective_that_is_none_is_refused(untouched, criterion, batches, options, message):
    with pytest.raises(ValueError, match=message):
        lc.Objective(untouched, criterion, batches, **options)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_parameters_that_are_not_real_numbers_are_refused(dtype):
    model = nn.Module()
    model.w = nn.Parameter(torch.ones(3, dtype=dtype), requires_grad=dtype.is_complex)
    with pytest.raises(ValueError, match=rf"must be real floating point, got {dtype}"):
        lc.Objective(model, F.cross_entropy, (X, Y), parameters="w")


def test_parameters_of_two_kinds_are_refused():
    model = network()
    model[1].half()
    with pytest.raises(ValueError, match=r"share one dtype .* got torch.float16 on"):
        lc.Objective(model, F.cross_entropy, (X, Y))


def test_forward_passes_that_draw_random_numbers_are_refused():
    model = Dropping(4, 3).double()
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="draws random numbers even in eval mode"):
        lc.Objective(model, F.cross_entropy, (X, Y))
    assert torch.equal(torch.get_rng_state(), state)


OPERATORS = {
    "Hessian": lc.Hessian,
    "finite differences": lambda o, t=None: lc.Hessian(o, t, method="finite_difference"),
    "Gauss-Newton": lc.GaussNewton,
    "Fisher": lc.Fisher,
    "Monte Carlo": lambda o, t=None: lc.Fisher(o, t, kind="monte_carlo"),
}
every_operator = pytest.mark.parametrize("make", OPERATORS.values(), ids=OPERATORS)


@every_operator
def test_a_batch_with_nan_is_named(untouched, make):
    A = make(lc.Objective(untouched, F.cross_entropy, nan_in_batch_two()))
    with pytest.raises(FloatingPointError, match="must be finite, got nan for batch 1"):
        A @ torch.ones(A.n, dtype=torch.float64)


@every_operator
@pytest.mark.parametrize(
    ("theta", "message"),
    [
        (torch.zeros(3), r"theta must be a tensor of shape \(73,\), got \(3,\)"),
        (torch.zeros(73, 1), r"got \(73, 1\)"),
        (torch.zeros(73), "must be torch.float64 on cpu, got torch.float32 on cpu"),
        (torch.zeros(73).double().to("meta"), "must be torch.float64 on cpu, got .* on meta"),
        ("here", r"theta must be a tensor of shape \(73,\), got str"),
    ],
)
def test_a_theta_of_another_kind_is_refused(untouched, make, theta, message):
    objective = lc.Objective(untouched, F.cross_entropy, ragged(*data()))
    with pytest.raises(ValueError, match=message):
        make(objective, theta)


@every_operator
@pytest.mark.parametrize(
    ("vectors", "error", "message"),
    [
        (torch.zeros(3).double(), ValueError, r"n = 73, got vectors of shape \(3,\)"),
        (torch.zeros(73, 2, 2).double(), TypeError, r"shape \(n,\) or \(n, k\)"),
        (torch.zeros(73), ValueError, "torch.float64 on cpu, got torch.float32"),
        (torch.zeros(73).double().to("meta"), ValueError, "got torch.float64 on meta"),
        ([0.0] * 73, TypeError, r"multiplies tensors of shape \(n,\) or \(n, k\)"),
    ],
)
def test_vectors_of_another_kind_are_refused(untouched, make, vectors, error, message):
    A = make(lc.Objective(untouched, F.cross_entropy, ragged(*data())))
    with pytest.raises(error, match=message):
        A @ vectors
    assert A.matvecs == 0


@pytest.mark.parametrize("make", [lc.Hessian, lc.GaussNewton])
def test_a_custom_function_without_second_derivative_is_named(make):
    # torch.autograd.grad passes over the node that should raise: the parts below the function
    # would be missing from the products.
    objective = lc.Objective(Squares().double(), F.cross_entropy, ragged(*data()))
    with pytest.raises(ValueError, match="Once") as caught:
        make(objective) @ torch.ones(objective.n, dtype=torch.float64)
    if make is lc.Hessian:
        assert "finite_difference" in str(caught.value)


def test_finite_differences_need_no_second_derivative():
    model, exact = Squares().double(), Squares(torch.square).double()
    exact.load_state_dict(model.state_dict())
    objective = lc.Objective(model, F.cross_entropy, ragged(*data()))
    found = lc.Hessian(objective, method="finite_difference").dense()
    expected = dense_hessian(lc.Objective(exact, F.cross_entropy, ragged(*data())))
    assert relative(found, expected) < 1e-8


def test_a_first_layer_without_second_derivative_is_named_too():
    class Whole(nn.Linear):
        def forward(self, x):
            return Once.apply(super().forward(x))

    objective = lc.Objective(Whole(4, 3).double(), lambda out, y: out.mean(), (X, Y))
    with pytest.raises(ValueError, match=r"Once.*finite_difference"):
        lc.Hessian(objective) @ torch.ones(15, dtype=torch.float64)


@pytest.mark.parametrize("make", [lc.Hessian, lc.GaussNewton, lc.Fisher])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 B"),
    ],
    ids=["GPU", "CPU"],
)
def test_running_out_of_memory_says_what_to_lower(untouched, monkeypatch, make, error):
    A = make(lc.Objective(untouched, F.cross_entropy, ragged(*data())))

    def exhausted(*_, **__):
        raise error

    v = torch.ones(A.n, dtype=torch.float64)
    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "grad", exhausted)
        with pytest.raises(MemoryError, match="lower memory_budget"):
            A @ v
    torch.testing.assert_close(A @ v, make(A.objective) @ v)  # and the operator still works


def test_other_errors_of_the_model_pass_through(untouched):
    objective = lc.Objective(untouched, F.cross_entropy, ragged(*data()))
    A = lc.Hessian(objective)
    objective.criterion = lambda out, y: out.view(7, 7, 7).mean()
    with pytest.raises(RuntimeError, match="shape"):
        A @ torch.ones(A.n, dtype=torch.float64)


@pytest.mark.parametrize("budget", [-1, -0.5, NAN])
@pytest.mark.parametrize("make", [lc.Hessian, lc.GaussNewton, lc.Fisher])
def test_a_memory_budget_below_zero_is_refused(untouched, make, budget):
    objective = lc.Objective(untouched, F.cross_entropy, (X, Y))
    with pytest.raises(ValueError, match="memory_budget must be 0 bytes or more, got"):
        make(objective, memory_budget=budget)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o: lc.Hessian(o, method="forward"), "method must be .* got 'forward'"),
        (lambda o: lc.Fisher(o, kind="true"), "kind must be one of 'exact'.* got 'true'"),
        (lambda o: lc.Fisher(o, kind="monte_carlo", samples=0), "samples must be .* got 0"),
        (lambda o: lc.Fisher(o, kind="monte_carlo", seed=-1), "seed must be .* got -1"),
        (lambda o: lc.Hessian(o).block("none.*"), r"no parameters match 'none\.\*'"),
        (lambda o: lc.Hessian(o).scaled(torch.ones(3)), r"shape \(73,\), got \(3,\)"),
        (lambda o: lc.Hessian(o).scaled(2.0), r"shape \(73,\), got float"),
        (lambda o: lc.Hessian(o).dense(limit=72), "n = 73 is refused above limit = 72"),
        (lambda o: lc.top_eigenpairs(lc.Hessian(o), 74), "between 1 and n = 73, got 74"),
        (lambda o: lc.top_eigenpairs(lc.Hessian(o), 0), "between 1 and n = 73, got 0"),
        (lambda o: lc.trace(lc.Hessian(o), 1), "probes must be at least 2, got 1"),
        (lambda o: lc.diagonal(lc.Hessian(o), 3), "probes must be at least 4, got 3"),
        (lambda o: lc.diagonal(lc.Hessian(o), rtol=0.0), "rtol must be positive"),
        (lambda o: lc.effective_rank(lc.Hessian(o), rtol=NAN), "rtol must be positive"),
        (
            lambda o: lc.trace(lc.Hessian(o), seed=torch.Generator("cpu"), rtol=-INF),
            "rtol must be positive or None, got -inf",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(untouched, call, message):
    with pytest.raises(ValueError, match=message):
        call(lc.Objective(untouched, F.cross_entropy, (X, Y)))


ESTIMATORS = [
    lc.top_eigenpairs, lc.power_iteration, lc.trace, lc.trace_of_square, lc.effective_rank,
    lc.diagonal, lc.spectral_density, lc.curvature_summary,
]  # fmt: skip


@pytest.mark.parametrize("estimate", ESTIMATORS, ids=lambda f: f.__name__)
def test_what_is_no_operator_is_named(untouched, estimate):
    objective = lc.Objective(untouched, F.cross_entropy, (X, Y))
    for wrong, kind in [(objective, "Objective"), (torch.eye(3), "Tensor"), (untouched, "MLP")]:
        with pytest.raises(TypeError, match=rf"such as Hessian\(objective\), got {kind}"):
            estimate(wrong)


@pytest.mark.parametrize("estimate", ESTIMATORS, ids=lambda f: f.__name__)
def test_products_that_are_not_finite_are_refused_by_every_estimator(estimate):
    class Broken(lc.SymmetricOperator):
        def _multiply(self, vectors):
            return vectors * NAN

    with pytest.raises(FloatingPointError, match="not finite"):
        estimate(Broken(200, torch.float64, torch.device("cpu")))


@pytest.mark.parametrize("make", [lc.Hessian, lc.GaussNewton, lc.Fisher])
def test_an_operator_of_what_is_no_objective_names_it(make):
    with pytest.raises(TypeError, match=rf"{make.__name__} needs an Objective.*, got Linear"):
        make(nn.Linear(4, 3))
    with pytest.raises(TypeError, match="needs a Hessian or an Objective, got Linear"):
        lc.layer_curvature(nn.Linear(4, 3))


@pytest.mark.parametrize(
    "estimate", [lc.trace, lc.trace_of_square, lc.effective_rank, lc.spectral_density]
)
def test_what_cannot_be_deflated_is_named(estimate):
    A = lc.Matrix(torch.diag(torch.linspace(1, 2, 12)))
    with pytest.raises(TypeError, match=r"deflate needs the Eigenpairs .*, got Tensor"):
        A.deflate(torch.eye(12))
    other = lc.top_eigenpairs(lc.Matrix(torch.eye(5)), 1)
    with pytest.raises(ValueError, match="must have n = 12 entries, got 5"):
        estimate(A, deflate=other)
    with pytest.raises(TypeError, match=r"deflate needs the Eigenpairs .*, got Tensor"):
        estimate(A, deflate=torch.eye(12))


def test_gauss_newton_of_outputs_that_are_no_tensor_is_refused():
    class Pair(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    criterion = lambda out, y: F.cross_entropy(out[0], y)  # noqa: E731
    objective = lc.Objective(Pair(4, 3).double(), criterion, (X, Y))
    with pytest.raises(TypeError, match="output must be one tensor, got tuple"):
        lc.GaussNewton(objective) @ torch.ones(15, dtype=torch.float64)
    assert bool(lc.Hessian(objective).dense().any())


@torch.inference_mode()
def test_inference_mode_is_refused(untouched):
    with pytest.raises(ValueError, match=r"leave torch\.inference_mode\(\)"):
        lc.Objective(untouched, F.cross_entropy, data())


def test_so_are_products_in_it_while_data_made_in_it_are_taken():
    with torch.inference_mode():
        x, y = (tensor * 1 for tensor in data())
    objective = lc.Objective(network(), F.cross_entropy, (x, y))
    hessian = lc.Hessian(objective)
    with torch.inference_mode(), pytest.raises(ValueError, match="leave torch"):
        hessian @ torch.ones(hessian.n, dtype=torch.float64)
    assert relative(hessian.dense(), dense_hessian(objective)) < 1e-10


def test_a_function_that_cannot_be_batched_goes_one_by_one():
    class ReadsANumber(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return Doubled.apply(g * x)

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            return g * (2.0 if g.sum().item() < math.inf else 1.0)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3).double()

        def forward(self, x):
            return ReadsANumber.apply(self.layer(x))

    objective = lc.Objective(Model(), F.cross_entropy, ragged(*data()))
    assert relative(lc.Hessian(objective).dense(), dense_hessian(objective)) < 1e-10
