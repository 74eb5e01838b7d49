"""Figures with sliders: what is shown at each position is what was measured there."""

import numpy as np
import pytest
import torch

import landscape_core as lc
from landscape_core.geometry.slices import Plane


def some_plane(height: float) -> Plane:
    x = np.linspace(-1, 1, 5)
    return Plane(x, x, height * (0.1 + x[:, None] ** 2 + x[None] ** 2), None)


@pytest.fixture
def planes():
    return {
        name: {f: some_plane(f * k) for f in (1, 3, 10)} for k, name in ((1, "a"), (2, "b"))
    }


def shown(figure, step):
    """The traces that a position of the slider leaves visible."""
    flags = step.args[0]["visible"]
    return [trace for trace, flag in zip(figure.data, flags, strict=True) if flag]


def test_each_position_shows_the_planes_of_its_value_side_by_side(planes):
    figure = lc.plot_contour_steps(planes, "factor").interactive
    (slider,) = figure.layout.sliders
    assert [step.label for step in slider.steps] == ["1", "3", "10"]
    assert [trace.visible for trace in figure.data] == list(slider.steps[0].args[0]["visible"])
    for step in slider.steps:
        left, right = shown(figure, step)
        for trace, name in ((left, "a"), (right, "b")):
            np.testing.assert_allclose(
                trace.customdata, planes[name][int(step.label)].loss, rtol=1e-6
            )
            np.testing.assert_allclose(10**trace.z, trace.customdata, rtol=1e-5)
        assert left.xaxis == "x"
        assert right.xaxis == "x2"
    low, high = {(t.zmin, t.zmax) for t in figure.data}.pop()
    assert 10**low == pytest.approx(0.1)
    assert 10**high == pytest.approx(2 * 10 * 2.1)


def test_a_still_shows_panels_by_row_and_values_by_column(planes):
    figure = lc.plot_contour_steps(planes, "factor").still
    titles = [axes.get_title() for axes in figure.axes[:6]]
    assert titles == ["factor 1", "factor 3", "factor 10"] * 2


def test_a_loss_that_is_not_positive_is_drawn_on_a_linear_scale():
    flat = {"a": {1: Plane(np.arange(3.0), np.arange(3.0), -np.ones((3, 3)), None)}}
    trace = lc.plot_contour_steps(flat, "factor").interactive.data[0]
    np.testing.assert_allclose(trace.z, -1)
    both = np.linspace(-2, 1, 9).reshape(3, 3)
    plane = Plane(np.arange(3.0), np.arange(3.0), both, None)
    trace = lc.plot_contour_steps({"a": {1: plane}}, "factor").interactive.data[0]
    np.testing.assert_allclose(trace.z, both, atol=1e-6)
    np.testing.assert_allclose(lc.plot_surface(plane).interactive.data[0].z, both, atol=1e-6)


@pytest.mark.parametrize(
    ("planes", "message"),
    [
        ({}, "there is nothing to draw"),
        ({"a": {}}, "there is nothing to draw"),
        ({"a": {1: some_plane(1)}, "b": {2: some_plane(1)}}, "must have the same values"),
    ],
)
def test_panels_that_do_not_fit_each_other_are_refused(planes, message):
    with pytest.raises(ValueError, match=message):
        lc.plot_contour_steps(planes, "factor")


def test_each_position_shows_its_curves_and_axes_hold_all_of_them():
    frames = {
        rate: {
            "curvature": {"top": ([0, 1], [rate, 2 * rate]), "edge": ([0, 1], [5, 5])},
            "loss": {"training": ([0, 1], [1, 0.5 / rate])},
        }
        for rate in (1, 2, 4)
    }
    picture = lc.plot_line_steps(frames, "rate", xlabel="step", log=["loss"])
    figure = picture.interactive
    for step in figure.layout.sliders[0].steps:
        top, edge, training = shown(figure, step)
        np.testing.assert_allclose(top.y, [int(step.label), 2 * int(step.label)])
        np.testing.assert_allclose(edge.y, 5)
        np.testing.assert_allclose(training.y, [1, 0.5 / int(step.label)])
        assert training.yaxis == "y2"
    assert figure.layout.yaxis2.type == "log"
    assert figure.layout.yaxis.range[0] < 1
    assert figure.layout.yaxis.range[1] > 8
    assert [axes.get_title() for axes in picture.still.axes[:3]] == [
        "rate 1",
        "rate 2",
        "rate 4",
    ]


def test_curves_without_values_are_refused():
    with pytest.raises(ValueError, match="nothing to draw"):
        lc.plot_line_steps({}, "rate", xlabel="step")
    frames = {1: {"loss": {"training": ([0], [float("nan")])}}}
    with pytest.raises(ValueError, match="no value of 'loss' can be shown"):
        lc.plot_line_steps(frames, "rate", xlabel="step")


