"""The size of a picture, read from the header bytes of its data URL. Remote pictures are never fetched."""

import re
from base64 import b64decode
from binascii import Error as Base64Error

MAX_SIDE = 65_535  # pixels; larger claims are not believed
MAX_SEGMENTS = 256  # JPEG segments looked at before the frame header

_DATA_URL = re.compile(r"data:[^,]{0,256};base64,", re.IGNORECASE)
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0-SOF15 without DHT, JPG, DAC
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length


def size(url: str) -> tuple[int, int] | None:
    """Width and height in pixels of a PNG, JPEG, GIF or WebP data URL; None for all else.

    Only the bytes needed are decoded: base64 is read at offsets, whatever the picture weighs.
    The type in the URL is not trusted, the first bytes are.
    """
    found = _DATA_URL.match(url)
    if found is None:
        return None
    try:
        width, height = _measure(_Picture(url, found.end()))
    except (Base64Error, ValueError, IndexError):
        return None
    return (width, height) if 0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE else None


class _Picture:
    """Bytes of a base64 text, decoded where they are asked for."""

    def __init__(self, url: str, start: int) -> None:
        self.url = url
        self.start = start

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes at `offset`; IndexError when they are not there."""
        first, last = offset // 3 * 4, -(-(offset + count) // 3) * 4
        groups = self.url[self.start + first : self.start + last]
        decoded = b64decode(groups + "=" * (-len(groups) % 4), validate=True)
        wanted = decoded[offset % 3 : offset % 3 + count]
        if len(wanted) < count:
            raise IndexError(offset)
        return wanted

    def number(self, offset: int, count: int, order: str = "big") -> int:
        return int.from_bytes(self.read(offset, count), "little" if order == "little" else "big")


def _measure(picture: _Picture) -> tuple[int, int]:
    head = picture.read(0, 10)
    if head.startswith(_PNG):
        return picture.number(16, 4), picture.number(20, 4)
    if head.startswith((b"GIF87a", b"GIF89a")):
        return picture.number(6, 2, "little"), picture.number(8, 2, "little")
    if head.startswith(b"RIFF") and picture.read(8, 4) == b"WEBP":
        return _webp(picture)
    if head.startswith(b"\xff\xd8\xff"):
        return _jpeg(picture)
    raise ValueError("not a picture we know")


def _webp(picture: _Picture) -> tuple[int, int]:
    """Source: RFC 9649, section 2; RFC 6386, section 9.1 (lossy)."""
    match picture.read(12, 4):
        case b"VP8 ":
            return picture.number(26, 2, "little") & 0x3FFF, picture.number(28, 2, "little") & 0x3FFF
        case b"VP8L":
            bits = picture.number(21, 4, "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8X":
            return picture.number(24, 3, "little") + 1, picture.number(27, 3, "little") + 1
    raise ValueError("not a WebP chunk we know")


def _jpeg(picture: _Picture) -> tuple[int, int]:
    """Go from segment to segment until the frame header. Source: ITU-T T.81, annex B."""
    offset = 2
    for _ in range(MAX_SEGMENTS):
        mark, kind = picture.read(offset, 2)
        if mark != 0xFF:
            break
        if kind == 0xFF:  # a fill byte
            offset += 1
        elif kind in _JPEG_FRAMES:
            return picture.number(offset + 7, 2), picture.number(offset + 5, 2)
        elif kind in _JPEG_ALONE:
            offset += 2
        else:
            offset += 2 + picture.number(offset + 2, 2)
    raise ValueError("no frame header")
