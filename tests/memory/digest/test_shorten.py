"""Shortening one text: within the budget, whole units, by kind."""

import json
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memory.digest.pick import Kind, pick
from memory.digest.prose import sentences
from memory.digest.shorten import shorten
from tests.memory.digest.words import count, texts

ROWS = [
    {"id": f"ord-{i:04d}", "user": "ann" if i % 2 else "bob", "total": i * 1.5, "items": [{"sku": "s1"}, {"sku": "s2"}]}
    for i in range(300)
]
ODD_ROW = {"id": "ord-0077", "user": "bob", "total": 115.5, "note": "error: card declined"}
ORDERS = [*ROWS[:77], ODD_ROW, *ROWS[78:]]

LOG = "".join(f"2024-01-01 12:{i // 60:02d}:{i % 60:02d} INFO request {i} served in {i % 17}ms\n" for i in range(1500))
LOG += "2024-01-01 13:00:00 ERROR pool: connection to db-7 refused\n" + "2024-01-01 13:00:05 WARN retrying in 5s\n" * 3

STORY = (
    "The committee met on Tuesday. It talked about the weather for a while. Ann said that the roof leaks. "
    "They decided to replace the roof before May 15, 2025. The cost is $12,400. Nobody objected. "
    "Bob will not sign the old contract. Lunch was fine. The next meeting is in June. "
) * 6


@given(texts, st.integers(0, 120), st.sampled_from([None, *Kind]))
@example("a" * 5_000, 20, None)
@example("\x00" * 5_000, 20, None)
@example("\ud800" * 5_000, 20, None)
@example("(" * 5_000, 20, None)
@example("[" * 5_000, 20, Kind.JSON)
@example("你" * 5_000, 20, None)
def test_a_shortened_text_is_within_the_budget(text, budget, kind):
    shorter = shorten(text, budget, count, kind)

    assert shorter == text or count(shorter) <= budget


@given(texts, st.integers(0, 400))
def test_a_text_that_fits_is_returned_as_it_is(text, slack):
    assert shorten(text, count(text) + slack, count) == text


@given(texts, st.integers(1, 120))
def test_shortening_again_to_the_same_budget_changes_nothing(text, budget):
    once = shorten(text, budget, count)

    assert shorten(once, budget, count) == once


@pytest.mark.parametrize("budget", [1, 5, 12])
def test_the_empty_text_stays_empty(budget):
    assert shorten("", budget, count) == ""


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (STORY, Kind.PROSE),
        ("会议在星期二举行。他们决定更换屋顶。没有人反对。", Kind.PROSE),
        (json.dumps(ORDERS), Kind.JSON),
        (json.dumps({"a": 1}), Kind.JSON),
        ('{"a": 1', Kind.OTHER),
        (LOG, Kind.LOG),
        ("def f(x):\n    return [x]\n\n\nclass A:\n    y = {1: 2}\n", Kind.OTHER),
        ("1:import java.util.List;\n2:import java.util.Set;\n3:\n4:public class A {\n", Kind.OTHER),
        ("", Kind.PROSE),
    ],
)
def test_the_kind_is_picked_by_the_looks_of_a_text(text, kind):
    assert pick(text) is kind


@pytest.mark.parametrize("budget", [60, 120, 300, 900])
def test_no_json_record_is_ever_cut(budget):
    shorter = shorten(json.dumps(ORDERS, indent=2), budget, count)

    head, *rows = shorter.splitlines()
    assert head.startswith("[300 rows {id: string, user: string, total: number, ")
    kept = [json.loads(row.partition(": ")[2]) for row in rows if row.startswith("[")]
    assert all(row in ORDERS for row in kept)
    assert kept or budget < 120


def test_the_first_and_last_row_and_the_odd_one_out_are_told_first():
    shorter = shorten(json.dumps(ORDERS), 300, count)

    assert "[0]: " in shorter
    assert "[299]: " in shorter
    assert "[77]: " in shorter
    assert "card declined" in shorter


def test_equal_rows_are_told_once_with_their_number():
    rows = [{"state": "queued", "worker": "w-17", "note": "nothing to report from this one"}] * 200

    assert "(x200)" in shorten(json.dumps(rows), 80, count)


