"""The schema of a study and of the command line around it; every mistake is reported at once.

Hydra composes `experiments/`; a key misspelt inside a study file would pass it in silence, so pydantic forbids
extra keys here. Rules that join fields (a runtime that cannot load what the trainer exports) stand in `_cross`.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from runtimes.base import FORMATS, format_of
from search.study.constraint import Constraint
from search.study.metrics import PACKED, Metrics
from search.study.parse import parse, unknown
from search.study.space import Space, SpaceError
from tasks.base import TaskSpec
from tasks.load import models_of, problems
from trainers.base import TRAINERS, DenseSpec, capabilities
from trainers.recipe import flatten

Positive = Annotated[int, Field(ge=1)]
Device = Literal["auto", "cpu", "cuda"]


class ConfigError(ValueError):
    """A configuration that cannot run; `problems` holds one message per mistake."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


class Section(BaseModel):
    """A part of the configuration: keys it does not know are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def about(description: str, default: Any = ...) -> Any:
    """A field with what `--help` says of it; without a default it must be given."""
    return Field(default, description=description)


class Task(Section):
    """What is compressed: a model, its data and metrics. `task: mnist` is short for `task: {name: mnist}`."""

    name: str = about("a built-in task, package.module:NAME or FILE.py[:NAME]", "")
    model: str = about("timm:NAME, torchvision:NAME, hf:FOLDER, FILE.py:NAME, FILE.keras or FILE.onnx", "")
    data: str = about("imagefolder:PATH, csv:PATH, npz:PATH, datasets:PATH or FILE.py:NAME", "")
    weights: str = about("safetensors, or a state dict that torch loads with weights_only", "")
    loss: str = about("FILE.py:NAME; what the task's kind says if left out", "")
    metric: str = about("a known metric's name, FILE.py:NAME, or what the LightningModule logs", "")
    direction: Literal["", "maximize", "minimize"] = about("of a metric of your own", "")
    optimizer: str = about("FILE.py:NAME, or configure_optimizers of a LightningModule; Adam if left out", "")
    text: str = about("the column with the text", "")
    label: str = about("the column with the label", "")
    train: str = about("the training split's file or name, where the source does not say", "")
    validation: str = about("the validation split's file or name", "")
    test: str = about("the test split's file or name", "")
    size: Annotated[int, Field(ge=8, le=4096)] | None = about("side of the model's input image", None)
    length: Annotated[int, Field(ge=1, le=65_536)] | None = about("most tokens of a text", None)
    train_size: Annotated[int, Field(ge=1)] | None = about("a subset, for smoke studies", None)
    validation_size: Annotated[int, Field(ge=1)] | None = about("a subset, for smoke studies", None)
    keep: list[str] = about("names of layers that are neither pruned nor quantized", [])
    folder: str = about("where relative paths begin; the folder of --config-dir, or else the current one", "")
    source: str = about("folder with a built-in task's original files, if you have them", "")
    license: str = about("of the data, for the model card; a built-in task knows its own", "")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    def spec(self, seed: int, folder: Path | None = None) -> TaskSpec:
        """The same as plain data; relative paths begin in `folder`, by default in the section's own."""
        return TaskSpec.from_dict({**self.model_dump(), "folder": str(folder or self.folder or "."), "seed": seed})


class DenseTraining(Section):
    """How the dense models are trained, that trials start from and learn from."""

    epochs: Positive = about("passes over the training split", 8)
    learning_rate: Annotated[float, Field(gt=0, le=10)] = about("Adam's largest step, cosine with warm-up", 1e-3)
    batch_size: Positive = about("samples per training step", 128)
    augment: Literal["none", "affine"] = about("affine: half of the batches are of images moved a little", "none")


class Sampler(Section):
    """What proposes the recipes."""

    name: Literal["auto", "ehvi", "tpe", "tpe_grouped", "gp", "nsga2", "random"] = about(
        "auto: ehvi, then tpe_grouped; ehvi: expected hypervolume gain, costs known, quality modelled; tpe: tree of "
        "Parzen estimators, each parameter for itself; tpe_grouped: together; gp: Optuna's; nsga2: genetic; random",
        "auto",
    )
    model_trials: Positive = about("auto: finished trials after which tpe_grouped takes over from ehvi", 50)
    startup_trials: Positive = about(
        "random trials before the model of tpe, tpe_grouped or gp is used; references count", 10
    )


