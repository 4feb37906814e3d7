"""The page of ``registry-gc report --html``: whole, harmless, and at work in a browser."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from playwright.sync_api import Browser, Page, ViewportSize

from demo_usage import made_up_report
from registry_gc.report.usage_document import UsageReport
from registry_gc.report.usage_html import page, write_page
from registry_gc.usage.figures import DAY
from registry_gc.usage.growth import Growth
from registry_gc.usage.waiting import Waiting
from servers.browser import chromium
from test_usage_report import HOSTILE

DESK, PHONE = ViewportSize(width=1280, height=900), ViewportSize(width=400, height=800)

# As `sha256sum` of dist/*.min.js in the npm packages; page/README.md has the versions.
D3 = {
    "d3-array": "468f7b9ed38d6322083da4d5ae9fa57d47784f964f16dcff96e413d16cc8f9d9",
    "d3-color": "41ebabc615acf63e5af87a1d565f16c3ce73f00c1394772a624780f7c6c7244b",
    "d3-format": "1322666da5c4c006a4ea248d7f03afc861fbfb4b1692ee695e4192b76328dceb",
    "d3-hierarchy": "971f374ce9fdbec711eb2358003e2bb755bff22ec6852dc5ebd59f987270db64",
    "d3-interpolate": "09b66887d084b49bf14c93867522e366ce846bee53b9f632c1c3a5e2b00f891a",
    "d3-scale": "d76988731b337e1fdd130912f4e8363b3d7895d83f0b7685c86d87ece50712e9",
    "d3-time-format": "93b3b6ff5438723409c6540ae7abe4ab975be11e7d3a78f0b7c0bf28491f7145",
    "d3-time": "0ca660b9dedd9ff16964146d792f2204927f8e72d6933a46199b41929cb539cc",
}


class Elements(HTMLParser):
    """The elements of a page, as a browser's parser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember it."""
        self.found.append((tag, dict(attrs)))


def test_d3_is_as_its_packages_have_it() -> None:
    folder = files("registry_gc.report").joinpath("page")
    found = {
        item.name.removesuffix(".min.js"): hashlib.sha256(item.read_bytes()).hexdigest()
        for item in folder.iterdir()
        if item.name.endswith(".min.js")
    }
    assert found == D3
    assert "Permission to use, copy, modify" in folder.joinpath("LICENSE.d3").read_text()


def test_the_page_names_nothing_that_it_would_have_to_load() -> None:
    elements = Elements(page(made_up_report(5))).found
    for tag, attributes in elements:
        assert tag not in {"iframe", "object", "embed", "img", "base"}
        assert "src" not in attributes
        if tag == "link":
            assert attributes["href"] == "data:,"


def test_hostile_names_are_no_elements() -> None:
    calm, hostile = (
        [tag for tag, _ in Elements(page(made_up_report(5, names=names))).found]
        for names in ((), HOSTILE)
    )
    assert hostile == calm


def test_a_hostile_root_is_no_element() -> None:
    report = made_up_report(2)
    calm = [tag for tag, _ in Elements(page(report)).found]
    hostile = UsageReport("s3", "</title><script>alert(1)</script>\udcff", *_rest(report))
    assert [tag for tag, _ in Elements(page(hostile)).found] == calm
    page(hostile).encode("utf-8")


def _rest(report: UsageReport) -> Any:
    return report.usage, report.growth, report.top


def test_the_policy_allows_this_script_and_this_style_only() -> None:
    text = page(made_up_report(2))
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert "default-src &#x27;none&#x27;" in policy
    assert "unsafe" not in policy
    assert policy.count("sha256-") == 2


# --- in a browser -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for all tests."""
    with chromium() as running:
        yield running


Open = Callable[..., Page]


