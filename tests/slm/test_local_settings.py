"""What a local model makes of the settings, and when its engine is started again."""

from pathlib import Path
from typing import Any

import pytest

from memory.errors import EngineError, LLMMemoryError
from memory.settings import Learning, Slm
from memory.slm import own
from memory.slm.engine import Backend, Ready
from memory.slm.probes import PROBES
from memory.slm.weights import MissingWeights, Weights
from proxy.config import LOCAL_UPSTREAM, Config, ModelSection
from proxy.destinations import UpstreamSection
from proxy.local import (
    FIRST_SECONDS,
    MOST_SECONDS,
    STEADY_SECONDS,
    Tended,
    backend_of,
    joined,
    running,
    settled,
    spawned,
    told,
)
from proxy.sections import SlmSection

URL = "http://127.0.0.1:4711/v1"


def config(**given: Any) -> Config:
    return Config(**given)


@pytest.mark.parametrize(("upstream", "slm", "backend"), [
    ("local", {}, "llamacpp"),
    ("local", {"backend": "transformers"}, "transformers"),
    ("local", {"backend": "openai", "url": URL}, None),
    ("local", {"backend": "llamacpp", "url": URL}, None),
    ("https://api.openai.com/v1", {}, None),
    ("https://api.openai.com/v1", {"backend": "llamacpp"}, "llamacpp"),
])  # fmt: skip
def test_an_engine_is_started_where_one_is_wanted_and_none_runs(
    upstream: str, slm: dict[str, Any], backend: str | None
) -> None:
    assert backend_of(config(upstream=upstream, slm=SlmSection(**slm))) == backend


@pytest.mark.parametrize(("backend", "learns", "lends"), [
    ("llamacpp", False, False), ("llamacpp", True, True), ("transformers", False, True),
])  # fmt: skip
def test_llama_cpp_listens_itself_where_nothing_is_learnt(
    tiny_weights: Weights, tmp_path: Path, backend: Backend, learns: bool, lends: bool
) -> None:
    made = config(data_dir=tmp_path, slm=SlmSection(backend=backend, learning={"enabled": learns}))
    adapters = tmp_path / "adapters" if lends else None
    assert running(made, backend, tiny_weights).adapters == adapters
    slm = Slm(backend=backend, model=str(tiny_weights.path), learning=Learning(enabled=learns))
    assert own.running(slm, tmp_path).adapters == adapters


def ready(window: int = 8_192, factor: float = 1, message_tokens: int | None = 6) -> Ready:
    counts = [29, 35, 72, 72, 92, 66]  # of SmolLM2's vocabulary
    return Ready(URL, window, [int(factor * count) for count in counts], message_tokens, 24)


def test_the_default_upstream_is_the_engine_under_its_own_name(tiny_weights: Weights, tmp_path: Path) -> None:
    made = told(config(upstream="local", data_dir=tmp_path), tiny_weights, ready())
    assert made.upstream == URL
    (local,) = made.upstreams.values()
    assert (local.url, local.models, local.model) == (URL, ("*",), "tiny")
    known = made.models["tiny"]
    assert (known.context_window, known.input_usd_per_million, known.output_usd_per_million) == (8_192, 0, 0)
    assert known.encoding is not None
    assert (made.slm.url, made.slm.window, made.slm.backend) == (URL, 8_192, "llamacpp")


def test_beside_another_upstream_it_has_its_own_name_alone(tiny_weights: Weights, tmp_path: Path) -> None:
    made = told(config(data_dir=tmp_path, slm=SlmSection(backend="llamacpp")), tiny_weights, ready())
    assert made.upstream == "https://api.openai.com/v1"
    assert made.upstreams["local"].models == ("tiny",)


def test_where_it_counts_more_than_we_do_its_window_is_smaller_for_us(tiny_weights: Weights, tmp_path: Path) -> None:
    made = told(config(upstream="local", data_dir=tmp_path), tiny_weights, ready(factor=2))
    assert made.models["tiny"].context_window == int(8_192 / 2.1)


def test_what_the_operator_says_of_it_wins() -> None:
    mine = {"models": {"tiny": ModelSection(context_window=1_000)}, "upstream": "local"}
    made = joined(config(**mine), URL, "tiny", ModelSection(context_window=8_192, input_usd_per_million=0))
    assert made.models["tiny"] == ModelSection(context_window=1_000, input_usd_per_million=0)


def test_an_upstream_of_the_operators_stays_and_is_asked_first() -> None:
    mine = UpstreamSection.model_validate({"url": "http://127.0.0.1:2/v1", "models": ["big-*"]})
    made = joined(config(upstream="local", upstreams={"local": mine}), URL, "tiny", ModelSection())
    assert list(made.upstreams) == ["local", "local-model"]
    assert made.upstreams["local"] == mine


