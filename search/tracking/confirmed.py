"""What confirmation makes of a trial's figures and tags in the record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def figures(known: Mapping[str, float], point: Mapping[str, Any] | None) -> dict[str, float]:
    """A trial's figures once it is confirmed; the search's as `search/NAME`, the chosen file's as `file/NAME`.

    `known`: the figures recorded of it. `point`: as Confirmed.to_dict gives it; without one the search's count again,
    and what only confirmation had found is NaN: MLflow takes no figure back.
    """
    promised = {name: value for name, value in known.items() if name.startswith("search/")}
    if point is None:
        own = {name.removeprefix("search/"): value for name, value in promised.items()}
        added = [
            n for n in known if n.startswith(("test_", "file/")) or n.removesuffix("_low").removesuffix("_high") in own
        ]
        return {name: math.nan for name in added if name not in own} | own
    found = {
        f"{name}{end}": float(value)
        for name, interval in point["metrics"].items()
        for end, value in zip(("", "_low", "_high"), interval, strict=True)
    }
    found |= {f"file/{name}": float(value) for name, value in point.get("own", {}).items()}
    # Confirmed once already: what the search had found has moved then, and the rest is of that confirmation.
    return (promised or {f"search/{name}": known[name] for name in found if name in known}) | found


def tags(point: Mapping[str, Any] | None, number: int) -> dict[str, str]:
    """What says so: `pare.confirmed` (front, dominated, copy, nothing) and a sentence for the trial's page."""
    if point is None:
        return {"pare.confirmed": "", "mlflow.note.content": ""}
    own = point["number"] == number
    note = "" if own else f"Same recipe as trial {point['number']}. "
    note += f"Confirmed: the figures are means of {point['seeds']} fresh trainings with their 95 % intervals; what the "
    note += "search had found is in `search/NAME`."
    kind = ("front" if point["on_front"] else "dominated") if own else "copy"
    return {"pare.confirmed": kind, "mlflow.note.content": note}
