"""Figures draw what they are given, and travel with a still."""

import base64
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import landscape_core as lc
from landscape_core.show.picture import PLOTLY_MIME
from landscape_core.show.surfaces import loss_ticks


@pytest.fixture(scope="module")
def results():
    data = lc.load("digits", subset=(200, 100))
    model = lc.MLP(data.input_shape, data.classes, width=8)
    history = lc.train(model, data, lc.TrainConfig(epochs=2), progress=False)
    objective = lc.Objective(model, F.cross_entropy, data.train)
    d1, d2 = lc.random_directions(objective, 2)
    return {
        "data": data,
        "history": history,
        "trace": (lc.trace(lc.Hessian(objective), 4), objective.n),
        "flatness": lc.flatness_profile(objective, [0.1, 1.0], directions=3),
        "path": lc.path_profile(objective, lc.Segment(objective.theta, objective.theta * 2), 5),
        "plane": lc.plane(objective, d1, d2, points=7),
    }


PICTURES = {
    "images": lambda r: lc.plot_images(r["data"].test, 15),
    "training": lambda r: lc.plot_training({"MLP": r["history"]}),
    "flatness": lambda r: lc.plot_flatness({"MLP": r["flatness"]}),
    "flatness and trace": lambda r: lc.plot_flatness({"a": r["flatness"]}, {"a": r["trace"]}),
    "paths": lambda r: lc.plot_paths({"MLP": r["path"]}),
    "contours": lambda r: lc.plot_contours({"a": r["plane"], "b": r["plane"]}),
    "linear contours": lambda r: lc.plot_contours({"a": r["plane"]}, log=False),
    "surface": lambda r: lc.plot_surface(r["plane"], marks={"here": (0, 0)}, ceiling=5.0),
}


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_shows_and_saves_itself(results, name, tmp_path):
    picture = PICTURES[name](results)
    bundle, _ = picture._repr_mimebundle_()
    kind, start = ("png", b"\x89PNG") if picture.interactive is None else ("jpeg", b"\xff\xd8")
    assert base64.b64decode(bundle[f"image/{kind}"]).startswith(start)
    # JupyterLab would show a PNG in the place of the live figure.
    assert not {"image/png", PLOTLY_MIME} <= set(bundle)
    saved = picture.save(tmp_path / "new", "figure")
    assert all(path.stat().st_size > 2000 for path in saved)
    assert (PLOTLY_MIME in bundle) is (picture.interactive is not None) is (len(saved) == 2)


def test_bands_and_stems_are_at_the_measured_values(results):
    axes = lc.plot_paths({"MLP": results["path"]}).still.axes
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), results["path"].loss)
    np.testing.assert_allclose(axes[1].lines[0].get_ydata(), results["path"].accuracy)
    edge = axes[0].collections[0].get_paths()[0].vertices[:, 1]
    top = results["path"].loss + 1.96 * results["path"].loss_stderr
    assert edge.max() == pytest.approx(top.max())
    means = [rise.value for rise in results["flatness"].rises]
    stems = lc.plot_flatness({"MLP": results["flatness"]}).still.axes[0]
    np.testing.assert_allclose(stems.lines[0].get_ydata(), means)
    segments = stems.containers[0].lines[2][0].get_segments()
    wanted = [rise.interval() for rise in results["flatness"].rises]  # Student's
    np.testing.assert_allclose([segment[:, 1] for segment in segments], wanted)


def test_rises_below_zero_and_without_a_number_are_drawn_or_left_out(results):
    profile = results["flatness"]
    for value in (-1e-3, math.inf, math.nan):
        samples = profile.samples.copy()
        samples[0] = value + (np.arange(samples[0].size) * 1e-6).reshape(samples[0].shape)
        bent = replace(profile, samples=samples)
        traces = {"MLP": (lc.Estimate(10.0, 0.5, 20), 100)}
        panels = lc.plot_flatness({"MLP": bent}, traces).still.axes
        assert all(np.isfinite(panels[0].get_ylim()))
        assert (panels[1].get_yscale() == "linear") == (value < 0)


