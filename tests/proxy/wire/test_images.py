"""Promises about pictures: the size is read from their first bytes, and nothing a URL says can break it."""

import json
import struct
import zlib
from base64 import b64encode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.wire import images
from proxy.wire.content import message_of

promise = settings(deadline=None)


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{b64encode(data).decode()}"


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + b";"


def jpeg(width: int, height: int, *segments: tuple[int, bytes], frame: int = 0xC0) -> bytes:
    head = b"".join(b"\xff" + bytes([kind]) + struct.pack(">H", len(data) + 2) + data for kind, data in segments)
    sof = struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\x01\x11\x00"
    return b"\xff\xd8" + head + b"\xff" + bytes([frame]) + sof + b"\xff\xda" + b"\x00" * 20


def webp(kind: bytes, data: bytes) -> bytes:
    chunk = kind + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk


def lossy(width: int, height: int) -> bytes:
    return webp(b"VP8 ", b"\x50\x01\x00\x9d\x01\x2a" + struct.pack("<HH", width | 0x4000, height | 0x8000) + b"\0" * 8)


def lossless(width: int, height: int) -> bytes:
    return webp(b"VP8L", b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14 | 1 << 28) + b"\0" * 8)


def extended(width: int, height: int) -> bytes:
    return webp(b"VP8X", b"\x10\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little"))


MAKERS = {"png": png, "gif": gif, "jpeg": jpeg, "lossy": lossy, "lossless": lossless, "extended": extended}


@pytest.mark.parametrize("name", MAKERS)
@promise
@given(width=st.integers(1, 16_383), height=st.integers(1, 16_383))
def test_the_size_is_in_the_first_bytes(name, width, height):
    assert images.size(url(MAKERS[name](width, height))) == (width, height)


@pytest.mark.parametrize("frame", [0xC0, 0xC1, 0xC2, 0xC9, 0xCF])
def test_a_jpeg_is_read_past_its_profiles(frame):
    """Cameras put hundreds of kilobytes of previews and colour profiles before the frame header."""
    segments = [
        (0xE0, b"JFIF\0"),
        (0xE1, b"\xff\xc0" * 30_000),
        *[(0xE2, b"\xff" * 65_000)] * 9,
        (0xC4, b"\x11" * 30),
        (0xDB, b"q"),
    ]
    assert images.size(url(jpeg(4032, 3024, *segments, frame=frame), "image/jpeg")) == (4032, 3024)


def test_the_type_in_the_url_is_not_trusted():
    assert images.size(url(gif(3, 4), "image/jpeg")) == (3, 4)


def test_padding_may_be_missing():
    assert images.size("data:image/gif;base64," + b64encode(gif(3, 4)).decode().rstrip("=")) == (3, 4)


def test_what_follows_the_header_is_not_decoded():
    head = b64encode(png(640, 480)[:48]).decode()
    assert images.size(f"data:image/png;base64,{head}" + "*" * 20_000_000) == (640, 480)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://example.org/a.png",
        "data:image/png;base64,",
        "data:image/png;base64,iVBOR",
        "data:image/png;base64,!!!!",
        "data:image/svg+xml,<svg width='3' height='4'/>",
        url(b"\x89PNG\r\n\x1a\n"),
        url(png(0, 5)),
        url(png(70_000, 5)),
        url(png(2**31, 2**31)),
        url(b"GIF89a\x01"),
        url(b"\xff\xd8\xff"),
        url(b"\xff\xd8" + b"\xff" * 5000),
        url(b"\xff\xd8" + b"\xff\xe0\x00\x00" * 5000),
        url(b"\xff\xd8" + b"\xff\xe0\xff\xff"),
        url(webp(b"ANIM", b"\0" * 30)),
        url(b"BM" + b"\0" * 60),
    ],
)
def test_what_has_no_readable_size_has_none(text):
    assert images.size(text) is None


@promise
@given(
    start=st.sampled_from(
        [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBPVP8 ", b"RIFF\0\0\0\0WEBPVP8X"]
    ),
    rest=st.binary(max_size=80),
    text=st.text(max_size=40),
)
def test_no_url_breaks_it(start, rest, text):
    images.size(url(start + rest))
    images.size("data:image/png;base64," + text)
    images.size(text)


def test_a_message_tells_the_size_of_its_pictures():
    part = {"type": "image_url", "image_url": {"url": url(png(640, 480)), "detail": "high"}}
    (medium,) = message_of(json.dumps({"role": "user", "content": [part]}).encode()).media

    assert (medium.kind, medium.width, medium.height, medium.detail) == ("image", 640, 480, "high")
