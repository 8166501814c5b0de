"""Items on real PostgreSQL: stored, read, found, changed, compressed; and the counters always agree with the rows."""

import asyncio
import contextlib

import pytest

from memory.detect import Found
from memory.errors import InvalidRequest, NotFound, StoreBusy, TooLarge
from memory.identify import new_id, place
from memory.items import Items
from memory.models import ModelOverride, ModelTable
from memory.quarantine import Quarantine
from memory.settings import Hygiene, Settings, Work
from memory.worker import embed_item
from tests.clock import NOON, Hands
from tests.conversations import COUNTER, TENANT, prose
from tests.memory.counted import agree
from tests.memory.vectors import WordVectors

HOME, AWAY = place(TENANT, "home"), place(TENANT, "away")
OTHER = bytes(16)
STRANGER = place(OTHER, "home")
MODEL = "small"  # a window of 8,000 tokens: trigger 6,000, target 1,600
MODELS = ModelTable({MODEL: ModelOverride(context_window=8_000, input_usd_per_million=1, output_usd_per_million=2)})


@pytest.fixture
def hands():
    return Hands()


@pytest.fixture
def make(pool, hands):
    def make(settings=None, embedder=None, **more):
        return Items(pool, COUNTER, MODELS, settings or Settings(), hands, embedder, **more)

    return make


@pytest.fixture
def items(make):
    return make(embedder=WordVectors())


async def add(items, content, at=HOME, **more):
    return await items.add(at, MODEL, content, more.pop("content_type", "note"), **more)


async def test_an_item_comes_back_as_it_was_given(items):
    given = await add(items, "The harbour opens at nine.", priority=7, metadata={"b": [1, None], "a": "x"})
    found = await items.retrieve(TENANT, given.id)
    assert found.full_content == "The harbour opens at nine."
    assert found.compressed_summary == "The harbour opens at nine."
    assert (found.session_id, found.content_type, found.priority) == ("home", "note", 7)
    assert (found.metadata, found.scope, found.form) == ({"b": [1, None], "a": "x"}, "session", "full")
    assert (found.is_active, found.compression_ratio, found.token_count) == (True, 1.0, found.compressed_token_count)
    assert found.created_at == NOON


async def test_reading_counts_and_searching_does_not(items, hands):
    id = (await add(items, "The harbour opens at nine.")).id
    hands.forward(hours=1)
    assert (await items.retrieve(TENANT, id)).access_count == 1
    without = await items.retrieve(TENANT, id, decompress=False)
    assert (without.full_content, without.access_count, without.last_accessed) == (None, 2, hands.now)
    await items.search(HOME, "harbour")
    assert (await items.retrieve(TENANT, id)).access_count == 3
    metrics = (await items.state(HOME, MODEL)).performance_metrics
    assert (metrics.decompressions, metrics.cache_hits) == (2, 1)


async def test_foreign_unknown_and_malformed_ids_are_alike(items):
    id = (await add(items, "mine")).id
    for tenant, asked in ((OTHER, id), (TENANT, str(new_id())), (TENANT, "x"), (TENANT, 7), (TENANT, None)):
        assert await items.retrieve(tenant, asked) is None
        for call in (items.delete(tenant, asked), items.change(tenant, asked, pinned=True)):
            with pytest.raises(NotFound) as caught:
                await call
            assert str(caught.value) == "item_id names nothing in this tenant"
            assert caught.value.field == "item_id"


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"content": ""}, "content"),
        ({"content": " \n"}, "content"),
        ({"content": "a\0b"}, "content"),
        ({"content": "\ud800"}, "content"),
        ({"content": 5}, "content"),
        ({"content_type": ""}, "content_type"),
        ({"content_type": "x" * 101}, "content_type"),
        ({"priority": 11}, "priority"),
        ({"priority": -1}, "priority"),
        ({"priority": True}, "priority"),
        ({"priority": "5"}, "priority"),
        ({"metadata": []}, "metadata"),
        ({"metadata": {"a": "\0"}}, "metadata"),
        ({"auto_compress": 1}, "auto_compress"),
        ({"scope": "world"}, "scope"),
    ],
)
async def test_what_cannot_be_stored_is_refused_by_name_and_nothing_is_written(items, owner, more, field):
    with pytest.raises(InvalidRequest) as caught:
        await items.add(HOME, MODEL, **{"content": "fine", "content_type": "note", **more})
    assert caught.value.field == field
    assert await owner.fetchval("select count(*) from infold.items") == 0


