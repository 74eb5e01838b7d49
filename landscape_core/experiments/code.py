"""A hash of what a function computes: of its source, and of all that it uses."""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
import types
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from landscape_core.experiments.records import plain


def code_hash(run: Callable[..., Any]) -> str:
    """Hash of a run's code: its source, and what it uses of its own module.

    That is functions, also decorated ones and those in tables, classes with their bases, other
    studies, default values, and values that it closes over. Comments and layout are no part of
    it. Functions of other modules, and values of global variables, are not: hand the values to
    the run as parameters.

    Raises
    ------
    TypeError
        If the function is a method, or closes over what has no plain value.
    """
    holder = getattr(run, "__self__", None)
    if holder is not None and not isinstance(holder, types.ModuleType):
        raise TypeError(
            f"run must be a plain function, got a method of {type(holder).__name__}: what the "
            "object holds would not be part of the parameters"
        )
    if inspect.isbuiltin(run):
        raise TypeError(f"run must be a function whose source can be found, got {run!r}")
    walk = _Walk(getattr(inspect.unwrap(run), "__module__", ""))
    walk.add("run", run)
    digest = hashlib.sha256("\n".join(walk.parts).encode())
    return digest.hexdigest()[:16]


OF_EVERY_CLASS = {
    "__dict__", "__weakref__", "__module__", "__doc__", "__qualname__", "__firstlineno__",
    "__static_attributes__",
}  # fmt: skip


class _Walk:
    """Everything that a function uses of one module, written out in a fixed order."""

    def __init__(self, module: str) -> None:
        self.module = module
        self.parts: list[str] = []
        self.seen: dict[int, tuple[int, Any]] = {}  # by identity; kept, so that ids stay unique

    def add(self, name: str, value: Any) -> bool:
        """Write out a value; return whether it was code."""
        if id(value) in self.seen:
            self.parts.append(f"{name} is {self.seen[id(value)][0]}")
            return True
        if isinstance(value, types.ModuleType):
            return False
        own = getattr(value, "__module__", None) == self.module
        if _is_study(value):
            self._enter(name, value)
            return self.add(f"{name}.run", value.function)
        if isinstance(value, partial):
            self._enter(name, value)
            self._table(name, {"args": value.args, **value.keywords})
            return self.add(f"{name}.func", value.func)
        if isinstance(value, types.FunctionType) and own:
            self._enter(name, value)
            self._function(name, value)
            return True
        if isinstance(value, type) and own:
            self._enter(name, value)
            self._class(name, value)
            return True
        if (
            own and hasattr(value, "__wrapped__") and callable(value)
        ):  # of a decorator such as cache
            self._enter(name, value)
            return self.add(f"{name}.__wrapped__", value.__wrapped__)
        if own and getattr(type(value), "__module__", None) == self.module:  # an object of it
            self._enter(name, value)
            return self.add(f"{name}.class", type(value))
        return False

    def _enter(self, name: str, value: Any) -> None:
        self.seen[id(value)] = (len(self.seen), value)
        self.parts.append(f"{name}: {type(value).__name__}")

    def _function(self, name: str, function: types.FunctionType) -> None:
        self.parts.append(f"{name} = {_source(function)}")
        wrapped = getattr(function, "__wrapped__", None)
        if wrapped is not None:
            self.add(f"{name}.__wrapped__", wrapped)
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        for variable, cell in sorted(cells, key=lambda pair: pair[0]):
            self._closed_over(f"{name}.{variable}", variable, _contents(cell))
        defaults = {**dict(enumerate(function.__defaults__ or ()))}
        self._table(f"{name}.defaults", {**defaults, **(function.__kwdefaults__ or {})})
        for used in sorted(_names(function.__code__)):
            if used in function.__globals__:
                self._used(f"{name}.{used}", function.__globals__[used])

    def _class(self, name: str, kind: type) -> None:
        """Methods, bases and plain attributes: a notebook's class has no source to be found."""
        for index, base in enumerate(kind.__bases__):
            if not self.add(f"{name}.base{index}", base):
                self.parts.append(f"{name}.base{index} = {base.__module__}.{base.__qualname__}")
        members = {k: v for k, v in vars(kind).items() if k not in OF_EVERY_CLASS}
        for member, value in sorted(members.items()):
            inner = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
            if not self.add(f"{name}.{member}", inner):
                self._plain(f"{name}.{member}", value)

    def _closed_over(self, where: str, variable: str, value: Any) -> None:
        if self.add(where, value) or isinstance(value, types.ModuleType | types.FunctionType):
            return
        if isinstance(value, type) or value is _EMPTY:
            return
        try:
            self.parts.append(f"{where} = {plain(value, variable)!r}")
        except (TypeError, ValueError):
            raise TypeError(
                f"run must not depend on {variable} from around it, a {type(value).__name__}: "
                "hand it over as a parameter"
            ) from None

    def _used(self, name: str, value: Any) -> None:
        """A global: code counts, a table of code too, a value does not."""
        if self.add(name, value):
            return
        if isinstance(value, Mapping):
            self._code_in(name, value.items())
        elif isinstance(value, list | tuple):
            self._code_in(name, enumerate(value))

    def _code_in(self, name: str, items: Iterable[tuple[Any, Any]]) -> None:
        for key, value in items:
            self.add(f"{name}[{key!r}]", value)

    def _table(self, name: str, values: Mapping[Any, Any]) -> None:
        for key, value in values.items():
            if not self.add(f"{name}.{key}", value):
                self._plain(f"{name}.{key}", value)

    def _plain(self, name: str, value: Any) -> None:
        """What has a plain value; other attributes and defaults say nothing of the code."""
        try:
            self.parts.append(f"{name} = {plain(value, name)!r}")
        except (TypeError, ValueError):
            self.parts.append(f"{name}: {type(value).__name__}")


_EMPTY = object()


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return _EMPTY


def _is_study(value: Any) -> bool:
    """Another study, whose code is part of the code; told by what it has, to import nothing."""
    return hasattr(value, "function") and hasattr(value, "folder") and hasattr(value, "run")


def _source(function: types.FunctionType) -> str:
    code = function.__code__
    try:
        source = _meaning(textwrap.dedent(inspect.getsource(code)))
    except (OSError, TypeError):
        return _written(code)
    # Several lambdas can stand on one line of source.
    return source + _written(code) if code.co_name == "<lambda>" else source


def _meaning(source: str) -> str:
    """Source without comments and layout, which change no number."""
    try:
        return ast.unparse(ast.parse(source))
    except SyntaxError:  # a lambda in the middle of an expression
        return source


def _written(constant: Any) -> str:
    """Compiled code and its constants, equal for equal code in every process."""
    if isinstance(constant, types.CodeType):
        inner = ", ".join(map(_written, constant.co_consts))
        return f"<{constant.co_code.hex()} {constant.co_names} [{inner}]>"
    if isinstance(constant, frozenset):
        return f"frozenset({sorted(map(_written, constant))})"
    if isinstance(constant, tuple):
        return f"({', '.join(map(_written, constant))})"
    return repr(constant)


def _names(code: types.CodeType) -> set[str]:
    """Global names that code refers to, in the functions inside it too."""
    names: set[str] = set()
    waiting = [code]
    while waiting:
        inner = waiting.pop()
        names |= set(inner.co_names)
        waiting += [c for c in inner.co_consts if isinstance(c, types.CodeType)]
    return names
