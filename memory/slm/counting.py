"""How the proxy is to count the tokens of a model that runs here, so that its prompts fit the window.

The best is the model's own vocabulary, kept beside the weights with what its chat template adds. Where there is none,
or it counts less than the engine does, the window counts for as much less.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from memory.slm.engine import Ready
from memory.slm.header import BadWeights
from memory.slm.probes import PROBES
from memory.slm.tokenizer import NAME, tokenizer_json
from memory.slm.weights import Weights
from memory.tokens import ENCODINGS, Counter
from memory.vocabulary import FRAME, Frame

FOLDER = "vocabularies"  # below the home of the weights
MARGIN = 1.05  # where the vocabulary is another than the engine's: texts differ more than the probes


@dataclass(frozen=True, slots=True)
class Counting:
    encoding: str | None  # the path of a `tokenizer.json`; None: nobody has the model's vocabulary
    factor: float  # tokens that the engine counts for one of ours, at the most; 1 where the two agree


def counting(weights: Weights, home: Path, ready: Ready) -> Counting:
    """How to count for an engine that is ready.

    Args:
        home: `<data directory>/models`.

    Raises:
        OSError: the vocabulary cannot be written.
    """
    encoding = kept(weights, home, ready)
    ours = Counter().texts(PROBES, encoding or ENCODINGS[0])
    return Counting(encoding, factor(ready.counts, ours))


def factor(theirs: Sequence[int], ours: Sequence[int]) -> float:
    """
    >>> factor([10, 20], [10, 20]), factor([10, 30], [10, 20])
    (1.0, 1.575)
    """
    most = max(there / here for there, here in zip(theirs, ours, strict=True))
    return most * MARGIN if most > 1 else 1.0


def kept(weights: Weights, home: Path, ready: Ready) -> str | None:
    """The path of the model's vocabulary, written anew: it takes less than a second for most."""
    try:
        text = tokenizer_json(weights)
    except BadWeights:  # the engine has read it, so it is a kind of header that is news to us
        return None
    if text is None:
        return None
    place = home / FOLDER / weights.name
    place.mkdir(parents=True, exist_ok=True)
    message, reply = ready.message_tokens, ready.reply_tokens
    frame = Frame() if message is None or reply is None else Frame(message, reply)
    replace_file(place / FRAME, msgspec.json.encode(frame))
    replace_file(place / NAME, text.encode())
    return str(place / NAME)


def replace_file(path: Path, content: bytes) -> None:
    """Whole or not at all: another server may read it now."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.replace(file.name, path)