@pytest.mark.parametrize("upstream", ["local", "http://127.0.0.1:3/v1"])
@pytest.mark.parametrize("mine", ["mine", "local"])
def test_a_program_beside_the_server_learns_from_what_the_server_learns_from(upstream: str, mine: str) -> None:
    """`infold slm train` took the local model's answers for a stranger's, and no later look made that good."""
    other = UpstreamSection.model_validate({"url": "http://127.0.0.1:2/v1", "models": ["big-*"]})
    beside = config(upstream=upstream, upstreams={mine: other}, trainable_outputs=True)
    made = joined(beside, URL, "tiny", ModelSection())
    (name,) = set(made.upstreams) - {mine}
    assert made.upstreams[name].trainable_outputs
    for one in (beside, made):
        assert name in one.settings.slm.learning.trainable
        assert mine not in one.settings.slm.learning.trainable


def test_an_engine_that_runs_elsewhere_is_the_upstream_too() -> None:
    slm = SlmSection(backend="openai", url=URL, model="big", window=32_768)
    made = settled(config(upstream="local", slm=slm), None)
    assert made.upstream == URL
    assert made.upstreams["local"].model == "big"
    assert made.models["big"].context_window == 32_768


def test_a_model_that_cannot_chat_is_no_upstream(tiny_weights: Weights, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="tiny has no chat template"):
        told(config(upstream="local", data_dir=tmp_path), tiny_weights, ready(message_tokens=None))
    beside = config(data_dir=tmp_path, slm=SlmSection(backend="llamacpp"))
    assert "local" in told(beside, tiny_weights, ready(message_tokens=None)).upstreams


def test_weights_that_are_missing_stop_only_a_server_that_needs_them(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights):
        spawned(config(upstream="local", data_dir=tmp_path))
    assert spawned(config(data_dir=tmp_path, slm=SlmSection(backend="llamacpp"))) is None


def test_the_probes_differ_in_kind() -> None:
    assert len(PROBES) == len(ready().counts)


# When it is started again.


class Dying:
    """An engine that a test lets die and come back."""

    name = "tiny"

    def __init__(self) -> None:
        self.ready = ready()
        self.code: int | None = None
        self.ports: list[int] = []
        self.error: str | None = None

    def poll(self) -> int | None:
        return self.code

    def spawn(self, port: int) -> None:
        self.ports.append(port)
        self.code = None

    def wait(self, seconds: float) -> bool:
        if self.error:
            raise EngineError(self.error)
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def seconds_until_it_is_started(tended: Tended, engine: Dying, clock: Clock) -> float:
    engine.code, died, started = -9, clock.now, len(engine.ports)
    while len(engine.ports) == started:
        tended.tend()
        clock.now += 0.25
    return clock.now - died - 0.25


def test_a_dead_engine_is_started_where_it_was_and_later_each_time() -> None:
    engine, clock = Dying(), Clock()
    tended = Tended(engine, clock)  # type: ignore[arg-type]
    tended.tend()
    assert engine.ports == []
    pauses = [seconds_until_it_is_started(tended, engine, clock) for _ in range(10)]
    assert pauses[:4] == [FIRST_SECONDS * 2**n for n in range(4)]
    assert pauses[-2:] == [MOST_SECONDS, MOST_SECONDS]
    assert set(engine.ports) == {4711}


def test_one_that_has_lived_long_is_started_again_soon() -> None:
    engine, clock = Dying(), Clock()
    tended = Tended(engine, clock)  # type: ignore[arg-type]
    for _ in range(5):
        seconds_until_it_is_started(tended, engine, clock)
    clock.now += STEADY_SECONDS + 1
    assert seconds_until_it_is_started(tended, engine, clock) == FIRST_SECONDS


def test_one_that_does_not_start_is_tried_again() -> None:
    engine, clock = Dying(), Clock()
    tended = Tended(engine, clock)  # type: ignore[arg-type]
    engine.error = "no memory"
    seconds_until_it_is_started(tended, engine, clock)
    started = len(engine.ports)
    while len(engine.ports) < started + 3:
        tended.tend()
        clock.now += 1
    assert clock.now < 20


def test_a_local_model_without_a_name_left_is_told_at_the_start():
    taken = {name: {"url": "http://a", "models": [name]} for name in LOCAL_UPSTREAM}
    with pytest.raises(LLMMemoryError, match="upstreams: leave one of the names local, local-model, local-engine"):
        joined(config(upstream="local", upstreams=taken), URL, "tiny", ModelSection())
