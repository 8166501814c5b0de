"""litellm as an upstream: takes a request in the client's dialect, asks a provider that speaks another one.

This is an ASGI application for a process of its own (`infold providers`): importing litellm takes seconds and 170 MB,
and a web worker must have neither. It listens on a unix socket in a private folder, is told with each request which
provider is meant, with which key and options, and knows nothing else: its environment holds no keys, because litellm
would take them from there. No retries, no cache, no logging; what a provider refuses is refused in the client's
dialect, with the provider's own status and words.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import httpx
import orjson
import structlog

from proxy.errors import ClientGone, Dialect, NoJson, ProxyError, UpstreamCut
from proxy.exchange import Exchange, Headers, Receive, Scope, Send, while_client_stays
from proxy.tenants import key_of

log = structlog.get_logger()

Json = dict[str, Any]

TIMEOUT_SECONDS = 600.0
PREFIX = "llm_provider-"  # before the provider's own headers, as litellm tells them
TOLD_HEADERS = ("retry-after", "x-should-retry", "request-id", "x-request-id", "x-ratelimit-", "anthropic-ratelimit-")
JSON = (b"content-type", b"application/json")
EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")

# A body's fields become arguments of litellm, some of which choose the address and the key. So only these pass.
CHAT_FIELDS = frozenset(
    """audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens messages
    modalities model n parallel_tool_calls prediction presence_penalty reasoning_effort response_format seed stop
    stream stream_options temperature thinking tool_choice tools top_k top_logprobs top_p verbosity
    web_search_options""".split()
)
MESSAGES_FIELDS = frozenset(
    """max_tokens messages model output_format stop_sequences stream system temperature thinking tool_choice tools
    top_k top_p""".split()
)
RESPONSES_FIELDS = frozenset(
    """input instructions max_output_tokens model parallel_tool_calls reasoning stream temperature text tool_choice
    tools top_logprobs top_p""".split()
)
# For the bookkeeping of the dialect's own provider; another one has no use for them, and the answer does not change.
HINTS = frozenset(
    """context_management include metadata prompt_cache_key prompt_cache_retention safety_identifier service_tier store
    truncation user""".split()
)


class ProviderError(ProxyError):
    """The provider refused, or was not reached."""

    def __init__(self, message: str, status: int, code: str | None = None, headers: Headers = ()) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.type = error_type(status)
        self.headers = headers


class NotOffered(ProxyError):
    """Providers of other dialects are reached by POST to /v1/chat/completions, /v1/messages and /v1/responses."""

    status, type, code = 404, "invalid_request_error", "not_found"


class NotTranslated(ProxyError):
    """A field of the request means nothing to another provider."""

    status, type, code = 400, "invalid_request_error", "unsupported_parameter"

    def __init__(self, field: str) -> None:
        super().__init__(f"`{field}` cannot be translated for this provider; leave it out.")


class Answer(NamedTuple):
    """What a translation gives: a whole answer, or one that comes in events."""

    whole: object = None
    events: "AsyncGenerator[bytes] | None" = None
    headers: Headers = ()


@dataclass(frozen=True, slots=True)
class Translation:
    """One dialect: which fields of a request pass, and how litellm is asked."""

    fields: frozenset[str]
    ask: Callable[["LiteLLM", Json, Json], Coroutine[Any, Any, Answer]]
    errors: Dialect = "openai"


class Providers:
    """The ASGI application."""

    def __init__(self) -> None:
        self._litellm = LiteLLM()
        self._importing = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        found = next((one for end, one in TRANSLATIONS.items() if exchange.path.endswith(end)), None)
        errors: Dialect = found.errors if found is not None else "openai"
        try:
            if found is None or exchange.method != "POST":
                raise NotOffered
            body = await exchange.body(None)
            await while_client_stays(exchange, self._answer(exchange, found, body))
        except (ClientGone, UpstreamCut):
            return  # an answer that has begun breaks off, and so does the client's
        except ProviderError as error:
            await exchange.refuse(error, error.headers, errors)
        except ProxyError as error:
            await exchange.refuse(error, (), errors)

    async def _answer(self, exchange: Exchange, translation: Translation, body: bytes) -> None:
        request, settings = parsed(body, translation.fields), settings_of(exchange)
        request["model"] = str(request.get("model", "")).removeprefix(f"{settings['custom_llm_provider']}/")
        async with self._importing:
            await asyncio.to_thread(getattr, self._litellm, "module")
        try:
            answer = await translation.ask(self._litellm, request, settings)
            if answer.events is None:
                return await whole(exchange, answer)
            async with aclosing(answer.events) as events:
                await relay(exchange, events, answer.headers)
        except self._litellm.failures as error:
            if exchange.started:
                log.warning("a provider's answer broke off", provider=settings["custom_llm_provider"])
                raise UpstreamCut from error
            raise refusal(error) from error


class LiteLLM:
    """The library, imported when it is first needed."""

    @cached_property
    def module(self) -> Any:
        import litellm

        logging.getLogger("LiteLLM").setLevel(logging.CRITICAL)  # its lines may hold content
        litellm.telemetry = False
        litellm.suppress_debug_info = True
        litellm.drop_params = False
        litellm.num_retries = 0
        return litellm

    @cached_property
    def failures(self) -> tuple[type[Exception], ...]:
        """What litellm raises: errors made like OpenAI's, its own, and what its translations stumble over."""
        from litellm.llms.base_llm.chat.transformation import BaseLLMException
        from openai import OpenAIError

        return (OpenAIError, BaseLLMException, ValueError, TypeError, KeyError, AttributeError, IndexError)

    @cached_property
    def messages(self) -> Any:
        """Messages over chat completions. `litellm.anthropic_messages` needs packages that litellm does not bring."""
        from litellm.llms.anthropic.pass_through.adapters.handler import (
            LiteLLMMessagesToCompletionTransformationHandler,
        )

        return LiteLLMMessagesToCompletionTransformationHandler.async_anthropic_messages_handler

    @cached_property
    def responses(self) -> Any:
        """Responses over chat completions; `litellm.aresponses` needs such packages, too."""
        from litellm.responses.litellm_completion_transformation.handler import LiteLLMCompletionTransformationHandler

        return LiteLLMCompletionTransformationHandler().response_api_handler


