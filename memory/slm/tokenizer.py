"""The vocabulary of a model's weights as a `tokenizer.json`, so that the proxy counts as the engine does.

A Hugging Face folder has one; out of a .gguf file one is made. Whether it counts as the engine does is not assumed:
`memory.slm.probes` has texts that both count at the start.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory.slm.header import Reader
from memory.slm.weights import Weights

if TYPE_CHECKING:
    from tokenizers import Tokenizer, pre_tokenizers

NAME = "tokenizer.json"
UNKNOWN, ADDED = 2, 4  # tokenizer.ggml.token_type
SPACE = "\u2581"  # a space in SentencePiece's vocabularies

# How text is cut before merging, by `tokenizer.ggml.pre`: the digits that stand together, and the expression.
# Source: llama.cpp, llama-vocab.cpp. Others are cut like Llama 3's, and the probes tell how far off that is.
GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA_3 = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{%s}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS: Mapping[str, tuple[bool, str]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais"), (False, GPT_2)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), (True, GPT_2)),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen"), (False, LLAMA_3 % "1")),
}
USUAL = (False, LLAMA_3 % "1,3")


def tokenizer_json(weights: Weights) -> str | None:
    """The text of a model's `tokenizer.json`; None: its files have no vocabulary that we can write as one.

    Raises:
        BadWeights: the file is broken.
        OSError: it cannot be read.
    """
    if weights.kind == "folder":
        found = weights.path / NAME
        return found.read_text(encoding="utf-8") if found.is_file() else None
    made = tokenizer(read(weights.path))
    return made.to_str() if made is not None else None


class Fields(Reader):
    """Reads the arrays of a header, too."""

    def over_array(self) -> Any:
        kind, count = self.number("I"), self.number("Q")
        self.spend(0 if count <= self.left else count)  # before a list of that length is begun
        return [self.value(kind) for _ in range(count)]


def read(path: Path) -> dict[str, Any]:
    """What a .gguf file says of its vocabulary.

    Raises:
        BadWeights: its header cannot be read.
    """
    with path.open("rb") as file:
        reader = Fields(file, path)
        reader.take(16)
        count = reader.number("Q")
        fields = {reader.text().decode(errors="replace"): reader.value(reader.number("I")) for _ in range(count)}
    prefix = "tokenizer.ggml."
    return {name.removeprefix(prefix): value for name, value in fields.items() if name.startswith(prefix)}


def tokenizer(vocabulary: Mapping[str, Any]) -> "Tokenizer | None":
    tokens = vocabulary.get("tokens")
    if not isinstance(tokens, list):
        return None
    if vocabulary.get("model") == "gpt2":
        return bytewise(vocabulary, tokens)
    if vocabulary.get("model") == "llama":
        return sentencepiece(vocabulary, tokens)
    return None


def bytewise(vocabulary: Mapping[str, Any], tokens: Sequence[str]) -> "Tokenizer":
    """Byte-level byte pair encoding, as GPT-2 has it."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    merges = [tuple(merge.split(" ", 1)) for merge in vocabulary.get("merges", ())]
    made = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    single_digits, expression = CUTS.get(vocabulary.get("pre", ""), USUAL)
    made.pre_tokenizer = pre_tokenizers.Sequence([*cuts(single_digits, expression)])
    return made


def cuts(single_digits: bool, expression: str) -> "list[pre_tokenizers.PreTokenizer]":
    from tokenizers import Regex, pre_tokenizers

    digits = [pre_tokenizers.Digits(individual_digits=True)] if single_digits else []
    split = pre_tokenizers.Split(Regex(expression), behavior="isolated")
    return [*digits, split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


def sentencepiece(vocabulary: Mapping[str, Any], tokens: Sequence[str]) -> "Tokenizer":
    """Byte pair encoding with scores in place of an order of merges: the better score is merged first."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers

    numbers = {token: i for i, token in enumerate(tokens)}
    kinds: Sequence[int] = vocabulary.get("token_type", [])
    merges = merges_by_score(numbers, vocabulary.get("scores", []))
    unknown = next((token for token, kind in zip(tokens, kinds, strict=False) if kind == UNKNOWN), None)
    made = Tokenizer(models.BPE(vocab=numbers, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", SPACE)
    added = [token for token, kind in zip(tokens, kinds, strict=False) if kind == ADDED]
    made.add_tokens([AddedToken(token.replace(SPACE, " "), normalized=False) for token in added])
    return made


def merges_by_score(numbers: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Each way in which two tokens make a third."""
    found = [
        (-scores[number], number, (token[:cut], token[cut:]))
        for token, number in numbers.items()
        for cut in range(1, len(token))
        if number < len(scores) and token[:cut] in numbers and token[cut:] in numbers
    ]
    return [pair for _, _, pair in sorted(found)]
