"""Operators of random networks, criteria, precisions and splits against dense truth."""

import copy
from functools import partial

import torch
import torch.nn.functional as F
from conftest import dense_gauss_newton, dense_hessian, ragged, relative
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import landscape_core as lc

NORMS = {"none": None, "LayerNorm": nn.LayerNorm, "BatchNorm": nn.BatchNorm1d}
CRITERIA = {
    "cross-entropy": F.cross_entropy,
    "label smoothing": partial(F.cross_entropy, label_smoothing=0.2),
    "squares": F.mse_loss,
}
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}


@st.composite
def objectives(draw):
    """A network with 1 to 3 layers on 1 to 4 batches, and its double-precision twin."""
    widths = draw(st.lists(st.integers(1, 5), min_size=0, max_size=2))
    activation = draw(st.sampled_from([nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Softplus]))
    norm = NORMS[draw(st.sampled_from(sorted(NORMS)))]
    criterion = draw(st.sampled_from(sorted(CRITERIA)))
    dtype = draw(st.sampled_from(sorted(TOLERANCE, key=str)))
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    torch.manual_seed(draw(st.integers(0, 1000)))
    layers, features = [], 3
    for width in widths:
        layers += [nn.Linear(features, width), *([norm(width)] if norm else []), activation()]
        features = width
    model = nn.Sequential(*layers, nn.Linear(features, 3))
    model(torch.randn(50, 3) * 2 + 1)  # running statistics other than 0 and 1
    model = model.to(dtype)
    x, y = torch.randn(sum(sizes), 3, dtype=dtype), torch.arange(sum(sizes)) % 3
    if criterion == "squares":
        y = torch.randn(sum(sizes), 3, dtype=dtype)
    objective = lc.Objective(model, CRITERIA[criterion], ragged(x, y, tuple(sizes)))
    exact_y = y.double() if criterion == "squares" else y
    twin = lc.Objective(
        copy.deepcopy(model).double(), CRITERIA[criterion],
        ragged(x.double(), exact_y, tuple(sizes)),
    )  # fmt: skip
    return objective, twin, TOLERANCE[dtype]


@settings(max_examples=60)
@given(objectives())
def test_hessians_of_random_networks_are_dense_truth(drawn):
    objective, twin, tolerance = drawn
    assert relative(lc.Hessian(objective).dense().double(), dense_hessian(twin)) < tolerance


@settings(max_examples=60)
@given(objectives())
def test_gauss_newton_of_random_networks_is_symmetric_positive_and_dense_truth(drawn):
    objective, twin, tolerance = drawn
    G = lc.GaussNewton(objective).dense().double()
    assert relative(G, dense_gauss_newton(twin)) < tolerance
    assert relative(G.T, G) < tolerance
    values = torch.linalg.eigvalsh(G)
    assert float(values[0]) >= -tolerance * float(values[-1])
