"""Directions, lines and planes: exact coordinates, matched norms."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import landscape_core as lc


def bowl():
    """L(theta) = |theta - (1, 2)|^2 / 2 for theta in the plane, as an objective."""
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0]]))
    x = torch.eye(2, dtype=torch.float64)
    return lc.Objective(model, F.mse_loss, (x, torch.tensor([[1.0], [2.0]]).double()))


def test_plane_has_its_points_where_it_says():
    objective = bowl()
    d1, d2 = torch.eye(2, dtype=torch.float64)
    plane = lc.plane(objective, d1, d2, span=3.0, points=7)
    np.testing.assert_array_equal(plane.x, [-3, -2, -1, 0, 1, 2, 3])
    np.testing.assert_array_equal(plane.y, plane.x)
    expected = (plane.x[None, :] ** 2 + plane.y[:, None] ** 2) / 2
    np.testing.assert_allclose(plane.loss, expected, atol=1e-15)
    shifted = lc.plane(objective, d1, d2, points=3, theta=objective.theta + d1)
    np.testing.assert_allclose(shifted.loss[1], [0, 0.5, 2], atol=1e-15)


def test_rows_are_the_second_direction_and_columns_the_first():
    objective = bowl()
    plane = lc.plane(
        objective,
        torch.tensor([1.0, 0.0]).double(),
        torch.tensor([0.0, 2.0]).double(),
        points=3,
    )
    np.testing.assert_allclose(plane.loss[1], [0.5, 0, 0.5])
    np.testing.assert_allclose(plane.loss[:, 1], [2, 0, 2])


@pytest.mark.parametrize("points", [3, 7, 51, 101])
@pytest.mark.parametrize("span", [1.0, 0.3, 1e-3])
def test_lines_end_at_the_span_and_pass_through_theta_exactly(points, span):
    objective = bowl()
    line = lc.line(objective, torch.tensor([1.0, 0.0]).double(), span=span, points=points)
    assert line.x[0] == -span
    assert line.x[-1] == span
    assert line.x[points // 2] == 0
    assert line.loss[points // 2] == float(objective.loss())
    np.testing.assert_allclose(line.loss, line.x**2 / 2, atol=1e-15)


def test_accuracy_comes_with_labels_and_only_with_them():
    model = lc.MLP((4,), 3, width=5)
    labelled = lc.Objective(model, F.cross_entropy, (torch.randn(9, 4), torch.arange(9) % 3))
    d1, d2 = lc.random_directions(labelled, 2)
    plane = lc.plane(labelled, d1, d2, points=3)
    assert plane.accuracy.shape == plane.loss.shape == (3, 3)
    assert plane.accuracy[1, 1] == float(labelled.accuracy())
    assert lc.line(bowl(), torch.ones(2).double(), points=3).accuracy is None


def test_filter_normalized_directions_have_the_norm_of_each_filter():
    model = lc.SmallCNN((1, 8, 8), 10, width=4, batchnorm=True)
    data = torch.randn(6, 1, 8, 8), torch.arange(6)
    objective = lc.Objective(model, F.cross_entropy, data)
    parts = objective.space.unflatten(lc.random_directions(objective, 1)[0])
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            assert parts[name].norm() == 0  # biases and BatchNorm, once and for all
        else:
            expected = weight.detach().flatten(1).norm(dim=1)
            torch.testing.assert_close(parts[name].flatten(1).norm(dim=1), expected)


def test_layer_normalized_directions_have_the_norm_of_each_layer():
    model = lc.MLP((4,), 3, width=5)
    objective = lc.Objective(model, F.cross_entropy, (torch.randn(6, 4), torch.arange(6) % 3))
    parts = objective.space.unflatten(lc.random_directions(objective, 1, normalize="layer")[0])
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            torch.testing.assert_close(parts[name].norm(), weight.detach().norm())


def test_directions_are_centred_gaussian_and_repeat_with_their_seed():
    model = nn.Linear(200, 50)
    objective = lc.Objective(model, F.cross_entropy, (torch.randn(3, 200), torch.arange(3)))
    d1, d2 = lc.random_directions(objective, 2, normalize="none", seed=3)
    assert abs(float(d1.mean())) < 0.05
    assert abs(float(d1.std()) - 1) < 0.05
    assert abs(float(d1 @ d2) / len(d1)) < 0.05
    assert torch.equal(lc.random_directions(objective, 2, normalize="none", seed=3)[1], d2)


def test_filter_normalized_slices_do_not_see_a_rescaling_of_relu_layers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False))
    data = torch.randn(23, 4, dtype=torch.float64), torch.arange(23) % 3
    objective = lc.Objective(model.double(), F.cross_entropy, data)
    scale = torch.cat([torch.full((24,), 4.0), torch.full((18,), 0.25)]).double()

    def slices(theta, normalize):
        direction = lc.random_directions(objective, 1, normalize=normalize, theta=theta)[0]
        return lc.line(objective, direction, theta=theta, points=9).loss

    moved = objective.theta * scale
    np.testing.assert_allclose(slices(moved, "filter"), slices(objective.theta, "filter"))
    raw = slices(moved, "none") - slices(objective.theta, "none")
    assert np.abs(raw).max() > 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o, d: lc.plane(o, d, 2 * d), "must not be parallel"),
        (lambda o, d: lc.plane(o, d, 0 * d), "d2 must be finite and not zero"),
        (
            lambda o, d: lc.plane(o, d[:1], d),
            r"d1 must be a tensor of shape \(2,\), got \(1,\)",
        ),
        (lambda o, d: lc.line(o, d * torch.nan), "direction must be finite"),
        (lambda o, d: lc.line(o, d, span=0), "span must be positive and finite, got 0"),
        (
            lambda o, d: lc.line(o, d, points=1),
            "points must be a whole number of at least 2, got 1",
        ),
        (lambda o, d: lc.random_directions(o, 0), "count must be at least 1, got 0"),
        (lambda o, d: lc.random_directions(o, normalize="l2"), "normalize must be one of"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(bowl(), torch.ones(2, dtype=torch.float64))


def test_axes_of_their_own_length(objective):
    d1, d2 = lc.random_directions(objective, 2)
    found = lc.plane(objective, d1, d2, span=(-1, 2), span_y=0.5, points=4, points_y=3)
    assert list(found.x) == [-1, 0, 1, 2]
    assert list(found.y) == [-0.5, 0, 0.5]
    assert found.loss.shape == found.accuracy.shape == (3, 4)
    at = objective.theta + 2 * d1 + 0.5 * d2
    assert found.loss[2, 3] == pytest.approx(float(objective.loss(at)), rel=1e-12)
    along = lc.line(objective, d1, span=(0, 3), points=4)
    assert list(along.x) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"span must be \(low, high\) with low < high"):
        lc.line(objective, d1, span=(1, 1))


def test_a_stopped_plane_goes_on_where_it_was(objective, tmp_path, monkeypatch):
    d1, d2 = lc.random_directions(objective, 2)
    whole = lc.plane(objective, d1, d2, points=5)
    store, calls = tmp_path / "plane.npz", []
    honest = lc.Objective.loss_and_accuracy

    def stopping(self, theta, forward):
        calls.append(theta)
        if len(calls) == 15:  # in the third row; two calls have compared copy and objective
            raise KeyboardInterrupt
        return honest(self, theta, forward)

    monkeypatch.setattr(lc.Objective, "loss_and_accuracy", stopping)
    with pytest.raises(KeyboardInterrupt):
        lc.plane(objective, d1, d2, points=5, store=store)
    again = lc.plane(objective, d1, d2, points=5, store=store)
    assert len(calls) == 15 + 2 + 15
    assert np.array_equal(again.loss, whole.loss)
    assert np.array_equal(again.accuracy, whole.accuracy)
    assert list(tmp_path.iterdir()) == [store]
    with pytest.raises(ValueError, match="store must belong to this plane"):
        lc.plane(objective, d2, d1, points=5, store=store)
    store.write_bytes(b"something else")
    with pytest.raises(ValueError, match="is damaged"):
        lc.plane(objective, d1, d2, points=5, store=store)


def test_curvature_comes_with_the_picture_in_the_units_of_its_axes(objective):
    d1, d2 = lc.random_directions(objective, 2)
    found = lc.plane(objective, d1, d2, points=3, curvature=True)
    H = lc.Hessian(objective).dense()
    D = torch.stack([d1, d2])
    np.testing.assert_allclose(found.curvature, (D @ H @ D.T).numpy(), rtol=1e-5)
    along = lc.line(objective, d1, points=3, curvature=True)
    assert along.curvature == pytest.approx(found.curvature[0, 0], rel=1e-6)
    assert lc.plane(objective, d1, d2, points=3).curvature is None
    fine = lc.line(bowl(), torch.tensor([2.0, 0.0]).double(), points=3, curvature=True)
    assert fine.curvature == pytest.approx(4)  # a step is two long: the bowl's 1, squared


def test_half_precision_is_close_and_says_so_in_the_store(objective, tmp_path):
    d1, d2 = lc.random_directions(objective, 2)
    with pytest.raises(ValueError, match="'bf16' needs weights in float32, got Objective"):
        lc.plane(objective, d1, d2, points=3, precision="bf16")
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    objective = lc.Objective(model, F.cross_entropy, (x, torch.arange(30) % 4))
    d1, d2 = lc.random_directions(objective, 2)
    whole = lc.plane(objective, d1, d2, points=3)
    half = lc.plane(objective, d1, d2, points=3, precision="bf16", store=tmp_path / "p.npz")
    assert not np.array_equal(half.loss, whole.loss)
    np.testing.assert_allclose(half.loss, whole.loss, rtol=0.03)
    with pytest.raises(ValueError, match="store must belong to this plane"):
        lc.plane(objective, d1, d2, points=3, store=tmp_path / "p.npz")
    with pytest.raises(ValueError, match="precision must be 'model' or 'bf16', got 'half'"):
        lc.plane(objective, d1, d2, points=3, precision="half")


class Captured(torch.nn.Module):
    """Its weights are reached through a closure, a hook and a cache too."""

    def __init__(self, how):
        super().__init__()
        self.layer = torch.nn.Linear(3, 4)
        self.scale = torch.nn.Parameter(torch.ones(4))
        if how == "closure":
            self.call = lambda x: self.layer(x) * self.scale
        elif how == "hook":
            self.layer.register_forward_hook(lambda m, i, o: o * self.scale)
            self.call = None
        else:
            self.call, self.cached = self._by_cache, None

    def _by_cache(self, x):
        key = self.layer.weight._version
        if self.cached is None or self.cached[0] != key:
            self.cached = key, (self.layer.weight * self.scale[:, None]).detach()
        return x @ self.cached[1].T + self.layer.bias

    def forward(self, x):
        return self.layer(x) if self.call is None else self.call(x)


class Counting(torch.nn.Module):
    """Writes into a buffer at every pass, and its outputs depend on it."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 4)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x):
        self.passes += 1
        return self.layer(x) * self.passes