async def test_too_long_a_content_says_how_long_it_may_be(make):
    with pytest.raises(TooLarge, match="at most 10 bytes"):
        await add(make(Settings(work=Work(most_item_bytes=10))), "eleven byte")


async def test_adding_again_with_the_same_id_changes_nothing(items, owner):
    id = new_id()
    first = await add(items, "once", id=id)
    again = await add(items, "something else", id=id)
    assert again.full_content == first.full_content == "once"
    await agree(owner)
    assert (await items.state(HOME, MODEL)).used_context_length == first.token_count


async def test_long_items_get_a_digest_and_short_ones_keep_their_first_characters(items, rng):
    long = await add(items, prose(rng, 3_000), auto_compress=False)
    short = await add(items, prose(rng, 300))
    assert long.compressed_token_count <= 64 < long.token_count
    assert 0 < long.compression_ratio < 0.05
    assert short.compressed_summary == short.full_content[:500]


@pytest.fixture
def rng():
    import random

    return random.Random(7)


async def test_past_the_trigger_the_least_important_shrink_first_until_the_target_holds(items, owner, hands, rng):
    ids = {}
    for number in range(12):
        hands.forward(minutes=1)
        ids[number] = (await add(items, prose(rng, 600), priority=9 if number == 0 else 0)).id
        _, used, *_ = await agree(owner)
    assert used <= 1_600
    state = await items.state(HOME, MODEL)
    assert state.used_context_length == used
    assert state.performance_metrics.compressions > 0
    assert {entry.id for entry in state.active_items} <= {ids[0], ids[11]}
    assert len(state.active_items) + len(state.compressed_items) == 12
    late = await items.retrieve(TENANT, ids[11])
    assert late.compressed_summary != late.full_content[:500], "past the trigger a short item gets a digest, too"
    assert len(late.full_content) > 2_000


async def test_an_item_that_shall_not_shrink_stays_and_makes_no_other_shrink(items, owner, rng):
    for _ in range(12):
        await add(items, prose(rng, 600), auto_compress=False)
    state = await items.state(HOME, MODEL)
    assert (len(state.active_items), state.compressed_items) == (12, [])
    await agree(owner)


async def test_search_finds_by_words_and_by_meaning_and_only_what_may_be_seen(items, make):
    mine = await add(items, "The lighthouse keeper is called Zephyrine.")
    other = await add(items, "The orchard has forty pear trees.", content_type="log")
    await add(items, "Zephyrine lives abroad.", at=AWAY)
    shared = await add(items, "Zephyrine holds the shared key.", at=AWAY, scope="tenant")
    await add(items, "Zephyrine of another tenant", at=STRANGER)

    found = await items.search(HOME, "Who is Zephyrine?")
    assert {item.id for item in found[:2]} == {mine.id, shared.id}
    assert len(found) == 3
    best = found[0]
    assert 0 <= best.distance <= 2
    assert 0 < best.score <= 1
    assert best.full_content[best.passage.start : best.passage.stop] == best.passage.text
    assert [item.id for item in await items.search(HOME, "pear trees", limit=1)] == [other.id]
    assert [item.id for item in await items.search(HOME, "Zephyrine", content_types=["log"])] == [other.id]
    assert len(await items.search(HOME, "Zephyrine", whole_tenant=True)) == 4
    assert {item.id for item in await items.search(HOME, "Zephyrine", by_meaning=False)} == {mine.id, shared.id}
    by_words = await make().search(HOME, "keeper called Zephyrine")
    assert (by_words[0].id, by_words[0].distance) == (mine.id, None)


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"query": ""}, "query"),
        ({"limit": 0}, "limit"),
        ({"limit": 1_001}, "limit"),
        ({"content_types": "a"}, "content_types"),
    ],
)
async def test_a_search_says_what_is_wrong_with_it(items, more, field):
    with pytest.raises(InvalidRequest) as caught:
        await items.search(HOME, **{"query": "fine", **more})
    assert caught.value.field == field


