"""optuna-dashboard on the project's studies, on this machine only: `python -m search.dashboard`.

optuna-dashboard 0.21 knows nothing of Optuna 5's named constraints: it would call infeasible trials the best. Its
pages get the trials with the constraints where they look for them, and its front is taken of the feasible ones. Once
the front is confirmed they show the confirmed figures and that front, as report and MLflow do. What is stored stays as
Optuna 5 wrote it: written twice, each constraint would count twice for the sampler.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from wsgiref.simple_server import make_server

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.command import ROOT, STORAGE, Usage, UsageError, command
from search.sampling.known_costs import PRIOR
from search.storage import database
from search.tracking.uri import TrackingError
from search.ui import HOST, PORT, arguments, free_port, stop

HELP = Usage(
    "search.dashboard",
    "optuna-dashboard on the studies of this project, on this machine only.",
    "[SETTING=VALUE ...]",
    {"Settings": (replace(PORT, about=PORT.about.format(8080)), STORAGE, ROOT)},
    (("", "the studies under mlruns"), ("storage=postgres", "those of the server that PARE_STORAGE_URL names")),
    ("Ends with Ctrl-C.",),
)


FRONT = "pare:front"  # among a trial's attributes, as the pages are given them: on the confirmed front


def feasible(trial: FrozenTrial) -> bool:
    """Whether the trial meets all its constraints."""
    return all(value <= 0 for value in trial.constraints.values())


class _View(optuna.storages.RDBStorage):
    """The stored studies as optuna-dashboard 0.21 reads constraints: in a list under one old key."""

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Any = None, *args: Any, **kwargs: Any
    ) -> list[FrozenTrial]:
        found = super().get_all_trials(study_id, deepcopy, states, *args, **kwargs)
        again = self._confirmed(study_id)
        names = self.get_study_system_attrs(study_id).get("study:metric_names") or []
        own = [trial for trial in found if PRIOR not in trial.user_attrs]  # not those of the sweeps it was warmed by
        return [_with_old_key(_judged(trial, again, names)) for trial in own]

    def _confirmed(self, study_id: int) -> dict[int, dict[str, Any]]:
        """Trial -> what confirmation found of it; empty before."""
        stored = json.loads(self.get_study_user_attrs(study_id).get("confirmed", "null")) or {"points": []}
        return {int(point["number"]): point for point in stored["points"]}

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """The best feasible trial of a study with one objective."""
        (direction,) = self.get_study_directions(study_id)
        rows = [t for t in self.get_all_trials(study_id, states=(TrialState.COMPLETE,)) if feasible(t)]
        if not rows:
            return super().get_best_trial(study_id)
        sign = 1 if direction == optuna.study.StudyDirection.MINIMIZE else -1
        return min(rows, key=lambda trial: sign * float(trial.value or 0.0))


def _judged(trial: FrozenTrial, again: dict[int, dict[str, Any]], names: Sequence[str]) -> FrozenTrial:
    """The trial with its confirmed figures, as every other page shows it, and whether it is on the confirmed front."""
    if again and trial.state == TrialState.COMPLETE:
        point = again.get(trial.number)
        trial.system_attrs = {**trial.system_attrs, FRONT: bool(point and point["on_front"])}
        if point and names and all(name in point["metrics"] for name in names):
            trial.values = [float(point["metrics"][name][0]) for name in names]
    return trial


def _with_old_key(trial: FrozenTrial) -> FrozenTrial:
    if trial.constraints and "constraints" not in trial.system_attrs:
        trial.system_attrs = {**trial.system_attrs, "constraints": list(trial.constraints.values())}
    return trial


def app(url: str) -> Callable[..., Any]:
    """optuna-dashboard as a WSGI application on the storage; raises UsageError when it is not installed."""
    try:
        from optuna_dashboard import _app, wsgi
        from optuna_dashboard._pareto_front import get_pareto_front_trials
    except ImportError:
        raise UsageError(
            "optuna-dashboard is not installed; run .venv/bin/pip install -e '.[dashboard]' -c constraints.txt"
        ) from None

    def best(trials: Sequence[FrozenTrial], directions: Sequence[Any]) -> list[FrozenTrial]:
        if any(FRONT in trial.system_attrs for trial in trials):
            return [trial for trial in trials if trial.system_attrs.get(FRONT)]
        front: list[FrozenTrial] = get_pareto_front_trials([t for t in trials if feasible(t)], directions)
        return front

    _app.get_pareto_front_trials = best
    application: Callable[..., Any] = wsgi(_View(url))
    return application


def _carry_out(words: list[str]) -> int:
    root, asked = arguments(words, HELP)
    url = database.address(root.resolve(), HELP.read(words)["storage"])
    if not database.is_server(url) and not (root / "optuna.db").exists():
        raise TrackingError(f"root: {root} holds no studies; run `python -m search.run study=mnist_prune`")
    signal.signal(signal.SIGTERM, stop)
    with database.telling(url):
        made, port = app(url), free_port(asked, first=8080)
    try:
        with make_server(HOST, port, made) as server:
            # A thread of its own: an interruption inside a request is swallowed by the server.
            serving = threading.Thread(target=server.serve_forever, daemon=True)
            serving.start()
            print(f"optuna-dashboard answers on http://{HOST}:{port}\nCtrl-C ends it.", flush=True)
            serving.join()
    except KeyboardInterrupt:
        return 0
    return 1


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 after Ctrl-C or SIGTERM, 2 for a mistake in it, 1 when there is nothing to show."""
    return command("search.dashboard", HELP, argv, _carry_out)


if __name__ == "__main__":
    sys.exit(main())
