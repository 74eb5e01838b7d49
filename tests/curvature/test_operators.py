"""Operators of an objective: budgets, blocks, relatives of the Hessian, against dense truth."""

import copy
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CASES, dense_gauss_newton, dense_hessian, ragged, relative
from torch import nn
from torch.utils.data import DataLoader

import landscape_core as lc

BY_NAME = {case.name: case for case in CASES}
LINEAR = ["linear regression", "softmax regression"]
CLASSIFIERS = [case for case in CASES if case.criterion is F.cross_entropy]
OPERATORS = {
    "Hessian": lc.Hessian,
    "Gauss-Newton": lc.GaussNewton,
    "exact Fisher": lc.Fisher,
    "Monte Carlo Fisher": lambda o, **kw: lc.Fisher(o, kind="monte_carlo", samples=3, **kw),
    "empirical Fisher": lambda o, **kw: lc.Fisher(o, kind="empirical", **kw),
}
every_operator = pytest.mark.parametrize("make", OPERATORS.values(), ids=OPERATORS)


def passes(model):
    """A list that gets one entry for every forward pass of the model."""
    seen = []
    model.register_forward_pre_hook(lambda *_: seen.append(1))
    return seen


@every_operator
def test_every_memory_budget_gives_the_same_products(objective, make):
    seen = passes(objective.model)
    v = torch.randn(objective.n, 3, dtype=torch.float64)
    expected, repeated = make(objective, memory_budget=0) @ v, []
    for budget in (0, 4e3, 8e3, 1.2e4, 1.6e4, 3e4, None):
        A = make(objective, memory_budget=budget)
        torch.testing.assert_close(A @ v, expected, rtol=1e-12, atol=1e-14)
        seen.clear()
        torch.testing.assert_close(A @ v, expected, rtol=1e-12, atol=1e-14)
        repeated.append(len(seen))  # passes of a product after the first
    assert repeated[0] == 4
    assert repeated[-1] == 0
    assert repeated == sorted(repeated, reverse=True)
    assert {1, 2, 3} & set(repeated)  # some budgets keep a part of the batches


@every_operator
def test_a_block_is_the_diagonal_block_and_shares_the_graphs(objective, make):
    seen = passes(objective.model)
    A = make(objective)
    dense = A.dense()
    seen.clear()
    slices = {"1.*": slice(0, 25), "3.weight": slice(25, 50), "*.bias": None}
    for pattern, rows in slices.items():
        block = A.block(pattern)
        if rows is None:
            rows = torch.cat([torch.arange(20, 25), torch.arange(50, 55), torch.arange(70, 73)])
        expected = dense[rows][:, rows]
        torch.testing.assert_close(block.dense(), expected, rtol=1e-12, atol=1e-14)
        assert block.matvecs == block.n == len(expected)
    assert A.matvecs == objective.n
    assert seen == []


@every_operator
@pytest.mark.parametrize("width", [5, 225])  # 73 and 52,653 parameters
def test_blocks_of_any_number_of_columns_are_their_single_products(make, width):
    model = lc.MLP((4,), 3, width=width, activation="tanh").double()
    x = torch.randn(23, 4, dtype=torch.float64)
    A = make(lc.Objective(model, F.cross_entropy, ragged(x, torch.arange(23) % 3)))
    columns = 35 if width == 5 else 2
    block = torch.randn(A.n, columns, dtype=torch.float64)
    singles = torch.stack([A @ v for v in block.T], dim=1)
    torch.testing.assert_close(A @ block, singles, rtol=1e-11, atol=1e-13)
    assert A.matvecs == 2 * columns


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_finite_differences_are_the_dense_hessian_to_their_theoretical_error(objective, dtype):
    # Truncation h^2 and rounding eps / h are both eps^(2/3) at h = eps^(1/3); the factor is
    # for the ratios of third to second and of first to second derivatives.
    expected = dense_hessian(objective)
    data = [(x.to(dtype), y) for x, y in objective.batches()]
    cast = lc.Objective(objective.model.to(dtype), F.cross_entropy, data)
    found = lc.Hessian(cast, method="finite_difference").dense()
    assert relative(found.double(), expected) < 100 * torch.finfo(dtype).eps ** (2 / 3)
    block = lc.Hessian(cast, method="finite_difference").block("1.*").dense()
    assert relative(block, found[:25, :25]) < 10 * torch.finfo(dtype).eps ** (2 / 3)


