"""Pages that stand alone: style, script and plotly.js are inside, nothing is fetched.

`assets/plotly-basic.min.js` is plotly.js's basic bundle (lines, points, bars), a quarter of what Python's plotly ships.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it takes a second to import
    import plotly.graph_objects as go

ASSETS = Path(__file__).parent / "assets"
_LONG = re.compile(r"-?\d+\.\d{6,}(?:e[+-]?\d+)?")  # more digits than a screen shows: half of a large page


def document(title: str, body: Iterable[str], charts: bool = True) -> str:
    """A whole page. `body`: HTML within `<main>`; `charts`: whether it draws any."""
    script = f"<script>{_asset('plotly-basic.min.js')}</script>" if charts else ""
    run = f"<script>{_asset('report.js')}</script>" if charts else ""
    parts = [
        "<!doctype html>",
        f"<html lang=en><head><meta charset=utf-8><title>{escape(title)}</title>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<style>{_asset('report.css')}</style>{script}</head><body><main>",
        *body,
        f"</main>{run}</body></html>",
    ]
    return "\n".join(part for part in parts if part)


def chart(figure: go.Figure, alt: str, hint: str = "", wide: bool = False) -> str:
    """A chart under its title. `alt`: what it shows, for who cannot see it; `hint`: the caption.

    `wide`: it scrolls sideways on a narrow screen.
    """
    title = figure.layout.title.text or ""
    drawn = _LONG.sub(lambda found: f"{float(found[0]):.6g}", str(figure.to_json())).replace("</", "<\\/")
    made = (
        f"<div class=chart role=group aria-label='{escape(alt)}'></div><script type=application/json>{drawn}</script>"
    )
    if wide:
        made = (
            f"<div class=scroll role=region tabindex=0 aria-label='{escape(title)}'><div class=wide>{made}</div></div>"
        )
    return f"<h3>{escape(title)}</h3><figure>{made}<figcaption>{escape(hint)}</figcaption></figure>"


def table(head: str, rows: str, label: str, attributes: str = "") -> str:
    """A table that scrolls sideways where it is too wide, by keyboard too."""
    return (
        f"<div class=scroll role=region tabindex=0 aria-label='{escape(label)}'><table {attributes}>"
        f"{head}<tbody>{rows}</tbody></table></div>"
    )


@cache
def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
