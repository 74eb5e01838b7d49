"""Training: what the configuration says, bit for bit, and a record when it fails."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import landscape_core as lc


@pytest.fixture(scope="module")
def data():
    return lc.load("digits", subset=(300, 100))


def trained(data, **options):
    model = lc.MLP(data.input_shape, data.classes, width=16)
    config = lc.TrainConfig(**{"epochs": 2, **options})
    return model, lc.train(model, data, config, progress=False)


def test_same_seed_same_weights_bit_for_bit_and_another_seed_others(data):
    (first, _), (again, _), (other, _) = (trained(data, seed=s) for s in (0, 0, 1))
    weights = [torch.cat([p.flatten() for p in m.parameters()]) for m in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_dropout_follows_the_seed_and_the_global_state_is_left_alone(data):
    def run():
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
        nn.init.zeros_(model[2].weight)
        nn.init.zeros_(model[2].bias)
        lc.train(model, data, lc.TrainConfig(epochs=1), progress=False)
        return model[2].weight

    state = torch.get_rng_state()
    first = run()
    torch.set_rng_state(state)
    torch.rand(7)
    assert torch.equal(first, run())


def test_one_step_of_sgd_is_the_formula(data):
    model = lc.MLP(data.input_shape, data.classes, depth=0)
    before = [p.detach().clone() for p in model.parameters()]
    loss = F.cross_entropy(model(data.train.inputs), data.train.targets)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    config = lc.TrainConfig("sgd", lr=0.1, weight_decay=0.01, batch_size=300, epochs=1)
    history = lc.train(model, data, config, progress=False)
    for now, old, gradient in zip(model.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(now.detach(), old - 0.1 * (gradient + 0.01 * old))
    assert history.epochs[0].train_loss == pytest.approx(float(loss.detach()), rel=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov", "adam", "adamw"])
def test_every_optimizer_learns(data, optimizer):
    lr = 0.003 if optimizer.startswith("adam") else 0.1
    _, history = trained(data, optimizer=optimizer, lr=lr, epochs=20)
    table = history.table()
    assert table["train_loss"].iloc[-1] < 0.6 * table["train_loss"].iloc[0]
    assert history.status == "done"


def test_test_loss_and_accuracy_are_those_of_the_final_weights(data):
    model, history = trained(data)
    result = lc.Objective(model, F.cross_entropy, data.test).evaluate()
    assert history.epochs[-1].test_loss == pytest.approx(result.loss.value, rel=1e-6)
    assert history.epochs[-1].test_accuracy == pytest.approx(result.accuracy.value)
    assert "2 epochs: training loss" in str(history)


def test_schedules_go_where_they_say():
    cosine = lc.TrainConfig(lr=1.0, schedule="cosine", final_lr=0.1, warmup=1, epochs=11)
    rates = [cosine.lr_at(step, 110, 10) for step in range(110)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert all(b <= a for a, b in pairwise(rates[10:]))
    step = lc.TrainConfig(lr=1.0, schedule="step", epochs=4)
    assert [step.lr_at(s, 4, 1) for s in range(4)] == [1.0, 1.0, 0.1, 0.01]
    assert lc.TrainConfig(lr=0.3).lr_at(5, 10, 1) == 0.3


def test_divergence_is_recorded_not_raised(data):
    _, history = trained(data, lr=1e6, epochs=5)
    assert history.status == "diverged"
    assert history.message.startswith("diverged in epoch ")
    assert "learning rate below 1e+06" in str(history)
    assert len(history.epochs) < 5


def test_callbacks_see_every_epoch(data):
    seen = []
    model = lc.MLP(data.input_shape, data.classes, width=8)

    def look(state):
        assert not state.model.training
        seen.append((state.epoch, len(state.history.epochs)))

    lc.train(model, data, lc.TrainConfig(epochs=3), [look], progress=False)
    assert seen == [(1, 1), (2, 2), (3, 3)]
    assert model.training  # as it was


def test_bf16_training_keeps_weights_in_float32_and_learns(data):
    model, history = trained(data, precision="bf16", epochs=20)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert history.epochs[-1].train_loss < 0.6 * history.epochs[0].train_loss


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_an_autocast_around_a_training_changes_nothing(data, precision):
    _, alone = trained(data, precision=precision, epochs=3)
    with torch.autocast("cpu", torch.bfloat16):
        _, within = trained(data, precision=precision, epochs=3)
    assert [e.train_loss for e in within.epochs] == [e.train_loss for e in alone.epochs]


def test_label_smoothing_raises_the_floor_of_the_loss(data):
    _, history = trained(data, label_smoothing=0.2, epochs=15)
    hard = -(0.82 * math.log(0.82) + 9 * 0.02 * math.log(0.02))
    assert history.epochs[-1].train_loss > hard


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "lion"}, "optimizer must be one of 'sgd'.* got 'lion'"),
        ({"lr": float("nan")}, "lr must be positive and finite, got nan"),
        ({"momentum": 1.0}, "momentum must be from 0 to below 1, got 1.0"),
        ({"batch_size": 0}, "batch_size must be a whole number >= 1, got 0"),
        ({"epochs": 2.5}, "epochs must be a whole number >= 0, got 2.5"),
        ({"weight_decay": -1}, "weight_decay must be 0 or more, got -1"),
        ({"seed": 0.5}, "seed must be a whole number, got 0.5"),
        ({"optimizer": "nesterov", "momentum": 0.0}, "momentum must be above 0 .* got 0"),
        ({"lr": "0.1"}, "lr must be a number, got '0.1'"),
        ({"clip": None}, "clip must be a number, got None"),
    ],
)
def test_bad_configurations_are_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        lc.TrainConfig(**options)


BAD_MODELS = {
    "class": (lambda s: lc.MLP, "got the class MLP: make an instance"),
    "path": (lambda s: "w.pt", "model must be a torch.nn.Module, got 'w.pt'"),
    "double": (lambda s: lc.MLP(s, 10).double(), "must be torch.float32, got torch.float64"),
    "few outputs": (
        lambda s: lc.MLP(s, 7),
        r"each of the 10 classes, got outputs .* \(\d+, 7\)",
    ),
    "frozen": (lambda s: lc.MLP(s, 10).requires_grad_(False), "got none that needs a gradient"),
}


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_models_that_cannot_be_trained_are_refused(data, kind):
    make, message = BAD_MODELS[kind]
    with pytest.raises((TypeError, ValueError), match=message):
        lc.train(make(data.input_shape), data, progress=False)


def test_a_target_of_0_is_never_reached():
    x = torch.cat([torch.zeros(10, 1, 2, 2), torch.ones(10, 1, 2, 2)])
    data = lc.images((x, torch.arange(20) // 10), (x, torch.arange(20) // 10))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-500.0] * 4, [500.0] * 4]))
    history = lc.train(model, data, lc.TrainConfig(epochs=3), progress=False)
    assert [epoch.train_loss for epoch in history.epochs] == [0.0] * 3


@pytest.mark.parametrize("name", ["test_loss", "lr", "double"])
def test_names_of_what_callbacks_return_are_their_own(data, name):
    model = lc.MLP(data.input_shape, data.classes, width=8)
    twice = [lambda state: {"double": 2.0}, lambda state: {name: 1.0}]
    with pytest.raises(ValueError, match=f"needs a name of its own, got '{name}'"):
        lc.train(model, data, lc.TrainConfig(epochs=1), twice, progress=False)


def test_auto_precision_picks_for_the_model_says_so_and_leaves_float32_weights(monkeypatch):
    data = lc.load("digits", subset=(200, 50))
    for half, expected in ((True, "bf16"), (False, "float32")):
        monkeypatch.setattr(
            "landscape_core.experiments.trainer._multiplies_bf16", lambda half=half: half
        )
        cnn = lc.SmallCNN(data.input_shape, data.classes, width=4)
        config = lc.TrainConfig(epochs=2, precision="auto")
        history = lc.train(cnn, data, config, progress=False)
        assert history.picked == {"precision": expected, "channels_last": True}
        assert all(p.dtype == torch.float32 and p.is_contiguous() for p in cnn.parameters())
        plain = lc.SmallCNN(data.input_shape, data.classes, width=4)
        lc.train(plain, data, lc.TrainConfig(epochs=2), progress=False)
        for a, b in zip(cnn.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0.1 if half else 1e-3, atol=0.05)
        mlp = lc.MLP(data.input_shape, data.classes, width=8)
        history = lc.train(mlp, data, config, progress=False)
        assert history.picked == {"precision": "float32", "channels_last": False}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_strided_shortcuts_of_few_channels_do_not_race(two_threads, channels, precision):
    # oneDNN's gradient of a strided 1x1 convolution is wrong where the channels are last.
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(160, channels, 8, 8, generator=rng)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (160,), generator=rng)
    data = lc.images((images[:120], labels[:120]), (images[120:], labels[120:]))
    config = lc.TrainConfig(lr=0.05, batch_size=16, epochs=2, precision=precision)
    weights = []
    for _ in range(3):
        model = lc.ResNet(data.input_shape, data.classes, width=7, blocks=1)
        history = lc.train(model, data, config, progress=False)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert not history.picked["channels_last"]
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
    here = lc.Objective(model, F.cross_entropy, (images[:16], labels[:16]))
    exact = lc.Objective(model.double(), F.cross_entropy, (images[:16].double(), labels[:16]))
    for _ in range(3):
        error = here.gradient().double() - exact.gradient()
        assert error.norm() < 1e-4 * exact.gradient().norm()


def test_channels_come_last_where_the_shortcuts_are_wide():
    data = lc.load("digits", subset=(120, 30))
    model = lc.ResNet(data.input_shape, data.classes, width=16, blocks=1)
    config = lc.TrainConfig(epochs=1, precision="auto")
    assert lc.train(model, data, config, progress=False).picked["channels_last"]


def test_what_callbacks_return_stands_in_the_history():
    data = lc.load("digits", subset=(100, 50))
    model = lc.MLP(data.input_shape, data.classes, width=8)
    history = lc.train(
        model, data, lc.TrainConfig(epochs=3), [lambda state: {"double": 2 * state.epoch}],
        progress=False,
    )  # fmt: skip
    assert history.table()["double"].tolist() == [2, 4, 6]


def test_clipped_gradients_are_no_longer_than_that_and_point_the_same_way():
    data = lc.load("digits", subset=(64, 20))
    steps = {}
    for clip in (0.0, 0.05):
        model = lc.MLP(data.input_shape, data.classes, width=8)
        before = lc.Objective(model, F.cross_entropy, data.train).theta.clone()
        config = lc.TrainConfig(optimizer="sgd", lr=1.0, batch_size=64, epochs=1, clip=clip)
        lc.train(model, data, config, progress=False)
        steps[clip] = lc.Objective(model, F.cross_entropy, data.train).theta - before
    free, short = steps[0.0], steps[0.05]
    assert float(short.norm()) == pytest.approx(0.05, rel=1e-3)
    assert float(torch.cosine_similarity(free, short, dim=0)) == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(ValueError, match="clip must be 0 or more, got -1"):
        lc.TrainConfig(clip=-1)
