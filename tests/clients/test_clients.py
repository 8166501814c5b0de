"""Real clients work through Infold exactly as directly, and what passes is untouched.

    pytest tests/clients -m clients [--environments DIR] [-k openai-3]

Each client runs in an environment of its own, made on its first run from the pinned versions in `environments/`.
`python tests/clients/table.py` tells the results in docs/compatibility.md.
"""

import pytest

from tests.clients.chat import CHAT
from tests.clients.conftest import DriverOf
from tests.clients.installing import CLIENTS, Client
from tests.clients.messages import MESSAGES
from tests.clients.responses import RESPONSES
from tests.clients.results import Book, Came
from tests.clients.running import Bench, differences, not_the_scenario, touched
from tests.clients.scenarios import Dialect, Scenario

DIALECTS = [CHAT, RESPONSES, MESSAGES]
CASES = [
    pytest.param(dialect, client, scenario, id=f"{dialect.name}-{client.name}-{scenario.name.replace(' ', '_')}")
    for dialect in DIALECTS
    for client in CLIENTS
    if dialect.name in client.drivers
    for scenario in dialect.scenarios.values()
]
PAIRS = [
    pytest.param(dialect, client, id=f"{dialect.name}-{client.name}")
    for dialect in DIALECTS
    for client in CLIENTS
    if dialect.name in client.drivers
]
pytestmark = pytest.mark.clients


@pytest.mark.parametrize(("dialect", "client"), PAIRS)
def test_a_driver_does_each_scenario_or_says_why_not(dialect: Dialect, client: Client, driver_of: DriverOf) -> None:
    driver = driver_of(client, dialect.name)
    assert sorted([*driver.scenarios, *driver.cannot]) == sorted(dialect.scenarios)


@pytest.mark.parametrize(("dialect", "client", "scenario"), CASES)
def test_a_client_works_as_directly_and_nothing_is_touched(
    dialect: Dialect, client: Client, scenario: Scenario, bench: Bench, driver_of: DriverOf, book: Book
) -> None:
    driver = driver_of(client, dialect.name)
    note = (dialect.name, client.name, driver.versions, scenario.name)
    if scenario.name in driver.cannot:
        book.write(*note, Came.UNABLE, driver.cannot[scenario.name])
        pytest.skip(f"not applicable: {driver.cannot[scenario.name]}")
    key = f"sk-{client.name}-{scenario.name.replace(' ', '-')}"
    direct = bench.direct(driver, scenario, key)
    assert not_the_scenario(scenario, direct) == []
    through = bench.through(driver, scenario, key)
    worse, changed = differences(scenario, direct, through), touched(through, dialect)
    book.write(*note, Came.BROKEN if worse else Came.TOUCHED if changed else Came.GOOD)
    assert worse == []
    assert changed == []
