"""An adapter's folder is immutable once it is there, and nothing hostile in one is ever loaded."""

import json
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from memory.errors import InvalidRequest
from memory.slm.adapters import (
    CONFIG,
    META,
    WEIGHTS,
    BadAdapter,
    Foundation,
    foundation_of,
    open_adapter,
    publish,
    published,
    remove,
)
from memory.slm.header import BadWeights

SIDE, RANK = 16, 4
LAYER = "model.layers.0.self_attn.q_proj"
BASE = Foundation("b" * 32, {f"{LAYER}.weight": (SIDE, SIDE), "model.norm.weight": (SIDE,)})
SETTINGS = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "bias": "none", "target_modules": ["q_proj"]}


def matrices(rank: int = RANK, layer: str = LAYER) -> dict[str, np.ndarray]:
    name = f"base_model.model.{layer}.lora_{{}}.weight"
    return {
        name.format("A"): np.ones((rank, SIDE), np.float32),
        name.format("B"): np.ones((SIDE, rank), np.float32),
    }


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """What a trainer leaves."""
    folder = tmp_path / "trained"
    folder.mkdir()
    save_file(matrices(), folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(SETTINGS))
    return folder


@pytest.fixture
def folder(trained: Path) -> Path:
    """A folder that somebody put where adapters lie."""
    (trained / META).write_text(json.dumps({"base_hash": BASE.hash}))
    return trained


def test_an_adapter_gets_a_number_and_its_meta_and_can_be_opened_again(trained, tmp_path):
    home = tmp_path / "adapters"
    first = publish(home, "t1", BASE, trained, {"seed": 3})
    second = publish(home, "t1", BASE, trained, {"seed": 4})
    assert published(home, "t1", BASE) == (first.folder, second.folder)
    assert [path.name for path in published(home, "t1", BASE)] == ["1", "2"]
    assert open_adapter(first.folder, BASE) == first
    assert first.meta == {"seed": 3, "base_hash": BASE.hash}
    assert (first.r, first.alpha, first.modules, first.bias) == (RANK, 8.0, (LAYER,), "none")
    assert published(home, "t2", BASE) == ()


def test_nothing_of_a_folder_can_be_written_and_what_it_was_made_of_stays(trained, tmp_path):
    adapter = publish(tmp_path / "adapters", "t1", BASE, trained, {})
    assert {path.stat().st_mode & 0o222 for path in adapter.folder.iterdir()} == {0}
    assert sorted(path.name for path in trained.iterdir()) == [CONFIG, WEIGHTS]


def test_numbers_go_on_above_ten_and_over_gaps(trained, tmp_path):
    home = tmp_path / "adapters"
    made = [publish(home, "t1", BASE, trained, {"n": n}).folder for n in range(11)]
    remove(made[3])
    assert [path.name for path in published(home, "t1", BASE)] == ["1", "2", "3", *map(str, range(5, 12))]
    assert publish(home, "t1", BASE, trained, {}).folder.name == "12"


def test_two_that_publish_at_once_get_two_numbers(trained, tmp_path):
    home = tmp_path / "adapters"
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        jobs = [pool.submit(publish, home, "t1", BASE, trained, {"n": n}) for n in range(4) for pool in (one, other)]
        made = [job.result().folder for job in jobs]
    assert len({*made}) == 8 == len(published(home, "t1", BASE))


@pytest.mark.parametrize("tenant", ["", ".", "..", "../t2", "a/b", "a" * 65, "a\0"])
def test_a_tenant_is_a_name_and_never_a_way(trained, tmp_path, tenant):
    with pytest.raises(InvalidRequest):
        publish(tmp_path / "adapters", tenant, BASE, trained, {})


def test_what_does_not_fit_is_not_published_and_leaves_nothing(trained, tmp_path):
    save_file(matrices(rank=5), trained / WEIGHTS)
    with pytest.raises(BadAdapter, match="does not fit"):
        publish(tmp_path / "adapters", "t1", BASE, trained, {})
    assert published(tmp_path / "adapters", "t1", BASE) == ()
    assert not [path for path in (tmp_path / "adapters").rglob("*") if path.is_file()]


def test_an_adapter_of_another_base_or_of_another_quantization_is_refused(folder):
    other = Foundation("c" * 32, BASE.shapes)
    with pytest.raises(BadAdapter, match="another base"):
        open_adapter(folder, other)


def test_the_hash_of_a_base_is_of_its_weights_and_its_quantization(tmp_path):
    for name, value in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        save_file({"x.weight": np.full((2, 3), value, np.float32)}, tmp_path / name / "model.safetensors")
    a, b, c = (foundation_of(tmp_path / name) for name in "abc")
    assert a == b
    assert a.shapes == {"x.weight": (2, 3)}
    assert len({a.hash, c.hash, foundation_of(tmp_path / "a", "8bit").hash}) == 3


def test_a_folder_without_weights_is_no_base(tmp_path):
    with pytest.raises(BadWeights, match="no safetensors"):
        foundation_of(tmp_path)


def ten_gigabytes(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 10 * 2**30) + b"{" * 64)


