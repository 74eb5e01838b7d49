"""What a GPU measures is what the CPU measures, in all bits of float32, the same each time."""

import copy

import pytest
import torch
import torch.nn.functional as F

import landscape_core as lc

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")

SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def data():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(120, *SHAPE, generator=rng)
    y = (x.flatten(1) @ torch.randn(192, 10, generator=rng)).argmax(1)
    return lc.images((x[:90], y[:90]), (x[90:], y[90:]))


def networks():
    """Sizes that no kernel likes: odd channels, so that weights begin at odd addresses."""
    return {
        "CNN": lc.SmallCNN(SHAPE, 10, width=7, seed=0),
        "ResNet": lc.ResNet(SHAPE, 10, width=7, blocks=1, seed=0),
        "MLP": lc.MLP(SHAPE, 10, width=23, seed=0),
    }


def both(name, data, dtype=torch.float64, **options):
    """The same objective on the CPU and on the GPU."""
    model = networks()[name].to(dtype)
    batches = [(x.to(dtype), y) for x, y in data.train.batches(40)]
    moved = copy.deepcopy(model).cuda()
    return [lc.Objective(m, F.cross_entropy, batches, **options) for m in (model, moved)]


def relative(a, b):
    return float((a.cpu().double() - b.cpu().double()).norm() / b.cpu().double().norm())


every_network = pytest.mark.parametrize("name", ["CNN", "ResNet", "MLP"])


@every_network
@pytest.mark.parametrize("batchnorm", ["eval", "batch", "refresh"])
def test_an_objective_is_the_same_function(name, batchnorm, data):
    here, there = both(name, data, batchnorm=batchnorm)
    assert float(there.loss()) == pytest.approx(float(here.loss()), rel=1e-9)
    assert float(there.accuracy()) == pytest.approx(float(here.accuracy()), rel=1e-12)
    assert relative(there.gradient(), here.gradient()) < 1e-8
    v = torch.randn(here.n, dtype=torch.float64)
    assert relative(lc.Hessian(there) @ v.cuda(), lc.Hessian(here) @ v) < 1e-7


@every_network
def test_single_precision_keeps_all_its_bits_and_repeats_them(name, data):
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    exact, _ = both(name, data)
    _, there = both(name, data, torch.float32)
    v = torch.randn(exact.n)
    expected = lc.Hessian(exact) @ v.double()
    products = [lc.Hessian(there) @ v.cuda() for _ in range(3)]
    assert relative(products[0], expected) < 2e-5  # TF32 errs by 1e-2
    assert relative(there.gradient(), exact.gradient()) < 2e-5
    assert torch.equal(products[0], products[1])
    assert torch.equal(products[0], products[2])
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic) == before


@every_network
def test_all_metrics_agree_with_the_cpu(name, data):
    here, there = (
        lc.landscape_metrics(o, products=60, directions=3, ascent=4, radius=0.05)
        for o in both(name, data)
    )
    assert set(here) == set(there)
    for key in ("loss", "accuracy", "gradient_norm", "lambda_max", "relative_lambda_max"):
        value, expected = (float(getattr(m[key], "value", m[key])) for m in (there, here))
        assert value == pytest.approx(expected, rel=2e-2)
    trace, expected = there["trace"], here["trace"]
    assert abs(trace.value - expected.value) < 5 * (trace.stderr + expected.stderr)


@every_network
@pytest.mark.parametrize("make", [lc.Hessian, lc.Fisher])
def test_traces_from_vectors_of_each_batch_agree_with_the_cpu(name, make, data):
    here, there = (lc.trace(make(o), 32, method="per_batch") for o in both(name, data))
    assert here.stderr > 0
    assert abs(there.value - here.value) < 5 * (there.stderr + here.stderr)


@every_network
@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_a_training_repeats_itself(name, precision, data):
    config = lc.TrainConfig(lr=0.05, batch_size=16, epochs=2, seed=3, precision=precision)
    weights = []
    for _ in range(2):
        model = networks()[name].cuda()
        history = lc.train(model, data, config, progress=False)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert history.status != "diverged"
    assert torch.equal(*weights)


@every_network
def test_paths_planes_and_noise_run_on_the_gpu(name, data):
    _, at = both(name, data, torch.float32, batchnorm="refresh")
    other = at.theta + 0.1 * torch.randn(at.n, device="cuda")
    curve = lc.fit_path(
        at, lc.Bezier(at.theta, other, 1), epochs=2, lr=0.05, batch_size=16, progress=False
    )
    profile = lc.path_profile(at, curve, 5)
    assert torch.isfinite(torch.as_tensor(profile.loss)).all()
    assert lc.align(at, lc.Objective(at.model, F.cross_entropy, data.train)).theta.is_cuda
    plane = lc.plane(at, *lc.random_directions(at, seed=0), points=5)
    assert plane.loss.shape == (5, 5)
    _, here = both(name, data)
    assert lc.gradient_noise_scale(here, 8, 40, draws=4).covariance_trace.value > 0
    assert lc.worst_sharpness(here, 0.05, steps=3, restarts=1).rise > 0
    assert lc.exact_noise_scale(here).covariance_trace.value > 0


def test_networks_trained_together_are_those_trained_alone(data):
    configs = [lc.TrainConfig(lr=0.05, batch_size=16, epochs=2, seed=seed) for seed in (0, 1)]
    models = [lc.MLP(SHAPE, 10, width=23, seed=seed).cuda() for seed in (0, 1)]
    alone = copy.deepcopy(models)
    lc.train_ensemble(models, data, configs, progress=False)
    for model, config, one in zip(models, configs, alone, strict=True):
        lc.train(one, data, config, progress=False)
        for p, q in zip(model.parameters(), one.parameters(), strict=True):
            torch.testing.assert_close(p, q, atol=1e-4, rtol=1e-3)


def train_on_digits(seed):
    data = lc.load("digits", subset=(100, 50))
    model = lc.MLP(data.input_shape, 10, width=23, seed=seed).cuda()
    history = lc.train(model, data, lc.TrainConfig(epochs=2, seed=seed), progress=False)
    return {"model": model, "loss": history.epochs[-1].test_loss}


def test_weights_of_a_record_go_back_to_the_gpu(tmp_path):
    record = lc.Study("small", train_on_digits, tmp_path)(seed=0)
    data = lc.load("digits", subset=(100, 50))
    model = record.load_weights(lc.MLP(data.input_shape, 10, width=23, seed=5).cuda())
    objective = lc.Objective(model, F.cross_entropy, data.test)
    assert objective.theta.is_cuda
    assert float(objective.loss()) == pytest.approx(record.scalars["loss"], rel=1e-5)
