"""Chat bodies byte for byte, and what the parser makes of them."""

import json

from proxy.wire.content import message_of
from proxy.wire.openai import SHAPE
from proxy.wire.parser import Parser

USER = b'{"role":"user","content":"hi"}'


def body_of(*messages: bytes, before: bytes = b'"model":"m",', after: bytes = b"") -> bytes:
    return b"{" + before + b'"messages":[' + b",".join(messages) + b"]" + after + b"}"


def parsed(body: bytes):
    request = Parser(SHAPE).parse(body)
    assert request is not None
    return request


def digest(**message: object) -> bytes:
    return message_of(json.dumps(message).encode()).digest
