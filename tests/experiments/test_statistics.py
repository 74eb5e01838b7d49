"""Statistics of tables: against simulation, and honest where there is too little."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import landscape_core as lc

REPEATS = 1000


def test_intervals_of_a_mean_cover_it():
    rng = np.random.default_rng(0)
    samples = rng.normal(3.0, 2.0, (REPEATS, 5))
    found = [lc.mean_interval(row) for row in samples]
    assert 0.93 <= np.mean([i.low <= 3 <= i.high for i in found]) <= 0.97
    assert found[0].value == pytest.approx(samples[0].mean())


@pytest.mark.parametrize(("pairs", "trials"), [(5, 2000), (20, 2000), (50, 300)])
def test_intervals_of_paired_differences_cover_and_are_narrower_than_unpaired(pairs, trials):
    rng, covered, narrower = np.random.default_rng(1), [], []
    for _ in range(trials):
        seeds = rng.normal(0, 5, pairs)
        a, b = seeds + rng.normal(1, 1, pairs), seeds
        found = lc.paired_difference(a, b, resamples=500)
        covered.append(found.low <= 1 <= found.high)
        assert pairs < 20 or found.high - found.low < 2
        alone = lc.mean_interval(a)
        narrower.append((found.high - found.low) / (alone.high - alone.low))
    assert np.mean(narrower) < 0.5
    assert abs(np.mean(covered) - 0.95) < 4 * np.sqrt(0.95 * 0.05 / trials)


@pytest.mark.parametrize("method", ["pearson", "spearman", "kendall"])
def test_intervals_of_correlations_cover(method):
    rng, rho, covered = np.random.default_rng(2), 0.6, []
    truth = {
        "pearson": rho,
        "spearman": 6 / math.pi * math.asin(rho / 2),
        "kendall": 2 / math.pi * math.asin(rho),
    }[method]
    for _ in range(REPEATS):
        x = rng.normal(size=30)
        y = rho * x + math.sqrt(1 - rho**2) * rng.normal(size=30)
        found = lc.correlation(x, y, method)
        covered.append(found.low <= truth <= found.high)
    assert 0.92 <= np.mean(covered) <= 0.98


def test_small_samples_are_said_out_loud():
    assert "no interval" in str(lc.correlation([1, 2], [2, 1]))
    assert "two points always give 1 or -1" in str(lc.correlation([1, 2], [2, 1]))
    assert lc.correlation([1, 2, 3], [1, 2, 4]).note == "too few pairs for an interval"
    assert lc.mean_interval([1.0]).note == "one sample has no spread"
    assert math.isnan(lc.mean_interval([1.0]).low)
    assert "does not vary" in lc.correlation([1, 1, 1], [1, 2, 3]).note
    assert lc.mean_interval([1.0, 1.1, 0.9, 1.0, 1.2]).note == ""


def test_zero_is_excluded_where_it_is():
    assert lc.mean_interval([1.0, 1.1, 0.9]).excludes_zero
    assert not lc.mean_interval([1.0, -1.1, 0.9]).excludes_zero
    assert not lc.mean_interval([1.0]).excludes_zero


def test_many_comparisons_are_corrected():
    rng = np.random.default_rng(3)
    table = pd.DataFrame(rng.normal(size=(25, 12)), columns=list("abcdefghijkl"))
    table["good"] = table["a"] + 0.1 * rng.normal(size=25)
    table.loc[0, "b"] = np.nan
    found = lc.correlations(table, list("abcdefghijkl"), ["good"]).set_index("x")
    assert found["p_holm"].min() == found.loc["a", "p_holm"] < 1e-6
    assert (found["p_holm"] >= found["p"]).all()
    assert found.loc["b", "n"] == 24
    assert (found.drop("a")["p_holm"] > 0.05).all()


def test_groups_are_summarized():
    table = pd.DataFrame({"width": [8, 8, 16, 16], "seed": [0, 1, 0, 1], "loss": [1, 3, 5, 5]})
    found = lc.summarize(table, "width", ["loss"])
    assert found.loc[8, "loss"].value == 2
    assert found.loc[16, "n"] == 2
    assert found.loc[16, "note"] == "an interval from 2 samples is very uncertain"
    table.loc[:1, "loss"] = math.nan
    gaps = lc.summarize(table, "width", ["loss"])
    assert math.isnan(gaps.loc[8, "loss"].value)
    assert gaps.loc[8, "loss"].n == 0
    both = lc.summarize(table, ["width", "seed"], ["loss"])
    assert both.loc[(16, 1), "loss"].value == 5


def test_an_interval_ends_where_no_sample_can_be():
    shares = [0.9, 1.0, 0.98]
    free, cut = lc.mean_interval(shares), lc.mean_interval(shares, limits=(0, 1))
    assert free.high > 1
    assert (cut.value, cut.low, cut.high) == (free.value, free.low, 1)
    with pytest.raises(ValueError, match=r"values must lie within \(0, 1\), got 0.9 to 1.2"):
        lc.mean_interval([0.9, 1.2], limits=(0, 1))
    table = pd.DataFrame({"width": [8] * 3, "test_accuracy": shares, "loss": shares})
    found = lc.summarize(table, "width", {"accuracy": "test_accuracy", "loss": "loss"})
    assert found.loc[8, "accuracy"].high == 1
    assert found.loc[8, "loss"].high == free.high
    cents = lc.summarize(table * 100, "width", ["test_accuracy"])
    assert cents["test_accuracy"].iloc[0].high == pytest.approx(100 * free.high)


def test_columns_go_under_the_names_that_a_dict_gives_them():
    table = pd.DataFrame({"width": [8, 8, 16, 16], "seed": [0, 1, 0, 1], "loss": [1, 3, 5, 5]})
    for found, means in [
        (lc.summarize(table, "width", {"loss (nats)": "loss"}), {8: 2, 16: 5}),
        (lc.compare_groups(table, "width", 8, {"loss (nats)": "loss"}), {16: 3}),
    ]:
        assert list(found)[:2] == ["n", "loss (nats)"]
        assert {key: row.value for key, row in found["loss (nats)"].items()} == means
    with pytest.raises(ValueError, match="the table has no column 'lass'"):
        lc.summarize(table, "width", {"loss": "lass"})
    with pytest.raises(ValueError, match="must not be named n or note"):
        lc.summarize(table, "width", {"note": "loss"})


def test_groups_of_none_are_groups_and_n_counts_what_is_there():
    table = pd.DataFrame({"clip": [None, None, 0.1, 0.1], "loss": [1.0, 2.0, 3.0, math.nan]})
    found = lc.summarize(table, "clip", "loss")
    assert sorted(found["n"]) == [2, 2]
    assert found.loc[0.1, "note"] == "one sample has no spread"
    with pytest.raises(ValueError, match="the table has no column 'lr', only clip, loss"):
        lc.summarize(table, "lr", ["loss"])
    with pytest.raises(ValueError, match="must not be named n or note"):
        lc.summarize(table.assign(n=1), "clip", ["n"])


@pytest.mark.parametrize("n", [3, 4, 5, 8, 9, 10])
def test_the_p_value_of_equal_ranks_is_that_of_one_permutation_and_its_reverse(n):
    table = pd.DataFrame({"w": np.arange(n), "e": np.arange(n) ** 2.0})
    found = lc.correlations(table, ["w"], ["e"])
    assert found["p"][0] == pytest.approx(2 / math.factorial(n))
    assert math.isnan(found["low"][0])


@pytest.mark.parametrize("method", ["pearson", "spearman", "kendall"])
@pytest.mark.parametrize("ties", [False, True])
def test_p_values_of_few_rows_are_those_of_all_permutations(method, ties):
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 6))
    if ties:
        a[0], b[1] = a[1], b[4]
    measure = {
        "pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau
    }[method]  # fmt: skip
    wanted = stats.permutation_test(
        (a,), lambda x: abs(measure(x, b).statistic), permutation_type="pairings",
        alternative="greater", n_resamples=math.inf,
    ).pvalue  # fmt: skip
    found = lc.correlations(pd.DataFrame({"a": a, "b": b}), "a", "b", method=method)
    assert found["p"][0] == pytest.approx(wanted)


def test_odd_columns_cost_no_other_pair():
    table = pd.DataFrame({"a": range(9), "b": [math.nan] * 9, "c": [math.inf, *range(8)]})
    found = lc.correlations(table, ["a", "b", "c"], ["a", "b", "c"]).set_index(["x", "y"])
    assert len(found) == 6
    assert found.loc[("a", "b"), "note"] == "no row has both values"
    assert found.loc[("a", "c"), "n"] == 8
    with pytest.raises(ValueError, match="columns 'a' and 'd' must hold numbers"):
        lc.correlations(table.assign(d="x"), "a", "d")


def test_series_are_paired_by_their_index_or_not_at_all():
    a = pd.Series([1.0, 2, 3, 4, 5, 6])
    with pytest.raises(ValueError, match="need the same index, in the same order"):
        lc.paired_difference(a, a[::-1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lc.mean_interval([1, 2], 95), "level must lie between 0 and 1, got 95"),
        (lambda: lc.mean_interval([]), "values must be a list of at least one number"),
        (lambda: lc.mean_interval([1.0, math.nan]), "values must be finite, got nan"),
        (lambda: lc.paired_difference([1, 2], [1]), "as many of one as of the other, got 2, 1"),
        (lambda: lc.correlation([1, 2], [1]), "as many of one as of the other, got 2, 1"),
        (lambda: lc.correlation([1, 2], [1, 2], "rank"), "method must be one of 'pearson'"),
    ],
)
def test_bad_samples_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_runs_are_compared_number_by_number():
    first = pd.DataFrame(
        {"key": ["a", "b"], "x": [1.0, 2.0], "y": [3, 4], "seconds": [1.0, 2.0]}
    )
    second = pd.DataFrame(
        {"key": ["b", "c"], "x": [2.5, 2.0], "y": [4, 4], "seconds": [9.0, 2.0]}
    )
    found = lc.compare_runs(first, second)
    assert found.index.tolist() == ["b"]
    assert found.loc["b"].tolist() == [2, 1, pytest.approx(0.2)]
    assert lc.compare_runs(first, first)["different"].tolist() == [0, 0]


def test_a_number_that_is_lost_is_a_difference():
    def table(x, y=1.0):
        return pd.DataFrame({"key": ["a"], "x": [x], "y": [y]})

    for one, other in [(math.nan, 3.0), (3.0, math.nan), (math.inf, 1.0)]:
        found = lc.compare_runs(table(one), table(other, 2.0)).loc["a"]
        assert (found["different"], found["largest"]) == (2, math.inf)
    same = lc.compare_runs(table(math.nan), table(math.nan)).loc["a"]
    assert (same["different"], same["largest"]) == (0, 0.0)


def test_a_run_that_gave_nothing_differs_from_one_that_did():
    done = {"key": "a", "lr": 0.1, "status": "done", "loss": 1.5, "flat": True}
    lost = {"key": "a", "lr": 0.1, "status": "failed", "message": "x"}
    there = pd.DataFrame([done])
    for here in (pd.DataFrame([lost]), pd.DataFrame([lost, {"key": "b", "loss": 1.0}])):
        for tables in ((here, there), (there, here)):
            found = lc.compare_runs(*tables).loc["a"]
            assert found.tolist() == [3, 3, math.inf]  # loss, flat, and the status
    missing = pd.DataFrame([done | {"loss": None}])
    assert lc.compare_runs(missing, there).loc["a"].tolist() == [3, 1, math.inf]
    assert lc.compare_runs(there, missing).loc["a"].tolist() == [3, 1, math.inf]
    turned = pd.DataFrame([done | {"flat": False}])
    assert lc.compare_runs(turned, there).loc["a"].tolist() == [3, 1, 1.0]
    slower = pd.DataFrame([done | {"training_seconds": 3.0}])
    assert lc.compare_runs(slower, there).loc["a"].tolist() == [3, 0, 0.0]


def test_runs_that_cannot_be_told_apart_are_not_compared():
    once = pd.DataFrame({"key": ["a", "b"], "x": [1.0, 2.0]})
    twice = pd.DataFrame({"key": ["a", "a"], "x": [1.0, 2.0]})
    for tables in ((once, twice), (twice, once)):
        with pytest.raises(ValueError, match="a key of its own, got 'a' twice"):
            lc.compare_runs(*tables)


def test_groups_of_none_are_groups_with_several_keys_too():
    table = pd.DataFrame(
        {"clip": [None, None, 0.1, 0.1], "width": [8] * 4, "loss": [1.0, 2.0, 3.0, 4.0]}
    )
    found = lc.summarize(table, ["clip", "width"], "loss")
    assert found.index.names == ["clip", "width"]
    assert sorted(each.value for each in found.loss) == [1.5, 3.5]
    assert found.n.tolist() == [2, 2]


def test_a_column_that_cannot_be_averaged_is_named_with_its_group():
    table = pd.DataFrame(
        {"lr": [1, 1, 2], "loss": [1.0, math.inf, 2.0], "kind": ["a", "b", "c"]}
    )
    with pytest.raises(ValueError, match="'loss' of lr = 1: values must be finite"):
        lc.summarize(table, "lr", ["loss"])
    with pytest.raises(ValueError, match="'kind' of lr = 1"):
        lc.summarize(table, "lr", ["kind"])


def test_groups_of_none_are_compared():
    table = pd.DataFrame(
        {"clip": [None, None, 0.1, 0.1], "seed": [0, 1, 0, 1], "loss": [1.0, 2.0, 4.0, 6.0]}
    )
    assert lc.compare_groups(table, "clip", 0.1, ["loss"]).loss.iloc[0].value == -3.5
    for none in (None, math.nan):
        assert lc.compare_groups(table, "clip", none, ["loss"]).loss[0.1].value == 3.5
    for name in ("n", "note"):
        with pytest.raises(ValueError, match="must not be named n or note"):
            lc.compare_groups(table, "clip", 0.1, {name: "loss"})


def test_a_pair_of_columns_that_is_there_both_ways_is_one():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(12, 3)), columns=list("abc"))
    table["d"] = table.a > 0
    once = lc.correlations(table, ["a", "b"], ["c", "d"])
    both = lc.correlations(table, list("abcd"), list("abcd")).set_index(["x", "y"])
    assert len(both) == 12
    assert both.loc[("a", "d"), "p"] == once.p[1]  # of a column of True and False
    six = lc.holm([both.loc[tuple(pair), "p"] for pair in ("ab", "ac", "ad", "bc", "bd", "cd")])
    for pair, corrected in zip(("ab", "ac", "ad", "bc", "bd", "cd"), six, strict=True):
        assert (
            both.loc[tuple(pair), "p_holm"]
            == both.loc[tuple(pair)[::-1], "p_holm"]
            == corrected
        )


@pytest.mark.parametrize("level", [0, 1, 95, -0.1])
def test_levels_lie_between_0_and_1(level):
    x, y = [1.0, 2.0, 3.0, 4.0, 5.0] * 12, [2.0, 1.0, 4.0, 3.0, 5.0] * 12
    for call in (lc.correlation, lc.paired_difference):
        with pytest.raises(ValueError, match=f"level must lie between 0 and 1, got {level}"):
            call(x, y, level=level)


def test_groups_are_compared_over_pairs_of_one_seed():
    rng = np.random.default_rng(0)
    base, change = rng.normal(size=6), rng.normal(size=6)
    table = pd.DataFrame(
        {
            "lr": [0.1] * 6 + [0.2] * 6 + [0.3] * 2,
            "seed": [*range(6), *reversed(range(6)), 1, 9],
            "loss": [*base, *(base + change)[::-1], 5.0, 6.0],
        }
    )
    found = lc.compare_groups(table, "lr", 0.1, ["loss"])
    assert found.index.tolist() == [0.2, 0.3]
    assert found.n.tolist() == [6, 1]
    assert found.loc[0.2, "loss"] == lc.paired_difference(base + change, base)
    assert found.loc[0.3, "loss"].value == pytest.approx(5.0 - base[1])
    assert found.note.tolist() == ["", "one sample has no spread"]
    with pytest.raises(ValueError, match=r"base must be a value of lr, one of 0\.1, 0\.2"):
        lc.compare_groups(table, "lr", 1.0, ["loss"])
    holes = table.assign(gap=table.loss.where(~((table.lr == 0.2) & (table.seed == 3))))
    found = lc.compare_groups(holes, "lr", 0.1, ["loss", "gap"])
    rest = [0, 1, 2, 4, 5]
    expected = lc.paired_difference((base + change)[rest], base[rest])
    assert found.loc[0.2, "gap"].value == pytest.approx(expected.value)
    assert found.loc[0.2, "gap"].n == 5
    assert found.loc[0.2, "loss"].n == found.loc[0.2, "n"] == 6
    twice = pd.concat([table, table.head(1)])
    with pytest.raises(ValueError, match="seed must differ within a group, but lr"):
        lc.compare_groups(twice, "lr", 0.1, ["loss"])


@pytest.mark.parametrize("by", ["width", ["width", "lr"]])
def test_of_no_runs_there_are_no_groups(by):
    nothing = pd.DataFrame({"width": [], "lr": [], "loss": []})
    found = lc.summarize(nothing, by=by, columns=["loss"])
    assert found.empty
    assert list(found.index.names) == ([by] if isinstance(by, str) else by)
