"""The counters of sessions and tenants, beside what the rows add up to."""

from memory.forms import form_tokens
from memory.nouns import ItemForm


async def counters(owner):
    """Counters as they stand, and as the rows have it."""
    said = await owner.fetchrow(
        "select (select sum(tokens) from infold.states) as tokens, (select sum(used) from infold.states) as used,"
        " (select sum(embedded) from infold.states) as embedded, (select sum(passages) from infold.tenants) as passages,"
        " (select sum(embedded) from infold.tenants) as tenant_embedded"
    )
    rows = await owner.fetch("select tokens, summary_tokens, form from infold.items where status = 0")
    vectors = await owner.fetchval("select count(*) from infold.vectors")
    return tuple(said), (
        sum(row["tokens"] for row in rows),
        sum(form_tokens(row["tokens"], row["summary_tokens"], ItemForm(row["form"])) for row in rows),
        vectors,
        await owner.fetchval("select count(*) from infold.passages"),
        vectors,
    )


async def agree(owner):
    said, counted = await counters(owner)
    assert said == counted
    return said
