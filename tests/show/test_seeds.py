"""Figures of studies show every run, the mean, and its interval."""

from itertools import pairwise

import matplotlib.colors as mcolors
import numpy as np
import pandas as pd
import pytest

import landscape_core as lc
from landscape_core.show.style import COLOURS


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    rows = [
        {"width": w, "seed": s, "lr": lr, "trace": 100 / w + rng.normal(), "loss": 1.0 / w}
        for w in (8, 64)
        for lr in (0.1, 0.2)
        for s in range(4)
    ]
    return pd.DataFrame(rows)


def bars(axes):
    """Means and ends of the intervals, as they are drawn."""
    (container,) = axes.containers
    x, y = container.lines[0].get_data()
    segments = container.lines[2][0].get_segments()
    ends = np.array([s[:, 1] for s in segments], dtype=float)
    return np.asarray(x), np.asarray(y, dtype=float), ends


def test_groups_show_every_run_and_the_interval_of_the_mean(table):
    picture = lc.plot_groups(table[table.lr == 0.1], {"trace": "trace"}, x="width", logx=True)
    (axes,) = picture.still.axes
    points = axes.collections[0].get_offsets()
    assert len(points) == 8
    _, means, ends = bars(axes)
    wanted = lc.mean_interval(table.query("width == 8 and lr == 0.1")["trace"])
    assert means[0] == pytest.approx(wanted.value)
    assert ends[0] == pytest.approx([wanted.low, wanted.high])
    assert [t.get_text() for t in axes.get_xticklabels()] == ["8", "64"]


def test_a_logarithmic_axis_has_the_interval_of_the_logarithms(table):
    rows = table[table.lr == 0.1]
    picture = lc.plot_groups(rows, {"trace": "trace"}, x="width", log=["trace"])
    _, means, ends = bars(picture.still.axes[0])
    wanted = lc.mean_interval(np.log(rows.query("width == 8")["trace"]))
    assert means[0] == pytest.approx(np.exp(wanted.value))
    assert ends[0] == pytest.approx(np.exp([wanted.low, wanted.high]))
    zero = rows.assign(trace=rows["trace"].where(rows.seed > 0, 0.0))
    picture = lc.plot_groups(zero, {"trace": "trace"}, x="width", log=["trace"])
    _, means, _ = bars(picture.still.axes[0])
    assert means[0] == pytest.approx(zero.query("width == 8")["trace"].mean())


def test_second_names_stand_beside_each_other_and_in_the_legend(table):
    picture = lc.plot_groups(table, {"trace": "trace"}, x="width", by="lr")
    (legend,) = picture.still.legends
    assert [t.get_text() for t in legend.get_texts()] == ["0.1", "0.2"]
    first, second = (c.lines[0].get_xdata() for c in picture.still.axes[0].containers)
    assert all(a < b for a, b in zip(first, second, strict=True))


def test_long_names_stand_beside_rows(table):
    named = table.assign(run=table.width.map("a network of width {}".format))
    picture = lc.plot_groups(named, {"trace": "trace", "loss": "loss"}, x="run", log=["loss"])
    left, right = picture.still.axes
    assert [t.get_text() for t in left.get_yticklabels()] == [
        "a network of width 8", "a network of width 64"
    ]  # fmt: skip
    assert right.get_xscale() == "log"
    assert left.get_xlabel() == "trace"


@pytest.mark.parametrize("names", [("8", "16", "32"), ("64", "256", "512", "1024", "4096")])
@pytest.mark.parametrize("panels", [1, 2, 3])
def test_names_below_an_axis_do_not_run_into_each_other(names, panels):
    rows = pd.DataFrame({"width": names, "trace": range(len(names))})
    columns = {f"trace {i}": "trace" for i in range(panels)}
    figure = lc.plot_groups(rows, columns, x="width").still
    figure.canvas.draw()
    askew = {axes.xaxis.get_ticklabels()[0].get_rotation() for axes in figure.axes}
    assert askew == ({45} if len(names) == 5 and panels == 3 else {0})
    if askew == {0}:
        assert stand_apart(figure)


