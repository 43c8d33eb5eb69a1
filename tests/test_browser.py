"""What an engineer sees: a real Chromium opens every link of `python -m search.ui` after two real sweeps.

The folder was copied after the sweeps and the original hidden: a moved record is shown as one that stayed. It needs
Debian's package chromium, or a Chrome; playwright's Python package only drives it, nothing is downloaded.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search.front.summary import Summary, read
from search.trial.record import colour
from tests.browsing import CHROMIUM, FLAGS, PATIENCE

pytestmark = [
    pytest.mark.cluster,  # two sweeps, a server, a browser
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt install chromium"),
    pytest.mark.timeout(900),  # the first test waits for two sweeps
]
# So few trials do not always tell two sweeps apart.
VERDICTS = "better|no difference beyond noise"


@pytest.fixture(scope="module")
def copied(studied: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the folder, while the original is not there."""
    copy = tmp_path_factory.mktemp("another checkout") / "mlruns"
    shutil.copytree(studied, copy, symlinks=True)
    hidden = studied.rename(studied.with_name(f"{studied.name}-hidden"))
    yield copy
    assert not studied.exists()
    hidden.rename(studied)


@pytest.fixture(scope="module")
def links(copied: Path) -> Iterator[dict[str, str]]:
    """Name of a view -> its address, as the running command prints them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "search.ui", f"root={copied}", f"port={port}"]
    env = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as running:
        assert running.stdout is not None
        found = {}
        for line in running.stdout:
            if match := re.match(r" *([\w -]+): (http\S+)$", line):
                found[match[1]] = match[2]
            if line.startswith("Ctrl-C"):
                break
        yield found
        running.terminate()
        assert running.wait(30) == 0


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Chromium with a new profile."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        profile = tmp_path_factory.mktemp("profile")
        opened = playwright.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, args=FLAGS.split(), viewport={"width": 1600, "height": 1900}
        )
        opened.set_default_timeout(PATIENCE)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    made = browser.new_page()
    yield made
    made.close()


@pytest.fixture(scope="module")
def summary(copied: Path) -> Summary:
    return read(copied, "smoke")


def scatters(page: Any, count: int, points: int) -> list[Counter[str]]:
    """How many points of which colour each scatter chart of the page shows; waits until all are drawn."""
    layers = page.locator(".js-plotly-plot:has(.scatterlayer .trace)")
    page.wait_for_function(
        """([charts, points]) => {
            const drawn = [...document.querySelectorAll('.js-plotly-plot')].filter(
                plot => plot.querySelector('.cartesianlayer .scatterlayer'));
            return drawn.length >= charts && drawn.slice(0, charts).every(
                plot => plot.querySelectorAll('.scatterlayer path.point').length === points);
        }""",
        arg=[count, points],
    )
    return [
        Counter(layers.nth(i).locator("path.point").evaluate_all("points => points.map(p => p.style.fill)"))
        for i in range(count)
    ]


def shades(rows: Any) -> Counter[str]:
    """The colours that the trials must have: their scheme's, faint behind the front."""
    found: Counter[str] = Counter()
    for scheme, on_front in zip(rows["quantization.scheme"], rows["on_front"], strict=True):
        shade = colour(scheme, faint=not on_front)
        found[f"rgb({int(shade[1:3], 16)}, {int(shade[3:5], 16)}, {int(shade[5:], 16)})"] += 1
    return found


def test_the_charts_show_every_trial_and_tell_the_front(links: dict[str, str], page: Any, summary: Summary) -> None:
    page.goto(links["smoke"])
    expected = shades(summary.complete)
    assert scatters(page, 2, len(summary.complete)) == [expected, expected]
    assert sum(expected[shade] for shade in shades(summary.front)) == len(summary.front)
    lines = page.locator("[data-testid='experiment-view-compare-runs-card']", has_text="Parallel Coordinates")
    assert lines.locator("canvas, svg").count() > 0
    names = set(page.locator("[data-testid='experiments-table-cell'], .ag-cell a").all_inner_texts())
    for title in ("dense fp32 (dense)", "int8 (ptq_int8)"):
        assert any(title in name for name in names), names


def test_the_first_visit_opens_the_charts_and_no_chat(links: dict[str, str], page: Any) -> None:
    assert next(iter(links)) == "smoke report", "our report comes first"
    page.goto(links["smoke"])
    page.locator("img.pare-front").wait_for()
    assert page.evaluate("localStorage.getItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1')") == "true"
    # Its button stays, with a label that shows when it is pointed at; the panel is shut.
    assert page.locator(":text-is('MLflow Assistant'):visible:not(.assistant-fab-label)").count() == 0
    page.goto(links["Start page"])
    page.wait_for_function("document.querySelector('img.front').naturalWidth > 500")