class EarlyStopping(Section):
    """What is not worth its training. `early_stopping: gain` is short for `early_stopping: {name: gain}`."""

    name: Literal["none", "gain", "rungs", "gain_and_rungs"] = about(
        "none: every trial is trained; gain: not what breaks a constraint by its latency or size, which are known "
        "without training, nor what is expected to add less than `share`; rungs: in full only the best `promoted` of "
        "what was trained with a short `schedule`; gain_and_rungs: first the one, then the other",
        "none",
    )
    share: Annotated[float, Field(ge=0, lt=1)] = about("gain: least expected growth of the front's hypervolume", 0.003)
    chance: Annotated[float, Field(ge=0, le=1)] = about(
        "gain: and only what is on the front with at most this probability; 0.1 loses hardly a member, 1 looks at the "
        "gain",
        1.0,
    )
    after: Positive = about("gain: trained trials, before which nothing is stopped for its expected gain", 8)
    schedule: Annotated[float, Field(gt=0, lt=1)] = about(
        "rungs: share of its epochs that a recipe is trained for first, as a complete schedule", 0.25
    )
    promoted: Annotated[float, Field(gt=0, le=1)] = about("rungs: share of these that are then trained in full", 0.6)

    @property
    def by_gain(self) -> bool:
        """Whether some recipes are not trained at all."""
        return self.name in ("gain", "gain_and_rungs")

    @property
    def by_rungs(self) -> bool:
        """Whether recipes are first trained with a short schedule."""
        return self.name in ("rungs", "gain_and_rungs")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Budget(Section):
    """When a sweep ends."""

    trials: Positive = about("so many trials have finished; those that were stopped early are among them")
    trained: Positive | None = about(
        "or so many were trained; not counted: those stopped early, and equal recipes", None
    )
    minutes: Annotated[float, Field(gt=0)] | None = about("or so many minutes have passed in this call", None)


class Confirm(Section):
    """At the end the front and its neighbours are trained again with fresh seeds: a search picks lucky trials."""

    seeds: Annotated[int, Field(ge=0, le=100)] = about(
        "fresh trainings per candidate, whose spread is pooled; 3 where 2 of so few candidates say too little; 0 "
        "leaves the front as the search found it, which is optimistic",
        2,
    )
    neighbours: Annotated[int, Field(ge=0)] = about("trials just behind the front that are confirmed with it", 2)
    candidates: Positive | None = about(
        "at most so many in all, spread over the front; the whole front and its neighbours if left out", None
    )
    first_seed: Annotated[int, Field(ge=0, le=2**31 - 101)] = about(
        "the fresh seeds count from here; another one confirms the same candidates again", 1_000_000
    )


class Latency(Section):
    """What is timed, and how long."""

    batch: Annotated[list[Positive], Field(min_length=1)] = about("samples per call; the first one is searched", [1])
    threads: Annotated[list[Positive], Field(min_length=1)] = about(
        "threads of the runtime; the first one is searched", [1]
    )
    target_rel_ci: Annotated[float, Field(ge=0.015, lt=1)] = about(
        "measure until the 95 % interval of the ratio to the dense model is this wide, as a share of it", 0.03
    )
    max_seconds: Annotated[float, Field(gt=0)] = about("or for so many seconds", 3.0)


