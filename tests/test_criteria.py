"""Criteria that are no means over examples, or no classifier's: refused by every measure."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import landscape_core as lc

WEIGHT = torch.tensor([1.0, 5.0])
NOT_MEANS = {
    "module with weights": nn.CrossEntropyLoss(weight=WEIGHT),
    "function with weights": partial(F.cross_entropy, weight=WEIGHT),
    "opaque weights": lambda out, y: F.cross_entropy(out, y, weight=WEIGHT),
    "module that ignores": nn.CrossEntropyLoss(ignore_index=1),
    "function that ignores": partial(F.cross_entropy, ignore_index=1),
    "opaque ignoring": lambda out, y: F.cross_entropy(out, y, ignore_index=1),
}
MEASURES = {
    "loss": lambda o: o.loss(),
    "loss elsewhere": lambda o: o.loss(o.theta + 1),
    "accuracy": lambda o: o.accuracy(),
    "gradient": lambda o: o.gradient(),
    "evaluate": lambda o: o.evaluate(),
    "sample": lambda o: o.sample(torch.tensor([0])),
    "worst_sharpness": lambda o: lc.worst_sharpness(o, 0.1),
    "m_sharpness": lambda o: lc.m_sharpness(o, 0.1, 5),
    "exact_noise_scale": lc.exact_noise_scale,
    "batch_sharpness": lambda o: lc.batch_sharpness(o, 5),
    "Hessian": lambda o: lc.Hessian(o).dense(),
    "finite differences": lambda o: lc.Hessian(o, method="finite_difference").dense(),
    "Gauss-Newton": lambda o: lc.GaussNewton(o).dense(),
    "path_profile": lambda o: lc.path_profile(o, lc.Segment(o.theta, 0 * o.theta), 3),
}


def made(criterion, sizes=(10, 6, 4), loader=False, zero=False, classes=2):
    """An objective on labels 0 (14 times) and 1 (6 times), in this order."""
    torch.manual_seed(0)
    model, x = nn.Linear(3, classes), torch.randn(20, 3)
    if zero:
        nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    y = torch.tensor([0] * 14 + [1] * 6)
    if loader:
        data = DataLoader(TensorDataset(x, y), batch_size=7)
    else:
        data = list(zip(x.split(sizes), y.split(sizes), strict=True))
    return lc.Objective(model, criterion, data)


@pytest.mark.parametrize("criterion", NOT_MEANS.values(), ids=NOT_MEANS)
@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_other_means_are_refused_by_every_measure(criterion, measure):
    objective = made(criterion)
    for _ in range(2):
        with pytest.raises(ValueError, match="criterion must be the mean over examples, got"):
            measure(objective)


@pytest.mark.parametrize("name", NOT_MEANS)
@pytest.mark.parametrize("options", [{"sizes": (7, 7, 6)}, {"loader": True}, {"zero": True}])
def test_the_order_of_examples_does_not_hide_them(name, options):
    # Batches of one class each; and a head of zeros, behind which all losses are equal.
    objective = made(NOT_MEANS[name], **options)
    with pytest.raises(ValueError, match="criterion must be the mean over examples, got"):
        objective.gradient()


def test_options_without_effect_on_the_mean_are_allowed():
    expected = made(F.cross_entropy).gradient()
    for criterion in [
        nn.CrossEntropyLoss(weight=torch.tensor([3.0, 3.0])),
        nn.CrossEntropyLoss(ignore_index=7),
        lambda out, y: F.cross_entropy(out, y, weight=torch.tensor([3.0, 3.0])),
    ]:
        torch.testing.assert_close(made(criterion).gradient(), expected)
    three = nn.CrossEntropyLoss(weight=torch.tensor([2.0, 2.0, 9.0]))  # no example of the last
    plain = made(F.cross_entropy, classes=3).gradient()
    torch.testing.assert_close(made(three, classes=3).gradient(), plain)


def test_tokens_ignored_alike_in_every_example_are_allowed():
    torch.manual_seed(0)
    model = nn.Linear(3, 5)
    for lengths in [(4, 4), (4, 6)]:
        data = [(torch.randn(7, t, 3), torch.randint(5, (7, t))) for t in lengths]
        for _, y in data:
            y[:, 0] = -100

        def criterion(out, y):
            return F.cross_entropy(out.flatten(0, 1), y.flatten())

        lc.Objective(model, criterion, data).gradient()
        data[1][1][0, 1] = -100
        with pytest.raises(ValueError, match="criterion must be the mean over examples, got"):
            lc.Objective(model, criterion, data).gradient()


def test_the_check_takes_no_forward_passes_and_is_made_once():
    calls, passes = [], []

    def criterion(out, y):
        calls.append(1)
        return F.cross_entropy(out, y)

    objective = made(criterion)
    objective.model.register_forward_pre_hook(lambda *_: passes.append(1))
    for _ in range(2):
        calls.clear(), passes.clear()
        objective.gradient()
        assert len(passes) == 3
    assert len(calls) == 3


def regression(criterion, targets=None):
    torch.manual_seed(0)
    targets = torch.rand(20, 3) if targets is None else targets
    return lc.Objective(nn.Linear(4, 3), criterion, (torch.randn(20, 4), targets))


@pytest.mark.parametrize("kind", ["exact", "monte_carlo"])
@pytest.mark.parametrize(
    "criterion",
    [
        nn.MSELoss(),
        nn.BCEWithLogitsLoss(),
        nn.L1Loss(),
        nn.SmoothL1Loss(),
        nn.HuberLoss(),
        F.mse_loss,
        F.binary_cross_entropy_with_logits,
        partial(F.huber_loss, delta=0.5),
        lambda out, y: F.binary_cross_entropy_with_logits(out, y),
    ],
)
def test_fisher_of_what_is_no_softmax_is_refused(kind, criterion):
    objective = regression(criterion)
    with pytest.raises(ValueError, match=f"kind='{kind}' needs a criterion on the softmax"):
        lc.Fisher(objective, kind=kind).dense()
    assert bool(lc.Fisher(objective, kind="empirical").dense().isfinite().all())


def test_fisher_of_smoothed_and_soft_labels_is_that_of_the_softmax():
    y = torch.arange(20) % 3
    expected = lc.Fisher(regression(F.cross_entropy, y)).dense()
    for criterion, targets in [
        (nn.CrossEntropyLoss(label_smoothing=0.1), y),
        (partial(F.cross_entropy, label_smoothing=0.1), y),
        (lambda out, y: F.nll_loss(out.log_softmax(1), y), y),
        (F.cross_entropy, torch.rand(20, 3).softmax(1)),
    ]:
        found = regression(criterion, targets)
        model = regression(F.cross_entropy, y).theta
        torch.testing.assert_close(lc.Fisher(found, model).dense(), expected)


class Shared(nn.Module):
    """One BatchNorm used twice, and one that is called past its hooks."""

    def __init__(self, direct=False):
        super().__init__()
        self.norm, self.head, self.direct = nn.BatchNorm1d(4), nn.Linear(4, 3), direct

    def forward(self, x):
        if self.direct:
            return self.head(self.norm.forward(x))
        return self.head(self.norm(3 * self.norm(x) + 2))


def test_refreshed_statistics_are_means_over_all_uses_of_a_layer():
    torch.manual_seed(0)
    x, y = torch.randn(20, 4), torch.arange(20) % 3
    data = list(zip(x.split((8, 12)), y.split((8, 12)), strict=True))
    for direct in (False, True):
        model = Shared(direct)
        objective = lc.Objective(model, F.cross_entropy, data, batchnorm="refresh")
        found = objective.statistics(objective.theta)
        mean, var = torch.zeros(4), torch.zeros(4)
        for part, _ in data:
            inner = F.batch_norm(part, None, None, training=True)
            for use in [part] if direct else [part, 3 * inner + 2]:
                share = len(part) / 20 / (1 if direct else 2)
                mean += share * use.mean(0)
                var += share * use.var(0)
        torch.testing.assert_close(found["norm.running_mean"], mean)
        torch.testing.assert_close(found["norm.running_var"], var)
        assert model.norm.momentum == 0.1
        assert not model.norm._forward_pre_hooks


@pytest.mark.parametrize("kind", ["exact", "monte_carlo"])
def test_fisher_of_another_softmax_is_refused(kind):
    y = torch.arange(20) % 3
    weight = torch.tensor([1.0, 2.0, 5.0])
    for criterion, targets in [
        (lambda out, y: F.mse_loss(out, F.one_hot(y, 3).float()), y),
        (lambda out, y: F.cross_entropy(out / 0.1, y), y),
        (lambda out, y: F.cross_entropy(out, y) / 2, y),
        (nn.CrossEntropyLoss(weight=weight), torch.rand(20, 3).softmax(1)),
    ]:
        with pytest.raises(ValueError, match="slopes are not those of cross-entropy"):
            lc.Fisher(regression(criterion, targets), kind=kind).dense()


def test_fisher_of_log_probabilities_is_that_of_their_logits():
    torch.manual_seed(0)
    logits = nn.Linear(4, 3)
    data = torch.randn(20, 4), torch.arange(20) % 3
    expected = lc.Fisher(lc.Objective(logits, F.cross_entropy, data)).dense()
    model = nn.Sequential(logits, nn.LogSoftmax(1))
    for criterion in (F.nll_loss, nn.NLLLoss(), lambda out, y: F.nll_loss(out, y)):
        torch.testing.assert_close(
            lc.Fisher(lc.Objective(model, criterion, data)).dense(), expected
        )


class Listed(nn.Module):
    """Holds a weight in a plain list, where no other one can be put in its place."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
        self.weights = [self.a.weight]

    def forward(self, x):
        return self.b(torch.tanh(F.linear(x, self.weights[0], self.a.bias)))


