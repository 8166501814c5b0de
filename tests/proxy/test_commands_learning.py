"""`infold slm learning, train, adapters, rollback`: a person lets a model learn, sees what came of it, takes it back."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time

import asyncpg
import pytest
from typer.testing import CliRunner

from memory.identify import key_tenant
from memory.nouns import Training
from memory.recorder import Recorder
from memory.spool import Spool
from memory.store import adapters
from memory.store.pool import Pool
from memory.store.secrets import load_pepper
from proxy.cli import cli
from proxy.commands.learning import happened
from tests.clock import NOON
from tests.memory.taught import record_talks
from tests.proxy.test_commands import infold, out, refused, surroundings, told  # noqa: F401
from tests.slm.small import small_model

SETTINGS = {"INFOLD_SLM__LEARNING__ENABLED": "true", "INFOLD_TRAINABLE_OUTPUTS": "true"}
KEY = "sk-alice"


def in_database(dsn, work):
    """`await work(pool, tenant)`, as alice."""

    async def run():
        pool = Pool(dsn, 2, 30)
        await pool.open()
        try:
            async with pool.connection(30) as connection:
                tenant = key_tenant(await load_pepper(connection), KEY)
            return await work(pool, tenant)
        finally:
            await pool.close()

    return asyncio.run(run())


def talked(dsn, folder, many):
    """Conversations of alice's."""
    in_database(
        dsn, lambda pool, tenant: record_talks(Recorder(pool, Spool(folder / "turns", timeout_seconds=30)), many, tenant)
    )  # fmt: skip


@pytest.fixture
def allowed(infold, monkeypatch):  # noqa: F811
    """The command, where the operator allows learning."""
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    return infold


@pytest.mark.parametrize("command", ["learning", "train", "adapters", "rollback"])
def test_help_teaches(command):
    shown = CliRunner().invoke(cli, ["slm", command, "--help"])
    assert shown.exit_code == 0
    assert f"Example: infold slm {command}" in shown.stdout


def test_it_is_off_until_somebody_turns_it_on(allowed):
    assert re.search(r"learning +off", out(allowed("slm", "learning")))
    assert "slm learning on" in refused(allowed("slm", "train"), 1)
    assert re.search(r"learning +on", out(allowed("slm", "learning", "on")))
    state = told(allowed("slm", "learning", "--json"))["learning"]
    assert (state["enabled"], state["allowed"], state["trigger"]) == (True, True, "manual")
    assert re.search(r"learning +off", out(allowed("slm", "learning", "off")))
    assert "must be on or off, got 'maybe'" in refused(allowed("slm", "learning", "maybe"), 2)


def test_what_the_operator_does_not_allow_is_told(infold):  # noqa: F811
    assert re.search(r"allowed by the operator +no", out(infold("slm", "learning", "on")))
    assert "slm.learning.enabled" in refused(infold("slm", "train"), 1)


def test_too_little_is_told_with_what_is_needed(allowed, dsn, tmp_path):
    talked(dsn, tmp_path, 1)
    out(allowed("slm", "learning", "on", "--past"))
    assert "8 messages may be learnt from, and 50 are needed" in refused(allowed("slm", "train"), 1)


def test_without_wait_a_training_is_left_to_a_server(allowed, dsn, tmp_path):
    talked(dsn, tmp_path, 2)
    out(allowed("slm", "learning", "on", "--past"))
    assert "waits: a running `infold serve`" in out(allowed("slm", "train", "--force"))
    assert re.search(r"queued +manual", out(allowed("slm", "learning")))


def test_a_training_that_comes_to_nothing_says_why_and_stands_in_the_history(allowed, dsn, tmp_path):
    talked(dsn, tmp_path, 2)
    out(allowed("slm", "learning", "on", "--past"))
    failed = allowed("slm", "train", "--force", "--wait")
    assert failed.exit_code == 1
    assert "failed: the weights of smollm2-135m-instruct are not there" in failed.stdout
    assert "the weights of smollm2-135m-instruct are not there" in out(allowed("slm", "learning"))


TOLD = {"step": 8, "steps": 24}
DIED = "the trainer died"


