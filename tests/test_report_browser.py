"""The report in a real Chromium: desktop, phone, dark, paper, keyboard, and axe-core's rules of accessibility.

One browser start for all of it. It needs Debian's package chromium, or a Chrome; nothing is downloaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from search.front import page as pages
from search.front.summary import Summary, read
from search.tracking.uri import quiet
from tests import sweeps
from tests.browsing import CHROMIUM, FLAGS, PATIENCE
from tests.sweeps import failed, record

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt install chromium"),
    pytest.mark.timeout(300),
]
SCREENS: dict[str, tuple[int, int, Literal["light", "dark"]]] = {
    "desktop": (1440, 900, "light"),
    "phone": (390, 844, "light"),
    "dark": (1440, 900, "dark"),
}
RECORDS = [record(0, reference="dense"), *(record(n) for n in range(1, 18)), failed(18, "the loss became NaN")]


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    root = sweeps.store(tmp_path_factory.mktemp("mlruns"))
    with pytest.MonkeyPatch.context() as patched, quiet():
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        sweeps.sweep(root, "shown", RECORDS, ("accuracy", "latency_ms", "size_bytes"), (0.98, 0.132, 1.76e6))
        return read(root, "shown")


@pytest.fixture(scope="module")
def opened(summary: Summary, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Name of a screen -> the drawn page."""
    from playwright.sync_api import sync_playwright

    file: Path = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(pages.page(summary))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        found = {}
        for name, (width, height, scheme) in SCREENS.items():
            made = browser.new_context(
                viewport={"width": width, "height": height}, color_scheme=scheme, permissions=["clipboard-write"]
            ).new_page()
            made.set_default_timeout(PATIENCE)
            made.on("pageerror", lambda error: pytest.fail(f"the page's script: {error}"))
            made.goto(file.as_uri())
            made.locator("body[data-drawn=yes]").wait_for()
            found[name] = made
        yield found
        browser.close()


@pytest.mark.parametrize("screen", list(SCREENS))
def test_every_screen_fits_and_axe_finds_nothing_serious(opened: dict[str, Any], screen: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = opened[screen]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    found = [(v["impact"], v["id"], v["nodes"][0]["html"][:200]) for v in Axe().run(page).response["violations"]]
    assert not [each for each in found if each[0] in ("serious", "critical")]
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(22, 24, 28)" if screen == "dark" else "rgb(255, 255, 255)")


@pytest.mark.parametrize("screen", list(SCREENS))
def test_all_text_stands_out_of_what_is_behind_it(opened: dict[str, Any], screen: str) -> None:
    """Of the charts too, whose SVG axe leaves out: WCAG's contrast of each text's colour with the paper's."""
    shades = opened[screen].evaluate(
        """() => [...document.querySelectorAll(".chart text")].filter(text => text.textContent.trim()).map(
            text => [getComputedStyle(text).fill, text.textContent, text.closest(".barlayer") !== null])"""
    )
    assert len(shades) > 50
    behind = (22, 24, 28) if screen == "dark" else (255, 255, 255)
    for fill, text, on_bar in shades:
        if not on_bar:
            assert contrast(tuple(map(int, re.findall(r"\d+", fill)[:3])), behind) >= 4.5, (fill, text)


def contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """WCAG 2.2, relative luminance and contrast ratio."""

    def luminance(shade: tuple[int, ...]) -> float:
        parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in shade]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_points_are_walked_by_arrow_keys_and_say_what_they_are(opened: dict[str, Any], summary: Summary) -> None:
    page = opened["desktop"]
    chart = page.locator(".chart").first
    assert "on the front, from" in str(chart.get_attribute("aria-label"))
    stops = chart.locator("path.point[tabindex='0']")
    assert stops.count() == 1, "one stop of the Tab key for a chart"
    assert chart.locator("path.point[role=img]").count() == len(summary.complete)
    stops.focus()
    first = page.evaluate("document.activeElement.getAttribute('aria-label')")
    page.keyboard.press("ArrowRight")
    second = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert first != second
    number = int(re.findall(r"trial (\d+)", second)[-1])
    row = summary.trials[summary.trials["number"] == number].iloc[0]
    assert row["words"] in second
    assert chart.locator(".hoverlayer text").first.is_visible()
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == f"#trial-{number}"


def test_rows_are_filtered_sorted_and_their_command_is_copied(opened: dict[str, Any], summary: Summary) -> None:
    page = opened["desktop"]
    rows = page.locator("#trials tbody tr")
    page.locator(".filters").get_by_label("on the front").check()
    assert rows.locator("visible=true").count() == len(summary.front)
    page.locator(".filters").get_by_label("on the front").uncheck()
    page.locator(".filters").get_by_label("feasible").check()
    page.locator(".filters").get_by_label("quantization").select_option("qat_int8")
    kept = summary.complete[summary.complete["feasible"] & (summary.complete["quantization.scheme"] == "qat_int8")]
    assert rows.locator("visible=true").count() == len(kept)
    assert page.locator("output").inner_text() == f"{len(kept)} of {len(RECORDS)} shown"
    page.locator("#trials thead").get_by_role("button", name="Latency", exact=True).click()
    sorted_ms = kept.sort_values("latency_ms")["number"].tolist()
    ids = rows.locator("visible=true").evaluate_all("rows => rows.map(row => row.id)")
    assert ids == [f"trial-{number}" for number in sorted_ms]
    button = rows.locator("visible=true").first.locator("button.copy")
    assert button.get_attribute("title") == (f"python -m search.pick study=shown sweep=shown-001 trial={sorted_ms[0]}")
    button.click()
    page.wait_for_function("button => button.textContent === 'copied'", arg=button.element_handle())
    page.locator(".filters").get_by_label("feasible").uncheck()
    page.locator(".filters").get_by_label("quantization").select_option("")


def test_paper_shows_all_in_light_within_its_width(opened: dict[str, Any], tmp_path: Path) -> None:
    page = opened["dark"]
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.set_viewport_size({"width": 718, "height": 1000})  # A4 without its margins, in CSS pixels
    widths = page.locator(".chart .main-svg").evaluate_all("all => all.map(one => one.getBoundingClientRect().width)")
    assert max(widths) <= 718
    assert page.evaluate("document.documentElement.scrollWidth") <= 718
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator(".filters").is_visible()
    file = tmp_path / "report.pdf"
    page.pdf(path=file, format="A4")
    assert file.read_bytes().startswith(b"%PDF")
    assert json.loads(page.locator("script[type='application/json']").first.text_content())["data"]
