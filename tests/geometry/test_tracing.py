"""Units are followed through layers as they are written; what is not known stays in place."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import landscape_core as lc
from landscape_core.geometry.tracing import unit_activations
from landscape_core.geometry.units import merged_axes


def data_of(count: int = 12, features: int = 4) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(count, features, generator=rng, dtype=torch.float64)
    return x, torch.arange(count) % 3


def sequence(*middle: nn.Module, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), *middle, nn.Linear(8, 3)).double()


class Functional(nn.Module):
    """The perceptron with its ReLU as a function."""

    def __init__(self, model: nn.Sequential) -> None:
        super().__init__()
        self.first, self.last = model[0], model[-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x)))


def test_activations_do_not_depend_on_how_an_activation_is_written():
    models = [sequence(nn.ReLU()), sequence(nn.ReLU(inplace=True)), Functional(sequence())]
    x, _ = data_of()
    spec = lc.trace_permutations(models[0], x)
    of_each = [
        unit_activations(model, lc.trace_permutations(model, x), x)[0] for model in models
    ]
    assert spec.sizes == {0: 8}
    assert of_each[0].shape == (8, 24)  # before and after the ReLU
    for other in of_each[1:]:
        torch.testing.assert_close(other, of_each[0], rtol=0, atol=0)


def test_activations_follow_the_policy_of_batchnorm():
    x, y = data_of(60)
    a, b = (
        lc.MLP((4,), 3, width=9, batchnorm=True, seed=seed).double().eval() for seed in (0, 1)
    )
    stale = copy.deepcopy(b)
    for module in stale.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.uniform_(-3, 3)
            module.running_var.uniform_(0.1, 9)
    at, *others = (
        lc.Objective(model, F.cross_entropy, (x, y), batchnorm="refresh")
        for model in (a, b, stale)
    )
    found = [lc.align(at, other, method="activations").permutations for other in others]
    assert all(torch.equal(found[0][group], found[1][group]) for group in found[0])


@pytest.mark.parametrize("offset", [1e3, 1e4])
def test_activations_far_from_zero_are_matched(offset):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))
    with torch.no_grad():
        model[0].bias.add_(offset)
        model[2].weight.mul_(1e-3)
    x = torch.randn(2000, 4)
    order = torch.randperm(32)
    spec = lc.trace_permutations(model, x)
    twin = copy.deepcopy(model)
    twin.load_state_dict(spec.apply({0: order}, model.state_dict()))
    batches = [(part, torch.arange(500) % 3) for part in x.split(500)]
    a, b = (lc.Objective(each, F.cross_entropy, batches) for each in (model, twin))
    assert torch.equal(lc.align(a, b, method="activations").theta, a.theta)


def weight_norm() -> nn.Module:
    model = sequence(nn.Tanh())
    return nn.Sequential(nn.utils.parametrizations.weight_norm(model[0]), model[1], model[2])


class Pooled(nn.Module):
    """Pools over the units of a matrix, as if they were pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 16), nn.Linear(8, 3)
        self.pool = nn.MaxPool1d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.pool(torch.tanh(self.first(x))))


class Encoded(nn.Module):
    """A Transformer encoder with a norm that is not LayerNorm at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(2, 8), nn.Linear(8, 3)
        layer = nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True)
        norm = nn.RMSNorm(8)
        nn.init.uniform_(norm.weight, 0.5, 2)
        self.encoder = nn.TransformerEncoder(layer, 1, norm=norm, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x.view(-1, 2, 2))).mean(1))


class Tied(nn.Module):
    """A transposed convolution, which is not followed, with the weight of one that is."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv1d(1, 6, 1), nn.Conv1d(6, 5, 1)
        self.up = nn.ConvTranspose1d(5, 6, 1)
        self.up.weight = self.down.weight
        nn.init.normal_(self.up.bias)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.down(torch.tanh(self.stem(x.unsqueeze(1)))))
        return self.head(self.up(y).flatten(1))


@pytest.mark.parametrize("make", [weight_norm, Pooled, Encoded, Tied])
def test_what_is_not_known_stays_in_its_place(make):
    torch.manual_seed(0)
    model, (x, _) = make().double().eval(), data_of()
    spec = lc.trace_permutations(model, x)
    rng = torch.Generator().manual_seed(1)
    moved = {g: torch.randperm(size, generator=rng) for g, size in spec.sizes.items()}
    permuted = copy.deepcopy(model)
    permuted.load_state_dict(spec.apply(moved, model.state_dict()))
    torch.testing.assert_close(permuted(x), model(x), rtol=1e-10, atol=1e-12)
    assert bool(spec.sizes) == (make is Encoded)


