"""Search a study: `python -m search.run study=mnist_prune`.

The way of a trial: the sweep asks Optuna for a recipe (study.py), a worker carries it out and measures the exported
file (objective.py, in an executor's process), the driver tells Optuna and logs to MLflow (drive.py, tracking.py);
at the end the front is reported (report.py).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig

from search import terminal
from search.command import writable
from search.ending import clear_errors
from search.front import places
from search.front.listing import Listing
from search.signals import Stop
from search.storage.finished import finished
from search.study import compose
from search.study.config import Config
from search.study.phrases import already

if TYPE_CHECKING:
    from search.executors.base import Executor

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
STOP = Stop()


@hydra.main(version_base="1.3", config_path=str(EXPERIMENTS), config_name="config")
def search(raw: DictConfig) -> None:
    """Search the composed study until its budget is spent, then report the front."""
    with clear_errors():
        config = compose.check(raw)
        config = config.model_copy(update={"root": writable(config.root)})
        sweep, front = carry_out(config, STOP)
        places.show(front, places.files(config.root, sweep), terminal.console())


def carry_out(config: Config, stop: Stop | None = None) -> tuple[str, Listing]:
    """Run the study's sweep to the end of its budget; returns the sweep's name and its front as lines."""
    # What follows takes a second to import: nobody looks at an empty screen meanwhile.
    print(f"{config.study.name}: {config.study.description}".removesuffix(": "), flush=True)
    if (done := finished(config)) is not None:
        name, stored = done
        print(already(name, stored["finished"][0]))
        return name, Listing.from_dict(stored["table"])
    with ExitStack() as room:
        executor = room.enter_context(workers(config)) if config.executor.name == "local" else None
        return _search(config, stop, executor)


@contextmanager
def workers(config: Config) -> Iterator[Executor]:
    """Workers of this host, which import their framework while this process imports what it needs itself."""
    from search.executors.local import LocalExecutor

    output = config.root / "logs" / f"{config.study.name}.log"
    output.parent.mkdir(parents=True, exist_ok=True)
    executor = LocalExecutor(config.executor, output)
    try:
        executor.warm(config.study.space.trainers()[0])
        yield executor
    finally:
        executor.close()


def _search(config: Config, stop: Stop | None, executor: Executor | None) -> tuple[str, Listing]:
    from search.storage.database import address
    from search.study.metrics import Metrics
    from search.sweep import driver
    from search.sweep.describe import ask, here
    from search.sweep.lock import driver_lock
    from search.sweep.names import recorded
    from search.sweep.sweep import Sweep

    url, output = address(config.root, config.storage.name), config.root / "logs" / f"{config.study.name}.log"
    with driver_lock(config.root, config.study.name, url, config.storage.patience) as hold, ExitStack() as room:
        info, metrics = None, Metrics.of(config.task)
        if metrics is None or config.executor.name == "ray":
            asked = executor or here(config, output)
            room.callback(asked.close)
            info = ask(config, asked)
            metrics = Metrics.from_info(info)
            executor = None if config.executor.name == "ray" else asked
        if config.executor.name == "ray":
            from search.executors.ray.inputs import with_code

            config = with_code(config)
        names = functools.partial(recorded, config.root, config.study.name, url)
        sweep = Sweep.open(
            config.study,
            url,
            config.fresh,
            named=config.sweep,
            hold=hold,
            recorded=names,
            metrics=metrics,
            root=config.root,
        )
        front = driver.run(config, sweep, stop, info, executor)
    return sweep.name, front


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
