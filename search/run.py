"""Search a study: `python -m search.run study=mnist_prune`.

The way of a trial: the sweep asks Optuna for a recipe (study.py), a worker carries it out and measures the exported
file (objective.py, in an executor's process), the driver tells Optuna and logs to MLflow (drive.py, tracking.py);
at the end the front is reported (report.py).
"""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from search import terminal
from search.command import writable
from search.ending import clear_errors
from search.signals import Stop
from search.study import compose
from search.study.config import Config

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
STOP = Stop()


@hydra.main(version_base="1.3", config_path=str(EXPERIMENTS), config_name="config")
def search(raw: DictConfig) -> None:
    """Search the composed study until its budget is spent, then report the front."""
    with clear_errors():
        config = compose.check(raw)
        sweep = carry_out(config.model_copy(update={"root": writable(config.root)}), STOP)
        from search import report

        report.say(config.root, config.study.name, sweep)


def carry_out(config: Config, stop: Stop | None = None) -> str:
    """Run the study's sweep to the end of its budget; returns the sweep's name."""
    # What follows takes seconds to import: a mistake in the configuration is answered before.
    from search.storage.database import address
    from search.study.metrics import Metrics
    from search.sweep import driver
    from search.sweep.describe import describe
    from search.sweep.sweep import Sweep, driver_lock
    from search.tracking.tracking import Tracking

    url = address(config.root, config.storage.name)
    with driver_lock(config.root, config.study.name, url, config.storage.patience) as hold:
        recorded = Tracking(config.root, config.study.name).sweeps()
        info, metrics = None, Metrics.of(config.task)
        if metrics is None or config.executor.name == "ray":
            info = describe(config, config.root / "logs" / f"{config.study.name}-task.log")
            metrics = Metrics.from_info(info)
        if config.executor.name == "ray":
            from search.executors.ray.inputs import with_code

            config = with_code(config)
        sweep = Sweep.open(
            config.study, url, config.fresh, named=config.sweep, hold=hold, recorded=recorded, metrics=metrics
        )
        driver.run(config, sweep, stop, info)
    return sweep.name


def main() -> None:
    """The command line; usage errors end with exit code 2 and without a traceback."""
    STOP.install()
    terminal.quiet_third_parties()
    with clear_errors(), terminal.closed_pipe_ends():
        if (text := compose.help_asked(sys.argv[1:], EXPERIMENTS)) is not None:
            print(text, end="")
            return
        sys.argv[1:] = compose.precheck(sys.argv[1:], EXPERIMENTS)
        search()


if __name__ == "__main__":
    main()
