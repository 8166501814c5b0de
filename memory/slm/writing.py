"""How a model of transformers goes on with a prompt: token by token, so that it can stop at any of them.

The keys and values of the last prompt are kept: what begins alike is not computed again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

CHUNK_TOKENS = 256  # of a prompt at once: what a client that leaves still costs
BROKEN = "\ufffd"  # what half a character decodes to


@dataclass(frozen=True, slots=True)
class Wish:
    """A prompt, and how to go on."""

    tokens: tuple[int, ...]
    max_tokens: int
    temperature: float = 1.0  # 0: always the likeliest token
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    adapter: str | None = None  # None: the bare model


@dataclass(frozen=True, slots=True)
class Written:
    """What was written, told at its end."""

    finish_reason: str  # "stop", "length"; "cancelled": nobody wants it any more
    output_tokens: int
    cached_tokens: int = 0  # of the prompt, that were not computed again


class Model:
    """One model with its vocabulary. For one thread at a time."""

    def __init__(
        self, model: Any, tokenizer: Any, window: int, wear: Callable[[str | None], str] = lambda adapter: ""
    ) -> None:
        """`wear`: makes it answer with an adapter, and gives what it then is; `Carried.wear`."""
        self._wear = wear
        self._worn = ""
        self._model = model
        self._tokenizer = tokenizer
        self.window = window
        self._cache: Any = None
        self._cached: list[int] = []  # the tokens whose keys and values are in the cache
        self._ends = ends_of(model, tokenizer)

    def write(self, wish: Wish, say: Callable[[str], None], is_over: Callable[[], bool]) -> Written:
        """Go on with a prompt; text is said as soon as it is certain.

        Args:
            is_over: whether nobody wants more of it; asked between tokens, and between chunks of the prompt.

        Raises:
            KeyError, BadWeights: there is no such adapter any more.
        """
        import torch

        if (worn := self._wear(wish.adapter)) != self._worn:  # what another one thought of the same words is no use
            self._worn, self._cache, self._cached = worn, None, []
        with torch.inference_mode():
            kept = self._recall(wish.tokens)
            logits = self._read(wish.tokens[kept:], is_over)
            if logits is None:
                return Written("cancelled", 0, kept)
            reason, count = self._go_on(logits, wish, say, is_over)
        return Written(reason, count, kept)

    def _recall(self, tokens: Sequence[int]) -> int:
        """How many tokens of a prompt are in the cache; what else is there is forgotten."""
        from transformers import DynamicCache

        same = common(self._cached, tokens[:-1])  # the last one is read in any case: it tells the next
        cache = self._cache
        if cache is None or any(cache.is_sliding) or any(cache.is_linear):  # those forget by themselves
            same = 0
        if same:
            cache.crop(same - len(self._cached))
        else:
            self._cache = DynamicCache(config=self._model.config)
        self._cached = self._cached[:same]
        return same

    def _read(self, tokens: Sequence[int], is_over: Callable[[], bool]) -> Any:
        """The logits after tokens; None where it was interrupted."""
        logits = None
        for start in range(0, len(tokens), CHUNK_TOKENS):
            if is_over():
                return None
            logits = self._step(tokens[start : start + CHUNK_TOKENS])
        return logits

    def _step(self, tokens: Sequence[int]) -> Any:
        import torch

        ids = torch.tensor([tokens], device=self._model.device)
        said = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cached.extend(tokens)
        return said.logits[0, -1].float()

    def _go_on(
        self, logits: Any, wish: Wish, say: Callable[[str], None], is_over: Callable[[], bool]
    ) -> tuple[str, int]:
        pick = picker(wish, logits.device)
        text = Text(self._decode, wish.stop)
        for count in range(1, wish.max_tokens + 1):
            token = pick(logits)
            if token in self._ends:
                say(text.rest())
                return "stop", count
            say(text.add(token))
            if text.is_over:
                return "stop", count
            if is_over():
                return "cancelled", count
            if count < wish.max_tokens:
                logits = self._step((token,))
        say(text.rest())
        return "length", wish.max_tokens

    def _decode(self, tokens: Sequence[int]) -> str:
        decoded: str = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return decoded


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """
    >>> common([1, 2, 3], [1, 2, 4, 5])
    2
    """
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def ends_of(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer."""
    told = getattr(model.generation_config, "eos_token_id", None)
    told = told if isinstance(told, list) else [told]
    return frozenset(token for token in (*told, tokenizer.eos_token_id) if token is not None)


def picker(wish: Wish, device: Any) -> Callable[[Any], int]:
    """How the next token is chosen from logits."""
    import torch

    if wish.temperature <= 0:
        return lambda logits: int(logits.argmax())
    generator = torch.Generator(device=device)
    if wish.seed is None:
        generator.seed()
    else:
        generator.manual_seed(wish.seed)

    def pick(logits: Any) -> int:
        shares, tokens = torch.softmax(logits / wish.temperature, -1).sort(descending=True)
        before = shares.cumsum(-1) - shares
        shares[before > wish.top_p] = 0  # the likeliest stays
        return int(tokens[torch.multinomial(shares, 1, generator=generator)])

    return pick


class Text:
    """Tokens to text, given out as soon as it is certain: no half characters, nothing that may begin a stop."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str]) -> None:
        self._decode = decode
        self._stop = stop
        self._tokens: list[int] = []
        self._from = self._told = 0  # tokens [from, told) were decoded and given out; they are context for what follows
        self._held = ""
        self.is_over = False  # a stop was found

    def add(self, token: int) -> str:
        self._tokens.append(token)
        before = self._decode(self._tokens[self._from : self._told])
        now = self._decode(self._tokens[self._from :])
        if len(now) <= len(before) or now.endswith(BROKEN):
            return ""
        self._from, self._told = self._told, len(self._tokens)
        return self._certain(now[len(before) :])

    def rest(self) -> str:
        """What was held back."""
        left = self._decode(self._tokens[self._from :])[len(self._decode(self._tokens[self._from : self._told])) :]
        return self._certain(left) + ("" if self.is_over else self._held)

    def _certain(self, text: str) -> str:
        self._held += text
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.is_over = True
            return self._held[: min(found)]
        sure = len(self._held) - max((begun(self._held, stop) for stop in self._stop), default=0)
        text, self._held = self._held[:sure], self._held[sure:]
        return text


def begun(text: str, stop: str) -> int:
    """How many characters at the end of a text may be the beginning of a stop.

    >>> begun("the en", "end"), begun("the", "end")
    (2, 1)
    """
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
