"""The same history is the same session; an edit forks; a client that cut its own history is recognised."""

import itertools
import random
import re
from typing import Any

import pytest

from tests.conversations import assistant, calling, prose, result, system, user
from tests.proxied import MODEL, Prompt, Provider, Proxy, noted, proxying

Json = dict[str, Any]
RESERVE = 256
keys = itertools.count()


class Talker:
    """A client that looks at our headers."""

    def __init__(self, proxy: Proxy, provider: Provider, key: str) -> None:
        self.proxy, self.provider, self.key = proxy, provider, key

    def ask(self, messages: list[Json], **headers: str) -> dict[str, str]:
        with self.proxy.client(self.key) as client:
            reply = client.chat.completions.with_raw_response.create(
                model=MODEL, messages=messages, max_tokens=RESERVE,  # type: ignore[arg-type]
                extra_headers={name.replace("_", "-"): value for name, value in headers.items()},
            )  # fmt: skip
        return {name: value for name, value in reply.headers.items() if name.startswith("x-infold")} | {
            "said": str(reply.parse().choices[0].message.content)
        }

    def session(self, messages: list[Json], **headers: str) -> str:
        return self.ask(messages, **headers)["x-infold-session"]

    @property
    def prompt(self) -> Prompt:
        return self.provider.prompts[-1]


@pytest.fixture
def talker(house: Any) -> Talker:
    return Talker(*house, f"sk-identity-{next(keys)}")


BASE = [user("plan a trip"), assistant("where to?"), user("to the sea")]


def test_a_conversation_stays_in_its_session(talker):
    said: list[Json] = []
    sessions = set()
    for number in range(4):
        said.append(user(f"step {number}"))
        got = talker.ask(said)
        sessions.add(got["x-infold-session"])
        said.append(assistant(got["said"]))
    assert len(sessions) == 1


def test_every_turn_has_an_id_of_its_own_and_the_same_request_the_same(talker):
    first, second = talker.ask(BASE[:1]), talker.ask(BASE)
    assert first["x-infold-turn"] != second["x-infold-turn"]
    assert talker.ask(BASE)["x-infold-turn"] == second["x-infold-turn"]


@pytest.mark.parametrize("role", ["system", "developer"])
def test_system_prompts_that_change_do_not_change_the_session(talker, role):
    sessions = {
        talker.session([system(f"the time is {n}", role), *BASE[:2], system(f"{n}", role), BASE[2]]) for n in range(3)
    }
    assert len(sessions) == 1


@pytest.mark.parametrize(
    "edited",
    [
        [user("plan a voyage"), *BASE[1:]],
        [BASE[0], assistant("how far?"), BASE[2]],
        [*BASE[:2], user("to the hills")],
    ],
    ids=["first", "answer", "newest"],
)
def test_an_edit_begins_another_session(talker, edited):
    base = talker.session(BASE[:1])
    assert talker.session(BASE) == base
    fork = talker.session(edited)

    assert fork != base
    assert talker.session([*edited, assistant("nice"), user("go on")]) == fork
    assert talker.session([*BASE, assistant("nice"), user("go on")]) == base


def test_the_header_names_the_session_that_is_stored(talker):
    talker.ask(BASE[:1])
    for messages in (
        BASE,
        [*BASE[:2], user("to the hills")],
        [*BASE[:2], user("to the moon"), assistant("x"), user("y")],
    ):
        got = talker.ask(messages)
        stored = talker.proxy.explain(got["x-infold-turn"], talker.key)
        assert stored["session"] == got["x-infold-session"]


def test_a_regenerated_answer_is_a_sibling_and_an_attempt(talker):
    talker.provider.reply = lambda prompt: {"role": "assistant", "content": f"number {len(talker.provider.prompts)}"}
    try:
        ids = {talker.ask(BASE)["x-infold-turn"] for _ in range(3)}
    finally:
        talker.provider.reply = noted
    (turn,) = ids
    attempts = talker.proxy.explain(turn, talker.key)["attempts"]
    export = talker.proxy.export(talker.key)

    assert [attempt["status"] for attempt in attempts] == ["answered"] * 3
    assert len({answer for attempt in attempts for answer in attempt["answers"]}) == 3
    assert [line["attempts"] for line in export if line["kind"] == "turn"] == [3]


def test_what_a_client_stores_without_its_decoration_is_still_the_same_line(talker):
    """SDK objects come back with nulls, clients come back without: the answer is the same message."""
    got = talker.ask(BASE[:1])
    decorated = {"role": "assistant", "content": got["said"], "refusal": None, "annotations": [], "audio": None}
    bare = {"role": "assistant", "content": got["said"] + "\n"}
    sessions = {talker.session([BASE[0], answer, user("go on")]) for answer in (decorated, bare)}
    turns = {talker.ask([BASE[0], answer, user("go on")])["x-infold-turn"] for answer in (decorated, bare)}

    assert sessions == {got["x-infold-session"]}
    assert len(turns) == 1


