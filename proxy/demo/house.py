"""The real Infold for the demo: `infold serve` as anybody starts it, on a free port, in a home that is thrown away."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import yaml

from memory.types import Model, Prices
from proxy.household import dies_with_parent

START_SECONDS = 60.0
STOP_SECONDS = 20.0
BANNER = re.compile(r"listens on (http://\S+)")
ROOT = Path(__file__).parents[2]  # where the package `proxy` lies


class DemoError(Exception):
    """The demo cannot go on; says why, and what to do."""


@contextmanager
def infold(upstream: str, model: Model, prices: Prices) -> Iterator[str]:
    """Infold before `upstream`, ready; gives its URL. Its data are removed at the end.

    Raises:
        DemoError: it does not start; with what it said.
    """
    with TemporaryDirectory(prefix="infold-demo-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)  # as root the database runs as another user, who must get through
        settings, log = folder / "proxy.yaml", folder / "infold.log"
        settings.write_text(yaml.safe_dump(settings_for(model, prices)))
        command = [sys.executable, "-P", "-m", "proxy.cli", "serve", "--port", "0", "--upstream", f"{upstream}/v1"]
        command += ["--data-dir", str(folder / "data"), "--config", str(settings)]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=clean_environment(folder),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=dies_with_parent(),
                start_new_session=True,  # a terminal's Ctrl-C is for us, who stop it in order
            )
        try:
            yield ready(process, log)
        finally:
            stop(process)


def settings_for(model: Model, prices: Prices) -> Mapping[str, object]:
    """proxy.yaml: a model of ours at a known one's prices."""
    million = 1_000_000
    return {
        "log_level": "warning",
        "drain_seconds": 1,
        "models": {
            model.name: {
                "context_window": model.window,
                "encoding": model.encoding,
                "input_usd_per_million": prices.input * million,
                "cached_usd_per_million": prices.cached * million,
                "write_usd_per_million": prices.write * million,
                "output_usd_per_million": prices.output * million,
            }
        },
    }


def clean_environment(folder: Path) -> dict[str, str]:
    """None of the user's settings, keys and databases: a demo touches nothing of theirs."""
    return {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "TMPDIR": str(folder),
        "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime 1.32 has a client for Microsoft's collector built in
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }


def ready(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """Wait until it serves with its database."""
    deadline = time.monotonic() + START_SECONDS
    with httpx.Client(trust_env=False, verify=False, timeout=2) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise DemoError(f"Infold did not start: {last_words(log)}")
            banner = BANNER.search(log.read_text(errors="replace"))
            if banner and is_ready(client, banner[1]):
                return banner[1]
            time.sleep(0.05)
    raise DemoError(f"Infold is not ready after {START_SECONDS:.0f} seconds: {last_words(log)}")


def is_ready(client: httpx.Client, url: str) -> bool:
    try:
        return b'"ready"' in client.get(f"{url}/readyz").content
    except httpx.TransportError:
        return False


def last_words(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    told = next((line for line in reversed(lines) if line.startswith("infold: ")), None)
    return told.removeprefix("infold: ") if told else "\n".join(lines[-5:]) or "it said nothing"


def stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
