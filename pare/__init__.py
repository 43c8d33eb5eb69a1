"""The public names of Pare: what a notebook or another package imports.

    import pare

    pare.run("mnist_prune", **{"study.budget.trials": 20})
    pare.front("mnist_prune")
    pare.pick("mnist_prune", "accuracy_drop<=0.005", by="latency_ms")

`pare.testing` holds the contract suites for tasks, trainers and runtimes of other packages.
"""

from pare.api import front, pick, run
from tasks.base import Batch, Metric, Port, Serving, Task, TaskError, TaskInfo

__all__ = ["Batch", "Metric", "Port", "Serving", "Task", "TaskError", "TaskInfo", "front", "pick", "run"]
