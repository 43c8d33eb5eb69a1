"""Bars per point of the front: how far each layer is from the dense model's, its time and its bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from search.front.summary import Summary

_HEADS = ("Layer", "Difference from the dense model", "Time", "Bytes")


def section(summary: Summary, found: Mapping[str, Any] | None) -> Iterator[str]:
    """HTML of what `search.sweep.layers.measure` wrote; nothing where it wrote nothing."""
    if not found or not any(found.get(key) for key in ("trials", "problem", "without")):
        return
    yield "<h2>Where accuracy, time and bytes go</h2>"
    if problem := found.get("problem"):
        yield f"<p class=soft>Not known: {escape(problem)}</p>"
        return
    for name, why in found.get("without", {}).items():
        yield f"<p class=soft>Not known of {escape(name)}: {escape(why)}.</p>"
    if not found["trials"]:
        return
    yield (
        "<p>Difference: how far a layer's activations are from those of the dense model's layer (1 − CKA; 0 % is the "
        "same up to rotation). Time: of one call, from the runtime's profiler, whose own cost is in it. Bytes: the "
        "layer's stored tensors, packed.</p>"
    )
    for name, one in found["dense"].items():
        yield _bars(f"dense {name}", one, one)
    rows = {str(row["number"]): row for _, row in summary.front.iterrows()}
    for number, one in found["trials"].items():
        if number in rows:
            row = rows[number]
            dense = next((d for d in found["dense"].values() if len(d["layers"]) == len(one["layers"])), None)
            yield _bars(f"trial {number}: {row['words']}", one, dense, bool(row["knee"]))


def _bars(title: str, one: Mapping[str, Any], dense: Mapping[str, Any] | None, opened: bool = False) -> str:
    names = [layer["name"] for layer in (dense or one)["layers"]]
    most = {
        key: max([layer[key] or 0 for each in (one, dense or one) for layer in each["layers"]] or [0]) or 1
        for key in ("ms", "size_bytes")
    }
    cells = [f"<b class=head>{escape(head)}</b>" for head in _HEADS]
    for name, layer in zip(names, one["layers"], strict=True):
        far, ms = layer["difference"], layer["ms"]
        cells.append(f"<span class=name>{escape(name)} <span class=soft>{escape(layer['type'])}</span></span>")
        cells.append(_bar(far, 1.0, "–" if far is None else f"{100 * far:.1f} %"))
        cells.append(_bar(ms, most["ms"], "not named" if ms is None else f"{1000 * ms:.1f} µs"))
        cells.append(_bar(layer["size_bytes"], most["size_bytes"], f"{layer['size_bytes'] / 1000:,.1f} kB"))
    rest = ", ".join(f"{kind} {1000 * ms:.1f} µs" for kind, ms in one["rest"].items() if ms > 0)
    below = f"<p class=soft>Other operators: {escape(rest)}</p>" if rest else ""
    mark = " open" if opened else ""
    return f"<details{mark}><summary>{escape(title)}</summary><div class=bars>{''.join(cells)}</div>{below}</details>"


def _bar(value: float | None, most: float, text: str) -> str:
    width = 0.0 if value is None else 55 * min(value / most, 1.0)
    return f"<span class=bar><i style='width:{width:.1f}%'></i>{escape(text)}</span>"
