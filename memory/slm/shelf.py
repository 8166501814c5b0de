"""What lies below `<data directory>/models`: every model that we know, there or not, and whatever else is there."""

from dataclasses import dataclass
from pathlib import Path

from memory.errors import LLMMemoryError
from memory.slm.folder import checked_model
from memory.slm.header import Header, gguf_header, json_object
from memory.slm.registry import MODELS, LocalModel
from memory.slm.weights import MissingWeights, Weights, locate


@dataclass(frozen=True, slots=True)
class Entry:
    name: str
    model: LocalModel | None  # None: somebody's own
    weights: Weights | None
    problem: str | None = None  # why what is there cannot be used


def shelf(home: Path) -> tuple[Entry, ...]:
    """Those that we know first."""
    known = {model.name: model for model in MODELS}
    others = sorted(place.name for place in home.glob("*/") if place.name not in known and place.name[0] != ".")
    entries = [entry(name, known.get(name), home) for name in (*known, *others)]
    return tuple(found for found in entries if found.model or found.weights or found.problem)


def entry(name: str, model: LocalModel | None, home: Path) -> Entry:
    try:
        return Entry(name, model, locate(name if model else str(home / name), home))
    except MissingWeights:
        return Entry(name, model, None)
    except LLMMemoryError as error:
        return Entry(name, model, None, str(error))


def size_bytes(weights: Weights) -> int:
    """Of its files on disk."""
    if weights.kind == "gguf":
        return weights.path.stat().st_size
    return sum(file.stat().st_size for file in weights.path.glob("*.safetensors"))


def described(weights: Weights) -> LocalModel | None:
    """The registry's entry, else what the files say of themselves; None where they do not say enough."""
    if weights.model is not None:
        return weights.model
    try:
        return from_header(weights) if weights.kind == "gguf" else from_config(weights)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def from_header(weights: Weights) -> LocalModel:
    header = gguf_header(weights.path)
    heads, width = required(header, "attention.head_count"), required(header, "embedding_length")
    return unlisted(
        weights,
        window=required(header, "context_length"),
        layers=required(header, "block_count"),
        kv_heads=header.of_model("attention.head_count_kv") or heads,
        head_size=header.of_model("attention.key_length") or width // heads,
        parameters=header.parameters,
        embedding_parameters=header.lengths.get("tokenizer.ggml.tokens", 0) * width,
        has_template="tokenizer.chat_template" in header.fields,
    )


def required(header: Header, name: str) -> int:
    value = header.of_model(name)
    if value is None:
        raise KeyError(name)
    return value


def from_config(weights: Weights) -> LocalModel:
    config = json_object(weights.path / "config.json")
    config = config.get("text_config") or config
    heads, width = config["num_attention_heads"], config["hidden_size"]
    head = 1 if config.get("tie_word_embeddings", True) else 2
    return unlisted(
        weights,
        window=config["max_position_embeddings"],
        layers=config["num_hidden_layers"],
        kv_heads=config.get("num_key_value_heads") or heads,
        head_size=config.get("head_dim") or width // heads,
        parameters=checked_model(weights.path),
        embedding_parameters=head * config["vocab_size"] * width,
        has_template=has_template(weights.path),
    )


def has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    tokenizer = folder / "tokenizer_config.json"
    return tokenizer.is_file() and bool(json_object(tokenizer).get("chat_template"))


def unlisted(
    weights: Weights,
    *,
    window: int,
    layers: int,
    kv_heads: int,
    head_size: int,
    parameters: int,
    embedding_parameters: int,
    has_template: bool,
) -> LocalModel:
    """
    Raises:
        ValueError: a number is none that a model can have.
    """
    shape = (window, layers, kv_heads, head_size, parameters)
    if not all(type(value) is int and value > 0 for value in shape) or type(embedding_parameters) is not int:
        raise ValueError(weights.name)
    return LocalModel(
        hub="",
        name=weights.name,
        aliases=(),
        window=window,
        layers=layers,
        kv_heads=kv_heads,
        head_size=head_size,
        parameters=parameters,
        embedding_parameters=embedding_parameters,
        template="inside" if has_template else None,
        licence="",
        licence_url="",
    )