def test_a_malformed_session_id_is_ignored_and_counted(talker):
    before = talker.proxy.metric("infold_ignored_session_ids_total")
    talker.ask(BASE, x_session_id="not well formed; drop table")
    assert talker.proxy.metric("infold_ignored_session_ids_total") == before + 1


# Forks


def history(rng: random.Random, turns: int = 30) -> list[Json]:
    return [m for _ in range(turns) for m in (user(prose(rng, 100)), assistant(prose(rng, 150)))]


def test_a_fork_behind_a_rollover_shares_its_frozen_prompt(talker):
    said = history(random.Random(1))
    talker.ask([*said, user("one")])
    one = talker.prompt.without_blocks
    talker.ask([*said, user("two")])
    assert talker.prompt.without_blocks[:-1] == one[:-1]


def test_what_an_edit_removed_never_comes_back(talker):
    """Neither in digests, nor in blocks, nor by id: it is not on this line."""
    rng = random.Random(2)
    said = history(rng)
    canary = "the wyvern sleeps in locker 4471"
    abandoned = [*said[:20], user(f"Remember: {canary}."), assistant("I will remember the wyvern."), *said[20:]]
    talker.ask([*abandoned, user("xylophone?")])
    digest = talker.prompt.messages[0]["content"]
    hints = re.findall(r"\[#([a-z2-7]{8})\]", digest)
    edited = [*said[:20], user("Never mind."), assistant("Fine."), *said[20:]]
    for question in ("where does the wyvern sleep, in which locker?", " ".join(f"[#{hint}]" for hint in hints)):
        talker.ask([*edited, user(question)])
        assert "wyvern sleeps" not in talker.prompt
        assert "4471" not in talker.prompt
    talker.ask([*abandoned, user("where does the wyvern sleep, in which locker?")])
    assert "4471" in talker.prompt


def test_a_regenerated_answer_never_shows_its_siblings(talker):
    rng = random.Random(3)
    said = history(rng)
    for canary in ("basilisk 1187", "manticore 2296"):
        line = [*said[:10], user("name a beast"), assistant(f"The beast is {canary}."), *said[10:]]
        talker.ask([*line, user("xylophone?")])
        talker.ask([*line, user("which beast did you name?")])
        other = "2296" if "1187" in canary else "1187"
        assert canary in talker.prompt
        assert other not in talker.prompt


# A client that cuts its own history


def sliding(talker: Talker, rng: random.Random) -> tuple[str, list[dict[str, str]]]:
    """A client that sends its last nine messages only: the session it began, and our headers since it cuts."""
    said: list[Json] = [user("The gryphon's nest is at post 9031.")]
    session = talker.session(said)
    said.append(assistant("I see."))
    cut = []
    for number in range(16):
        said.append(user(f"{number}: {prose(rng, 120)}"))
        got = talker.ask(said[-9:])
        said.append(assistant(got["said"] + " " + prose(rng, 150)))
        if len(said) > 10:
            cut.append(got)
    return session, cut


def test_a_client_that_sends_its_last_messages_only_stays_in_its_session(talker):
    session, cut = sliding(talker, random.Random(4))
    stored = {talker.proxy.explain(got["x-infold-turn"], talker.key)["session"] for got in cut}
    assert stored == {session}


@pytest.mark.xfail(reason="the header goes out before the store has told whose end this is; what is stored is right")
def test_the_header_names_the_session_of_a_cut_history_too(talker):
    session, cut = sliding(talker, random.Random(4))
    assert {got["x-infold-session"] for got in cut} == {session}


def test_what_a_client_cut_can_be_asked_for(talker):
    """Once its end alone is too long: what left the request is found again, with the rest."""
    rng = random.Random(9)
    said: list[Json] = [user("The gryphon's nest is at post 9031."), assistant("I see.")]
    for number in range(12):
        said.append(user(f"{number}: {prose(rng, 200)}"))
        said.append(assistant(talker.ask(said)["said"] + " " + prose(rng, 300)))
    said = said[4:]
    talker.ask([*said, user("At which post is the nest of the gryphon?")])
    assert "9031" in talker.prompt


