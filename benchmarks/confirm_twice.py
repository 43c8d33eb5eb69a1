"""Does a confirmed front hold on the next day? A finished sweep's candidates, confirmed once more with other seeds.

    python -m benchmarks.confirm_twice study=mnist_prune [root=mlruns]

Both times all candidates are measured interleaved in one run, which is made here: the sweep's own trainings, then as
many with other seeds. Printed: how many of the second run's means lie inside the first run's 95 % intervals (83 % for
many seeds, 91 % for three, since Student's intervals are wider), and how many pairs of intervals overlap. The sweep
itself is left as it is.
"""

from __future__ import annotations

import sys

from search.command import writable
from search.ending import clear_errors
from search.executors.start import start
from search.run import EXPERIMENTS
from search.storage.database import address
from search.study import compose
from search.study.config import Config
from search.sweep import driver
from search.sweep.confirm import Confirmation
from search.sweep.confirmed import Confirmed
from search.sweep.display import Display
from search.sweep.lock import driver_lock
from search.sweep.sweep import Sweep

FIGURES = ("latency_ratio", "size_bytes")  # and the task's own metrics


def confirm_again(words: list[str]) -> tuple[list[Confirmed], list[Confirmed], tuple[str, ...]]:
    """The sweep's candidates confirmed with its own seeds, and with seeds 1,000,000 further on; its metrics' names."""
    config = compose.composed(words, EXPERIMENTS)
    config = config.model_copy(update={"root": writable(config.root)})
    with driver_lock(config.root, config.study.name):
        sweep = Sweep.open(config.study, address(config.root, config.storage.name))
        stored = sweep.get("confirmed")
        if stored is None:
            sys.exit(f"{sweep.name} is not confirmed yet; run python -m search.run {' '.join(words)}")
        points = [Confirmed.from_dict(point) for point in stored["points"]]
        display = Display(len(points), 0, config.study.objectives, sweep.metrics)
        workers = start(config, config.root / "logs" / f"{sweep.name}.log")
        try:
            with display:
                search = driver.Driver(config, sweep, workers, display, lambda record: None)
                search.prepare()
                numbers = {point.number for point in points}
                records = [record for record in sweep.records() if record.number in numbers]
                first, second = (
                    Confirmation(_shifted(config, by), sweep, workers, display, search.baselines).confirm(records)
                    for by in (0, 1_000_000)
                )
                return first, second, (*sweep.metrics.quality, *sweep.metrics.test)
        finally:
            workers.close()


def _shifted(config: Config, by: int) -> Config:
    """The configuration with confirming seeds that start `by` further on."""
    confirm = config.study.confirm
    confirm = confirm.model_copy(update={"first_seed": confirm.first_seed + by})
    return config.model_copy(update={"study": config.study.model_copy(update={"confirm": confirm})})


def main() -> None:
    """Print every figure of both runs, then the two shares."""
    with clear_errors():
        first, second, quality = confirm_again(sys.argv[1:])
    inside = overlap = count = 0
    for one, two in zip(first, second, strict=True):
        assert one.number == two.number
        print(f"trial {one.number}: {one.words}")
        for name in (*quality, *FIGURES):
            (mean, low, high), (again, again_low, again_high) = one.metrics[name], two.metrics[name]
            held, meet = low <= again <= high, again_low <= high and low <= again_high
            inside, overlap, count = inside + held, overlap + meet, count + 1
            marks = f"{'inside' if held else 'OUTSIDE'}{'' if meet else ', intervals APART'}"
            print(f"  {name}: {mean:.6g} [{low:.6g}, {high:.6g}], again {again:.6g} {marks}")
    print(
        f"{len(first)} candidates, {count} figures: {100 * inside / count:.0f} % of the second means inside the first "
        f"intervals, {100 * overlap / count:.0f} % of the pairs of intervals overlap"
    )


if __name__ == "__main__":
    main()
