"""Messages, tool schemas and pictures as tokens, counted as the provider counts them.

A message is counted once: counts are kept by content digest, so a history that a client sends again
costs a dictionary lookup a message. The engine is toktok; tiktoken with the rank files inside the
litellm wheel stands in where toktok cannot be imported, and an estimate from bytes where neither can.
An encoding is the name of one of OpenAI's, or the path of a model's own `tokenizer.json`.
Everything works without the network. What a count means for a window is in `budget.py`.
"""

import base64
from collections.abc import Callable, Hashable, Mapping, Sequence
from hashlib import blake2b
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import msgspec

from memory.messages import Media, Message
from memory.vocabulary import Vocabulary, read_vocabulary

if TYPE_CHECKING:
    import tiktoken

K = TypeVar("K", bound=Hashable)

# How many tokens each text has in an encoding, in order. May raise UnicodeEncodeError on lone surrogates.
Engine = Callable[[Sequence[str], str], list[int]]

ENCODINGS = ("cl100k_base", "o200k_base")

# Source of the next three: OpenAI cookbook, "How to count tokens with tiktoken": 3 a message, 1 for a
# name, every reply is primed with <|start|>assistant<|message|>.
MESSAGE_TOKENS = 3
NAME_TOKENS = 1
REPLY_TOKENS = 3

# OpenAI does not publish how it writes calls. Models see the name and the arguments; of the ids they see
# nothing or, with some templates, a few characters. Ids themselves would be 6 % of an agent's transcript.
CALL_TOKENS = 4
CALL_ID_TOKENS = 4

# The frame around a request's tool definitions, and the brackets and commas between separate blobs.
# Source: the cookbook's `func_end` for tools, 12.
SCHEMAS_TOKENS = 12
SCHEMA_TOKENS = 2

ONE_TOKEN_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})

# Source: OpenAI's guide "Images and vision", gpt-4o: 85 and 170 for each tile of 512 pixels, after scaling
# down into 2,048 x 2,048 and then to 768 pixels on the shorter side. Eight tiles are the most there can be.
IMAGE_TOKENS = 85
TILE_TOKENS = 170
MOST_TILES = 8

# Source: Anthropic's guide "Vision": a token for each patch of 28 x 28 pixels, formerly width x height / 750, after
# scaling down to 1,568 pixels on the longer side and 1,568 tokens, or with newer models to 2,576 and 4,784. A request
# does not say which of the two its model has, and too much is safer than too little.
PATCH_PIXELS = 28
PIXELS_A_TOKEN = 750
LONGEST_SIDE = 2_576
MOST_AREA_TOKENS = 4_784

# Estimates, from the size in the request. Sound: OpenAI hears 10 tokens a second, and a second of MP3 at
# 64 kbit/s is 10.7 KB of base64. Files: a PDF page of 50 KB is read as text and as a picture, 2,700 tokens.
AUDIO_BYTES_A_TOKEN = 1_000
FILE_BYTES_A_TOKEN = 25
LEAST_AUDIO_TOKENS = 300
LEAST_FILE_TOKENS = 2_000

MOST_SCHEMAS = 2_000  # kept counts of tool definitions


