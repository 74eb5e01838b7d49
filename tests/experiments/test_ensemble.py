"""Networks trained together end as they do when trained one by one."""

import pytest
import torch

import landscape_core as lc
import landscape_core.experiments.ensemble


@pytest.fixture(scope="module")
def data():
    return lc.load("digits", subset=(203, 60))


def networks(data, kind, seeds):
    if kind == "cnn":
        return [lc.SmallCNN(data.input_shape, data.classes, width=4, seed=s) for s in seeds]
    return [lc.MLP(data.input_shape, data.classes, width=12, seed=s) for s in seeds]


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov"])
def test_together_is_as_separately(data, kind, optimizer):
    seeds, rates = (0, 1, 2), (0.02, 0.05, 0.1)
    configs = [
        lc.TrainConfig(
            optimizer=optimizer, lr=lr, seed=s, weight_decay=1e-3 * s, epochs=3, batch_size=50,
            schedule="cosine", warmup=1, label_smoothing=0.1,
        )
        for s, lr in zip(seeds, rates, strict=True)
    ]  # fmt: skip
    one, other = networks(data, kind, seeds), networks(data, kind, seeds)
    apart = lc.train_ensemble(one, data, configs, how="separately", progress=False)
    together = lc.train_ensemble(other, data, configs, how="together", progress=False)
    for a, b in zip(one, other, strict=True):
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)
    for a, b in zip(apart, together, strict=True):
        assert a.config == b.config
        for x, y in zip(a.epochs, b.epochs, strict=True):
            assert y.train_loss == pytest.approx(x.train_loss, rel=1e-4)
            assert y.test_loss == pytest.approx(x.test_loss, rel=1e-4)
            assert (y.epoch, y.lr) == (x.epoch, pytest.approx(x.lr))
            assert y.test_accuracy == pytest.approx(x.test_accuracy, abs=0.02)


def test_one_that_diverges_does_not_disturb_the_others(data):
    configs = [lc.TrainConfig(optimizer="sgd", lr=lr, epochs=4) for lr in (0.05, 1e6)]
    good, bad = networks(data, "mlp", (0, 1))
    fine, diverged = lc.train_ensemble([good, bad], data, configs, how="together",
                                       progress=False)  # fmt: skip
    assert diverged.status == "diverged"
    assert "try a learning rate below 1e+06" in diverged.message
    alone = networks(data, "mlp", (0,))[0]
    lc.train(alone, data, configs[0], progress=False)
    assert fine.status == "done"
    for p, q in zip(alone.parameters(), good.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "optimizer", "together"),
    [
        (lambda data: networks(data, "mlp", (0, 1)), "momentum", True),
        (lambda data: networks(data, "mlp", (0, 1)), "adam", False),
        (lambda data: networks(data, "cnn", (0, 1)), "momentum", False),
        (lambda data: [lc.MLP(data.input_shape, 10) for _ in "ab"], "momentum", False),
        (lambda data: [lc.MLP(data.input_shape, 10, width=8, batchnorm=True)], "sgd", False),
    ],
    ids=["small", "adam", "cnn", "large", "batchnorm"],
)
def test_what_cannot_or_does_not_pay_is_done_one_by_one(
    data, monkeypatch, make, optimizer, together
):
    done = []
    kept = lc.experiments.ensemble._Together.train
    monkeypatch.setattr(
        lc.experiments.ensemble._Together, "train",
        lambda self, progress: done.append("together") or kept(self, progress),
    )  # fmt: skip
    models = make(data)
    configs = [lc.TrainConfig(epochs=1, optimizer=optimizer)] * len(models)
    histories = lc.train_ensemble(models, data, configs, progress=False)
    assert [len(history.epochs) for history in histories] == [1] * len(models)
    assert done == (["together"] if together else [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": 1}, "each model needs a configuration, got 1 and 2"),
        ({"width": 13}, "all models must be of one architecture"),
        ({"batchnorm": True}, "models with BatchNorm cannot be trained together"),
        ({"config": {"epochs": 9}}, "may differ only in seed, lr, momentum, weight_decay"),
        (
            {"optimizer": "adam"},
            "optimizer must be 'sgd', 'momentum' or 'nesterov', got 'adam'",
        ),
        ({"precision": "bf16"}, "need precision 'float32', target_loss 0"),
        ({"how": "both"}, "how must be one of 'auto', 'together', 'separately', got 'both'"),
    ],
)
def test_what_cannot_be_trained_together_is_refused(data, change, message):
    batchnorm = change.get("batchnorm", False)
    models = [
        lc.MLP(data.input_shape, data.classes, width=w, batchnorm=batchnorm)
        for w in (12, change.get("width", 12))
    ][: change.get("models", 2)]
    options = {k: change[k] for k in ("optimizer", "precision") if k in change}
    configs = [
        lc.TrainConfig(**options),
        lc.TrainConfig(**options, **change.get("config", {})),
    ]
    with pytest.raises(ValueError, match=message):
        lc.train_ensemble(models, data, configs, how=change.get("how", "together"))


CHANGED = {
    "frozen": lambda model: model[1].requires_grad_(False),
    "dropout": lambda model: model.append(torch.nn.Dropout(0.3)),
    "buffers": lambda model: model.register_buffer("seen", torch.zeros(1)),
}


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
def test_what_would_not_end_as_alone_is_trained_one_by_one(data, change):
    configs = [lc.TrainConfig(lr=0.05, seed=seed, epochs=2) for seed in (0, 1, 2)]
    one, other = networks(data, "mlp", (0, 1, 2)), networks(data, "mlp", (0, 1, 2))
    for model in [*one, *other]:
        change(model)
    with pytest.raises(ValueError, match="cannot be trained together"):
        lc.train_ensemble(one, data, configs, how="together")
    lc.train_ensemble(one, data, configs, progress=False)
    for a, b, config in zip(one, other, configs, strict=True):
        lc.train(b, data, config, progress=False)
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            assert torch.equal(p, q)


def test_networks_that_only_look_alike_are_refused(data):
    make = {"width": 12, "seed": 0}
    relu, tanh = (
        lc.MLP(data.input_shape, data.classes, activation=name, **make)
        for name in ("relu", "tanh")
    )
    configs = [lc.TrainConfig(epochs=1)] * 2
    with pytest.raises(ValueError, match="one architecture, with the same layers"):
        lc.train_ensemble([relu, tanh], data, configs)
    with pytest.raises(ValueError, match="a model of its own, got one of them twice"):
        lc.train_ensemble([relu, relu], data, configs)
    with pytest.raises(ValueError, match="in one mode, training or evaluation, got both"):
        lc.train_ensemble([relu, networks(data, "mlp", (1,))[0].eval()], data, configs)
