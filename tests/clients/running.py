"""A client's driver as a running process, and its scenarios directly and through Infold, side by side."""

import json
import os
import re
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.clients.recorder import Exchange, Recorder, by_name
from tests.clients.scenarios import Asked, Dialect, Json, Scenario
from tests.scripted import Seen, Steps

SCENARIO_SECONDS = 60
FRAMED = frozenset((b"host", b"content-length"))  # of a request: each side writes its own
KEPT = ("PATH", "HOME", "LANG", "TMPDIR")  # of the environment: no proxy and no key of whoever runs the tests


class Driver:
    """A driver's process; `versions`, `scenarios` and `cannot` are what it told at its start."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._log = log
        self._errors = log.open("wb")
        given = {name: os.environ[name] for name in KEPT if name in os.environ}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=given, text=True
        )
        try:
            first = self._read()
        except AssertionError:
            self.__exit__()
            raise
        self.versions: dict[str, str] = first["versions"]
        self.scenarios: list[str] = first["scenarios"]
        self.cannot: dict[str, str] = first["cannot"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def run(self, scenario: str, base_url: str, key: str) -> Any:
        """The client's own result. Fails where the client could not do it at all."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"scenario": scenario, "base_url": base_url, "key": key}) + "\n")
        self._process.stdin.flush()
        said = self._read()
        assert "broken" not in said, f"{scenario}: {said['broken']}"
        return said["result"]

    def _read(self) -> Json:
        assert self._process.stdout is not None
        watch = threading.Timer(SCENARIO_SECONDS, self._process.kill)
        watch.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watch.cancel()
        if not line:
            raise AssertionError(
                f"the driver ended or was silent for {SCENARIO_SECONDS} s:\n{self._log.read_text()[-4000:]}"
            )
        answer: Json = json.loads(line)
        return answer


class Provider:
    """Answers by the scenario that runs at the moment."""

    def __init__(self) -> None:
        self._scenario: Scenario | None = None
        self._number = 0

    def play(self, scenario: Scenario) -> None:
        self._scenario, self._number = scenario, 0

    def __call__(self, seen: Seen) -> Steps:
        assert self._scenario is not None
        asked = Asked(seen, self._number)
        self._number += 1
        return self._scenario.reply(asked)


@dataclass(frozen=True, slots=True)
class Route:
    """One run of a scenario: what the client made of it, and what passed beside it."""

    result: Any
    beside_client: list[Exchange]
    beside_provider: list[Exchange]


@dataclass(frozen=True, slots=True)
class Bench:
    """Provider and Infold, with a recorder on each side of it and one on the way around it."""

    provider: Provider
    around: Recorder  # client -> provider
    front: Recorder  # client -> Infold
    back: Recorder  # Infold -> provider

    def direct(self, driver: Driver, scenario: Scenario, key: str) -> Route:
        self._begin(scenario)
        result = driver.run(scenario.name, f"{self.around.url}/v1", key)
        passed = taken(self.around, scenario)
        return Route(without(result, self.around.url), passed, passed)

    def through(self, driver: Driver, scenario: Scenario, key: str) -> Route:
        self._begin(scenario)
        result = driver.run(scenario.name, f"{self.front.url}/v1", key)
        passed = taken(self.front, scenario), taken(self.back, scenario)
        return Route(without(result, self.front.url), *passed)

    def _begin(self, scenario: Scenario) -> None:
        """Leave behind what a scenario that failed may still have had under way."""
        for recorder in (self.around, self.front, self.back):
            recorder.take()
        self.provider.play(scenario)


def taken(recorder: Recorder, scenario: Scenario) -> list[Exchange]:
    """What passed; requests of one moment by what they ask, for each recorder has its own order of them."""
    passed = recorder.take()
    return sorted(passed, key=lambda one: one.request.body) if scenario.at_once > 1 else passed


def at_once(exchanges: list[Exchange]) -> int:
    """How many were under way at the same time."""
    return max((1 + exchange.beside for exchange in exchanges), default=0)


def without(result: Any, url: str) -> Any:
    """A result without the address that was asked, which differs by design."""
    return json.loads(json.dumps(result).replace(url, "http://there"))


def not_the_scenario(scenario: Scenario, route: Route) -> list[str]:
    """What shows that a client did something else than the scenario says; empty if it did that."""
    asked = "\n".join(
        (exchange.request.method.encode() + b" " + exchange.request.raw.partition(b" ")[2]).decode("utf-8", "replace")
        for exchange in route.beside_client
    )
    result = json.dumps(route.result, ensure_ascii=False)
    missing = [f"sent no {pattern}" for pattern in scenario.sent if not re.search(pattern, asked, re.MULTILINE)]
    missing += [f"heard no {pattern}" for pattern in scenario.heard if not re.search(pattern, result)]
    if at_once(route.beside_client) < scenario.at_once:
        missing.append(f"asked {at_once(route.beside_client)} at once, not {scenario.at_once}")
    if scenario.leaves and not any(exchange.answer.abandoned for exchange in route.beside_client):
        missing.append("did not hang up")
    return missing


def differences(scenario: Scenario, direct: Route, through: Route) -> list[str]:
    """Where a client fared otherwise through Infold; empty if it works exactly as directly."""
    found = []
    if direct.result != through.result:
        found.append(f"result: directly {direct.result!r}, through Infold {through.result!r}")
    counts = len(direct.beside_provider), len(through.beside_provider)
    if counts[0] != counts[1]:
        found.append(f"requests to the provider: directly {counts[0]}, through Infold {counts[1]}")
    if at_once(through.beside_provider) < scenario.at_once:
        found.append(f"at once at the provider: {at_once(through.beside_provider)} of {scenario.at_once}")
    return found


def touched(through: Route, dialect: Dialect) -> list[str]:
    """What Infold changed on the way, in either direction; empty if nothing."""
    client, provider = through.beside_client, through.beside_provider
    if len(client) != len(provider):
        return [f"{len(client)} requests came, {len(provider)} went on"]
    found = []
    for number, (here, there) in enumerate(zip(client, provider, strict=True)):
        found += [f"request {number}: {what}" for what in unequal(asked_parts(here), asked_parts(there))]
        upto = min(len(here.answer.body), len(there.answer.body)) if here.answer.abandoned else None
        found += [
            f"answer {number}: {what}" for what in unequal(answered_parts(here, upto), answered_parts(there, upto))
        ]
        modes = [value for name, value in here.answer.headers if name.lower() == b"x-infold-mode"]
        if dialect.manages(here.request) and modes != [b"wire"]:
            found.append(f"answer {number}: not a managed wire, x-infold-mode is {modes}")
        if here.answer.abandoned and not (there.answer.complete or there.answer.abandoned):
            found.append(f"answer {number}: the client left, and the provider goes on")
    return found


def asked_parts(exchange: Exchange) -> dict[str, Any]:
    request = exchange.request
    return {
        "method": request.method,
        "target": request.target,
        "headers": by_name(request.headers, FRAMED),
        "body": request.body,
    }


def answered_parts(exchange: Exchange, upto: int | None) -> dict[str, Any]:
    """What must be the same; a client that hung up (some do on a 429) can be told only up to where it did."""
    answer = exchange.answer
    return {
        "status": answer.status,
        "headers": by_name(answer.headers),
        "body": answer.body[:upto],
        "complete": answer.complete if upto is None else None,
    }


def unequal(here: dict[str, Any], there: dict[str, Any]) -> list[str]:
    return [
        f"{name}: {here[name]!r} at the client, {there[name]!r} at the provider"
        for name in here
        if here[name] != there[name]
    ]