def rewritten(folder: Path, header: object, body: bytes = b"") -> None:
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + body)


def entry(start: int, stop: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def linked(folder: Path, name: str, target: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)


NAMED = f"base_model.model.{LAYER}.lora_A.weight"

HOSTILE = {
    "a pickle beside the weights": lambda f: (f / "adapter_model.bin").write_bytes(b"\x80\x04."),
    "a pickle in a folder below": lambda f: ((f / "x").mkdir(), (f / "x" / "a.pkl").write_bytes(b"")),
    "a pickle under the name of the weights": lambda f: (f / WEIGHTS).write_bytes(b"\x80\x04\x95" + b"a" * 100),
    "a link that leads out": lambda f: linked(f, WEIGHTS, f.parent / "elsewhere"),
    "a link to a device": lambda f: linked(f, "notes", Path("/dev/zero")),
    "a link to a folder outside": lambda f: linked(f, "more", f.parent),
    "a header of 10 GB": ten_gigabytes,
    "a header longer than the file": lambda f: (f / WEIGHTS).write_bytes(struct.pack("<Q", 1_000) + b"{}"),
    "nothing at all": lambda f: (f / WEIGHTS).write_bytes(b""),
    "no JSON": lambda f: (f / WEIGHTS).write_bytes(struct.pack("<Q", 4) + b"spam"),
    "a header that is a list": lambda f: rewritten(f, []),
    "deep JSON": lambda f: (f / WEIGHTS).write_bytes(struct.pack("<Q", 200_000) + b"[" * 200_000),
    "a tensor larger than the file": lambda f: rewritten(f, {NAMED: entry(0, 4 * 2**40, [2**20, 2**20])}),
    "offsets that are no numbers": lambda f: rewritten(f, {NAMED: entry("a", "b", [1])}),
    "negative sides": lambda f: rewritten(f, {NAMED: entry(0, 4, [-1, -1])}, b"abcd"),
    "an overlap": lambda f: rewritten(f, {NAMED: entry(0, 4, [1, 1]), "b": entry(0, 4, [1, 1])}, b"abcd"),
    "bytes behind the last tensor": lambda f: rewritten(f, {NAMED: entry(0, 4, [1, 1])}, b"abcdefgh"),
    "a type we do not know": lambda f: rewritten(f, {NAMED: entry(0, 4, [1, 1], "F8_E4M3")}, b"abcd"),
    "no tensor": lambda f: rewritten(f, {}),
    "another tensor": lambda f: save_file(
        {**matrices(), "model.embed.weight": np.ones((2, 2), np.float32)}, f / WEIGHTS
    ),
    "a module that the base lacks": lambda f: save_file(matrices(layer="model.layers.9.q_proj"), f / WEIGHTS),
    "a module that is no matrix": lambda f: save_file(matrices(layer="model.norm"), f / WEIGHTS),
    "half of a pair": lambda f: save_file({NAMED: matrices()[NAMED]}, f / WEIGHTS),
    "another rank than it says": lambda f: save_file(matrices(rank=2), f / WEIGHTS),
    "a bias it does not speak of": lambda f: save_file(
        {**matrices(), f"base_model.model.{LAYER}.bias": np.ones(SIDE, np.float32)}, f / WEIGHTS
    ),
    "no configuration": lambda f: (f / CONFIG).unlink(),
    "no meta": lambda f: (f / META).unlink(),
    "a meta that is a list": lambda f: (f / META).write_text("[]"),
    "a meta of 20 MB": lambda f: (f / META).write_text(" " * 20_000_000),
    "another method": lambda f: (f / CONFIG).write_text(json.dumps({**SETTINGS, "peft_type": "IA3"})),
    "no rank": lambda f: (f / CONFIG).write_text(json.dumps({**SETTINGS, "r": None})),
    "a rank of a million": lambda f: (f / CONFIG).write_text(json.dumps({**SETTINGS, "r": 1_000_000})),
    "alpha that is no number": lambda f: (f / CONFIG).write_text(json.dumps({**SETTINGS, "lora_alpha": "8"})),
    "layers that are copied": lambda f: (f / CONFIG).write_text(
        json.dumps({**SETTINGS, "layer_replication": [[0, 10_000]]})
    ),
    "a class of its own": lambda f: (f / CONFIG).write_text(
        json.dumps({**SETTINGS, "auto_mapping": {"base_model_class": "x", "parent_library": "os"}})
    ),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_or_broken_folder_is_refused_before_anything_is_loaded(folder, how):
    open_adapter(folder, BASE)  # it was a good one
    HOSTILE[how](folder)
    with pytest.raises(BadWeights) as refused:
        open_adapter(folder, BASE)
    assert str(folder) in str(refused.value)


def test_a_link_to_an_adapter_is_none(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(BadAdapter, match="no adapter"):
        open_adapter(tmp_path / "link", BASE)


def test_a_pipe_under_the_name_of_the_weights_does_not_stop_us(folder):
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)
    with pytest.raises(BadAdapter):
        open_adapter(folder, BASE)
