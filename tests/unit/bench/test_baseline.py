"""Rules against a baseline, on reports of files that were really measured."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from typer.testing import CliRunner, Result

from rekd_edge.bench import BenchSettings, bench_files
from rekd_edge.bench.baseline import (
    METRICS,
    BundleRecord,
    Verdict,
    judge,
    parse_rules,
    read_baseline,
    values_of,
)
from rekd_edge.bench.timing import describe_machine
from rekd_edge.bench.verdict_output import junit_xml, markdown
from rekd_edge.check.inputs import LabelledBatch, examples_of
from rekd_edge.cli.app import app
from rekd_edge.errors import GateError, UsageError

SHORT = BenchSettings(min_duration_s=0.0, min_count=20, warmup_count=1, cold_starts=1)
DATA = {"name": "reviews", "sha256": "0" * 64, "test": "1500", "train": "4000"}
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def document(text_bundle: Path, text_batches: list[LabelledBatch]) -> dict[str, Any]:
    """As `rekd-edge bench BUNDLE --json` writes it."""
    file = text_bundle / "model.onnx"
    files = {"gathered": file, "plain": file}
    report = bench_files(files, examples_of(text_batches, 8), settings=SHORT, reference="plain")
    record = BundleRecord.of(
        name="tiny | <b>",
        target="onnx",
        precision="fp32",
        data=DATA,
        check={"metrics": {"accuracy": 0.75, "rationale_exact": 1.0, "max_logit_error": 1e-6}},
    )
    return json.loads(json.dumps(report.to_json() | {"bundle": record.model_dump()}))


def changed(document: dict[str, Any], *edits: Edit) -> dict[str, Any]:
    copied = copy.deepcopy(document)
    for edit in edits:
        edit(copied)
    return copied


def judged(
    document: dict[str, Any], before: dict[str, Any], tmp_path: Path, *rules: str
) -> Verdict:
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(before))
    baseline, parsed = read_baseline(path), parse_rules(rules)
    baseline.require_comparable(
        parsed, machine=document["machine"], data=document["bundle"]["data"]
    )
    return judge(parsed, document, baseline)


def set_p90(nanoseconds: int) -> Edit:
    def edit(document: dict[str, Any]) -> None:
        document["candidates"]["gathered"]["result_90_percentile_latency_ns"] = nanoseconds

    return edit


def set_accuracy(share: float) -> Edit:
    return lambda document: document["bundle"]["quality"].update(accuracy=share)


def test_every_metric_comes_from_a_report(document: dict[str, Any]) -> None:
    found = values_of(document)
    absent = {"score", "worst_class_accuracy", "label_agreement", "rationale_jaccard"}
    only_a_load_test = {
        "early_stopping_latency_ms",
        "samples_per_second",
        "energy_per_query_j",
        "coverage",
    }
    assert found.keys() == METRICS.keys() - absent - only_a_load_test
    file = document["candidates"]["gathered"]
    assert found["p90_latency_ms"] * 1e6 == file["result_90_percentile_latency_ns"]
    assert found["p99_9_latency_ms"] >= found["p50_latency_ms"] > 0
    assert found["accuracy"] == 75.0
    assert found["size_mb"] == file["size_bytes"] / 1e6
    assert found["ratio_to_plain"] == file["ratio"]["value"]


@pytest.mark.parametrize(
    ("rule", "before_ns", "now_ns", "passed"),
    [
        ("p90_latency_ms>+5%", 1_000_000, 1_050_000, True),
        ("p90_latency_ms>+5%", 1_000_000, 1_050_001, False),
        ("p90_latency_ms>=+5%", 1_000_000, 1_050_000, False),
        ("p90_latency_ms > +0.5", 1_000_000, 1_500_000, True),
        ("p90_latency_ms > +0.5", 1_000_000, 1_500_001, False),
        ("p90_latency_ms>-10%", 1_000_000, 950_000, False),
        ("p90_latency_ms>2", 1_000_000, 1_900_000, True),
        ("p90_latency_ms>2", 3_000_000, 2_100_000, False),
        ("p90_latency_ms<+0", 1_000_000, 999_999, False),
    ],
)
def test_a_rule_says_what_must_not_be(
    document: dict[str, Any], tmp_path: Path, rule: str, before_ns: int, now_ns: int, passed: bool
) -> None:
    before, now = changed(document, set_p90(before_ns)), changed(document, set_p90(now_ns))
    assert judged(now, before, tmp_path, rule).passed is passed


def test_accuracy_is_in_points(document: dict[str, Any], tmp_path: Path) -> None:
    before = changed(document, set_accuracy(0.7713333333333333))
    for share, passed in ((0.7663333333333333, True), (0.766, False), (0.8, True)):
        verdict = judged(changed(document, set_accuracy(share)), before, tmp_path, "accuracy<-0.5")
        assert verdict.passed is passed
    assert verdict.results[0].change == pytest.approx(2.8667, abs=1e-4)
    assert verdict.results[0].limit == pytest.approx(76.6333, abs=1e-4)


def test_what_was_not_measured_fails(document: dict[str, Any], tmp_path: Path) -> None:
    now = changed(document, lambda d: d["candidates"]["gathered"].update(cold_start=None))
    verdict = judged(now, document, tmp_path, "first_answer_s>+10%", "size_mb>+1%")
    assert verdict.failures == ("first_answer_s was not measured",)


def test_an_invalid_result_fails_its_times_alone(document: dict[str, Any], tmp_path: Path) -> None:
    invalid = {"result_validity": "INVALID", "result_invalid_reason": "quick"}
    now = changed(document, lambda d: d.update(invalid))
    verdict = judged(now, document, tmp_path, "p50_latency_ms>+900%", "accuracy<-0.5")
    assert [result.passed for result in verdict.results] == [False, True]
    assert "INVALID: quick" in verdict.failures[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("p90_latency>+5%", "there is no metric 'p90_latency'"),
        ("p90_latency_ms>5%", "needs a sign"),
        ("p90_latency_ms=+5%", "is no rule"),
        ("p90_latency_ms>+5 %%", "is no rule"),
        ("accuracy<", "is no rule"),
        ("", "is no rule"),
    ],
)
def test_rules_that_are_none(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_rules(["accuracy<-0.5", text])
    assert caught.value.hint is not None
    assert "p90_latency_ms" in caught.value.hint


def test_all_wrong_rules_are_named_at_once() -> None:
    with pytest.raises(UsageError, match=r"'speed>1'.*'what\?'"):
        parse_rules(["speed>1", "what?"])


@pytest.mark.parametrize(
    ("edit", "rule", "message"),
    [
        (lambda d: d["machine"].update(cpu="Cortex-A76"), "p90_latency_ms>+5%", "another machine"),
        (lambda d: d.update(threads=4), "p90_latency_ms>+5%", "another measurement: threads 4"),
        (lambda d: d.update(inputs="x.txt"), "ratio_to_plain>+5%", "another measurement: inputs"),
        (lambda d: d["bundle"]["data"].update(sha256="1"), "accuracy<-1", "another data: sha256"),
        (lambda d: d["bundle"]["data"].update(test="99"), "accuracy<-1", "another data: test"),
        (lambda d: d.pop("bundle"), "accuracy<-1", "has no accuracy"),
        (lambda d: d["bundle"]["quality"].clear(), "accuracy<-1", "has no accuracy"),
        (
            lambda d: d.update(result_validity="INVALID", result_invalid_reason="quick"),
            "p90_latency_ms>+5%",
            "INVALID: quick",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(
    document: dict[str, Any], tmp_path: Path, edit: Edit, rule: str, message: str
) -> None:
    before = changed(document, edit)
    with pytest.raises(UsageError, match=message):
        judged(document, before, tmp_path, rule)


def test_only_what_is_asked_for_must_be_comparable(
    document: dict[str, Any], tmp_path: Path
) -> None:
    before = changed(
        document,
        lambda d: d["machine"].update(cpu="Cortex-A76"),
        lambda d: d["bundle"]["data"].update(train="8000"),
    )
    verdict = judged(
        document, before, tmp_path, "accuracy<-0.5", "size_mb>+1%", "p90_latency_ms>1000"
    )
    assert verdict.passed


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"candidates": {}}', "\x00"])
def test_a_file_that_is_no_baseline(tmp_path: Path, content: str) -> None:
    path = tmp_path / "b.json"
    path.write_text(content)
    with pytest.raises(UsageError, match="is no result of a benchmark"):
        read_baseline(path)
    with pytest.raises(UsageError, match="No such file"):
        read_baseline(tmp_path / "none.json")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "1" + "0" * 400])
def test_numbers_that_are_not_finite_pass_no_gate(
    document: dict[str, Any], tmp_path: Path, number: str
) -> None:
    text = json.dumps(changed(document, set_p90(123_454_321))).replace("123454321", number)
    path = tmp_path / "baseline.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="is no result of a benchmark"):
        read_baseline(path)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_was_measured_has_to_be_finite(
    document: dict[str, Any], tmp_path: Path, number: float
) -> None:
    now = changed(document, set_accuracy(number))
    verdict = judged(now, document, tmp_path, "accuracy<-0.5")
    assert verdict.failures == ("accuracy was not measured",)


def test_junit_and_markdown(document: dict[str, Any], tmp_path: Path) -> None:
    before = changed(document, set_p90(1_000_000), set_accuracy(0.9))
    now = changed(
        document,
        set_p90(1_200_000),
        lambda d: d["bundle"].update(name="a\x00|<script>"),
        set_accuracy(0.9),
    )
    verdict = judged(now, before, tmp_path, "p90_latency_ms>+5%", "accuracy<-0.5")
    root = ET.fromstring(junit_xml(verdict))
    assert (root.get("tests"), root.get("failures")) == ("2", "1")
    cases = root.findall("./testsuite/testcase")
    assert [case.get("name") for case in cases] == ["p90_latency_ms>+5%", "accuracy<-0.5"]
    assert [case.find("failure") is not None for case in cases] == [True, False]
    failure = cases[0].find("failure")
    assert failure is not None
    assert "1.2 ms" in (failure.get("message") or "")
    text = markdown(verdict)
    assert text.startswith("### rekd-edge bench `a\x00|<script>`: 1 of 2 failed\n")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows[0] == (
        "| `p90_latency_ms>+5%` | 1 ms | 1.2 ms | +0.2 ms (+20.0%) | 1.05 ms | **FAILED** |"
    )
    assert rows[1].endswith("| passed |")


def rekd(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def test_the_command(text_bundle: Path, tmp_path: Path) -> None:
    """Files and messages of the whole way; the bundle holds no test accuracy."""
    texts = tmp_path / "texts.txt"
    texts.write_text("A dull and lifeless film.\nA wonderful cast.\n")
    measured = ["bench", str(text_bundle), "--inputs", str(texts), "--min-duration-s", "0"]
    measured += ["--min-count", "20", "--cold-starts", "0"]
    before = tmp_path / "before.json"
    first = rekd(*measured, "--json", str(before))
    assert first.exit_code == 0, first.output
    stated = json.loads(before.read_text())
    assert stated["bundle"] == {
        "name": "tiny",
        "target": "onnx",
        "precision": "fp32",
        "data": {"source": "csv", "train": "80"},
        "quality": {},
    }
    assert stated["machine"]["cpu"] == describe_machine()["cpu"]
    against = [*measured, "--baseline", str(before)]
    files = ["--junit", str(tmp_path / "j.xml"), "--markdown", str(tmp_path / "m.md")]
    kept = rekd(*against, "--fail-on", "size_mb>+0.1%", *files)
    assert kept.exit_code == 0, kept.output
    assert "all 1 held" in kept.stdout
    broken = rekd(*measured, "--fail-on", "size_mb>0.1", "--fail-on", "p50_latency_ms<0", *files)
    assert isinstance(broken.exception, GateError)
    assert broken.exception.exit_code == 3
    assert "size_mb is" in broken.exception.message
    assert ET.parse(tmp_path / "j.xml").getroot().get("failures") == "1"
    assert "1 of 2 failed" in (tmp_path / "m.md").read_text()
    alone = tmp_path / "alone.json"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(stated | {"threads": 64, "result_validity": "VALID"}))
    words = [*measured, "--baseline", str(other), "--json", str(alone)]
    refused = rekd(*words, "--fail-on", "p50_latency_ms>+5%").exception
    assert isinstance(refused, UsageError)
    assert "another measurement: threads 64 there" in refused.message
    assert json.loads(alone.read_text())["bundle"] == stated["bundle"]
    for words, message in (
        ([*against, "--fail-on", "accuracy<-0.5"], "has no accuracy"),
        ([*measured, "--fail-on", "p50_latency_ms>+5%"], "there is no --baseline"),
        ([*measured, "--junit", str(tmp_path / "j.xml")], "only for use with --fail-on"),
        (
            [*measured, "--fail-on", "size_mb>1", "--junit", str(tmp_path / "no" / "j")],
            "is not a folder",
        ),
        (["bench", "--suite", "latency", "--fail-on", "size_mb>1"], "--fail-on"),
    ):
        refused = rekd(*words).exception
        assert isinstance(refused, UsageError), words
        assert refused.exit_code == 2
        assert message in refused.message
