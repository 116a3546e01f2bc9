"""The page holds what it is given, and nothing of it becomes markup."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from rekd_edge.errors import UsageError
from rekd_edge.report.page import fit_page, render_page
from tests.report_content import FILE, HOSTILE, make_content

VOID = {"meta", "link", "br", "image", "use", "path", "rect", "circle"}
SECTIONS = (
    "summary",
    "lineage",
    "accuracy",
    "examples",
    "confidence",
    "latency",
    "front",
    "checks",
    "training",
)


class Elements(HTMLParser):
    """Every element with its attributes; ``open`` must be empty in the end."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("modality", ["text", "image"])
def test_hostile_text_stays_text(modality: str) -> None:
    page = Elements(render_page(make_content(modality)))
    assert page.open == []
    names = {tag for tag, _ in page.found}
    assert not names & {"script", "img", "iframe", "object", "form", "input", "i"}
    for tag, attributes in page.found:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        for name in ("src", "href"):
            address = attributes.get(name)
            assert address is None or re.match(r"#[a-z0-9-]+$|data:(image/(png|jpeg);|,)", address)
    assert "<script>alert(1)</script>" in page.text
    assert "{{ 7*7 }}" in page.text
    assert "\x1b" not in page.text
    assert "\u202e" not in page.text


def test_the_policy_forbids_everything_but_this_style_and_these_pictures() -> None:
    text = render_page(make_content("image"))
    page = Elements(text)
    policy = next(
        a["content"] for t, a in page.found if "content-security-policy" in str(a).lower()
    )
    assert policy is not None
    style = re.search("<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'",
        f"style-src 'sha256-{digest}'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_every_section_every_table_and_every_figure_says_what_it_is() -> None:
    text = render_page(make_content("image"))
    page = Elements(text)
    sections = [a["id"] for tag, a in page.found if tag == "section"]
    assert tuple(sections) == SECTIONS
    linked = {a["href"] for tag, a in page.found if tag == "a"}
    assert {f"#{name}" for name in SECTIONS} <= linked
    assert text.count("<table") == text.count("<caption>") > 5
    assert all(a.get("scope") in ("col", "row") for tag, a in page.found if tag == "th")
    for tag, attributes in page.found:
        if tag == "svg" and attributes.get("aria-hidden") != "true":
            assert attributes.get("role") == "img"
            assert attributes.get("aria-label")
    identities = [a["id"] for _, a in page.found if "id" in a]
    assert len(identities) == len(set(identities))


def test_what_is_missing_is_said_to_be_missing() -> None:
    content = make_content()
    empty = replace(
        content,
        primary=None,
        lineages=(),
        data=(),
        trainings=(),
        results=(),
        confidences=(),
        calibrations=(),
        benches=(),
        fronts=(),
        checks=(),
        groups=(),
    )
    page = render_page(empty)
    for name in SECTIONS[2:]:
        section = page[page.index(f'<section id="{name}"') :]
        assert "not measured" in section[: section.index("</section>")], name
    assert "0.0 %" not in page


def test_what_bundles_hold_of_calibration_is_shown_for_each() -> None:
    page = Elements(render_page(make_content())).text
    stored = page[page.index("Calibration and abstention stored") :]
    stored = " ".join(stored[: stored.index("How fast it is")].split())
    assert "1.3751,2340.1110.022987" in stored
    for words in (
        "share wrong at most 7.0 %; share of other rationales at most 3.0 %",
        "wrong at most 6.9 %, with confidence 85.0 %; "
        "other rationales at most 2.8 %, with confidence 85.0 %",
        "151 of 987 with probability below 0.625; 17 of 987 with margin below 0.03125",
    ):
        assert words in stored
    for figure in ("83.4 %", "4.6 %", "1.2 %"):
        assert figure in stored
    assert stored.count("not measured") == 2  # the bundle without one, in both tables
    assert page.count("withheld: confidence, margin") == 2  # the file's answers, not the student's


def test_a_bundle_without_calibration_keeps_not_measured() -> None:
    content = replace(make_content(), calibrations=((HOSTILE, None),))
    page = Elements(render_page(content)).text
    stored = page[page.index("Calibration and abstention stored") :]
    stored = stored[: stored.index("How fast it is")]
    assert "not measured: no bundle of this page holds a calibration report" in stored


def test_a_calibration_without_thresholds_says_that_nothing_was_asked() -> None:
    content = make_content()
    found = content.calibrations[0][1]
    assert found is not None
    none = {"asked": {}, "promised": {}, "confidence_threshold": None, "margin_threshold": None}
    plain = replace(found, **none, coverage=1.0, rationale_risk=None)
    page = Elements(render_page(replace(content, calibrations=((FILE, plain),)))).text
    stored = page[page.index("other rationale among them") :]
    stored = " ".join(stored[: stored.index("How fast it is")].split())
    assert stored.endswith("nothing nothing 100.0 %4.6 %not measured none")


def test_differences_of_rationales_are_marked_and_said() -> None:
    page = render_page(make_content("text"))
    assert page.count('<mark class="only">') == 3  # two examples, and the legend
    assert page.count('<span class="missing">') == 3
    assert "against student &lt;i&gt;: only here: “rt(1”; not here: “er”" in page or (
        "only here: “" in page
    )
    pictures = render_page(make_content("image"))
    assert pictures.count('<rect class="patch only"') == 3  # two examples, and the legend
    assert pictures.count('<rect class="patch missing"') == 3
    assert "1 only here, 1 not here" in pictures


def test_a_large_page_loses_examples_and_says_so() -> None:
    content = make_content("image", examples=40)
    whole = len(render_page(content).encode())
    page, shown = fit_page(content, max_bytes=whole - 1)
    assert len(page.encode()) < whole
    assert shown.examples == 20
    assert "20 of 40 examples were left out" in page
    assert sum("examples were left out" in note for note in shown.notes) == 1
    smaller = fit_page(content, max_bytes=len(page.encode()) - 200)[1]
    assert smaller.notes[:-1] == content.notes
    assert smaller.notes[-1].startswith(f"{40 - smaller.examples} of 40 examples")
    assert fit_page(content, max_bytes=whole)[1].examples == 40
    with pytest.raises(UsageError, match="without any example"):
        fit_page(content, max_bytes=1000)
