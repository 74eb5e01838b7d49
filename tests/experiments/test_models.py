"""The reference networks: any shape, any size, from a seed."""

import pytest
import torch
from torch import nn

import landscape_core as lc


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (2, 1, 1), (1, 7, 3)])
@pytest.mark.parametrize("kind", [lc.MLP, lc.SmallCNN])
@pytest.mark.parametrize("batchnorm", [False, True])
def test_any_input_shape_and_class_count(kind, shape, batchnorm):
    model = kind(shape, 7, width=3, depth=3, batchnorm=batchnorm, activation="gelu")
    assert model(torch.zeros(4, *shape)).shape == (4, 7)
    norms = [m for m in model if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert len(norms) == (3 if batchnorm else 0)


def test_the_seed_decides_the_weights_and_the_global_state_is_left_alone():
    state = torch.get_rng_state()
    first, same, other = (lc.MLP((4,), 3, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b, c in zip(first.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_depth_zero_is_a_linear_classifier():
    assert [type(layer) for layer in lc.MLP((4, 2), 3, depth=0)] == [nn.Flatten, nn.Linear]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 7)])
@pytest.mark.parametrize("skips", [True, False])
@pytest.mark.parametrize("batchnorm", [True, False])
def test_residual_networks_and_their_controls_take_any_image(shape, skips, batchnorm):
    model = lc.ResNet(shape, 7, width=3, blocks=1, skips=skips, batchnorm=batchnorm)
    assert model(torch.zeros(4, *shape)).shape == (4, 7)
    kinds = [type(module) for module in model.modules()]
    assert (nn.BatchNorm2d in kinds) == batchnorm
    assert all(p.requires_grad for p in model.parameters())


def test_a_block_with_silent_convolutions_passes_on_what_it_was_given_only_with_skips():
    x = torch.rand(2, 3, 5, 5)
    for skips in (True, False):
        block = lc.ResNet((3, 5, 5), 2, width=3, skips=skips, batchnorm=False)[2]
        for p in block.body.parameters():
            nn.init.zeros_(p)
        assert torch.equal(block(x), x if skips else torch.zeros_like(x))


def test_the_networks_of_the_studies_have_the_sizes_that_are_stated():
    sizes = [
        sum(p.numel() for p in model.parameters())
        for model in (
            lc.SmallCNN((3, 32, 32), 10, width=64, depth=3, hidden=350),
            lc.ResNet((3, 32, 32), 10, width=56),
        )
    ]
    assert sizes == [1808276, 2127618]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lc.ResNet((8, 8), 3), r"\(channels, height, width\), got \(8, 8\)"),
        (lambda: lc.ResNet((1, 8, 8), 3, blocks=0), "blocks must be at least 1, got 0"),
        (lambda: lc.SmallCNN((1, 8, 8), 3, hidden=-1), "hidden must be at least 1, got -1"),
        (lambda: lc.MLP((4,), 0), "classes must be at least 1, got 0"),
        (lambda: lc.MLP((4,), 3, width=0), "width must be at least 1, got 0"),
        (lambda: lc.MLP((4,), 3, depth=-1), "depth must be at least 0, got -1"),
        (lambda: lc.MLP((4,), 3, activation="rleu"), "activation must be one of .* got 'rleu'"),
        (lambda: lc.SmallCNN((8, 8), 3), r"\(channels, height, width\), got \(8, 8\)"),
        (lambda: lc.SmallCNN((1, 8, 8), 3, depth=0), "depth must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