def parsed(body: bytes, fields: frozenset[str]) -> Json:
    """A request's fields, without those that say nothing to another provider.

    Raises:
        NoJson, NotTranslated
    """
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise NoJson from error
    if not isinstance(request, dict):
        raise NoJson
    known = {name: value for name, value in request.items() if name not in HINTS and value is not None}
    for name in known:
        if name not in fields:
            raise NotTranslated(name)
    return known


def settings_of(exchange: Exchange) -> Json:
    """How litellm is to ask: from headers that only a web worker of ours can send."""
    options = orjson.loads(exchange.header(b"infold-options") or b"{}")
    return {
        **options,
        "custom_llm_provider": (exchange.header(b"infold-provider") or b"").decode(),
        "api_key": key_of(exchange.headers),
        "timeout": TIMEOUT_SECONDS,
        "num_retries": 0,
        "max_retries": 0,
        "drop_params": False,
        "_skip_mcp_handler": True,  # it needs a package that litellm does not bring
    }


# How each dialect is asked.


async def chat(litellm: LiteLLM, request: Json, settings: Json) -> Answer:
    said = await litellm.module.acompletion(**request, **settings)
    headers = told(hidden(said))
    if request.get("stream"):
        return Answer(events=chat_events(said), headers=headers)
    return Answer(with_reasons(said.model_dump(exclude_none=True)), headers=headers)


async def chat_events(chunks: AsyncIterator[Any]) -> AsyncGenerator[bytes]:
    async for chunk in chunks:
        yield b"data: " + orjson.dumps(with_reasons(chunk.model_dump(exclude_none=True))) + b"\n\n"
    yield b"data: [DONE]\n\n"


async def messages(litellm: LiteLLM, request: Json, settings: Json) -> Answer:
    said = await litellm.messages(**{"max_tokens": None, "messages": [], **request}, **settings)
    return Answer(events=as_they_come(said)) if request.get("stream") else Answer(said, headers=told(hidden(said)))


