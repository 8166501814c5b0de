"""The house stands: imports point downwards, as the table in CONTRIBUTING.md says."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
PACKAGES = ("memory", "proxy")
ROW = re.compile(r"^\| `((?:memory|proxy)/[\w/.]+)` \| F(\d) \|", re.MULTILINE)


@cache
def rooms() -> dict[str, int]:
    """File or folder -> floor, from the table."""
    return {room: int(floor) for room, floor in ROW.findall((TOP / "CONTRIBUTING.md").read_text())}


@cache
def files() -> list[str]:
    return sorted(str(path.relative_to(TOP)) for package in PACKAGES for path in (TOP / package).rglob("*.py"))


MODULES = {file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in files()}
ROOTS = {f"{package}/__init__.py" for package in PACKAGES}


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((TOP / file).read_text(), file)


def imported(node: ast.AST) -> Iterator[str]:
    """The modules that a statement names; `from memory import rank` names `memory.rank`."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute, so that a reader can find the file"
        yield str(node.module)
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports(file: str) -> set[str]:
    """Our own files that a file imports, at its top or inside a function."""
    return {MODULES[name] for node in ast.walk(tree(file)) for name in imported(node) if name in MODULES} - ROOTS


def room_of(file: str) -> str | None:
    """The row that speaks of a file: its own, else that of its folder."""
    names = [file, *(f"{parent}/" for parent in Path(file).parents)]
    return next((name for name in names if name in rooms()), None)


def floor(file: str) -> int:
    room = room_of(file)
    assert room is not None, f"{file} has no row in the table of CONTRIBUTING.md; which floor is it on?"
    return rooms()[room]


@pytest.mark.parametrize("file", [file for file in files() if file not in ROOTS])
def test_a_file_imports_from_its_own_floor_and_below(file: str) -> None:
    package = file.split("/")[0]
    above = [other for other in imports(file) if other.startswith(package) and floor(other) > floor(file)]
    assert not above, f"{file} (F{floor(file)}) imports from above: {above}"


def test_nothing_imports_in_a_circle() -> None:
    try:
        TopologicalSorter({file: imports(file) for file in files()}).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


def test_the_table_speaks_only_of_rooms_that_are_there() -> None:
    inhabited = {room_of(file) for file in files()}
    assert not set(rooms()) - inhabited


def test_memory_knows_no_http_side() -> None:
    assert not [
        (file, name)
        for file in files()
        if file.startswith("memory/")
        for node in ast.walk(tree(file))
        for name in imported(node)
        if name.split(".")[0] == "proxy"
    ]


def test_importing_one_file_of_a_package_imports_no_other() -> None:
    """`memory/__init__.py` names what programs use and loads it on first use."""
    for file in ROOTS:
        at_once = [node for node in tree(file).body if not (isinstance(node, ast.If) and is_for_types(node.test))]
        outside = {name for node in at_once for inner in ast.walk(node) for name in imported(inner)}
        assert {name.split(".")[0] for name in outside} <= {"importlib", "typing"}, file


def is_for_types(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def test_litellm_is_never_imported_with_a_module() -> None:
    """It costs two seconds and 160 MB; a function that needs it imports it."""
    inside_functions = {
        id(inner)
        for file in files()
        for outer in ast.walk(tree(file))
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(outer)
    }
    assert not [
        file
        for file in files()
        for node in ast.walk(tree(file))
        if id(node) not in inside_functions and any(name.split(".")[0] == "litellm" for name in imported(node))
    ]


def test_only_the_configuration_reads_the_environment() -> None:
    readers = {
        file
        for file in files()
        for node in ast.walk(tree(file))
        if (isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "putenv"))
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and {"environ", "getenv"} & names(node))
    }
    assert readers == {"proxy/config.py", "memory/environment.py"}


def names(node: ast.ImportFrom) -> set[str]:
    return {alias.name for alias in node.names}