@pytest.fixture
def visit(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """Opens the page of a report; an error in it, or a request of it, fails the test."""
    troubles: list[str] = []
    contexts = []

    def opened(report: UsageReport, viewport: ViewportSize = DESK, scheme: Any = "light") -> Page:
        path = tmp_path / "usage.html"
        write_page(str(path), report)
        context = browser.new_context(
            viewport=viewport, color_scheme=scheme, reduced_motion="reduce"
        )
        contexts.append(context)
        shown = context.new_page()
        shown.on("pageerror", lambda error: troubles.append(str(error)))
        shown.on("console", lambda message: troubles.append(message.text))
        shown.on("dialog", lambda dialog: troubles.append(dialog.message))
        shown.on(
            "request",
            lambda request: (
                None if request.url.startswith(("file:", "data:")) else troubles.append(request.url)
            ),
        )
        shown.goto(path.as_uri())
        return shown

    yield opened
    for context in contexts:
        context.close()
    assert troubles == []


def names_shown(shown: Page) -> list[str]:
    """The first cells of the rows that are in the table of all repositories."""
    cells = shown.locator("#all tbody tr:not(.gap) td.first").all_inner_texts()
    return [cell.strip() for cell in cells]


def colour_of(shown: Page, selector: str, what: str) -> tuple[int, ...]:
    """A computed colour as red, green, blue."""
    text = shown.eval_on_selector(selector, f"e => getComputedStyle(e).{what}")
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_the_page_fits_and_draws_everything(
    visit: Open, tmp_path: Path, viewport: ViewportSize, scheme: str
) -> None:
    shown = visit(made_up_report(180), viewport, scheme)
    assert shown.evaluate("document.documentElement.scrollWidth") == viewport["width"]
    assert shown.locator(".tile").count() == 6
    assert shown.locator("#map .cell").count() > 50
    assert shown.locator("#age rect.kept").count() == 8
    assert shown.locator("#growth .dot").count() == 27
    assert shown.locator("#growth rect.goes-now").count() == 4
    assert shown.locator("#groups li").count() == 10
    back, front = (sum(colour_of(shown, "body", what)) for what in ("backgroundColor", "color"))
    assert (back > 600 > 300 > front) if scheme == "light" else (front > 600 > 150 > back)
    picture = tmp_path / "page.png"
    shown.screenshot(path=picture, full_page=True)
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert picture.stat().st_size > 30_000  # a blank page takes a tenth of it


def test_the_theme_is_the_systems_until_another_is_chosen(visit: Open) -> None:
    shown = visit(made_up_report(3), scheme="dark")
    dark = colour_of(shown, "body", "backgroundColor")
    shown.click("#theme")
    light = colour_of(shown, "body", "backgroundColor")
    assert sum(light) > sum(dark)
    assert shown.inner_text("#theme") == "Theme: light"
    shown.reload()
    assert colour_of(shown, "body", "backgroundColor") == light
    shown.click("#theme")
    assert colour_of(shown, "body", "backgroundColor") == dark
    shown.click("#theme")
    assert shown.inner_text("#theme") == "Theme: system"


def test_hostile_names_are_shown_as_text_and_run_nothing(visit: Open) -> None:
    shown = visit(made_up_report(0, names=HOSTILE))
    assert len(names_shown(shown)) == len(HOSTILE)
    assert "<script>alert(1)</script>" in names_shown(shown)
    assert r"no-utf8-\xff\xfe" in names_shown(shown)
    assert shown.locator("main img, main script").count() == 0
    assert shown.evaluate("document.title").startswith("Registry storage")


def test_ten_thousand_repositories_are_few_elements(visit: Open) -> None:
    shown = visit(made_up_report(10_000))
    total = len({*_all_names(shown)})
    assert total > 9_000
    assert shown.inner_text("#all-count") == f"{total:,} repositories"
    assert len(names_shown(shown)) < 60
    assert shown.evaluate("document.querySelectorAll('*').length") < 3_000
    assert shown.get_attribute("#all table", "aria-rowcount") == str(total + 1)


def _all_names(shown: Page) -> list[str]:
    found: list[str] = shown.evaluate(
        "JSON.parse(document.getElementById('data').textContent).repositories.map(r => r[0])"
    )
    return found


def test_scrolling_shows_every_row_in_its_place(visit: Open) -> None:
    shown = visit(made_up_report(10_000))
    shown.click("#all th.first button")
    names = sorted(_all_names(shown))
    for part in (0.0, 0.37, 1.0, 0.5):
        first = shown.evaluate(
            """async part => {
                const box = document.getElementById('all');
                box.scrollTop = part * box.scrollHeight;
                await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
                return Number(box.querySelector('tbody tr:not(.gap)').ariaRowIndex) - 2;
            }""",
            part,
        )
        shown_now = names_shown(shown)
        assert shown_now == names[first : first + len(shown_now)]
        in_sight = shown.evaluate(
            """() => {
                const box = document.getElementById('all').getBoundingClientRect();
                const at = document.elementFromPoint(box.left + 40, box.top + box.height / 2);
                return at.closest('tr').className;
            }"""
        )
        assert in_sight == ""  # a row, and no gap
    assert first > 0


def test_columns_sort_both_ways_and_say_so(visit: Open) -> None:
    shown = visit(made_up_report(500))
    header = shown.locator("#all th").nth(6)
    assert shown.locator("#all th[aria-sort]").get_attribute("aria-sort") == "descending"
    for way, wanted in (("descending", True), ("ascending", False)):
        header.locator("button").click()
        assert header.get_attribute("aria-sort") == way
        texts = shown.locator("#all tbody tr:not(.gap) td:nth-child(7)").all_inner_texts()
        numbers = [int(text.replace(",", "")) for text in texts]
        assert numbers == sorted(numbers, reverse=wanted)
        assert len(set(numbers)) > 1 or not wanted


def test_names_and_kinds_are_filtered(visit: Open) -> None:
    report = made_up_report(2_000)
    shown = visit(report)
    shown.fill("#all-filter", "SHOP api")
    wanted = [name for name in _all_names(shown) if "shop" in name and "api" in name]
    assert set(names_shown(shown)) <= set(wanted)
    assert shown.inner_text("#all-count").startswith(f"{len(wanted)} of ")
    shown.fill("#all-filter", f'"{wanted[0]}"')
    assert names_shown(shown) == [wanted[0]]
    shown.fill("#all-filter", "no such name")
    assert names_shown(shown) == []
    shown.fill("#all-filter", "")
    shown.select_option("#all-only", "year")
    a_year_ago = report.usage.made - 365 * DAY
    old = {one.name for one in report.usage.repositories if (one.newest or 0) < a_year_ago}
    assert shown.inner_text("#all-count").startswith(f"{len(old)} of ")
    assert set(names_shown(shown)) <= old
    shown.select_option("#all-only", "")
    shown.select_option("#all-what", "groups")
    assert "shop" in names_shown(shown)


def test_a_group_of_the_map_can_be_entered_and_left(visit: Open) -> None:
    shown = visit(made_up_report(3_000))
    shown.select_option("#map-path select", "payments")
    assert shown.locator("#map .group").count() == 0
    assert "payments" in shown.inner_text("#map-path")
    shown.click("#map-path button")
    assert shown.locator("#map .group").count() > 5
    shown.locator("#map .cell", has_text="more").first.click()
    assert shown.locator("#map-path button").count() == 1


def test_the_map_can_be_used_by_keyboard(visit: Open) -> None:
    shown = visit(made_up_report(50))
    assert shown.locator("#map .cell[tabindex='0']").count() == 1
    shown.locator("#map .cell[tabindex='0']").focus()
    shown.keyboard.press("ArrowRight")
    label = shown.evaluate("document.activeElement.getAttribute('aria-label')")
    shown.keyboard.press("Enter")
    name = label.split(", ")[0]
    assert shown.input_value("#all-filter") == f'"{name}"'
    assert names_shown(shown) == [name]


def test_everything_that_is_to_be_used_has_a_name(visit: Open) -> None:
    shown = visit(made_up_report(20))
    nameless = shown.evaluate(
        """() => [...document.querySelectorAll('button, select, input, [role], section, svg')]
            .filter(e => !(e.ariaLabel || e.getAttribute('aria-labelledby') || e.labels?.length
                || e.textContent.trim()))
            .map(e => e.outerHTML.slice(0, 80))"""
    )
    assert [html for html in nameless if 'role="status"' not in html] == []


def test_the_first_report_has_no_growth_yet(visit: Open) -> None:
    report = made_up_report(3)
    first = UsageReport("s3", "b", report.usage, Growth(report.growth.points[-1:], ()), 10)
    assert "One report so far" in visit(first).inner_text("#growth")


@pytest.mark.parametrize("reports", [12, 400])
def test_the_edges_of_many_dots_do_not_hide_the_line(visit: Open, reports: int) -> None:
    report = made_up_report(3)
    (last,) = report.growth.points[-1:]
    points = [replace(last, time=last.time - day * 86_400) for day in reversed(range(reports))]
    growth = Growth(tuple(points), ())
    shown = visit(UsageReport("s3", "b", report.usage, growth, 10))
    assert shown.locator("#growth .dot").count() == reports
    strokes = shown.evaluate(
        "[...document.querySelectorAll('#growth .dot')].map(dot => getComputedStyle(dot).stroke)"
    )
    assert {stroke == "none" for stroke in strokes} == {reports > 60}


def test_an_empty_registry_is_a_page_too(visit: Open) -> None:
    report = made_up_report(0)
    shown = visit(UsageReport("s3", "b", report.usage, Growth((), ()), 10))
    assert "Nothing here takes any room" in shown.inner_text("#map")
    assert names_shown(shown) == []


def test_what_waits_in_quarantine_is_a_tile(visit: Open) -> None:
    report = made_up_report(3)
    assert "quarantine" not in visit(report).inner_text("#tiles").lower()
    waiting = (Waiting("one", 2, 3000, 0, None), Waiting("two", 1, 1000, 5, None))
    tiles = visit(replace(report, waiting=waiting)).locator("#tiles .tile")
    (tile,) = [text for text in tiles.all_inner_texts() if "quarantine" in text.lower()]
    assert "4.0 kB" in tile
    assert "3 objects, and versions of 5 more, of 2 runs" in tile
