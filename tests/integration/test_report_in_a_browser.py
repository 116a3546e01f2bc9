"""The page in a real browser: no network, no complaint, no scrolling sideways, keys, print."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rekd_edge.report.page import render_page
from rekd_edge.types import ProblemType
from tests.chromium import Page, open_page
from tests.report_content import make_content

CONTRAST = """
(() => {
  const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const parse = (text) => [...text.match(/[\\d.]+/g).map(Number), 1].slice(0, 4);
  const behind = (element) => {
    let layers = [];
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour[3] > 0) layers.push(colour);
      if (colour[3] === 1) break;
    }
    return layers.reverse().reduce(
      (under, over) => under.map((u, i) => over[i] * over[3] + u * (1 - over[3])), [255, 255, 255]);
  };
  const poor = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || element.closest("svg")) continue;
    const style = getComputedStyle(element);
    const size = parseFloat(style.fontSize), bold = parseInt(style.fontWeight) >= 700;
    const [a, b] = [light(parse(style.color)), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const needed = size >= 24 || (size >= 18.66 && bold) ? 3 : 4.5;
    if (ratio < needed) poor.push([element.className, ratio, walk.currentNode.data.slice(0, 30)]);
  }
  return poor;
})()
"""
SIDEWAYS = "document.documentElement.scrollWidth > document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with open_page() as page:
        yield page


PAGES: dict[str, ProblemType] = {
    "text": "single_label_classification",
    "image": "single_label_classification",
    "labels-image": "multi_label_classification",
    "values-text": "regression",
}


@pytest.fixture(scope="module", params=PAGES)
def shown(
    request: pytest.FixtureRequest,
    browser: Page,
    tmp_path_factory: pytest.TempPathFactory,
) -> Page:
    """A page of hostile texts, open."""
    file: Path = tmp_path_factory.mktemp("page") / f"{request.param}.html"
    modality, problem = request.param.split("-")[-1], PAGES[request.param]
    content = make_content(modality, examples=4, problem=problem)
    file.write_text(render_page(content), encoding="utf-8")
    browser.media()
    browser.resize(1280)
    browser.open(file.as_uri())
    return browser


def test_it_asks_for_nothing_and_complains_of_nothing(shown: Page) -> None:
    shown.evaluate("new Promise((done) => setTimeout(done, 200))")
    asked = [url for url in shown.requests() if not url.startswith("data:")]
    assert len(asked) == 1
    assert asked[0].endswith(".html")
    assert shown.complaints() == []
    assert shown.evaluate("document.scripts.length") == 0
    assert shown.evaluate("[...document.images].length") == 0


def test_its_own_policy_holds(shown: Page) -> None:
    """A script or a request that got in after all would not run."""
    blocked = shown.evaluate(
        """new Promise((done) => {
          const seen = [];
          const note = (event) => seen.push(event.effectiveDirective);
          document.addEventListener("securitypolicyviolation", note);
          const script = document.createElement("script");
          script.textContent = "window.broken = true";
          document.body.append(script);
          const image = document.createElement("img");
          image.src = "http://127.0.0.1:9/x.png";
          document.body.append(image);
          const style = document.createElement("style");
          style.textContent = "body { display: none }";
          document.head.append(style);
          setTimeout(() => {
            [script, image, style].forEach((element) => element.remove());
            done([seen.sort(), !!window.broken]);
          }, 300);
        })"""
    )
    assert blocked == [["img-src", "script-src-elem", "style-src-elem"], False]


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_nothing_scrolls_sideways(shown: Page, width: int) -> None:
    shown.resize(width, mobile=width < 500)
    assert shown.evaluate("innerWidth") == width
    assert shown.evaluate(SIDEWAYS) is False


@pytest.mark.parametrize("dark", [False, True])
def test_contrasts(shown: Page, dark: bool) -> None:
    shown.resize(1280)
    shown.media(dark=dark)
    assert shown.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") is dark
    assert shown.evaluate(CONTRAST) == []
    paper = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(18, 21, 24)" if dark else "rgb(255, 255, 255)")


def test_the_keyboard_reaches_sections_and_wide_tables(shown: Page) -> None:
    shown.media()
    shown.resize(360, mobile=True)
    shown.evaluate("document.activeElement.blur(), scrollTo(0, 0)")
    reached = []
    for _ in range(60):
        shown.press("Tab", 9)
        reached.append(
            shown.evaluate(
                "(e => e === document.body ? ''"
                " : e.getAttribute('href') || e.className || e.tagName)(document.activeElement)"
            )
        )
        if not reached[-1]:
            break
    assert reached[0] == "#summary"
    assert {"#lineage", "#examples", "#training"} <= set(reached)
    assert "scroll" in reached
    assert "SUMMARY" in reached


def test_pictures_are_drawn_and_named(shown: Page) -> None:
    shown.media()
    shown.resize(1280)
    panels = shown.evaluate(
        "[...document.querySelectorAll('.panel')].map((p) => p.getBoundingClientRect().width)"
    )
    is_image = shown.evaluate("location.pathname.endsWith('image.html')")
    assert len(panels) == (12 if is_image else 0)
    assert all(width > 80 for width in panels)
    tree = shown.send("Accessibility.getFullAXTree")["nodes"]
    images = [n for n in tree if n.get("role", {}).get("value") in ("image", "img")]
    named = [n["name"]["value"] for n in images if not n.get("ignored")]
    assert named
    assert all(named)


def test_it_prints(shown: Page) -> None:
    shown.media(kind="print", dark=True)
    assert shown.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    shown.media()
    document = shown.pdf()
    assert document.startswith(b"%PDF-")
    assert len(document) > 20_000
