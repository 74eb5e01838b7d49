"""Studies: each run once, whatever happens; and every way a run can end."""

import errno
import importlib.util
import math
import multiprocessing
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from tqdm.auto import tqdm

import landscape_core as lc
from landscape_core.experiments import records
from landscape_core.experiments.code import code_hash
from landscape_core.experiments.records import DamagedRecordError, parameter_hash
from landscape_core.experiments.runs import Task, failed


def square(x: float, power: int = 2) -> dict:
    return {"y": x**power, "curve": np.arange(3) * x}


def results(table: pd.DataFrame) -> pd.DataFrame:
    """What must not depend on how a table came about."""
    return table.drop(columns=["seconds"], errors="ignore")


# --- parameters and records -------------------------------------------------------------------

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
PARAMETERS = st.dictionaries(st.text(min_size=1, max_size=6), VALUES, max_size=5)


def same_kind(a, b):
    """Equal, and of equal types throughout; 0.0 and -0.0 are two values."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_kind(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same_kind, a, b))
    return repr(a) == repr(b)


@given(PARAMETERS, PARAMETERS)
def test_hashes_are_equal_exactly_for_equal_parameters(a, b):
    assert (parameter_hash(a) == parameter_hash(b)) is same_kind(a, b)
    assert parameter_hash(dict(reversed(a.items()))) == parameter_hash(a)


def test_types_are_told_apart_and_numpy_is_not():
    hashes = {parameter_hash({"x": x}) for x in (1, 1.0, True, "1", None, [1])}
    assert len(hashes) == 6
    assert parameter_hash({"x": np.float64(0.1)}) == parameter_hash({"x": 0.1})
    assert parameter_hash({"x": (1, 2)}) == parameter_hash({"x": [1, 2]})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "parameter lr must be finite, got nan"),
        (object(), "parameter lr must be a number, a string, or a list or dict of them, got"),
        ({1: 2}, "must have names as keys, got 1"),
    ],
)
def test_parameters_that_cannot_be_filed_are_refused(value, message):
    with pytest.raises((TypeError, ValueError), match=message):
        records.plain(value, "lr")


@given(
    st.dictionaries(st.text("abc", min_size=1), st.floats() | st.integers(-9, 9) | st.text()),
    st.sampled_from(["float32", "int64", "bool", "complex64"]),
)
def test_a_record_comes_back_as_it_was(scalars, dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    table = pd.DataFrame({"epoch": [1, 2], "loss": [0.1, 1 / 3]})
    before = records.Record(
        {"x": 1}, "done", scalars, {"a": array}, {"history": table}, {"seconds": 1.0}, "fine"
    )
    with tempfile.TemporaryDirectory() as folder:
        records.write(before, Path(folder) / "record.npz")
        after = records.read(Path(folder) / "record.npz")
    for name, value in scalars.items():
        assert after.scalars[name] == value or (value != value and after.scalars[name] != value)
    np.testing.assert_array_equal(after.arrays["a"], array)
    assert after.arrays["a"].dtype == array.dtype
    pd.testing.assert_frame_equal(after.tables["history"], table)
    assert (after.parameters, after.status, after.message) == ({"x": 1}, "done", "fine")


def test_what_a_run_returns_is_sorted():
    found = records.collect(
        {
            "trace": lc.Estimate(2.0, 0.5, 8),
            "top": torch.tensor(3.0),
            "name": "a",
            "loss": [1.0, 2.0],
            "surface": torch.ones(2, 2),
            "history": lc.History(lc.TrainConfig(), status="diverged", message="in epoch 2"),
        }
    )
    assert found["scalars"] == {"trace": 2.0, "trace_stderr": 0.5, "top": 3.0, "name": "a"}
    assert set(found["arrays"]) == {"loss", "surface"}
    assert (found["status"], found["message"]) == ("diverged", "in epoch 2")
    with pytest.raises(TypeError, match="result 'model' must be a number, a string"):
        records.collect({"model": object()})
    with pytest.raises(TypeError, match="a run must return a dict of named results, got float"):
        records.collect(1.0)


# --- running ----------------------------------------------------------------------------------


def test_the_table_has_the_runs_in_order_and_nothing_is_done_twice(tmp_path):
    log = tmp_path / "log"

    def run(x: int, folder: str) -> dict:
        with open(folder, "a") as file:
            file.write(f"{x}\n")
        return {"y": x * x}

    study = lc.Study("squares", run, tmp_path)
    runs = lc.grid(x=[3, 1, 2], folder=str(log))
    first = study.run(runs, progress=False)
    assert first["y"].tolist() == [9, 1, 4]
    assert first["status"].tolist() == ["done"] * 3
    again = study.run([*runs, {"x": 5, "folder": str(log)}], progress=False)
    assert again["y"].tolist() == [9, 1, 4, 25]
    assert log.read_text().split() == ["3", "1", "2", "5"]
    assert len(study.table()) == 4


def test_defaults_are_part_of_the_parameters(tmp_path):
    study = lc.Study("squares", square, tmp_path)
    table = study.run([{"x": 2}, {"power": 2, "x": 2}], progress=False)
    assert len(table) == 1
    assert table["power"].tolist() == [2]
    np.testing.assert_array_equal(study.arrays(x=2)["curve"], [0, 2, 4])
    assert study.record(x=2, power=2).scalars == {"y": 4}
    with pytest.raises(KeyError, match="no record of squares for x=7"):
        study.record(x=7)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([{"pwoer": 2, "x": 1}], "squares has no parameter pwoer; did you mean power?"),
        ([{"zzz": 2, "x": 1}], "squares has no parameter zzz, only x, power"),
        ([{"power": 2}], "squares cannot run with power=2: missing a required argument: 'x'"),
    ],
)
def test_parameters_that_the_run_does_not_have_are_refused(tmp_path, runs, message):
    with pytest.raises(ValueError, match=message):
        lc.Study("squares", square, tmp_path).run(runs, progress=False)


def test_bad_studies_are_refused(tmp_path):
    with pytest.raises(ValueError, match="name must be of letters"):
        lc.Study("a/b", square, tmp_path)
    with pytest.raises(TypeError, match="run must be a function, got int"):
        lc.Study("a", 3, tmp_path)
    study = lc.Study("a", square, tmp_path)
    with pytest.raises(ValueError, match="outdated must be 'rerun' or 'keep', got 'mix'"):
        study.run([], outdated="mix")
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        study.run(lc.grid(x=1), workers=0, progress=False)


def test_runs_must_be_dicts(tmp_path):
    study = lc.Study("squares", square, tmp_path)
    assert study.run({"x": 2}, progress=False)["y"].tolist() == [4]
    with pytest.raises(TypeError, match="runs must be a list of dicts of parameters"):
        study.run(["x"], progress=False)
    with pytest.raises(TypeError, match=r"client must be a dask.distributed.Client, got str"):
        study.run(lc.grid(x=9), client="localhost", progress=False)


def ending(how: str) -> dict:
    if how == "raises":
        raise RuntimeError("out of luck")
    if how == "nan":
        raise FloatingPointError("the loss is nan")
    return {"loud": how.upper()}


def test_every_way_to_end_is_a_record_and_stops_no_other_run(tmp_path, capsys):
    study = lc.Study("endings", ending, tmp_path)
    table = study.run(lc.grid(how=["raises", "nan", "well"]), progress=True)
    assert table["status"].tolist() == ["failed", "diverged", "done"]
    assert table["message"].tolist() == ["RuntimeError: out of luck", "the loss is nan", ""]
    assert "Traceback" in study.record(how="raises").message
    said = capsys.readouterr()
    assert "1 of 3 runs failed" in said.out + said.err
    assert "RuntimeError: out of luck" in said.out + said.err


def flaky(marker: str) -> dict:
    if not os.path.exists(marker):
        open(marker, "w").close()
        raise RuntimeError("the first time")
    return {"y": 1}


def test_a_failed_run_is_tried_again_the_next_time(tmp_path):
    study = lc.Study("flaky", flaky, tmp_path)
    runs = lc.grid(marker=str(tmp_path / "marker"))
    assert study.run(runs, progress=False)["status"].tolist() == ["failed"]
    assert study.run(runs, progress=False)["status"].tolist() == ["done"]


@pytest.mark.parametrize("harm", ["cut", "flip", "empty"])
def test_a_damaged_record_is_named_put_aside_and_made_again(tmp_path, capsys, harm):
    study = lc.Study("squares", square, tmp_path)
    before = study.run(lc.grid(x=[1, 2]), progress=False)
    path = study.folder / f"{before['key'][1]}.npz"
    content = bytearray(path.read_bytes())
    content = {"cut": content[:-30], "empty": bytearray()}.get(harm, content)
    if harm == "flip":
        content[60] ^= 0xFF
    path.write_bytes(content)
    after = study.run(lc.grid(x=[1, 2]), progress=False)
    pd.testing.assert_frame_equal(results(after), results(before))
    said = capsys.readouterr()
    assert path.name in said.out + said.err
    assert "damaged" in said.out + said.err
    assert (study.folder / "damaged" / path.name).exists()


def module(path: Path, source: str):
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def test_a_change_of_code_outdates_records_and_comments_elsewhere_do_not(tmp_path, capsys):
    source = "def helper(x):\n    return x + {}\n\ndef run(x):\n    return {{'y': helper(x)}}\n"
    old = module(tmp_path / "first_version.py", source.format(1)).run
    new = module(tmp_path / "second_version.py", source.format(2)).run
    assert code_hash(old) != code_hash(new)
    study = lc.Study("versions", old, tmp_path)
    assert study.run(lc.grid(x=[1, 2]), progress=False)["y"].tolist() == [2, 3]
    changed = lc.Study("versions", new, tmp_path)
    assert changed.table()["outdated"].tolist() == [True, True]
    kept = changed.run(lc.grid(x=[1, 2]), outdated="keep", progress=False)
    assert kept["y"].tolist() == [2, 3]
    assert kept["outdated"].all()
    table = changed.run(lc.grid(x=[1, 2]), progress=True)
    assert table["y"].tolist() == [3, 4]
    assert not table["outdated"].any()
    said = capsys.readouterr()
    assert "2 of 2 records of versions were made by other code" in said.out + said.err
    assert len(list((study.folder / "outdated").glob("*.npz"))) == 2
    longer = module(tmp_path / "third_version.py", source.format(2) + "\ndef more(): ...\n").run
    assert code_hash(longer) == code_hash(new)
    remarked = (
        source.format(2)
        .replace("return x", "# what for?\n    return (x")
        .replace(" 2\n", " 2)\n")
    )
    assert code_hash(module(tmp_path / "fourth_version.py", remarked).run) == code_hash(new)


def test_another_version_of_the_package_outdates_records(tmp_path, monkeypatch):
    study = lc.Study("squares", square, tmp_path)
    study.run(lc.grid(x=1), progress=False)
    monkeypatch.setattr("landscape_core.experiments.study.package_hash", lambda: "other")
    assert study.table()["outdated"].tolist() == [True]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_store_that_cannot_be_written_fails_before_anything_is_computed(
    tmp_path, monkeypatch, code
):
    called = []

    def run(x: int) -> dict:
        called.append(x)
        return {}

    study, opened = lc.Study("full", run, tmp_path), Path.open

    def refuse(self, mode="r", *args, **options):
        if "w" in mode and ".probe" in self.name:
            raise OSError(code, os.strerror(code))
        return opened(self, mode, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(lc.StoreError, match=r"cannot be written to .* nothing was computed"):
        study.run(lc.grid(x=1), progress=False)
    assert called == []


def test_a_disk_that_fills_up_later_leaves_no_half_record(tmp_path, monkeypatch):
    study = lc.Study("full", square, tmp_path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    study.run(lc.grid(x=1), progress=False)
    study._check_store = lambda: None
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        study.run(lc.grid(x=[1, 2]), progress=False)
    monkeypatch.undo()
    assert [path.suffix for path in study.folder.iterdir() if path.is_file()] == [".npz"]
    assert study.run(lc.grid(x=[1, 2]), progress=False)["status"].tolist() == ["done"] * 2


def interrupted(x: int, marker: str) -> dict:
    if x == 2 and not os.path.exists(marker):
        open(marker, "w").close()
        raise KeyboardInterrupt
    return {"y": x}


def test_an_interruption_leaves_a_consistent_store(tmp_path):
    study = lc.Study("stopped", interrupted, tmp_path)
    runs = lc.grid(x=[1, 2, 3], marker=str(tmp_path / "marker"))
    with pytest.raises(KeyboardInterrupt):
        study.run(runs, progress=False)
    assert study.table()["x"].tolist() == [1]
    assert study.run(runs, progress=False)["y"].tolist() == [1, 2, 3]


def test_provenance_names_code_machine_and_data(tmp_path):
    def run(seed: int) -> dict:
        data = lc.load("digits", subset=(100, 50))
        return {"examples": len(data.train.targets)}

    study = lc.Study("data", run, tmp_path)
    study.run(lc.grid(seed=0), progress=False)
    made = study.record(seed=0).provenance
    assert made["data"] == {"digits": lc.load("digits", subset=(100, 50)).sha256}
    for name in ("package", "package_hash", "code_hash", "commit", "torch", "device", "dtype",
                 "cores", "threads", "seconds", "peak_memory"):  # fmt: skip
        assert name in made, name
    assert made["peak_memory"] > 1e6


@pytest.mark.parametrize("used", [False, True])
def test_the_device_of_a_run_is_the_gpu_only_if_it_held_memory_there(
    tmp_path, monkeypatch, used
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 4096 * used)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    study = lc.Study("used", greedy, tmp_path)
    study.run([{"sizes": [1]}], progress=False)
    made = study.record(sizes=[1]).provenance
    assert made["device"] == ("a GPU" if used else platform.machine())
    assert (made["peak_memory"] == 4096) == used


def greedy(sizes: list, more: dict | None = None) -> dict:
    total = sum(sizes)
    sizes.append(5)
    return {"total": total}


def test_what_a_run_does_to_its_arguments_is_not_part_of_its_parameters(tmp_path):
    study = lc.Study("greedy", greedy, tmp_path)
    table = study.run([{"sizes": [1]}, {"sizes": [1, 5]}], progress=False)
    assert table["total"].tolist() == [1, 6]
    assert table["sizes"].tolist() == ["[1]", "[1, 5]"]


def test_functions_that_hold_different_values_are_different(tmp_path):
    def make(factor):
        def run(x: int) -> dict:
            return {"y": x * factor}

        return run

    runs = lc.grid(x=3)
    assert lc.Study("a", make(2), tmp_path).run(runs, progress=False)["y"].tolist() == [6]
    assert lc.Study("a", make(3), tmp_path).run(runs, progress=False)["y"].tolist() == [9]
    f, g = (lambda x: {"y": x}), (lambda x: {"y": -x})
    assert code_hash(f) != code_hash(g)
    with pytest.raises(TypeError, match="must not depend on factor from around it, a Linear"):
        lc.Study("a", make(torch.nn.Linear(1, 1)), tmp_path)
    with pytest.raises(TypeError, match="got a method of list"):
        lc.Study("a", [].append, tmp_path)


def loose(x: int, **more) -> dict:
    return {"seen": str(sorted(more.items()))}


def test_loose_keywords_arrive_as_they_were_given(tmp_path):
    study = lc.Study("loose", loose, tmp_path)
    table = study.run([{"x": 1, "y": 2}], progress=False)
    assert table["seen"].tolist() == ["[('y', 2)]"]
    assert table["y"].tolist() == [2]


def test_tables_come_back_with_all_their_digits_and_others_are_a_failure(tmp_path):
    def run(kind: str) -> dict:
        numbers = pd.DataFrame(
            {"a": [1.23456789e-12, math.inf, 0.1 + 0.2], "b": ["x", "y", "z"], "n": [1, 2, 3]},
            index=pd.Index([0.1, 0.2, 0.3], name="radius"),
        )
        stamps = pd.DataFrame({"t": pd.to_datetime(["2020-01-01"])})
        return {"table": numbers if kind == "good" else stamps}

    study = lc.Study("tables", run, tmp_path)
    table = study.run(lc.grid(kind=["bad", "good"]), progress=False)
    assert table["status"].tolist() == ["failed", "done"]
    assert "table 'table' must hold numbers and strings, got Timestamp" in table["message"][0]
    found = study.record(kind="good").tables["table"]
    assert found["a"].tolist() == [1.23456789e-12, math.inf, 0.1 + 0.2]
    assert found.index.name == "radius"
    assert found["n"].dtype == np.int64


def test_results_do_not_take_the_place_of_parameters(tmp_path):
    study = lc.Study("clash", lambda x: {"x": 99}, tmp_path)
    assert (
        "must not be named as parameters"
        in study.run(lc.grid(x=1), progress=False)["message"][0]
    )
    history = lc.Study("own", lambda lr: {"h": pd.DataFrame({"lr": [1.0, 0.5]})}, tmp_path)
    history.run(lc.grid(lr=0.1), progress=False)
    table = history.tables("h", lc.grid(lr=0.1))
    pd.testing.assert_frame_equal(history.tables("h"), table)
    assert table["lr"].tolist() == [1.0, 0.5]
    assert table["lr (parameter)"].tolist() == [0.1, 0.1]


STOPPING = """
import landscape_core as lc

