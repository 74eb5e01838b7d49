"""Speed and memory of the curvature engine against other packages, in one run.

    python benchmarks/curvature.py                        # everything; hours on one CPU thread
    python benchmarks/curvature.py --models mlp-1024 --tasks product eigenpairs
    python benchmarks/curvature.py --device cuda --tasks product --examples 1797

Same process, same data, same weights, alternating order; medians over rounds. Results are
written after every task, and a second run goes on where the first stopped. Calls of other
packages that would take longer than ``--longest`` seconds are not made (of this package: five
times that, and only for the density): their time is then the number of products they need
times the measured time of one, and the table marks it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import table
import torch
import torch.nn.functional as F
from networks import NETWORKS, Batches, trained
from rivals import RIVALS
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import landscape_core as lc

TASKS = ["product", "eigenpairs", "trace", "square", "density", "summary", "memory"]
PACKAGES = ["torch", "landscape-core", "curvlinops-for-pytorch", "hessian-eigenthings",
            "PyHessian", "scipy"]  # fmt: skip
AMORTIZED = 30  # products over which building the graphs is spread
TOP = 10
# Stochastic Lanczos quadrature as others offer it (steps, probes), and ours behind a Krylov
# basis; `density_errors` checks that the second is at least as accurate as the first.
PLAIN, DEFLATED, BASIS = (80, 10), (40, 3), 60


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Wall time of a call, and what it returned."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    value = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, value


def gradient(model: nn.Module, batches: Batches) -> None:
    """One plain gradient of the whole data set, the unit of cost."""
    parameters = list(model.parameters())
    for inputs, targets in batches:
        torch.autograd.grad(F.cross_entropy(model(inputs), targets), parameters)


class Bench:
    """One network, the operators of all packages on it, and what was measured."""

    def __init__(self, name: str, options: argparse.Namespace, found: dict[str, Any]) -> None:
        self.options, self.found = options, found
        self.model, self.batches = trained(name, options.examples, device=options.device)
        self.objective = lc.Objective(self.model, F.cross_entropy, self.batches)
        self.rivals = [make(self.model, self.batches) for make in RIVALS]
        found["n"] = self.objective.n
        found["batches"] = [len(y) for _, y in self.batches]
        self.hessian = lc.Hessian(self.objective)
        v = torch.randn(self.objective.n, generator=torch.Generator().manual_seed(1))
        self.v = v.to(options.device)

    def product(self) -> dict[str, Any]:
        """One product: kept graphs, fresh graphs, the other packages; and one gradient."""
        lean = lc.Hessian(self.objective, memory_budget=0)
        calls: dict[str, Callable[[], Any]] = {
            "gradient": lambda: gradient(self.model, self.batches),
            "ours": lambda: self.hessian @ self.v,
            "ours, nothing kept": lambda: lean @ self.v,
        }
        calls |= {each.name: lambda each=each: each.product(self.v) for each in self.rivals}
        calls["gradient"]()  # starts what a GPU's libraries start at first
        first, reference = seconds(calls["ours"])  # builds the graphs
        times: dict[str, list[float]] = {name: [] for name in calls}
        agreement = {}
        for _ in range(self.options.rounds):
            for name, call in calls.items():
                spent, value = seconds(call)
                times[name].append(spent)
                if isinstance(value, Tensor):
                    error = (value - reference).norm() / reference.norm()
                    agreement[name] = float(error)
        result: dict[str, Any] = {name: statistics.median(t) for name, t in times.items()}
        build = max(0.0, first - result["ours"])
        result |= {
            "build": build,
            "amortized": result["ours"] + build / AMORTIZED,
            "agreement": agreement,
            "rounds": self.options.rounds,
            "kept_bytes": self.hessian._graphs.held,
        }
        return result

    def fastest(self) -> float:
        """Seconds of the fastest product of another package."""
        return min(self.found["product"][each.name] for each in self.rivals)

    def eigenpairs(self) -> dict[str, Any]:
        """Top eigenpairs at a relative residual of 1e-3, checked with our product."""
        operator = lc.Hessian(self.objective)  # pays for its graphs
        ours, pairs = seconds(lambda: lc.top_eigenpairs(operator, TOP, tol=1e-3))
        result: dict[str, Any] = {
            "ours": {"seconds": ours, "products": pairs.matvecs, **self._residuals(pairs)}
        }
        for each in self.rivals:
            if not hasattr(each, "eigenpairs"):
                continue
            # Lanczos without a test must be told its steps: the least, by twos, that suffice.
            for steps in range(pairs.matvecs, 2 * pairs.matvecs, 2):
                spent, (values, vectors) = seconds(
                    lambda each=each, steps=steps: each.eigenpairs(TOP, 1e-3, steps)
                )
                chosen = values.abs().argsort(descending=True)
                values, vectors = values[chosen].float(), vectors[:, chosen].float()
                theirs = lc.Eigenpairs(values, vectors, pairs.residuals, pairs.converged, 0)
                checked = self._residuals(theirs, each.product)
                if checked["worst_residual"] <= 1e-3:
                    break
            gap = (values - pairs.values).abs() / pairs.values.abs()
            result[each.name] = {"seconds": spent, "difference": float(gap.max()), **checked}
        return result

    def _residuals(
        self, pairs: lc.Eigenpairs, product: Callable[[Tensor], Tensor] | None = None
    ) -> dict[str, float]:
        """Worst relative residual by the product of the package itself."""
        multiply = product or self.hessian.__matmul__
        images = torch.stack([multiply(v.contiguous()) for v in pairs.vectors.T], dim=1)
        residuals = (images - pairs.vectors * pairs.values).norm(dim=0)
        return {"worst_residual": float((residuals / pairs.values.abs()).max())}

    def trace(self) -> dict[str, Any]:
        """The trace to 1 %: others are told the products that their best method needs."""
        operator = lc.Hessian(self.objective)
        ours, estimate = seconds(lambda: lc.trace(operator, 5000, method="deflated", rtol=0.01))
        hutchinson = self._moments()["hutchinson_trace"]
        xtrace = self._products_of_xtrace(0.01, estimate.matvecs)
        needed = {"hutchinson": hutchinson, "xtrace": xtrace}
        best = min(needed, key=needed.__getitem__)
        result = {
            "ours": {"seconds": ours, "products": estimate.matvecs, "value": estimate.value,
                     "stderr": estimate.stderr},
            "needed": needed, "best": best,
        }  # fmt: skip
        result["theirs"] = self._run_or_project(
            needed[best], lambda: self.rivals[0].trace(best, needed[best])
        )
        return result

    def _products_of_xtrace(self, rtol: float, tried: int) -> int:
        """Products that make the standard error of XTrace `rtol`, from one with `tried`.

        By the rate 1 / products, the best that it has; Hutch++ needs more than XTrace.
        """
        estimate = lc.trace(self.hessian, tried, method="xtrace")
        return 2 * max(6, math.ceil(tried * estimate.relative_error / rtol / 2))

    def _moments(self) -> dict[str, int]:
        """Products that Hutchinson's method needs, from the moments of the spectrum."""
        known = self.found["summary"]
        square, fourth = known["trace_of_square"]["value"], known["fourth"]
        trace = known["trace"]["value"]
        return {
            "hutchinson_trace": 1 + math.floor(2 * square / (0.01 * trace) ** 2),
            "hutchinson_square": math.ceil(2 * fourth / (0.05 * square) ** 2),
        }

    def _run_or_project(self, products: int, call: Callable[[], Any]) -> dict[str, Any]:
        predicted = products * self.fastest()
        if predicted > self.options.longest:
            return {"seconds": predicted, "projected": True, "products": products}
        spent, _ = seconds(call)
        return {"seconds": min(spent, predicted), "projected": False, "products": products}

    def square(self) -> dict[str, Any]:
        """Tr(H^2) to 5 %."""
        operator = lc.Hessian(self.objective)
        ours, estimate = seconds(lambda: lc.trace_of_square(operator, 5000, rtol=0.05))
        products = self._moments()["hutchinson_square"]
        theirs = {"seconds": products * self.fastest(), "projected": True, "products": products}
        return {
            "ours": {"seconds": ours, "products": estimate.matvecs, "value": estimate.value,
                     "stderr": estimate.stderr},
            "theirs": theirs,
        }  # fmt: skip

    def density(self) -> dict[str, Any]:
        """The density at settings of equal error."""
        count = BASIS + DEFLATED[0] * DEFLATED[1]
        own: dict[str, Any] = {
            "seconds": count * self.found["product"]["ours"] + self.found["product"]["build"],
            "products": count, "projected": True,
        }  # fmt: skip
        if own["seconds"] < 5 * self.options.longest:
            operator = lc.Hessian(self.objective)

            def ours() -> lc.SpectralDensity:
                found = lc.top_eigenpairs(operator, BASIS, max_matvecs=BASIS)
                return lc.spectral_density(operator, *DEFLATED, deflate=found)

            own |= {"seconds": seconds(ours)[0], "projected": False}
        products = PLAIN[0] * PLAIN[1]
        theirs = {"seconds": products * self.fastest(), "projected": True, "products": products}
        return {"ours": own, "theirs": theirs}

    def summary(self) -> dict[str, Any]:
        """All of the usual numbers; others compose theirs, in the table."""
        operator = lc.Hessian(self.objective)
        spent, summary = seconds(lambda: lc.curvature_summary(operator, TOP, steps=20))
        density = summary.density
        # The smallest eigenvalue is a search of its own for the others: its products by ours.
        lowest = lc.top_eigenpairs(self.hessian, 1, "SA", tol=1e-3, max_matvecs=500).matvecs
        theirs = {"products": lowest, "seconds": lowest * self.fastest(), "projected": True}
        return {
            "lambda_min_theirs": theirs,
            "seconds": spent, "products": summary.matvecs, "converged": summary.converged,
            "lambda_max": summary.lambda_max, "lambda_min": summary.lambda_min,
            "fourth": density.moment(4).value * density.n,
            **{name: {"value": getattr(summary, name).value,
                      "stderr": getattr(summary, name).stderr}
               for name in ("trace", "trace_of_square", "effective_rank")},
        }  # fmt: skip