@pytest.fixture
def walk():
    x, y = torch.randn(30, 2), torch.arange(30) % 3
    objective = lc.Objective(torch.nn.Linear(2, 3), torch.nn.functional.cross_entropy, (x, y))
    d1, d2 = lc.random_directions(objective, 2)
    plane = lc.plane(objective, d1, d2, points=5)
    line = lc.Segment(objective.theta, objective.theta + d1)
    profile = lc.path_profile(objective, line, 7)
    points = torch.stack([torch.linspace(0, 1, 7), torch.zeros(7)], dim=1)
    return plane, {"line": points}, {"line": profile}


def test_a_walk_moves_its_points_on_the_plane_and_in_both_graphs_together(walk):
    _, paths, profiles = walk
    figure = lc.plot_walk(*walk, marks={"here": (0.0, 0.0)}).interactive
    (slider,) = figure.layout.sliders
    profile = profiles["line"]
    assert slider.active == profile.loss.argmax()
    for i, step in enumerate(slider.steps):
        change, moving = step.args
        on_plane, loss, accuracy = zip(change["x"], change["y"], strict=True)
        assert on_plane == ([float(paths["line"][i, 0])], [0.0])
        assert loss == ([profile.t[i]], [profile.loss[i]])
        assert accuracy == ([profile.t[i]], [profile.accuracy[i]])
        assert change["text"][1] == [f"{profile.loss[i]:.3g}"]
        assert [len(figure.data[j].x) for j in moving] == [1, 1, 1]
        assert [figure.data[j].yaxis for j in moving] == ["y", "y2", "y3"]


def test_a_walk_without_accuracy_has_one_graph():
    x = torch.randn(30, 2)
    objective = lc.Objective(torch.nn.Linear(2, 1), torch.nn.functional.mse_loss, (x, x[:, :1]))
    d1, d2 = lc.random_directions(objective, 2, normalize="layer")
    d2 = torch.eye(3)[2]
    profile = lc.path_profile(objective, lc.Segment(objective.theta, objective.theta + d1), 4)
    plane = lc.plane(objective, d1, d2, points=3)
    picture = lc.plot_walk(plane, {"line": torch.zeros(4, 2)}, {"line": profile})
    assert len(picture.interactive.data) == 1 + 2 * 2
    assert picture.png().startswith(b"\x89PNG")


def test_a_walk_refuses_paths_that_are_not_those_of_the_profiles(walk):
    plane, paths, profiles = walk
    with pytest.raises(ValueError, match="must have the same names"):
        lc.plot_walk(plane, {"curve": paths["line"]}, profiles)
    with pytest.raises(ValueError, match="path 'line' must have 7 points"):
        lc.plot_walk(plane, {"line": paths["line"][:5]}, profiles)


def test_lines_are_drawn_with_their_errors_and_named_once():
    panels = {
        "rise": {"mean": ([1, 2], [1, 4], [0.1, 0.2]), "worst": ([1, 2], [3, 9])},
        "ratio": {"mean": ([1, 2], [1, 1])},
    }
    figure = lc.plot_lines(panels, xlabel="radius", logx=True, log=["rise"]).still
    left, right = figure.axes
    assert (left.get_xscale(), left.get_yscale(), right.get_yscale()) == (
        "log",
        "log",
        "linear",
    )
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["mean", "worst"]
    (_, _, (bars,)) = left.containers[0]
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    np.testing.assert_allclose(ends, [[1 - 0.196, 1 + 0.196], [4 - 0.392, 4 + 0.392]])


def test_lines_without_a_panel_are_refused():
    with pytest.raises(ValueError, match="nothing to draw"):
        lc.plot_lines({}, xlabel="x")


def settings(**more):
    return {
        width: lc.Setting(some_plane(k), [4.0 / k, -1.0, 9.0 / k], {"trace": f"{k}"})
        for k, width in ((1, 8), (2, 64))
    } | more


def test_each_position_shows_surface_spectrum_and_numbers_of_its_setting():
    figure = lc.plot_settings(settings(), "width").interactive
    (slider,) = figure.layout.sliders
    assert [step.label for step in slider.steps] == ["8", "64"]
    for k, step in zip((1, 2), slider.steps, strict=True):
        surface, spectrum, table = shown(figure, step)
        np.testing.assert_allclose(surface.customdata, some_plane(k).loss, rtol=1e-6)
        np.testing.assert_allclose(spectrum.y, [9 / k, 4 / k])  # ranked; negative ones left out
        assert table.cells["values"] == (["trace"], [f"{k}"])
    low, high = figure.layout.yaxis2.range
    assert 10**low < 2
    assert 10**high > 9


def test_settings_that_do_not_fit_each_other_are_refused():
    other = lc.Setting(some_plane(1), [1.0], {"loss": "1"})
    with pytest.raises(ValueError, match="all settings must have the same numbers"):
        lc.plot_settings(settings(other=other), "width")
    with pytest.raises(ValueError, match="name at least one setting"):
        lc.plot_settings({}, "width")