def stop(state):
    if state.epoch == 2 and {stops}:
        raise KeyboardInterrupt

def run(seed):
    data = lc.load('digits', subset=(150, 50))
    model = lc.MLP(data.input_shape, data.classes, width=8, seed=seed)
    config = lc.TrainConfig(epochs=4, seed=seed)
    options = dict(regularizer={regularizer}, progress=False)
    return {{'history': lc.train(model, data, config, [stop], **options)}}
"""


def test_new_code_does_not_go_on_from_the_checkpoint_of_old_code(tmp_path):
    source = STOPPING
    old = module(tmp_path / "old_code.py", source.format(stops=True, regularizer=None)).run
    new = source.format(stops=False, regularizer="lc.LabelNoise(0.5, 10)")
    changed = module(tmp_path / "new_code.py", new).run
    with pytest.raises(KeyboardInterrupt):
        lc.Study("code", old, tmp_path).run(lc.grid(seed=0), progress=False)
    study, clean = lc.Study("code", changed, tmp_path), lc.Study("clean", changed, tmp_path)
    tables = []
    for each in (study, clean):
        each.run(lc.grid(seed=0), progress=False)
        tables.append(each.record(seed=0).tables["history"].drop(columns="seconds"))
    pd.testing.assert_frame_equal(*tables)
    assert not list(study.folder.glob("checkpoints/*"))


# --- killed, raced and distributed ------------------------------------------------------------


def small_training(seed: int) -> dict:
    data = lc.load("digits", subset=(200, 50))
    model = lc.MLP(data.input_shape, data.classes, width=8, seed=seed)
    config = lc.TrainConfig(epochs=6, seed=seed, batch_size=16)
    history = lc.train(model, data, config, [slow], progress=False)
    objective = lc.Objective(model, F.cross_entropy, data.train)
    return {"loss": float(objective.loss()), "theta": objective.theta, "history": history}


def slow(state: lc.TrainingState) -> None:
    time.sleep(0.01)


def work(store: str, seeds: int) -> None:
    torch.set_num_threads(1)
    lc.Study("killed", small_training, store).run(lc.grid(seed=range(seeds)), progress=False)


@pytest.fixture
def locks_of_its_own(monkeypatch):
    """A fork shares the lock of progress bars, and one that is killed may die holding it."""
    lock = threading.RLock()
    for each in tqdm.__mro__:
        if hasattr(each, "get_lock"):
            monkeypatch.setattr(each, "_lock", lock, raising=False)


@pytest.mark.usefixtures("locks_of_its_own")
def test_a_process_killed_at_random_moments_leaves_the_same_table(tmp_path):
    seeds = 12
    torch.set_num_threads(1)
    undisturbed = lc.Study("killed", small_training, tmp_path / "calm")
    expected = undisturbed.run(lc.grid(seed=range(seeds)), progress=False)
    fork = multiprocessing.get_context("fork")  # no import of torch for each of fifty processes
    rng, kills, resumed = random.Random(0), 0, 0
    run = expected["seconds"].mean()  # of this machine, as busy as it is
    study = lc.Study("killed", small_training, tmp_path / "rough")
    while kills < 50:
        process = fork.Process(target=work, args=(str(tmp_path / "rough"), seeds))
        process.start()
        time.sleep(rng.uniform(0.04, 0.9) * run)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        resumed += len(list(study.folder.glob("checkpoints/*/*.pt")))
        if process.exitcode == 0:  # all done: take one away and go on killing
            next(iter(study.folder.glob("*.npz"))).unlink()
    assert resumed > 0  # some were caught in the middle of a training
    table = study.run(lc.grid(seed=range(seeds)), progress=False)
    pd.testing.assert_frame_equal(results(table), results(expected))
    for seed in range(seeds):
        mine, calm = study.record(seed=seed), undisturbed.record(seed=seed)
        np.testing.assert_array_equal(mine.arrays["theta"], calm.arrays["theta"])
        pd.testing.assert_frame_equal(
            mine.tables["history"].drop(columns="seconds"),
            calm.tables["history"].drop(columns="seconds"),
        )
    assert not list(study.folder.glob("checkpoints/*/*.pt"))
    assert not list(study.folder.glob(".*partial"))


def noted(x: int, log: str) -> dict:
    with open(log, "a") as file:
        file.write(f"{x}\n")
    time.sleep(0.03)
    return {"y": x}


def race(store: str, log: str) -> None:
    lc.Study("race", noted, store).run(lc.grid(x=range(20), log=log), progress=False)


def test_two_processes_on_one_store_share_the_runs(tmp_path):
    fork, log = multiprocessing.get_context("fork"), tmp_path / "log"
    processes = [fork.Process(target=race, args=(str(tmp_path), str(log))) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(map(int, log.read_text().split())) == list(range(20))
    assert lc.Study("race", noted, tmp_path).table()["y"].sort_values().tolist() == [*range(20)]


def dies_once(x: int, marker: str) -> dict:
    if x == 2 and not os.path.exists(marker):
        open(marker, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"y": x * x}


@pytest.mark.filterwarnings("default")
def test_a_worker_that_dies_loses_only_its_run_and_results_are_those_of_one_process(tmp_path):
    runs = lc.grid(x=range(6), marker=str(tmp_path / "marker"))
    table = lc.Study("dies", dies_once, tmp_path / "a").run(runs, workers=2, progress=False)
    assert os.path.exists(tmp_path / "marker")
    serial = lc.Study("dies", dies_once, tmp_path / "b").run(runs, progress=False)
    pd.testing.assert_frame_equal(results(table), results(serial))


# --- what ships -------------------------------------------------------------------------------


def long(x: int) -> dict:
    return {"y": x / 3, "curve": np.linspace(0, x, 5) / 7, "count": np.arange(3)}


def test_published_records_are_rounded_read_without_code_and_ship(tmp_path, monkeypatch):
    study = lc.Study("thirds", long, tmp_path / "runs")
    study.run(lc.grid(x=[1, 2]), progress=False)
    study.publish(tmp_path / "shipped", digits=3)
    monkeypatch.setattr("landscape_core.experiments.store.REFERENCE", tmp_path / "shipped")
    found = lc.reference("thirds")
    assert found.table()["y"].tolist() == pytest.approx([1 / 3, 2 / 3])
    arrays = found.arrays(x=2)
    assert arrays["curve"].dtype == np.float32
    np.testing.assert_allclose(arrays["curve"], [0, 0.0714, 0.143, 0.214, 0.286], rtol=1e-6)
    assert arrays["count"].dtype == np.int64
    with pytest.raises(KeyError, match="there is no reference run 'halves', only: thirds"):
        lc.reference("halves")


# --- runs that begin where others ended -------------------------------------------------------


def norm_model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))


def makes_a_model(seed: int) -> dict:
    torch.manual_seed(seed)
    model = norm_model()
    model(torch.randn(8, 3))  # moves the running statistics
    return {"model": model, "loss": [1.0, 2.0]}


def test_a_model_comes_back_with_its_buffers_and_stays_behind_when_published(tmp_path):
    networks = lc.Study("networks", makes_a_model, tmp_path)
    record = networks(seed=3)
    model = record.load_weights(norm_model())
    for name, value in makes_a_model(3)["model"].state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    assert not model.training
    with pytest.raises(KeyError, match="holds no model 'net', only model"):
        record.load_weights(norm_model(), "net")
    networks.publish(tmp_path / "shipped", leave_out=["model"])
    (shipped,) = lc.Store(tmp_path / "shipped" / "networks").find(seed=3)
    assert list(shipped.arrays) == ["loss"]


def test_a_study_is_called_as_the_function_would_be_and_computes_once(tmp_path):
    study = lc.Study("square", square, tmp_path)
    assert study(x=3.0).scalars == {"y": 9.0}
    begun = study(x=3.0, power=2).provenance["begun"]
    assert study(x=3.0).provenance["begun"] == begun
    with pytest.raises(RuntimeError, match="square failed for x='a'"):
        study(x="a")


def test_records_are_found_by_some_of_their_parameters(tmp_path):
    study = lc.Study("square", square, tmp_path)
    study.run(lc.grid(x=[1.0, 2.0], power=[2, 3]), progress=False)
    assert [r.scalars["y"] for r in study.find(power=3)] == [1.0, 8.0]
    assert [r.scalars["y"] for r in study.find()] == [1.0, 1.0, 4.0, 8.0]
    assert list(study.find()[0].arrays) == ["curve"]
    assert study.find(power=4) == []
    with pytest.raises(ValueError, match="square has no parameter depth, only x, power"):
        study.find(depth=4)
    assert study.find(x=True) == study.find(x=1) == []  # 1.0 is another parameter


def test_the_code_of_a_study_that_a_run_takes_results_from_is_part_of_its_code(tmp_path):
    before = (
        "import landscape_core as lc\n"
        "def make(x): return {'y': x}\n"
        f"made = lc.Study('made', make, {str(tmp_path)!r})\n"
        "def use(x): return {'z': made(x=x).scalars['y']}\n"
    )
    codes = []
    for index, text in enumerate((before, before.replace("'y': x}", "'y': 2 * x}"))):
        module = tmp_path / f"uses_{index}.py"
        module.write_text(text)
        spec = importlib.util.spec_from_file_location(module.stem, module)
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        study = lc.Study("used", loaded.use, tmp_path)
        codes.append(study.code)
        assert study(x=3).scalars == {"z": 3 * (index + 1)}
    assert codes[0] != codes[1]


# --- what the code of a run is ----------------------------------------------------------------

VARIANTS = {
    "object of a class": (
        "class Smooth:\n    def __call__(self, x): return x * {}\nsmooth = Smooth()\n"
        "def run(x): return {{'y': smooth(x)}}"
    ),
    "two lambdas": (
        "f = lambda x: x\ng = lambda x: x * {}\ndef run(x): return {{'y': f(x) + g(x)}}"
    ),
    "closures of one factory": (
        "def make(k):\n    def inner(x): return x * k\n    return inner\n"
        "a = make(2)\nb = make({})\ndef run(x): return {{'y': a(x) + b(x)}}"
    ),
    "cached": (
        "from functools import cache\n@cache\ndef h(x): return x * {}\n"
        "def run(x): return {{'y': h(x)}}"
    ),
    "decorator": (
        "from functools import wraps\ndef deco(f):\n    @wraps(f)\n    def w(x):\n"
        "        return f(x) * {}\n    return w\n@deco\ndef h(x): return x\n"
        "def run(x): return {{'y': h(x)}}"
    ),
    "base class": (
        "class B:\n    def f(self, x): return x * {}\nclass A(B): pass\n"
        "def run(x): return {{'y': A().f(x)}}"
    ),
    "static method": (
        "def g(x): return x * {}\nclass A:\n    @staticmethod\n    def f(x): return g(x)\n"
        "def run(x): return {{'y': A.f(x)}}"
    ),
    "partial": (
        "from functools import partial\ndef base(x, k): return x * k\n"
        "h = partial(base, k={})\ndef run(x): return {{'y': h(x)}}"
    ),
    "table of functions": (
        "def relu(x): return x * {}\nTABLE = {{'relu': relu}}\n"
        "def run(x): return {{'y': TABLE['relu'](x)}}"
    ),
    "default argument": (
        "def other(x): return x * {}\ndef h(x, f=other): return f(x)\n"
        "def run(x): return {{'y': h(x)}}"
    ),
    "sets": "def run(x): return {{'y': x * {} if x in {{'a', 'b', 'c'}} else 2}}",
}


@pytest.mark.parametrize("kind", VARIANTS)
def test_a_change_anywhere_below_a_run_changes_its_code(tmp_path, kind):
    first, second = (
        module(tmp_path / f"variant_{k}.py", VARIANTS[kind].format(k)).run for k in (3, 4)
    )
    assert code_hash(first) != code_hash(second)
    again = module(tmp_path / "variant_again.py", VARIANTS[kind].format(3)).run
    assert code_hash(again) == code_hash(first)


def test_the_code_is_the_same_in_every_process(tmp_path):
    source = "\n".join(
        VARIANTS[kind].format(3).replace("def run(", f"def run_{i}(")
        for i, kind in enumerate(("two lambdas", "closures of one factory", "sets"))
    )
    source += "\nk = lambda x: {'y': x in {'a', 'b', 'c'}}\n"
    source += "def run(x): return run_0(x), run_1(x), run_2(x), k(x)\n"
    source += "from landscape_core.experiments.code import code_hash\nprint(code_hash(run))"
    (tmp_path / "prints.py").write_text(source)
    hashes = set()
    for seed in ("1", "2", "3"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, str(tmp_path / "prints.py")]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        hashes.add(done.stdout.strip())
    assert len(hashes) == 1
    assert hashes != {""}


def test_a_helper_that_is_redefined_outdates_what_was_done_before(tmp_path, capsys):
    loaded = module(
        tmp_path / "notebook.py", "def helper(x): return x\ndef run(x): return {'y': helper(x)}"
    )
    study = lc.Study("live", loaded.run, tmp_path)
    assert study.run(lc.grid(x=[1, 2]), progress=False)["y"].tolist() == [1, 2]
    later = module(tmp_path / "later.py", "def helper(x): return 10 * x")
    later.helper.__module__ = "notebook"
    loaded.helper = later.helper
    assert study.run(lc.grid(x=[1, 2]), progress=False)["y"].tolist() == [10, 20]
    said = capsys.readouterr()
    assert "2 of 2 records of live were made by other code" in said.out + said.err


def test_recursion_and_classes_without_source_are_code_too(tmp_path):
    names: dict = {"__name__": "nowhere"}
    exec(
        "class Net:\n    def f(self, x): return x\ndef run(x): return {'y': Net().f(x)}", names
    )
    assert lc.Study("net", names["run"], tmp_path)(x=2).scalars == {"y": 2}

    def make():
        def fact(n):
            return n * fact(n - 1) if n else 1

        return lambda n: {"y": fact(n)}

    assert lc.Study("fact", make(), tmp_path)(n=4).scalars == {"y": 24}


# --- what cannot be kept is refused, and nothing is lost --------------------------------------


def too_large(x: int) -> dict:
    return {"y": 10**5000 if x == 1 else x}


def leaves(x: int) -> dict:
    if x == 1:
        sys.exit(3)
    return {"y": x, "drawn": float(torch.rand(()))}


@pytest.mark.parametrize("run", [too_large, leaves])
def test_a_run_that_cannot_be_written_or_that_exits_has_failed(tmp_path, run):
    table = lc.Study("odd", run, tmp_path).run(lc.grid(x=[0, 1, 2]), progress=False)
    assert table["status"].tolist() == ["done", "failed", "done"]


def test_what_a_run_draws_does_not_depend_on_the_runs_before_it(tmp_path):
    together = lc.Study("a", leaves, tmp_path).run(lc.grid(x=[0, 2]), progress=False)
    torch.rand(5)
    alone = lc.Study("b", leaves, tmp_path)(x=2)
    assert alone.scalars["drawn"] == together["drawn"][1]


@pytest.mark.parametrize(
    "value",
    [
        [1, "a"], [2**63, -1], np.ma.masked_array([1, 2], [True, False]), [[1], [1, 2]],
        pd.DataFrame({1: [2]}),
    ],
    ids=["mixed", "too large", "masked", "ragged", "table with numbers as names"],
)  # fmt: skip
def test_results_that_would_come_back_changed_are_refused(value):
    with pytest.raises(TypeError, match="'y'"):
        records.collect({"y": value})


def test_a_slice_of_a_table_keeps_its_index(tmp_path):
    table = pd.DataFrame({"a": range(9)}).iloc[5:8]
    fields = records.collect({"t": table})
    path = tmp_path / "r.npz"
    records.write(records.Record({}, provenance={"begun": 0}, **fields), path)
    pd.testing.assert_frame_equal(records.read(path).tables["t"], table, check_index_type=False)


def test_weights_of_another_shape_are_refused(tmp_path):
    fields = records.collect({"model": torch.nn.Linear(6, 4, bias=False)})
    record = records.Record({}, **fields)
    with pytest.raises(ValueError, match=r"weight of the model must be .* \(6, 4\), the"):
        record.load_weights(torch.nn.Linear(4, 6, bias=False))
    with pytest.raises(ValueError, match=r"must be torch.float64 .* holds torch.float32"):
        record.load_weights(torch.nn.Linear(6, 4, bias=False).double())


@pytest.mark.parametrize(
    ("run", "kind", "message"),
    [
        (lambda x, key: {"y": x}, ValueError, "columns of every table, got key"),
        (lambda x, *rest: {"y": x}, TypeError, r"given by name, got \*rest"),
    ],
)
def test_signatures_that_no_table_has_room_for_are_refused(tmp_path, run, kind, message):
    with pytest.raises(kind, match=message):
        lc.Study("s", run, tmp_path)


def test_a_run_that_asks_for_itself_fails(tmp_path):
    loaded = module(
        tmp_path / "asks.py",
        "import landscape_core as lc\ndef run(n): return {'y': me(n=n).scalars['y']}\n"
        f"me = lc.Study('me', run, {str(tmp_path)!r})",
    )
    with pytest.raises(RuntimeError, match="must not ask its own study for its own result"):
        loaded.me(n=1)


@pytest.mark.parametrize(
    "array",
    [
        np.array([1.0, 1e-40, 0.0], np.float32), np.array([0.5, 0.01], np.float16),
        np.array([1e-310, 1e300, 1e-50]), np.array([np.nan, np.inf, 2.0]),
    ],
)  # fmt: skip
def test_rounding_loses_digits_and_nothing_else(array):
    from landscape_core.experiments.store import _rounded

    np.testing.assert_allclose(_rounded(array, 5), array.astype(float), rtol=1e-4)


def test_publishing_does_no_harm(tmp_path):
    study = lc.Study("square", square, tmp_path / "runs")
    study.run(lc.grid(x=[1.0, 2.0]), progress=False)
    with pytest.raises(ValueError, match="into their own store"):
        study.publish(tmp_path / "runs")
    with pytest.raises(TypeError, match="leave_out must be a list of names, got 'curve'"):
        study.publish(tmp_path / "shipped", leave_out="curve")
    study.publish(tmp_path / "shipped")
    other = lc.Study("square", square, tmp_path / "others")
    other.run(lc.grid(x=[3.0]), progress=False)
    other.publish(tmp_path / "shipped")  # replaces what was there
    shipped = lc.Store(tmp_path / "shipped" / "square")
    assert shipped.table()["x"].tolist() == [3.0]
    study.publish(tmp_path / "shipped", add=True)
    assert sorted(shipped.table()["x"]) == [1.0, 2.0, 3.0]
    changed = module(tmp_path / "c.py", "def square(x, power=2): return {'y': 0.0}").square
    with pytest.raises(ValueError, match="2 records of square were made by other code"):
        lc.Study("square", changed, tmp_path / "runs").publish(tmp_path / "shipped")


def dies_always(x: int) -> dict:
    if x == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"y": x}


@pytest.mark.filterwarnings("default")
def test_a_run_that_no_worker_survives_has_failed_and_the_others_have_not(tmp_path):
    table = lc.Study("fatal", dies_always, tmp_path).run(
        lc.grid(x=range(3)), workers=2, progress=False
    )
    assert table["status"].tolist() == ["done", "failed", "done"]
    assert "KilledWorker" in table["message"][1]
    assert lc.Store(tmp_path / "fatal").summary().startswith("fatal: 3 runs")


def test_a_lost_worker_does_not_undo_what_another_process_has_done(tmp_path):
    study = lc.Study("square", square, tmp_path)
    task = Task(square, {"x": 2.0, "power": 2}, study.folder, study.code)
    (study.folder / "locks").mkdir(parents=True)
    lock = FileLock(study.folder / "locks" / f"{task.key}.lock")
    with lock:
        assert failed(task, "lost") == "busy"
    assert not task.path.exists()
    assert failed(task, "lost") == "made"
    assert study.table()["status"].tolist() == ["failed"]
    study.run([task.parameters], progress=False)
    assert failed(task, "lost") == "found"
    assert study.table()["status"].tolist() == ["done"]


def test_a_record_that_another_process_makes_anew_is_not_put_aside(tmp_path, monkeypatch):
    old = module(tmp_path / "old.py", "def square(x, power=2): return {'y': 0.0}").square
    lc.Study("square", old, tmp_path).run([{"x": 2.0}], progress=False)
    study = lc.Study("square", square, tmp_path)
    (key,) = study.table()["key"]
    wanted = {key: {"x": 2.0, "power": 2}}
    with FileLock(study.folder / "locks" / f"{key}.lock"):
        assert study._sort_out(wanted, "rerun") == set()
    assert (study.folder / f"{key}.npz").exists()
    # What was made anew while this process waited for the lock stays where it is.
    states = iter([("outdated", ""), ("found", "")])
    monkeypatch.setattr(study, "_state", lambda *_: next(states))
    assert study._sort_out(wanted, "rerun") == {key}
    assert not (study.folder / "outdated").exists()
    monkeypatch.undo()
    assert study._sort_out(wanted, "rerun") == set()
    assert [path.name for path in (study.folder / "outdated").iterdir()] == [f"{key}.npz"]
    assert study._sort_out(wanted, "rerun") == set()  # as if another process had moved it


def test_a_record_under_another_name_is_left_out(tmp_path):
    study = lc.Study("square", square, tmp_path)
    (key,) = study.run([{"x": 2.0}], progress=False)["key"]
    shutil.copy(study.folder / f"{key}.npz", study.folder / f"{key}-1.npz")
    with pytest.warns(UserWarning, match=f"holds the record of {key}.npz; it is left out"):
        assert len(study.table()) == 1


def test_a_table_that_no_record_has_is_named(tmp_path):
    def run(seed: int) -> dict:
        return {"history": pd.DataFrame({"loss": [1.0, 0.5]})}

    study = lc.Study("runs", run, tmp_path)
    assert study.tables("history").empty
    study.run(lc.grid(seed=range(2)), progress=False)
    assert len(study.tables("history")) == 4
    with pytest.raises(ValueError, match="runs has no table 'losses', only history"):
        study.tables("losses")


def test_a_damaged_record_is_not_published_and_what_was_there_stays(tmp_path):
    study = lc.Study("square", square, tmp_path / "runs")
    key, _ = study.run(lc.grid(x=[1.0, 2.0]), progress=False)["key"]
    shipped = study.publish(tmp_path / "shipped")
    (study.folder / f"{key}.npz").write_bytes(b"no record")
    with pytest.raises(DamagedRecordError, match=key):
        lc.Store(study.folder).publish(tmp_path / "shipped")
    assert len(list(shipped.glob("*.npz"))) == 2


def test_a_record_that_may_not_be_opened_is_not_damaged(tmp_path, monkeypatch):
    study = lc.Study("square", square, tmp_path)
    (key,) = study.run([{"x": 2.0}], progress=False)["key"]

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(PermissionError):
            records.read(study.folder / f"{key}.npz")
    assert records.read(study.folder / f"{key}.npz").status == "done"


def test_a_table_leaves_a_damaged_record_out_and_says_so(tmp_path):
    study = lc.Study("squares", square, tmp_path)
    first = study.run(lc.grid(x=[1, 2]), progress=False)
    (study.folder / f"{first['key'][0]}.npz").write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged .* it is left out"):
        assert study.table()["x"].tolist() == [2]


NOTEBOOK = """
def run(seed):
    data = lc.load('digits', subset=(100, 50))
    return {'classes': data.classes, 'drawn': float(torch.ones(2).sum())}
"""


@pytest.mark.filterwarnings("default")
def test_a_function_of_a_notebook_travels_to_workers(tmp_path):
    names = {"__name__": "__main__", "lc": lc, "torch": torch}
    exec(NOTEBOOK, names)
    study = lc.Study("notebook", names["run"], tmp_path)
    table = study.run(lc.grid(seed=0), workers=1, progress=False)
    assert table[["status", "classes", "drawn"]].to_numpy().tolist() == [["done", 10, 2.0]]


@pytest.mark.filterwarnings("default")
def test_a_run_has_the_same_threads_alone_or_among_others(tmp_path):
    study = lc.Study("threads", square, tmp_path)
    study.run(lc.grid(x=1), workers=2, progress=False)
    study.run(lc.grid(x=[2, 3, 4]), workers=2, progress=False)
    threads = {record.provenance["threads"] for record in study.find()}
    assert threads == {max(1, torch.get_num_threads() // 2)}
