"""Check a notebook's parameters before anything runs."""

from __future__ import annotations

import ast
import json
import shlex
import types
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Bounds = tuple[float | None, float | None]
INJECTED = "# Parameters"  # the first line of the cell in which papermill sets values


class ParameterError(ValueError):
    """A parameter that is unknown, of the wrong type or out of range."""


def check_parameters(
    namespace: dict[str, Any], /, **rules: Bounds | Collection[Any]
) -> dict[str, Any]:
    """Refuse a misspelt, mistyped or out-of-range parameter, in one sentence.

    Call it right after the cell tagged ``parameters``, as ``check_parameters(globals(), ...)``.
    A parameter is an annotated variable, ``width: int = 256``; its annotation is its type.
    Values set by papermill under a name that no parameter has are refused too.

    Parameters
    ----------
    namespace : dict
        ``globals()`` of the notebook.
    **rules
        For some parameters, a range ``(lowest, highest)`` of numbers, ends included and None
        for open, or a list or set of allowed values. For a parameter that is a list, the rule
        holds for each entry.

    Returns
    -------
    dict
        Name and value of every parameter, for the log.

    Raises
    ------
    ParameterError

    Examples
    --------
    >>> cell = {"__annotations__": {"epochs": int}, "epochs": 0}
    >>> check_parameters(cell, epochs=(1, None))
    Traceback (most recent call last):
    landscape_core.experiments.parameters.ParameterError: epochs must be at least 1, got 0
    """
    hints = _annotations(namespace)
    if not hints:
        raise ParameterError("no parameters: annotate them, as in `epochs: int = 10`")
    for name in _given_names(namespace):
        if name not in hints:
            raise ParameterError(_unknown(name, hints))
    for name in rules:
        if name not in hints:
            raise ParameterError(f"a rule is given for {name}, which is not a parameter")
    for name, hint in hints.items():
        _check_value(name, namespace, hint, rules.get(name))
    return {name: namespace[name] for name in hints}


def rerun_line(notebook: str, threads: int = 1, **only: Any) -> str:
    r"""The command that makes the full-scale runs with these parameters once more.

    For notebooks with a file of full-scale parameters, ``studies/<notebook>.yaml``, and a
    parameter ``only``; run it in the root of a checkout.

    Parameters
    ----------
    notebook : str
        Name of the notebook, without its ending.
    threads : int
        CPU threads that PyTorch is given. A run finds the digits of its record only with
        as many as that had, since sums depend on their order; one is what ``Store.summary``
        names for most records.
    **only
        Values that a run's parameters must have.

    Examples
    --------
    >>> print(rerun_line("08_width", width=256, seed=0))
    OMP_NUM_THREADS=1 papermill notebooks/08_width.ipynb out.ipynb \
        -f studies/08_width.yaml \
        -y 'only: {"width": 256, "seed": 0}'
    """
    which = shlex.quote(f"only: {json.dumps(only, ensure_ascii=False)}")
    source, parameters = f"notebooks/{notebook}.ipynb", f"studies/{notebook}.yaml"
    command = f"OMP_NUM_THREADS={threads} papermill {source} out.ipynb"
    return f"{command} \\\n    -f {parameters} \\\n    -y {which}"


def _check_value(
    name: str, namespace: dict[str, Any], hint: Any, rule: Bounds | Collection[Any] | None
) -> None:
    if name not in namespace:
        raise ParameterError(f"{name} has no value: give it one, as in `{name}: int = 1`")
    value = namespace[name]
    if not _conforms(value, hint):
        kind = _describe(hint)
        raise ParameterError(f"{name} must be {kind}, got {value!r} ({type(value).__name__})")
    if rule is not None and value is not None:
        for item in value if isinstance(value, list) else [value]:
            _check_rule(name, item, rule)


def _annotations(namespace: dict[str, Any]) -> dict[str, Any]:
    """Annotated variables of the notebook, with their types."""
    holder = types.SimpleNamespace(__annotations__=dict(namespace.get("__annotations__", {})))
    return get_type_hints(holder, globalns=namespace)


def _given_names(namespace: dict[str, Any]) -> list[str]:
    """Names that papermill set in its own cell; none without papermill."""
    history = namespace.get("In")
    cells = (
        [cell for cell in history if isinstance(cell, str)] if isinstance(history, list) else []
    )
    assigned: list[str] = []
    for cell in cells:
        if not cell.startswith(INJECTED):
            continue
        for node in ast.parse(cell).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            if isinstance(node, ast.AnnAssign):
                targets = [node.target]
            assigned += [target.id for target in targets if isinstance(target, ast.Name)]
    return assigned


def _unknown(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
    return f"there is no parameter {name}; {hint}"


def _conforms(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(value == a and type(value) is type(a) for a in arguments)
    if origin in (Union, types.UnionType):
        return any(_conforms(value, argument) for argument in arguments)
    if origin is list:
        return isinstance(value, list) and all(_conforms(item, arguments[0]) for item in value)
    if hint is Any:
        return True
    if hint is None or hint is type(None):
        return value is None
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, int | float)
    return isinstance(value, origin or hint)


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(argument) for argument in arguments)
    if origin is list:
        return f"a list of {_describe(arguments[0])}"
    names = {int: "int", float: "a number", bool: "True or False", str: "text"}
    return (
        "None"
        if hint in (None, type(None))
        else names.get(hint, getattr(hint, "__name__", "?"))
    )


def _check_rule(name: str, value: Any, rule: Bounds | Collection[Any]) -> None:
    bounds = (
        isinstance(rule, tuple) and len(rule) == 2 and not any(isinstance(r, str) for r in rule)
    )
    if not bounds:
        if value not in rule:
            options = ", ".join(map(repr, rule))
            raise ParameterError(f"{name} must be one of {options}, got {value!r}")
        return
    lowest, highest = tuple(rule)
    if lowest is not None and not value >= lowest:
        raise ParameterError(f"{name} must be at least {lowest}, got {value!r}")
    if highest is not None and not value <= highest:
        raise ParameterError(f"{name} must be at most {highest}, got {value!r}")