@pytest.mark.parametrize("panels", [1, 2, 3])
@pytest.mark.parametrize(
    "values", [(0.001, 0.1, 0.12), (0.001, 0.0012, 0.1), (128, 192, 1024, 4096), (1, 10, 100)]
)
def test_numbers_below_a_logarithmic_axis_do_not_run_into_each_other(values, panels):
    rows = pd.DataFrame({"weight": values, "trace": range(len(values))})
    columns = {f"trace {i}": "trace" for i in range(panels)}
    figure = lc.plot_groups(rows, columns, x="weight", logx=True).still
    figure.canvas.draw()
    askew = {axes.xaxis.get_ticklabels()[0].get_rotation() for axes in figure.axes}
    assert askew == {45} or stand_apart(figure)
    assert values != (1, 10, 100) or askew == {0}


def stand_apart(figure):
    """Whether no name below an axis touches the next."""
    return all(
        a.get_window_extent().x1 < b.get_window_extent().x0
        for axes in figure.axes
        for a, b in pairwise(axes.xaxis.get_ticklabels())
    )


def test_no_interval_is_drawn_from_two_runs(table):
    two = table[(table.lr == 0.1) & (table.seed < 2)]
    _, means, ends = bars(lc.plot_groups(two, {"trace": "trace"}, x="width").still.axes[0])
    np.testing.assert_allclose(ends, np.stack([means, means], axis=1))


def test_epochs_have_bands_of_the_interval(table):
    histories = pd.concat(
        [table.assign(epoch=e, loss=table.loss / e + 0.01 * table.seed) for e in (1, 2)]
    )
    picture = lc.plot_epochs(histories, {"loss": "loss", "trace": "trace"}, by="width")
    axes = picture.still.axes[0]
    x, y = axes.lines[0].get_data()
    part = histories.query("width == 8 and epoch == 2").loss
    assert list(x) == [1, 2]
    assert y[1] == pytest.approx(part.mean())
    band = axes.collections[0].get_paths()[0].vertices
    interval = lc.mean_interval(part)
    assert band[:, 1].max() >= interval.high - 1e-12
    assert mcolors.to_hex(axes.lines[0].get_color()) == COLOURS[0]


def test_a_scatter_says_the_correlation_and_its_number_of_runs(table):
    picture = lc.plot_scatter(table, {"trace": "trace"}, y=("loss", "loss"), by="lr")
    (axes,) = picture.still.axes
    found = lc.correlation(table["trace"], table["loss"])
    assert axes.get_title() == (
        f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}], n = 16"
    )
    assert sum(len(c.get_offsets()) for c in axes.collections) == 16


def test_runs_of_one_cell_count_once_in_the_correlation_of_a_scatter(table):
    twice = pd.concat([table, table.assign(seed=table.seed + 100)])
    columns = {"panels": {"trace": "trace"}, "y": ("loss", "loss")}
    whole = lc.plot_scatter(twice, **columns, cells=["width", "lr"]).still.axes[0]
    means = table.groupby(["width", "lr"])[["trace", "loss"]].mean()
    found = lc.correlation(means["trace"], means["loss"])
    assert whole.get_title().startswith(f"{found.value:.2f}")
    assert whole.get_title().endswith(f", {len(means)} means")
    with pytest.raises(ValueError, match="the table has no column 'depth'"):
        lc.plot_scatter(table, **columns, cells=["depth"])


@pytest.mark.parametrize("plot", [lc.plot_groups, lc.plot_epochs])
def test_columns_that_are_not_there_are_named(table, plot):
    options = {"x": "width"} if plot is lc.plot_groups else {"by": "width"}
    with pytest.raises(ValueError, match="the table has no column 'rank', only width, seed"):
        plot(table, {"rank": "rank"}, **options)
    with pytest.raises(ValueError, match="nothing to draw"):
        plot(table, {}, **options)


def plane(height):
    x = np.linspace(-1, 1, 5)
    return lc.Plane(x, x, height + x[:, None] ** 2 + x**2, None)


def test_the_difference_of_two_planes_is_the_second_minus_the_first():
    picture = lc.plot_difference({"base": plane(1.0), "other": plane(3.0)})
    third = picture.still.axes[2]
    shown = third.collections[0].get_array()
    np.testing.assert_allclose(np.asarray(shown).ravel(), 2.0)
    assert third.get_title() == "second minus first"


