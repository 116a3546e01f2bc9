"""The page holds what it is given, and nothing of it becomes markup."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from rekd_edge.errors import UsageError
from rekd_edge.models.interactive import CASES
from rekd_edge.report.content import Box, ClassReach, ClassWise, Decision, Evidence, Regions, Span
from rekd_edge.report.kinds import kind_for
from rekd_edge.report.page import CASE_WORDS, fit_page, render_page
from rekd_edge.types import ProblemType
from tests.report_content import FILE, HOSTILE, LABELS, STUDENT, make_content

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


EVERY_KIND: list[tuple[str, ProblemType]] = [
    ("text", "single_label_classification"),
    ("image", "single_label_classification"),
    ("image", "multi_label_classification"),
    ("text", "regression"),
]


@pytest.mark.parametrize(("modality", "problem"), EVERY_KIND)
def test_hostile_text_stays_text(modality: str, problem: ProblemType) -> None:
    page = Elements(render_page(make_content(modality, problem=problem)))
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


@pytest.mark.parametrize(("modality", "problem"), EVERY_KIND)
def test_the_policy_forbids_everything_but_this_style_and_these_pictures(
    modality: str, problem: ProblemType
) -> None:
    text = render_page(make_content(modality, problem=problem))
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


@pytest.mark.parametrize(("modality", "problem"), EVERY_KIND)
def test_every_section_every_table_and_every_figure_says_what_it_is(
    modality: str, problem: ProblemType
) -> None:
    text = render_page(make_content(modality, problem=problem))
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
    assert "{{ " not in text.replace("{{ 7*7 }}", "")
    identities = [a["id"] for _, a in page.found if "id" in a]
    assert len(identities) == len(set(identities))


@pytest.mark.parametrize(
    "problem", ["single_label_classification", "multi_label_classification", "regression"]
)
def test_what_is_missing_is_said_to_be_missing(problem: ProblemType) -> None:
    content = make_content(problem=problem)
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
        said = "not measured"
        if problem == "regression" and name == "confidence":
            said = "Nothing says how sure a value is"
        assert said in section[: section.index("</section>")], name
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


def test_regions_are_named_where_they_are_kept() -> None:
    """Beside a student that keeps single patches; the upper left quarter of the image is one."""
    content = make_content("image", examples=1)
    (group,) = content.groups
    (example,) = group.examples
    student, file = example.answers
    quarter = replace(file, evidence=(Box(0, 0, 0.5, 0.5),), kept=1, candidates=4, regions=True)
    answers = (student, quarter)
    groups = (replace(group, examples=(replace(example, answers=answers),)),)
    page = render_page(replace(content, groups=groups, unit="region", regions=Regions(2, 1, 4)))
    assert Elements(page).open == []
    assert "keeps 1 of its 4 regions (blocks of 2 x 2 patches)" in section(page, "summary")
    shown = section(page, "examples")
    assert "2 of 9 patches" in shown
    assert f"1 of 4 regions; against {STUDENT}: 1 region only here, 1 patch not here" in shown
    names = [a["aria-label"] or "" for t, a in Elements(page).found if t == "svg" and "role" in a]
    (named,) = (name for name in names if name.startswith(f"{FILE} kept"))
    assert named.endswith(
        "1 of 4 regions of test image 0; at 25 % from the left and 25 % from the top"
    )
    places = 'x="0.80" y="0.80" width="48.40" height="48.40"'
    assert f'<rect class="patch only" {places}/>' in page
    same = replace(quarter, model=STUDENT, label=LABELS[1], reference=None)
    groups = (replace(group, examples=(replace(example, answers=(same, quarter)),)),)
    assert f"same regions as {STUDENT}" in section(
        render_page(replace(content, groups=groups)), "examples"
    )


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


def section(page: str, name: str) -> str:
    """Its text, in one line."""
    start = page.index(f'<section id="{name}"')
    return " ".join(
        Elements(page[start : page.index("</section>", start)] + "</section>").text.split()
    )


def test_several_labels_are_counted_one_by_one() -> None:
    """The file gives the first example both labels and the second none; true are one and both."""
    page = render_page(make_content("image", problem="multi_label_classification"))
    right = section(page, "accuracy")
    bad, good = LABELS
    # Micro F1 2 * 1 / (2 + 3), macro (2 / 3 + 0) / 2, nothing all right.
    assert f"{FILE}0.400" in right
    assert "0.333" in right
    # Prevalence, precision, recall, F1, and the four counts.
    assert f"{bad}100.0 %100.0 %50.0 %0.6671100" in right
    assert f"{good}50.0 %0.0 %0.0 %0.0000110" in right
    # Of the two examples the first has the student's labels.
    assert f"{FILE} {STUDENT}50.0 %" in right or f"{FILE}{STUDENT}50.0 %" in right
    sure = section(page, "confidence")
    assert "Calibration error of each label" in page
    assert "An answer is as sure as the label that it is least sure of" in sure
    shown = section(page, "examples")
    assert f"true labels {bad} " in shown
    assert f"true labels {bad}, {good} " in shown
    assert f"✓ {bad} 0.881 ✗ {good} 0.731 extra" in shown
    assert f"✗ {bad} 0.269 missing ✗ {good} 0.269 missing" in shown
    assert "withheld: confidence, margin" in shown


def test_values_stand_beside_the_truth_in_their_unit() -> None:
    page = render_page(make_content(problem="regression"))
    near = section(page, "accuracy")
    bad, good = LABELS
    # Errors of the file: -0.25 and -0.5; +500 and -1000.
    assert "0.3750" in near
    assert "750.0" in near
    assert "790.6" in near  # the root of (500^2 + 1000^2) / 2
    # It is 0 and 0.5 away from the student in the first target, nowhere in the second.
    assert f"{FILE}{STUDENT}{bad}0.25001.000" in near
    assert f"{FILE}{STUDENT}{good}01.000" in near
    shown = section(page, "examples")
    assert f"true values {bad} 1.500, {good} 2,000 " in shown
    assert f"{bad} 1.250 error -0.2500 {good} 2,500 error +500.0" in shown
    assert f"{bad} 2.000 error -0.5000 {good} 7,000 error -1,000" in shown
    assert "right" not in shown
    assert "0." not in section(page, "confidence")  # no number that nobody has
    figures = [a["aria-label"] or "" for t, a in Elements(page).found if t == "svg" and "role" in a]
    assert any("By quarters of the examples" in figure for figure in figures)
    assert any("50 % at most" in figure for figure in figures)


@pytest.mark.parametrize(
    ("problem", "scores", "shown"),
    [
        (
            "multi_label_classification",
            {"f1_micro": 0.625, "f1_macro": 0.5, "accuracy": 0.25},
            "0.625not measured 0.500not measured 25.0 %not measured32",
        ),
        (
            "regression",
            {"r2": 0.625, "mean_absolute_error": 99.5, "root_mean_squared_error": 100.5},
            "0.625not measured32",
        ),
    ],
)
def test_what_a_report_recorded_has_no_interval(
    problem: ProblemType, scores: dict[str, float], shown: str
) -> None:
    """As of a bundle whose run is not there: nothing is worked out from what is not known."""
    recorded = {
        "overall": 0.625,
        "per_class": dict.fromkeys(LABELS, 0.625),
        "support": dict.fromkeys(LABELS, 16),
        "scores": scores,
    }
    result = kind_for(problem).recorded(FILE, "a report", recorded, 32)
    empty = {"confidences": (), "groups": (), "calibrations": ()}
    page = render_page(replace(make_content(problem=problem), results=(result,), **empty))
    assert Elements(page).open == []
    said = section(page, "accuracy")
    assert shown.replace(" ", "") in said.replace(" ", "")
    assert "no model could be run on the test split" in said
    assert "99.5" not in said  # the mean over two targets, whose units differ


def test_a_pair_and_whole_units_are_described() -> None:
    content = replace(make_content(), unit="sentence", two_students=True)
    summary = section(render_page(content), "summary")
    assert "keeps whole sentences, at most 20 % of its tokens" in summary
    assert "Two students of that kind answer together" in summary
    assert "which sentences are kept" in summary
    plain = section(render_page(make_content()), "summary")
    assert "keeps 20 % of its tokens" in plain
    assert "Two students" not in plain


@pytest.mark.parametrize(
    ("modality", "kept"),
    [
        ("text", "kept by {} alone: “<script>”, “t(1)”"),
        (
            "image",
            "2 patches kept by {} alone: at 12 % from the left and 12 % from the top, "
            "at 62 % from the left and 62 % from the top",
        ),
    ],
)
def test_who_of_two_students_answered_is_said_beside_each_answer(modality: str, kept: str) -> None:
    content = make_content(modality, examples=1)
    (group,) = content.groups
    (example,) = group.examples
    student, file = example.answers
    parts: Evidence = (Box(0, 0, 0.25, 0.25), Box(0.5, 0.5, 0.25, 0.25))
    if modality == "text":
        parts = (Span(0, 8), Span(12, 16))

    def said(*decisions: Decision) -> str:
        answers = (
            replace(one, decision=decision)
            for one, decision in zip((student, file), decisions, strict=True)
        )
        groups = (replace(group, examples=(replace(example, answers=tuple(answers)),)),)
        page = render_page(replace(content, groups=groups))
        assert Elements(page).open == []
        return section(page, "examples")

    found = said(Decision("agree", True, ()), Decision("partner_convinces", False, parts))
    assert "Case agree: both students give this answer; answered by the student; " in found
    assert "answered by the student; the partner kept nothing else" in found
    assert "Case partner convinces: they disagreed, and only the rationale of the partner" in found
    assert f"answered by the partner; {kept.format('the student')}" in found
    assert "which of the two answers" in found
    found = said(Decision("first_convinces", True, parts), Decision("confidence", None, parts))
    assert "Case first convinces: they disagreed, and only the rationale of the student" in found
    assert f"answered by the student; {kept.format('the partner')}" in found
    assert "Case confidence: they disagreed, and both rationales convinced the other or" in found
    assert "answered by one of them (the file does not say which); " in found
    assert kept.format("the other one") in found
    assert "Case" not in section(render_page(content), "examples")


def test_every_case_of_two_students_has_words() -> None:
    assert tuple(CASE_WORDS) == CASES


def test_what_class_wise_rationales_are_worth_is_said() -> None:
    found = (
        ClassReach(LABELS[0], 0.901, 0.335, 60, 0.805, 0.25),
        ClassReach(LABELS[1], 0.95, 0.665, 0, None, None),
    )
    content = replace(make_content(), class_wise=(ClassWise(HOSTILE, 100, found, False),))
    page = render_page(content)
    assert Elements(page).open == []
    said = section(page, "class-wise")
    assert f"{LABELS[0]}90.1 %33.5 %6080.5 %25.0 %" in said
    assert f"{LABELS[1]}95.0 %66.5 %0--" in said
    assert "do not show such rationales" in said
    assert 'href="#class-wise"' in page
    assert 'id="class-wise"' not in render_page(make_content())
