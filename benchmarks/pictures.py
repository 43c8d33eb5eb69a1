"""The README's pictures, made again of what is recorded: `make pictures` (needs Chromium and two sweeps of the study).

docs/front.png is the newest front as the report draws it; docs/ui_front.png and docs/ui_compare.png are MLflow's pages
of it as `python -m search.ui` serves them.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from search import ui
from search.command import ROOT, STUDY, Setting, Usage, command
from search.front.publish import write
from search.front.summary import read
from search.tracking import views
from search.tracking.uri import TrackingError

HELP = Usage(
    "benchmarks.pictures",
    "The README's pictures, made again of a recorded study.",
    "[SETTING=VALUE ...]",
    {"Settings": (STUDY, ROOT, Setting("out", "the folder they are written to", "docs", "FOLDER"))},
    (("study=mnist_prune", "docs/front.png, docs/ui_front.png, docs/ui_compare.png"),),
)
_WIDE: Any = {"width": 1600, "height": 1000}
_PATIENCE = 120_000  # ms


def make(root: Path, study: str, out: Path) -> None:
    """All three; raises TrackingError when nothing is recorded or there is no Chromium."""
    summary = read(root, study)
    shutil.copyfile(write(root, summary).picture, out / "front.png")
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise TrackingError("pictures: no Chromium on this machine: apt install chromium")
    links, port = views.preset(root)[study], ui.free_port(None)
    from playwright.sync_api import sync_playwright

    with ui.serving(root, port), sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page: Any = opened.new_page(viewport=_WIDE)
        page.set_default_timeout(_PATIENCE)
        page.goto(f"http://{ui.HOST}:{port}/{links['']}")
        _seen(page, "img.pare-front")
        page.screenshot(path=out / "ui_front.png")
        page.goto(f"http://{ui.HOST}:{port}/{links[f'sweep {summary.sweep}']}")
        _seen(page, "img[src*='front_small.png']")
        page.screenshot(path=out / "ui_compare.png")
        opened.close()


def _seen(page: Any, image: str) -> None:
    """Wait until that image is there in full size; a sweep of an earlier version has charts alone."""
    page.locator(f"{image}, .scatterlayer path.point").first.wait_for()
    whole = "image => image.complete && image.naturalWidth > 500"
    page.wait_for_function(f"name => [...document.querySelectorAll(name)].every({whole})", arg=image)


def _carry_out(words: list[str]) -> int:
    asked = HELP.read(words)
    make(Path(asked["root"]), asked["study"] or "mnist_prune", Path(asked["out"]))
    return 0


if __name__ == "__main__":
    sys.exit(command("benchmarks.pictures", HELP, None, _carry_out))
