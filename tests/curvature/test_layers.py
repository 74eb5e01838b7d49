"""Curvature layer by layer against the blocks of the dense matrix."""

import pytest
import torch
import torch.nn.functional as F
from conftest import ragged
from torch import nn

import landscape_core as lc


def blocks(objective, dense):
    """The dense diagonal block of every layer: weight and bias together."""
    layers, start = {}, 0
    for name, size in zip(objective.space.names, objective.space.sizes, strict=True):
        layers.setdefault(name.rpartition(".")[0], []).extend(range(start, start + size))
        start += size
    return {layer: dense[rows][:, rows] for layer, rows in layers.items()}


@pytest.mark.parametrize("make", [lc.Hessian, lc.GaussNewton])
def test_every_layer_has_the_numbers_of_its_dense_block(objective, make):
    A = make(objective)
    truth = blocks(objective, A.dense())
    found = lc.layer_curvature(A, tol=1e-6)
    assert [each.layer for each in found.layers] == list(truth) == ["1", "3", "5"]
    for each in found.layers:
        block = truth[each.layer]
        values = torch.linalg.eigvalsh(block)
        assert each.n == len(block)
        assert float(each.top.values[0]) == pytest.approx(float(values[-1]), rel=1e-8)
        square = float(values.square().sum())
        exact = {
            "trace": float(values.sum()),
            "trace_of_square": square,
            "effective_rank": float(values.sum()) ** 2 / square,
        }
        for name, value in exact.items():
            estimate = getattr(each, name)
            assert abs(estimate.value - value) <= 4 * estimate.stderr
        assert float(values[-1]) <= float(torch.linalg.eigvalsh(A.dense())[-1])


def test_the_traces_of_the_layers_add_up_to_the_trace_of_the_whole(objective):
    found = lc.layer_curvature(objective, probes=200)
    total = sum(each.trace.value for each in found.layers)
    stderr = sum(each.trace.stderr**2 for each in found.layers) ** 0.5
    truth = float(lc.Hessian(objective).dense().trace())
    assert abs(total - truth) < 3 * stderr
    assert stderr < 0.1 * truth


def test_the_products_of_all_layers_are_counted_and_the_operator_is_left_alone(objective):
    H = lc.Hessian(objective)
    found = lc.layer_curvature(H, probes=8)
    spent = sum(each.trace.matvecs for each in found.layers)
    assert found.matvecs == spent >= 3 * 8 + 3
    assert H.matvecs == 0


def test_the_table_has_one_row_to_a_layer_in_the_order_of_the_model():
    layers = [nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3, bias=False)]
    x, y = torch.randn(23, 4), torch.arange(23) % 3
    objective = lc.Objective(nn.Sequential(*layers), F.cross_entropy, ragged(x, y))
    found = lc.layer_curvature(objective)
    table = found.table()
    assert list(table.index) == ["0", "1", "3"]
    assert table["parameters"].tolist() == [25, 10, 15]
    assert table.loc["3", "lambda_max"] == float(found.layers[2].top.values[0])
    assert table.loc["1", "trace_stderr"] == found.layers[1].trace.stderr
    assert bool(table["converged"].all())
    assert len(str(found).splitlines()) == 3


def test_a_parameter_of_the_model_itself_is_a_layer_of_its_own():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(()))
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.gain * self.head(x)

    data = torch.randn(9, 4), torch.arange(9) % 3
    objective = lc.Objective(Scaled(), F.cross_entropy, data)
    table = lc.layer_curvature(objective).table()
    assert table["parameters"].to_dict() == {"gain": 1, "head": 15}
    exact = float(lc.Hessian(objective).dense()[0, 0])
    assert table.loc["gain", "lambda_max"] == pytest.approx(exact, rel=1e-5)
    assert table.loc["gain", "trace"] == pytest.approx(exact, rel=1e-5)


def test_bad_arguments_are_refused(objective):
    with pytest.raises(ValueError, match="probes must be at least 4, got 3"):
        lc.layer_curvature(objective, probes=3)
    with pytest.raises(TypeError, match="needs a Hessian or an Objective, got Matrix"):
        lc.layer_curvature(lc.Matrix(torch.eye(3)))


def test_a_layer_whose_name_reads_as_a_pattern_is_itself():
    model = nn.Sequential()
    for name in ("a[0]", "a0", "b?"):
        model.add_module(name, nn.Linear(4, 4))
    objective = lc.Objective(
        model, F.cross_entropy, (torch.randn(9, 4), torch.arange(9) % 4), parameters="*.weight"
    )
    found = lc.layer_curvature(objective, probes=4)
    assert [(each.layer, each.n) for each in found.layers] == [
        ("a[0]", 16),
        ("a0", 16),
        ("b?", 16),
    ]
    one = lc.ParameterSpace(model, ["a[0].weight", "b*.bias"])
    assert one.names == ("a[0].weight", "b?.bias")
