"""Law 7: words of the user survive. Pinned ones byte for byte; what they state is still there after the first digest."""

import random
from typing import Any

import pytest

from tests.conversations import assistant, calling, prose, result, system, user
from tests.proxied import MODEL, Provider, proxying

Json = dict[str, Any]
RESERVE = 256

KINDS = {
    "an id": ("The ticket for the crane is {}.", lambda r: f"OPS-{r.randrange(1_000, 9_999)}"),
    "a path": ("Put the report into {} please.", lambda r: f"/srv/reports/{r.randrange(10**6)}/final.csv"),
    "a number": ("The budget for the pier is {} crowns.", lambda r: f"{r.randrange(10_000, 99_999)}"),
    "a name": (
        "Ask {} about the permits.",
        lambda r: r.choice(["Zdenka Horakova", "Ludvik Novotny", "Irena Svobodova"]),
    ),
    "a URL": ("The wiki page is {} as always.", lambda r: f"https://wiki.example/p/{r.randrange(10**6)}"),
    "a version": (
        "We are pinned to release {} of the parser.",
        lambda r: f"{r.randrange(9)}.{r.randrange(30)}.{r.randrange(99)}",
    ),
    "a date": ("The inspection is on {}.", lambda r: f"2031-0{r.randrange(1, 9)}-{r.randrange(10, 28)}"),
    "a negation": ("You must never open the {} valve.", lambda r: r.choice(["purple", "lower", "western"])),
    "a decision": ("We decided to drop the {} variant.", lambda r: r.choice(["walnut", "granite", "bamboo"])),
}


def converse(messages: list[Json], dsn: str, folder: Any, **more: Any) -> list[Json]:
    """What the provider got for one request."""
    provider = Provider()
    with provider.serving() as upstream, proxying(upstream.url, dsn, folder) as proxy, proxy.client() as client:
        client.chat.completions.create(model=MODEL, messages=messages, max_tokens=RESERVE, **more)  # type: ignore[arg-type]
    return provider.prompts[-1].messages


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_users_state_survives_the_first_digest_or_is_listed_beside_it(dsn, tmp_path, seed):
    """Each kind once, among chatter of the assistant and output of tools; what a block quotes does not count."""
    rng = random.Random(seed)
    said: list[Json] = [system("be brief")]
    stated = {}
    for kind, (sentence, make) in KINDS.items():
        value = make(rng)
        stated[kind] = (sentence.format(value), value)
        said += [user(f"{prose(rng, 25)} {stated[kind][0]}"), assistant(prose(rng, 80))]
        said += [calling((f"c{kind}", "{}")), result(f"c{kind}", prose(rng, 120)), assistant(prose(rng, 40))]
    said += [m for _ in range(12) for m in (user(prose(rng, 100)), assistant(prose(rng, 150)))]
    prompt = converse([*said, user("xylophone!")], dsn, tmp_path)
    text = "\n".join(str(m["content"]) for m in prompt if not str(m["content"]).startswith("<earlier-messages"))
    lost = [kind for kind, (_, value) in stated.items() if value not in text]

    assert len(prompt) < len(said)
    assert lost == []
    never = [line for line in text.splitlines() if stated["a negation"][1] in line]
    assert any("never" in line or "not" in line for line in never)


@pytest.mark.parametrize("words", [3, 500, 2_500])
def test_system_tools_and_the_newest_user_message_are_never_altered(dsn, tmp_path, words):
    rng = random.Random(words)
    front = [system("  Odd   spacing\n\n stays. \u200b", "developer"), system(prose(rng, 40))]
    newest = user([{"type": "text", "text": f" {prose(rng, words)} \n"}], name="ann")
    tools = [{"type": "function", "function": {"name": "x", "description": "d" * 300, "parameters": {"$schema": "s"}}}]
    history = [m for _ in range(30) for m in (user(prose(rng, 90)), assistant(prose(rng, 130)))]
    prompt = converse([*front, *history, newest], dsn, tmp_path, tools=tools)

    assert prompt[:2] == front
    assert prompt[-1] == newest


def test_a_users_words_in_the_verbatim_tail_are_their_own(dsn, tmp_path):
    rng = random.Random(4)
    history = [m for _ in range(30) for m in (user(prose(rng, 90)), assistant(prose(rng, 130)))]
    prompt = converse([*history, user("xylophone!")], dsn, tmp_path)
    tail = [message for message in prompt if message in history]

    assert len(tail) >= 2
    assert tail == history[-len(tail) :]


def test_in_a_long_loop_the_task_keeps_its_words(dsn, tmp_path):
    rng = random.Random(5)
    task = user("The task:\n" + prose(rng, 300))
    loop = [task]
    for step in range(60):
        loop += [calling((f"c{step}", "{}")), result(f"c{step}", prose(rng, 120))]
    assert task in converse([system("be an agent"), *loop], dsn, tmp_path)


def test_a_fork_back_into_a_loop_keeps_the_loops_user_message(dsn, tmp_path):
    """What was frozen while the user had said more folds the message before; going back, that one is the newest."""
    rng = random.Random(6)
    task = user("The task:\n" + prose(rng, 40))
    loop = [system("be an agent"), user(prose(rng, 60)), assistant(prose(rng, 60)), task]
    for step in range(40):
        loop += [calling((f"c{step}", "{}")), result(f"c{step}", prose(rng, 150))]
    further = [calling(("further", "{}")), result("further", prose(rng, 20))]
    provider = Provider()
    with provider.serving() as upstream, proxying(upstream.url, dsn, tmp_path) as proxy, proxy.client() as client:
        for messages in ([*loop, user("Stop for a moment.")], loop, [*loop, *further]):
            client.chat.completions.create(model=MODEL, messages=messages, max_tokens=RESERVE)  # type: ignore[arg-type]
    stopped, back, on = provider.prompts

    assert task not in stopped.messages
    assert task in back.messages
    assert on.without_blocks[: len(back.without_blocks)] == back.without_blocks
