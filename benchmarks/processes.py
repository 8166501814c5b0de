"""Processes seen through /proc: who is below whom, what they use, which sockets they hold (Linux)."""

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def lines(path: Path) -> list[str]:
    """The lines of a file; [] when it is not there, or gone while it was read."""
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def tree(root: int) -> list[int]:
    """A process and all below it, parents first; read from /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on (state, parent, ...); [] when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time the processes have used so far."""
    ticks = sum(int(fields[11]) + int(fields[12]) for pid in pids if (fields := stat(pid)))
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int, what: str = "VmRSS") -> float:
    """Resident memory of a process; `VmHWM`: its highest so far."""
    found = [int(line.split()[1]) for line in lines(Path(f"/proc/{pid}/status")) if line.startswith(what)]
    return found[0] / 1e3 if found else 0.0


def program(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""


def words(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def sockets(port: int) -> set[str]:
    """Inodes of the sockets that listen on a TCP port."""
    rows = [row.split() for name in ("tcp", "tcp6") for row in lines(Path(f"/proc/net/{name}"))[1:]]
    return {f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port}


def inodes(pid: int) -> set[str]:
    found = set()
    try:
        for handle in Path(f"/proc/{pid}/fd").iterdir():
            try:
                found.add(os.readlink(handle))
            except OSError:
                continue
    except OSError:
        pass
    return found
