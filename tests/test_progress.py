"""One bar at a time, in which what runs inside says how far it is."""

from __future__ import annotations

import io

import pytest
from tqdm import tqdm

import landscape_core as lc
from landscape_core import progress
from landscape_core.progress import progress_bar, speaking_through


@pytest.fixture
def said(monkeypatch, capsys):
    """What bars without a file of their own have written, and no waiting for them."""
    monkeypatch.setattr(progress, "PAUSE", 0.0)
    return lambda: capsys.readouterr().err


def stages(bar, work):
    """What the bar says while the work is done."""
    texts = []
    bar.set_postfix_str = texts.append
    with speaking_through(bar):
        work()
    return texts


def count(steps):
    for _ in progress_bar(range(steps), desc="count", progress=True):
        pass


def test_alone_a_bar_draws_itself(said):
    count(3)
    assert "count: 100%" in said()


def test_inside_another_bar_speaks_and_nothing_else_is_written(said):
    with tqdm(total=1, file=io.StringIO()) as outer:
        texts = stages(outer, lambda: count(3))
    assert texts[0] == "count 0/3"
    assert texts[-2:] == ["count 3/3", ""]  # and nothing is left of it at the end
    assert said() == ""


def test_what_is_over_at_once_is_not_mentioned(monkeypatch):
    monkeypatch.setattr(progress, "PAUSE", 60.0)
    with tqdm(total=1, file=io.StringIO()) as outer:
        assert stages(outer, lambda: count(3)) == []


def test_within_silence_all_are_silent(said):
    with speaking_through():
        count(3)
    assert said() == ""


def train_a_little(seed):
    data = lc.load("digits", subset=(20, 10))
    model = lc.MLP(data.input_shape, data.classes, width=4, seed=seed)
    lc.train(model, data, lc.TrainConfig(epochs=4, batch_size=10))
    return {"x": 1.0}


def test_a_study_has_one_bar_for_all_its_trainings(said, tmp_path):
    lc.Study("one", train_a_little, tmp_path).run(lc.grid(seed=range(2)))
    written = said()
    assert "one:" in written
    assert "train 4/4" in written
    assert written.count("\n") == 1  # a bar that stays ends in one


def test_a_study_that_shows_no_bar_shows_none_of_its_runs(said, tmp_path):
    lc.Study("one", train_a_little, tmp_path).run(lc.grid(seed=0), progress=False)
    assert said() == ""


def test_one_run_asked_for_by_its_parameters_draws_its_own(said, tmp_path):
    lc.Study("one", train_a_little, tmp_path)(seed=0)
    assert "train: 100%" in said()
