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


MEASURES = {
    "loss": lambda o: o.loss(),
    "example_values": lambda o: o.example_values()[0],
    "gradient": lambda o: o.gradient(),
    "per_example_gradients": lambda o: torch.cat(list(o.per_example_gradients())),
    "statistics": lambda o: torch.cat(list(o.statistics(o.theta).values())),
    "Hessian": lambda o: lc.Hessian(o) @ o.theta,
    "no graphs": lambda o: lc.Hessian(o, memory_budget=0) @ o.theta,
    "Gauss-Newton": lambda o: lc.GaussNewton(o) @ o.theta,
    "batch_sharpness": lambda o: torch.tensor(lc.batch_sharpness(o, 10, draws=2).value),
    "eigenpairs": lambda o: lc.top_eigenpairs(lc.Hessian(o), 2, tol=1e-6).values,
    "power": lambda o: lc.power_iteration(lc.Hessian(o), tol=1e-4).values,
    "density": lambda o: torch.tensor(
        lc.spectral_density(lc.Hessian(o), 10, 2).moment(2).value
    ),
    "XTrace": lambda o: torch.tensor(lc.trace(lc.Hessian(o), 20, method="xtrace").value),
    "Hutch++": lambda o: torch.tensor(lc.trace(lc.Hessian(o), 20, method="hutch++").value),
    "rank": lambda o: torch.tensor(lc.effective_rank(lc.Hessian(o)).value),
    "alignment": lambda o: torch.tensor(lc.noise_alignment(o, lc.Hessian(o)).curvature.value),
    "line": lambda o: torch.from_numpy(lc.line(o, o.theta, points=3).loss),
    "bf16": lambda o: torch.from_numpy(lc.line(o, o.theta, points=3, precision="bf16").loss),
}


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_an_autocast_around_a_measurement_changes_nothing(measure):
    def criterion(outputs, targets):  # a product, which autocast would round
        return -((outputs.log_softmax(1) @ torch.eye(3))[range(len(targets)), targets]).mean()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    data = torch.randn(20, 6), torch.arange(20) % 3
    expected = measure(lc.Objective(model, criterion, data, batchnorm="refresh"))
    with torch.autocast("cpu", torch.bfloat16):
        found = measure(lc.Objective(model, criterion, data, batchnorm="refresh"))
        assert torch.is_autocast_enabled("cpu")
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


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


def test_a_convolution_whose_kernel_is_a_buffer_is_measured():
    layer = nn.Conv2d(2, 3, 1, stride=2, bias=False)
    kernel = layer.weight.detach().clone()
    del layer.weight
    layer.register_buffer("weight", kernel)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 2))
    data = torch.randn(6, 2, 4, 4), torch.arange(6) % 2
    assert lc.Objective(model, F.cross_entropy, data).gradient().shape == (26,)
