"""The base install has no engine: nothing of Infold but what runs a model imports one."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
ENGINES = {"accelerate", "bitsandbytes", "gguf", "peft", "safetensors", "torch", "transformers", "xllamacpp"}

WITHOUT = f"""
import sys

class Blind:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {ENGINES!r} else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Blind(finder) for finder in sys.meta_path]
"""


def without_engines(code: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run in a Python that has none of them installed."""
    environment = {**os.environ, "PYTHONPATH": str(TOP)}
    command = [sys.executable, "-c", WITHOUT + code, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


def modules() -> Iterator[str]:
    """All of ours, but those whose first lines import an engine: they run as processes of their own."""
    for package in ("memory", "proxy"):
        for path in sorted((TOP / package).rglob("*.py")):
            at_once = [
                node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)
            ]
            names = {alias.name for node in at_once if isinstance(node, ast.Import) for alias in node.names}
            names |= {str(node.module) for node in at_once if isinstance(node, ast.ImportFrom)}
            if not {name.split(".")[0] for name in names} & ENGINES:
                yield str(path.relative_to(TOP)).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test_only_the_folder_of_small_models_has_modules_that_import_an_engine() -> None:
    everything = {
        str(path.relative_to(TOP)).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for package in ("memory", "proxy")
        for path in (TOP / package).rglob("*.py")
    }
    assert all(name.startswith("memory.slm.") for name in everything - {*modules()})


def test_everything_else_is_imported_without_them() -> None:
    ran = without_engines(f"import importlib\nfor name in {[*modules()]!r}: importlib.import_module(name)")
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("words", ["--help", "slm --help", "slm models", "slm check phi-2 --quick"])
def test_the_command_line_works_without_them(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFOLD_DATA_DIR", str(tmp_path))
    ran = without_engines("from proxy.cli import main\nmain()", *words.split())
    assert ran.returncode == 0, ran.stderr


def test_check_says_which_package_brings_an_engine(tmp_path: Path) -> None:
    ran = without_engines("from proxy.cli import main\nmain()", "slm", "check", "smollm2", "--data-dir", str(tmp_path))
    assert "`pip install 'infold[slm-cpu]'` brings llama.cpp" in ran.stdout
    assert "none that torch can use" in ran.stdout


def test_what_serves_imports_none_of_them_where_they_are_installed() -> None:
    """A web worker's application, its household and the command line, with everything that they load at once."""
    code = "import sys, proxy.app, proxy.cli, proxy.household, proxy.jobs, memory.whole, memory.blocking\n"
    code += f"sys.exit(', '.join({ENGINES!r} & sys.modules.keys()) or 0)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=TOP, capture_output=True, text=True, timeout=240)
    assert (ran.returncode, ran.stderr.strip()) == (0, "")
