"""Chats as tokens, how likely a loaded model finds a reply, and what it says itself. Imports torch.

Rows of a batch are filled up on the left, so that all replies end at the same place and the head of the model, a fifth
of a small one, is computed for them alone. What all prompts of a set begin with is computed once.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

import torch

from memory.slm.base import Base

IGNORED = -100  # a label that no loss counts
LEAST_SHARED = 32  # tokens that prompts begin with alike, below which keeping them does not pay


@dataclass(frozen=True, slots=True)
class Encoded:
    """A chat as tokens: prompt, then the reply."""

    prompt: tuple[int, ...]
    reply: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.prompt) + len(self.reply)


def encode(base: Base, messages: Sequence[tuple[str, str]], ends: bool = True) -> Encoded:
    """A chat whose last message is the reply; one that ends with a user's is a prompt alone.

    Args:
        ends: the reply ends there; one that was cut off does not.
    """
    given = [{"role": role, "content": content} for role, content in messages]
    reply = given.pop()["content"] if given[-1]["role"] == "assistant" else None
    prompt = base.tokenizer.apply_chat_template(given, add_generation_prompt=True, return_dict=True)["input_ids"]
    if reply is None:
        return Encoded(tuple(prompt))
    learnt = base.tokenizer(reply, add_special_tokens=False)["input_ids"]
    return Encoded(tuple(prompt), (*learnt, *([base.tokenizer.eos_token_id] if ends else [])))


def encode_text(base: Base, text: str) -> Encoded:
    """A text of which every token but the first is to be foretold."""
    ids = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    return Encoded(tuple(ids[:1]), tuple(ids[1:]))


@dataclass(frozen=True, slots=True)
class Batch:
    """Chats side by side; a beginning that all share may stand before them."""

    ids: torch.Tensor  # (rows, tokens)
    mask: torch.Tensor  # (rows, shared + tokens), 1 where there is a token
    labels: torch.Tensor  # (rows, tokens), the reply's ids, IGNORED elsewhere
    kept: int  # tokens at the end that hold all replies and one more before them

    @property
    def wanted(self) -> torch.Tensor:
        """The replies' ids, (rows, kept - 1)."""
        return self.labels[:, -(self.kept - 1) :]

    @property
    def positions(self) -> torch.Tensor:
        return (self.mask.cumsum(-1) - 1).clamp(min=0)[:, -self.ids.shape[1] :]


def batch_of(base: Base, rows: Sequence[Encoded], shared: int = 0) -> Batch:
    """`shared`: so many tokens of each prompt are left out: they stand in a cache."""
    longest = max(len(row) for row in rows) - shared
    pad = base.tokenizer.pad_token_id
    ids, mask, labels = [], [], []
    for row in rows:
        fill = longest - (len(row) - shared)
        ids.append([pad] * fill + [*row.prompt[shared:], *row.reply])
        mask.append([1] * shared + [0] * fill + [1] * (len(row) - shared))
        labels.append([IGNORED] * (longest - len(row.reply)) + [*row.reply])
    kept = max(len(row.reply) for row in rows) + 1
    as_tensor = partial(torch.tensor, device=base.device)
    return Batch(as_tensor(ids), as_tensor(mask), as_tensor(labels), kept)


def losses(base: Base, batch: Batch, cache: Any = None) -> torch.Tensor:
    """Negative log likelihood of each reply token, natural logarithm: (rows, kept - 1), 0 where there is none."""
    logits = foretold(base, batch, cache)
    flat = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), batch.wanted.reshape(-1), ignore_index=IGNORED, reduction="none"
    )
    return flat.reshape(batch.wanted.shape)


def drifts(base: Base, batch: Batch) -> torch.Tensor:
    """How far the model with its adapter is from the one without at each reply token: (rows, kept - 1), 0 where none.

    The divergence of what it foretells from what the bare model does, in nats (Kullback and Leibler 1951).
    """
    with torch.no_grad(), base.model.disable_adapter():
        bare = torch.log_softmax(foretold(base, batch), -1)
    now = torch.log_softmax(foretold(base, batch), -1)
    return (bare.exp() * (bare - now)).sum(-1) * (batch.wanted != IGNORED)


