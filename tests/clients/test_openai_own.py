"""The comparison of two runs of openai-python's own tests sees each difference."""

from pathlib import Path

import pytest

from tests.clients.openai_own import Run, described_in, differing, outcomes, parse

REPORT = """<testsuites><testsuite>
<testcase classname="tests.a" name="test_good"/>
<testcase classname="tests.a" name="test_bad"><failure message="x"/></testcase>
<testcase classname="tests.a" name="test_broken"><error message="x"/></testcase>
<testcase classname="tests.a" name="test_left"><skipped message="x"/></testcase>
</testsuite></testsuites>"""


def test_a_report_is_read(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    run = Run(dict(outcomes(report)))

    assert run.outcomes["tests.a::test_bad"] == run.outcomes["tests.a::test_broken"] == "failed"
    assert str(run) == "1 passed, 2 failed, 1 skipped"


def test_what_differs_is_named_even_where_a_test_is_absent() -> None:
    direct, through = Run({"a": "passed", "b": "passed", "c": "failed"}), Run({"a": "passed", "b": "failed"})

    assert differing(direct, direct) == []
    assert differing(direct, through) == [
        "b: passed directly, failed through Infold",
        "c: failed directly, absent through Infold",
    ]


def test_the_description_lies_in_the_checkout_or_is_named_there(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        described_in(tmp_path)
    (tmp_path / ".stats.yml").write_text("configured_endpoints: 1\nopenapi_spec_url: https://spec.example/openai.yml\n")
    assert described_in(tmp_path) == "https://spec.example/openai.yml"
    (tmp_path / "api_reference").mkdir()
    (tmp_path / "api_reference" / "openapi.transformed.yml").touch()
    assert described_in(tmp_path) == str(tmp_path / "api_reference" / "openapi.transformed.yml")


def test_what_follows_two_dashes_goes_to_pytest() -> None:
    given, rest = parse(["there", "--python", "py", "--", "-k", "responses"])

    assert (given.checkout, given.python, rest) == (Path("there"), "py", ["-k", "responses"])