class Study(Section):
    """What is searched: one file of experiments/study."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] = about("letters, digits, - and _")
    description: str = about("a sentence for reports", "")
    objectives: Annotated[list[str], Field(min_length=1)] = about("metrics; the first is drawn upwards")
    constraints: list[str] = about("such as [accuracy_drop <= 0.02]; a trial that breaks one is infeasible", [])
    recipe: dict[str, Any] = about("what is done to a model; open values are searched (see RECIPE)")
    references: dict[str, dict[str, Any]] = about("recipes that are tried first, by name: {dense: {}}", {})
    warm_start: list[str] = about(
        "earlier sweeps whose trained trials the sampler learns from, such as [mnist_prune-001]; they are no results "
        "of this one",
        [],
    )
    prefer: dict[str, Any] = about(
        "values that the first trials take, by field: {quantization.scheme: [static_int8, qat_int8]}", {}
    )
    published: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_ -]+$")], dict[str, float]] = about(
        "figures of papers that the report draws beside the front: {A PAPER: {accuracy: 0.99, float32_ratio: 100}}", {}
    )
    runtime: str | dict[str, str] = about("what runs the exported file; {TRAINER: RUNTIME} for several trainers")
    dense: DenseTraining = DenseTraining()
    dense_of: dict[str, DenseTraining] = about("the same for single models, such as a larger teacher", {})
    task: Task
    sampler: Sampler = Sampler()
    early_stopping: EarlyStopping = EarlyStopping()
    coder: Literal["brotli", "range"] = about(
        "of the packed file, for download_bytes: brotli is decoded everywhere; range is smaller", "brotli"
    )
    budget: Budget
    latency: Latency = Latency()
    confirm: Confirm = Confirm()
    seed: Annotated[int, Field(ge=0)] = about("of all that is random", 0)
    target: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]+$")] = about(
        "the resource by which a Ray cluster's nodes say that latency may be measured there", "latency"
    )

    @property
    def space(self) -> Space:
        """The search space that `recipe` describes."""
        return parse(self.recipe, models=models_of(self.task.spec(self.seed)))

    @property
    def preferred(self) -> dict[str, list[Any]]:
        """`prefer` by dotted field, each with a list of values."""
        return {field: value if isinstance(value, list) else [value] for field, value in flatten(self.prefer).items()}

    @property
    def limits(self) -> list[Constraint]:
        """The parsed constraints."""
        return [Constraint.parse(text) for text in self.constraints]

    @property
    def packed(self) -> bool:
        """Whether trials are packed: an objective or a constraint is about bytes to download."""
        return not {*self.objectives, *(limit.metric for limit in self.limits)}.isdisjoint(PACKED)

    def runtime_of(self, trainer: str) -> str:
        """The runtime that serves this trainer's files."""
        return self.runtime if isinstance(self.runtime, str) else self.runtime[trainer]

    def dense_spec(self, trainer: str, model: str) -> DenseSpec:
        """How this study trains the dense `model`."""
        training = self.dense_of.get(model, self.dense)
        return DenseSpec(trainer, model, **training.model_dump(), seed=self.seed)


class Executor(Section):
    """Where trials run: executor=local (worker processes here), ray (a cluster), inline (this process)."""

    name: Literal["local", "ray", "inline"] = about("write executor=NAME, which sets the others' defaults too", "local")
    workers: Positive | Literal["auto"] = about("auto: one per core; on a cluster as many as there is room for", "auto")
    trial_timeout: Annotated[float, Field(gt=0)] = about("seconds, then a trial is stopped and tried once more", 1800)
    trials_per_worker: Positive = about("then a worker process is replaced, since frameworks leak memory", 25)
    retries: Annotated[int, Field(ge=0, le=10)] = about("of a trial whose worker crashed or ran out of time", 1)
    grace: Annotated[float, Field(ge=0)] = about("seconds that running trials have to finish after SIGTERM", 30)
    python: dict[Literal["pytorch", "tensorflow", "onnx"], Path] = about(
        "Python of a trainer's workers, where it is not this one: {tensorflow: .venv-tf/bin/python}", {}
    )
    address: str = about("of the Ray cluster: auto, local, HOST:PORT or ray://HOST:PORT (executor=ray)", "auto")
    num_cpus: Annotated[float, Field(gt=0)] = about("CPUs that a worker takes of its node (executor=ray)", 1)
    num_gpus: Annotated[float, Field(ge=0)] = about("GPUs likewise; 0.5: two workers share one (executor=ray)", 0)


class Storage(Section):
    """Where the Optuna study lies: storage=sqlite (a file under root) or postgres (PARE_STORAGE_URL)."""

    name: Literal["sqlite", "postgres"] = about("write storage=NAME", "sqlite")
    patience: Annotated[float, Field(ge=0)] = about("seconds that a server may be away before the sweep stops", 300)


class Tracking(Section):
    """What is recorded besides MLflow's record."""

    tensorboard: bool = about("an event file per trial under ROOT/tensorboard/SWEEP", False)
    layers: bool = about("profile the front's ONNX files layer by layer for the report; not with executor=ray", True)