async def test_an_empty_memory_finds_nothing(items):
    assert await items.search(HOME, "anything") == ()
    assert (await items.working_context(HOME, MODEL)).full_items == []
    state = await items.state(HOME, MODEL)
    assert (state.used_context_length, state.total_context_length, state.created_at) == (0, 8_000, NOON)


async def test_a_working_context_never_has_more_than_it_may(items, rng):
    first = await add(items, prose(rng, 500), priority=9)
    for _ in range(15):
        await add(items, prose(rng, rng.choice([50, 300, 2_500])))
    for most in (50, 500, 3_000, None):
        context = await items.working_context(HOME, MODEL, most)
        total = sum(entry.tokens for entry in (*context.full_items, *context.compressed_items))
        assert total == context.total_tokens <= (most or 4_800)
        assert context.available_tokens == (most or 4_800) - total
    assert context.full_items[0].id == first.id
    hints = {entry.retrieval_hint for entry in context.compressed_items}
    assert all(f"Use retrieve_memory_item('{e.id}') to get full content" in hints for e in context.compressed_items)
    with pytest.raises(InvalidRequest):
        await items.working_context(HOME, MODEL, 0)


async def test_what_answers_a_query_stands_in_full_in_the_working_context(items, pool, rng):
    fact = "The vault of Quillon opens with the number 4711."
    text = " ".join([prose(rng, 4_000), fact, prose(rng, 4_000)])
    id = (await add(items, text)).id
    await embed_item(pool, WordVectors(), TENANT, id)
    context = await items.working_context(HOME, MODEL, query="How does one open the vault of Quillon?")
    (entry,) = [entry for entry in context.full_items if fact in entry.content]
    assert (entry.id, text[entry.start : entry.stop]) == (id, entry.content)
    assert context.total_tokens <= 4_800


async def test_every_change_is_counted(items, owner, rng):
    one = await add(items, prose(rng, 700))
    two = await add(items, "second")
    await agree(owner)
    changed = await items.change(TENANT, one.id, priority=8, pinned=True, metadata={"k": 1})
    assert (changed.priority, changed.is_pinned, changed.metadata) == (8, True, {"k": 1})
    await agree(owner)
    corrected = await items.change(TENANT, one.id, content="The right words are banana split.")
    assert (corrected.full_content, corrected.token_count) == ("The right words are banana split.", 7)
    assert [hit.id for hit in await items.search(HOME, "banana split", limit=1)] == [one.id]
    await agree(owner)
    assert (await items.change(TENANT, two.id, archived=True)).is_active is False
    assert two.id not in {hit.id for hit in await items.search(HOME, "second")}
    assert two.id in {hit.id for hit in await items.search(HOME, "second", include_archived=True)}
    assert (await items.retrieve(TENANT, two.id)).full_content == "second"
    await agree(owner)
    assert (await items.change(TENANT, two.id, archived=False)).is_active is True
    await agree(owner)
    for id in (one.id, two.id):
        await items.delete(TENANT, id)
        assert (await agree(owner))[3] == await owner.fetchval("select count(*) from infold.passages")
    assert (await items.state(HOME, MODEL)).used_context_length == 0
    assert await owner.fetchval("select count(*) from infold.vectors") == 0
    with pytest.raises(InvalidRequest, match="one of priority"):
        await items.change(TENANT, one.id)