def test_finite_differences_do_not_depend_on_the_length_of_the_vector(objective):
    H = lc.Hessian(objective, method="finite_difference")
    v = torch.randn(objective.n, dtype=torch.float64)
    for scale in (1e-8, 1e8):
        torch.testing.assert_close(H @ (scale * v) / scale, H @ v, rtol=1e-7, atol=1e-9)
    assert not bool((H @ torch.zeros_like(v)).any())


def test_a_scaled_operator_knows_the_size_of_its_entries():
    spectrum = torch.cat([torch.tensor([1000.0]), torch.linspace(0.1, 1, 60)])
    A = lc.Matrix(torch.diag(spectrum))
    small = A.deflate(lc.top_eigenpairs(A)).scaled(torch.full((61,), 1e-3))
    pair = lc.top_eigenpairs(small)
    assert float(pair.values) == pytest.approx(1e-6, rel=0.02)
    assert float(pair.residuals) < 0.02e-6


def test_counts_may_be_numpy_integers(objective):
    one, three = np.int64(1), np.int32(2**31 - 1)
    found = lc.Fisher(objective, kind="monte_carlo", samples=one, seed=three)
    same = lc.Fisher(objective, kind="monte_carlo", samples=1, seed=2**31 - 1)
    v = torch.ones(objective.n, dtype=torch.float64)
    assert torch.equal(found @ v, same @ v)


def test_deflated_scaled_and_shifted_operators_are_their_dense_formulas(objective):
    H = lc.Hessian(objective)
    dense, eye = H.dense(), torch.eye(objective.n, dtype=torch.float64)
    pairs = lc.top_eigenpairs(H, 3, tol=1e-2)  # inexact on purpose
    P = eye - pairs.vectors @ pairs.vectors.T
    s = torch.rand(objective.n, dtype=torch.float64)
    cases = [
        (H.deflate(pairs), P @ dense @ P),
        (H.scaled(s), s[:, None] * dense * s),
        (H.shifted(-0.3), dense - 0.3 * eye),
        (H.scaled(s).shifted(2), s[:, None] * dense * s + 2 * eye),
    ]
    for operator, expected in cases:
        before = H.matvecs
        torch.testing.assert_close(operator.dense(), expected, rtol=1e-12, atol=1e-14)
        assert operator.matvecs == H.matvecs - before == objective.n
    exact = lc.top_eigenpairs(H, 3, tol=1e-10)
    expected = dense - exact.vectors @ torch.diag(exact.values) @ exact.vectors.T
    torch.testing.assert_close(H.deflate(exact).dense(), expected, rtol=0, atol=1e-9)


def test_gauss_newton_is_jacobian_transpose_m_jacobian_and_positive(case):
    objective = case.objective()
    G = lc.GaussNewton(objective).dense()
    assert relative(G, dense_gauss_newton(objective)) < 1e-10
    assert relative(G.T, G) < 1e-12
    values = torch.linalg.eigvalsh(G)
    assert float(values.min()) > -1e-12 * float(values.max())


@pytest.mark.parametrize("name", LINEAR)
def test_gauss_newton_of_a_linear_model_is_the_hessian(name):
    objective = BY_NAME[name].objective()
    assert relative(lc.GaussNewton(objective).dense(), lc.Hessian(objective).dense()) < 1e-12


def test_gauss_newton_of_a_criterion_linear_in_the_outputs_is_zero(objective):
    linear = lc.Objective(objective.model, lambda out, y: out.mean(), list(objective.batches()))
    assert not bool(lc.GaussNewton(linear).dense().any())


@pytest.mark.parametrize("case", CLASSIFIERS, ids=lambda case: case.name)
def test_exact_fisher_is_gauss_newton_of_cross_entropy_whatever_the_targets(case):
    objective = case.objective()
    G = lc.GaussNewton(objective).dense()
    assert relative(lc.Fisher(objective).dense(), G) < 1e-12
    others = [(x, (y + 1) % 3) for x, y in objective.batches()]
    other = lc.Objective(objective.model, F.cross_entropy, others)
    assert relative(lc.Fisher(other).dense(), G) < 1e-12