def test_a_batch_of_one_example_has_the_units_of_many():
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 3)
    ).double()
    x = torch.randn(32, 2, 8, 8, dtype=torch.float64)
    specs = [lc.trace_permutations(model, part) for part in (x, x[:1])]
    assert specs[0] == specs[1]
    assert specs[0].sizes == {0: 6}
    batches = [(part, torch.arange(len(part)) % 3) for part in (x, x[:1])]
    a = lc.Objective(model, F.cross_entropy, batches)
    assert lc.align(a, a, method="activations").change == 0


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ((1, 3, 4), (1, 12), [([0], 0), ([1, 2], 1)]),
        ((8, 1, 3), (8, 3), [([0], 0), ([1, 2], 1)]),
        ((8, 3, 1, 1), (8, 3), [([0], 0), ([1], 1), ([2, 3], None)]),
        ((6, 4), (2, 12), [([0, 1], None)]),
        ((8, 12), (8, 3, 4), [([0], 0), ([1], None)]),
    ],
)
def test_axes_that_merge(old, new, expected):
    assert merged_axes(old, new) == expected


class Masked(nn.Module):
    """An argument that may be left out, and a branch that only training takes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
        h = torch.tanh(self.first(x))
        if mask is not None:
            h = h * mask
        if self.training:
            h = h.flip(1) + h
        return self.last(F.dropout(h, 0.5, self.training)) * scale


def test_arguments_left_out_and_training_mode():
    torch.manual_seed(0)
    model, (x, _) = Masked().double().train(), data_of()
    before = torch.get_rng_state()
    for spec in (
        lc.trace_permutations(model, x),
        lc.trace_permutations(model, x=x, scale=2.0),
        lc.trace_permutations(model, x, torch.ones(8, dtype=torch.float64)),
    ):
        assert spec.sizes in ({0: 8}, {})
        assert model.training
    assert lc.trace_permutations(model, x).sizes == {0: 8}
    assert lc.trace_permutations(model, x, torch.ones(8, dtype=torch.float64)).sizes == {}
    assert torch.equal(torch.get_rng_state(), before)


def test_specifications_of_ones_own():
    x, y = data_of()
    a, b = (
        lc.Objective(sequence(nn.Tanh(), seed=seed), F.cross_entropy, (x, y)) for seed in (0, 1)
    )
    axes = {"0.weight": {0: lc.Axis(0)}, "0.bias": {0: lc.Axis(0)}, "2.weight": {1: lc.Axis(0)}}
    for method in ("weights", "activations"):
        assert (
            lc.align(a, b, method=method, spec=lc.PermutationSpec({0: 8}, axes)).change < 1e-9
        )
    with pytest.raises(
        ValueError, match=r"axis 0 of 0.weight is of group 0, which has no size"
    ):
        lc.align(a, b, spec=lc.PermutationSpec({}, axes))


class Transposed(nn.Module):
    """Units between transposed convolutions, which are not followed."""

    def __init__(self) -> None:
        super().__init__()
        self.v, self.w = nn.ConvTranspose1d(1, 6, 1), nn.ConvTranspose1d(6, 3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.w(torch.tanh(self.v(x.unsqueeze(1)))).mean(2)


def test_a_specification_may_know_more_than_the_tracer():
    x, y = data_of()
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(lc.Objective(Transposed().double(), F.cross_entropy, (x, y)))
    axes = {"v.weight": {1: lc.Axis(0)}, "v.bias": {0: lc.Axis(0)}, "w.weight": {0: lc.Axis(0)}}
    spec = lc.PermutationSpec({0: 6}, axes)
    by_weights, seen = (
        lc.align(*models, method=m, spec=spec) for m in ("weights", "activations")
    )
    assert torch.equal(by_weights.theta, seen.theta)  # what is not seen is matched by weights


class Running(nn.Module):
    """Parameters whose names begin as those of BatchNorm's statistics do."""

    def __init__(self) -> None:
        super().__init__()
        self.running_a, self.running_b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.running_b(torch.tanh(self.running_a(x)))
        return y, 2 * y


def test_names_do_not_matter_and_outputs_may_be_tuples():
    x, y = data_of()

    def criterion(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs[1], targets)

    torch.manual_seed(0)
    a, b = (lc.Objective(Running().double(), criterion, (x, y)) for _ in range(2))
    found = lc.align(a, b)
    assert found.distances[1] < 0.99 * found.distances[0]
    assert found.change < 1e-12