async def test_a_pin_brings_an_item_back_in_full(items, owner, hands, rng):
    first = await add(items, prose(rng, 600))
    for _ in range(11):
        hands.forward(minutes=1)
        await add(items, prose(rng, 600))
    assert (await items.retrieve(TENANT, first.id)).form != "full"
    assert (await items.change(TENANT, first.id, pinned=True)).form == "full"
    assert (await agree(owner))[1] <= 1_600


async def test_pages_go_through_everything_once(items, hands):
    ids = []
    for number in range(7):
        hands.forward(seconds=number % 2)  # some at the same moment
        ids.append((await add(items, f"item {number}", at=AWAY if number == 3 else HOME)).id)
    seen, cursor = [], None
    while True:
        page, cursor = await items.listed(None, TENANT, cursor, 3)
        seen += [item.id for item in page]
        if cursor is None:
            break
    assert sorted(seen) == sorted(ids)
    page, _ = await items.listed(HOME, TENANT)
    assert {item.session_id for item in page} == {"home"}
    assert await items.listed(None, OTHER) == ((), None)
    for wrong in ("x", "\u00e9", "MTIz", 5, "A" * 99):
        with pytest.raises(InvalidRequest, match="cursor"):
            await items.listed(None, TENANT, wrong)
    with pytest.raises(InvalidRequest, match="status must be one of active, archived, got 'x'"):
        await items.listed(None, TENANT, status="x")


async def test_contents_are_told_up_to_what_an_answer_holds(items, owner, hands):
    ids = []
    for number in range(3):
        hands.forward(seconds=1)
        ids.insert(0, (await add(items, f"lantern {number}", priority=number)).id)
    await owner.execute("update infold.items set content = 'lantern ' || repeat('x', 30 * 1024 * 1024)")
    page, cursor = await items.listed(HOME, TENANT)
    assert [item.id for item in page] == ids[:2], "a page ends where a third would be too much"
    rest, end = await items.listed(HOME, TENANT, cursor)
    assert ([item.id for item in rest], end) == (ids[2:], None)
    found = await items.search(HOME, "lantern", limit=3)
    assert [item.full_content is None for item in found] == [False, False, True]
    assert [item.passage is None for item in found] == [False, False, True]
    assert found[2].compressed_summary.startswith("lantern")
    await owner.execute("update infold.items set content = repeat('x', 65 * 1024 * 1024) where id = $1", found[0].id)
    assert (await items.search(HOME, "lantern", limit=1))[0].full_content, "the first comes whole"
    context = await items.working_context(HOME, MODEL)
    assert len(context.full_items) + len(context.compressed_items) == 3
    assert sum(len(entry.content) for entry in context.full_items) <= 65 * 2**20


async def test_hygiene_compresses_after_a_week_and_archives_after_a_month(items, owner, hands, rng):
    read, unread, pinned = [await add(items, prose(rng, 400)) for _ in range(3)]
    await items.change(TENANT, pinned.id, pinned=True)
    hands.forward(days=7.1)
    await items.retrieve(TENANT, read.id)
    dry = await items.hygiene(HOME, dry_run=True)
    assert (dry.compressed, dry.archived, dry.kept, dry.dry_run) == (1, 0, 2, True)
    assert ("compress", "not read for 7.1 days") in {(t.action, t.why) for t in dry.items}
    assert (await items.retrieve(TENANT, unread.id, False)).form == "full", "a dry run changes nothing"
    hands.forward(days=7.1)
    report = await items.hygiene(HOME)
    assert (report.compressed, report.kept) == (2, 1)
    assert {e.id for e in (await items.working_context(HOME, MODEL)).compressed_items} == {read.id, unread.id}
    await agree(owner)
    hands.forward(days=20)
    assert (await items.hygiene(HOME)).archived == 2
    await agree(owner)
    assert [hit.id for hit in await items.search(HOME, read.full_content[:80])] == [pinned.id]
    assert (await items.retrieve(TENANT, read.id)).full_content == read.full_content
    await items.change(TENANT, unread.id, archived=False)
    again = await items.hygiene(HOME)
    assert (again.compressed, again.archived, again.deleted) == (0, 0, 0)