class Counter:
    """Counts tokens and remembers what messages and schemas had; one per process.

    At most `max_entries` counts are kept; what was not asked for lately goes first. An entry takes some
    250 bytes. May be called from several threads: at worst two of them count the same message.
    An encoding we have no vocabulary for is counted as cl100k_base, which rarely counts lower.
    """

    def __init__(self, max_entries: int = 200_000, engine: Engine | None = None) -> None:
        self._share = max_entries // len(ENCODINGS)
        self._engine = engine  # None: the best one that is installed, loaded at the first count
        self._messages: dict[str, Recent[tuple[bytes, int]]] = {}
        self._vocabularies: dict[str, Vocabulary | None] = dict.fromkeys(ENCODINGS)  # models' own, by their paths
        self._schemas: Recent[tuple[str, bytes]] = Recent(MOST_SCHEMAS)
        self.estimated = 0  # texts without an exact count, since the start

    def text(self, text: str, encoding: str) -> int:
        return self.texts((text,), encoding)[0]

    def texts(self, texts: Sequence[str], encoding: str) -> list[int]:
        """Tokens of each text; special tokens such as <|endoftext|> are text. Keeps nothing."""
        vocabulary = self._vocabulary(encoding)
        if vocabulary is not None:
            return vocabulary.count(texts)
        if self._engine is None:
            self._engine = load_engine()
        if self._engine is estimate:
            self.estimated += len(texts)
        try:
            return self._engine(texts, self._supported(encoding))
        except UnicodeEncodeError:
            return self.texts([without_surrogates(text) for text in texts], encoding)
        except BaseException as panic:
            # A panic in Rust arrives as a BaseException whose class cannot be imported.
            if type(panic).__name__ != "PanicException":
                raise
            self.estimated += len(texts)
            return estimate(texts, encoding)

    def message(self, message: Message, encoding: str) -> int:
        return self.messages((message,), encoding)[0]

    def messages(self, messages: Sequence[Message], encoding: str) -> list[int]:
        """Prompt tokens of each message with its frame; `reply` is for the caller to add, once."""
        kept = self._messages.setdefault(self._supported(encoding), Recent(self._share))
        keys = [message_key(message) for message in messages]
        counts = kept.get(keys)
        if None not in counts:
            return cast(list[int], counts)
        missing = {key: messages[i] for i, key in enumerate(keys) if counts[i] is None}
        fresh = dict(zip(missing, self._count(list(missing.values()), encoding), strict=True))
        kept.put(fresh)
        return [fresh[key] if count is None else count for key, count in zip(keys, counts, strict=True)]

    def reply(self, encoding: str) -> int:
        """Prompt tokens that a conversation has beside its messages."""
        vocabulary = self._vocabulary(encoding)
        return REPLY_TOKENS if vocabulary is None else vocabulary.frame.reply_tokens

    def schemas(self, schemas: Sequence[bytes], encoding: str) -> int:
        """Prompt tokens of tools, functions and response format, given as raw JSON.

        Counted as JSON, as written or compact, whichever is more: some providers show the model the JSON;
        OpenAI rewrites it into a notation that is shorter.
        """
        if not schemas:
            return 0
        return SCHEMAS_TOKENS + sum(SCHEMA_TOKENS + self._schema(schema, encoding) for schema in schemas)

    def _schema(self, schema: bytes, encoding: str) -> int:
        key = (self._supported(encoding), blake2b(schema, digest_size=16).digest())
        (count,) = self._schemas.get((key,))
        if count is None:
            count = max(self.texts(json_texts(schema), encoding))
            self._schemas.put({key: count})
        return count

    def _count(self, messages: Sequence[Message], encoding: str) -> list[int]:
        """Count messages we have not seen, all their texts in one batch."""
        texts = [message_texts(message) for message in messages]
        counts = iter(self.texts([text for few in texts for text in few], encoding))
        vocabulary = self._vocabulary(encoding)
        frames = None if vocabulary is None else vocabulary.frame.message_tokens
        return [
            frame_tokens(message, frames) + sum(next(counts) for _ in few)
            for message, few in zip(messages, texts, strict=True)
        ]

    def _vocabulary(self, encoding: str) -> Vocabulary | None:
        """The model's own, read when it is first needed; None: one of OpenAI's is to be taken."""
        if encoding not in self._vocabularies:
            self._vocabularies[encoding] = read_vocabulary(Path(encoding)) if encoding.endswith(".json") else None
        return self._vocabularies[encoding]

    def _supported(self, encoding: str) -> str:
        return encoding if encoding in ENCODINGS or self._vocabulary(encoding) is not None else ENCODINGS[0]


