"""Permuted units: the function stays, planted permutations are found, barriers fall."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import landscape_core as lc


class Residual(nn.Module):
    """Convolutions with BatchNorm around a shortcut, then a pooled head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.a, self.an = nn.Conv2d(6, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.b, self.bn = nn.Conv2d(5, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.shortcut = nn.Conv2d(6, 6, 1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu(self.an(self.a(x)))
        y = F.relu(self.bn(self.b(y)) + self.shortcut(x))
        y = F.max_pool2d(y + self.depthwise(y), 2)
        return self.head(y.mean((2, 3)))


class Flattened(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(2, 5, 3), nn.MaxPool2d(2)
        self.hidden, self.out = nn.Linear(20, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.conv(x)))
        return self.out(F.gelu(self.hidden(x.view(x.shape[0], -1))))


class Attentive(nn.Module):
    """Embedding with positions, one attention block of its own, one of PyTorch's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Linear(4, 8), nn.Parameter(torch.randn(5, 8))
        self.norm, self.attention = (
            nn.LayerNorm(8),
            nn.MultiheadAttention(8, 4, batch_first=True),
        )
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.position
        y = self.norm(x)
        x = x + self.attention(y, y, y)[0]
        return self.head(self.layer(x).mean(dim=1))


class Shuffled(nn.Module):
    """Splits its units, which must then stay where they are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 6), nn.Linear(3, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.first(x).chunk(2, dim=1)
        return self.third(torch.relu(self.second(left * right.sigmoid())))


MODELS = {
    "mlp": (lambda seed: lc.MLP((4,), 3, width=9, seed=seed), (4,), [9, 9]),
    "batchnorm": (
        lambda seed: lc.MLP((4,), 3, width=9, batchnorm=True, seed=seed),
        (4,),
        [9, 9],
    ),
    "cnn": (lambda seed: lc.SmallCNN((2, 8, 8), 3, width=4, seed=seed), (2, 8, 8), None),
    "residual": (lambda _: Residual(), (2, 6, 6), [5, 6, 6]),
    "flattened": (lambda _: Flattened(), (2, 6, 6), [5, 7]),
    "attention": (lambda _: Attentive(), (5, 4), [2, 4, 8, 12]),
    "split": (lambda _: Shuffled(), (4,), [5]),
}


def objective_of(name: str, seed: int = 0) -> lc.Objective:
    torch.manual_seed(seed)
    make, shape, _ = MODELS[name]
    model = make(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
    x = torch.randn(12, *shape, dtype=torch.float64)
    return lc.Objective(model.double(), F.cross_entropy, (x, torch.arange(12) % 3))


@pytest.mark.parametrize("name", MODELS)
def test_groups_are_found(name):
    objective = objective_of(name)
    inputs, _ = next(objective.batches())
    spec = lc.trace_permutations(objective.model, inputs)
    wanted = MODELS[name][2]
    if wanted is not None:
        assert sorted(spec.sizes.values()) == wanted
    spec.check(objective.model.state_dict())


@pytest.mark.parametrize("name", MODELS)
def test_random_permutations_leave_the_outputs_as_they_are(name):
    objective = objective_of(name)
    model, (x, _) = objective.model.eval(), next(objective.batches())
    spec = lc.trace_permutations(model, x)
    permutations = {group: torch.randperm(size) for group, size in spec.sizes.items()}
    permuted = copy.deepcopy(model)
    permuted.load_state_dict(spec.apply(permutations, model.state_dict()))
    assert any(
        not torch.equal(a, b)
        for a, b in zip(model.parameters(), permuted.parameters(), strict=True)
    )
    torch.testing.assert_close(permuted(x), model(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", ["weights", "activations"])
@pytest.mark.parametrize("name", MODELS)
def test_a_planted_permutation_is_undone(name, method):
    objective = objective_of(name)
    model, (x, y) = objective.model.eval(), next(objective.batches())
    spec = lc.trace_permutations(model, x)
    rng = torch.Generator().manual_seed(3)
    planted = {g: torch.randperm(size, generator=rng) for g, size in spec.sizes.items()}
    twin = copy.deepcopy(model)
    twin.load_state_dict(spec.apply(planted, model.state_dict()))
    found = lc.align(objective, lc.Objective(twin, F.cross_entropy, (x, y)), method=method)
    torch.testing.assert_close(found.theta, objective.theta, rtol=0, atol=1e-12)
    for name_, buffer in found.model.named_buffers():
        torch.testing.assert_close(buffer, dict(model.named_buffers())[name_])
    assert found.distances[1] < 1e-10 < found.distances[0]


def test_nothing_is_lost_and_nothing_mutated():
    a, b = objective_of("residual"), objective_of("residual", seed=1)
    before = copy.deepcopy(b.model.state_dict())
    found = lc.align(a, b)
    assert found.change < 1e-12
    assert found.distances[1] < found.distances[0]
    assert found.sweeps >= 2
    assert all(torch.equal(v, before[k]) for k, v in b.model.state_dict().items())
    matched = lc.Objective(found.model, F.cross_entropy, list(b.batches()))
    assert float(matched.loss()) == pytest.approx(float(b.loss()), rel=1e-12)
    assert torch.equal(matched.theta, found.theta)


def test_a_wrong_specification_is_refused():
    a, b = objective_of("mlp"), objective_of("mlp", seed=1)
    names = [name for name in b.space.names if name.endswith("weight")]
    half = lc.PermutationSpec({0: 9}, {names[0]: {0: lc.Axis(0)}})
    with pytest.raises(ValueError, match="names units that cannot change places"):
        lc.align(a, b, spec=half)
    with pytest.raises(ValueError, match="the specification names 'nothing'"):
        lc.align(a, b, spec=lc.PermutationSpec({0: 9}, {"nothing": {0: lc.Axis(0)}}))
    with pytest.raises(ValueError, match="must have 8 entries by the specification"):
        lc.align(a, b, spec=lc.PermutationSpec({0: 8}, {names[0]: {0: lc.Axis(0)}}))


def test_bad_input_gets_one_sentence():
    a = objective_of("mlp")
    with pytest.raises(ValueError, match="the same parameters, of the same shapes"):
        lc.align(a, objective_of("batchnorm"))
    with pytest.raises(ValueError, match="method must be 'weights' or 'activations'"):
        lc.align(a, a, method="magic")
    linear = lc.Objective(
        nn.Linear(3, 2), F.cross_entropy, (torch.randn(4, 3), torch.arange(4) % 2)
    )
    with pytest.raises(ValueError, match="no units of this network can change places"):
        lc.align(linear, linear)

    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(x) if x.sum() > 0 else self.layer(-x)

    twisted = lc.Objective(
        Branching(), F.cross_entropy, (torch.randn(4, 3), torch.arange(4) % 2)
    )
    with pytest.raises(ValueError, match=r"cannot be traced by torch\.fx"):
        lc.align(twisted, twisted)


@pytest.mark.parametrize("method", ["weights", "activations"])
def test_the_barrier_between_seeds_falls_with_matching_and_with_width(method):
    data = lc.load("digits", subset=(800, 300))
    ratios = []
    for width in (16, 256):
        pair = []
        for seed in (0, 1):
            model = lc.MLP(data.input_shape, data.classes, width=width, seed=seed)
            lc.train(model, data, lc.TrainConfig(epochs=12, seed=seed), progress=False)
            pair.append(lc.Objective(model, F.cross_entropy, data.train))
        a, b = pair
        found = lc.align(a, b, method=method)
        heights = [
            lc.barrier(lc.path_profile(a, lc.Segment(a.theta, end), 11)).value
            for end in (b.theta, found.theta)
        ]
        ratios.append(heights[1] / heights[0])
    assert ratios[1] < ratios[0] < 1
    assert ratios[1] < 0.2


def test_alignment_of_a_part_of_the_network_is_refused():
    def model():
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))

    data = torch.randn(20, 4), torch.arange(20) % 3
    a, b = (lc.Objective(model(), F.cross_entropy, data, parameters="0.*") for _ in range(2))
    with pytest.raises(ValueError, match=r"theta must hold all parameters .* lacks 2\.weight"):
        lc.align(a, b)


class Square(nn.Module):
    """Layers between units of one group: both axes of a weight are permuted alike."""

    def __init__(self, steps: int, width: int = 4, scale: float = 1.0) -> None:
        super().__init__()
        self.steps = steps
        self.embed, self.layer = nn.Linear(3, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 2)
        with torch.no_grad():
            self.layer.weight.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for _ in range(self.steps):  # recurrent
            x = torch.tanh(self.layer(x))
        if not self.steps:  # residual
            x = x + torch.tanh(self.layer(x))
        return self.head(x)


def square_objective(*args) -> lc.Objective:
    data = torch.randn(20, 3, dtype=torch.float64), torch.arange(20) % 2
    return lc.Objective(Square(*args).double(), F.cross_entropy, data)


@pytest.mark.parametrize("steps", [0, 2], ids=["residual", "recurrent"])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_the_distance_never_grows_where_both_axes_of_a_weight_are_permuted(steps, scale):
    falls = 0
    for seed in range(30):
        torch.manual_seed(seed)
        a, b = square_objective(steps, 4, scale), square_objective(steps, 4, scale)
        found = lc.align(a, b, seed=seed)
        assert dict(found.spec.sizes) == {0: 4}
        assert found.distances[1] <= found.distances[0]
        assert found.change < 1e-12
        falls += found.distances[1] < 0.99 * found.distances[0]
    assert falls >= 20


@pytest.mark.parametrize("steps", [0, 2], ids=["residual", "recurrent"])
def test_a_planted_permutation_of_both_axes_is_undone(steps):
    for seed in range(5):
        torch.manual_seed(seed)
        a = square_objective(steps, 8)
        model, (x, y) = a.model, next(a.batches())
        spec = lc.trace_permutations(model, x)
        twin = copy.deepcopy(model)
        twin.load_state_dict(spec.apply({0: torch.randperm(8)}, model.state_dict()))
        found = lc.align(a, lc.Objective(twin, F.cross_entropy, (x, y)))
        assert found.distances[1] < 1e-10 < found.distances[0]


KEYWORDS = {
    "axis": lambda m, h: m(h.mean(axis=1)),
    "keepdims": lambda m, h: m(torch.sum(axis=1, x=h, keepdims=True)).mean(1),
    "other": lambda m, h: torch.add(h, other=m(h)).mean(1),
    "method": lambda m, h: h.mul(other=m(input=h)).mean(axis=1),
    "order": lambda m, h: m(h.transpose(dim0=1, dim1=2).permute(dims=(0, 2, 1))).mean(1),
    "switched": lambda m, h: (m(h) + torch.transpose(h, dim0=1, dim1=2)).sum(axis=1),
    "exp": lambda m, h: torch.exp(input=m(h)).flatten(start_dim=1, end_dim=1).mean((1,)),
}
MOVING = {"axis", "keepdims", "other", "method", "order", "exp"}


class Keywords(nn.Module):
    """Six tokens of six units each, so that an axis can be taken for another one."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.embed, self.layer = nn.Embedding(9, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(KEYWORDS[self.kind](self.layer, self.embed(x))))


@pytest.mark.parametrize("kind", KEYWORDS)
def test_keyword_operands_keep_the_function(kind):
    torch.manual_seed(0)
    tokens, y = torch.randint(0, 9, (8, 6)), torch.arange(8) % 3
    a, b = (
        lc.Objective(Keywords(kind).double(), F.cross_entropy, (tokens, y)) for _ in range(2)
    )
    model = b.model.eval()
    spec = lc.trace_permutations(model, tokens)
    assert bool(spec.sizes) == (kind in MOVING)
    permutations = {group: torch.randperm(size) for group, size in spec.sizes.items()}
    permuted = copy.deepcopy(model)
    permuted.load_state_dict(spec.apply(permutations, model.state_dict()))
    torch.testing.assert_close(permuted(tokens), model(tokens), rtol=1e-10, atol=1e-12)
    if spec.sizes:
        assert lc.align(a, b).change < 1e-12


def test_attention_by_head_keeps_the_heads_in_their_places():
    class ByHead(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Linear(3, 8), nn.Linear(20, 2)
            self.attention = nn.MultiheadAttention(8, 4, batch_first=True)

        def forward(self, x):
            x = self.embed(x)
            _, weights = self.attention(
                query=x, key=x, value=x, need_weights=True, average_attn_weights=False
            )
            return self.head(weights[:, :, 0].flatten(1))

    assert not lc.trace_permutations(ByHead(), torch.randn(2, 5, 3)).sizes


def test_arguments_that_are_left_out_take_their_defaults():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x, scale=2.0, shift=None):
            return self.second(torch.relu(self.first(x) * scale + shift))

    x, shift = torch.randn(4, 3), torch.randn(4, 1)
    assert dict(lc.trace_permutations(Optional(), x, shift=shift).sizes) == {0: 6}


@pytest.mark.parametrize("bad", [1, 2])
def test_a_change_that_the_first_batch_hides_is_seen(bad):
    torch.manual_seed(0)
    a, b = (nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)) for _ in range(2))
    for model in (a, b):
        nn.init.zeros_(model[0].bias)
    y = torch.arange(4) % 2
    data = [(torch.zeros(4, 3), y) for _ in range(3)]
    data[bad] = (torch.randn(4, 3), y)
    half = lc.PermutationSpec({0: 6}, {"0.weight": {0: lc.Axis(0)}})
    objectives = [lc.Objective(model, F.cross_entropy, data) for model in (a, b)]
    with pytest.raises(ValueError, match="names units that cannot change places"):
        lc.align(*objectives, spec=half)


class Masked(nn.Module):
    """Units between two layers, of which one layer's are weighted by a buffer."""

    def __init__(self, persistent: bool = True) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 8), nn.Linear(8, 7), nn.Linear(7, 3)
        self.register_buffer("mask", torch.linspace(0.2, 3, 8), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.tanh(self.second(torch.tanh(self.first(x)) * self.mask)))


def pair_of(make) -> list[lc.Objective]:
    torch.manual_seed(0)
    data = torch.randn(20, 4, dtype=torch.float64), torch.arange(20) % 3
    return [lc.Objective(make().double(), F.cross_entropy, data) for _ in range(2)]


@pytest.mark.parametrize("method", ["weights", "activations"])
@pytest.mark.parametrize("persistent", [True, False])
def test_the_segment_ends_at_the_second_network_where_buffers_have_units(persistent, method):
    a, b = pair_of(lambda: Masked(persistent))
    found = lc.align(a, b, method=method)
    assert list(found.spec.sizes.values()) == [7]  # those of the mask stay
    end = lc.Segment(a.theta, found.theta)(1.0)
    assert float(a.loss(end)) == pytest.approx(float(b.loss()), rel=1e-12)
    assert not torch.equal(end, b.theta)


def test_a_specification_that_moves_a_buffer_is_refused():
    spec = lc.PermutationSpec({0: 8}, {"mask": {0: lc.Axis(0)}, "first.bias": {0: lc.Axis(0)}})
    with pytest.raises(ValueError, match=r"units in their places that buffers .* got mask"):
        lc.align(*pair_of(Masked), spec=spec)


class TiedHead(nn.Module):
    """One matrix that reads words in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up = nn.Embedding(7, 12), nn.Linear(12, 12)
        self.head = nn.Linear(12, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).mean(1)
        return self.head(x + torch.tanh(self.up(x)))


@pytest.mark.parametrize("method", ["weights", "activations"])
def test_tied_weights_are_permuted_once(method):
    torch.manual_seed(0)
    data = torch.randint(7, (20, 3)), torch.arange(20) % 7
    a, b = (lc.Objective(TiedHead().double(), F.cross_entropy, data) for _ in range(2))
    found = lc.align(a, b, method=method)
    assert found.change < 1e-12
    assert found.distances[1] < found.distances[0]
    assert found.model.head.weight is found.model.embed.weight
    assert float(a.loss(found.theta)) == pytest.approx(float(b.loss()), rel=1e-12)
    # A specification may use both names, as a state dict does.
    both = {**found.spec.axes, "head.weight": found.spec.axes["embed.weight"]}
    again = lc.align(a, b, spec=lc.PermutationSpec(found.spec.sizes, both))
    assert again.distances[1] < again.distances[0]


def test_networks_whose_outputs_are_all_zero_are_matched():
    a, b = pair_of(lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
    zeros = []
    for objective in (a, b):
        model = copy.deepcopy(objective.model)
        nn.init.zeros_(model[2].weight)
        nn.init.zeros_(model[2].bias)
        zeros.append(lc.Objective(model, F.cross_entropy, list(objective.batches())))
    found = lc.align(*zeros)
    assert found.change == 0
    assert found.distances[1] < found.distances[0]


def test_networks_that_differ_outside_theta_are_refused():
    a, b = pair_of(Masked)
    other = Masked().double()
    other.mask.mul_(2)
    b = lc.Objective(other, F.cross_entropy, list(b.batches()))
    with pytest.raises(ValueError, match="the same in both networks, got others in mask"):
        lc.align(a, b)
    with pytest.raises(ValueError, match="the same in both networks, got others in mask"):
        lc.barrier_matrix([a, a, b], points=3)

    def half_frozen():
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        model[0].requires_grad_(False)
        return model

    with pytest.raises(ValueError, match=r"got others in 0\.bias, 0\.weight: a path changes"):
        lc.barrier_matrix(pair_of(half_frozen), points=3)
    with pytest.raises(ValueError, match="the same parameters, of the same shapes"):
        lc.barrier_matrix([a, pair_of(half_frozen)[0]], points=3)
    norms = [objective_of("batchnorm", seed) for seed in (0, 1)]
    assert np.isfinite(lc.barrier_matrix(norms, points=3).heights).all()


@pytest.mark.parametrize("method", ["weights", "activations"])
def test_permutations_are_found_on_the_cpu_whatever_the_default_device(method):
    a, b = objective_of("mlp"), objective_of("mlp", seed=1)
    here = lc.align(a, b, method=method)
    with torch.device("meta"):
        there = lc.align(a, b, method=method)
    assert torch.equal(there.theta, here.theta)