def test_the_first_view_shows_the_front_s_line_in_per_cent_and_kb(links: dict[str, str], browser: Any) -> None:
    """MLflow's scatter charts have no units: the picture above them has, and is shown in full size."""
    page = browser.new_page()
    page.set_viewport_size({"width": 1440, "height": 900})
    page.goto(links["smoke"])
    picture = page.locator("img.pare-front")
    picture.wait_for()
    page.wait_for_function("image => image.complete && image.naturalWidth > 900", arg=picture.element_handle())
    place = picture.bounding_box()
    assert place["width"] > 700
    assert place["y"] + place["height"] < 900, "it can be seen without scrolling"
    page.close()


def test_the_front_alone(links: dict[str, str], page: Any, summary: Summary) -> None:
    page.goto(links["front"])
    expected = shades(summary.front)
    assert scatters(page, 2, len(summary.front)) == [expected, expected]


def test_infeasible_trials_have_a_page_and_a_mark(links: dict[str, str], page: Any, summary: Summary) -> None:
    infeasible = summary.complete[~summary.complete["feasible"]]
    if infeasible.empty:
        assert "infeasible" not in links
        return
    page.goto(links["infeasible"])
    page.get_by_text(re.compile(rf"^{len(infeasible)} matching run")).wait_for()
    assert page.locator(".ag-cell a", has_text="[infeasible]").count() == len(infeasible)


def test_the_sweeps_page_shows_table_and_pictures(links: dict[str, str], page: Any) -> None:
    """Unfolded: nothing has to be clicked."""
    page.goto(links["sweep smoke-002"])
    for name in ("front", "compare"):
        picture = page.locator(f"img[src*='path={name}_small.png']")
        picture.wait_for()
        page.wait_for_function("image => image.naturalWidth > 500", arg=picture.element_handle())
        page.wait_for_function(
            "image => image.closest('div[class^=css]').clientHeight > 400", arg=picture.element_handle()
        )
    page.get_by_text(re.compile(f"smoke-002 against smoke-001: ({VERDICTS})")).first.wait_for()


def test_the_compare_page_shows_which_sweep_is_better(links: dict[str, str], page: Any) -> None:
    page.goto(links["settings of smoke-002 against smoke-001"])
    page.get_by_text("trials/trials").first.wait_for()
    # The table comes column by column: the names, then two values for each.
    lines = page.locator("body").inner_text().splitlines()
    lines = lines[lines.index("front/best_accuracy") :]
    names = lines[: lines.index("trials/trials") + 1]
    values = [float(text) for text in lines[len(names) : 3 * len(names)]]
    older, newer = dict(zip(names, values[::2], strict=True)), dict(zip(names, values[1::2], strict=True))
    assert newer["front/best_accuracy"] > older["front/best_accuracy"]
    assert newer["front/hypervolume_vs_first"] > 1.2 * older["front/hypervolume_vs_first"]
    page.get_by_text(re.compile(VERDICTS)).first.wait_for()


def test_the_overlay_shows_both_fronts_and_what_was_gained(
    copied: Path, links: dict[str, str], page: Any, summary: Summary
) -> None:
    older = read(copied, "smoke", "smoke-001")
    page.goto(links["smoke-002 against smoke-001"])
    page.locator(".scatterlayer path.point").first.wait_for()
    assert re.search(f"smoke-002 against smoke-001: ({VERDICTS})", page.locator("h1").inner_text())
    drawn = page.locator(".subplot.xy .scatterlayer path.point").evaluate_all("p => p.map(x => x.style.stroke)")
    counts = Counter(drawn)
    assert counts["rgb(122, 122, 122)"] == len(older.front)
    assert counts["rgb(0, 114, 178)"] == len(summary.front)
    assert 0 < counts["rgb(0, 158, 115)"] <= len(summary.front)


def test_training_curves_and_system_figures_are_there(links: dict[str, str], page: Any, summary: Summary) -> None:
    measured = summary.complete
    # A trial that shares another's result was not trained, and has no curves.
    trained = measured[(measured["finetuning.epochs"] > 0) & (measured["duplicate_of"] < 0)].iloc[-1]
    address = links["sweep smoke-002"].replace(str(summary.about["run_id"]), str(trained["run_id"]))
    page.goto(address.replace("?", "/model-metrics?"))
    page.get_by_text(re.compile(r"epoch/(loss|accuracy)|^loss$")).first.wait_for()
    page.goto(address.replace("?", "/system-metrics?"))
    page.get_by_text(re.compile("cpu_utilization")).first.wait_for()
    page.get_by_text(re.compile("peak_memory_mb")).first.wait_for()
