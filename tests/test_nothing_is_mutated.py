"""No measurement changes the model, its buffers, gradients or modes, or the random state."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import landscape_core as lc

MEASUREMENTS = {
    "loss": lambda o: o.loss(),
    "accuracy": lambda o: o.accuracy(),
    "gradient": lambda o: o.gradient(),
    "evaluate": lambda o: o.evaluate(),
    "Hessian product": lambda o: lc.Hessian(o) @ torch.ones(o.n),
    "top_eigenpairs": lambda o: lc.top_eigenpairs(lc.Hessian(o), k=2),
    "trace": lambda o: lc.trace(lc.Hessian(o), probes=3),
    "kept Hessian": lambda o: [lc.Hessian(o).block("0.*").dense(), lc.Hessian(o).dense()],
    "Hessian, no memory": lambda o: lc.Hessian(o, memory_budget=0).dense(),
    "finite differences": lambda o: lc.Hessian(o, method="finite_difference").dense(),
    "GaussNewton": lambda o: lc.GaussNewton(o).dense(),
    "exact Fisher": lambda o: lc.Fisher(o).dense(),
    "Monte Carlo Fisher": lambda o: lc.Fisher(o, kind="monte_carlo").dense(),
    "empirical Fisher": lambda o: lc.Fisher(o, kind="empirical").dense(),
    "power_iteration": lambda o: lc.power_iteration(lc.Hessian(o)),
    "deflated trace": lambda o: lc.trace(lc.Hessian(o), 12, method="deflated"),
    "Hutch++": lambda o: lc.trace(lc.Hessian(o), 12, method="hutch++"),
    "XTrace": lambda o: lc.trace(lc.Hessian(o), 12, method="xtrace"),
    "trace_of_square": lambda o: lc.trace_of_square(lc.Hessian(o), 12),
    "effective_rank": lambda o: lc.effective_rank(lc.Hessian(o), 12),
    "diagonal": lambda o: lc.diagonal(lc.Hessian(o), 12),
    "spectral_density": lambda o: lc.spectral_density(lc.Hessian(o), 5, 2),
    "layer_curvature": lambda o: lc.layer_curvature(o, probes=4),
    "curvature_summary": lambda o: lc.curvature_summary(lc.Hessian(o), 2, steps=5),
    "flatness_profile": lambda o: lc.flatness_profile(o, [0.1], directions=2),
    "random_directions": lambda o: lc.random_directions(o, 2),
    "line": lambda o: lc.line(o, torch.ones(o.n), points=3),
    "plane": lambda o: lc.plane(o, *lc.random_directions(o, 2), points=3),
    "path_profile": lambda o: lc.path_profile(o, lc.Segment(o.theta, o.theta + 1), points=3),
    "gradient_noise_scale": lambda o: lc.gradient_noise_scale(o, 2, 8, draws=2),
    "random_sharpness": lambda o: lc.random_sharpness(o, directions=2),
    "worst_sharpness": lambda o: lc.worst_sharpness(o, steps=2),
    "m_sharpness": lambda o: lc.m_sharpness(o, m=5),
    "box_sharpness": lambda o: lc.box_sharpness(o, steps=2),
    "landscape_metrics": lambda o: lc.landscape_metrics(o, directions=2, ascent=2),
    "relative_curvature": lambda o: lc.relative_curvature(o),
    "noise_robustness": lambda o: lc.noise_robustness(o, [0.1], draws=2),
    "fit_path": lambda o: lc.fit_path(
        o, lc.Bezier(o.theta, o.theta + 1), epochs=1, batch_size=10, lr=0.01
    ),
    "align": lambda o: [lc.align(o, o, method=m) for m in ("weights", "activations")],
    "trace_permutations": lambda o: lc.trace_permutations(o.model, next(o.batches())[0]),
    "barrier_matrix": lambda o: lc.barrier_matrix([o, o], points=3),
    "exact_noise_scale": lambda o: lc.exact_noise_scale(o),
    "noise_alignment": lambda o: lc.noise_alignment(o, lc.Hessian(o), examples=4),
    "batch_sharpness": lambda o: lc.batch_sharpness(o, 8, draws=2),
    "per_example_gradients": lambda o: list(o.per_example_gradients()),
}


NEEDS_SINGLE_EXAMPLES = {  # refuse "batch"
    "gradient_noise_scale",
    "exact_noise_scale",
    "noise_alignment",
    "per_example_gradients",
    "empirical Fisher",
}
CALLS = [
    (measure, policy)
    for measure in MEASUREMENTS
    for policy in ("eval", "batch", "refresh")
    if not (policy == "batch" and measure in NEEDS_SINGLE_EXAMPLES)
]


@pytest.mark.parametrize(("measure", "policy"), CALLS)
def test_measurement_leaves_everything_as_it_was(measure, policy):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3)
    )
    model.train()
    model[3].eval()
    x, y = torch.randn(20, 4), torch.arange(20) % 3
    F.cross_entropy(model(x), y).backward()
    state = copy.deepcopy(model.state_dict())
    gradients = [p.grad.clone() for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    momentum = model[1].momentum
    rng = torch.get_rng_state()

    objective = lc.Objective(model, F.cross_entropy, [(x[:12], y[:12]), (x[12:], y[12:])],
                             batchnorm=policy)  # fmt: skip
    theta = objective.theta.clone()
    MEASUREMENTS[measure](objective)

    assert torch.equal(objective.theta, theta)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)
        assert parameter.requires_grad
    assert [m.training for m in model.modules()] == modes
    assert model[1].momentum == momentum
    assert torch.equal(torch.get_rng_state(), rng)


def test_modes_return_after_an_error():
    model = lc.MLP((4,), 3, width=5)
    objective = lc.Objective(model, F.cross_entropy, (torch.randn(6, 4), torch.arange(6) % 3))
    objective.criterion = lambda outputs, targets: outputs
    with pytest.raises(ValueError, match="scalar"):
        objective.gradient()
    assert all(module.training for module in model.modules())


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "hook",
    [
        torch.nn.utils.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    ],
    ids=["spectral norm", "pruning"],
)
def test_weights_that_hooks_make_are_left_as_they_were(hook):
    torch.manual_seed(0)
    model = nn.Sequential(hook(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3)).eval()
    x, y = torch.randn(20, 4), torch.arange(20) % 3
    with torch.no_grad():
        model(x)
    before = model[0].weight.detach().clone()
    objective = lc.Objective(model, F.cross_entropy, (x, y))
    lc.Hessian(objective) @ torch.ones(objective.n)
    objective.loss(objective.theta + 1)
    assert torch.equal(model[0].weight, before)
    copied = copy.deepcopy(model)  # not possible of a weight that belongs to a graph
    torch.testing.assert_close(copied(x), model(x))