def test_planes_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="a baseline and another, got 1"):
        lc.plot_difference({"base": plane(1.0)})
    wider = lc.Plane(np.linspace(-2, 2, 5), np.linspace(-2, 2, 5), np.ones((5, 5)), None)
    with pytest.raises(ValueError, match="the same steps along both directions"):
        lc.plot_difference({"base": plane(1.0), "other": wider})


def test_a_misspelt_column_is_refused_without_runs_too():
    with pytest.raises(ValueError, match="the table has no column 'A'"):
        lc.plot_epochs(pd.DataFrame({"a": [], "b": []}), {"A": "A"}, by="b")


@pytest.mark.parametrize("empty", [pd.DataFrame(), pd.DataFrame({"a": [], "b": [], "c": []})])
def test_a_table_without_runs_gives_a_figure_that_says_so(empty):
    for picture in (
        lc.plot_epochs(empty, {"A": "a"}, by="b", epoch="c"),
        lc.plot_groups(empty, {"A": "a"}, x="b", by="c"),
        lc.plot_scatter(empty, {"A": "a"}, y=("B", "b"), by="c"),
    ):
        assert picture.still.axes[0].texts[0].get_text() == "no runs"


@pytest.mark.parametrize("decades", [0.4, 1.0, 1.5, 1.9, 3.0])
def test_numbers_below_narrow_logarithmic_panels_do_not_touch(decades):
    x = np.geomspace(0.008, 0.008 * 10**decades, 12)
    table = pd.DataFrame({"x": x, "y": x})
    figure = lc.plot_scatter(table, dict.fromkeys("abc", "x"), y=("loss", "y")).still
    figure.canvas.draw()
    for panel in figure.axes:
        low, high = panel.get_xlim()
        places = zip(panel.get_xticks(), panel.get_xticklabels(), strict=True)
        boxes = [t.get_window_extent() for at, t in places if low <= at <= high]
        assert len(boxes) >= 2
        assert all(a.x1 < b.x0 for a, b in pairwise(boxes))


def test_runs_without_a_setting_are_a_group_too(table):
    rows = table.assign(clip=table.lr.where(table.lr > 0.1))
    for picture in (
        lc.plot_groups(rows, {"trace": "trace"}, x="width", by="clip"),
        lc.plot_scatter(rows, {"trace": "trace"}, y=("loss", "loss"), by="clip"),
        lc.plot_epochs(rows.assign(epoch=1), {"trace": "trace"}, by="clip"),
    ):
        (legend,) = picture.still.legends
        assert [text.get_text() for text in legend.get_texts()] == ["none", "0.2"]
    with pytest.raises(ValueError, match="every row needs a value of 'clip', 8 have none"):
        lc.plot_groups(rows, {"trace": "trace"}, x="clip")


def test_runs_that_are_not_drawn_are_counted(table):
    lost = table.assign(trace=table.trace.where(table.seed > 0))
    axes = lc.plot_groups(lost, {"trace": "trace", "loss": "loss"}, x="width").still.axes
    assert axes[0].get_title() == "not finite, not drawn: 4 of 16"
    assert axes[1].get_title() == ""
    axes = lc.plot_scatter(lost, {"trace": "trace"}, y=("loss", "loss")).still.axes[0]
    assert axes.get_title().endswith("n = 12")
    nothing = table.assign(trace=np.nan)
    axes = lc.plot_scatter(nothing, {"trace": "trace"}, y=("loss", "loss")).still.axes[0]
    assert axes.get_title() == "no run has both"


def test_a_logarithmic_axis_of_names_takes_positive_numbers_and_shows_all(table):
    zero = table.assign(decay=table.width - 8.0)
    with pytest.raises(ValueError, match="needs positive values, got 0"):
        lc.plot_groups(zero, {"trace": "trace"}, x="decay", logx=True)
    long = table.assign(decay=table.seed.map({0: 0.00316228, 1: 0.01, 2: 0.1, 3: 1.0}))
    axes = lc.plot_groups(long, {"trace": "trace"}, x="decay", logx=True).still.axes[0]
    low, high = axes.get_ylim()
    assert all(low < place < high for place in axes.get_yticks())
