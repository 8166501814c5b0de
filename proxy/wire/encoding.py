"""Encoded bodies and streams, decoded for looking only: what is relayed stays as it came. Bounded in size and ratio."""

import zlib
from collections.abc import Callable
from importlib import import_module

MAX_DECODED_BYTES = 64 * 1024 * 1024
MAX_RATIO = 200  # decoded to encoded bytes; real event streams stay under 100
FREE_BYTES = 1024 * 1024  # decoded without looking at the ratio

Decode = Callable[[bytes, int], bytes]  # a chunk, at most so many bytes out

_ZSTD_WINDOW_BYTES = 8 * 1024 * 1024  # what RFC 9659 lets a server use
_ZSTD_STEP_BYTES = 256  # a zstd block of four bytes can hold 128 KB and zstandard has no limit of its own


class Decoder:
    """Decodes a body chunk by chunk.

    Args:
        encoding: its `content-encoding`; None, "" and "identity" pass bytes through. gzip and deflate are always known,
            br and zstd where `brotli` (from 1.2) and `zstandard` are installed.
        limit_bytes: of decoded bytes in all.
    """

    def __init__(self, encoding: str | None, limit_bytes: int = MAX_DECODED_BYTES) -> None:
        name = (encoding or "identity").strip().lower()
        self._decode = _DECODERS[name]() if name in _DECODERS else None
        self._limit = limit_bytes
        self._encoded = 0
        self._decoded = 0
        self.opaque = self._decode is None  # cannot be looked at, from here on: unknown, broken, or too large

    def feed(self, chunk: bytes) -> bytes:
        """What this chunk decodes to; b"" once the stream is opaque."""
        if self.opaque or self._decode is None:
            return b""
        self._encoded += len(chunk)
        room = min(self._limit, FREE_BYTES + MAX_RATIO * self._encoded) - self._decoded
        try:
            decoded = self._decode(chunk, room)
        except _Refused:
            self.opaque = True
            return b""
        self._decoded += len(decoded)
        return decoded


def decoded(body: bytes, encoding: str | None, limit_bytes: int = MAX_DECODED_BYTES) -> bytes | None:
    """A whole body, decoded; None if it cannot be."""
    decoder = Decoder(encoding, limit_bytes)
    text = decoder.feed(body)
    return None if decoder.opaque else text


class _Refused(Exception):
    """Broken, or more than there is room for."""


def _identity() -> Decode:
    return lambda chunk, room: chunk


def _gzip() -> Decode:
    return _Zlib(31).decode


def _deflate() -> Decode:
    return _Deflate().decode


def _brotli() -> Decode | None:
    try:
        brotli = import_module("brotli")
    except ImportError:
        return None
    decompressor = brotli.Decompressor()
    if not hasattr(decompressor, "can_accept_more_data"):  # older ones cannot be bounded
        return None

    def decode(chunk: bytes, room: int) -> bytes:
        try:
            text: bytes = decompressor.process(chunk, output_buffer_limit=room + 1)
        except brotli.error as error:
            raise _Refused from error
        if len(text) > room or not decompressor.can_accept_more_data():
            raise _Refused
        return text

    return decode


def _zstd() -> Decode | None:
    try:
        zstandard = import_module("zstandard")
    except ImportError:
        return None
    frames = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj(read_across_frames=True)

    def decode(chunk: bytes, room: int) -> bytes:
        pieces: list[bytes] = []
        for start in range(0, len(chunk), _ZSTD_STEP_BYTES):
            try:
                piece: bytes = frames.decompress(chunk[start : start + _ZSTD_STEP_BYTES])
            except zstandard.ZstdError as error:
                raise _Refused from error
            room -= len(piece)
            if room < 0:
                raise _Refused
            pieces.append(piece)
        return b"".join(pieces)

    return decode


class _Zlib:
    """gzip (several members, too), zlib or raw deflate, by `window_bits` as zlib takes them."""

    def __init__(self, window_bits: int) -> None:
        self._window_bits = window_bits
        self._stream = zlib.decompressobj(window_bits)
        self._members = 1

    def decode(self, chunk: bytes, room: int) -> bytes:
        pieces: list[bytes] = []
        while chunk:
            if self._stream.eof:
                self._stream = zlib.decompressobj(self._window_bits)
                self._members += 1
            try:
                piece = self._stream.decompress(chunk, room + 1)
            except zlib.error as error:
                if self._members > 1:  # padding behind the last member
                    break
                raise _Refused from error
            room -= len(piece)
            if room < 0:
                raise _Refused
            pieces.append(piece)
            chunk = self._stream.unused_data
        return b"".join(pieces)


class _Deflate:
    """The standard means zlib's format; some servers send raw deflate. The first two bytes tell."""

    def __init__(self) -> None:
        self._start = b""
        self._zlib: _Zlib | None = None

    def decode(self, chunk: bytes, room: int) -> bytes:
        if self._zlib is None:
            self._start += chunk
            if len(self._start) < 2:
                return b""
            method, check = self._start[:2]
            is_zlib = method & 0x0F == 8 and (method * 256 + check) % 31 == 0
            self._zlib, chunk = _Zlib(15 if is_zlib else -15), self._start
        return self._zlib.decode(chunk, room)


_DECODERS: dict[str, Callable[[], Decode | None]] = {
    "identity": _identity,
    "": _identity,
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "br": _brotli,
    "zstd": _zstd,
}