@pytest.mark.parametrize(
    ("low", "high", "names"),
    [
        (0.02, 30, ["0.1", "1", "10"]),
        (1.1, 8, ["2", "5"]),
        (0.5, 5, ["0.5", "1", "2", "5"]),
        (2.1, 4.2, ["2.1", "2.5", "2.97", "3.53", "4.2"]),
    ],
)
def test_a_scale_of_losses_has_numbers_on_it(low, high, names):
    places, texts = loss_ticks(np.log10([low, high]))
    assert texts == names
    np.testing.assert_allclose(10.0 ** np.array(places), [float(x) for x in names], rtol=1e-2)


def test_surfaces_and_differences_leave_out_what_is_not_finite(results):
    plane = results["plane"]
    loss = plane.loss.copy()
    loss[0, 0], loss[0, 1] = np.nan, np.inf
    holes = replace(plane, loss=loss)
    drawn = lc.plot_surface(holes, marks={"here": (0, 0)})
    z = np.asarray(drawn.interactive.data[0].z, dtype=float)
    assert np.isnan(z[0, :2]).all()
    assert np.isfinite(z[1:]).all()
    lc.plot_difference({"a": plane, "b": holes}).png()
    with pytest.raises(ValueError, match="no loss on the plane is finite"):
        lc.plot_surface(replace(plane, loss=np.full_like(loss, np.nan)))


def test_the_interactive_surface_holds_the_plane(results):
    plane = results["plane"]
    picture = lc.plot_surface(plane, log=True)
    surface = picture.interactive.data[0]
    np.testing.assert_allclose(surface.z, np.log10(plane.loss), rtol=1e-6)
    np.testing.assert_allclose(np.asarray(surface.customdata)[..., 0], plane.loss, rtol=1e-6)
    json.dumps(picture._repr_mimebundle_()[0])


def test_summary_table_writes_errors_and_dashes():
    table = lc.summary_table(
        {
            "a": {"trace": lc.Estimate(41.28, 0.21, 8), "n": 12345, "done": True},
            "b": {"trace": 0.25},
        }
    )
    assert table.loc["trace"].tolist() == ["41.3 ± 0.2", "0.25"]
    assert table.loc["n"].tolist() == ["12,345", "–"]
    assert table.loc["done", "a"] == "yes"


def test_bad_arguments_are_refused(results):
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        lc.plot_images(lc.Split(torch.zeros(1, 1, 2, 2), torch.zeros(1).long()), 0)


def test_a_picture_tells_its_axes_panels_and_colours_in_words():
    steps = np.linspace(-1.0, 1.0, 5)
    plane = lc.Plane(steps, steps, np.add.outer(steps**2, steps**2) + 1.0, None)
    flat = lc.plot_contours({"before": plane, "after": plane}, labels=("east", "north"))
    assert flat.alt == "before: north over east; after: east; colour: loss (nats)"
    data, metadata = flat._repr_mimebundle_()
    assert "image/png" in data
    assert metadata["image/png"]["alt"] == flat.alt
    surface = lc.plot_surface(plane)
    assert surface.alt.startswith("loss (nats) over direction 1 and direction 2")
    assert surface.keep_colours


def test_marks_on_a_surface_have_their_names_at_the_heads_of_their_pins(results):
    picture = lc.plot_surface(results["plane"], marks={"here": (0, 0), "there": (0.5, 0.5)})
    scene, pins = picture.interactive.layout.scene, picture.interactive.data[1:]
    assert [name.text for name in scene.annotations] == ["here", "there"]
    for name, pin in zip(scene.annotations, pins, strict=True):
        assert (name.x, name.y, name.z) == (pin.x[1], pin.y[1], pin.z[1])
        assert pin.z[1] > pin.z[0]
    assert {"here", "there"} <= {text.get_text() for text in picture.still.axes[0].texts}