class Recent(Generic[K]):
    """Counts by key; bounded, forgets what was not asked for lately.

    Two plain dictionaries: a full young one becomes the old one, and what is found there moves back.
    So a look-up costs what a dictionary's costs, and threads need no lock: a race loses an entry at worst.
    """

    def __init__(self, most: int) -> None:
        self._half = max(1, most // 2)
        self._young: dict[K, int] = {}
        self._old: dict[K, int] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, keys: Sequence[K]) -> list[int | None]:
        """The count of each key, None where there is none."""
        counts = list(map(self._young.get, keys))
        if None in counts and self._old:
            found = {
                key: self._old[key]
                for key, count in zip(keys, counts, strict=True)
                if count is None and key in self._old
            }
            self.put(found)
            counts = [found.get(key) if count is None else count for key, count in zip(keys, counts, strict=True)]
        return counts

    def put(self, counts: Mapping[K, int]) -> None:
        for key, count in counts.items():
            if len(self._young) >= self._half:
                self._young, self._old = {}, self._young
            self._young[key] = count


def message_key(message: Message) -> tuple[bytes, int]:
    """What a count is kept by.

    The digest ignores trailing white space and the spacing of arguments, which cost tokens; the length of
    the raw bytes tells such messages apart.
    """
    return message.digest, len(message.raw)


def message_texts(message: Message) -> list[str]:
    """All of a message that the provider reads as text."""
    texts = [message.text]
    if message.role not in ONE_TOKEN_ROLES:
        texts.append(message.role)
    if message.name:
        texts.append(message.name)
    for call in message.calls:
        texts += (call.name, call.arguments)
    return texts


def frame_tokens(message: Message, around: int | None = None) -> int:
    """Tokens of a message besides its texts: frame, role, calls, media and reasoning.

    Args:
        around: what the model's own template puts around it; None: what OpenAI's does.
    """
    tokens = MESSAGE_TOKENS + (message.role in ONE_TOKEN_ROLES) if around is None else around
    tokens += NAME_TOKENS if message.name else 0
    tokens += len(message.calls) * CALL_TOKENS + (CALL_ID_TOKENS if message.call_id else 0)
    # `text` joins the text parts by newlines; where parts end or begin with white space the joined text
    # can have one token less a joint. Every part has a "type".
    tokens += max(0, message.raw.count(b'"type"') - 1)
    data_bytes = max(0, len(message.raw) - len(message.text)) // max(1, len(message.media))
    return tokens + message.unseen + sum(media_tokens(media, data_bytes) for media in message.media)


