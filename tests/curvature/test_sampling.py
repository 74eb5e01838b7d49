"""Means over signs of layers: exact where they are, and used where they pay."""

import itertools

import pytest
import torch

import landscape_core as lc
from landscape_core.curvature.probes import probes_block
from landscape_core.curvature.sampling import layer_signs, sample_moments, sample_rows, within

SIZES = (30, 10, 25, 15)


class Layered(lc.Matrix):
    """A matrix with layers; what stands between them is `between` times as large."""

    layer_sizes = SIZES

    def __init__(self, between, seed=0):
        rng = torch.Generator().manual_seed(seed)
        n = sum(SIZES)
        full = torch.randn(n, n, generator=rng, dtype=torch.float64)
        full = (full + full.T) / 2
        layer = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))
        full[layer[:, None] != layer] *= between
        super().__init__(full + 3 * torch.eye(n, dtype=torch.float64))


def test_the_mean_over_signs_sees_the_diagonal_blocks_alone():
    A = Layered(10.0)
    signs = layer_signs(A, 1000)
    assert signs.shape == (4, 4)
    rows = sample_rows(A, 1, "gaussian", torch.Generator().manual_seed(3), signs)
    v = probes_block(1, A.n, A.dtype, torch.Generator().manual_seed(3), "gaussian")[:, 0]
    starts = torch.tensor([0, *SIZES]).cumsum(0)
    blocks = [v[a:b] @ A.matrix[a:b, a:b] @ v[a:b] for a, b in itertools.pairwise(starts)]
    assert float(rows[:, 0].mean()) == pytest.approx(float(sum(blocks)), rel=1e-12)
    for row, sign in zip(rows, signs, strict=True):
        u = v * sign.repeat_interleave(torch.tensor(SIZES))
        assert float(row[0]) == pytest.approx(float(u @ A.matrix @ u), rel=1e-12)
        assert float(row[1]) == pytest.approx(float((A.matrix @ u).square().sum()), rel=1e-12)


def test_signs_are_not_used_for_one_layer_or_few_products():
    assert layer_signs(lc.Matrix(torch.eye(5)), 1000) is None
    assert layer_signs(Layered(1.0), 20) is None


def test_a_network_has_the_layers_of_its_modules(objective):
    H = lc.Hessian(objective)
    sizes = [sum(H.block(names).n for names in [group]) for group in H.layers.values()]
    assert list(H.layer_sizes) == sizes
    assert sum(H.deflate(lc.top_eigenpairs(H, 2)).scaled(objective.theta).layer_sizes) == H.n


@pytest.mark.parametrize("between", [0.0, 5.0])
def test_intervals_with_signs_cover_the_truth_as_often_as_they_say(between):
    A = Layered(between)
    truth, hits = float(A.matrix.trace()), 0
    for seed in range(400):
        estimate = lc.trace(A, 100, method="deflated", seed=seed)
        assert estimate.matvecs == 100
        low, high = estimate.interval()
        hits += low <= truth <= high
    assert 0.92 <= hits / 400 <= 0.98


def test_signs_save_products_where_the_noise_stands_between_layers():
    A, spent = Layered(5.0), {True: [], False: []}
    enough = within(0.05, lambda moments: moments.trace)
    for signed, seed in itertools.product(spent, range(9)):
        rng = torch.Generator().manual_seed(seed)
        found = sample_moments(A, 4000, enough, signed=signed, rng=rng)
        assert found.stopped == "rtol"
        spent[signed].append(found.matvecs)
    assert sum(spent[True]) < 0.5 * sum(spent[False])
