"""The front written out: picture and page, and with them the sweep's record brought to its end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from search.front.comparison import Comparison, beside
from search.front.places import Files, files
from search.front.summary import Summary, summarize
from search.front.tables import figures, markdown
from search.tracking.tracking import Tracking
from search.trial.record import STATUSES, Outcome


def write(root: Path, summary: Summary) -> Files:
    """Draw the sweep's picture and page."""
    # matplotlib and plotly take seconds to import: the table alone does not wait for them.
    from search.front import page, picture

    made = files(root, summary.sweep)
    made.page.parent.mkdir(parents=True, exist_ok=True)
    picture.draw(summary, made.picture)
    made.page.write_text(page.page(summary, layers_of(made)), encoding="utf-8")
    return made


def layers_of(made: Files) -> dict[str, Any] | None:
    """What is known of the front's files layer by layer; None where that was not measured."""
    return json.loads(made.layers.read_text()) if made.layers.is_file() else None


def finish(
    root: Path, tracking: Tracking, sweep: str, status: str, layers: Callable[[Summary, Path], None] | None = None
) -> Summary:
    """End the sweep: mark its front, draw picture and page, record both with figures and note.

    `layers`: writes what is known of the front's files layer by layer.
    `status`: finished, interrupted or failed. Called again after a resume it brings everything up to date.
    """
    if status not in STATUSES:
        raise ValueError(f"status: {status!r} is not valid; choose from {', '.join(STATUSES)}")
    summary = summarize(tracking, sweep)
    summary = replace(summary, about={**summary.about, "status": status})
    tracking.mark_front(sweep, summary.front["number"], len(summary.trials))
    if layers is not None:
        layers(summary, files(root, sweep).layers)
    made = write(root, summary)
    previous = beside(tracking, summary, -1)
    pictures = [made.picture, *(_overlaid(root, previous) if previous else ())]
    if previous:
        tracking.tag_sweep(sweep, {"pare.compared_with": previous.older.sweep, "pare.verdict": previous.verdict})
    metrics = _beside_first(tracking, summary) | highlights(summary)
    verdict = [f"**{previous.title}**"] if previous else []
    small = [_smaller(path) for path in pictures if path.suffix == ".png"]
    note = "\n\n".join([*_images(summary, small), markdown(summary, most=15), *verdict])
    tables = figures(summary), summary.hypervolume
    tracking.finish_sweep(
        sweep,
        Outcome(
            status,
            *tables,
            metrics,
            [*pictures, *small, made.page, *([made.layers] if made.layers.is_file() else [])],
            note,
            made.picture,
        ),
    )
    return summary


def _overlaid(root: Path, found: Comparison) -> list[Path]:
    from search.front import overlay

    made = [files(root, found.newer.sweep).page.with_name(f"compare.{suffix}") for suffix in ("png", "html")]
    for path in made:
        overlay.write(found, path)
    return made


def _beside_first(tracking: Tracking, summary: Summary) -> dict[str, float]:
    """`front/hypervolume_vs_first`: the one figure that compares all sweeps of a study, 1 for the first of them."""
    if tracking.sweeps()[0] == summary.sweep:
        return {"front/hypervolume_vs_first": 1.0}
    found = beside(tracking, summary, 0)
    if found is None or found.hypervolume[0] == 0:
        return {}
    return {"front/hypervolume_vs_first": found.hypervolume[1] / found.hypervolume[0]}


def _smaller(picture: Path) -> Path:
    """The picture as wide as MLflow's pages: they show images at full size, whatever their Markdown says."""
    from PIL import Image

    made = picture.with_stem(f"{picture.stem}_small")
    with Image.open(picture) as image:
        image.thumbnail((980, 980))
        image.save(made)
    return made


def _images(summary: Summary, pictures: Sequence[Path]) -> list[str]:
    """As Markdown: MLflow's pages show an image from an address relative to the server's, and no data: URI."""
    run_id = summary.about["run_id"]
    return [f"![{path.stem}](get-artifact?path={path.name}&run_uuid={run_id})" for path in pictures]


def highlights(summary: Summary) -> dict[str, float]:
    """Single figures of the sweep, for MLflow's compare page."""
    said_of = {f"trials/{kind}": float(count) for kind, count in summary.counts().items()}
    for name in summary.objectives:
        column = summary.front[name]
        if len(column):
            best = column.min() if summary.metrics.minimized(name) else column.max()
            said_of[f"front/best_{name}"] = float(best)
            said_of[f"knee/{name}"] = float(summary.trials.loc[summary.trials["knee"], name].iloc[0])
    return said_of
