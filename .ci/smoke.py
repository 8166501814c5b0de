"""Start the installed `infold serve` from another directory, ask it how it is, stop it; exit code 1 if that fails."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

READY_SECONDS = 60
STOP_SECONDS = 30
DEAD_UPSTREAM = "http://127.0.0.1:9/v1"  # nobody listens there; it is never asked


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="infold-smoke-") as folder:
        elsewhere = Path(folder, "elsewhere")
        elsewhere.mkdir()
        for name in ("memory", "proxy"):  # what lies around must not be taken for ours
            (elsewhere / f"{name}.py").write_text("raise SystemExit('imported from the working directory')\n")
        log = Path(folder, "serve.log")
        command = ["infold", "serve", "--port", "0", "--upstream", DEAD_UPSTREAM, "--data-dir", f"{folder}/data"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("INFOLD_")}
        environment.pop("DATABASE_URL", None)
        with log.open("wb") as output:
            server = subprocess.Popen(command, cwd=elsewhere, env=environment, stdout=output, stderr=output)
        try:
            seconds = wait_until_ready(server, log)
            print(f"ready after {seconds:.1f} s, including the first start of the database")
            server.send_signal(signal.SIGTERM)
            code = server.wait(STOP_SECONDS)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            print(f"{error}\n{log.read_text(errors='replace')}", file=sys.stderr)
            return 1
        finally:
            server.kill()
        print(f"stopped with exit code {code}")
        return code


def wait_until_ready(server: "subprocess.Popen[bytes]", log: Path) -> float:
    started = time.monotonic()
    while time.monotonic() - started < READY_SECONDS:
        if server.poll() is not None:
            raise RuntimeError(f"infold serve ended with exit code {server.returncode}")
        told = re.search(r"listens on (http://\S+)", log.read_text(errors="replace"))
        if told is not None and status(told[1] + "/readyz") == "ready":
            return time.monotonic() - started
        time.sleep(0.1)
    raise RuntimeError(f"not ready after {READY_SECONDS} s")


def status(url: str) -> str | None:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return str(json.load(reply)["status"])
    except OSError:
        return None


if __name__ == "__main__":
    sys.exit(main())
