"""Settings of PyTorch that numbers depend on."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.backends import cuda, cudnn

import landscape_core as lc
from landscape_core.backends import full_precision, needs_channels_first


@pytest.mark.parametrize("newer", [False, True])
def test_full_precision_forbids_tf32_and_gives_the_settings_back(newer):
    has_newer = hasattr(cudnn, "conv")
    if newer and not has_newer:
        pytest.skip("this PyTorch has the older settings alone")
    legacy = cudnn.allow_tf32, cuda.matmul.allow_tf32, cudnn.deterministic
    parts = (cuda.matmul, cudnn.conv, cudnn.rnn) if has_newer else ()
    named = [(part, part.fp32_precision) for part in parts]
    try:
        if newer:  # beside these PyTorch refuses the older ones
            cudnn.conv.fp32_precision = cuda.matmul.fp32_precision = "tf32"
        with full_precision(torch.device("cuda")):
            if newer:
                assert cudnn.conv.fp32_precision == cuda.matmul.fp32_precision == "ieee"
            else:
                assert not cudnn.allow_tf32
                assert not cuda.matmul.allow_tf32
            assert cudnn.deterministic
        if newer:
            assert cudnn.conv.fp32_precision == cuda.matmul.fp32_precision == "tf32"
    finally:
        for part, value in named:
            part.fp32_precision = value
    assert (cudnn.allow_tf32, cuda.matmul.allow_tf32, cudnn.deterministic) == legacy


def test_cropped_images_are_put_in_order_where_strided_shortcuts_need_it(two_threads):
    torch.manual_seed(0)
    model = lc.ResNet((3, 16, 16), 10, width=7, blocks=1)
    whole = torch.randn(16, 3, 20, 20).contiguous(memory_format=torch.channels_last)
    cropped, labels = whole[..., 2:18, 2:18], torch.arange(16) % 10
    here = [lc.Objective(model, F.cross_entropy, (cropped, labels)) for _ in range(4)]
    gradients = [objective.gradient() for objective in here]
    exact = lc.Objective(model.double(), F.cross_entropy, (cropped.double(), labels)).gradient()
    assert all((g - exact).norm() < 1e-4 * exact.norm() for g in gradients)


def test_looking_at_convolutions_changes_nothing():
    torch.manual_seed(0)
    convolution = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 1, 2))
    model = nn.Sequential(convolution, nn.Flatten(), nn.Linear(64, 2)).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert needs_channels_first(model)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])
