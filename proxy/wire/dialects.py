"""The dialects whose conversations are managed, and the paths by which they are known."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from memory import prepared
from proxy.wire import (
    anthropic,
    chunks,
    deltas,
    openai,
    responses,
    responses_events,
    splice_chunks,
    splice_deltas,
    splice_responses,
)
from proxy.wire.openai import Completion
from proxy.wire.parser import Shape
from proxy.wire.splice import Splice
from proxy.wire.sse import Accumulator


class Dialect(NamedTuple):
    """One wire format: how it is read, and how what we add is written."""

    shape: Shape
    writing: prepared.Dialect
    completion_in: Callable[[bytes], Completion]  # what a plain answer says
    accumulator: Callable[[], Accumulator]  # for one streamed answer
    splice: Callable[[str], Splice]  # the streamed answers to one question as one; takes the name of our tool
    spliced: Callable[[Sequence[bytes], str], bytes]  # the same of plain answers' bodies
    errors: Literal["openai", "anthropic"] = "openai"  # how an error of ours looks


CHAT = Dialect(
    openai.SHAPE, openai, openai.completion_in, chunks.accumulator, splice_chunks.ChunkSplice, splice_chunks.spliced
)
RESPONSES = Dialect(
    responses.SHAPE,
    responses,
    responses.completion_in,
    responses_events.accumulator,
    splice_responses.ResponseSplice,
    splice_responses.spliced,
)
MESSAGES = Dialect(
    anthropic.SHAPE,
    anthropic,
    anthropic.completion_in,
    deltas.accumulator,
    splice_deltas.DeltaSplice,
    splice_deltas.spliced,
    errors="anthropic",
)
ENDPOINTS = {"/chat/completions": CHAT, "/responses": RESPONSES, "/v1/messages": MESSAGES}  # by the end of their paths


def dialect_at(path: str) -> Dialect | None:
    """The dialect of a managed endpoint; None: this path is relayed."""
    if path == "/messages":  # and no messages of a thread
        return MESSAGES
    return next((dialect for end, dialect in ENDPOINTS.items() if path.endswith(end)), None)


def errors_at(path: str) -> Literal["openai", "anthropic"]:
    """How an error of ours looks on a path, managed or not."""
    return "anthropic" if "/v1/messages/" in path or dialect_at(path) is MESSAGES else "openai"