def test_members_of_an_object_are_told_by_their_path():
    page = {"page": 1, "next": "https://x.test/z?page=2", "data": {"items": ORDERS, "meta": {"took_ms": 12}}}

    lines = shorten(json.dumps(page), 300, count).splitlines()

    assert "page: 1" in lines
    assert 'next: "https://x.test/z?page=2"' in lines
    assert 'data.meta: {"took_ms":12}' in lines
    assert any(line.startswith("data.items: [300 rows {id: string") for line in lines)


def test_numbers_of_json_keep_their_digits():
    rows = [{"price": "PRICE", "n": i} for i in range(400)]
    text = json.dumps(rows).replace('"PRICE"', "1.10000000000000000001")

    assert '"price":1.10000000000000000001,' in shorten(text, 200, count)


def test_a_log_tells_each_kind_of_line_once_with_errors_whole():
    lines = shorten(LOG, 200, count).splitlines()

    assert lines[0] == "[log: 1,504 lines, 3 kinds]"
    assert "2024-01-01 12:00:00 INFO request 0 served in 0ms (x1,500, last 2024-01-01 12:24:59)" in lines
    assert "2024-01-01 13:00:00 ERROR pool: connection to db-7 refused" in lines
    assert "2024-01-01 13:00:05 WARN retrying in 5s (x3, last 2024-01-01 13:00:05)" in lines


@pytest.mark.parametrize("budget", [30, 60, 150])
def test_prose_keeps_whole_sentences_in_their_order(budget):
    told = [line for line in shorten(STORY, budget, count).splitlines() if not line.startswith("facts: ")]

    kept = [part for line in told for part in sentences(line.replace(" …", ""))]
    assert kept
    assert all(sentence in sentences(STORY) for sentence in kept)


def test_prose_keeps_decisions_and_denials_before_small_talk():
    shorter = shorten(STORY, 60, count)

    assert "They decided to replace the roof before May 15, 2025." in shorter
    assert "Lunch was fine." not in shorter


def test_what_the_kept_lines_do_not_show_stands_among_the_facts():
    code = "\n".join(f"    value_{i} = compute(value_{i - 1})" for i in range(300))
    code = code.replace("value_150 = compute(value_149)", "path = '/srv/data/orders-2024.csv'")

    assert "/srv/data/orders-2024.csv" in shorten(code, 200, count)


def test_other_text_keeps_whole_lines_of_both_ends_and_says_what_is_missing():
    lines = [f"{i}: x = [{i}, {{}}];" for i in range(1000)]

    shorter = shorten("\n".join(lines), 150, count).splitlines()

    assert shorter[0] == lines[0]
    gap = next(i for i, line in enumerate(shorter) if line.startswith("[... "))
    told = [line for line in shorter if "facts: " not in line]
    assert shorter[gap] == f"[... {1000 - (len(told) - 1):,} lines ...]"
    assert all(line in lines for i, line in enumerate(told) if i != gap)
    assert told[-1] == lines[-1]


def test_one_enormous_line_is_cut_between_words_with_the_gap_marked():
    words = [f"w{i}" for i in range(50_000)]

    told = shorten(";".join(words).replace(";", " "), 60, count, Kind.OTHER).splitlines()[0]

    head, _, rest = told.partition(" [... ")
    gap, _, tail = rest.partition(" chars ...] ")
    assert words[: len(head.split())] == head.split()
    assert words[-len(tail.split()) :] == tail.split()
    assert int(gap.replace(",", "")) + len(head) + len(tail) == len(" ".join(words))


@pytest.mark.parametrize(
    "unit",
    [*'a.1"«(\n\x00 ', "1.", "“x", "Aa ", "Mr. ", '{"a":', "a@", "aA", "```\n", "你好。", "x_1 ", "$ 1,"],
)
def test_the_time_grows_no_faster_than_the_text(unit):
    """Quadratic code would take 64 times as long for 8 times the text; caches and noise are given a factor of 3."""

    def seconds(chars):
        text = unit * (chars // len(unit))
        runs = []
        for _ in range(3):
            start = time.process_time()
            shorten(text, 100, count)
            runs.append(time.process_time() - start)
        return min(runs)

    small, large = seconds(25_000), seconds(200_000)

    assert large < 24 * max(small, 0.002)