def test_empirical_fisher_is_the_second_moment_of_the_gradients_of_examples(case):
    objective = case.objective()
    gradients = torch.cat(list(objective.per_example_gradients()))
    expected = gradients.T @ gradients / 23
    assert relative(lc.Fisher(objective, kind="empirical").dense(), expected) < 1e-10


def test_monte_carlo_fisher_is_unbiased_and_more_samples_scatter_less(objective):
    exact = lc.Fisher(objective).dense()
    scatter = {}
    for samples in (1, 9):
        draws = torch.stack(
            [
                lc.Fisher(objective, kind="monte_carlo", samples=samples, seed=seed).dense()
                for seed in range(60)
            ]
        )
        sums = draws.sum((1, 2))  # sum of all entries: 1'F1
        traces = draws.diagonal(dim1=1, dim2=2).sum(1)
        for found, truth in [(sums, exact.sum()), (traces, exact.trace())]:
            stderr = float(found.std()) / 60**0.5
            assert abs(float(found.mean() - truth)) < 3 * stderr
        scatter[samples] = float(traces.var())
    assert 9 / 2.5 < scatter[1] / scatter[9] < 9 * 2.5  # F-test with 59 degrees of freedom


def test_monte_carlo_labels_are_those_of_the_seed_in_every_product(objective):
    first, same, other = (
        lc.Fisher(objective, kind="monte_carlo", seed=seed, memory_budget=budget).dense()
        for seed, budget in [(4, None), (4, 0), (5, None)]
    )
    torch.testing.assert_close(first, same, rtol=1e-12, atol=1e-14)
    assert relative(other, first) > 1e-2


def test_fisher_of_a_binary_criterion_needs_logits_of_classes():
    x, y = torch.randn(9, 4), (torch.arange(9) % 2).float()[:, None]
    objective = lc.Objective(nn.Linear(4, 1), F.binary_cross_entropy_with_logits, (x, y))
    with pytest.raises(ValueError, match=r"logits of shape \(N, C\), got \(9, 1\)"):
        lc.Fisher(objective) @ torch.ones(5)
    gradients = torch.cat(list(objective.per_example_gradients()))
    found = lc.Fisher(objective, kind="empirical").dense()
    torch.testing.assert_close(found, gradients.T @ gradients / 9)


@every_operator
def test_a_bfloat16_model_is_measured_in_float32_at_its_weights(make):
    torch.manual_seed(0)
    half = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    half = half.to(torch.bfloat16)
    x, y = torch.randn(23, 4).bfloat16(), torch.arange(23) % 3
    single = copy.deepcopy(half).float()
    found = make(lc.Objective(half, F.cross_entropy, ragged(x, y))).dense()
    expected = make(lc.Objective(single, F.cross_entropy, ragged(x.float(), y))).dense()
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert next(half.parameters()).dtype == torch.bfloat16


class ModelOutput(OrderedDict):
    """As Hugging Face's: a mapping whose entries are attributes too."""

    def __getattr__(self, name):
        return self[name]


class Tagger(nn.Module):
    """Classifies sequences by the mean over tokens that the mask leaves."""

    def __init__(self, output):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 3)
        self.output = output

    def forward(self, input_ids=None, attention_mask=None):
        hidden = torch.tanh(self.embedding(input_ids)) * attention_mask[..., None]
        mean = hidden.sum(1) / attention_mask.sum(1, keepdim=True)
        logits = self.head(mean)
        return logits if self.output is None else self.output(loss=None, logits=logits)


def tokens():
    torch.manual_seed(1)
    mask = (torch.arange(5) <= torch.randint(1, 5, (23, 1))).double()
    rows = {"input_ids": torch.randint(7, (23, 5)), "attention_mask": mask}
    return rows, torch.arange(23) % 3


@pytest.mark.parametrize("output", [dict, ModelOutput])
@pytest.mark.parametrize("container", ["dict", "list of dicts", "loader of dicts"])
@every_operator
def test_models_of_hugging_face_are_like_any_other(make, output, container):
    inputs, y = tokens()
    rows = [{"labels": y[i], **{k: v[i] for k, v in inputs.items()}} for i in range(23)]
    loader = DataLoader(rows, batch_size=7)
    data = {
        "dict": {**inputs, "labels": y},
        "list of dicts": list(loader),
        "loader of dicts": loader,
    }[container]
    pairs = (inputs, y) if container == "dict" else ragged(inputs, y)
    plain = lc.Objective(Tagger(None).double(), F.cross_entropy, pairs)
    objective = lc.Objective(Tagger(output).double(), F.cross_entropy, data)
    torch.testing.assert_close(objective.loss(), plain.loss())
    v = torch.randn(plain.n, dtype=torch.float64)
    torch.testing.assert_close(make(objective) @ v, make(plain) @ v, rtol=1e-10, atol=1e-13)