class Shared(torch.nn.Module):
    """A part that refuses to be copied."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 4)

    def __deepcopy__(self, memo):
        return self

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize(
    "make",
    [lambda: Captured("closure"), lambda: Captured("hook"), Counting, Shared,
     lambda: torch.nn.Sequential(Shared(), torch.nn.Tanh())],
    ids=["closure", "hook", "counting", "shared", "shared part"],
)  # fmt: skip
def test_slices_are_the_losses_of_the_objective_for_odd_modules_too(make):
    torch.manual_seed(0)
    model = make()
    x = torch.randn(20, 3)
    objective = lc.Objective(model, F.cross_entropy, (x, torch.arange(20) % 4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    d1, d2 = lc.random_directions(objective, 2, normalize="none")
    found = lc.plane(objective, d1, d2, points=3)
    for i, b in enumerate(found.y.tolist()):
        for j, a in enumerate(found.x.tolist()):
            expected = float(objective.loss(objective.theta + b * d2 + a * d1))
            assert found.loss[i, j] == pytest.approx(expected, rel=1e-5)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.requires_grad for p in model.parameters())


def test_a_store_belongs_to_its_data(objective, tmp_path):
    d1, d2 = lc.random_directions(objective, 2)
    lc.plane(objective, d1, d2, points=3, store=tmp_path / "new" / "plane.npz")
    other = lc.Objective(objective.model, objective.criterion, next(objective.batches())[:2])
    half = lc.Objective(
        objective.model, objective.criterion, tuple(t[:7] for t in next(other.batches()))
    )
    with pytest.raises(ValueError, match="store must belong to this plane"):
        lc.plane(half, d1, d2, points=3, store=tmp_path / "new" / "plane.npz")


def test_half_precision_works_on_a_fresh_objective():
    x, y = torch.randn(30, 3), torch.arange(30) % 4
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    objective = lc.Objective(model, F.cross_entropy, (x, y))
    (d,) = lc.random_directions(objective, 1)
    assert np.isfinite(lc.line(objective, d, points=3, precision="bf16").loss).all()


def test_a_refused_store_names_what_differs(objective, tmp_path):
    d1, d2 = lc.random_directions(objective, 2)
    file = tmp_path / "plane.npz"
    lc.plane(objective, d1, d2, points=3, store=file)
    x, y = next(objective.batches())
    other = lc.Objective(objective.model, objective.criterion, (x + 1, y))
    moved = objective.theta + d1
    for call, named in (
        (lambda: lc.plane(other, d1, d2, points=3, store=file), "data, criterion or BatchNorm"),
        (lambda: lc.plane(objective, d2, d1, points=3, store=file), "directions: name"),
        (lambda: lc.plane(objective, d1, d2, points=5, store=file), "spans or points: name"),
        (lambda: lc.plane(objective, d1, d2, points=3, theta=moved, store=file), "theta: name"),
    ):
        with pytest.raises(ValueError, match=f"holds one of other {named}"):
            call()
    single = lc.Objective(nn.Linear(4, 3), F.cross_entropy, (x.float(), y))
    d1, d2 = lc.random_directions(single, 2)
    lc.plane(single, d1, d2, points=3, store=tmp_path / "single.npz")
    with pytest.raises(ValueError, match="of other precision: name another file"):
        lc.plane(single, d1, d2, points=3, store=tmp_path / "single.npz", precision="bf16")


def test_a_store_without_the_names_of_its_parts_goes_on(objective, tmp_path):
    d1, d2 = lc.random_directions(objective, 2)
    whole = lc.plane(objective, d1, d2, points=3, store=tmp_path / "plane.npz")
    with np.load(tmp_path / "plane.npz") as saved:
        kept = {name: saved[name] for name in saved.files if name != "parts"}
    np.savez(tmp_path / "plane.npz", **kept | {"loss": kept["loss"] + 1})
    again = lc.plane(objective, d1, d2, points=3, store=tmp_path / "plane.npz")
    assert np.array_equal(again.loss, whole.loss + 1)
    with pytest.raises(ValueError, match="of other theta, directions, spans or points, data"):
        lc.plane(objective, d2, d1, points=3, store=tmp_path / "plane.npz")


def test_points_may_be_a_number_of_numpy(objective):
    (d,) = lc.random_directions(objective, 1)
    found = lc.line(objective, d, points=np.int64(3))
    assert np.array_equal(found.loss, lc.line(objective, d, points=3).loss)


def test_filters_of_transposed_convolutions_are_matched_by_output_channel():
    model = nn.Sequential(nn.ConvTranspose2d(2, 3, 2, bias=False), nn.Flatten())
    data = torch.randn(6, 2, 1, 1), torch.arange(6)
    objective = lc.Objective(model, F.cross_entropy, data)
    parts = objective.space.unflatten(lc.random_directions(objective, 1)[0])
    found, expected = (
        w.transpose(0, 1).flatten(1) for w in (parts["0.weight"], model[0].weight)
    )
    torch.testing.assert_close(found.norm(dim=1), expected.detach().norm(dim=1))


def test_a_store_belongs_to_its_data_behind_a_head_of_zeros(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    torch.nn.init.zeros_(model[2].weight)
    torch.nn.init.zeros_(model[2].bias)
    some, others = (
        lc.Objective(model, F.cross_entropy, (torch.randn(10, 3), torch.arange(10) % 2))
        for _ in range(2)
    )
    d1, d2 = lc.random_directions(some, normalize="none", seed=0)
    lc.plane(some, d1, d2, points=3, store=tmp_path / "plane.npz")
    with pytest.raises(ValueError, match="data, criterion or BatchNorm"):
        lc.plane(others, d1, d2, points=3, store=tmp_path / "plane.npz")
