"""The same products as curvlinops, hessian-eigenthings and PyHessian, to rounding."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import Attention, ragged, relative
from scipy.sparse.linalg import eigsh
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import landscape_core as lc

curvlinops = pytest.importorskip("curvlinops")
eigenthings = pytest.importorskip("hessian_eigenthings")
pyhessian = pytest.importorskip("pyhessian")

pytestmark = [
    # PyHessian calls backward(create_graph=True); SciPy and curvlinops deprecate things.
    pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


class Residual(nn.Module):
    """Two convolutions with BatchNorm and a skip connection."""

    def __init__(self):
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.second, self.second_norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        hidden = torch.tanh(self.first_norm(self.first(x)))
        hidden = hidden + self.second_norm(self.second(hidden))
        return self.head(F.gelu(hidden).mean((2, 3)))


class Norm(nn.LayerNorm):
    """LayerNorm in elementary operations.

    curvlinops differentiates by torch.func, in which torch 2.13's own LayerNorm has a wrong
    second derivative (see conftest.dense_hessian).
    """

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + self.eps).sqrt()
        return self.weight * scaled + self.bias


def transformer():
    model = Attention()
    model.encoder.norm1, model.encoder.norm2 = Norm(4), Norm(4)
    return model


NETWORKS = {
    "MLP": (lambda: lc.MLP((4,), 3, width=6), (4,)),
    "CNN": (lambda: lc.SmallCNN((1, 4, 4), 3, width=2), (1, 4, 4)),
    "ResNet": (Residual, (1, 4, 4)),
    "Transformer": (transformer, (5, 4)),
}


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS)
def problem(request):
    """A network in eval mode and 24 examples; equal batches, over which means agree."""
    make, shape = request.param
    torch.manual_seed(0)
    model = make()
    model(torch.randn(40, *shape))  # BatchNorm statistics other than 0 and 1
    x, y = torch.randn(24, *shape, dtype=torch.float64), torch.arange(24) % 3
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it has no forward-mode derivative
    with sdpa_kernel(SDPBackend.MATH):
        yield model.double().eval(), x, y
    torch.backends.mha.set_fastpath_enabled(fast)


def batches(x, y, sizes=(8, 8, 8)):
    return ragged(x, y, sizes)


@pytest.mark.parametrize("sizes", [(24,), (10, 10, 4)], ids=["one batch", "ragged"])
@pytest.mark.parametrize(
    ("make", "theirs"),
    [
        (lc.Hessian, curvlinops.HessianLinearOperator),
        (lc.GaussNewton, curvlinops.GGNLinearOperator),
        (lc.Fisher, curvlinops.GGNLinearOperator),
        (lambda o: lc.Fisher(o, kind="empirical"), curvlinops.EFLinearOperator),
    ],
    ids=["Hessian", "Gauss-Newton", "Fisher", "empirical Fisher"],
)
def test_products_are_those_of_curvlinops(problem, make, theirs, sizes):
    model, x, y = problem
    data = batches(x, y, sizes)
    A = make(lc.Objective(model, F.cross_entropy, data))
    v = torch.randn(A.n, 3, dtype=torch.float64)
    other = theirs(model, nn.CrossEntropyLoss(), list(model.parameters()), data)
    assert relative(A @ v, (other @ v).detach()) < 1e-12


def test_products_are_those_of_hessian_eigenthings(problem):
    model, x, y = problem
    data = batches(x, y)  # equal, because it averages over batches
    H = lc.Hessian(lc.Objective(model, F.cross_entropy, data))
    other = eigenthings.operators.HessianOperator(
        model, data, lambda m, batch: F.cross_entropy(m(batch[0]), batch[1])
    )
    v = torch.randn(H.n, dtype=torch.float64)
    assert relative(H @ v, other.matvec(v).detach()) < 1e-12


def test_products_with_torch_layer_norm_are_those_of_hessian_eigenthings():
    torch.manual_seed(0)
    model = Attention().double().eval()
    data = batches(torch.randn(24, 5, 4, dtype=torch.float64), torch.arange(24) % 3)
    H = lc.Hessian(lc.Objective(model, F.cross_entropy, data))
    v = torch.randn(H.n, dtype=torch.float64)
    with sdpa_kernel(SDPBackend.MATH):
        other = eigenthings.operators.HessianOperator(
            model, data, lambda m, batch: F.cross_entropy(m(batch[0]), batch[1])
        )
        assert relative(H @ v, other.matvec(v).detach()) < 1e-12


def test_products_are_those_of_pyhessian(problem):
    model, x, y = problem
    H = lc.Hessian(lc.Objective(model, F.cross_entropy, (x, y)))
    other = pyhessian.hessian(copy.deepcopy(model), nn.CrossEntropyLoss(), (x, y), cuda=False)
    v = torch.randn(H.n, dtype=torch.float64)
    pieces = H.objective.space.unflatten(v).values()
    product = torch.autograd.grad(other.gradsH, other.params, list(pieces), retain_graph=True)
    for parameter in other.params:
        parameter.grad = None  # the reference cycle of create_graph
    assert relative(H @ v, torch.cat([p.flatten() for p in product]).detach()) < 1e-12


def test_the_largest_eigenvalues_are_those_of_scipy_on_curvlinops(problem):
    model, x, y = problem
    data = batches(x, y)
    H = lc.Hessian(lc.Objective(model, F.cross_entropy, data))
    other = curvlinops.HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), data
    ).to_scipy()
    expected = torch.tensor(eigsh(other, 3, which="LA", tol=1e-10)[0])
    found = lc.top_eigenpairs(H, 3, "LA", tol=1e-8, max_matvecs=3000)
    assert bool(found.converged.all())
    scale = float(expected.abs().max())
    torch.testing.assert_close(
        found.values.sort().values, expected.sort().values, rtol=0, atol=1e-9 * scale
    )
