"""Headers of weights are read without trust: what is cut off, foreign or hostile is refused, and nothing else happens."""

import contextlib
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memory.slm.header import MOST_HEADER_BYTES, BadWeights, gguf_header, json_object, safetensors_parameters
from tests.slm.making import gguf, safetensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("headers")


@pytest.fixture
def written(folder: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = folder / "file"
        path.write_bytes(content)
        return path

    return write


Write = Callable[[bytes], Path]


def test_a_gguf_header_tells_fields_lengths_and_parameters(written: Write) -> None:
    header = gguf_header(written(gguf()))
    assert header.parameters == 8 * 4 + 8
    assert header.of_model("context_length") == 2_048
    assert header.of_model("rope.dimension_count") is None
    assert header.lengths == {"tokenizer.ggml.tokens": 3}
    assert header.fields["tokenizer.chat_template"] == "{{ messages }}"


def test_safetensors_tell_how_many_weights_they_have(written: Write) -> None:
    assert safetensors_parameters(written(safetensors())) == 8 * 4 + 8


@pytest.mark.parametrize(("make", "read"), [(gguf, gguf_header), (safetensors, safetensors_parameters)])
def test_a_file_that_was_copied_in_part_is_refused_wherever_it_ends(
    written: Write, make: Callable[[], bytes], read: Callable[[Path], object]
) -> None:
    whole = make()
    for end in range(len(whole) - 31):  # the last tensor begins 32 bytes before the end
        with pytest.raises(BadWeights):
            read(written(whole[:end]))


@pytest.mark.parametrize(("make", "read"), [(gguf, gguf_header), (safetensors, safetensors_parameters)])
def test_a_cut_file_is_said_to_be_one(
    written: Write, make: Callable[[], bytes], read: Callable[[Path], object]
) -> None:
    with pytest.raises(BadWeights, match=r"ends before its last tensor: it was copied in part; copy it again"):
        read(written(make()[:-32]))


def sparse(path: Path, head: bytes, size: int) -> Path:
    """A file that says it is large, without taking the room."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
    return path


def test_a_header_of_ten_gigabytes_is_not_read(folder: Path) -> None:
    path = sparse(folder / "huge", struct.pack("<Q", 10 * 2**30), 11 * 2**30)
    with pytest.raises(BadWeights, match=rf"more than {MOST_HEADER_BYTES:,} bytes"):
        safetensors_parameters(path)
    text = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 10 * 2**30)
    with pytest.raises(BadWeights, match=rf"more than {MOST_HEADER_BYTES:,} bytes"):
        gguf_header(sparse(folder / "huge", text, 11 * 2**30))


ENDLESS = {
    "texts": struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 8, 2**60),
    "fields": struct.pack("<IQQ", 3, 0, 2**60),
    "tensors": struct.pack("<IQQ", 3, 2**60, 0),
}


@pytest.mark.parametrize("head", ENDLESS.values(), ids=ENDLESS)
def test_a_header_with_endless_things_in_it_is_not_read(folder: Path, head: bytes) -> None:
    with pytest.raises(BadWeights, match="things are in its header"):
        gguf_header(sparse(folder / "endless", b"GGUF" + head, 2**30))


@pytest.mark.parametrize(
    "content",
    [b"", b"GGUF", b"PK\x03\x04" + b"\0" * 100, b"GGUF" + struct.pack("<IQQ", 1, 0, 0), b"\x80\x04" + b"." * 200],
    ids=["empty", "magic alone", "a zip", "another version", "a pickle"],
)
def test_what_is_no_gguf_file_is_refused(written: Write, content: bytes) -> None:
    with pytest.raises(BadWeights, match="file"):
        gguf_header(written(content))


@pytest.mark.parametrize(
    "header",
    [
        [1],
        {"a": 1},
        {"a": {"shape": [1]}},
        {"a": {"shape": ["x"], "data_offsets": [0, 1]}},
        {"a": {"shape": [-1], "data_offsets": [0, 1]}},
        {"a": {"shape": [2] * 1_000, "data_offsets": [0, 1]}},
        {"a": {"shape": [1], "data_offsets": [0, "1"]}},
        {"a": {"shape": [1], "data_offsets": [0, 1, 2]}},
        {"a": {"shape": 7, "data_offsets": [0, 1]}},
    ],
    ids=lambda header: str(header)[:40],
)
def test_what_is_no_header_of_safetensors_is_refused(written: Write, header: object) -> None:
    with pytest.raises(BadWeights):
        safetensors_parameters(written(safetensors((), header) + b"\0"))


@given(st.binary(max_size=400), st.booleans())
@example(b"", True)
@example(b"\xff" * 60, True)
def test_no_bytes_do_anything_but_be_refused(folder: Path, content: bytes, after_magic: bool) -> None:
    path = folder / "any"
    path.write_bytes((b"GGUF" + struct.pack("<I", 3) if after_magic else b"") + content)
    for read in (gguf_header, safetensors_parameters, json_object):
        with contextlib.suppress(BadWeights):
            read(path)


def test_json_that_is_too_large_is_not_read(folder: Path) -> None:
    with pytest.raises(BadWeights, match="10,000,000 bytes"):
        json_object(sparse(folder / "config.json", b"{", 2**30))
