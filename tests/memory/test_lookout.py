"""What is said in conversations is looked at once; what is found is proposed or isolated, whatever the database does."""

import pytest

from memory.detect import secrets_in
from memory.identify import line, place
from memory.lookout import Lookout
from memory.messages import Message, ToolCall
from memory.nouns import Principal
from memory.quarantine import Quarantine
from memory.settings import Settings
from memory.store.pool import Pool
from memory.tokens import Counter
from tests.clock import Hands
from tests.conversations import TENANT
from tests.faults import Stalls
from tests.memory.test_detect import CAPITALS, PEM, drawn

HOME = place(TENANT, "home")
KEY = f"AKIA{drawn(16, CAPITALS)}"


def message(role, text, *calls):
    return Message(role, text, f"{role} {text}".encode(), calls=calls)


class Looker:
    """A lookout, and how many characters its detector was given."""

    def __init__(self, pool, mode):
        self.quarantine = Quarantine(pool, Counter(), Hands(), Settings(quarantine=mode))
        self.lookout = Lookout(self.quarantine, mode, self.detect)
        self.chars = 0

    def detect(self, text):
        self.chars += len(text)
        return secrets_in(text)

    async def look(self, messages, *answers):
        await self.lookout.look(HOME, line(TENANT, messages), answers)
        return await self.quarantine.listed(HOME)


@pytest.fixture
def suggesting(pool):
    return Looker(pool, "suggest")


async def test_each_message_is_looked_at_once(suggesting):
    first, answer, second = message("user", "a" * 10), message("assistant", "b" * 10), message("user", "c" * 10)
    await suggesting.look([first], answer)
    assert suggesting.chars == 20
    await suggesting.look([first, answer, second])
    assert suggesting.chars == 30
    await suggesting.look([message("user", "another line"), answer, second])
    assert suggesting.chars == 30 + 32


async def test_what_is_found_is_proposed_once_wherever_it_stands(suggesting):
    call = message("assistant", "", ToolCall("1", "f", f'{{"key": "{KEY}"}}'))
    said = [message("user", f"my key: {KEY}"), call, message("tool", PEM)]
    for messages in (said, [message("user", "again"), *said]):
        found = await suggesting.look(messages)
        assert sorted(each.reason_for_isolation for each in found) == [
            "looks like: aws key", "looks like: aws key", "looks like: private key",
        ]  # fmt: skip
        assert {each.state for each in found} == {"proposed"}
        assert all(each.metadata["turn"] for each in found)
        assert KEY not in str(found)


async def test_what_a_person_has_released_is_not_isolated_again(pool):
    def looker():  # what a process has looked at it forgets when it ends
        return Looker(pool, "auto")

    said = [message("user", f"my key: {KEY}")]
    (held,) = await looker().look(said)
    assert held.is_active
    (again,) = await looker().look(said)
    assert again == held
    await looker().quarantine.release(Principal(TENANT, "ann", is_person=True), held.thread_id)
    assert await looker().look(said) == ()


async def test_a_large_message_is_looked_at_in_windows_beside_everything_else(suggesting):
    hostile = ("AKIA" + "sk-" * 20 + "-----BEGIN PRIVATE KEY----- ") * 12_000  # 1 MB
    straddling = hostile[: 64 * 1024 - 60] + " " + PEM + " " + hostile
    async with Stalls().of_this_loop() as stalls:
        (found,) = await suggesting.look([message("tool", straddling)])
    assert found.reason_for_isolation.endswith("private key")
    assert stalls.longest_seconds < 0.25


async def test_what_is_found_while_the_database_is_away_waits(dsn):
    pool = Pool(dsn)
    looker = Looker(pool, "suggest")
    said = [message("user", f"my key: {KEY}")]
    await looker.lookout.look(HOME, line(TENANT, said), ())
    await pool.open()
    assert await looker.quarantine.listed(HOME) == ()
    await looker.lookout.look_again()
    assert len(await looker.quarantine.listed(HOME)) == 1
    await pool.close()


async def test_text_that_no_database_takes_is_held_by_the_message(pool):
    looker = Looker(pool, "auto")
    (held,) = await looker.look([message("user", f"nul \0 and {KEY}")])
    assert held.is_active