async def test_what_is_beyond_the_bound_of_short_forms_leaves_prompts_and_is_found(make, owner, hands, rng):
    items = make(Settings(hygiene=Hygiene(max_compressed_items=1)))
    first, second = [await add(items, prose(rng, 400)) for _ in range(2)]
    hands.forward(days=8)
    report = await items.hygiene(HOME)
    assert (report.compressed, report.archived) == (2, 0)
    assert {e.id for e in (await items.working_context(HOME, MODEL)).compressed_items} == {second.id}
    assert first.id in [hit.id for hit in await items.search(HOME, first.full_content[:80])]
    again = await items.hygiene(HOME)
    assert (again.compressed, again.kept) == (0, 2)
    await agree(owner)


async def test_deletion_happens_only_where_it_is_set(make, owner, hands):
    items = make(Settings(hygiene=Hygiene(delete_after_days=365)))
    id = (await add(items, "old")).id
    hands.forward(days=366)
    assert (await items.hygiene(HOME)).deleted == 1
    assert await items.retrieve(TENANT, id) is None
    await agree(owner)


async def test_an_item_whose_session_is_erased_meanwhile_is_added_by_the_next_try(items, pool, owner):
    await owner.execute(
        "create function infold.erases() returns trigger language plpgsql as $$ begin"
        " delete from infold.states where id = new.session; return null; end $$;"
        " create trigger erases after insert on infold.items for each row execute function infold.erases()"
    )
    id = new_id()
    with pytest.raises(StoreBusy):
        await add(items, "one", id=id)
    assert pool.available
    assert (await add(items, "one", id=id)).full_content == "one"
    await items.hygiene(HOME)
    await agree(owner)


async def test_every_so_many_items_a_session_is_tidied(make, owner):
    items = make(Settings(hygiene=Hygiene(every_items=3)))
    for number in range(5):
        await add(items, f"item {number}")
    jobs = await owner.fetch("select payload from infold.pgqueuer where entrypoint = 'tidy'")
    assert [row["payload"].decode() for row in jobs] == [f"{TENANT.hex()} {HOME.id}"]
    await items.hygiene(HOME)
    assert await owner.fetchval("select untidied from infold.states") == 0


async def test_usage_adds_up_with_its_cost(items):
    await items.track_usage(HOME, MODEL, 1_000, 500)
    await items.track_usage(HOME, MODEL, 1, 0)
    usage = (await items.state(HOME, MODEL)).token_usage_stats
    assert (usage.input_tokens, usage.output_tokens) == (1_001, 500)
    assert usage.total_cost == pytest.approx(0.002001)
    with pytest.raises(InvalidRequest, match="output_tokens"):
        await items.track_usage(HOME, MODEL, 1, -1)


@pytest.mark.parametrize(("strategy", "share"), [("aggressive", 0.1), ("balanced", 0.25), ("conservative", 0.5)])
async def test_a_text_is_compressed_to_about_its_share(items, rng, strategy, share):
    text = prose(rng, 4_000)
    told = await items.compress(text, "note", strategy, MODEL)
    assert share * 0.7 <= COUNTER.text(told, "cl100k_base") / COUNTER.text(text, "cl100k_base") <= share + 0.01


async def test_a_summariser_that_has_nothing_to_say_leaves_it_to_the_digest(make, rng):
    async def silent(text, budget, model):
        return None

    async def loud(text, budget, model):
        return f"{budget} tokens of {model}"

    assert await make(summarize=silent).compress(prose(rng, 200), "note", "balanced", MODEL)
    assert "tokens of small" in await make(summarize=loud).compress(prose(rng, 200), "note", "balanced", MODEL)


