"""The views of MLflow's runs page that are preset for every study: charts of the newest sweep, and parts of it.

MLflow reads such a view from an experiment's tag `mlflow.sharedViewState.KEY`; its JSON is the state of MLflow 3.17's
page, undocumented, so the version is pinned and a browser test holds it. Its scatter charts know no units: the front's
picture, with axes in per cent, ms and kB, stands above them.
"""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from search.study.metrics import Metrics
from search.tracking.tracking import PICTURE, Tracking, studies

KEY, _RECIPES, _PICTURE = "pare", "pare-recipes", "pare-picture"
_COLUMNS = ("pruning.granularity", "pruning.sparsity", "quantization.scheme", "distillation.temperature")
_PAGES = "workflowType=machine_learning"  # else MLflow shows a menu for chat models
_PARAMS = ("pruning.", "quantization.", "distillation.", "finetuning.")
_FIGURES = ("latency_ms", "latency_ratio", "size_bytes", "size_ratio", "on_front")
_TAGS = ("pare.reference", "pare.state", "pare.feasible", "pare.reason")
# Name of a further view -> its key, what of the trials it shows, and the page's mode.
_PARTS = {
    "front": (f"{KEY}-front", "tags.`pare.front` = 'true'", "CHART"),
    "infeasible": (f"{KEY}-infeasible", "tags.`pare.feasible` = 'false' AND tags.`pare.state` = 'complete'", "TABLE"),
    "stopped": (f"{KEY}-stopped", "tags.`pare.state` = 'stopped'", "TABLE"),
    "failed": (f"{KEY}-failed", "tags.`pare.state` = 'failed'", "TABLE"),
}


def chart_view(
    sweep: str, metrics: Metrics, objectives: Sequence[str], trials: pd.DataFrame, part: str = ""
) -> dict[str, Any]:
    """The state of the runs page: the sweep's trials, or the `part` of them, the front on top, all of them drawn.

    Without `part` the sweep's own run is among them: it holds the front's picture. Charts: that picture; each further
    objective, and latency and size in any case, against the first; parallel coordinates over what was varied.
    Hypervolume needs no chart here, the sweep's own run has it. `part`: a filter in MLflow's words.
    """
    first = objectives[0] if objectives else metrics.first
    others = [name for name in dict.fromkeys([*objectives[1:], "latency_ms", "size_bytes"]) if name in trials]
    charts = [_scatter(metrics, name, first) for name in others if name != first]
    sections = [_section(KEY, "Trials", len(charts)), _section(_RECIPES, "Recipes", 1)]
    axes = {"selectedParams": _varied(trials), "selectedMetrics": [*others[::-1], first]}
    charts.append(_card("PARALLEL", "Recipes", _RECIPES, **axes))
    if not part:
        charts.insert(0, _card("IMAGE", "The front", _PICTURE, imageKeys=[PICTURE], step=0, showRunParams=False))
        sections.insert(0, _section(_PICTURE, "The front", 1))
    columns = [f"metrics.`{name}`" for name in (*metrics.quality, *_FIGURES) if name in trials or name == "on_front"]
    columns += [f"params.`{name}`" for name in _COLUMNS if name in trials] + [f"tags.`{name}`" for name in _TAGS]
    return {
        "searchFilter": f"{_of_sweep(sweep)} AND {part}" if part else _of_sweep(sweep),
        "orderByKey": "metrics.`on_front`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": columns,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "chartsSearchFilter": "",
        "groupBy": None,
    }


def _of_sweep(sweep: str) -> str:
    return f"tags.`pare.sweep` = '{sweep}'"


def _varied(trials: pd.DataFrame) -> list[str]:
    """The params that differ between the trials the sampler proposed, or else between all; those that matter first."""
    proposed = trials[trials["reference"] == ""] if "reference" in trials else trials
    rows = proposed if len(proposed) > 1 else trials
    params = [name for name in map(str, rows) if name.startswith(_PARAMS) and rows[name].nunique() > 1]
    return sorted(params, key=lambda name: _COLUMNS.index(name) if name in _COLUMNS else len(_COLUMNS))


def _section(uuid: str, name: str, columns: int) -> dict[str, Any]:
    section = {"uuid": uuid, "name": name, "display": True, "columns": max(1, columns), "cardHeight": 480}
    return section | {"isReordered": False, "deleted": False, "isGenerated": False}


def _scatter(metrics: Metrics, x: str, y: str) -> dict[str, Any]:
    title = f"{metrics[y].title} against {metrics[x].phrase}"
    axes = {"xaxis": {"key": x, "type": "METRIC"}, "yaxis": {"key": y, "type": "METRIC"}}
    return _card("SCATTER", title, KEY, **axes)


def _card(kind: str, title: str, section: str, **rest: Any) -> dict[str, Any]:
    card = {"type": kind, "uuid": f"{KEY}-{title}", "metricSectionId": section, "displayName": title}
    return {**card, "runsCountToCompare": 1000, "deleted": False, "isGenerated": False, "showAllRuns": True, **rest}


def preset(root: Path) -> dict[str, dict[str, str]]:
    """Store the views with every recorded study; study -> name of a view -> the link's part after the address.

    The view without a name is the study's own: all trials of its newest sweep, in charts.
    """
    links = {}
    for study, experiment in studies(root).items():
        tracking = Tracking(root, study)
        sweeps = tracking.sweeps()
        place = f"#/experiments/{experiment}/runs"
        links[study] = {"": f"{place}?{_PAGES}"} if not sweeps else _views(tracking, sweeps, place)
    return links


def _views(tracking: Tracking, sweeps: Sequence[str], place: str) -> dict[str, str]:
    newest = sweeps[-1]
    about, trials = tracking.about(newest), tracking.trials(newest)
    found = {}
    for name, (key, part, mode) in {"": (KEY, "", "CHART"), **_PARTS}.items():
        view = chart_view(newest, about["metrics"], about["objectives"] or [], trials, part)
        tracking.tag_study(f"mlflow.sharedViewState.{key}", json.dumps(view, separators=(",", ":")))
        if not name or _counted(trials, name):
            found[name] = f"{place}?viewStateShareKey={key}&compareRunsMode={mode}&{_PAGES}"
    found[f"sweep {newest}"] = f"{place}/{about['run_id']}?{_PAGES}"
    if len(sweeps) > 1:
        # MLflow's page compares settings; what differs of the fronts is in our overlay.
        pair = json.dumps([tracking.about(sweep)["run_id"] for sweep in sweeps[-2:]], separators=(",", ":"))
        query = urllib.parse.urlencode({"runs": pair, "experiments": json.dumps([tracking.experiment])})
        found[f"settings of {newest} against {sweeps[-2]}"] = f"#/compare-runs?{query}&{_PAGES}"
    return found


def _counted(trials: pd.DataFrame, part: str) -> int:
    """How many trials the part holds."""
    if trials.empty:
        return 0
    complete = trials["state"] == "complete"
    kinds = {"front": trials["on_front"], "infeasible": complete & ~trials["feasible"]}
    return int(kinds.get(part, trials["state"] == part).sum())
