"""What the platform costs: the share of trial time outside training, export, evaluation and measuring.

    python -m benchmarks.overhead study=mnist_prune [root=mlruns]

Reads the newest recorded sweep of the study; copied trials (equal recipes) are left out. `platform` is what remains of
a trial between Optuna's ask and tell: handing over, the process's start and the framework's import, storing the record.
"""

from __future__ import annotations

import sys
from pathlib import Path

from search.front.summary import read

# Stages that are the platform's own; waiting until the host is quiet belongs to measuring.
OWN = ("load", "platform")


def main() -> None:
    words = dict(word.partition("=")[::2] for word in sys.argv[1:])
    found = read(Path(words.get("root", "mlruns")), words.get("study", "mnist_prune"))
    trials = found.complete[found.complete["duplicate_of"] < 0]
    stages = {str(name).removeprefix("seconds/"): trials[name].fillna(0.0) for name in trials.filter(regex="^seconds/")}
    total = sum(column.sum() for column in stages.values())
    print(f"{found.sweep}: {len(trials)} trials, {total:.0f} s of trial time")
    for name, column in sorted(stages.items(), key=lambda item: -item[1].sum()):
        print(f"  {name:16} {column.sum():8.1f} s {100 * column.sum() / total:5.1f} %   median {column.median():.3f} s")
    own = sum((stages[name] for name in OWN if name in stages), start=0.0 * trials["number"])
    share = 100 * own.sum() / total
    whole = sum(stages.values())
    print(f"platform: {share:.1f} % of trial time, in the median trial {100 * (own / whole).median():.1f} %")


if __name__ == "__main__":
    main()