def test_parameters_that_do_not_follow_theta_are_named():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    data = torch.randn(20, 4), torch.arange(20) % 3

    def penalized(outputs, y):
        return F.cross_entropy(outputs, y) + 0.05 * model[2].weight.square().sum()

    for choice in (None, "0.*"):
        with pytest.raises(ValueError, match=r"depend on '2.weight' through the model's pass"):
            lc.Objective(model, penalized, data, parameters=choice)
    with pytest.raises(ValueError, match=r"depend on 'a.weight' through the model's pass"):
        lc.Objective(Listed(), F.cross_entropy, data)
    lc.Objective(model, F.cross_entropy, data)


def test_the_padding_of_an_embedding_has_a_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(5, 3, padding_idx=0), nn.Flatten(), nn.Linear(12, 2)
    ).double()
    nn.init.normal_(model[0].weight)
    tokens = torch.randint(0, 5, (12, 4))
    objective = lc.Objective(model, F.cross_entropy, (tokens, torch.arange(12) % 2))
    v = torch.zeros(objective.n, dtype=torch.float64)
    v[:3] = torch.tensor([1.0, -2.0, 0.5])  # the row of the padding
    step = 1e-4
    losses = [float(objective.loss(objective.theta + t * step * v)) for t in (-1, 0, 1)]
    slope = (losses[2] - losses[0]) / (2 * step)
    bent = (losses[2] - 2 * losses[1] + losses[0]) / step**2
    assert abs(slope) > 1e-3
    assert float(objective.gradient() @ v) == pytest.approx(slope, rel=1e-6)
    assert float((lc.Hessian(objective) @ v) @ v) == pytest.approx(bent, rel=1e-4)
    assert model[0].padding_idx == 0


