"""The ledger: numbers from records, verdicts from rules, and neither from anywhere else."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import landscape_core as lc
from landscape_core.experiments import records
from landscape_core.experiments.store import REFERENCE, Store
from landscape_core.show.counterexamples import COUNTEREXAMPLES, refutation
from landscape_core.show.ledger import CLAIMS, contradiction, verdict
from landscape_core.show.measures import MEASURES

CLAIMED = yaml.safe_load(CLAIMS.read_text())
MEASURED = [claim for claim in CLAIMED if "measure" in claim]


def fake(weight: float, seed: int, dataset: str = "digits", examples: int = 10) -> dict:
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=20)
    history = pd.DataFrame({"test_accuracy": 0.5 + (1 + weight) * 0.01 * noise})
    history["epoch"] = range(1, 21)
    return {
        "accuracy": 0.5 + weight + 0.01 * seed,
        "trace": 8.0 / (1 + weight),
        "history": history,
        "path": np.array([seed, -seed, 0]),
    }


def epochs(weight: float, seed: int, epochs: int, dataset: str, examples: int) -> dict:
    return fake(weight, seed)


@pytest.fixture
def reference(tmp_path):
    study = lc.Study("study", epochs, tmp_path)
    runs = lc.grid(weight=[0.0, 1.0], seed=range(6), epochs=20, dataset="digits", examples=10)
    study.run(runs, progress=False)
    return tmp_path


def entry(**more):
    told = {
        "claim": "It helps.",
        "source": "a study",
        "explanation": "So.",
        "chapter": "a.html",
    }
    return told | more


def one(tmp_path, reference, **more):
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump([entry(**more)]))
    return lc.ledger(path, reference).entries[0]


@pytest.mark.parametrize(
    ("rule", "interval", "wanted"),
    [
        ({"above": 0}, (0.2, 0.1, 0.3), "reproduced"),
        ({"above": 0}, (0.2, -0.1, 0.5), "partly"),
        ({"above": 0}, (-0.2, -0.5, 0.1), "not reproduced"),
        ({"below": 1}, (0.5, 0.4, 0.6), "reproduced"),
        ({"below": 1}, (0.5, 0.1, 1.6), "partly"),
        ({"below": 1}, (1.5, 1.1, 1.6), "not reproduced"),
        ({"between": [2, 3]}, (2.5, 2.2, 2.8), "reproduced"),
        ({"between": [2, 3]}, (2.9, 2.6, 3.2), "partly"),
        ({"between": [2, 3]}, (9.0, 2.9, 15.1), "partly"),
        ({"between": [2, 3]}, (5.9, 5.8, 6.0), "partly"),
        ({"between": [2, 3]}, (6.1, 6.0, 6.2), "not reproduced"),
        ({"between": [2, 3]}, (0.9, 0.8, 0.95), "not reproduced"),
        ({"between": [0.8, 0.9], "near": 0.05}, (0.76, 0.75, 0.77), "partly"),
        ({"between": [0.8, 0.9], "near": 0.05}, (0.74, 0.73, 0.75), "not reproduced"),
        ({"above": 0}, (0.2, math.nan, math.nan), "partly"),
        ({"between": [2, 3]}, (2.5, math.nan, math.nan), "partly"),
        ({"below": 0}, (0.2, math.nan, math.nan), "not reproduced"),
        ({"above": 0}, (math.nan, math.nan, math.nan), "not yet measured"),
    ],
)
def test_verdicts_follow_from_the_rule(rule, interval, wanted):
    assert verdict(lc.Interval(*interval, n=5), rule) == wanted


def test_measures_are_what_pandas_says_of_the_records(reference, tmp_path):
    store = Store(reference / "study")
    table = store.table()
    high, low = ({"weight": w} for w in (1.0, 0.0))
    found = MEASURES["difference"](store, "accuracy", high, low)
    assert found.value == pytest.approx(1.0)
    assert found.n == 6
    gap = MEASURES["difference"](store, "accuracy", high, low, minus="trace")
    assert gap.value == pytest.approx(1.0 + 4.0)
    assert MEASURES["mean"](store, "accuracy", high).value == pytest.approx(
        table.query("weight == 1").accuracy.mean()
    )
    assert MEASURES["ratio"](store, "trace", high, low).value == pytest.approx(0.5)
    best = MEASURES["gain"](store, "accuracy", "weight", {"weight": [0.0, 1.0]}, low)
    assert best.value == pytest.approx(1.0)
    calm = MEASURES["unrest"](store, "test_accuracy", high, low)
    assert calm.value == pytest.approx(4.0)
    last = MEASURES["final"](store, "test_accuracy", low)
    ends = [r.tables["history"].test_accuracy.iloc[-1] for r in store.find(weight=0.0)]
    assert last.value == pytest.approx(np.mean(ends))
    assert last.n == 6
    rank = MEASURES["rank_correlation"](store, "trace", "accuracy", {})
    assert rank.value == pytest.approx(lc.correlation(table.trace, table.accuracy).value)
    of_gap = MEASURES["rank_correlation"](store, "trace", "accuracy", {}, minus="trace")
    assert of_gap.value == pytest.approx(
        lc.correlation(table.trace, table.accuracy - table.trace).value
    )


def test_measures_of_histories_are_what_pandas_says_of_them(reference):
    store = Store(reference / "study")
    high, low = ({"weight": w} for w in (1.0, 0.0))
    tables = {r.parameters["seed"]: r.tables["history"] for r in store.find(**low)}
    best = MEASURES["highest"](store, "test_accuracy", low)
    assert best.value == pytest.approx(
        np.mean([each.test_accuracy.max() for each in tables.values()])
    )
    third = MEASURES["difference_at"](store, "test_accuracy", 3, high, low)
    wanted = np.mean([each.set_index("epoch").test_accuracy[3] for each in tables.values()])
    assert third.value == pytest.approx(wanted - 0.5)  # noise of twice the size, less itself
    assert third.n == 6
    least = MEASURES["lowest"](store, "path", high)
    assert least.value == pytest.approx(-2.5)


def test_a_seed_that_counts_twice_is_refused(reference, tmp_path):
    study = lc.Study("study", epochs, reference)
    study.run(lc.grid(weight=1.0, seed=3, epochs=21, dataset="digits", examples=10))
    where, base = {"weight": 1.0}, {"weight": 0.0}
    for measure in (
        {"of": "mean", "column": "accuracy", "where": where},
        {"of": "ratio", "column": "trace", "where": where, "base": base},
        {"of": "difference", "column": "trace", "where": base, "base": where},
        {"of": "unrest", "column": "test_accuracy", "where": where, "base": base},
    ):
        with pytest.raises(ValueError, match=r"one run to a seed, got several of \[3\]"):
            one(tmp_path, reference, measure=measure | {"store": "study"}, rule={"above": 0})


def test_pairs_are_of_one_seed_in_histories_too(tmp_path):
    study = lc.Study("study", epochs, tmp_path)
    same = {"epochs": 20, "dataset": "digits", "examples": 10}
    runs = lc.grid(weight=1.0, seed=[0, 1, 2], **same)
    study.run(runs + lc.grid(weight=0.0, seed=[1, 2, 3], **same), progress=False)
    calm = MEASURES["unrest"](study, "test_accuracy", {"weight": 1.0}, {"weight": 0.0})
    assert calm.n == 2
    assert (calm.value, calm.low, calm.high) == pytest.approx((4.0, 4.0, 4.0))


def test_the_exponent_of_a_power_law_is_found(tmp_path):
    def cost(size):
        return {"took": 3e-7 * size**1.5}

    study = lc.Study("costs", cost, tmp_path)
    study.run(lc.grid(size=[10, 100, 1000, 3000]), progress=False)
    found = MEASURES["exponent"](study, "size", "took", {})
    assert found.value == pytest.approx(1.5)
    assert found.high - found.low < 1e-6


def test_a_changed_record_changes_the_page(reference, tmp_path):
    measure = {"of": "mean", "store": "study", "column": "accuracy", "where": {"weight": 1.0}}
    told = {"measure": measure, "rule": {"between": [1.5, 1.6]}}
    before = one(tmp_path, reference, **told)
    assert before.verdict == "reproduced"
    path = next(p for p in (reference / "study").glob("*.npz")
                if records.read(p).parameters["weight"] == 1.0)  # fmt: skip
    record = records.read(path)
    record.scalars["accuracy"] = 30.0
    records.write(record, path)
    after = one(tmp_path, reference, **told)
    assert after.measured.value == pytest.approx(
        before.measured.value + (30 - 1.5) / 6, abs=0.02
    )
    assert after.verdict == "partly"  # one of six lies far off, and with it half the interval


def test_runs_that_ended_early_are_not_measured(reference, tmp_path):
    path = next((reference / "study").glob("*.npz"))
    record = records.read(path)
    records.write(replace(record, status="diverged", message="nan"), path)
    where = {"weight": record.parameters["weight"]}
    for measure in (
        {"of": "mean", "column": "accuracy"},
        {"of": "final", "column": "test_accuracy"},
    ):
        told = measure | {"store": "study", "where": where}
        with pytest.raises(ValueError, match="must be done, got some that diverged"):
            one(tmp_path, reference, measure=told, rule={"above": 0})


def test_ratios_are_of_positive_numbers(reference, tmp_path):
    path = next(p for p in (reference / "study").glob("*.npz")
                if records.read(p).parameters["weight"] == 1.0)  # fmt: skip
    record = records.read(path)
    record.scalars["accuracy"] = -0.5
    records.write(record, path)
    sides = {"where": {"weight": 1.0}, "base": {"weight": 0.0}}
    measure = {"of": "ratio", "store": "study", "column": "accuracy", **sides}
    with pytest.raises(ValueError, match=r"ratios are of positive numbers, got -0\.5"):
        one(tmp_path, reference, measure=measure, rule={"above": 0})


def test_the_machines_of_both_sides_of_a_comparison_are_told(reference, tmp_path):
    for path in (reference / "study").glob("*.npz"):
        record = records.read(path)
        record.provenance["processor"] = f"processor {record.parameters['weight']:g}"
        records.write(record, path)
    sides = {"where": {"weight": 1.0}, "base": {"weight": 0.0}}
    measure = {"of": "difference", "store": "study", "column": "accuracy", **sides}
    scale = one(tmp_path, reference, measure=measure, rule={"above": 0}).scale
    assert scale.startswith("digits, 10 training images, 20 epochs, processor 0 ")
    assert "and processor 1 " in scale


def test_what_was_not_run_yet_says_so(reference, tmp_path):
    measure = {"of": "mean", "store": "later", "column": "a", "where": {}}
    found = one(tmp_path, reference, rule={"above": 0}, measure=measure)
    assert found.verdict == "not yet measured"
    some = {"of": "mean", "store": "study", "column": "accuracy", "where": {"weight": 7.0}}
    found = one(tmp_path, reference, rule={"above": 0}, measure=some)
    assert found.verdict == "not yet measured"
    assert "nan" not in lc.Ledger([found])._repr_html_()


def test_contradictions_are_computed_from_the_claims_own_numbers(reference, tmp_path):
    told = {"quotient": [0.0717, 0.00129], "stated": 18}
    found = one(tmp_path, reference, inconsistent=told)
    assert found.verdict == "not well posed"
    assert "55.6" in found.rule
    assert "from 2 points is 1 or -1" in contradiction({"points": 2})
    with pytest.raises(ValueError, match="there is no contradiction"):
        contradiction({"quotient": [36, 2], "stated": 18})
    with pytest.raises(ValueError, match="3 points do not determine"):
        contradiction({"points": 3})


@pytest.mark.parametrize("name", COUNTEREXAMPLES)
def test_a_counterexample_refutes_what_the_theory_says_it_does(name):
    smaller, larger, what = COUNTEREXAMPLES[name]()
    if name == "trace_and_noise":
        assert (smaller, larger) == (1.0, 0.0)
    elif name == "depth_and_conditioning":
        assert (smaller, larger) == (9.0, 1.0)
    else:  # an error costs the scale, a right answer nothing
        torch.manual_seed(1)
        twice = COUNTEREXAMPLES[name](scale=20.0)
        assert twice[0] == pytest.approx(2 * smaller, rel=1e-3)
        assert twice[1] == pytest.approx(math.sqrt(math.log(2 * 2000 / 0.05) / 300), rel=1e-3)
        assert smaller > 10 * larger
    assert what in refutation(name)


def test_what_refutes_nothing_is_no_refutation(reference, tmp_path, monkeypatch):
    monkeypatch.setitem(COUNTEREXAMPLES, "none", lambda: (1.0, 1.0, "one"))
    with pytest.raises(ValueError, match=r"'It helps\.': none refutes nothing: 1 is at most 1"):
        one(tmp_path, reference, refuted_by="none")
    with pytest.raises(ValueError, match=r"counterexample must be one of .*, got 'nothing'"):
        one(tmp_path, reference, refuted_by="nothing")
    found = one(tmp_path, reference, refuted_by="depth_and_conditioning")
    assert found.verdict == "not reproduced"
    assert "is 9, and said to be at most 1" in found.rule


def test_a_rule_that_came_late_says_so(reference, tmp_path):
    measure = {"of": "mean", "store": "study", "column": "accuracy", "where": {"weight": 1.0}}
    told = {"measure": measure, "rule": {"above": 0}}
    assert "when the records were there" not in one(tmp_path, reference, **told).rule
    assert one(tmp_path, reference, late=True, **told).rule.endswith(
        "written down when the records were there"
    )


def test_the_images_that_were_measured_are_told_where_they_matter(tmp_path):
    def of_some(seed, measured, clip):
        return {"lambda_max": 1.0 + seed, "lambda_max_all": 1.0, "test_loss": 2.0}

    study = lc.Study("study", of_some, tmp_path)
    study.run(lc.grid(seed=range(6), measured=1000, clip=[0.0, 2.0]), progress=False)

    def scale(column, clip=0.0):
        measure = {"of": "mean", "store": "study", "column": column, "where": {"clip": clip}}
        return one(tmp_path, tmp_path, measure=measure, rule={"above": 0}).scale

    assert "measured on 1,000 images" in scale("lambda_max")
    assert "measured" not in scale("lambda_max_all") + scale("test_loss")
    assert "gradients not clipped" in scale("test_loss")
    assert "gradients clipped at a norm of 2.0" in scale("test_loss", 2.0)


def test_a_wrong_file_is_named(reference, tmp_path):
    measure = {"of": "median", "store": "study", "column": "accuracy", "where": {}}
    with pytest.raises(ValueError, match=r"'It helps.': measure must be one of mean, final"):
        one(tmp_path, reference, measure=measure, rule={"above": 0})
    with pytest.raises(ValueError, match="a rule must be one of above, below, between"):
        verdict(lc.Interval(1, 0, 2, 5), {"equals": 1})
    for rule in ({"above": 1, "near": 0.1}, {"above": 1, "below": 2}, {"near": 0.1}):
        with pytest.raises(ValueError, match="a rule must be one of"):
            verdict(lc.Interval(1, 0, 2, 5), rule)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"rule": "above 1"}, "a rule must be a mapping such as above: 0, got 'above 1'"),
        ({"rule": {"between": [1]}}, "the rule between must have two numbers"),
        ({"rule": {"above": "x"}}, "the rule above must have one number"),
        ({"rule": {"below": [1]}}, "the rule below must have one number"),
        ({"source": None, "rule": None}, "a rule must be a mapping"),
    ],
)
def test_what_is_wrong_with_an_entry_is_said_with_its_claim(reference, tmp_path, changed, told):
    measure = {"of": "mean", "store": "study", "column": "accuracy", "where": {}}
    with pytest.raises(ValueError, match=rf"'It helps\.': {told}"):
        one(tmp_path, reference, **{"measure": measure} | changed)


def test_a_missing_part_of_an_entry_is_named(reference, tmp_path):
    with pytest.raises(ValueError, match=r"'It helps\.': 'rule' is missing"):
        one(tmp_path, reference, measure={"of": "mean", "store": "study"})


def test_a_factor_of_two_is_one_on_either_side_of_zero():
    single = lc.Interval(-1.9, math.nan, math.nan, 1)
    assert verdict(single, {"between": [-4, -2]}) == "partly"
    assert verdict(single, {"between": [-40, -20]}) == "not reproduced"
    assert verdict(lc.Interval(-7, math.nan, math.nan, 1), {"between": [-4, -2]}) == "partly"


@pytest.fixture(scope="module")
def shipped():
    return lc.ledger()


@pytest.fixture(scope="module")
def recomputed(tmp_path_factory):
    """The ledger of copies of the records, which were written in another order."""
    reference = tmp_path_factory.mktemp("reference")
    for path in sorted(REFERENCE.glob("*/*.npz"), reverse=True):
        copy = reference / path.parent.name
        copy.mkdir(exist_ok=True)
        shutil.copy(path, copy)
    return lc.ledger(CLAIMS, reference)


@pytest.mark.parametrize("claim", MEASURED, ids=lambda claim: claim["claim"])
def test_every_number_of_the_ledger_comes_from_the_shipped_records(claim, shipped, recomputed):
    first, again = (
        next(entry for entry in each.entries if entry.claim == claim["claim"])
        for each in (shipped, recomputed)
    )
    np.testing.assert_equal(vars(again.measured), vars(first.measured))
    assert again.verdict == first.verdict


def test_without_records_nothing_is_measured(tmp_path):
    verdicts = {entry.claim: entry.verdict for entry in lc.ledger(CLAIMS, tmp_path).entries}
    assert {verdicts[claim["claim"]] for claim in MEASURED} == {"not yet measured"}


def test_the_page_says_all_of_it(shipped):
    found = shipped
    page = found._repr_html_()
    sources = list(dict.fromkeys(claim["source"] for claim in CLAIMED))
    assert page.count("<h2>") == len(sources)
    assert page.count('class="lc-claim"') == len(CLAIMED) == len(found.table())
    assert sum(found.counts().values()) == len(CLAIMED)
    for claim in CLAIMED:
        assert claim["claim"].replace("'", "&#x27;").split(">")[0][:40] in page
