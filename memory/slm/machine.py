"""What this machine has for a local model: memory, processors, disk, GPUs, engines. All of it measured, none assumed.

A container sees the whole machine in `/proc`; what it may use stands in its control group (v2), so both are read.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
ENGINES = ("xllamacpp", "transformers", "torch", "bitsandbytes", "peft")
PROBE_SECONDS = 120.0  # torch takes two; a slow disk makes it more
PROBE = """
import json, torch
cards = range(torch.cuda.device_count())
print(json.dumps([[torch.cuda.get_device_name(n), *torch.cuda.mem_get_info(n)] for n in cards]))
"""


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Machine:
    free_bytes: int  # of memory that a new process may take
    total_bytes: int
    cores: float  # processors that we may use; a control group may grant parts
    disk_bytes: int  # free where weights are kept
    gpus: tuple[Gpu, ...]
    engines: tuple[tuple[str, str], ...]  # packages that are installed, with their versions


def machine(home: Path, cards: tuple[Gpu, ...], proc: Path = PROC, cgroups: Path = CGROUPS) -> Machine:
    """What is free now; `cards` are those that `gpus` found."""
    told = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines() if ":" in line)
    total, free = (int(told[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    groups = tuple(own_groups(proc, cgroups))
    for group in groups:
        if limit := number(group / "memory.max"):
            total, free = min(total, limit), min(free, limit - taken(group))
    return Machine(
        free_bytes=max(free, 0),
        total_bytes=total,
        cores=cores(groups),
        disk_bytes=shutil.disk_usage(existing(home)).free,
        gpus=cards,
        engines=tuple((name, metadata.version(name)) for name in ENGINES if find_spec(name)),
    )


def own_groups(proc: Path, cgroups: Path) -> Iterator[Path]:
    """Our control group and those above it; their limits hold all at once."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    path = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/").lstrip("/")
    group = cgroups / path
    while group.is_relative_to(cgroups):
        yield group
        group = group.parent


def number(file: Path) -> int | None:
    """What a file of a control group says; None: there is none, or it says `max`."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def taken(group: Path) -> int:
    """Bytes that a control group has in use, without files that the kernel would drop first."""
    try:
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        stat = {}
    return (number(group / "memory.current") or 0) - int(stat.get("inactive_file", 0))


def cores(groups: tuple[Path, ...]) -> float:
    most = float(len(os.sched_getaffinity(0)))
    for group in groups:
        try:
            quota, period = (group / "cpu.max").read_text().split()
            most = min(most, int(quota) / int(period))
        except (OSError, ValueError):  # none, or `max`
            continue
    return most


def existing(path: Path) -> Path:
    """The path, or what of it is there."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def gpus() -> tuple[Gpu, ...]:
    """Those that torch can compute on; none without torch. It is asked in a process of its own, which takes seconds."""
    if find_spec("torch") is None:
        return ()
    command = [sys.executable, "-P", "-c", PROBE]
    try:
        said = subprocess.run(command, capture_output=True, timeout=PROBE_SECONDS, check=True).stdout
        return tuple(Gpu(*card) for card in json.loads(said))
    except (OSError, ValueError, subprocess.SubprocessError):  # a driver that does not fit: there is none to compute on
        return ()


def resident_bytes(pid: int, proc: Path = PROC) -> int:
    """What a process has in memory; 0 where it is gone."""
    try:
        lines = (proc / str(pid) / "status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)