def foretold(base: Base, batch: Batch, cache: Any = None) -> torch.Tensor:
    """Logits for each place of a reply: (rows, kept - 1, words)."""
    told = base.model(
        input_ids=batch.ids,
        attention_mask=batch.mask,
        position_ids=batch.positions,
        past_key_values=cache,
        use_cache=cache is not None,
        logits_to_keep=batch.kept,
    )
    logits: torch.Tensor = told.logits[:, :-1].float()
    return logits


def likelihoods(base: Base, rows: Sequence[Encoded], batch_size: int) -> list[float]:
    """Of each reply the mean negative log likelihood of its tokens."""
    found: list[float] = []
    with torch.inference_mode():
        shared = Shared.of(base, rows)
        for start in range(0, len(rows), batch_size):
            some = rows[start : start + batch_size]
            batch = batch_of(base, some, shared.tokens)
            sums = losses(base, batch, shared.cache(len(some))).sum(-1).tolist()
            found += [total / max(len(row.reply), 1) for total, row in zip(sums, some, strict=True)]
    return found


@dataclass(frozen=True, slots=True)
class Said:
    text: str
    ended: bool  # by itself; not by the limit


def answers(base: Base, prompts: Sequence[Encoded], most_tokens: int, batch_size: int) -> list[Said]:
    """What the model says to each prompt, the likeliest token each time."""
    ends = ending_tokens(base)
    told: list[Said] = []
    with torch.inference_mode():
        shared = Shared.of(base, prompts)
        for start in range(0, len(prompts), batch_size):
            batch = batch_of(base, some := prompts[start : start + batch_size], shared.tokens)
            before = torch.tensor([some[0].prompt[: shared.tokens]] * len(some), dtype=torch.long, device=base.device)
            made = base.model.generate(
                input_ids=torch.cat([before, batch.ids], dim=1),
                attention_mask=batch.mask,
                past_key_values=shared.cache(len(some)),
                max_new_tokens=most_tokens,
                do_sample=False,
                pad_token_id=base.tokenizer.pad_token_id,
                eos_token_id=sorted(ends),
            )
            told += [said(base, row, ends) for row in made[:, batch.mask.shape[1] :].tolist()]
    return told


def said(base: Base, tokens: Sequence[int], ends: frozenset[int]) -> Said:
    stop = next((place for place, token in enumerate(tokens) if token in ends), None)
    return Said(base.tokenizer.decode(tokens[:stop], skip_special_tokens=True).strip(), stop is not None)


def ending_tokens(base: Base) -> frozenset[int]:
    told = getattr(base.model, "generation_config", None)
    ends = getattr(told, "eos_token_id", None)
    many = ends if isinstance(ends, list) else [ends]
    return frozenset(token for token in (*many, base.tokenizer.eos_token_id) if token is not None)


@dataclass(frozen=True, slots=True)
class Shared:
    """What all prompts of a set begin with, computed once."""

    tokens: int
    kept: Any = None  # keys and values of them, for one row

    @classmethod
    def of(cls, base: Base, rows: Sequence[Encoded]) -> "Shared":
        columns = zip(*(row.prompt[:-1] for row in rows), strict=False)  # something has to be left to compute
        tokens = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
        if len(rows) < 2 or tokens < LEAST_SHARED:
            return cls(0)
        ids = torch.tensor([rows[0].prompt[:tokens]], device=base.device)
        return cls(tokens, base.model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values)

    def cache(self, rows: int) -> Any:
        """A copy for so many rows; the model writes into it."""
        if self.kept is None:
            return None
        copied = copy.deepcopy(self.kept)
        copied.batch_repeat_interleave(rows)
        return copied
