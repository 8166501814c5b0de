"""Law 7: words of the user survive. Pinned ones byte for byte; what they state is still there after the first digest."""

import random
from collections.abc import Sequence
from typing import Any

import pytest

from tests.conversations import assistant, calling, prose, result, system, user
from tests.laws.test_messages import png
from tests.proxied import MODEL, Provider, proxying
from tests.spoken_to import MessagesProvider, blocks_of, sdk, unmarked

Json = dict[str, Any]
RESERVE = 256
PICTURE = png(280, 280)

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


def used(id: str) -> Json:
    return {"role": "assistant", "content": [{"type": "tool_use", "id": id, "name": "look", "input": {}}]}


def found(id: str, text: str, *beside: Json) -> Json:
    return {"role": "user", "content": [{"type": "tool_result", "tool_use_id": id, "content": text}, *beside]}


def shown_in(messages: Sequence[Json]) -> list[Json]:
    return [unmarked(block) for message in messages for block in blocks_of(message["content"])]


def texts_in(messages: Sequence[Json]) -> list[str]:
    return [block["text"] for block in shown_in(messages) if block["type"] == "text"]


def interrupted(rng: random.Random, after: Sequence[int], result_words: int = 120) -> tuple[list[Json], list[Json]]:
    """A long loop in which the user speaks beside some results, as Claude Code sends it; and the words."""
    loop, said = [user("The task:\n" + prose(rng, 60))], []
    for step in range(60):
        beside = []
        if step in after:
            said.append({"type": "text", "text": f" {step}: rather in  teal,\nnever in mauve \u200b"})
            beside = [said[-1], PICTURE]
        loop += [used(f"c{step}"), found(f"c{step}", prose(rng, result_words if beside else 120), *beside)]
    return loop, said


@pytest.mark.parametrize("result_words", [120, 3_000])
@pytest.mark.parametrize("speaks", ["messages", "chat"])
def test_in_a_long_loop_words_beside_a_result_are_kept_as_the_task_is(dsn, tmp_path, speaks, result_words):
    """They were folded, for the message that holds them was taken for a tool's alone; the older task was not."""
    loop, (words,) = interrupted(random.Random(7), [9], result_words)
    provider = MessagesProvider() if speaks == "messages" else Provider()
    with provider.serving() as upstream, proxying(upstream.url, dsn, tmp_path) as proxy:
        if speaks == "messages":
            sdk(proxy).messages.create(model=MODEL, max_tokens=RESERVE, messages=loop)  # type: ignore[arg-type]
        else:
            with proxy.client() as client:
                client.chat.completions.create(model=MODEL, messages=loop, max_tokens=RESERVE)  # type: ignore[arg-type]
    shown = shown_in(provider.prompts[-1].messages)

    assert words in shown
    assert PICTURE in shown
    assert loop[0]["content"] in texts_in(provider.prompts[-1].messages)
    assert not any(block.get("tool_use_id") == "c9" for block in shown)


@pytest.mark.parametrize("results", [1, 2])
def test_in_a_chat_words_beside_a_result_that_is_too_large_are_left_as_they_are(dsn, tmp_path, results):
    """Gateways send blocks inside chats; the whole message was replaced, and what the user said with it."""
    rng = random.Random(9)
    words = {"type": "text", "text": " and then  stop\n"}
    calls = [call for n in range(results) for call in used(f"c{n}")["content"]]
    answers = [block for n in range(results) for block in found(f"c{n}", prose(rng, 9_000))["content"]]
    task, said = user("read the log"), {"role": "assistant", "content": calls}
    prompt = converse([task, said, user([*answers, words, PICTURE])], dsn, tmp_path)
    shorter = prompt[-1]["content"]

    assert prompt[-3:-1] == [task, said]
    assert [block["tool_use_id"] for block in shorter[:results]] == [f"c{n}" for n in range(results)]
    assert all("the whole is kept as [#" in block["content"] for block in shorter[:results])
    assert shorter[results:] == [words, PICTURE]


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
