"""A training that was interrupted ends as if it had not been, bit for bit."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import landscape_core as lc


class Stop(Exception):  # noqa: N818  an interruption, not an error
    pass


class StopAfter:
    """Interrupts once, after an epoch; what it counts is part of the checkpoint."""

    def __init__(self, epoch=None):
        self.epoch, self.seen = epoch, 0

    def __call__(self, state):
        self.seen += 1
        if state.epoch == self.epoch:
            raise Stop
        return {"drawn": float(torch.rand(())), "seen": self.seen}

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def model_of(data):
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(16, 10),
    )  # fmt: skip


def compare(a, b):
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw"])
@pytest.mark.parametrize("regularizer", [None, lc.FlatnessPenalty(0.01, 1), lc.SAM(0.05)])
def test_going_on_is_as_never_having_stopped(tmp_path, optimizer, regularizer):
    data = lc.load("digits", subset=(150, 50))
    config = lc.TrainConfig(
        optimizer=optimizer, lr=0.01, epochs=5, batch_size=32, schedule="cosine", warmup=1
    )
    whole = model_of(data)
    options = {"regularizer": regularizer, "progress": False}
    history = lc.train(whole, data, config, [StopAfter()], **options)
    file, model = tmp_path / "training.pt", model_of(data)
    with pytest.raises(Stop):
        lc.train(model, data, config, [StopAfter(3)], checkpoint=file, **options)
    other = model_of(data)  # a new process would begin with fresh weights too
    torch.rand(7)  # and elsewhere in the sequence of random numbers
    again = lc.train(other, data, config, [StopAfter()], checkpoint=file, **options)
    compare(other, whole)
    pd.testing.assert_frame_equal(
        again.table().drop(columns="seconds"), history.table().drop(columns="seconds")
    )
    assert again.table()["seen"].tolist() == [1, 2, 3, 4, 5]


def test_a_tracker_goes_on_with_its_records_and_eigenvectors(tmp_path):
    data = lc.load("digits", subset=(150, 50))
    config = lc.TrainConfig(epochs=4, batch_size=50)

    def tracker():
        return lc.CurvatureTracker(F.cross_entropy, data.train, every_steps=2)

    whole, calm = tracker(), model_of(data)
    lc.train(calm, data, config, [whole], progress=False)
    file, first, second = tmp_path / "t.pt", tracker(), tracker()
    with pytest.raises(Stop):
        lc.train(model_of(data), data, config, [first, StopAfter(3)], checkpoint=file,
                 progress=False)  # fmt: skip
    ended = model_of(data)
    lc.train(ended, data, config, [second, StopAfter()], checkpoint=file, progress=False)
    compare(ended, calm)
    pd.testing.assert_frame_equal(second.table(), whole.table())


def test_a_finished_training_is_not_repeated_and_a_target_ends_it_again(tmp_path):
    data = lc.load("digits", subset=(150, 50))
    config = lc.TrainConfig(epochs=50, target_loss=0.8)
    file, first, second = tmp_path / "t.pt", model_of(data), model_of(data)
    history = lc.train(first, data, config, checkpoint=file, progress=False)
    assert 1 < len(history.epochs) < 50
    assert history.epochs[-1].train_loss <= 0.8 < history.epochs[-2].train_loss
    again = lc.train(second, data, config, checkpoint=file, progress=False)
    assert again.table().equals(history.table())
    compare(first, second)


def test_a_file_that_is_not_a_checkpoint_of_this_training_is_refused_and_kept(tmp_path):
    data, other = lc.load("digits", subset=(150, 50)), lc.load("digits", subset=(140, 50))
    file, config = tmp_path / "t.pt", lc.TrainConfig(epochs=1)
    lc.train(model_of(data), data, config, checkpoint=file, progress=False)
    another = model_of(data)
    nn.init.ones_(another[1].weight)
    for change, what in (
        ({"config": lc.TrainConfig(epochs=2)}, "config"),
        ({"data": other}, "data"),
        ({"regularizer": lc.SAM(0.1)}, "regularizer"),
        ({"callbacks": [StopAfter()]}, "callbacks"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(64, 10))}, "model"),
        ({"model": another}, "initial weights"),
    ):
        options = {"model": model_of(data), "data": data, "config": config} | change
        with pytest.raises(ValueError, match=f"t.pt differs in its .*{what}.*: remove it"):
            lc.train(**options, checkpoint=file, progress=False)
    for name, content in (("notes.txt", b"my notes"), ("cut.pt", file.read_bytes()[:100])):
        own = tmp_path / name
        own.write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} cannot be read as one"):
            lc.train(model_of(data), data, config, checkpoint=own, progress=False)
        assert own.read_bytes() == content
    weights = tmp_path / "weights.pt"
    torch.save(model_of(data).state_dict(), weights)
    with pytest.raises(ValueError, match="cannot be read as one"):
        lc.train(model_of(data), data, config, checkpoint=weights, progress=False)
    assert "1.weight" in torch.load(weights, weights_only=True)


def test_numbers_of_numpy_and_tensors_survive_an_interruption(tmp_path):
    data = lc.load("digits", subset=(150, 50))
    config = lc.TrainConfig(lr=np.float64(0.05), epochs=np.int64(3))
    seen = []

    def measure(state):
        seen.append(state.epoch)
        if len(seen) == 2:
            raise Stop
        return {"norm": torch.ones(()), "mean": np.float32(0.5)}

    file = tmp_path / "t.pt"
    with pytest.raises(Stop):
        lc.train(model_of(data), data, config, [measure], checkpoint=file, progress=False)
    history = lc.train(model_of(data), data, config, [measure], checkpoint=file, progress=False)
    assert seen == [1, 2, 2, 3]
    assert history.table()["norm"].tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(TypeError, match="a callback must return numbers by name, got list for"):
        lc.train(model_of(data), data, config, [lambda state: {"x": [1]}], progress=False)


def test_a_regularizer_that_is_none_is_refused():
    data = lc.load("digits", subset=(150, 50))
    with pytest.raises(TypeError, match="regularizer must be one such as SAM"):
        lc.train(model_of(data), data, regularizer=0.1, progress=False)


def test_the_target_loss_must_not_be_negative():
    with pytest.raises(ValueError, match="target_loss must be 0 or more, got -1"):
        lc.TrainConfig(target_loss=-1)


class Holds:
    """A callback that keeps what it should not."""

    def __init__(self, state):
        self.state = state

    def __call__(self, state):
        return None

    def state_dict(self):
        return self.state


def test_a_state_that_could_not_be_read_back_is_refused_when_it_is_written(tmp_path):
    data = lc.load("digits", subset=(150, 50))
    with pytest.raises(TypeError, match=r"state_dict of Holds must hold .* got ndarray"):
        lc.train(model_of(data), data, lc.TrainConfig(epochs=1), [Holds({"v": np.ones(2)})],
                 checkpoint=tmp_path / "t.pt", progress=False)  # fmt: skip


class Plain(lc.Regularizer):
    """A regularizer of a user: an ordinary class."""

    def __init__(self, weight):
        self.weight = weight

    def step(self, loss, parameters, batch, rng):
        value = loss(*batch)
        gradients = torch.autograd.grad(value, parameters)
        return lc.RegularizedStep(value.detach(), torch.zeros(()), gradients)


class Counts(nn.Module):
    """Has a buffer that no state_dict holds, and that its outputs depend on."""

    def __init__(self):
        super().__init__()
        self.leave = nn.Linear(64, 10)
        self.register_buffer("passes", torch.zeros(()), persistent=False)

    def forward(self, x):
        if self.training:
            self.passes += 1
        return self.leave(x.flatten(1)) * (1 + 0.01 * self.passes)


def test_a_users_own_regularizer_and_hidden_buffers_go_on_too(tmp_path):
    data = lc.load("digits", subset=(150, 50))
    config = lc.TrainConfig(epochs=4, batch_size=50)

    def model():
        torch.manual_seed(0)
        return Counts()

    whole, cut, ended = model(), model(), model()
    lc.train(whole, data, config, [StopAfter()], regularizer=Plain(0.1), progress=False)
    with pytest.raises(Stop):
        lc.train(cut, data, config, [StopAfter(3)], regularizer=Plain(0.1),
                 checkpoint=tmp_path / "t.pt", progress=False)  # fmt: skip
    history = lc.train(ended, data, config, [StopAfter()], regularizer=Plain(0.1),
                       checkpoint=tmp_path / "t.pt", progress=False)  # fmt: skip
    assert history.table()["seen"].tolist() == [1, 2, 3, 4]
    compare(ended, whole)
    assert torch.equal(ended.passes, whole.passes)


def test_a_checkpoint_knows_its_data_on_any_number_of_threads(tmp_path):
    rng = torch.Generator().manual_seed(0)
    x, y = torch.rand(400, 3, 16, 16, generator=rng), torch.arange(400) % 2
    data = lc.images((x, y), (x[:40], y[:40]))
    before, histories = torch.get_num_threads(), []
    try:
        for threads, epochs in ((1, 1), (3, 1)):
            torch.set_num_threads(threads)
            model = lc.MLP((3, 16, 16), 2, width=4, seed=0)
            config = lc.TrainConfig(epochs=epochs)
            histories.append(
                lc.train(model, data, config, checkpoint=tmp_path / "a.pt", progress=False)
            )
    finally:
        torch.set_num_threads(before)
    assert histories[0].epochs == histories[1].epochs
    other = lc.images((x, y), (1 - x[:40], y[:40]))
    with pytest.raises(ValueError, match="differs in its data"):
        lc.train(
            lc.MLP((3, 16, 16), 2, width=4, seed=0), other, lc.TrainConfig(epochs=1),
            checkpoint=tmp_path / "a.pt", progress=False,
        )  # fmt: skip


def test_without_a_checkpoint_the_data_are_not_read_for_one(monkeypatch):
    data = lc.load("digits", subset=(100, 50))
    read = []
    monkeypatch.setattr(
        "landscape_core.experiments.checkpoints._hash", lambda tensors: read.append(1)
    )
    lc.train(
        lc.MLP(data.input_shape, 10, width=4), data, lc.TrainConfig(epochs=1), progress=False
    )
    assert read == []
