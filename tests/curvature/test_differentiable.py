"""A criterion that autograd differentiates only once is refused, and no other one is."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import Once
from torch import nn
from torch.autograd.function import once_differentiable

import landscape_core as lc
from landscape_core.curvature import differentiable
from landscape_core.curvature.differentiable import check_criterion


class Fused(torch.autograd.Function):
    """Cross-entropy whose forward pass makes the slope too, as fused kernels do."""

    @staticmethod
    def forward(ctx, z, y):
        ctx.save_for_backward((z.softmax(1) - F.one_hot(y, z.shape[1])) / len(y))
        return F.cross_entropy(z, y)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return g * ctx.saved_tensors[0], None


class Saved(Fused):
    """The same without the mark."""

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0], None


FUSED = {
    "marked": lambda z, y: Fused.apply(z, y),
    "unmarked": lambda z, y: Saved.apply(z, y),
    "half": lambda z, y: (Fused.apply(z, y) + F.cross_entropy(z, y)) / 2,
}
MEASURES = {
    "Hessian": lambda o: lc.top_eigenpairs(lc.Hessian(o), 1),
    "without graphs": lambda o: lc.Hessian(o, memory_budget=0).dense(),
    "Gauss-Newton": lambda o: lc.GaussNewton(o).dense(),
    "layers": lc.layer_curvature,
    "batch_sharpness": lambda o: lc.batch_sharpness(o, 10, draws=2),
}


def objective(criterion, dtype=torch.float64, weight=1.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    with torch.no_grad():
        model[2].weight.mul_(weight), model[2].bias.mul_(weight)
    x, y = torch.randn(30, 4, dtype=dtype), torch.arange(30) % 3
    return lc.Objective(model, criterion, [(x[:20], y[:20]), (x[20:], y[20:])])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("criterion", FUSED.values(), ids=FUSED)
@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_a_criterion_with_a_constant_slope_is_refused(measure, criterion, dtype):
    message = r"no second derivative: the slopes .* by 0\.\d+ .*finite_difference"
    with pytest.raises(ValueError, match=message):
        measure(objective(criterion, dtype))


def test_it_is_named_and_found_behind_a_head_of_zeros():
    for weight in (0.0, 1.0, 5.0):
        with pytest.raises(ValueError, match="backward pass of Fused cannot"):
            lc.Hessian(objective(FUSED["marked"], weight=weight)).dense()


def test_what_needs_first_derivatives_alone_takes_it():
    fused, plain = objective(FUSED["marked"]), objective(F.cross_entropy)
    for measure in (
        lambda o: lc.Fisher(o).dense(),
        lambda o: lc.Fisher(o, kind="empirical").dense(),
        lambda o: lc.Hessian(o, method="finite_difference") @ torch.ones(o.n).double(),
    ):
        torch.testing.assert_close(measure(fused), measure(plain), rtol=1e-6, atol=1e-8)


class Same(torch.autograd.Function):
    """A custom function with all derivatives, so that the criterion after it is looked at."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g


def custom(criterion):
    return lambda z, y: criterion(Same.apply(z), y)


def hinge(z, y, power=1):
    return (1 - z * y).clamp(min=0).pow(power).mean()


LABELLED = {
    "cross-entropy": F.cross_entropy,
    "smoothed": partial(F.cross_entropy, label_smoothing=0.1),
    "weighted": lambda z, y: F.cross_entropy(z, y, weight=torch.arange(3).to(z) + 1),
    "ignoring": partial(F.cross_entropy, ignore_index=0),
    "nll": lambda z, y: F.nll_loss(z.log_softmax(1), y),
}
DENSE = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "smooth l1": F.smooth_l1_loss,
    "narrow smooth l1": partial(F.smooth_l1_loss, beta=0.05),
    "huber": F.huber_loss,
    "hinge": hinge,
    "squared hinge": partial(hinge, power=2),
    "linear": lambda z, y: (z * y).mean(),
    "bce": lambda z, y: F.binary_cross_entropy_with_logits(z, y.sigmoid()),
    "kl": lambda z, y: F.kl_div(z.log_softmax(1), y.softmax(1), reduction="batchmean"),
    "gaussian": lambda z, y: F.gaussian_nll_loss(z, y, torch.ones_like(y)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0, 1e-6, 1, 20, 1e3])
def test_no_other_criterion_is_refused(dtype, scale):
    rng = torch.Generator().manual_seed(0)
    for count in (1, 2, 40):
        z = (scale * torch.randn(count, 3, generator=rng)).to(dtype)
        y = torch.randn(count, 3, generator=rng).to(dtype)
        for criterion in LABELLED.values():
            check_criterion(custom(criterion), z, torch.arange(count) % 3)
        for criterion in DENSE.values():
            for targets in (y, z, z + 1, z.sign()):
                check_criterion(custom(criterion), z, targets)


def test_outputs_stay_where_a_criterion_is_defined():
    # Outside of [0, 1] it is an error, on a GPU one that ends the process.
    p = torch.tensor([[0.0], [1e-9], [1.0]])
    for part in (p, p[:1], p[2:]):
        check_criterion(custom(F.binary_cross_entropy), part, (part > 0.5).float())
    mean, variance = torch.zeros(5, 1), torch.full((5, 1), 1e-6)
    pair = (mean, variance * torch.arange(1, 6)[:, None])
    check_criterion(lambda z, y: F.gaussian_nll_loss(Same.apply(z[0]), y, z[1]), pair, mean)


