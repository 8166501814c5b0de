"""What the machine has is what the kernel says, and what a container may use is what its control group says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from memory.slm.machine import Machine, gpus, machine, resident_bytes

MB = 2**20


def tree(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A machine of 16 GB, 12 of them free."""
    meminfo = (
        f"MemTotal:       {16 * MB} kB\nMemFree:         {MB} kB\nMemAvailable:   {12 * MB} kB\nHugePages_Total:   0\n"
    )
    return tree(tmp_path / "proc", {"meminfo": meminfo, "self/cgroup": "0::/pod/box\n"})


def measured(tmp_path: Path, proc: Path, **groups: str) -> Machine:
    """With control groups; `pod__memory_max` is the file `pod/memory.max`."""
    files = {name.replace("__", "/").replace("_", ".", 1): content for name, content in groups.items()}
    return machine(tmp_path, (), proc, tree(tmp_path / "groups", files))


def test_this_machine_is_measured(tmp_path: Path) -> None:
    here = machine(tmp_path / "not" / "made" / "yet", ())
    assert 0 < here.free_bytes <= here.total_bytes
    assert 0 < here.cores <= (os.cpu_count() or 1)
    assert here.disk_bytes > 0
    assert dict(here.engines).keys() >= {"xllamacpp", "torch", "transformers"}


def test_without_a_control_group_all_that_is_free_may_be_used(tmp_path: Path, proc: Path) -> None:
    here = measured(tmp_path, proc)
    assert (here.total_bytes, here.free_bytes) == (16 * 1024 * MB, 12 * 1024 * MB)
    assert here.cores == len(os.sched_getaffinity(0))


def test_a_control_group_limits_memory_and_what_files_take_comes_back(tmp_path: Path, proc: Path) -> None:
    here = measured(
        tmp_path,
        proc,
        pod__box__memory_max=f"{1000 * MB}\n",
        pod__box__memory_current=f"{700 * MB}\n",
        pod__box__memory_stat=f"anon {100 * MB}\ninactive_file {600 * MB}\n",
    )
    assert (here.total_bytes, here.free_bytes) == (1000 * MB, 900 * MB)


def test_the_narrowest_of_all_groups_above_counts(tmp_path: Path, proc: Path) -> None:
    here = measured(
        tmp_path,
        proc,
        pod__box__memory_max="max\n",
        pod__memory_max=f"{500 * MB}\n",
        pod__memory_current=f"{100 * MB}\n",
        memory_max=f"{900 * MB}\n",
        pod__box__cpu_max="50000 100000\n",
        pod__cpu_max="max 100000\n",
    )
    assert (here.total_bytes, here.free_bytes) == (500 * MB, 400 * MB)
    assert here.cores == 0.5


def test_a_group_that_is_over_its_limit_has_nothing_free(tmp_path: Path, proc: Path) -> None:
    here = measured(tmp_path, proc, pod__memory_max=f"{100 * MB}", pod__memory_current=f"{200 * MB}")
    assert here.free_bytes == 0


def test_groups_that_say_nonsense_are_passed_over(tmp_path: Path, proc: Path) -> None:
    here = measured(tmp_path, proc, pod__memory_max="lots", pod__cpu_max="", memory_max=f"{MB}", memory_stat="x")
    assert here.free_bytes == MB


def test_looking_for_gpus_loads_no_torch_here() -> None:
    code = "import sys; from memory.slm.machine import gpus; gpus(); sys.exit('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent.parent, timeout=240)
    assert ran.returncode == 0


@pytest.mark.gpu
def test_a_gpu_says_its_name_and_memory() -> None:
    if not Path("/dev/nvidia0").exists():
        pytest.skip("there is none here")
    cards = gpus()
    assert cards
    assert all(card.name and 0 < card.free_bytes <= card.total_bytes for card in cards)


def test_a_process_has_so_much_in_memory_and_a_gone_one_nothing() -> None:
    assert resident_bytes(os.getpid()) > 10 * MB
    assert resident_bytes(2**22 + 1) == 0
