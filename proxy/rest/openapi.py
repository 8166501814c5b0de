"""The OpenAPI 3.1 document of `/memory-manager`, made from the types that the server itself goes by."""

import re
from collections.abc import Sequence
from importlib import metadata
from typing import Any, NamedTuple

import msgspec

from memory.identify import SESSION_NAME
from proxy.rest.bodies import Refusal

Json = dict[str, Any]

REFERENCE = "#/components/schemas/{name}"
REFUSED = {
    "400": "The body is no JSON object.",
    "401": "A key is needed.",
    "404": "There is no such thing among the tenant's.",
    "409": "It is no longer in a state in which that can be done.",
    "413": "The body is too large.",
    "422": "A value is not allowed; the field is named.",
    "503": "The database is away.",
}
DEFAULT, WHOLE = "the tenant's default one", "all of the tenant's"  # what a request means that names no session
SESSION: Json = {
    "name": "X-Session-Id",
    "in": "header",
    "schema": {"type": "string", "pattern": f"^{SESSION_NAME.pattern}$"},
}


class Operation(NamedTuple):
    """An endpoint as the document tells it; `path` begins behind `/memory-manager/`."""

    method: str
    path: str
    summary: str
    reply: type | None  # None: a stream of `media`
    body: type | None = None
    query: type | None = None
    media: str = "application/json"
    brings: str = "application/json"  # media of the body
    unnamed: str = DEFAULT


def document(operations: Sequence[Operation]) -> Json:
    types = [Refusal, *(t for o in operations for t in (o.reply, o.body, o.query) if t is not None)]
    _, schemas = msgspec.json.schema_components(list(dict.fromkeys(types)), ref_template=REFERENCE)
    paths: dict[str, Json] = {}
    for operation in operations:
        paths.setdefault(f"/memory-manager/{operation.path}", {})[operation.method.lower()] = told(operation, schemas)
    queries = {o.query.__name__ for o in operations if o.query is not None}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Infold memory manager",
            "version": metadata.version("infold"),
            "description": "The key of the request names the tenant; whatever is read or written is that tenant's.",
        },
        "security": [{"key": []}, {}],
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {name: schema for name, schema in schemas.items() if name not in queries},
            "responses": {status: refusal(sentence) for status, sentence in REFUSED.items()},
        },
    }


def told(operation: Operation, schemas: Json) -> Json:
    named = re.findall(r"{(\w+)}", operation.path)
    in_path: list[Json] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in named
    ]
    words = re.findall(r"\w+", operation.path)
    content: Json = (
        {"schema": reference(operation.reply)} if operation.reply is not None else {"schema": {"type": "string"}}
    )
    answers = {"200": {"description": "Done.", "content": {operation.media: content}}}
    refusals = {status: {"$ref": f"#/components/responses/{status}"} for status in REFUSED}
    whole: Json = {
        "operationId": "_".join([operation.method.lower(), *words]),
        "summary": operation.summary,
        "tags": words[:1],
        "parameters": [*in_path, session(operation), *in_query(operation.query, schemas)],
        "responses": answers | refusals,
    }
    if operation.body is not None:
        required = bool(schemas[operation.body.__name__].get("required"))
        whole["requestBody"] = {
            "required": required,
            "content": {"application/json": {"schema": reference(operation.body)}},
        }
    elif operation.brings != "application/json":
        lines = {"type": "string", "description": "A JSON object a line, each with its kind."}
        whole["requestBody"] = {"required": True, "content": {operation.brings: {"schema": lines}}}
    return whole


def session(operation: Operation) -> Json:
    return SESSION | {"description": f"The session; left out: {operation.unnamed}."}


def reference(type: type) -> Json:
    return {"$ref": REFERENCE.format(name=type.__name__)}


def in_query(query: type | None, schemas: Json) -> list[Json]:
    if query is None:
        return []
    schema = schemas[query.__name__]
    return [
        {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": field}
        for name, field in schema["properties"].items()
    ]


def refusal(sentence: str) -> Json:
    return {"description": sentence, "content": {"application/json": {"schema": reference(Refusal)}}}
