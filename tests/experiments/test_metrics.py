"""The columns of a study against dense truth."""

import pytest
import torch
import torch.nn.functional as F

import landscape_core as lc
from landscape_core.experiments import records


@pytest.fixture(scope="module")
def objective():
    data = lc.load("digits", subset=(150, 50))
    model = lc.MLP(data.input_shape, data.classes, width=4, depth=1, activation="tanh")
    lc.train(model, data, lc.TrainConfig(epochs=20), progress=False)
    inputs, targets = data.train
    return lc.Objective(model.double(), F.cross_entropy, (inputs.double(), targets))


def test_metrics_match_the_dense_hessian(objective):
    found = lc.landscape_metrics(objective, products=200)
    dense = lc.Hessian(objective).dense()
    values = torch.linalg.eigvalsh(dense)
    scale = objective.theta.abs()
    relative = torch.linalg.eigvalsh(scale[:, None] * dense * scale)
    assert found["lambda_max"] == pytest.approx(float(values[-1]), rel=1e-3)
    assert found["lambda_min"] == pytest.approx(float(values[0]), rel=2e-2)
    assert found["relative_lambda_max"] == pytest.approx(float(relative[-1]), rel=1e-3)
    trace, square = float(values.sum()), float(values.square().sum())
    assert abs(found["trace"].value - trace) < 4 * found["trace"].stderr + 1e-9
    assert abs(found["trace_of_square"].value - square) < (
        4 * found["trace_of_square"].stderr + 1e-9
    )
    assert found["gradient_norm"] == pytest.approx(float(objective.gradient().norm()))
    assert found["loss"].value == pytest.approx(float(objective.loss()))


def test_rises_are_those_of_the_measures_they_are_named_after(objective):
    found = lc.landscape_metrics(objective, radius=0.2, relative_radius=0.3, ascent=5)
    search = {"steps": 5, "restarts": 0}
    assert found["worst_rise"] == lc.worst_sharpness(objective, 0.2, **search).rise
    assert (
        found["relative_worst_rise"]
        == lc.worst_sharpness(objective, 0.3, adaptive="element", **search).rise
    )
    assert found["box_sharpness"] == lc.box_sharpness(objective, **search)
    assert found["random_rise"] == lc.random_sharpness(objective, 0.2, directions=8).mean


def test_a_record_can_hold_them(objective):
    fields = records.collect(lc.landscape_metrics(objective))
    assert {"trace_stderr", "lambda_max_residual", "weight_norm"} <= set(fields["scalars"])
    assert set(fields["arrays"]) == {
        "eigenvalues", "residuals", "density_nodes", "density_weights"
    }  # fmt: skip