class Config(Section):
    """The whole configuration of `python -m search.run`."""

    study: Study
    executor: Executor = Executor()
    storage: Storage = Storage()
    tracking: Tracking = Tracking()
    root: Path = about("the folder that everything is written to", Path("mlruns"))
    device: Device = about("auto: CUDA where there is a GPU", "auto")
    fresh: bool = about("start a new sweep instead of resuming the newest", False)
    sweep: str | None = about("resume this sweep of the study instead of the newest", None)
    folder: Path = about("where relative paths of study.task begin; --config-dir DIR makes it DIR", Path())

    def at(self, folder: Path) -> Config:
        """The same with relative paths of the task beginning in `folder`."""
        task = self.study.task.model_copy(update={"folder": str(folder)})
        study = self.study.model_copy(update={"task": task})
        return self.model_copy(update={"folder": folder, "study": study})

    @property
    def task(self) -> TaskSpec:
        """The study's task as plain data, which workers load."""
        return self.study.task.spec(self.study.seed)


def check(raw: Mapping[str, Any]) -> Config:
    """The composed configuration -> Config; raises ConfigError with every mistake in it."""
    problems: list[str] = []
    config: Config | None = None
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        problems += messages(error)
    study, folder = raw.get("study"), Path(raw.get("folder") or ".").expanduser().absolute()
    if isinstance(study, Mapping):
        problems += list(_read(study, folder))
    if config is None or problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    config = config.at(folder)
    problems = [*_cross(config.study), *_placed(config)]
    if config.fresh and config.sweep:
        problems.append(f"fresh: true starts a new sweep, sweep={config.sweep} resumes one; write one of them")
    if problems:
        raise ConfigError(problems)
    return config


