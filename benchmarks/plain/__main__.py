"""Pare against the script that an engineer writes without it (benchmarks/plain/script.py), on this machine alone.

    python -m benchmarks.plain --task lenet5 --seeds 5 --minutes 6 [--into FOLDER] [KEY=VALUE of the study ...]

For every seed one dense model is trained, which both start from and whose time counts for neither. Then each searches
the same space for M minutes of wall-clock from its command on, alone on the machine; which of the two begins alternates
from seed to seed. So a run takes S x (2 M + the dense training + about 2) minutes; it is kept in INTO/TASK.json after
every part, and the same command goes on where it was interrupted. `--report` prints what is there.

*Settled*: a trial that got a decision: trained, or stopped with a reason. The trained ones are shown beside them;
copies of equal recipes and failures count as neither. What stood on a search's own front when it was settled is judged
afterwards: one scorer, one measure of size, latencies of both searches interleaved in one run. Hypervolume: share of
the box from the study's least accuracy, the dense latency and size, to 100 %, 0, 0. `time ratio`: Pare's wall-clock to
the plain script's final hypervolume, over the plain script's own to that volume (its last improvement, not M).
Fronts at equal wall-clock: those on which each search ended, on the test split.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.plain import figures, judge, runs
from benchmarks.plain.figures import Settled
from benchmarks.plain.runs import TASKS, Setup

ORDER = ("plain", "pare")
CACHE = Path("mlruns/cache")


class Record:
    """What has been measured so far, in one JSON file."""

    def __init__(self, file: Path, about: dict[str, Any]) -> None:
        self.file = file
        self.kept: dict[str, Any] = {**about, "seeds": {}}
        if file.exists():
            found = json.loads(file.read_text())
            if differing := [key for key in about if found.get(key) != about[key]]:
                raise SystemExit(
                    f"{file}: was begun with other {', '.join(differing)}; name another folder with --into, or "
                    "remove it"
                )
            self.kept = found

    def seed(self, number: int) -> dict[str, Any]:
        """What is known of a seed."""
        found: dict[str, Any] = self.kept["seeds"].setdefault(str(number), {})
        return found

    def save(self) -> None:
        """Write it, whole or not at all."""
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(self.kept, indent=1) + "\n")
        partial.replace(self.file)


def carry_out(task: str, seed: int, minutes: float, into: Path, words: tuple[str, ...], record: Record) -> None:
    """What is missing of one seed."""
    root, log = into / f"{task}-{seed}", into / f"{task}-{seed}.log"
    root.mkdir(parents=True, exist_ok=True)
    setup, known = Setup(TASKS[task], seed, root.absolute(), words), record.seed(seed)
    if "baseline" not in known:
        known["baseline"] = runs.prepare(setup, CACHE, log)
        record.save()
    for name in ORDER if seed % 2 == 0 else reversed(ORDER):
        if name in known:
            continue
        load = os.getloadavg()[0]
        if name == "pare":
            trials, cpu = runs.pare(setup, minutes, log)
        else:
            precision = record.kept["precision"]
            trials, cpu = runs.plain(setup, known["baseline"], minutes, root.absolute() / "plain", log, precision)
        about = {"cpu_seconds": cpu, "load_before": load, "when": time.strftime("%F %T")}
        known[name] = {"trials": [asdict(each) for each in trials], **about}
        record.save()
        print(f"seed {seed}: {name}: {figures.counted(trials)}, {cpu:.0f} CPU-s", flush=True)
    if "judged" not in known:
        searches = {name: [Settled(**each) for each in known[name]["trials"]] for name in ORDER}
        known["judged"] = judge.judge(setup, known["baseline"], searches)
        record.save()


def report(record: Record) -> str:
    """Every seed, the medians with their intervals, and the first seed's fronts."""
    minutes, rows = record.kept["minutes"], {}
    for number, known in record.kept["seeds"].items():
        if "judged" in known:
            rows[number] = figures.compared(known["judged"]["plain"], known["judged"]["pare"], minutes)
            for name in ORDER:
                trained = known["judged"][name]["counts"]["trained"]
                rows[number][f"{name}_cpu_per_trained"] = known[name]["cpu_seconds"] / max(1, trained)
    if not rows:
        return "nothing is judged yet"
    record.kept["compared"] = rows
    lines = [f"{record.kept['task']}, {minutes:g} minutes each, {record.kept['cores']} cores, {record.kept['machine']}"]
    lines += ["", f"{'':24}" + "".join(f"{'seed ' + n:>11}" for n in rows) + "     median [interval]"]
    coverage = 0.0
    for name in next(iter(rows.values())):
        values = [row[name] for row in rows.values()]
        middle, low, high, coverage = figures.median_interval(values)
        told = f"{middle:11.3g} [{low:.3g}, {high:.3g}]"
        lines.append(f"{name:24}" + "".join(f"{value:11.3g}" for value in values) + f"    {told}")
    lines.append(f"interval of the median: order statistics, {100 * coverage:.1f} % for {len(rows)} seeds")
    number = next(iter(rows))
    for name in ORDER:
        lines += ["", f"{name}: front after {minutes:g} minutes, seed {number}, test split"]
        for each in sorted(record.kept["seeds"][number]["judged"][name]["front"], key=lambda e: -e["test_accuracy"]):
            low, high = each["test_interval"]
            fast, slow = each["latency_interval"]
            lines.append(
                f"  {100 * each['test_accuracy']:6.2f} % [{100 * low:.2f}, {100 * high:.2f}]"
                f"  latency {each['latency_ratio']:.3f} [{fast:.3f}, {slow:.3f}]  size {each['size_ratio']:.4f}"
            )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=tuple(TASKS), default="lenet5")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=6.0, help="of wall-clock for each search")
    parser.add_argument("--into", type=Path, default=Path("mlruns/plain"), help="folder of everything that is written")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of the plain script")
    parser.add_argument("--report", action="store_true", help="only print what has been measured")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="settings of the study, for both searches")
    said = parser.parse_args(argv)
    said.into.mkdir(parents=True, exist_ok=True)
    about = {
        "task": said.task,
        "minutes": said.minutes,
        "words": said.words,
        "precision": said.precision,
        "cores": len(os.sched_getaffinity(0)),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }
    record = Record(said.into / f"{said.task}.json", about)
    for seed in range(0 if said.report else said.seeds):
        carry_out(said.task, seed, said.minutes, said.into, tuple(said.words), record)
    print(report(record))
    record.save()


if __name__ == "__main__":
    main(sys.argv[1:])
