"""The loss along a line and over a plane through parameter space."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from landscape_core.curvature.hessian import Hessian
from landscape_core.curvature.probes import generator, nearby
from landscape_core.evaluator import Evaluator, Move
from landscape_core.objective import Objective
from landscape_core.progress import progress_bar

Span = float | tuple[float, float]
Precision = Literal["model", "bf16"]
DATA = "data, criterion or BatchNorm policy"


@dataclass(frozen=True)
class Line:
    """Loss along ``theta + x * direction``.

    Attributes
    ----------
    x : array, shape (p,)
        Steps, in units of the direction.
    loss : array, shape (p,)
        Mean loss over all examples.
    accuracy : array, shape (p,), or None
        Fraction classified correctly; None where targets are not class labels.
    curvature : float or None
        Second derivative of the loss by x at ``x = 0``, where it was asked for; under
        ``batchnorm="refresh"`` at the statistics of the centre.
    """

    x: np.ndarray
    loss: np.ndarray = field(repr=False)
    accuracy: np.ndarray | None = field(repr=False)
    curvature: float | None = None


@dataclass(frozen=True)
class Plane:
    """Loss over ``theta + x * d1 + y * d2``.

    Attributes
    ----------
    x, y : array, shapes (p,) and (q,)
        Steps along the first and the second direction, in units of each.
    loss : array, shape (q, p)
        ``loss[i, j]`` is the mean loss at ``(x[j], y[i])``.
    accuracy : array, shape (q, p), or None
    curvature : array, shape (2, 2), or None
        Second derivatives of the loss by x and y at the centre, where they were asked for: the
        Hessian of the picture, exact however coarse its grid is. Under ``batchnorm="refresh"``
        it is taken at the statistics of the centre, which the picture estimates at each point.
    """

    x: np.ndarray
    y: np.ndarray
    loss: np.ndarray = field(repr=False)
    accuracy: np.ndarray | None = field(repr=False)
    curvature: np.ndarray | None = field(repr=False, default=None)


def line(
    objective: Objective,
    direction: Tensor,
    *,
    span: Span = 1.0,
    points: int = 51,
    theta: Tensor | None = None,
    curvature: bool = False,
    precision: Precision = "model",
    progress: bool = False,
) -> Line:
    """Evaluate loss and accuracy on a line through theta.

    Parameters
    ----------
    objective : Objective
    direction : Tensor, shape (n,)
    span : float or (float, float)
        The line runs from -span to +span, or between the two, both ends included, in units of
        the direction.
    points : int
        Number of equally spaced points, at least 2. An odd number includes theta exactly.
    theta : Tensor, shape (n,), or None
        The centre; None is the objective's own theta.
    curvature : bool
        Whether to take the second derivatives along the direction too, by a product
        with the Hessian at theta.
    precision : {"model", "bf16"}
        ``"bf16"`` runs the forward passes under bfloat16 autocast: often faster, and good to
        two or three digits of the loss, enough for a picture and not for a number.
    progress : bool

    Returns
    -------
    Line

    Raises
    ------
    ValueError
        If the direction is zero or of another model, or span or points is out of range.
    """
    theta = objective.theta if theta is None else objective.space.check(theta)
    direction = _check_direction(objective, direction, "direction")
    x = _steps(span, points)
    moves = [partial(_move, theta, direction, a) for a in x.tolist()]
    bent = _curvature(objective, theta, direction[None]) if curvature else None
    with progress_bar(total=points, desc="slice", unit="point", progress=progress) as bar:
        found = _scan(Evaluator(objective), moves, bar, precision)
    return Line(x, *found, None if bent is None else float(bent[0, 0]))


def plane(
    objective: Objective,
    d1: Tensor,
    d2: Tensor,
    *,
    span: Span = 1.0,
    span_y: Span | None = None,
    points: int = 51,
    points_y: int | None = None,
    theta: Tensor | None = None,
    curvature: bool = False,
    precision: Precision = "model",
    store: str | Path | None = None,
    progress: bool = False,
) -> Plane:
    """Evaluate loss and accuracy on a grid through theta.

    Each point is computed from theta afresh, never by repeated addition, and only one point
    at a time is held in memory.

    Parameters
    ----------
    objective : Objective
    d1, d2 : Tensor, shape (n,)
        Directions; they need not be orthogonal, but must not be parallel.
    span, span_y : float or (float, float)
        The first axis runs from -span to +span, or between the two, both ends included; so does
        the second by `span_y`, which None sets to `span`.
    points, points_y : int
        Points along each axis, at least 2. An odd number includes theta exactly where the span
        is one number. None takes as many along the second as along the first.
    theta : Tensor, shape (n,), or None
        The centre; None is the objective's own theta.
    store : path or None
        A file (.npz) that every finished row is written to. A second call with the same
        directions, spans, theta, data and precision goes on where the first was stopped; a
        file of another plane is refused.
    curvature : bool
        Whether to take the second derivatives along the axes too, by two products
        with the Hessian at theta.
    precision : {"model", "bf16"}
        ``"bf16"`` runs the forward passes under bfloat16 autocast: often faster, and good to
        two or three digits of the loss, enough for a picture and not for a number.
    progress : bool

    Returns
    -------
    Plane

    Raises
    ------
    ValueError
        If a direction is zero or of another model, the two are parallel, or span or points is
        out of range.
    """
    theta = objective.theta if theta is None else objective.space.check(theta)
    d1 = _check_direction(objective, d1, "d1")
    d2 = _check_direction(objective, d2, "d2")
    a, b = d1.double(), d2.double()
    cosine = float((a / a.norm()) @ (b / b.norm()))
    if 1 - abs(cosine) < 1e-6:
        raise ValueError(f"d1 and d2 must not be parallel, got a cosine of {cosine:.6f}")
    x = _steps(span, points)
    y = _steps(span if span_y is None else span_y, points if points_y is None else points_y)
    bent = _curvature(objective, theta, torch.stack([d1, d2])) if curvature else None
    told = _identity(objective, theta) if store is not None else []
    parts = {
        "theta": _fingerprint(theta),
        "directions": _fingerprint(d1, d2),
        "spans or points": _fingerprint(x, y),
        DATA: _fingerprint(*told),
        "precision": precision,
    }
    rows = _Rows(store, _fingerprint(theta, d1, d2, x, y, *told) + precision, parts)
    total, finished = len(x) * len(y), len(rows.done) * len(x)
    evaluator = Evaluator(objective)
    with progress_bar(
        total=total, initial=finished, desc="slice", unit="point", progress=progress
    ) as bar:
        for b in y[len(rows.done) :].tolist():
            row = theta + b * d2
            moves = [partial(_move, row, d1, a) for a in x.tolist()]
            rows.add(_scan(evaluator, moves, bar, precision))
    loss, accuracy = rows.arrays()
    return Plane(x, y, loss, accuracy, bent)


def _steps(span: Span, points: int) -> np.ndarray:
    """Equally spaced steps whose ends are exact, and whose middle is 0 for a single number."""
    if not isinstance(points, Integral) or points < 2:
        raise ValueError(f"points must be a whole number of at least 2, got {points}")
    if isinstance(span, tuple | list):
        low, high = (float(end) for end in span)
        if not (np.isfinite([low, high]).all() and low < high):
            raise ValueError(f"span must be (low, high) with low < high, got {span}")
        return np.linspace(low, high, points)
    if not (np.isfinite(span) and span > 0):
        raise ValueError(f"span must be positive and finite, got {span}")
    return span * (2 * np.arange(points) - (points - 1)) / (points - 1)


def _check_direction(objective: Objective, direction: Tensor, name: str) -> Tensor:
    direction = objective.space.check(direction, name)
    norm = float(direction.norm())
    if not (np.isfinite(norm) and norm > 0):
        raise ValueError(f"{name} must be finite and not zero, got a norm of {norm}")
    return direction


Row = tuple[np.ndarray, np.ndarray | None]


def _curvature(objective: Objective, theta: Tensor, directions: Tensor) -> np.ndarray:
    """Second derivatives along directions, (k, n) to (k, k)."""
    products = Hessian(objective, theta) @ directions.T
    found = directions.double() @ products.double()
    return np.asarray(((found + found.T) / 2).cpu().numpy())


def _move(start: Tensor, direction: Tensor, step: float, theta: Tensor) -> None:
    """Write ``start + step * direction`` into theta; no memory is asked for."""
    torch.add(start, direction, alpha=step, out=theta)


def _scan(at: Evaluator, moves: Iterable[Move], bar: tqdm, precision: Precision) -> Row:
    """Loss and accuracy at each point, arrays of shape (count,)."""
    objective = at.objective
    if precision not in get_args(Precision):
        raise ValueError(f"precision must be 'model' or 'bf16', got {precision!r}")
    if precision == "bf16" and objective.space.dtype != torch.float32:
        raise ValueError(f"precision 'bf16' needs weights in float32, got {objective}")
    losses: list[Tensor] = []
    accuracies: list[Tensor] = []
    kind, half = objective.space.device.type, precision == "bf16"
    if half:
        objective.loss()  # checks the criterion, for which half precision is too coarse
    for move in moves:
        with torch.autocast(kind, torch.bfloat16, enabled=half):
            loss, accuracy = at(move)
        losses.append(loss)
        if accuracy is not None:
            accuracies.append(accuracy)
        bar.update()
    correct = torch.stack(accuracies).cpu().numpy() if accuracies else None
    return torch.stack(losses).cpu().numpy(), correct


class _Rows:
    """The finished rows of a plane, kept in a file if one is named.

    `parts` are fingerprints too, of what makes up the plane, by name.
    """

    def __init__(
        self, store: str | Path | None, fingerprint: str, parts: dict[str, str]
    ) -> None:
        self.file = None if store is None else Path(store)
        self.fingerprint, self.parts = fingerprint, parts
        self.done: list[Row] = []
        if self.file is None or not self.file.exists():
            return
        try:
            with np.load(self.file, allow_pickle=False) as saved:
                found = {name: saved[name] for name in saved.files}
            accuracy = found.get("accuracy", [None] * len(found["loss"]))
            same = str(found["fingerprint"]) == fingerprint
            rows = list(zip(found["loss"], accuracy, strict=True))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"store must hold rows of a plane, {store} is damaged") from error
        if not same:
            raise ValueError(
                f"store must belong to this plane, {store} holds one of other "
                f"{self._others(found.get('parts'))}: name another file"
            )
        self.done = rows

    def _others(self, saved: np.ndarray | None) -> str:
        """What differs from the parts in the file; files of earlier versions hold none."""
        pairs = zip(self.parts.items(), [] if saved is None else saved.tolist(), strict=False)
        names = [name for (name, here), there in pairs if here != there]
        if names[:1] == ["theta"] and DATA in names:  # losses at another theta say nothing
            names.remove(DATA)
        return " and ".join(names) or ", ".join(self.parts)

    def add(self, row: Row) -> None:
        self.done.append(row)
        if self.file is None:
            return
        loss, accuracy = self.arrays()
        arrays = {"loss": loss, "fingerprint": np.array(self.fingerprint)}
        arrays["parts"] = np.array(list(self.parts.values()))
        if accuracy is not None:
            arrays["accuracy"] = accuracy
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix(".partial.npz")
        np.savez(partial, **arrays)  # type: ignore[arg-type]
        partial.replace(self.file)

    def arrays(self) -> Row:
        """All rows so far, loss and accuracy of shape (rows, p)."""
        correct = [accuracy for _, accuracy in self.done if accuracy is not None]
        whole = len(correct) == len(self.done)
        return np.stack([loss for loss, _ in self.done]), np.stack(correct) if whole else None


def _identity(objective: Objective, theta: Tensor) -> list[np.ndarray]:
    """What tells two objectives apart: the losses of their examples at two points.

    One does not: a last layer of zeros gives all data the same losses.
    """
    points = theta, nearby(theta, generator(0, theta.device), "gaussian")
    return [objective.example_values(point)[0].cpu().numpy() for point in points]


def _fingerprint(*parts: Tensor | np.ndarray) -> str:
    digest = hashlib.sha256()
    for part in parts:
        array = part.detach().cpu().numpy() if isinstance(part, Tensor) else part
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
