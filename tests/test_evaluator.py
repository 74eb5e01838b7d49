"""The private copy that slices are computed on, and when it is not used."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import landscape_core as lc
from landscape_core.evaluator import Evaluator
from landscape_core.parameter_space import ParameterSpace

X = torch.eye(3).repeat(5, 1)  # learned without a loss by a layer of large weights
Y = X.argmax(1)


class Captured(nn.Module):
    """Reaches some of its layers through a closure, which a copy shares."""

    def __init__(self, whole):
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)
        self.plain = nn.Identity() if whole else self.last
        self.call = lambda x: self.last(self.first(x)) if whole else self.first(x)

    def forward(self, x):
        return self.plain(self.call(x))


class Masked(nn.Linear):
    """One class is ruled out."""

    def forward(self, x):
        return super().forward(x).masked_fill(torch.tensor([False] * 3 + [True]), -torch.inf)


def at_zero(model):
    """Objective with a loss of zero at theta: every example is far on the right side."""
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.copy_(30 * torch.eye(*layer.weight.shape))
                layer.bias.zero_()
    objective = lc.Objective(model, F.cross_entropy, (X, Y))
    assert float(objective.loss()) == 0
    return objective


def losses(objective):
    """Along the line from theta through 0, by the evaluator and by the objective."""
    line = lc.line(objective, -objective.theta, span=(0, 2), points=5)
    return line.loss, [float(objective.loss((1 - x) * objective.theta)) for x in line.x]


def test_ordinary_models_are_evaluated_on_the_copy(case):
    assert Evaluator(case.objective()).model is not None


def test_so_they_are_where_the_loss_is_zero_and_under_batch_statistics():
    objective = at_zero(nn.Linear(3, 3))
    assert Evaluator(objective).model is not None
    found, expected = losses(objective)
    assert found == pytest.approx(expected, rel=1e-6)
    assert Evaluator(at_zero(Masked(3, 4))).model is not None
    norm = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    objective = lc.Objective(norm, F.cross_entropy, (X, Y), batchnorm="batch")
    assert Evaluator(objective).model is not None


@pytest.mark.parametrize("whole", [True, False])
def test_a_copy_that_does_not_move_is_not_used_where_the_loss_is_zero(whole):
    objective = at_zero(Captured(whole))
    assert Evaluator(objective).model is None
    found, expected = losses(objective)
    assert found == pytest.approx(expected, rel=1e-6)
    assert found.max() > 1


def test_no_copy_is_used_where_parameters_cannot_be_views(monkeypatch):
    """As on a GPU."""
    views = ParameterSpace.unflatten

    def copies(space, theta):
        return {name: piece.clone() for name, piece in views(space, theta).items()}

    monkeypatch.setattr(ParameterSpace, "unflatten", copies)
    objective = at_zero(nn.Linear(3, 3))
    assert Evaluator(objective).model is None
    found, expected = losses(objective)
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("make", [lambda: nn.Linear(3, 3), lambda: Captured(False)])
def test_an_autocast_around_a_call_holds_for_its_forward_passes_alone(make):
    torch.manual_seed(0)
    model, seen = make(), []

    def criterion(outputs, targets):
        seen.append((outputs.dtype, torch.is_autocast_enabled("cpu")))
        return F.cross_entropy(outputs, targets)

    x = torch.randn(15, 3)
    objective = lc.Objective(model, criterion, (x, Y))
    with torch.autocast("cpu", torch.bfloat16):
        at = Evaluator(objective)
        half, _ = at(lambda theta: theta.copy_(objective.theta))
    whole, _ = at(lambda theta: theta.copy_(objective.theta))
    assert float(whole) == float(objective.loss())
    assert float(half) == pytest.approx(float(whole), rel=0.03)
    assert float(half) != float(whole)
    assert set(seen) == {(torch.float32, False)}


def test_it_begins_at_theta():
    data = torch.randn(9, 3), torch.arange(9) % 3
    objective = lc.Objective(nn.Linear(3, 3), F.cross_entropy, data)
    at = Evaluator(objective)
    assert torch.equal(at.theta, objective.theta)
    assert float(at(lambda theta: None)[0]) == pytest.approx(float(objective.loss()), rel=1e-6)