def media_tokens(media: Media, data_bytes: int) -> int:
    """Tokens of a picture by its provider's formula; of sound and files an estimate from their size in the request."""
    if media.kind == "item":
        return 0  # `Message.unseen` has them
    if media.kind == "image" and media.detail == "area":
        return area_tokens(media.width, media.height)
    if media.kind == "image":
        return image_tokens(media.width, media.height, media.detail)
    data_bytes = data_bytes if media.size is None else media.size
    if media.kind == "audio":
        return max(LEAST_AUDIO_TOKENS, data_bytes // AUDIO_BYTES_A_TOKEN)
    return max(LEAST_FILE_TOKENS, data_bytes // FILE_BYTES_A_TOKEN)


def is_measured(media: Media) -> bool:
    """Are its tokens known, at the most, for certain?"""
    return media.kind == "image" and media.detail == "area" and media.width is not None


def image_tokens(width: int | None, height: int | None, detail: str) -> int:
    """Tokens of a picture of so many pixels for gpt-4o; of unknown size: the most it can be.

    >>> image_tokens(1024, 1024, "high"), image_tokens(2048, 4096, "high"), image_tokens(None, None, "low")
    (765, 1105, 85)

    Source: OpenAI's guide "Images and vision", whose examples these are.
    """
    if detail == "low":
        return IMAGE_TOKENS
    if not width or not height or width < 0 or height < 0:
        return IMAGE_TOKENS + MOST_TILES * TILE_TOKENS
    shrink = min(1.0, 2048 / max(width, height))
    shrink = min(shrink, 768 / min(width, height))
    across, down = (max(1, -(-round(side * shrink) // 512)) for side in (width, height))
    return IMAGE_TOKENS + across * down * TILE_TOKENS


def area_tokens(width: int | None, height: int | None) -> int:
    """Tokens of a picture of so many pixels for Claude, at the most; of unknown size: the most it can be.

    >>> area_tokens(1092, 1092), area_tokens(200, 200), area_tokens(8000, 8000)
    (1590, 64, 4784)
    """
    if not width or not height or width < 0 or height < 0:
        return MOST_AREA_TOKENS
    shrink = min(1.0, LONGEST_SIDE / max(width, height))
    across, down = (max(1, ceil(side * shrink)) for side in (width, height))
    patches = -(-across // PATCH_PIXELS) * -(-down // PATCH_PIXELS)
    return min(max(patches, -(-across * down // PIXELS_A_TOKEN)), MOST_AREA_TOKENS)


def json_texts(schema: bytes) -> list[str]:
    """A schema as written and compact; as written alone where it is not JSON."""
    written = schema.decode("utf-8", "replace")
    try:
        return [written, msgspec.json.encode(msgspec.json.decode(schema)).decode()]
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return [written]


def without_surrogates(text: str) -> str:
    """Replace lone surrogates, legal in JSON and not in UTF-8, as tiktoken does."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def load_engine() -> Engine:
    """The best engine that is installed. Vocabularies load later, each when it is first needed."""
    for engine in (toktok_engine, tiktoken_engine):
        try:
            return engine()
        except ImportError:
            continue
    return estimate


def toktok_engine() -> Engine:
    """Exact, and ten times faster than tiktoken. cl100k_base takes 40 MB, o200k_base 75 MB."""
    from toktok import batch_count

    # One thread: starting a pool costs more than it saves on messages.
    return lambda texts, encoding: cast(list[int], batch_count(texts, encoding, threads=1))


def tiktoken_engine() -> Engine:
    """Exact, with the rank files in the litellm wheel, which is not imported."""
    import tiktoken

    spec = find_spec("litellm")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("the rank files are in the litellm wheel, which is not installed")
    folder = Path(spec.submodule_search_locations[0]) / "litellm_core_utils" / "tokenizers"
    if not all((folder / name).is_file() for name in RANK_FILES.values()):
        raise ImportError(f"there are no rank files in {folder}")
    encodings: dict[str, tiktoken.Encoding] = {}

    def count(texts: Sequence[str], encoding: str) -> list[int]:
        if encoding not in encodings:
            encodings[encoding] = read_encoding(folder, encoding)
        bpe = encodings[encoding]
        return [sum(len(bpe.encode_ordinary(piece)) for piece in pieces(text)) for text in texts]

    return count


# tiktoken's names for the two rank files, and the expressions that split text before merging.
# Source: tiktoken 0.14, openai_public.py and load.py (the file's name is the SHA-1 of its URL).
RANK_FILES = {
    "cl100k_base": "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
    "o200k_base": "fb374d419588a4632f3f557e76b4b70aebbca790",
}
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERNS = {
    "cl100k_base": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|"
    r"\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    "o200k_base": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    + CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    + CONTRACTIONS
    + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
PIECE_CHARS = 20_000  # tiktoken 0.14 panics on a run of 1,000,000 spaces, and long runs cost it seconds


def read_encoding(folder: Path, encoding: str) -> "tiktoken.Encoding":
    """Build an encoding from its rank file: no download, no cache folder, no environment.

    Special tokens are left out, since all that we count is text.
    """
    import tiktoken

    lines = (line.split() for line in (folder / RANK_FILES[encoding]).read_bytes().splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    return tiktoken.Encoding(encoding, pat_str=PATTERNS[encoding], mergeable_ranks=ranks, special_tokens={})


def pieces(text: str) -> list[str]:
    """Cut a very long text; each cut may add a token."""
    if len(text) <= PIECE_CHARS:
        return [text]
    return [text[start : start + PIECE_CHARS] for start in range(0, len(text), PIECE_CHARS)]


def estimate(texts: Sequence[str], encoding: str) -> list[int]:
    """A third of the bytes, rounded up: 15 % high on a usual mix, low on dense code and random letters."""
    return [-(-len(text.encode("utf-8", "replace")) // 3) for text in texts]
