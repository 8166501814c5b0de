"""The spool: what an append promised comes back, whatever happens to the process, the disk or the file."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory.errors import InvalidRequest, SpoolError, StoreUnavailable
from memory.spool import FRAME, HEAD, PENDING, Spool, _crc
from tests.faults import HANG

ROOT = Path(__file__).parents[2]
RECORDS = [b"first", b"", b"third " * 40, b"\x00\xff last"]


@pytest.fixture
def name(tmp_path: Path) -> Path:
    return tmp_path / "spool" / "turns"


def no_sync(fd: int) -> None:
    """For tests that are about the bytes, not the disk."""


async def drained(spool: Spool) -> list[bytes]:
    got: list[bytes] = []

    async def write(record: bytes) -> None:
        got.append(record)

    assert await spool.drain(write) == len(got)
    return got


def filled(name: Path, records: list[bytes]) -> Spool:
    spool = Spool(name, fsync=no_sync)
    for record in records:
        spool.append(record)
    return spool


def files(name: Path, kind: str) -> list[Path]:
    return sorted(name.parent.glob(f"{name.name}.{kind}-*"))


async def test_records_come_back_in_order_and_once(name: Path) -> None:
    spool = Spool(name)
    for record in RECORDS:
        await spool.append_async(record)

    assert spool.depth() == len(RECORDS)
    assert await drained(spool) == RECORDS
    assert await drained(spool) == []
    assert spool.depth() == 0


async def test_a_spool_that_was_never_used_is_empty(name: Path) -> None:
    spool = Spool(name)

    assert await drained(spool) == []
    assert spool.depth() == 0
    assert not name.parent.exists()


async def test_the_files_are_for_their_owner_alone(name: Path) -> None:
    filled(name, RECORDS).close()

    assert stat.S_IMODE(name.stat().st_mode) == 0o600
    assert stat.S_IMODE(name.parent.stat().st_mode) == 0o700


async def test_when_the_store_goes_away_again_the_rest_is_kept_in_order(name: Path) -> None:
    spool = filled(name, RECORDS)
    got: list[bytes] = []

    async def write(record: bytes) -> None:
        if len(got) == 2:
            raise StoreUnavailable
        got.append(record)

    assert await spool.drain(write) == 2
    assert spool.depth() == 2
    spool.append(b"came later")
    assert got + await drained(spool) == [*RECORDS, b"came later"]


async def test_a_record_that_is_refused_for_ever_is_set_aside_and_the_others_go_on(name: Path) -> None:
    spool = filled(name, RECORDS)
    got: list[bytes] = []

    async def write(record: bytes) -> None:
        if record == RECORDS[0]:
            raise InvalidRequest("cannot be read")
        got.append(record)

    assert await spool.drain(write) == 3
    assert got == RECORDS[1:]
    assert [path.read_bytes() for path in files(name, "refused")] == [RECORDS[0]]
    assert [stat.S_IMODE(path.stat().st_mode) for path in files(name, "refused")] == [0o600]
    assert await drained(spool) == []


@pytest.mark.parametrize("error", [ZeroDivisionError, TimeoutError, asyncio.CancelledError])
async def test_other_errors_of_the_writer_pass_and_nothing_is_lost(name: Path, error: type[BaseException]) -> None:
    spool = filled(name, RECORDS)

    async def write(record: bytes) -> None:
        raise error

    with pytest.raises(error):
        await spool.drain(write)
    assert await drained(spool) == RECORDS


async def test_one_drain_runs_at_a_time(name: Path) -> None:
    spool, other = filled(name, RECORDS), Spool(name)
    counts: list[int] = []

    async def write(record: bytes) -> None:
        counts.append(await other.drain(write))

    assert await spool.drain(write) == len(RECORDS)
    assert counts == [0] * len(RECORDS)


@settings(max_examples=80, deadline=None)
@given(cut=st.integers(0, 400))
def test_a_file_cut_anywhere_gives_all_records_before_the_cut(cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        name = Path(folder) / "turns"
        filled(name, RECORDS).close()
        ends = [HEAD.size]
        for record in RECORDS:
            ends.append(ends[-1] + FRAME.size + len(record))
        cut = min(cut, ends[-1])
        whole = sum(end <= cut for end in ends[1:])
        os.truncate(name, cut)

        spool = Spool(name, fsync=no_sync)
        spool.append(b"after the cut")
        assert asyncio.run(drained(spool)) == [*RECORDS[:whole], b"after the cut"]
        assert sum(path.stat().st_size for path in files(name, "torn")) == (
            cut - ends[whole] if cut >= HEAD.size else cut
        )
        assert asyncio.run(drained(spool)) == []
        spool.close()


@settings(max_examples=120, deadline=None)
@given(place=st.integers(0, 383), flip=st.integers(1, 255))
def test_a_damaged_byte_costs_at_most_its_own_record(place: int, flip: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        name = Path(folder) / "turns"
        filled(name, RECORDS).close()
        content = bytearray(name.read_bytes())
        content[place % len(content)] ^= flip
        name.write_bytes(content)

        spool = filled(name, [b"after the damage"])
        got = asyncio.run(drained(spool))
        lost = [record for record in RECORDS if record not in got]
        assert got == [*(record for record in RECORDS if record in got), b"after the damage"]
        assert len(lost) <= 1
        assert bool(files(name, "torn")) >= bool(lost)
        assert asyncio.run(drained(spool)) == []


async def test_records_behind_a_half_written_one_are_not_lost(name: Path) -> None:
    """A process died in the middle of a write; another one had the file open and went on."""
    spool = filled(name, [b"before"])
    with name.open("ab") as file:
        file.write(name.read_bytes()[HEAD.size : HEAD.size + FRAME.size + 2])
    spool.append(b"behind")

    assert spool.depth() == 2
    assert await drained(spool) == [b"before", b"behind"]
    assert len(files(name, "torn")) == 1


async def test_text_that_looks_like_a_frame_is_never_taken_for_one(name: Path) -> None:
    """Search for a next frame goes through bytes that users chose, when the frame around them is damaged."""
    forged = b"forged"
    frame = FRAME.pack(b"12345678", PENDING, len(forged), _crc(forged)) + forged
    spool = filled(name, [frame, b"honest"])
    content = bytearray(name.read_bytes())
    content[HEAD.size + 1] ^= 1  # in the mark of the first frame
    name.write_bytes(content)

    assert await drained(spool) == [b"honest"]


async def test_a_file_of_zeros_is_set_aside(name: Path) -> None:
    """What a power cut can leave: the length was written, the bytes were not."""
    name.parent.mkdir()
    name.write_bytes(bytes(3_000_000))
    spool = Spool(name)
    spool.append(b"new")

    assert spool.depth() == 1
    assert await drained(spool) == [b"new"]
    assert [path.stat().st_size for path in files(name, "torn")] == [3_000_000]


class Disk:
    """fsync that notes what it was called for, and fails or hangs when told."""

    def __init__(self) -> None:
        self.synced: list[int] = []  # inodes
        self.folders = 0
        self.fail = False
        self.free = threading.Event()
        self.free.set()

    def fsync(self, fd: int) -> None:
        self.free.wait(60)
        state = os.fstat(fd)
        self.synced.append(state.st_ino)
        self.folders += stat.S_ISDIR(state.st_mode)
        if self.fail:
            raise OSError(5, "Input/output error")
        os.fsync(fd)


def test_a_new_file_is_synced_with_its_folder_before_the_first_promise(name: Path) -> None:
    disk = Disk()
    spool = Spool(name, fsync=disk.fsync)
    spool.append(b"one")
    spool.append(b"two")

    assert disk.folders == 1
    assert disk.synced[-1] == disk.synced[-2] == name.stat().st_ino


async def test_after_a_failed_fsync_nothing_is_promised_and_that_file_is_never_synced_again(name: Path) -> None:
    disk = Disk()
    spool = Spool(name, fsync=disk.fsync)
    spool.append(b"one")
    suspect = name.stat().st_ino
    disk.fail = True
    with pytest.raises(SpoolError, match="Input/output error"):
        spool.append(b"two")

    disk.fail = False
    before = disk.synced.count(suspect)
    spool.append(b"three")
    assert disk.synced.count(suspect) == before
    assert await drained(spool) == [b"one", b"two", b"three"]  # what can still be read is still given


async def test_a_disk_that_hangs_is_waited_for_no_longer_than_asked(name: Path) -> None:
    disk = Disk()
    spool = Spool(name, fsync=disk.fsync, timeout_seconds=0.05)
    disk.free.clear()
    begin = time.monotonic()
    with pytest.raises(SpoolError, match=r"within 0\.05 s"):
        await spool.append_async(b"first")
    results = await asyncio.gather(*(spool.append_async(b"%d" % i) for i in range(20)), return_exceptions=True)

    assert time.monotonic() - begin < HANG
    assert [type(result) for result in results] == [SpoolError] * 20
    assert spool._waiting == []  # nobody waits, so nothing is kept in memory
    disk.free.set()
    spool.append(b"later")
    assert await drained(spool) == [b"first", b"later"]  # the first was written; its promise came too late


async def test_a_drain_waits_for_an_append_in_another_process(name: Path) -> None:
    """Or a record could be written to a file that has just been drained and removed."""
    disk = Disk()
    disk.free.clear()
    appending = asyncio.create_task(Spool(name, fsync=disk.fsync, timeout_seconds=60).append_async(b"late"))
    while not name.exists():
        await asyncio.sleep(0.01)
    draining = asyncio.create_task(drained(Spool(name)))
    await asyncio.sleep(0.1)

    assert not draining.done()
    disk.free.set()
    await appending
    assert await draining == [b"late"]


async def test_appends_at_the_same_time_share_an_fsync(name: Path) -> None:
    disk = Disk()
    spool = Spool(name, fsync=disk.fsync, timeout_seconds=60)
    disk.free.clear()
    first = asyncio.create_task(spool.append_async(b"first"))
    await asyncio.sleep(0.05)
    others = [asyncio.create_task(spool.append_async(b"%d" % i)) for i in range(100)]
    await asyncio.sleep(0.05)
    disk.free.set()
    await asyncio.gather(first, *others)

    assert len(disk.synced) <= 5  # two for the new file, then one for the first and one for all others
    assert len(await drained(spool)) == 101


async def test_the_event_loop_goes_on_while_the_disk_is_slow(name: Path) -> None:
    disk = Disk()
    spool = Spool(name, fsync=disk.fsync, timeout_seconds=60)
    disk.free.clear()
    slow = asyncio.create_task(spool.append_async(b"slow"))
    for _ in range(5):
        await asyncio.sleep(0.01)
    assert not slow.done()
    disk.free.set()
    await slow


@pytest.fixture
def unwritable(tmp_path: Path) -> Iterator[Path]:
    """A folder that this user may not write; root becomes nobody for a while, whom permissions concern."""
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)


async def test_a_folder_that_cannot_be_written_is_a_spool_error(unwritable: Path) -> None:
    spool = Spool(unwritable / "turns")

    with pytest.raises(SpoolError, match="take a record"):
        spool.append(b"x")
    with pytest.raises(SpoolError, match="take a record"):
        await spool.append_async(b"x")
    with pytest.raises(SpoolError, match="be drained"):
        await drained(spool)


def python(code: str, *arguments: object) -> "subprocess.Popen[str]":
    head = "import asyncio, os, resource, sys\nfrom pathlib import Path\nfrom memory.spool import Spool\n"
    head += "from memory.errors import SpoolError\nspool = Spool(Path(sys.argv[1]))\n"
    command = [sys.executable, "-c", head + code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


FILL_THE_DISK = """
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
for i in range(100):
    try:
        spool.append(b"%03d" % i * 1000)
        print(i, flush=True)
    except SpoolError:
        if soft != resource.getrlimit(resource.RLIMIT_FSIZE)[0]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    if i == 30:
        break
