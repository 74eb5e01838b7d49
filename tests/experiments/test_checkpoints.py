"""A training that was interrupted ends as if it had not been, bit for bit."""

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


def test_a_file_of_another_training_is_refused_and_a_damaged_one_begun_again(tmp_path):
    data = lc.load("digits", subset=(150, 50))
    file = tmp_path / "t.pt"
    lc.train(model_of(data), data, lc.TrainConfig(epochs=1), checkpoint=file, progress=False)
    with pytest.raises(ValueError, match=r"checkpoint must be of this training, .*t.pt was"):
        lc.train(model_of(data), data, lc.TrainConfig(epochs=2), checkpoint=file,
                 progress=False)  # fmt: skip
    file.write_bytes(file.read_bytes()[:100])
    history = lc.train(
        model_of(data), data, lc.TrainConfig(epochs=2), checkpoint=file, progress=False
    )
    assert len(history.epochs) == 2


def test_the_target_loss_must_not_be_negative():
    with pytest.raises(ValueError, match="target_loss must be 0 or more, got -1"):
        lc.TrainConfig(target_loss=-1)
