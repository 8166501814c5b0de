"""Promises about encoded streams: cuts do not matter, and a bomb stays small."""

import gzip
import random
import zlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.wire import chunks
from proxy.wire.encoding import Decoder, decoded

TEXT = (
    b"".join(b'data: {"choices":[{"index":0,"delta":{"content":"word %d "}}]}\n\n' % n for n in range(200))
    + b"data: [DONE]\n\n"
)

FIRST = TEXT[: TEXT.index(b"\n\n") + 2]


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def brotli(data: bytes) -> bytes:
    return pytest.importorskip("brotli", minversion="1.2").compress(data)


def zstd(data: bytes) -> bytes:
    return pytest.importorskip("zstandard").compress(data)


ENCODERS = {
    "identity": ("identity", bytes),
    "none": (None, bytes),
    "gzip": ("gzip", gzip.compress),
    "GZIP": (" GZip ", gzip.compress),
    "gzip in two members": ("gzip", lambda data: gzip.compress(data[:100]) + gzip.compress(data[100:])),
    "gzip with padding": ("gzip", lambda data: gzip.compress(data) + b"\0" * 20),
    "deflate": ("deflate", zlib.compress),
    "raw deflate": ("deflate", raw_deflate),
    "br": ("br", brotli),
    "zstd": ("zstd", zstd),
}


@pytest.mark.parametrize("name", ENCODERS)
@settings(deadline=None, max_examples=25)
@given(cuts=st.lists(st.integers(0, 3000), max_size=20))
def test_a_stream_is_decoded_wherever_it_is_cut(name, cuts):
    encoding, encode = ENCODERS[name]
    body = encode(TEXT)
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    decoder = Decoder(encoding)

    assert b"".join(decoder.feed(body[a:b]) for a, b in pairwise(edges)) == TEXT
    assert not decoder.opaque


def test_what_is_flushed_can_be_seen_at_once():
    packer = zlib.compressobj(wbits=31)
    decoder, events = Decoder("gzip"), chunks.accumulator()

    seen = [
        events.feed(decoder.feed(packer.compress(e) + packer.flush(zlib.Z_SYNC_FLUSH)))
        for e in (FIRST, b"data: [DONE]\n\n")
    ]
    assert seen == [None, 0]


@pytest.mark.parametrize("encoding", ["compress", "gzip, br", "aws-chunked", "x"])
def test_an_unknown_encoding_is_opaque(encoding):
    decoder = Decoder(encoding)
    assert decoder.opaque
    assert decoder.feed(b"abc") == b""
    assert decoded(b"abc", encoding) is None


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_a_broken_stream_becomes_opaque(encoding):
    if encoding in ("br", "zstd"):
        ENCODERS[encoding][1](b"")
    decoder = Decoder(encoding)
    decoder.feed(random.Random(1).randbytes(5000))
    assert decoder.opaque
    assert decoder.feed(b"more") == b""


@pytest.mark.parametrize("name", ["gzip", "deflate", "raw deflate", "br", "zstd"])
def test_a_bomb_becomes_opaque_before_it_unfolds(name):
    encoding, encode = ENCODERS[name]
    bomb = encode(bytes(50_000_000))
    decoder = Decoder(encoding)
    out = sum(len(decoder.feed(bomb[i : i + 4096])) for i in range(0, len(bomb), 4096))

    assert decoder.opaque
    assert out < 20_000_000
    assert decoded(bomb, encoding) is None


def test_decoded_bytes_have_a_limit():
    noise = random.Random(2).randbytes(100_000)
    assert decoded(gzip.compress(noise), "gzip", limit_bytes=100_000) == noise
    assert decoded(gzip.compress(noise), "gzip", limit_bytes=99_999) is None