"""


async def test_a_full_disk_loses_only_what_was_not_promised_and_room_helps_at_once(name: Path) -> None:
    with python(FILL_THE_DISK, name) as child:
        acked = [int(line) for line in child.stdout or ()]

    assert acked == [i for i in range(31) if i != 16]  # 16 x 3,000 bytes fit
    assert [int(record[:3]) for record in await drained(Spool(name))] == acked
    assert files(name, "torn") == []


APPEND_FOR_EVER = """
i = 0
while True:
    spool.append(b"%d " % i + os.urandom(i % 5000))
    print(i, flush=True)
    i += 1
"""
DRAIN_SLOWLY = """
async def write(record):
    print(record.split()[0].decode(), flush=True)
    await asyncio.sleep(0.001)
asyncio.run(spool.drain(write))
"""


async def test_what_was_promised_survives_kill_9_of_the_appender_and_of_the_drainer(name: Path) -> None:
    acked: list[int] = []
    for _ in range(2):
        with python(APPEND_FOR_EVER, name) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(40)]
            child.send_signal(signal.SIGKILL)
            lines += child.stdout.read().splitlines()
        acked += map(int, lines)
    with python(DRAIN_SLOWLY, name) as child:
        assert child.stdout is not None
        first = [int(child.stdout.readline()) for _ in range(30)]
        child.send_signal(signal.SIGKILL)
        first += map(int, child.stdout.read().split())

    rest = [int(record.split()[0]) for record in await drained(Spool(name))]
    twice = 1 if rest[0] == first[-1] else 0  # killed between the write and the mark
    got = first + rest[twice:]
    runs = [i for i, number in enumerate(got) if number == 0]
    assert len(runs) == 2
    assert [got[a:b] for a, b in zip(runs, [*runs[1:], None], strict=True)] == [
        list(range(len(got[a:b]))) for a, b in zip(runs, [*runs[1:], None], strict=True)
    ]
    assert len(acked) <= len(got) <= len(acked) + 2


APPEND_200 = """
for i in range(200):
    spool.append(f"{sys.argv[2]} {i}".encode())
"""


async def test_processes_append_while_another_drains_and_each_keeps_its_order(name: Path) -> None:
    spool = Spool(name)
    got: list[bytes] = []
    with python(APPEND_200, name, "a") as a, python(APPEND_200, name, "b") as b:
        while a.poll() is None or b.poll() is None:
            got += await drained(spool)
            await asyncio.sleep(0.01)
    got += await drained(spool)

    for child in (b"a", b"b"):
        assert [record for record in got if record.startswith(child)] == [b"%b %d" % (child, i) for i in range(200)]
    assert len(got) == 400