def test_requests_of_a_cut_history_are_valid_fit_and_keep_their_newest_words_turn_after_turn(talker):
    """The frozen prompt of a cut line counts positions from the line's beginning, not from the request's."""
    rng = random.Random(5)
    said: list[Json] = []
    for number in range(12):
        said.append(user(f"{number}: {prose(rng, 150)}"))
        got = talker.ask(said)
        said.append(assistant(got["said"]))
    said = said[6:]  # the client forgets the beginning, for good
    for number in range(40):
        text = f"newest {number}: {prose(rng, 150)}"
        said.append(user(text))
        got = talker.ask(said)
        assert talker.prompt.messages[-1] == user(text)
        for message in said[-3:]:
            assert message in talker.prompt.messages, number
        said.append(assistant(got["said"]))
    assert got["x-infold-mode"] == "folded"


def test_a_cut_history_in_another_process_is_the_same(talker, tmp_path):
    rng = random.Random(6)
    said: list[Json] = []
    for _ in range(10):
        said.append(user(prose(rng, 150)))
        said.append(assistant(talker.ask(said)["said"]))
    said = said[4:]
    config = talker.proxy.config
    assert config.database_url is not None
    url = config.upstream.removesuffix("/v1")
    with proxying(url, config.database_url.get_secret_value(), tmp_path) as replica:
        other = Talker(replica, talker.provider, talker.key)
        for number in range(30):
            text = f"newest {number}: {prose(rng, 150)}"
            said.append(user(text))
            got = (talker, other)[number % 2].ask(said)
            assert talker.prompt.messages[-1] == user(text)
            assert said[-3] in talker.prompt.messages
            said.append(assistant(got["said"]))


def test_somebody_elses_equal_opening_is_not_a_cut_history(house):
    """Two users of one key begin alike with short words; what one said later never reaches the other."""
    proxy, provider = house
    talker = Talker(proxy, provider, "sk-shared")
    opening = [user("hi"), assistant("Hello! How can I help?"), user("thanks"), assistant("You are welcome.")]
    rng = random.Random(7)
    first = [*opening, user("My badge is unicorn 6150."), assistant("Good."), *history(rng)]
    talker.ask([*first, user("xylophone?")])
    talker.ask([*first, user("xylophone?"), assistant("?"), *opening[2:], user("xylophone!")])
    second = [*opening, *history(random.Random(8))]
    talker.ask([*second, user("what is my badge, the unicorn number?")])

    assert "6150" not in talker.prompt


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_a_short_common_phrase_is_not_enough_to_be_somebodys_end(house, length):
    """`ok`, `go on`, `thanks` stand in every conversation: meeting them says nothing of whose history this is."""
    proxy, provider = house
    talker = Talker(proxy, provider, f"sk-phrases-{length}")
    rng = random.Random(length)
    phrases = [user("ok"), assistant("Anything else?"), user("go on"), assistant("Done.")][:length]
    first = [user("The kraken code is 7742."), assistant("Noted."), *history(rng), *phrases]
    talker.ask([*first, *([] if first[-1]["role"] == "user" else [user("bye")])])
    second = [*phrases, *([user("hm")] if phrases[-1]["role"] == "assistant" else [assistant("yes")]), *history(rng)]
    talker.ask([*second, user("what is the kraken code?")])

    assert "7742" not in talker.prompt


def test_demonstrations_that_an_application_puts_before_every_question_join_no_two_users(house):
    """They stand in the middle of one user's conversation and at the beginning of another's, under one key."""
    proxy, provider = house
    talker = Talker(proxy, provider, "sk-application")
    rng = random.Random(71)
    shown = [
        user("Example: a customer asks when we open. Answer in one friendly sentence and name the weekday."),
        assistant("We open at nine on every weekday, and we would be delighted to see you on Monday morning already!"),
        user(
            "Example: a customer asks for a refund. Answer in one friendly sentence and name the form to be filled in."
        ),
        assistant("Of course; please fill in form R-7, and the money will be back on your account within the week."),
    ]
    first = [user("My patient number is 5583-cerberus."), assistant("Noted."), *history(rng, 10)]
    talker.ask([*first, *shown, user("When do you open?")])
    second = [*shown, *history(random.Random(72))]
    talker.ask([*second, user("what is my patient number?")])
    talker.ask([*second, user("what is my patient number?"), assistant("?"), user("the patient number, cerberus!")])

    assert not any("5583" in prompt for prompt in provider.prompts[-2:])


def test_tool_loops_are_on_the_line_of_their_user_message(talker):
    loop = [user("look it up"), calling(("c1", '{"q": 1}')), result("c1", "found")]
    sessions = {
        talker.session(loop[:1]),
        talker.session(loop),
        talker.session([*loop, assistant("It is."), user("ok")]),
    }
    assert len(sessions) == 1
