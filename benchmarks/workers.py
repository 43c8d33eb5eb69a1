"""Two local workers against one: the same smoke study, in turns.

    python -m benchmarks.workers [pairs=3] [trials=24] [study=smoke] [study.SETTING=VALUE ...]

Each run is `python -m search.run` in a folder of its own, with the data and the dense baseline in the cache, without
confirmation; all of the command's wall time counts, its start included. Measurements take turns on a host, so what two
workers save depends on how much of a trial is training: in `smoke` as it stands a fifth of the whole; with
`study.task.train_size=20000 study.recipe.finetuning.epochs=12` most of it, as in a real study. The order within a pair
alternates. Others' share of the processors is said with each run: above a few per cent the ratio is not worth much.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from search.front.summary import read

CACHE = Path(__file__).parent.parent / "mlruns" / "cache"


def run(study: str, trials: int, workers: int, root: Path, overrides: list[str]) -> float:
    """Wall seconds of the sweep; ends the benchmark when it fails."""
    words = [f"study={study}", f"root={root}", f"executor.workers={workers}", f"study.budget.trials={trials}"]
    words += overrides
    before, began = psutil.cpu_times(), time.perf_counter()
    own = os.times()
    done = subprocess.run(
        [sys.executable, "-m", "search.run", *words, "study.confirm.seeds=0"], capture_output=True, text=True
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    after, ours = psutil.cpu_times(), os.times()
    busy = sum(after) - sum(before) - (after.idle - before.idle) - (after.iowait - before.iowait)
    mine = ours.children_user + ours.children_system - own.children_user - own.children_system
    # Workers that outlive their parent are not counted as ours, so this is an upper bound.
    others = max(0.0, busy - mine) / (seconds * (os.cpu_count() or 1))
    print(f"{workers} worker(s): {seconds:6.1f} s, others' share of the processors {100 * others:3.0f} %", flush=True)
    return seconds


def stages(study: str, root: Path) -> str:
    """Seconds of all trials by stage, the largest first."""
    trials = read(root, study).trials
    totals = trials.filter(regex="^seconds/").fillna(0.0).sum().sort_values(ascending=False)
    return ", ".join(f"{str(name).removeprefix('seconds/')} {value:.0f}" for name, value in totals.items())


def main() -> None:
    overrides = [word for word in sys.argv[1:] if word.startswith("study.")]
    said = dict(word.partition("=")[::2] for word in sys.argv[1:])
    study, trials, pairs = said.get("study", "smoke"), int(said.get("trials", 24)), int(said.get("pairs", 3))
    folder = Path(tempfile.mkdtemp(prefix="pare-workers-"))
    try:
        (folder / "cache").mkdir()
        (folder / "cache" / "data").symlink_to((CACHE / "data").resolve())
        ratios, last = [], {}
        for pair in range(-1, pairs):  # the first pair fills the cache and the page cache, and is not counted
            seconds = {}
            for workers in (1, 2) if pair % 2 else (2, 1):
                root = folder / f"{pair}-{workers}"
                root.mkdir()
                (root / "cache").symlink_to(folder / "cache")
                seconds[workers] = run(study, 2 if pair < 0 else trials, workers, root, overrides)
                last[workers] = root
            if pair >= 0:
                ratios.append(seconds[2] / seconds[1])
                print(f"pair {pair + 1}: {ratios[-1]:.3f}", flush=True)
        for workers, root in sorted(last.items()):
            print(f"seconds of trials by stage, {workers} worker(s): {stages(study, root)}")
        print(f"two workers take {statistics.median(ratios):.3f} of one worker's time (median of {pairs} pairs)")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