async def as_they_come(events: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    async for event in events:
        yield event


async def responses(litellm: LiteLLM, request: Json, settings: Json) -> Answer:
    model, asked, stream = request.pop("model"), request.pop("input", ""), request.pop("stream", None)
    said = await litellm.responses(
        model=model, input=asked, responses_api_request=request, _is_async=True, stream=stream, **settings
    )
    if stream:
        return Answer(events=responses_events(said))
    return Answer(said.model_dump(exclude_none=True, mode="json"), headers=told(hidden(said)))


async def responses_events(events: AsyncIterator[Any]) -> AsyncGenerator[bytes]:
    number = 0
    async for event in events:
        told = {**event.model_dump(exclude_none=True, mode="json"), "sequence_number": number}
        number += 1
        yield b"event: %b\ndata: %b\n\n" % (str(told["type"]).encode(), orjson.dumps(told))


TRANSLATIONS: Mapping[bytes, Translation] = {
    b"/chat/completions": Translation(CHAT_FIELDS, chat),
    b"/messages": Translation(MESSAGES_FIELDS, messages, "anthropic"),
    b"/responses": Translation(RESPONSES_FIELDS, responses),
}


def with_reasons(said: Json) -> Json:
    """As OpenAI writes it: a reason in every choice, null content beside calls, no choice in the event of usage."""
    choices = said.get("choices") or []
    for choice in choices:
        choice.setdefault("finish_reason", None)
        if "message" in choice:
            choice["message"].setdefault("content", None)
    if "usage" in said and all(choice.get("delta") == {} and not choice["finish_reason"] for choice in choices):
        return {**said, "choices": []}
    return said


# Answers on their way.


async def whole(exchange: Exchange, answer: Answer) -> None:
    body = orjson.dumps(answer.whole)
    await exchange.start(200, [JSON, (b"content-length", b"%d" % len(body)), *answer.headers])
    await exchange.send(body, more=False)


async def relay(exchange: Exchange, events: AsyncGenerator[bytes], headers: Headers) -> None:
    """Events as they come. Nothing is said before the first: until then a refusal can have a status of its own."""
    first = await anext(events, None)
    await exchange.start(200, [EVENTS, *headers])
    if first is not None:
        await exchange.send(first)
    async for event in events:
        await exchange.send(event)
    await exchange.send(b"", more=False)


def hidden(said: object) -> Mapping[str, str]:
    """The provider's headers, where litellm kept them."""
    found = getattr(said, "_hidden_params", None)
    headers = (found.get("additional_headers") if isinstance(found, dict) else None) or {}
    return {name.removeprefix(PREFIX): str(value) for name, value in headers.items() if name.startswith(PREFIX)}


def told(headers: Mapping[str, str]) -> Headers:
    """Those of a provider's headers that a client can use."""
    return [
        (name.lower().encode("latin-1"), str(value).encode("latin-1", "replace"))
        for name, value in headers.items()
        if name.lower().startswith(TOLD_HEADERS)
    ]


# Refusals.


def refusal(error: Exception) -> ProviderError:
    """What a provider said, from litellm's telling of it."""
    causes = list(chain(error))
    statuses = [status for cause in causes if isinstance(status := getattr(cause, "status_code", None), int)]
    answers = [dict(getattr(getattr(cause, "response", None), "headers", None) or {}) for cause in causes]
    status = statuses[-1] if statuses else 400
    if not any(answers):
        if any(isinstance(cause, httpx.TimeoutException) for cause in causes):
            status = 504
        elif any(isinstance(cause, httpx.TransportError) for cause in causes):
            status = 502
    message, code = words(causes)
    if type(error).__name__ == "ContextWindowExceededError":
        code = "context_length_exceeded"
    return ProviderError(message, status, code, told(next(filter(None, reversed(answers)), {})))


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def words(causes: list[BaseException]) -> tuple[str, str | None]:
    """The provider's own message and code; litellm's where the provider said nothing we can read."""
    for cause in reversed(causes):
        body = getattr(cause, "body", None)
        said = body if isinstance(body, dict) else embedded(getattr(cause, "message", ""))
        inner = said.get("error", said)
        if isinstance(inner, dict) and isinstance(inner.get("message"), str):
            code = inner.get("code")
            return inner["message"], code if isinstance(code, str) else None
    first = causes[0]
    return str(getattr(first, "message", "") or first or type(first).__name__).splitlines()[0], None


def embedded(text: object) -> Json:
    """The JSON object in a text of litellm's: `AnthropicException - b'{...}'`."""
    plain = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    try:
        found = orjson.loads(plain[plain.index("{") : plain.rindex("}") + 1])
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def error_type(status: int) -> str:
    """OpenAI's `error.type`."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    return kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