@pytest.fixture
def guarded(make, pool, hands):
    def guarded(mode):
        settings = Settings(quarantine=mode)
        quarantine = Quarantine(pool, COUNTER, hands, settings)
        return make(settings, WordVectors(), detect=detect, quarantine=quarantine), quarantine

    def detect(text):
        return (Found("key", 0, 3),) if "sk-" in text else ()

    return guarded


@pytest.mark.parametrize(("mode", "state"), [("off", None), ("suggest", "proposed"), ("auto", "isolated")])
async def test_secrets_go_out_of_sight_at_once_or_are_told(guarded, owner, mode, state):
    items, quarantine = guarded(mode)
    given = [await add(items, "the key is sk- 1234"), await add(items, "harmless")]
    with contextlib.suppress(NotFound):
        await items.change(TENANT, given[1].id, content="another key is sk- 5678")
    for item in given:
        assert (await items.retrieve(TENANT, item.id) is not None) is (state != "isolated")
    for words in ("1234", "5678"):
        assert bool(await items.search(HOME, words, by_meaning=False)) is (state != "isolated")
    assert {context.state for context in await quarantine.listed(HOME)} == ({state} if state else set())
    assert len(await quarantine.listed(HOME)) == (2 if state else 0)
    assert bool(await owner.fetchval("select count(*) from infold.vectors")) is (state != "isolated")
    assert await owner.fetchval("select model from infold.states") == MODEL
    await agree(owner)


@pytest.mark.parametrize("mode", ["suggest", "auto"])
async def test_what_was_added_and_not_isolated_or_proposed_is_when_it_is_added_again(guarded, owner, mode):
    """A connection that was lost after the first transaction left an item that nobody could see, or no proposal."""
    (items, quarantine), id = guarded(mode), new_id()
    for _ in range(2):
        assert (await add(items, "the key is sk- 1234", id=id)).id == str(id)
        assert len(await quarantine.listed(HOME)) == 1
        await owner.execute("delete from infold.quarantine where state = 'proposed'")
    assert await owner.fetchval("select count(*) from infold.items") == 1
    await agree(owner)


async def test_an_item_in_quarantine_is_not_deleted(guarded, owner):
    """Nothing was left that a release could give back."""
    items, _ = guarded("auto")
    id = (await add(items, "the key is sk- 1234")).id
    with pytest.raises(NotFound):
        await items.delete(TENANT, id)
    assert await owner.fetchval("select count(*) from infold.items") == 1


async def test_what_is_recalled_belongs_to_the_session_or_is_shared(items):
    await add(items, "The lighthouse keeper is called Zephyrine.")
    await add(items, "Zephyrine holds the shared key.", at=AWAY, scope="tenant")
    assert await items.has_any(TENANT, None)
    assert not await items.has_any(OTHER, None)

    def count(text):
        return COUNTER.text(text, "cl100k_base")

    mine = await items.recall(TENANT, HOME, "Who is Zephyrine, the lighthouse keeper?", 1_000, count)
    assert {quote.text for quote in mine} >= {"The lighthouse keeper is called Zephyrine."}
    everywhere = await items.recall(TENANT, None, "Who is Zephyrine with the shared key?", 1_000, count)
    assert [quote.text for quote in everywhere] == ["Zephyrine holds the shared key."]
    assert await items.recall(TENANT, HOME, "Zephyrine", 3, count) == ()


async def test_many_add_read_and_settle_at_once_without_losing_count(make, owner, rng):
    items, more = make(), make()
    texts = [prose(rng, 300) for _ in range(30)]
    found = await asyncio.gather(*(add(who, text) for text in texts for who in (items, more)))
    await asyncio.gather(*(items.retrieve(TENANT, item.id) for item in found), more.hygiene(HOME))
    await agree(owner)
