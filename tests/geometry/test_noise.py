"""The two-batch noise scale against the gradients of single examples."""

import pytest
import torch
import torch.nn.functional as F

import landscape_core as lc


@pytest.fixture(scope="module")
def objective():
    data = lc.load("digits", subset=(400, 100))
    model = lc.MLP(data.input_shape, data.classes, width=16)
    return lc.Objective(model, F.cross_entropy, data.train.batches(150))


def truth(objective):
    """Tr Sigma and |G|^2 of the data as given."""
    gradients = torch.cat(list(objective.per_example_gradients())).double()
    mean = gradients.mean(0)
    return float((gradients - mean).square().sum(1).mean()), float(mean.square().sum())


def test_both_parts_agree_with_single_examples(objective):
    covariance_trace, squared = truth(objective)
    noise = lc.gradient_noise_scale(objective, 8, 64, draws=200)
    assert (
        abs(noise.covariance_trace.value - covariance_trace) < 3 * noise.covariance_trace.stderr
    )
    assert abs(noise.gradient_squared.value - squared) < 3 * noise.gradient_squared.stderr
    assert abs(noise.scale.value - covariance_trace / squared) < 3 * noise.scale.stderr
    assert noise.determined
    assert noise.at_least < covariance_trace / squared


def test_scale_does_not_depend_on_the_batches_or_on_the_unit_of_the_loss(objective):
    first = lc.gradient_noise_scale(objective, 4, 64, draws=150).scale
    second = lc.gradient_noise_scale(objective, 16, 128, draws=100, seed=1).scale
    assert abs(first.value - second.value) < 3 * (first.stderr**2 + second.stderr**2) ** 0.5
    scaled = lc.Objective(
        objective.model, lambda out, y: 10 * F.cross_entropy(out, y), list(objective.batches())
    )
    same = lc.gradient_noise_scale(scaled, 4, 64, draws=150).scale
    assert same.value == pytest.approx(first.value, rel=1e-4)
    assert same.stderr == pytest.approx(first.stderr, rel=1e-3)


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = torch.Generator().manual_seed(0)
    data = torch.randn(60, 4, generator=rng), torch.arange(60) % 3
    objective = lc.Objective(lc.MLP((4,), 3, depth=0), F.cross_entropy, data)
    covariance_trace, squared = truth(objective)
    exact = {
        "covariance_trace": covariance_trace,
        "gradient_squared": squared,
        "scale": covariance_trace / squared,
    }
    hits, repeats = dict.fromkeys(exact, 0), 400
    for seed in range(repeats):
        noise = lc.gradient_noise_scale(objective, 16, 32, draws=40, seed=seed)
        for name, value in exact.items():
            low, high = getattr(noise, name).interval()
            hits[name] += low <= value <= high
    for name, count in hits.items():
        assert 0.92 <= count / repeats <= 0.98, name


def test_where_the_gradient_vanishes_only_a_bound_is_stated():
    # Two classes on the same point: the gradients of the two examples cancel exactly.
    x, y = torch.ones(2, 3), torch.tensor([0, 1])
    model = torch.nn.Linear(3, 2)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    objective = lc.Objective(model, F.cross_entropy, (x, y))
    noise = lc.gradient_noise_scale(objective, 2, 8, draws=50)
    assert not noise.determined
    assert str(noise).startswith("above ")
    assert noise.at_least > 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"small": 0, "big": 8}, "big must be a multiple of small, at least twice it, got"),
        ({"small": 8, "big": 8}, "at least twice it, got small = 8, big = 8"),
        ({"small": 8, "big": 20}, "multiple of small"),
        ({"small": 2, "big": 8, "draws": 1}, "draws must be at least 2, got 1"),
    ],
)
def test_bad_arguments_are_refused(objective, arguments, message):
    with pytest.raises(ValueError, match=message):
        lc.gradient_noise_scale(objective, **arguments)


def test_batch_statistics_are_refused():
    model = lc.MLP((4,), 3, width=5, batchnorm=True)
    data = torch.randn(9, 4), torch.arange(9) % 3
    objective = lc.Objective(model, F.cross_entropy, data, batchnorm="batch")
    with pytest.raises(ValueError, match="got 'batch'"):
        lc.gradient_noise_scale(objective, 2, 8)
    with pytest.raises(ValueError, match="need batchnorm='eval' or 'refresh'"):
        next(objective.per_example_gradients())


def test_examples_are_drawn_on_the_cpu_whatever_the_default_device():
    data = torch.randn(20, 4), torch.arange(20) % 3
    objective = lc.Objective(lc.MLP((4,), 3, width=5), F.cross_entropy, data)
    objective.sample(torch.arange(2))
    here = lc.gradient_noise_scale(objective, 2, 8, draws=2)
    with torch.device("meta"):
        assert lc.gradient_noise_scale(objective, 2, 8, draws=2) == here


def test_a_noise_scale_of_gradients_that_are_not_finite_is_refused():
    inputs, labels = torch.randn(30, 4), torch.arange(30) % 3
    inputs[17, 0] = float("nan")  # in the second batch, the first is looked at before
    batches = [(inputs[:15], labels[:15]), (inputs[15:], labels[15:])]
    objective = lc.Objective(torch.nn.Linear(4, 3), F.cross_entropy, batches)
    with pytest.raises(FloatingPointError, match="every gradient must be finite"):
        lc.gradient_noise_scale(objective, draws=20)