def test_smooth_criteria_are_found_sound_and_then_left_alone(monkeypatch):
    calls = []

    def counted(*arguments):
        calls.append(check_criterion(*arguments))
        return calls[-1]

    monkeypatch.setattr("landscape_core.curvature.hessian.check_criterion", counted)
    for dtype in (torch.float32, torch.float64):
        for make in (lc.Hessian, lc.GaussNewton):
            calls.clear()
            operator = make(objective(custom(F.cross_entropy), dtype), memory_budget=0)
            for _ in range(3):
                operator @ torch.ones(operator.n, dtype=dtype)
            assert calls == [True]


def test_few_examples_are_looked_at_and_no_random_number_is_drawn(monkeypatch):
    monkeypatch.setattr(differentiable, "ENTRIES", 30)
    sizes, state = [], torch.get_rng_state()

    def criterion(z, y):
        sizes.append(z.shape)
        return F.cross_entropy(Same.apply(z), y)

    assert check_criterion(
        criterion, torch.randn(50, 3, generator=torch.Generator()), torch.arange(50) % 3
    )
    assert sizes == [(10, 3)] * 6
    assert torch.equal(torch.get_rng_state(), state)


def test_batch_sharpness_refuses_layers_with_one_derivative():
    class Squares(nn.Linear):
        def forward(self, x):
            return Once.apply(super().forward(x))

    x, y = torch.randn(12, 4), torch.arange(12) % 3
    model = nn.Sequential(Squares(4, 5), nn.Linear(5, 3))
    with pytest.raises(ValueError, match="backward pass of Once cannot"):
        lc.batch_sharpness(lc.Objective(model, F.cross_entropy, (x, y)), 12, draws=2)
    linear = lc.Objective(nn.Linear(4, 1), lambda z, y: (z * y).mean(), (x, x[:, :1]))
    with pytest.raises(ValueError, match="gradient does not depend on theta"):
        lc.batch_sharpness(linear, 12, draws=2)


def test_batch_sharpness_of_weight_norm_is_that_of_differences():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))).double()
    x, y = torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % 3
    given = lc.Objective(copy.deepcopy(model), F.cross_entropy, (x, y))
    g = given.gradient()
    bent = (lc.Hessian(given, method="finite_difference") @ g) @ g / (g @ g)
    assert lc.batch_sharpness(given, 12, draws=2).value == pytest.approx(float(bent), rel=1e-6)


class SavesItsOutput(torch.autograd.Function):
    """Standardizes rows; its backward pass uses what the forward pass has computed."""

    @staticmethod
    def forward(ctx, x):
        spread = (x.var(1, keepdim=True, correction=0) + 1e-6).sqrt()
        y = (x - x.mean(1, keepdim=True)) / spread
        ctx.save_for_backward(y, spread)
        return y

    @staticmethod
    def backward(ctx, g):
        y, spread = ctx.saved_tensors
        return (g - g.mean(1, keepdim=True) - y * (g * y).mean(1, keepdim=True)) / spread


class Standardized(nn.Module):
    def __init__(self, apply):
        super().__init__()
        self.apply_to = apply

    def forward(self, x):
        return self.apply_to(x)


def through(apply, dtype, activation=nn.Tanh, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(4, 6), Standardized(apply), activation(), nn.Linear(6, 3)
    ).to(dtype)
    x = torch.randn(40, 4, dtype=dtype)
    return lc.Objective(model, F.cross_entropy, (x, torch.arange(40) % 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_layer_that_hides_what_it_saved_is_refused(dtype):
    objective = through(SavesItsOutput.apply, dtype)
    exact = through(lambda x: F.layer_norm(x, (6,), eps=1e-6), dtype)
    torch.testing.assert_close(objective.gradient(), exact.gradient(), rtol=1e-4, atol=1e-6)
    for call in (
        lambda: lc.Hessian(objective).dense(),
        lambda: lc.trace(lc.Hessian(objective), 4),
        lambda: lc.Hessian(objective).block("0.*") @ torch.ones(30, dtype=dtype),
    ):
        with pytest.raises(ValueError, match="backward pass of SavesItsOutput uses what its"):
            call()
    near = lc.Hessian(objective, method="finite_difference").dense()
    expected = lc.Hessian(exact).dense()
    assert float((near - expected).norm() / expected.norm()) < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.GELU])
def test_layers_whose_backward_passes_can_be_differentiated_are_not(dtype, activation):
    for seed in range(5):
        objective = through(Same.apply, dtype, activation, seed)
        plain = through(nn.Identity(), dtype, activation, seed)
        torch.testing.assert_close(lc.Hessian(objective).dense(), lc.Hessian(plain).dense())


def test_the_layers_of_this_package_are_not_looked_at(monkeypatch):
    def refuse(*_):
        raise AssertionError("compared")

    monkeypatch.setattr("landscape_core.curvature.hessian.check_model", refuse)
    model = lc.ResNet((3, 8, 8), 3, width=4, blocks=1, seed=0)
    data = torch.randn(6, 3, 8, 8), torch.arange(6) % 3
    product = lc.Hessian(lc.Objective(model, F.cross_entropy, data)) @ torch.ones(
        sum(p.numel() for p in model.parameters())
    )
    assert bool(product.isfinite().all())