def _read(study: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """Mistakes in what the schema leaves open: the recipe, objectives and constraints."""
    spec, mistakes = _spec(study.get("task"), folder)
    yield from mistakes
    if isinstance(study.get("recipe"), Mapping) and spec is not None:
        try:
            parse(study["recipe"], models=models_of(spec))
        except SpaceError as error:
            yield from error.problems
    runtime = study.get("runtime")
    for name in runtime.values() if isinstance(runtime, Mapping) else [runtime]:
        try:
            if isinstance(name, str):
                format_of(name)
        except ValueError as error:
            yield f"study.{error}"
    for trainer in runtime if isinstance(runtime, Mapping) else ():
        if trainer not in TRAINERS:
            yield unknown(f"study.runtime.{trainer}", str(trainer), list(TRAINERS))
    objectives, constraints = (_texts(study.get(key)) for key in ("objectives", "constraints"))
    if len(set(objectives)) < len(objectives):
        yield f"study.objectives: {objectives} names a metric twice"
    for index, text in enumerate(constraints):
        try:
            Constraint.parse(text)
        except ValueError as error:
            yield f"study.constraints[{index}]: {error}"
    known = Metrics.of(spec) if spec is not None and not mistakes else None
    if known is not None:
        yield from known.problems(objectives, constraints)
        yield from _published(study.get("published"), objectives, known)


def _published(section: Any, objectives: list[str], known: Metrics) -> Iterator[str]:
    """Mistakes in papers' figures: names that are no metrics, and points that could not be drawn."""
    for paper, figures in section.items() if isinstance(section, Mapping) else ():
        where, names = f"study.published.{paper}", [*figures] if isinstance(figures, Mapping) else []
        yield from (f"{where}.{name}: {known.unknown(name)}" for name in names if name not in known.names())
        if objectives and (objectives[0] not in names or len(names) < 2):
            yield f"{where}: gives {', '.join(names) or 'nothing'}; it needs {objectives[0]} and one figure more"


def _texts(listed: Any) -> list[str]:
    return [str(each) for each in listed] if isinstance(listed, list) else []


def _spec(section: Any, folder: Path) -> tuple[TaskSpec | None, list[str]]:
    """The task as plain data, and what its addresses miss; None where the section itself has mistakes."""
    try:
        spec = Task.model_validate(section).spec(0, folder)
    except ValidationError:
        return None, []
    return spec, [f"study.task.{problem}" for problem in problems(spec)]


def _cross(study: Study) -> Iterator[str]:
    space = study.space
    for trainer in space.trainers():
        if not isinstance(study.runtime, str) and trainer not in study.runtime:
            yield f"study.runtime: names no runtime for the {trainer} trainer; add `{trainer}: ...`"
            continue
        runtime, formats = study.runtime_of(trainer), capabilities(trainer).formats
        if (wanted := format_of(runtime)) not in formats:
            able = [name for name, format in FORMATS.items() if format in formats]
            yield (
                f"study.runtime: {runtime!r} loads .{wanted} files, which the {trainer} trainer does not "
                f"write; choose from {', '.join(able)}"
            )
    trained = {*space.models(), *(str(teacher).rpartition("/")[2] for teacher in space.teachers())}
    sections = {"dense": study.dense} | {f"dense_of.{model}": each for model, each in study.dense_of.items()}
    unable = [trainer for trainer in space.trainers() if "augment" not in capabilities(trainer).tuning]
    for where in [name for name, each in sections.items() if each.augment != "none" and unable]:
        yield f"study.{where}.augment: the {unable[0]} trainer has none; leave it out"
    for model in study.dense_of:
        if model not in trained:
            yield unknown(f"study.dense_of.{model}", model, sorted(trained - {"baseline"}))
    for field, values in study.preferred.items():
        where = f"study.prefer.{field}"
        if field not in space.entries:
            yield unknown(where, field, [name for name in space.entries if space.parameters(name)])
            continue
        for value in values:
            if problem := space.unpreferred(field, value):
                yield f"{where}: {problem}"
    confirm = study.confirm
    if confirm.first_seed <= study.seed < confirm.first_seed + confirm.seeds:
        yield (
            f"study.confirm.first_seed: {confirm.first_seed} would train again with study.seed {study.seed}, which the "
            f"search has used; write another, such as {study.seed + 1_000_000}"
        )
    for name, partial in study.references.items():
        try:
            space.reference(partial)
        except SpaceError as error:
            yield from (f"study.references.{name}.{problem}" for problem in error.problems)


def _placed(config: Config) -> Iterator[str]:
    executor = config.executor
    if executor.name != "ray":
        for name in sorted(executor.model_fields_set & {"address", "num_cpus", "num_gpus"}):
            yield f"executor.{name}: belongs to executor=ray; write executor=ray, or leave it out"
        return
    if importlib.util.find_spec("ray") is None:
        yield (
            "executor: 'ray' is not installed; run .venv/bin/pip install -e '.[ray]' -c constraints.txt, or write "
            "executor=local"
        )
    if not re.fullmatch(r"auto|local|(ray://)?[^/:\s]+:\d+", executor.address):
        yield (
            f"executor.address: {executor.address!r} is not an address; write auto, local, HOST:PORT of a cluster's "
            "head, or ray://HOST:PORT of its client server"
        )
    for name, amount in (("num_cpus", executor.num_cpus), ("num_gpus", executor.num_gpus)):
        if amount > 1 and amount != int(amount):
            yield f"executor.{name}: {amount:g} must be a whole number above 1; Ray shares only what is below"
    if config.device == "cuda" and not executor.num_gpus:
        yield "executor.num_gpus: 0 hides every GPU from the workers, and device=cuda needs one; write e.g. 0.5"
    if config.device == "cpu" and executor.num_gpus:
        yield f"executor.num_gpus: {executor.num_gpus:g} would stay idle with device=cpu; write 0, or device=auto"


def messages(error: ValidationError, schema: type[BaseModel] = Config) -> Iterator[str]:
    """pydantic's errors in our words, one per field: field, value, rule, valid choices."""
    found: dict[str, list[str]] = {}
    values: dict[str, Any] = {}
    for item in error.errors():
        # Members of a union and of a dict's type are spelt out in the location; people write none of them.
        location = [
            p
            for p in item["loc"]
            if not (isinstance(p, str) and re.search(r"[\[\]()]|^(literal|int|str|constrained-.*)$", p))
        ]
        where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location).lstrip(".")
        if item["type"] == "extra_forbidden":
            yield unknown(where, str(location[-1]), _fields_at(location[:-1], schema))
        elif item["type"] == "missing":
            yield f"{where}: missing; write {where}=..."
        else:
            values[where] = item["input"]
            rule = re.sub(r"a valid dictionary.*", "a mapping", item["msg"]).removeprefix("Input ")
            found.setdefault(where, []).append(rule[0].lower() + rule[1:])
    for where, rules in found.items():
        yield f"{where}: {values[where]!r} is not valid; it {', or '.join(rules)}"


def _fields_at(location: list[Any], schema: type[BaseModel]) -> list[str]:
    """Names of the fields of the section at `location`."""
    section: Any = schema
    for part in location:
        annotation = section.model_fields[part].annotation
        nested = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not nested or get_origin(annotation) is dict:
            return []
        section = nested[0]
    return list(section.model_fields)