@pytest.mark.parametrize(
    ("state", "metrics", "error", "is_measured", "words"),
    [
        ("queued", {}, None, False, ""),
        ("running", TOLD, None, False, "8 of 24 steps"),
        ("running", TOLD, DIED, False, "8 of 24 steps; try 2: the trainer died"),
        ("running", TOLD, None, True, "8 of 24 steps; is measured against what there is"),
        ("queued", TOLD, DIED, False, DIED),
        ("refused", TOLD, "canaries said", False, "canaries said"),
        ("done", TOLD | {"last_loss": 0.5, "seconds": 9.0}, None, False, "8 of 24 steps, loss 0.5, 9 s"),
    ],
)
def test_a_training_that_runs_says_how_far_it_is_also_after_a_trainer_died(state, metrics, error, is_measured, words):
    made = Training(
        id="a", state=state, why="manual", force=False, samples=9, tries=2, recipe={}, seed=0, metrics=metrics,
        error=error, queued_at=NOON, begun_at=NOON, ended_at=None,
    )  # fmt: skip
    assert happened(made, is_measured) == words


def test_adapters_come_with_the_table_of_the_gate_and_a_rollback_says_who_reads(allowed, dsn):
    line = {"rule": "canaries said", "against": "base", "before": 0, "after": 1, "bound": "0", "held": False}
    verdict = {"passed": False, "reasons": ["canaries said against base: 0 -> 1, must be 0"], "table": [line]}

    async def add(pool, tenant):
        from memory.identify import new_id

        async with pool.tenant(tenant) as connection:
            for number, state in ((1, "refused"), (2, "active")):
                id = new_id()
                more = {"verdict": json.dumps(verdict)} if number == 1 else {"folder": "adapters/x/y/2"}
                await adapters.begin_adapter(connection, tenant, id, "base", "none", (), NOON)
                await adapters.set_state(connection, tenant, id, state, ["training"], NOON, number=number, **more)

    out(allowed("slm", "learning", "on"))
    assert out(allowed("slm", "adapters")).startswith("No adapter yet")
    in_database(dsn, add)
    shown = out(allowed("slm", "adapters"))
    assert re.search(r"refused +no .* canaries said against base: 0 -> 1, must be 0", shown)
    assert re.search(r"canaries said +base +0 +1 +0 +no", shown)
    assert told(allowed("slm", "adapters", "--json"))["count"] == 2
    assert out(allowed("slm", "rollback")) == "The bare model reads now."
    assert "the bare model reads" in refused(allowed("slm", "rollback"), 1)


def test_ctrl_c_saves_where_it_stands_and_the_same_command_goes_on(allowed, dsn, tmp_path):
    """The trainer is real; its model computes next to nothing."""
    small_model(tmp_path / "small")
    talked(dsn, tmp_path, 30)
    out(allowed("slm", "learning", "on", "--past"))
    recipe = {
        "epochs": 0,
        "max_steps": 100_000,
        "save_steps": 1_000,
        "patience": 0,
        "replay_share": 0,
        "row_tokens": 4_000,
    }
    more = {"INFOLD_SLM__MODEL": str(tmp_path / "small"), "INFOLD_SLM__LEARNING__RECIPE": json.dumps(recipe)}
    environment = {**os.environ, **surroundings(dsn, tmp_path), **SETTINGS, **more}
    command = [sys.executable, "-m", "proxy.cli", "slm", "train", "--wait", "--key", KEY]

    def cut():
        """Start it, and press Ctrl-C once it trains; gives its last checkpoint."""
        begun = "select exists (select from infold.trainings where state = 'running' and metrics like '%rows%')"
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as it:
            wait_until(dsn, begun, lambda: it.poll() is None)
            it.send_signal(signal.SIGINT)
            told, complaints = it.communicate(timeout=120)
        assert it.returncode == 130, (told, complaints)
        assert "goes on where it stood" in told
        (checkpoints,) = (tmp_path / "data" / "trainings").glob("*/run/checkpoints")
        return max(int(re.sub(r"\D", "", path.name)) for path in checkpoints.iterdir())

    first = cut()
    asyncio.run(execute(dsn, "update infold.trainings set metrics = '{}'"))
    second = cut()
    assert second >= first > 0


async def execute(dsn, query):
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def wait_until(dsn, query, is_alive, seconds=60):
    deadline = time.monotonic() + seconds
    while is_alive() and not asyncio.run(execute(dsn, query)):
        assert time.monotonic() < deadline
        time.sleep(0.2)
