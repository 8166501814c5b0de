"""A model's own vocabulary, from a `tokenizer.json`: exact counts for models that run here.

Beside that file a `frame.json` may tell what the model's chat template adds: `{"message_tokens", "reply_tokens"}`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FRAME = "frame.json"
BLOCK_CHARS = 20_000  # of a text at once: a piece of one costs the tokenizer some 200 bytes


class Frame(msgspec.Struct, frozen=True):
    """Tokens that a chat template adds, at the most. As it stands here: more than known templates add."""

    message_tokens: int = 8  # to each message
    reply_tokens: int = 40  # once: a system message of its own, and the beginning of the answer


class Vocabulary:
    """Counts as one model does. Takes as much memory as the model's vocabulary: SmolLM2's 25 MB."""

    def __init__(self, tokenizer: "Tokenizer", frame: Frame) -> None:
        self._tokenizer = tokenizer
        self.frame = frame

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text; names of special tokens count as text."""
        return [sum(map(self._count, blocks(text))) for text in texts]

    def _count(self, block: str) -> int:
        (encoded,) = self._tokenizer.encode_batch_fast([block], add_special_tokens=False)  # others may run meanwhile
        return len(encoded)


def blocks(text: str) -> list[str]:
    """What the tokenizer gets: it takes no half of a surrogate pair, which JSON may hold."""
    clean = text if text.isascii() else text.encode("utf-8", "replace").decode()
    return [clean[start : start + BLOCK_CHARS] for start in range(0, len(clean), BLOCK_CHARS)]


def read_vocabulary(path: Path) -> Vocabulary | None:
    """The vocabulary in a `tokenizer.json`; None where it cannot be read."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_buffer(path.read_bytes())
        frame = read_frame(path.with_name(FRAME))
    except (OSError, ValueError, msgspec.DecodeError):
        return None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return Vocabulary(tokenizer, frame)


def read_frame(path: Path) -> Frame:
    return msgspec.json.decode(path.read_bytes(), type=Frame) if path.is_file() else Frame()