class MasksPadding(nn.Module):
    """Looks up which index is padding, and leaves those tokens out of a mean."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3, padding_idx=0), nn.Linear(3, 2)

    def forward(self, x):
        used = x.ne(self.embed.padding_idx).unsqueeze(2).to(self.head.weight.dtype)
        return self.head((self.embed(x) * used).sum(1) / used.sum(1).clamp_min(1))


def test_a_mask_made_of_the_padding_is_the_models_own():
    torch.manual_seed(0)
    model, y = MasksPadding().double(), torch.arange(12) % 2
    tokens = torch.randint(0, 5, (12, 4))
    objective = lc.Objective(model, F.cross_entropy, (tokens, y))
    expected = F.cross_entropy(model(tokens), y)
    assert float(objective.loss()) == pytest.approx(float(expected.detach()), rel=1e-12)
    slopes = torch.autograd.grad(expected, list(model.parameters()))
    torch.testing.assert_close(objective.gradient(), torch.cat([s.flatten() for s in slopes]))


class Auxiliary(nn.Module):
    """Keeps a term for the criterion, as mixtures of experts do."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
        self.balance = torch.zeros(1)

    def forward(self, x):
        h = torch.tanh(self.a(x))
        self.balance = h.square().mean(1)
        return self.b(h)


def test_a_term_that_the_model_keeps_for_the_criterion_follows_theta():
    torch.manual_seed(0)
    model = Auxiliary().double()
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.arange(20) % 3
    model(x)  # with gradients: what it kept belongs to a graph of its own weights

    def balanced(outputs, targets):
        return F.cross_entropy(outputs, targets) + 0.1 * model.balance.mean()

    objective = lc.Objective(model, balanced, (x, y))
    expected = torch.autograd.grad(balanced(model(x), y), list(model.parameters()))
    torch.testing.assert_close(objective.gradient(), torch.cat([s.flatten() for s in expected]))