def test_rescaled_relu_layers_move_lambda_max_and_not_the_relative_curvature():
    torch.manual_seed(0)
    model = lc.MLP((4,), 3, width=6)
    x, y = torch.randn(23, 4, dtype=torch.float64), torch.arange(23) % 3
    objective = lc.Objective(model.double(), F.cross_entropy, ragged(x, y))
    # Layers times 4, 1/2 and 1/2; the biases are scaled by all layers up to their own.
    factors = [(24, 4.0), (6, 4.0), (36, 0.5), (6, 2.0), (18, 0.5), (3, 1.0)]
    scale = torch.cat([torch.full((count,), factor) for count, factor in factors]).double()
    theta, moved = objective.theta, objective.theta * scale
    torch.testing.assert_close(objective.loss(moved), objective.loss(), rtol=1e-12, atol=0)
    here, there = lc.Hessian(objective), lc.Hessian(objective, moved)
    torch.testing.assert_close(there.dense(), here.dense() / scale / scale[:, None])

    def top(operator):
        return float(lc.top_eigenpairs(operator, 1, "LA", tol=1e-9).values[0])

    assert abs(top(there) / top(here) - 1) > 0.5
    relative_here = top(here.scaled(theta.abs()))
    assert top(there.scaled(moved.abs())) == pytest.approx(relative_here, rel=1e-9)


def test_batch_mode_batchnorm_has_no_curvature_along_the_weights_before_it():
    torch.manual_seed(0)
    layers = [nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4, eps=1e-14), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(4, 2)).double()
    x, y = torch.randn(23, 3, dtype=torch.float64), torch.arange(23) % 2
    objective = lc.Objective(model, F.cross_entropy, ragged(x, y), batchnorm="batch")
    block = lc.Hessian(objective).block("0.*")
    w, g = objective.theta[:12], objective.gradient()[:12]
    for unit in range(4):  # w of one channel: <w, g> = 0, H w = -g, w'Hw = 0
        mask = torch.zeros(4, 3, dtype=torch.float64)
        mask[unit] = 1
        alone = w * mask.flatten()
        product = block @ alone
        assert abs(float(alone @ g)) < 1e-9
        within = mask.flatten() * product
        torch.testing.assert_close(within, -mask.flatten() * g, atol=1e-8, rtol=1e-6)
        assert abs(float(alone @ product)) < 1e-8
    with pytest.raises(ValueError, match="single examples have no gradient"):
        lc.Fisher(objective, kind="empirical")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@every_operator
def test_operators_on_the_gpu_agree_with_the_cpu(objective, make):
    data = list(objective.batches())
    v = torch.randn(objective.n, 20, dtype=torch.float64)
    moved = lc.Objective(copy.deepcopy(objective.model).cuda(), F.cross_entropy, data)
    for options in [{}, {"method": "finite_difference"}] if make is lc.Hessian else [{}]:
        on_cpu = make(objective, **options) @ v
        on_gpu = make(moved, **options) @ v.cuda()
        if make is not OPERATORS["Monte Carlo Fisher"]:  # another generator draws its labels
            assert relative(on_gpu.cpu(), on_cpu) < 1e-4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_summary_on_the_gpu_agrees_with_the_cpu(objective):
    data = list(objective.batches())
    moved = lc.Objective(copy.deepcopy(objective.model).cuda(), F.cross_entropy, data)
    options = {"k": 4, "tol": 1e-6, "trace_rtol": 1e-5, "square_rtol": 1e-5, "steps": 8}
    here = lc.curvature_summary(lc.Hessian(objective), **options)
    there = lc.curvature_summary(lc.Hessian(moved), **options)
    assert relative(there.top.values.cpu(), here.top.values) < 1e-4
    assert there.lambda_min == pytest.approx(here.lambda_min, rel=1e-4)
    for name in ("trace", "trace_of_square", "effective_rank"):
        expected = getattr(here, name).value
        assert getattr(there, name).value == pytest.approx(expected, rel=1e-4)
