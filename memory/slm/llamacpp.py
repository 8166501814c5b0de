"""The process that runs a .gguf file: llama.cpp's own server, which speaks the OpenAI API, out of the xllamacpp wheel.

It answers chat completions, completions, responses and messages, one request at a time, and keeps the prompt of the
last one: what begins alike is not computed again. A client that leaves is noticed within a second, and the work for it
ends after the batch that is being computed.
"""

import json
import os
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from memory.budget import output_reserve
from memory.slm import child
from memory.slm.header import BadWeights, gguf_header
from memory.slm.probes import PROBES, Messages, frame
from memory.types import Model

BATCH_TOKENS = 64  # of a prompt at once: what a client that leaves still costs. A processor is no faster with more
GPU_BATCH_TOKENS = 512
HTTP_THREADS = 16  # requests that wait have one each
PRINTING_SECONDS, QUIET_SECONDS = 5.0, 0.2  # how long its last lines may take; it has ended when none came for so long
PATIENCE_SECONDS = 60.0  # for the few tokens that are counted at the start

# llama.cpp takes the template of ChatML for a model that has none. This one refuses, but not while it is looked at.
NO_TEMPLATE = (
    "{% if refuse is defined %}{{ raise_exception('this model has no chat template: it completes texts at "
    "/v1/completions and cannot chat') }}{% endif %}{{ messages[-1].content }}"
)


def main() -> int:
    told = child.told()
    try:
        import xllamacpp
    except ImportError as error:
        child.fail(f"llama.cpp is not installed ({error}): `pip install 'infold[slm-cpu]'` brings it")
    try:
        given = params(xllamacpp, told)
    except (BadWeights, child.Refused) as error:
        child.fail(str(error))
    with complaints() as said:
        try:
            server = xllamacpp.Server(given)
        except RuntimeError as error:
            child.fail(reason(told, said(), str(error)))
    for number in (signal.SIGTERM, signal.SIGINT):  # llama.cpp's own handlers end its server and not the process
        signal.signal(number, signal.SIG_DFL)
    address, key = server.listening_address, told["key"] if told["loras"] is not None else None
    child.say(ready=True, url=f"{address}/v1", **measured(address, key))
    child.mute()
    child.last()


def params(xllamacpp: Any, told: Mapping[str, Any]) -> Any:
    """llama.cpp's settings.

    Raises:
        BadWeights: the file's header cannot be read.
        Refused: the window is larger than the model's, or other weights are wanted than the file has.
    """
    if told["quantization"] != "none":
        raise child.Refused("`slm.quantization` is for transformers; a .gguf file has its own")
    header = gguf_header(Path(told["path"]))
    window = child.window(told, header.of_model("context_length"))
    given = xllamacpp.CommonParams()
    given.model.path = told["path"]
    given.model_alias = {told["name"]}
    given.hostnames, given.port = [told["host"]], told["port"]
    given.n_ctx = window
    given.n_predict = output_reserve(Model("", window), window, None)  # of who asks for no number
    given.cpuparams.n_threads = given.cpuparams_batch.n_threads = told["threads"]
    given.n_batch = given.n_ubatch = GPU_BATCH_TOKENS if has_gpu(xllamacpp) else BATCH_TOKENS
    given.n_parallel, given.n_threads_http = 1, HTTP_THREADS
    given.cache_ram_mib = 0  # only the last prompt is kept
    given.ui = given.endpoint_slots = given.warmup = given.fit_params = False
    given.cors_origins = ""  # no page in a browser may read what is said here
    given.verbosity = 1  # errors
    if not header.fields.get("tokenizer.chat_template"):
        given.chat_template = told["template"] or NO_TEMPLATE
        given.default_template_kwargs = {} if told["template"] else {"refuse": "true"}
    if told["loras"] is not None:  # they weigh nothing but in requests that name them
        given.lora_adapters = [lora(xllamacpp, path, 0.0) for path in told["loras"]]
        given.lora_init_without_apply, given.api_keys = True, [told["key"]]
    elif told["adapter"]:
        given.lora_adapters = [lora(xllamacpp, checked(told["adapter"]), 1.0)]
    return given


def has_gpu(xllamacpp: Any) -> bool:
    kinds = xllamacpp.ggml_backend_dev_type
    return any(device["type"] != kinds.GGML_BACKEND_DEVICE_TYPE_CPU for device in xllamacpp.get_device_info())


def checked(path: str) -> str:
    """
    Raises:
        Refused: llama.cpp does not read such a file.
    """
    if not path.lower().endswith(".gguf"):
        raise child.Refused(f"{path} is no .gguf file; llama.cpp takes adapters in no other form")
    return path


def lora(xllamacpp: Any, path: str, scale: float) -> Any:
    info = xllamacpp.CommonAdapterLoraInfo()
    info.path, info.scale = path, scale
    return info


# What llama.cpp prints while it starts.


@contextmanager
def complaints() -> Iterator[Callable[[], str]]:
    """Keep what is printed as errors; the yielded function reads it."""
    before = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)

        def said() -> str:
            """A thread of llama.cpp's prints, so its lines come a moment later."""
            seen, until = -1, time.monotonic() + PRINTING_SECONDS
            while time.monotonic() < until and (not seen or seen < os.fstat(file.fileno()).st_size):
                seen = os.fstat(file.fileno()).st_size
                time.sleep(QUIET_SECONDS)
            file.seek(0)
            return file.read().decode(errors="replace")

        try:
            yield said
        finally:
            os.dup2(before, 2)
            os.close(before)


def reason(told: Mapping[str, Any], said: str, error: str) -> str:
    """Why it does not start, from its lines."""
    if "couldn't bind" in said:
        return f"cannot listen on {told['host']}:{told['port']}: is something else listening there?"
    found = re.findall(r"(?:error loading model|failed to allocate|unable to allocate|chat template).*", said)
    return f"llama.cpp cannot run {told['path']}: {found[0] if found else error}"


# What the proxy needs to know to count as it counts.


def measured(address: str, key: str | None) -> dict[str, Any]:
    """The window, the tokens of the probes, and what the chat template adds."""
    (model,) = asked(address, key, "GET", "/v1/models")["data"]

    def tokens(text: str) -> int:
        return len(asked(address, key, "POST", "/tokenize", {"content": text})["tokens"])

    def prompt(messages: Messages) -> int | None:
        counted = asked(address, key, "POST", "/v1/chat/completions/input_tokens", {"messages": messages})
        return counted.get("input_tokens")  # none where the template refuses them

    added = frame(tokens, prompt)
    return {
        "window": model["meta"]["n_ctx"],
        "counts": [tokens(probe) for probe in PROBES],
        "message_tokens": added.message if added else None,
        "reply_tokens": added.reply if added else None,
    }


def asked(address: str, key: str | None, method: str, path: str, body: object = None) -> dict[str, Any]:
    host = urlsplit(address).netloc
    connection = HTTPConnection(host, timeout=PATIENCE_SECONDS)
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return answer
