"""A stretch of conversation told shorter: who said and did what, in order, then the facts."""

import json
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memory.digest.stretch import Line, digest_stretch, merge, title
from tests.memory.digest.words import count, texts


def line(role, text, speaker=None, position=0):
    return Line(position, role, speaker, text, count(text) + 4)


def reservation(n):
    flights = [{"flight_number": f"HAT{n}{i}", "date": f"2024-05-{10 + n:02d}", "price": 100 * n + i} for i in range(3)]
    return {"reservation_id": f"RES{n}XY", "user_id": "mei_brown_7075", "cabin": "economy", "flights": flights}


AGENT = [
    line("user", "Hi, my flight HAT045 from PHX to SEA was delayed. I want a refund, not a voucher."),
    line("assistant", "I am sorry to hear that. Could you give me your user ID, please?"),
    line("user", "Sure, it is mei_brown_7075."),
    line("assistant", 'get_user_details({"user_id": "mei_brown_7075"})'),
    line("tool", json.dumps({"email": "mei@example.com", "reservations": [f"RES{n}XY" for n in range(1, 9)]})),
    *(
        part
        for n in range(1, 9)
        for part in (
            line("assistant", f'get_reservation({{"reservation_id": "RES{n}XY"}})'),
            line("tool", json.dumps(reservation(n))),
        )
    ),
    line("assistant", "RES3XY cannot be refunded, since it is basic economy. Let me look at the others."),
    line("user", "Then please cancel RES5XY instead."),
]


@given(
    st.lists(
        st.tuples(st.sampled_from(["user", "assistant", "tool"]), st.sampled_from([None, "A"]), texts), max_size=8
    ),
    st.integers(0, 150),
)
@example([("user", None, "```\n" * 3_000), ("assistant", None, "f(x)\n" * 3_000)], 40)
@example([("tool", None, "\ud800\x00" * 3_000)], 40)
def test_a_digest_is_within_the_budget(messages, budget):
    lines = [line(role, text, speaker) for role, speaker, text in messages]

    assert count(digest_stretch(lines, budget, count)) <= budget


@pytest.mark.parametrize("budget", [1, 50, 500])
def test_of_nothing_comes_nothing(budget):
    assert digest_stretch([], budget, count) == ""
    assert digest_stretch([line("user", "")], budget, count) in ("", "user: ")


def test_a_stretch_that_fits_is_told_in_full():
    lines = [line("user", "Hello there!", "Ann"), line("assistant", "Hi Ann.")]

    assert digest_stretch(lines, 100, count) == "Ann: Hello there!\nassistant: Hi Ann."


def test_short_messages_of_the_user_stay_word_for_word_and_in_order():
    told = digest_stretch(AGENT, 400, count).splitlines()

    said = [entry for entry in told if entry.startswith("user: ")]
    assert said == [f"user: {entry.text}" for entry in AGENT if entry.role == "user"]


def test_calls_are_told_together_with_their_arguments():
    told = digest_stretch(AGENT, 600, count)

    assert "assistant called get_user_details(user_id: mei_brown_7075)\n" in told
    assert "assistant called get_reservation(reservation_id: RES1XY | RES2XY | " in told


def test_denials_of_the_assistant_are_told():
    assert "assistant: RES3XY cannot be refunded, since it is basic economy." in digest_stretch(AGENT, 400, count)


def test_values_of_tool_output_stand_under_their_keys():
    told = digest_stretch(AGENT, 500, count)

    facts = " ".join(entry for entry in told.splitlines() if entry.startswith("tool facts: "))
    assert all(f"HAT{n}0" in facts for n in range(1, 9))
    assert "flight_number: HAT" in facts
    assert "email: mei@example.com" in facts


def test_words_that_mean_nothing_without_their_record_are_no_facts():
    records = [
        line("tool", json.dumps({"ok": i % 2 == 0, "insurance": "no", "bags": 2, "id": f"X{i}YZ" * 9}))
        for i in range(40)
    ]

    assert "insurance" not in digest_stretch(records, 200, count)


def test_every_line_names_its_speaker():
    speakers = ("user: ", "assistant: ", "assistant called ", "tool facts: ", "assistant facts: ", "user facts: ")

    assert all(entry.startswith(speakers) for entry in digest_stretch(AGENT, 300, count).splitlines())


def test_a_message_of_several_lines_becomes_one():
    told = digest_stretch([line("user", "Please do:\n\n- one\n- two"), *AGENT], 300, count)

    assert told.splitlines()[0] == "user: Please do: - one - two"


def test_a_request_beside_pasted_code_is_told():
    code = "\n".join(f"    x_{i} = compute(x_{i - 1}, [{i}]);" for i in range(300))
    mixed = line("user", f"Why does this crash for negative numbers?\n\n{code}\n\nDo not change the signature.")

    told = digest_stretch([mixed], 150, count)

    assert told.startswith("user: Why does this crash for negative numbers?")
    assert "Do not change the signature." in told.splitlines()[0]


def test_what_a_user_said_gets_room_beside_any_amount_of_output():
    flood = line("tool", "\n".join(f"src/pkg/module_{i}.py:{i}: x_{i} = {i}" for i in range(5_000)))

    assert "user: Keep the old API, do not rename it." in digest_stretch(
        [flood, line("user", "Keep the old API, do not rename it."), flood], 150, count
    )


def test_what_was_pasted_is_not_told_as_words():
    paste = line("user", "\n".join(f"{i}:    if (x_{i} != null) {{ return not_{i}; }}" for i in range(200)))

    assert "user: " not in digest_stretch([paste], 120, count)


def test_the_same_stretch_gives_the_same_digest():
    assert digest_stretch(AGENT, 300, count) == digest_stretch(list(AGENT), 300, count)


@given(st.lists(texts, max_size=4), st.integers(1, 120))
def test_a_title_is_one_printable_line(messages, chars):
    heading = title([line("user", text) for text in messages], chars)

    assert len(heading) <= chars
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in heading)


def test_a_title_is_cut_between_words():
    words = "Please move the whole billing service to the new cluster before the end of May at the latest"

    assert title([line("user", words)], 40) == "Please move the whole billing service…"
    assert title([]) == "nothing said"


@given(st.lists(texts, max_size=5), st.integers(0, 150))
def test_a_digest_of_digests_drops_whole_lines_only(digests, budget):
    merged = merge(digests, budget, count)

    known = {entry for digest in digests for entry in digest.splitlines()}
    assert count(merged) <= budget
    assert all(entry in known for entry in merged.splitlines())


def test_a_digest_of_digests_keeps_decisions_of_the_user_longest():
    decision = "user: We decided to use PostgreSQL instead of SQLite."
    talk = "\n".join(f"assistant: Some friendly remark number {i} about nothing." for i in range(40))

    assert decision in merge([talk, f"{talk}\n{decision}", talk], 60, count)


def test_lines_that_several_digests_share_are_told_once():
    assert merge(["user: yes\nuser: no", "user: no"], 100, count) == "user: yes\nuser: no"
