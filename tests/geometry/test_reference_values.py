"""Known facts about loss landscapes, in small, on scikit-learn's digits with fixed seeds."""

import math

import pytest
import torch
import torch.nn.functional as F

import landscape_core as lc


@pytest.fixture(scope="module")
def digits():
    return lc.load("digits")


def trained(data, seed=0, epochs=20, batchnorm=False, width=64, **options):
    model = lc.MLP(data.input_shape, data.classes, width=width, batchnorm=batchnorm, seed=seed)
    config = lc.TrainConfig(**{"epochs": epochs, "seed": seed, "schedule": "cosine", **options})
    lc.train(model, data, config, progress=False)
    return model


def top(objective, theta=None, start=None):
    hessian = lc.Hessian(objective, theta)
    return lc.top_eigenpairs(hessian, 1, "LA", tol=1e-2, start=start)


def test_gradient_descent_on_a_quadratic_diverges_just_beyond_two_over_the_eigenvalue():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, generator=rng, dtype=torch.float64)
    y = torch.randn(40, 1, generator=rng, dtype=torch.float64)
    model = torch.nn.Linear(5, 1, bias=False).double()
    objective = lc.Objective(model, F.mse_loss, (x, y))
    edge = 2 / float(torch.linalg.eigvalsh(lc.Hessian(objective).dense())[-1])
    for factor, ends_higher in ((0.99, False), (1.01, True)):
        theta = objective.theta
        for _ in range(2000):
            theta = theta - factor * edge * objective.gradient(theta)
        assert (float(objective.loss(theta)) > float(objective.loss())) is ends_higher


@pytest.mark.parametrize("rate", [0.4, 0.8])
def test_gradient_descent_trains_at_the_edge_of_stability(rate):
    # Cohen et al. 2021: the largest eigenvalue hovers at 2 / rate while the loss falls.
    data = lc.load("digits", subset=(500, None))

    def criterion(outputs, targets):
        return 0.5 * (outputs - F.one_hot(targets, 10)).square().sum(1).mean()

    model = lc.MLP(data.input_shape, data.classes, width=32, activation="gelu")
    objective = lc.Objective(model, criterion, data.train)
    theta, start, ratios, losses = objective.theta, None, [], []
    for step in range(801):
        if step >= 400 and step % 40 == 0:
            found = top(objective, theta, start)
            start = found.vectors
            ratios.append(float(found.values[0]) * rate / 2)
            losses.append(float(objective.loss(theta)))
        theta = theta - rate * objective.gradient(theta)
    assert min(ratios) > 0.97
    assert max(ratios) < 1.15
    assert losses[-1] < 0.7 * losses[0]


def test_large_batches_end_in_sharper_places_at_equal_loss(digits):
    # Keskar et al. 2017, by their box measure and by the largest eigenvalue.
    ends = {
        size: lc.Objective(
            trained(digits, epochs=1000, schedule="none", batch_size=size, lr=0.02,
                    target_loss=0.005),
            F.cross_entropy, digits.train,
        )
        for size in (16, 512)
    }  # fmt: skip
    small, large = ends[16], ends[512]
    assert float(large.loss()) < 0.0055
    assert float(small.loss()) < 0.0055
    assert lc.box_sharpness(large) > 2 * lc.box_sharpness(small)
    assert float(top(large).values[0]) > 2 * float(top(small).values[0])


def test_a_colder_ratio_of_rate_to_batch_ends_in_sharper_places(digits):
    # Jastrzebski et al. 2017: the same distance rate * steps at two ratios rate / batch.
    def curvature(rate, batch, epochs, seed):
        model = trained(
            digits, seed, epochs, width=32, optimizer="sgd", schedule="none", lr=rate,
            batch_size=batch,
        )  # fmt: skip
        return float(top(lc.Objective(model, F.cross_entropy, digits.train)).values[0])

    hot = [curvature(0.1, 32, 20, seed) for seed in range(3)]
    cold = [curvature(0.1, 128, 80, seed) for seed in range(3)]
    assert min(cold) > max(hot), (hot, cold)


def test_a_bent_path_keeps_a_few_percent_of_the_barrier(digits):
    # Garipov et al. 2018.
    a, b = (
        lc.Objective(trained(digits, seed), F.cross_entropy, digits.train) for seed in (0, 1)
    )
    line = lc.barrier(lc.path_profile(a, lc.Segment(a.theta, b.theta), 21))
    curve = lc.fit_path(a, lc.Bezier(a.theta, b.theta), epochs=200, lr=0.1)
    around = lc.barrier(lc.path_profile(a, curve, 21))
    assert line.value > 0.3
    assert around.value < 0.06 * line.value, (line, around)


def test_refreshed_statistics_remove_most_of_a_barrier_between_batchnorm_networks(digits):
    # Jordan et al. 2022.
    models = [trained(digits, seed, batchnorm=True) for seed in (0, 1)]
    heights = {}
    for policy in ("eval", "refresh"):
        a, b = (
            lc.Objective(model, F.cross_entropy, digits.train, batchnorm=policy)
            for model in models
        )
        heights[policy] = lc.barrier(lc.path_profile(a, lc.Segment(a.theta, b.theta), 21))
    assert heights["eval"].value > 0.4
    assert heights["refresh"].value < 0.5 * heights["eval"].value


def test_two_runs_from_the_same_weights_are_linearly_stable_here(digits):
    # Frankle et al. 2020: an instability of the error below 2 % counts as stable.
    model = trained(digits, epochs=2, schedule="none")
    state, ends = model.state_dict(), []
    for seed in (1, 2):
        twin = lc.MLP(digits.input_shape, digits.classes, width=64)
        twin.load_state_dict(state)
        lc.train(twin, digits, lc.TrainConfig(epochs=10, seed=seed), progress=False)
        ends.append(lc.Objective(twin, F.cross_entropy, digits.test))
    path = lc.Segment(ends[0].theta, ends[1].theta)
    profile = lc.path_profile(ends[0], path, 21)
    assert lc.barrier(profile, above="mean", of="error").value < 0.02


def test_both_estimates_of_the_noise_scale_agree_while_a_network_trains(digits):
    # McCandlish et al. 2018.
    for epochs in (0, 2):
        objective = lc.Objective(
            trained(digits, epochs=epochs, schedule="none"), F.cross_entropy, digits.train
        )
        exact = lc.exact_noise_scale(objective).scale.value
        found = lc.gradient_noise_scale(objective, 16, 256)
        assert abs(found.scale.value - exact) < 2 * found.scale.stderr


def test_relative_noise_on_a_quadratic_raises_the_loss_by_its_diagonal():
    # sigma^2 sum_i w_i^2 H_ii / 2 for theta_i (1 + sigma z_i), exact at every sigma.
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, generator=rng, dtype=torch.float64)
    model = torch.nn.Linear(4, 1, bias=False).double()
    y = model(x).detach()  # theta is the minimum, the slope is zero
    objective = lc.Objective(model, F.mse_loss, (x, y))
    diagonal = lc.Hessian(objective).dense().diagonal()
    sigma = 0.3
    found = lc.noise_robustness(objective, [sigma], draws=4000)
    expected = sigma**2 * float((objective.theta.square() * diagonal).sum()) / 2
    mean = found.loss[0]
    assert abs(mean.value - expected) < 4 * mean.stderr
    assert mean.stderr < 0.05 * expected
    assert math.isclose(float(objective.loss()), 0, abs_tol=1e-20)