def peak(name: str, package: str, task: str, examples: int) -> float:
    """Bytes that a task adds to the peak of a process of its own."""
    code = (
        f"import curvature; curvature.measure_peak({name!r}, {package!r}, {task!r}, {examples})"
    )
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def measure_peak(name: str, package: str, task: str, examples: int) -> None:
    """Run one task of one package and print by how much the peak memory rose."""
    torch.set_num_threads(1)
    model, batches = trained(name, examples, epochs=0)
    gradient(model, batches)
    before = peak_memory()
    with sdpa_kernel(SDPBackend.MATH):
        if package.startswith("ours"):
            budget = 0.0 if "nothing kept" in package else None
            objective = lc.Objective(model, F.cross_entropy, batches)
            hessian = lc.Hessian(objective, memory_budget=budget)
            if task == "product":
                hessian @ torch.ones(hessian.n)
            else:
                lc.top_eigenpairs(hessian, TOP, max_matvecs=45)
        else:
            rival = next(make for make in RIVALS if make.name == package)(model, batches)
            if task == "product":
                rival.product(torch.ones(sum(p.numel() for p in model.parameters())))
            else:
                rival.eigenpairs(TOP, 1e-1, 45)
    print(peak_memory() - before)


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes.

    On Linux not from getrusage, whose figure a new process inherits from the one that made it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        return 1024 * next(int(x.split()[1]) for x in lines if x.startswith("VmHWM"))
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of a product and of eigenpairs, each in its own process."""
    result: dict[str, Any] = {}
    ours = ["ours", "ours, nothing kept"]
    long = name in ("mlp-4096", "cnn", "resnet")  # dozens of products in each process
    for task, packages in {
        "product": [*ours, "curvlinops", "hessian-eigenthings", "PyHessian"],
        "eigenpairs": [*ours, "curvlinops", "hessian-eigenthings"],
    }.items():
        if task == "eigenpairs" and long:
            continue
        result[task] = {each: peak(name, each, task, options.examples) for each in packages}
    return result


def growth() -> dict[str, Any]:
    """Seconds of a product over a decade of examples and over a decade of parameters."""

    def cost(width: int, examples: int) -> tuple[int, float]:
        torch.manual_seed(0)
        x, y = torch.randn(examples, 256), torch.arange(examples) % 10
        layers = [nn.Linear(256, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Linear(width, 10))
        pairs = list(zip(x.split(500), y.split(500), strict=True))
        hessian = lc.Hessian(lc.Objective(model, F.cross_entropy, pairs))
        v = torch.randn(hessian.n)
        hessian @ v
        return hessian.n, statistics.median(seconds(lambda: hessian @ v)[0] for _ in range(5))

    examples = [500, 1000, 2000, 5000]
    widths = [256, 400, 800, 1100]
    return {
        "examples": [(count, cost(400, count)[1]) for count in examples],
        "parameters": [cost(width, 1000) for width in widths],
    }


def density_errors() -> dict[str, Any]:
    """Wasserstein error of both settings on a network whose spectrum is known exactly."""
    torch.manual_seed(0)
    data = lc.load("digits")
    model = lc.MLP(data.input_shape, 10, width=32)
    lc.train(model, data, lc.TrainConfig(epochs=10), progress=False)
    dense = lc.Hessian(lc.Objective(model, F.cross_entropy, data.train)).dense()
    matrix = lc.Matrix((dense + dense.T) / 2)
    exact = torch.linalg.eigvalsh(matrix.matrix.double())
    scale = float(exact.abs().mean())

    def error(seed: int, deflate: bool) -> float:
        if not deflate:
            return lc.spectral_density(matrix, *PLAIN, seed=seed).wasserstein(exact) / scale
        known = lc.top_eigenpairs(matrix, BASIS, max_matvecs=BASIS, seed=seed)
        found = lc.spectral_density(matrix, *DEFLATED, deflate=known, seed=seed)
        return found.wasserstein(exact) / scale

    return {
        "n": len(exact),
        "plain": {"products": PLAIN[0] * PLAIN[1],
                  "error": statistics.median(error(seed, False) for seed in range(9))},
        "deflated": {"products": DEFLATED[0] * DEFLATED[1] + BASIS,
                     "error": statistics.median(error(seed, True) for seed in range(9))},
    }  # fmt: skip


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """Say what this was run on."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            (x.split(":")[1].strip() for x in lines if x.startswith("model name")), model
        )
    on_gpu = options.device == "cuda"
    return {
        "processor": torch.cuda.get_device_name() if on_gpu else model,
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "threads": torch.get_num_threads(),
        "examples": options.examples,
        "python": platform.python_version(),
        "commit": commit(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def commit() -> str:
    """Commit of the package that is measured; "" outside a checkout."""
    here = Path(lc.__file__).parent
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=here, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip()


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run what is not in the file yet, and write after every task."""
    path = Path(options.out)
    results = json.loads(path.read_text()) if path.exists() else {}
    results["machine"] = machine(options)
    results.setdefault("models", {})

    def save() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(results, indent=1) + "\n")
        partial.replace(path)

    for name, call in {"density_errors": density_errors, "growth": growth}.items():
        if name not in results and options.device == "cpu":
            results[name] = call()
            save()
    for name in options.models:
        found = results["models"].setdefault(name, {})
        wanted = [task for task in options.tasks if task not in found]
        bench = Bench(name, options, found) if set(wanted) - {"memory"} else None
        for task in sorted(wanted, key=["product", "summary", *TASKS].index):
            with sdpa_kernel(SDPBackend.MATH):
                found[task] = (
                    memory(name, options) if task == "memory" else getattr(bench, task)()
                )
            save()
            print(f"{name}: {task} done", flush=True)
    return results


def main() -> None:
    """Read the arguments, run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--tasks", nargs="*", default=TASKS, choices=TASKS)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--longest", type=float, default=60.0, help="seconds")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", help="default: the file of the device in results/")
    options = parser.parse_args()
    results = Path(__file__).parent / "results"
    options.out = options.out or str(results / f"curvature_{options.device}.json")
    if options.device == "cuda" and set(options.tasks) != {"product"}:
        parser.error("on a GPU give --tasks product: the other tasks measure the CPU's memory")
    torch.set_num_threads(options.threads)
    # All packages multiply all bits of float32, so that they compute the same numbers.
    torch.backends.cudnn.allow_tf32 = False
    print(table.text(run(options)))


if __name__ == "__main__":
    main()
