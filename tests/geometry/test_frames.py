"""Planes through points: the points lie where their coordinates say."""

import pytest
import torch

import landscape_core as lc


def place(frame, row):
    return (
        frame.centre
        + frame.coordinates[row, 0] * frame.d1
        + frame.coordinates[row, 1] * frame.d2
    )


def test_three_points_lie_on_their_plane():
    thetas = torch.randn(3, 50, dtype=torch.float64)
    frame = lc.frame_through(*thetas)
    for row, theta in enumerate(thetas):
        torch.testing.assert_close(place(frame, row), theta)
    assert float(frame.residuals.max()) < 1e-10
    assert float(frame.coordinates[1, 1]) == pytest.approx(0, abs=1e-12)
    assert float(frame.d1 @ frame.d2) == pytest.approx(0, abs=1e-12)
    assert float(frame.explained.sum()) == pytest.approx(1)


def test_a_trajectory_in_a_plane_is_found_again():
    axes, _ = torch.linalg.qr(torch.randn(30, 2, dtype=torch.float64))
    steps = torch.randn(12, 2, dtype=torch.float64) * torch.tensor([5.0, 1.0]).double()
    thetas = steps @ axes.T + 3
    frame = lc.frame_of_trajectory(thetas)
    assert float(frame.residuals.max()) < 1e-9
    assert float(frame.explained.sum()) == pytest.approx(1)
    assert torch.equal(frame.centre, thetas[-1])
    for row in range(12):
        torch.testing.assert_close(place(frame, row), thetas[row])


def test_what_a_plane_misses_is_told():
    rng = torch.Generator().manual_seed(0)
    thetas = torch.randn(20, 40, generator=rng, dtype=torch.float64).cumsum(0)
    frame = lc.frame_of_trajectory(list(thetas))
    for row in range(20):
        missed = float((place(frame, row) - thetas[row]).norm())
        assert missed == pytest.approx(float(frame.residuals[row]), abs=1e-9)
    variance = (thetas - thetas[-1]).square().sum()
    left = frame.residuals.square().sum() / variance
    assert float(frame.explained.sum() + left) == pytest.approx(1)
    singular = torch.linalg.svdvals(thetas - thetas[-1])
    torch.testing.assert_close(frame.explained, singular[:2].square() / variance)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lc.frame_of_trajectory(torch.eye(2)), "at least three points, got 2"),
        (lambda: lc.frame_of_trajectory([torch.zeros(2)] * 2 + [torch.zeros(3)]), "one length"),
        (lambda: lc.frame_through(*torch.arange(9.0).view(3, 3)), "do not lie on one line"),
        (lambda: lc.frame_of_trajectory(torch.arange(12.0).view(4, 3)), "lie on one line"),
        (lambda: lc.frame_of_trajectory(torch.full((4, 3), torch.nan)), "must be finite"),
    ],
)
def test_bad_points_get_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_points_are_projected_to_their_coordinates():
    points = torch.randn(4, 6, dtype=torch.float64)
    frame = lc.frame_through(*points[:3])
    torch.testing.assert_close(frame.project(points[:3]), frame.coordinates)
    on_plane = frame.centre + 2 * frame.d1 - 3 * frame.d2
    torch.testing.assert_close(frame.project(on_plane), torch.tensor([2.0, -3.0]).double())
    across = torch.linalg.qr(torch.stack([frame.d1, frame.d2, points[3]], dim=1))[0][:, 2]
    torch.testing.assert_close(frame.project(on_plane + across), frame.project(on_plane))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step", [1e-3, 1.0])
def test_a_line_is_known_by_its_rounding(dtype, step):
    rng = torch.Generator().manual_seed(0)
    start, way, across = torch.randn(3, 1000, generator=rng, dtype=dtype)
    points = [start + t * step * way for t in range(6)]
    with pytest.raises(ValueError, match="do not lie on one line"):
        lc.frame_through(points[0], points[1], points[3])
    with pytest.raises(ValueError, match="the points lie on one line"):
        lc.frame_of_trajectory(points)
    bent = points[3] + 1e-2 * step * across  # no rounding: a plane
    assert float(lc.frame_through(points[0], points[1], bent).residuals.max()) < 1e-4
    frame = lc.frame_of_trajectory([*points, bent])
    assert abs(float(frame.d2 @ way / way.norm())) < 0.05


def test_a_centre_is_checked_and_leaves_its_graph():
    points = torch.randn(4, 30)
    centre = torch.randn(30, requires_grad=True)
    frame = lc.frame_of_trajectory(points, centre)
    assert not frame.d1.requires_grad
    assert not frame.centre.requires_grad
    torch.testing.assert_close(frame.project(centre.detach()), torch.zeros(2))
    with pytest.raises(ValueError, match=r"centre must be .* of shape \(30,\), got \(1,\)"):
        lc.frame_of_trajectory(points, torch.zeros(1))
    with pytest.raises(ValueError, match="centre must be finite, got nan or inf"):
        lc.frame_of_trajectory(points, torch.full((30,), torch.inf))
    with pytest.raises(ValueError, match="do not lie on one line"):
        lc.frame_through(points[0], points[0], points[1])
