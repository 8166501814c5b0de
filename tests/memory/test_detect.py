"""Secrets are known by their shape; words about secrets are none; no text takes long."""

import itertools
import random
import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.detect import SHAPES, secrets_in


def drawn(length, letters=string.ascii_letters + string.digits, seed=7):
    """As a generator draws keys; no real key stands in this file."""
    return "".join(random.Random(f"{seed}{length}{letters}").choices(letters, k=length))


CAPITALS = string.ascii_uppercase + string.digits
BODY = "\n".join(drawn(64, seed=n) for n in range(4))
JWT = f"eyJ{drawn(30)}.eyJ{drawn(60)}.{drawn(43)}"
PEM = f"-----BEGIN RSA PRIVATE KEY-----\n{BODY}\n-----END RSA PRIVATE KEY-----"

SECRETS = [
    ("openai key", f"sk-{drawn(48)}"), ("openai key", f"sk-proj-{drawn(60)}-_{drawn(20)}"),
    ("openai key", f"sk-svcacct-{drawn(58)}"), ("anthropic key", f"sk-ant-api03-{drawn(90)}-AA"),
    ("aws key", f"AKIA{drawn(16, CAPITALS)}"), ("aws key", f"ASIA{drawn(16, CAPITALS)}"),
    ("aws key", f"aws_secret_access_key = {drawn(40)}"), ("aws key", f'AWS_SECRET_ACCESS_KEY="{drawn(40)}'),
    ("github token", f"ghp_{drawn(36)}"), ("github token", f"gho_{drawn(36)}"),
    ("github token", f"github_pat_{drawn(22)}_{drawn(59)}"), ("gitlab token", f"glpat-{drawn(20)}"),
    ("slack token", f"xoxb-{drawn(11, string.digits)}-{drawn(24)}"), ("slack token", f"xapp-1-A{drawn(10, CAPITALS)}"),
    ("slack token", f"https://hooks.slack.com/services/T{drawn(9, CAPITALS)}/B{drawn(9, CAPITALS)}/{drawn(24)}"),
    ("google key", f"AIza{drawn(35)}"), ("stripe key", f"sk_live_{drawn(24)}"), ("npm token", f"npm_{drawn(36)}"),
    ("hugging face token", f"hf_{drawn(34, string.ascii_letters)}"), ("sendgrid key", f"SG.{drawn(22)}.{drawn(43)}"),
    ("jwt", JWT), ("bearer", f"earer {drawn(40)}"), ("private key", PEM),
    ("private key", PEM.replace("RSA ", "OPENSSH ")), ("private key", PEM.replace("RSA ", "")),
    ("private key", PEM.replace("KEY", "KEY BLOCK").replace("RSA", "PGP")),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "secret"), SECRETS)
@pytest.mark.parametrize("around", ["{}", "key={}", 'x "{}", y', "ключ: {}\n", "a\n{}.", "({})", "\\n{}\\n", "ask-{}!"])
def test_a_secret_is_found_where_it_stands(kind, secret, around):
    if kind == "jwt" and around.startswith("ask-"):
        around = "ask {}!"  # its own letters may hold a hyphen, so it begins behind none
    text = around.format(secret)
    if around == "\\n{}\\n":  # as it stands within JSON, where a letter of the escape is before it
        text = text.replace("\\n", "\\n ", 1)
    (found,) = secrets_in(text)
    assert found.kind == kind
    assert secret in text[found.start : found.stop] or (kind == "private key" and "END" in text[found.start :])


def test_a_private_key_in_json_and_one_that_lost_its_end():
    (found,) = secrets_in('{"key": "' + PEM.replace("\n", "\\n") + '"}')
    assert found.kind == "private key"
    (cut,) = secrets_in(PEM[:200])
    assert cut.stop == 200


def test_several_are_told_in_order():
    text = f"{JWT} then {PEM} then AKIA{drawn(16, CAPITALS)}"
    assert [found.kind for found in secrets_in(text)] == ["jwt", "private key", "aws key"]


HARMLESS = [
    "", "sk-", "the task-list-of-the-day-is-long-and-winding", "class='sk-loading-spinner-container-wrapper-inner'",
    "Authorization: Bearer <YOUR_TOKEN_HERE>", "Bearer authentication-is-required-for-this", "export OPENAI_API_KEY=sk-...",
    "sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", "sk-11111111111111111111111111", "AKIA is a prefix", "AKIAKIAKIAKIAKIA",
    'if "-----BEGIN PRIVATE KEY-----" in text:', "-----BEGIN CERTIFICATE-----\n" + BODY + "\n-----END CERTIFICATE-----",
    "-----BEGIN PUBLIC KEY-----\n" + BODY + "\n-----END PUBLIC KEY-----", "gh_actions and ghp_ tokens", "eyJhbGciOiJIUzI1NiJ9",
    "commit 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "550e8400-e29b-41d4-a716-446655440000",
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk", "risk-adjusted-return-on-capital-2024",
    "hf_hub_download", "from huggingface_hub import hf_hub_url_of_a_very_long_function_name", "npm_config_registry", "SG.1",
    "xox-games", "https://hooks.slack.com/services/", "AIza is how they begin", "glpat-", "disk-usage-report-of-node-17-in-rack-4",
]  # fmt: skip


@pytest.mark.parametrize("text", HARMLESS)
def test_words_about_secrets_are_none(text):
    assert secrets_in(text) == ()


@given(st.text(max_size=300))
def test_places_are_within_the_text_and_apart(text):
    found = secrets_in(text + f" sk-{drawn(48)} " + text)
    assert all(0 <= one.start < one.stop <= 2 * len(text) + 60 for one in found)
    assert all(a.stop <= b.start for a, b in itertools.pairwise(found))


HOSTILE = ["-", "a", "sk-", "eyJ", "eyJaaaaaaaaaa.", f"{'a' * 39} ", "-----BEGIN ", "-----BEGIN PRIVATE KEY-----",
           "-----BEGIN PRIVATE KEY----- " + "a" * 39 + " ", "sk-1aaaaaaaaaaaaaaaaaaZ ", "gh", "ghp_", "AKIA", "earer ",
           "earer aaaaaaaaaaaaaaaaaaaaaaa ", "aws_secret_access_key", "SG.", "SG.aaaaaaaaaaaaaaaaaaaaaa.", "AIza",
           "".join(shape.begins for shape in SHAPES), "https://hooks.slack.com/services/TAAAAAA/"]  # fmt: skip


@pytest.mark.parametrize("unit", HOSTILE)
def test_time_grows_with_length_alone(unit):
    """Four times the text may take four times as long, and some noise; a square would take sixteen times."""

    def seconds(length):
        text = (unit * (length // len(unit) + 1))[:length]
        tries = []
        for _ in range(3):
            start = time.thread_time()
            secrets_in(text)
            tries.append(time.thread_time() - start)
        return min(tries)

    short, long = seconds(250_000), seconds(1_000_000)
    assert long < 3  # seconds; 0.2 on a quick machine
    assert long < 8 * short + 0.02
