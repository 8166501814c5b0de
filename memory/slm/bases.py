"""The base model that adapters are made for, as its trainer reads it: a folder, if need be made of a .gguf file.

Conversion needs torch, and a gigabyte: it has a process of its own.
"""

import asyncio
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from memory.environment import variables
from memory.errors import EngineError
from memory.settings import Slm
from memory.slm.adapters import Foundation, foundation_of
from memory.slm.child import NICENESS
from memory.slm.children import NEEDED, check_installed
from memory.slm.convert import FOLDER, converted, sha256
from memory.slm.engine import CHILD, READS, calm
from memory.slm.weights import locate


@dataclass(frozen=True, slots=True)
class Base:
    name: str  # as engines know it
    folder: Path
    foundation: Foundation


class Bases:
    """Looks at the weights when they have changed, and not before."""

    def __init__(self, slm: Slm, models_home: Path, environment: Mapping[str, str] | None = None) -> None:
        """`environment`: of a child that converts; None: ours."""
        self._slm, self._home = slm, models_home
        self._environment = variables(None) if environment is None else environment
        self._seen: tuple[object, Base] | None = None
        self._one = asyncio.Lock()

    @property
    def quantization(self) -> str:
        """A .gguf file has one of its own, and is trained in full."""
        return self._slm.quantization if self._slm.backend == "transformers" else "none"

    async def base(self) -> Base:
        """
        Raises:
            MissingWeights, BadWeights: the model is not there, or must not be loaded.
            EngineError: it has to be converted, and cannot be.
        """
        async with self._one:
            kinds = READS["llamacpp" if self._slm.backend == "llamacpp" else "transformers"]  # what is served is taught
            weights = await asyncio.to_thread(locate, self._slm.model, self._home, kinds)
            mark = (weights, stamps(weights.path))
            if self._seen is None or self._seen[0] != mark:
                folder = weights.path if weights.kind == "folder" else await self._converted(weights.path)
                found = await asyncio.to_thread(foundation_of, folder, self.quantization)
                self._seen = (mark, Base(weights.name, folder, found))
            return self._seen[1]

    async def _converted(self, path: Path) -> Path:
        place = self._home / FOLDER / await asyncio.to_thread(sha256, path)
        if not place.is_dir():
            check_installed(NEEDED)
            where = [str(Path(entry).absolute()) for entry in sys.path]
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-c", CHILD.format(path=where, module=__name__), str(path), str(self._home),
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL, env={**self._environment, **calm(self._slm.threads)},
            )  # fmt: skip
            try:
                code = await process.wait()
            except asyncio.CancelledError:
                process.kill()
                raise
            if code != 0 or not place.is_dir():
                raise EngineError(f"{path.name} could not be made into a folder that can be trained; was memory short?")
        return place


def stamps(path: Path) -> tuple[tuple[str, int, int], ...]:
    """What changes with the weights: names, sizes and times of their files."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return tuple((file.name, (told := file.stat()).st_size, told.st_mtime_ns) for file in files)


def main() -> int:
    """The child."""
    os.nice(NICENESS)
    converted(Path(sys.argv[1]), Path(sys.argv[2]))
    return 0
