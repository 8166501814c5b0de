"""Items, what a session's prompt holds of them, and hygiene."""

from memory import check
from memory.errors import NotFound
from memory.snapshot import About, state_json
from proxy.rest.asking import Asking
from proxy.rest.bodies import (
    Answered,
    Context,
    ContextQuery,
    Done,
    HygieneRun,
    ItemAdd,
    ItemAdded,
    ItemChange,
    ItemPage,
    ItemRetrieve,
    ItemSearch,
    ItemsFound,
    ItemsListed,
    OneItem,
    Question,
    State,
    StateExport,
    Tidied,
    TokensUsed,
)


async def add(asking: Asking, body: ItemAdd) -> ItemAdded:
    item = await asking.memory.items.add(
        asking.place, asking.model, body.content, body.content_type, body.priority, body.metadata, body.auto_compress,
        body.scope,
    )  # fmt: skip
    return ItemAdded(item_id=item.id, message="The item is stored.")


async def retrieve(asking: Asking, body: ItemRetrieve) -> OneItem:
    whole = check.flag(body.decompress, "decompress")
    item = await asking.memory.items.retrieve(asking.tenant, body.item_id, whole)
    if item is None:
        raise NotFound.of("item_id")
    return OneItem(item=item)


async def search(asking: Asking, body: ItemSearch) -> ItemsFound:
    archived = check.flag(body.include_archived, "include_archived")
    found = await asking.memory.items.search(asking.place, body.query, body.limit, body.content_types, archived)
    return ItemsFound(results=list(found), count=len(found))


async def ask(asking: Asking, body: Question) -> Answered:
    found = await asking.memory.ask.ask(asking.tenant, body.question, body.limit, asking.named_place)
    return Answered(answer=found.answer, by=found.by, reason=found.reason, sources=found.sources)


async def listed(asking: Asking, query: ItemPage) -> ItemsListed:
    place = asking.place
    items, more = await asking.memory.items.listed(place, place.tenant, query.cursor, query.limit, query.status)
    return ItemsListed(items=list(items), next=more)


async def change(asking: Asking, body: ItemChange) -> OneItem:
    item = await asking.memory.items.change(
        asking.tenant, asking.named["item_id"], priority=body.priority, pinned=body.pin, metadata=body.metadata,
        content=body.correction, archived=body.archived,
    )  # fmt: skip
    return OneItem(item=item)


async def delete(asking: Asking) -> Done:
    await asking.memory.items.delete(asking.tenant, asking.named["item_id"])
    return Done(message="The item is deleted.")


async def state(asking: Asking) -> State:
    return State(state=await asking.memory.items.state(asking.place, asking.model))


async def state_export(asking: Asking) -> StateExport:
    config = asking.parts.config
    about = About(config.memory_approach, config.use_slm, config.use_lora_finetuning)
    return StateExport(state_json=await state_json(asking.memory, asking.place, asking.model, about))


async def context(asking: Asking, query: ContextQuery) -> Context:
    found = await asking.memory.items.working_context(asking.place, asking.model, query.max_tokens, query.query)
    return Context(context=found)


async def hygiene(asking: Asking, body: HygieneRun) -> Tidied:
    report = await asking.memory.items.hygiene(asking.place, body.dry_run)
    done = "Nothing was changed; this is what would be." if report.dry_run else "The session is tidied."
    return Tidied(message=done, report=report)


async def track(asking: Asking, body: TokensUsed) -> Done:
    items = asking.memory.items
    await items.track_usage(asking.place, asking.model, body.input_tokens, body.output_tokens)
    return Done(message="The tokens are counted.")
