"""Pictures of spectra: what is drawn was measured, and the slider shows one step at a time."""

import base64
import json
import math

import numpy as np
import pytest
import torch

import landscape_core as lc
from landscape_core.show.picture import PLOTLY_MIME
from landscape_core.show.spectra import BLUR

VALUES = torch.cat([torch.zeros(45), torch.linspace(1, 5, 5)]).double()


@pytest.fixture(scope="module")
def densities():
    A = lc.Matrix(torch.diag(VALUES))
    return {steps: lc.spectral_density(A, steps, 4) for steps in (1, 2, 3, 4, 6)}


def test_density_is_drawn_at_its_values_with_its_band(densities):
    density = densities[6]
    picture = lc.plot_density({"a": density, "b": densities[2]}, marks={"a": VALUES[-5:]})
    axes = picture.still.axes[0]
    x = axes.lines[0].get_xdata()
    low, high = density.support
    expected = density.smooth(x, (high - low) / BLUR)
    seen = expected > axes.get_ylim()[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata()[seen], expected[seen])
    edge = axes.collections[0].get_paths()[0].vertices[:, 1].max()
    assert edge == pytest.approx(density.band(x, (high - low) / BLUR)[1].max())
    np.testing.assert_allclose(axes.lines[1].get_xdata(), VALUES[-5:])
    assert axes.get_yscale() == "log"


def test_density_can_be_drawn_on_a_linear_axis(densities):
    axes = lc.plot_density({"a": densities[6]}, log=False).still.axes[0]
    assert axes.get_yscale() == "linear"
    assert axes.lines[0].get_ydata().min() < 1e-6


def test_density_of_one_probe_is_drawn_without_a_band():
    density = lc.spectral_density(lc.Matrix(torch.diag(VALUES)), 6, 1)
    assert lc.plot_density({"a": density}).png().startswith(b"\x89PNG")


def test_every_step_of_the_slider_shows_its_own_curve_and_says_so(densities):
    picture = lc.plot_density_steps(densities, marks=VALUES[-5:])
    figure = picture.interactive
    slider = figure.layout.sliders[0]
    assert [step.label for step in slider.steps] == ["1", "2", "3", "4", "6"]
    assert slider.active == 4
    last = densities[6]
    low, high = last.support
    for step in slider.steps:
        shown = [
            t for t, seen in zip(figure.data, step.args[0]["visible"], strict=True) if seen
        ]
        band, curve, ticks = shown
        steps = int(step.label)
        assert curve.name == f"density, {steps} step{'s' if steps > 1 else ''}"
        x = np.asarray(curve.x, dtype=float)
        expected = densities[steps].smooth(x, (high - low) / BLUR)
        seen = expected > 10 * min(curve.y)
        np.testing.assert_allclose(np.asarray(curve.y)[seen], expected[seen], rtol=1e-3)
        assert len(band.x) == 2 * len(x)
        np.testing.assert_allclose(ticks.x, VALUES[-5:])
    assert [t.visible for t in figure.data[:-1]] == [False] * 8 + [True] * 2


def test_slider_travels_as_plain_json_with_a_still(densities, tmp_path):
    picture = lc.plot_density_steps(densities)
    bundle, _ = picture._repr_mimebundle_()
    json.dumps(bundle)
    assert len(bundle[PLOTLY_MIME]["layout"]["sliders"][0]["steps"]) == len(densities)
    assert base64.b64decode(bundle["image/jpeg"]).startswith(b"\xff\xd8")
    assert {path.suffix for path in picture.save(tmp_path, "steps")} == {".png", ".html"}


def test_convergence_draws_the_median_and_the_middle_runs():
    errors = np.geomspace(1, 1e-4, 22).reshape(2, 11)
    axes = lc.plot_convergence({"a": ([10, 100], errors)}).still.axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), np.median(errors, axis=1))
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(np.quantile(errors[0], 0.9))
    assert band.min() == pytest.approx(np.quantile(errors[1], 0.1))


def test_convergence_counts_errors_of_zero_and_runs_that_failed():
    nan = math.nan
    errors = [
        [0.1, 0.1, 0.1],
        [0.0, 0.2, 0.4],
        [0.0, 0.0, 0.4],
        [0.2, 0.3, nan],
        [0.2, nan, nan],
    ]
    axes = lc.plot_convergence({"a": (range(1, 6), errors)}).still.axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.1, 0.2, nan, 0.3, nan])


def test_contours_take_arrows_from_the_centre():
    objective = lc.Objective(
        torch.nn.Linear(2, 1, bias=False),
        torch.nn.functional.mse_loss,
        (torch.randn(9, 2), torch.randn(9, 1)),
    )
    plane = lc.plane(objective, *torch.eye(2), points=5)
    axes = lc.plot_contours({"": plane}, arrows={"floor": (1.0, -0.5)}).still.axes[0]
    arrows = [text for text in axes.texts if text.arrow_patch is not None]
    assert [(text.xy, text.xyann) for text in arrows] == [((1.0, -0.5), (0, 0))]
    assert "floor" in [text.get_text() for text in axes.texts]
    walk = np.array([[1.0, 1.0], [0.5, 0.2], [0.0, 0.0]])
    axes = lc.plot_contours({"run": plane}, tracks={"run": walk}).still.axes[0]
    assert any(np.array_equal(line.get_xydata(), walk) for line in axes.lines)
    assert [text.get_text() for text in axes.texts] == ["start", "end"]
