"""A notebook's parameters: refused in one sentence, or returned."""

import shlex
from typing import Literal

import pytest
import yaml

from landscape_core import ParameterError, check_parameters, rerun_line


def cell(**values):
    hints = {
        "dataset": str,
        "epochs": int,
        "lr": float,
        "widths": list[int],
        "subset": int | None,
        "kind": Literal["a", "b"],
        "fast": bool,
    }
    defaults = {
        "dataset": "digits",
        "epochs": 3,
        "lr": 0.1,
        "widths": [4, 8],
        "subset": None,
        "kind": "a",
        "fast": False,
    }
    return {"__annotations__": hints, **defaults, **values}


def test_good_parameters_come_back_in_order():
    values = check_parameters(cell(lr=1, subset=5), epochs=(1, 10), dataset=["digits", "mnist"])
    assert list(values) == ["dataset", "epochs", "lr", "widths", "subset", "kind", "fast"]
    assert values["lr"] == 1


@pytest.mark.parametrize(
    ("values", "rules", "message"),
    [
        ({"epochs": "3"}, {}, r"epochs must be int, got '3' \(str\)"),
        ({"epochs": 3.5}, {}, r"epochs must be int, got 3.5 \(float\)"),
        ({"epochs": True}, {}, r"epochs must be int, got True \(bool\)"),
        ({"lr": "big"}, {}, "lr must be a number, got 'big'"),
        ({"widths": [4, "x"]}, {}, "widths must be a list of int, got"),
        ({"widths": 4}, {}, "widths must be a list of int, got 4"),
        ({"subset": "all"}, {}, "subset must be int or None, got 'all'"),
        ({"kind": "c"}, {}, "kind must be one of 'a', 'b', got 'c'"),
        ({"fast": 1}, {}, "fast must be True or False, got 1"),
        ({"epochs": 0}, {"epochs": (1, None)}, "epochs must be at least 1, got 0"),
        ({"lr": 2.0}, {"lr": (0, 1)}, "lr must be at most 1, got 2.0"),
        ({"lr": float("nan")}, {"lr": (0, 1)}, "lr must be at least 0, got nan"),
        ({"widths": [4, 0]}, {"widths": (1, 99)}, "widths must be at least 1, got 0"),
        ({"dataset": "minst"}, {"dataset": ["digits"]}, "dataset must be one of 'digits', got"),
        ({}, {"epoch": (1, 2)}, "a rule is given for epoch, which is not a parameter"),
    ],
)
def test_bad_values_are_refused_in_one_sentence(values, rules, message):
    with pytest.raises(ParameterError, match=message) as error:
        check_parameters(cell(**values), **rules)
    assert "\n" not in str(error.value)


def test_names_that_papermill_sets_must_exist():
    history = ["", "epochs: int = 3", "# Parameters\nepohcs = 5\n", "check_parameters(...)"]
    with pytest.raises(ParameterError, match=r"no parameter epohcs; did you mean epochs\?"):
        check_parameters(cell(In=history, epohcs=5))
    history[2] = "# Parameters\nepochs = 5\n"
    assert check_parameters(cell(In=history, epochs=5))["epochs"] == 5


def test_variables_of_later_cells_do_not_matter():
    assert check_parameters(cell(In=["", "x = 1", "check_parameters(...)"], x=1))


def test_a_cell_without_annotations_is_refused():
    with pytest.raises(ParameterError, match="annotate them"):
        check_parameters({"epochs": 3})


def test_a_rerun_line_is_one_shell_command_that_keeps_every_value():
    only = {"setting": "it's λ, $HOME", "weight": 0.1, "seed": 0}
    line = rerun_line("08_width", threads=2, **only)
    words = shlex.split(line.replace("\\\n", ""))
    assert words[0] == "OMP_NUM_THREADS=2"
    assert words[1:4] == ["papermill", "notebooks/08_width.ipynb", "out.ipynb"]
    assert yaml.safe_load(words[words.index("-y") + 1]) == {"only": only}
