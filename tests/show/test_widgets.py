"""The explorer that computes: its controls, what it keeps, and what it says."""

import sys

import pytest
import torch
import torch.nn.functional as F

import landscape_core as lc


def parts(box):
    *controls, status, output = box.children
    return controls, status, output


def test_moving_a_control_computes_and_going_back_does_not():
    asked = []

    def draw(width, activation):
        asked.append((width, activation))
        return f"{activation} of width {width}"

    box = lc.explore(draw, width=[8, 64], activation=["relu", "gelu"])
    (width, activation), status, output = parts(box)
    assert [type(c).__name__ for c in (width, activation)] == ["SelectionSlider", "Dropdown"]
    assert (width.description, activation.description) == ("width", "activation")
    width.value = 64
    activation.value = "gelu"
    assert output.outputs[0]["data"]["text/plain"] == "'gelu of width 64'"
    assert status.value == "width = 64, activation = gelu"
    width.value = 8
    width.value = 64
    assert asked == [(8, "relu"), (64, "relu"), (64, "gelu"), (8, "gelu")]


def test_an_error_is_told_and_the_next_choice_works():
    def draw(lr):
        if lr > 1:
            raise ValueError("lr is too large")
        return lr

    (lr,), status, output = parts(lc.explore(draw, lr=[0.1, 2.0]))
    lr.value = 2.0
    assert status.value == "ValueError: lr is too large"
    assert not output.outputs
    lr.value = 0.1
    assert output.outputs[0]["data"]["text/plain"] == "0.1"


def test_what_fails_at_once_fails_the_cell():
    with pytest.raises(ZeroDivisionError):
        lc.explore(lambda x: 1 / x, x=[0, 1])


def test_what_cannot_be_explored_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="nothing to explore: name an argument"):
        lc.explore(print)
    with pytest.raises(ValueError, match="width has no values to choose from"):
        lc.explore(print, width=[])
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(ImportError, match="pip install ipywidgets"):
        lc.explore(print, width=[1])


def test_a_setting_holds_what_the_measurements_give_and_shows_itself():
    torch.manual_seed(0)
    x, y = torch.randn(60, 5), torch.arange(60) % 3
    model = torch.nn.Linear(5, 3)
    train = lc.Objective(model, F.cross_entropy, (x[:40], y[:40]))
    test = lc.Objective(model, F.cross_entropy, (x[40:], y[40:]))
    setting = lc.Setting.of(train, test, points=5, k=4)
    dense = torch.linalg.eigvalsh(lc.Hessian(train).dense())
    assert setting.eigenvalues.max() == pytest.approx(dense[-1].item(), rel=1e-3)
    assert setting.numbers["test accuracy"] == str(test.evaluate().accuracy)
    assert setting.plane.loss[2, 2] == pytest.approx(train.loss().item(), rel=1e-5)
    (_, _, output) = parts(lc.explore(lambda size: setting, size=[1]))[0:3]
    assert {"image/jpeg", "application/vnd.plotly.v1+json"} <= set(output.outputs[0]["data"])
