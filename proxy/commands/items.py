"""Items: listed, searched, added, changed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memory.errors import InvalidRequest, NotFound, TooLarge
from proxy.commands.files import STANDARD, chunks
from proxy.commands.opened import At
from proxy.commands.shown import Rows, Shown

if TYPE_CHECKING:
    from proxy.rest.bodies import Answered, Done, ItemAdded, ItemsFound, ItemsListed, OneItem

Id = Annotated[str, typer.Argument(metavar="ID", help="The item's id.")]
Type = Annotated[list[str] | None, typer.Option("--type", help="Of this type alone; may be there several times.")]


async def listed(
    at: At,
    limit: Annotated[int, typer.Option(help="At most so many, 1 to 1,000.")] = 100,
    status: Annotated[str | None, typer.Option(help="active or archived; left out: both.")] = None,
    cursor: Annotated[str | None, typer.Option(help="Where the page before ended.")] = None,
) -> "ItemsListed":
    """The session's items, newest first.

    Example: infold items --limit 10
    """
    from proxy.rest.bodies import ItemsListed

    items, more = await at.memory.items.listed(at.place, at.tenant, cursor, limit, status)
    return ItemsListed(items=list(items), next=more)


def show_listed(answer: "ItemsListed") -> Shown:
    columns = ("id", "type", "tokens", "priority", "created", "content")
    rows = [(i.id, i.content_type, i.token_count, i.priority, i.created_at, i.full_content) for i in answer.items]
    yield Rows(columns, rows, "No items in this session. `infold items add FILE` stores one.")
    if answer.next:
        yield f"There are more: --cursor {answer.next}"


async def add(
    at: At,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A text; - is standard input.")] = STANDARD,
    kind: Annotated[str, typer.Option("--type", help="What it is: note, code, log, ...")] = "note",
    priority: Annotated[int, typer.Option(help="1 to 10, 10 highest; 0: not set.")] = 0,
    shared: Annotated[bool, typer.Option("--shared", help="For all sessions of the tenant.")] = False,
) -> "ItemAdded":
    """Store a text; prints its id.

    Example: echo "The ferry leaves at 07:40 from pier 9." | infold items add --type note
    """
    from proxy.rest.bodies import ItemAdded

    content = await text_of(file)
    await at.warm()
    scope = "tenant" if shared else "session"
    item = await at.memory.items.add(at.place, at.model, content, kind, priority, scope=scope)
    return ItemAdded(item_id=item.id, message="The item is stored.")


async def text_of(file: Path) -> str:
    """
    Raises:
        InvalidRequest: it is no UTF-8, or larger than an item may be.
    """
    from memory.settings import Settings

    most_bytes, held = Settings().work.most_item_bytes, bytearray()
    async for chunk in chunks(file):
        held += chunk
        if len(held) > most_bytes:
            raise TooLarge(f"content must have at most {most_bytes:,} bytes", "content")
    try:
        return held.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"content must be UTF-8, which ends at byte {error.start + 1}", "content") from None


def show_added(answer: "ItemAdded") -> Shown:
    yield answer.item_id


async def show(at: At, item_id: Id) -> "OneItem":
    """An item with its content; counts as read.

    Example: infold items show 01890a5d-ac96-774b-bcce-b302099a8057
    """
    from proxy.rest.bodies import OneItem

    item = await at.memory.items.retrieve(at.tenant, item_id)
    if item is None:
        raise NotFound.of("item_id")
    return OneItem(item=item)


def show_one(answer: "OneItem") -> Shown:
    item = answer.item
    yield Rows(
        ("", ""),
        [
            ("id", item.id),
            ("session", item.session_id),
            ("type", item.content_type),
            ("tokens", f"{item.token_count:,}, {item.compressed_token_count:,} as a summary"),
            ("priority", f"{item.priority}{', pinned' if item.is_pinned else ''}"),
            ("scope", item.scope),
            ("form", f"{item.form}{'' if item.is_active else ', archived'}"),
            ("created", item.created_at),
            ("read", f"{item.access_count:,} times"),
            ("metadata", str(item.metadata) if item.metadata else None),
        ],
    )
    yield f"\n{item.full_content or ''}".removesuffix("\n")


async def delete(at: At, item_id: Id) -> "Done":
    """Delete an item and all that was made of it.

    Example: infold items delete 01890a5d-ac96-774b-bcce-b302099a8057
    """
    from proxy.rest.bodies import Done

    await at.memory.items.delete(at.tenant, item_id)
    return Done(message="The item is deleted.")


async def pin(
    at: At, item_id: Id, off: Annotated[bool, typer.Option("--off", help="Take the pin away.")] = False
) -> "OneItem":
    """Keep an item in full, whatever its age.

    Example: infold items pin 01890a5d-ac96-774b-bcce-b302099a8057
    """
    from proxy.rest.bodies import OneItem

    return OneItem(item=await at.memory.items.change(at.tenant, item_id, pinned=not off))


def show_pinned(answer: "OneItem") -> Shown:
    yield "The item is pinned." if answer.item.is_pinned else "The item is no longer pinned."


async def search(
    at: At,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="A question, or some words.")],
    limit: Annotated[int, typer.Option(help="At most so many, 1 to 1,000.")] = 5,
    types: Type = None,
    archived: Annotated[bool, typer.Option("--archived", help="Archived ones, too.")] = False,
) -> "ItemsFound":
    """Items by meaning and by words, best first.

    Example: infold search "When does the boat depart?" --limit 3
    """
    from proxy.rest.bodies import ItemsFound

    await at.warm()
    found = await at.memory.items.search(at.place, query, limit, types, archived)
    return ItemsFound(results=list(found), count=len(found))


def show_found(answer: "ItemsFound") -> Shown:
    rows = [
        (one.score, one.id, one.content_type, one.passage.text if one.passage else one.compressed_summary)
        for one in answer.results
    ]
    yield Rows(("score", "id", "type", "passage"), rows, "Nothing found.")


async def ask(
    at: At,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="In your own words.")],
    limit: Annotated[int, typer.Option(help="Passages that are read, 1 to 20.")] = 3,
) -> "Answered":
    """Answer a question from the memory, with what it rests on; without --session from all of the tenant's.

    Example: infold ask "When does the ferry leave?"
    """
    from proxy.rest.bodies import Answered

    await at.warm()
    found = await at.memory.ask.ask(at.tenant, question, limit, at.named_place)
    return Answered(answer=found.answer, by=found.by, reason=found.reason, sources=found.sources)


def show_answer(answer: "Answered") -> Shown:
    yield answer.answer or "Nothing in the memory answers that."
    if answer.sources:
        yield f"\nby the {answer.by}, from:"
    rows = [(one.kind, one.id, one.session_id, one.about, one.text) for one in answer.sources]
    yield Rows(("kind", "id", "session", "type", "text"), rows)
