"""The tests that openai-python brings along, once directly at a mock of the API and once through Infold.

    git clone https://github.com/openai/openai-python
    python3 -m venv theirs && theirs/bin/pip install './openai-python[aiohttp,realtime,datalib,voice_helpers,bedrock]'
    theirs/bin/pip install --group ./openai-python/pyproject.toml:dev
    python tests/clients/openai_own.py openai-python --python theirs/bin/python

The mock is the one their tests are written for, `@stdy/cli` from npm, with the API's description that lies in the
checkout. It checks each request against that description, so a request that Infold spoilt fails a test, as does an
answer. The same tests must pass and fail both ways; exit status 0: they did. Options after `--` go to pytest: with
`-- -n 2 tests/api_resources` only those run that ask the mock; the others say nothing about Infold.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

REPOSITORY = Path(__file__).parents[2]
START_SECONDS = 180.0  # for a first start, in which npm or PostgreSQL may have much to do
# As in their scripts/mock: how the SDK writes lists and objects in queries and forms.
READING = [
    f"--validator-{what}-format=brackets" for what in ("query-array", "form-array", "query-object", "form-object")
]
MOCK_IS_UP, INFOLD_IS_UP = "/_x-steady/health", "/readyz"


@dataclass(frozen=True, slots=True)
class Run:
    """What came of each test, by its name."""

    outcomes: Mapping[str, str]

    def __str__(self) -> str:
        counts = Counter(self.outcomes.values())
        return ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped"))


def main(words: list[str]) -> int:
    given, pytest_options = parse(words)
    checkout: Path = given.checkout.resolve()
    with tempfile.TemporaryDirectory(prefix="infold-openai-") as name, contextlib.ExitStack() as running:
        folder = Path(name)
        mock = running.enter_context(serving(mocking(checkout), MOCK_IS_UP, folder / "mock.log"))
        through = running.enter_context(serving(proxying(mock, folder / "data"), INFOLD_IS_UP, folder / "infold.log"))
        print(f"mock at {mock}, Infold at {through}, tests of {checkout}", flush=True)
        runs = {}
        for way, url in (("directly", mock), ("through Infold", through)):
            runs[way] = tested(checkout, given.python, url, folder / f"{way.split()[0]}.xml", pytest_options)
            print(f"{way}: {runs[way]}", flush=True)
        print(f"managed requests that Infold counted: {managed(through)}")
    different = differing(*runs.values())
    print("\n".join(different) if different else "every test came out the same")
    return 1 if different else 0


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our options, and pytest's."""
    at = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description="openai-python's own tests, directly and through Infold.")
    parser.add_argument("checkout", type=Path, help="a checkout of openai-python")
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has what their tests need")
    return parser.parse_args(words[:at]), words[at + 1 :]


def mocking(checkout: Path) -> list[str]:
    """What starts the mock in the version that the checkout pins; its port is left to `serving`."""
    npx = shutil.which("npx")
    if npx is None:
        raise SystemExit("npx is not on this machine; it comes with Node.js")
    package = json.loads((checkout / "package.json").read_text()) if (checkout / "package.json").exists() else {}
    version = package.get("devDependencies", {}).get("@stdy/cli", "latest")
    return [npx, "--yes", f"@stdy/cli@{version}", "--host", "127.0.0.1", *READING, described_in(checkout), "-p"]


def described_in(checkout: Path) -> str:
    """The API's description: a file of the checkout, or in older ones the address in `.stats.yml`."""
    inside = checkout / "api_reference" / "openapi.transformed.yml"
    if inside.exists():
        return str(inside)
    stats = checkout / ".stats.yml"
    found = re.search(r"^openapi_spec_url: (\S+)", stats.read_text(), re.MULTILINE) if stats.exists() else None
    if found is None:
        raise SystemExit(f"{checkout} holds neither {inside.name} nor a .stats.yml with openapi_spec_url")
    return found[1]


def proxying(upstream: str, data_dir: Path) -> list[str]:
    """What starts this repository's Infold. The mock serves without `/v1`, so neither URL has a path."""
    return [sys.executable, "-m", "proxy.cli", "serve", "--upstream", upstream, "--data-dir", str(data_dir), "--port"]


@contextlib.contextmanager
def serving(command: list[str], path: str, log: Path) -> Iterator[str]:
    """A server on a free port, from when `path` answers; ended with its children."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, str(port)],
            cwd=log.parent,  # where no proxy.yaml lies
            env=without_settings() | {"PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
        try:
            wait_for(url + path, process, log)
            yield url
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def without_settings() -> dict[str, str]:
    """The environment without what would lead Infold or the SDK elsewhere."""
    away = ("OPENAI_", "INFOLD_", "DATABASE_URL", "PYTHONPATH")
    return {name: value for name, value in os.environ.items() if not name.startswith(away)}


def wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=5).is_success:
                return
        time.sleep(0.2)
    raise SystemExit(f"nothing answers at {url}:\n{log.read_text()[-4000:]}")


def tested(checkout: Path, python: str, url: str, report: Path, options: list[str]) -> Run:
    """One run of their tests against `url`."""
    interpreter = str(Path(python).absolute()) if os.sep in python else python
    command = [interpreter, "-m", "pytest", "-q", f"--junitxml={report}", "-p", "no:cacheprovider", *options]
    given = without_settings() | {"TEST_API_BASE_URL": url, "DEFER_PYDANTIC_BUILD": "false"}
    subprocess.run(command, cwd=checkout, env=given, stdout=subprocess.DEVNULL, check=False)
    if not report.exists():
        raise SystemExit(f"pytest wrote no report; try it by hand: {' '.join(command)}")
    return Run(dict(outcomes(report)))


def outcomes(report: Path) -> Iterator[tuple[str, str]]:
    """Each test's name and what came of it, from a report that pytest wrote."""
    for case in ET.parse(report).iter("testcase"):
        found = {child.tag for child in case}
        outcome = "failed" if found & {"failure", "error"} else "skipped" if "skipped" in found else "passed"
        yield f"{case.get('classname')}::{case.get('name')}", outcome


def differing(direct: Run, through: Run) -> list[str]:
    names = sorted({*direct.outcomes, *through.outcomes})
    pairs = [(name, direct.outcomes.get(name, "absent"), through.outcomes.get(name, "absent")) for name in names]
    return [f"{name}: {here} directly, {there} through Infold" for name, here, there in pairs if here != there]


def managed(url: str) -> int:
    """How many managed requests Infold counted: none would say that the tests went around it."""
    told = httpx.get(url + "/metrics", timeout=30).text
    return int(sum(float(value) for value in re.findall(r"^infold_requests_total\{[^}]*\} (\S+)$", told, re.MULTILINE)))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers end with us
    sys.exit(main(sys.argv[1:]))
