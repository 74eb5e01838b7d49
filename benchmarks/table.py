"""The benchmark's results as tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

RESIDUAL = 1e-3
RIVALS = ["curvlinops", "hessian-eigenthings", "PyHessian"]
CPU = Path(__file__).parent / "results" / "curvature_cpu.json"
GPU = CPU.with_name("curvature_cuda.json")
GEOMETRY = CPU.with_name("geometry_cpu.json")


def read(path: Path = CPU) -> dict[str, Any]:
    """Read the results of a run."""
    return json.loads(path.read_text())


def products(results: dict[str, Any]) -> pd.DataFrame:
    """One product of every package, in gradients; a network to a column."""
    columns = {}
    for name, found in results["models"].items():
        if "product" not in found:
            continue
        times = found["product"]
        unit = times["gradient"]
        fastest = min(times[rival] for rival in RIVALS)
        columns[name] = {
            "parameters": f"{found['n']:,}",
            "one gradient, seconds": _short(unit),
            "ours, graphs kept": _short(times["ours"] / unit),
            "ours, kept, amortized": _short(times["amortized"] / unit),
            "ours, nothing kept": _short(times["ours, nothing kept"] / unit),
            **{rival: _short(times[rival] / unit) for rival in RIVALS},
            "amortized over fastest": _short(times["amortized"] / fastest),
            **{f"{rival}, difference": f"{times['agreement'][rival]:.0e}" for rival in RIVALS},
        }
    return pd.DataFrame(columns)


def tasks(results: dict[str, Any]) -> pd.DataFrame:
    """Every task on every network: seconds of ours and of the fastest other."""
    rows = []
    for name, found in results["models"].items():
        for task, (ours, theirs) in _pairs(found).items():
            rows.append({
                "network": name,
                "task": task,
                "ours": _time(ours),
                "fastest other": _time(theirs),
                "of": theirs.get("name", "").removeprefix("hessian-"),
                "other over ours": _short(theirs["seconds"] / ours["seconds"]),
            })  # fmt: skip
    return pd.DataFrame(rows).set_index(["network", "task"])


def _pairs(found: dict[str, Any]) -> dict[str, tuple[dict, dict]]:
    pairs = {}
    if "eigenpairs" in found:
        times = found["eigenpairs"]
        # Who has not reached the residual asked for has not done the task.
        others = [
            times[rival] | {"name": rival}
            for rival in RIVALS
            if rival in times and times[rival]["worst_residual"] <= RESIDUAL
        ]
        pairs["top 10"] = (times["ours"], min(others, key=_seconds))
    for task, label in [
        ("trace", "trace, 1 %"),
        ("square", "Tr H², 5 %"),
        ("density", "density"),
    ]:
        if task in found:
            name = min(RIVALS, key=found["product"].__getitem__)
            pairs[label] = (found[task]["ours"], found[task]["theirs"] | {"name": name})
    if len(pairs) == 4 and "summary" in found:
        lowest = found["summary"]["lambda_min_theirs"]
        parts = [theirs["seconds"] for _, theirs in pairs.values()]
        composed = {"seconds": sum(parts) + lowest["seconds"], "projected": True}
        pairs["all, and the smallest"] = (found["summary"], composed)
    return pairs


def _time(entry: dict[str, Any]) -> str:
    products = f" ({entry['products']:,})" if "products" in entry else ""
    return ("~" if entry.get("projected") else "") + _short(entry["seconds"]) + products


def _seconds(entry: dict[str, Any]) -> float:
    return entry["seconds"]


def _short(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def memory(results: dict[str, Any]) -> pd.DataFrame:
    """Rise of the peak memory over that of a gradient, in MB."""
    tasks = {"product": "one product", "eigenpairs": "top 10 eigenpairs"}
    columns = {
        name: {
            (tasks[task], package): _short(peak / 1e6)
            for task, peaks in found["memory"].items()
            for package, peak in peaks.items()
        }
        for name, found in results["models"].items()
        if "memory" in found
    }
    table = pd.DataFrame(columns).fillna("")
    return table.rename_axis(["task", "package"]) if columns else table


def growth(results: dict[str, Any]) -> pd.DataFrame:
    """Seconds of a product against examples and against parameters."""
    rows = [
        {
            "varied": kind,
            "count": f"{count:,}",
            "seconds": _short(spent),
            "per million": _short(1e6 * spent / count),
        }
        for kind, series in results["growth"].items()
        for count, spent in series
    ]
    return pd.DataFrame(rows).set_index(["varied", "count"])


def geometry(path: Path = GEOMETRY) -> pd.DataFrame:
    """Slices, fitted curves, alignment and penalties: each measured ratio."""
    found = json.loads(path.read_text())
    plane, curve, penalties = found["plane"], found["curve"], found["penalties"]
    rows = [
        ("plane of 51 x 51, over 2601 bare forward passes", plane["over forward passes"], None),
        ("plane, loss-landscapes over ours", plane["loss-landscapes over ours"], None),
        ("Bezier curve of 30 epochs, over as many training steps",
         curve["over training steps"], None),
        ("weight matching, two layers of 4096 units, seconds", found["alignment"]["seconds"],
         None),
    ]  # fmt: skip
    for name, value in penalties.items():
        kind, _, unit = name.rpartition(", ")
        if unit == "gradients" and kind != "plain gradient":
            memory = penalties[f"{kind}, MB"] / penalties["plain gradient, MB"]
            rows.append((f"step with {kind}, in gradients", value, memory))
    table = pd.DataFrame(rows, columns=["task", "measured", "memory"])
    for column in ("measured", "memory"):
        table[column] = [_short(v) if v == v and v is not None else "" for v in table[column]]
    return table.set_index("task")


def text(results: dict[str, Any]) -> str:
    """All tables, for a terminal."""
    whole = "growth" in results  # else products alone, as of a GPU
    makers = [products, tasks, memory, growth] if whole else [products]
    pieces = [make(results) for make in makers]
    return "\n\n".join(piece.to_string() for piece in pieces if len(piece))
