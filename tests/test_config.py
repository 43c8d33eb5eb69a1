"""A study's mistakes are all reported at once, each with field, value, rule and valid choices."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from search.study.config import ConfigError, check

STUDIES = sorted((Path(__file__).parent.parent / "experiments" / "study").glob("*.yaml"))


def load(path: Path) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(OmegaConf.load(path))
    return dict(plain)


@pytest.fixture
def raw() -> dict[str, Any]:
    study = load(STUDIES[0].parent / "smoke.yaml")
    return {"study": study, "executor": {"name": "local"}, "root": "mlruns"}


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_every_study_of_the_project_is_valid_and_says_how_to_run_it(path: Path) -> None:
    config = check({"study": load(path)})
    assert config.study.name == path.stem
    assert path.read_text().startswith(f"# python -m search.run study={path.stem}\n")
    for partial in config.study.references.values():
        config.study.space.reference(partial)


MISTAKES = [
    ("budgett", {"trials": 3}, "study.budgett: no such field (did you mean budget?)"),
    ("objectives", ["accuracy", "latncy"], "study.objectives[1]: 'latncy' is not a metric (did you mean latency"),
    ("objectives", [], "study.objectives: [] is not valid"),
    ("objectives", ["accuracy", "accuracy"], "names a metric twice"),
    ("constraints", ["accuracy_drop < 0.1"], "must read like 'accuracy_drop <= 0.02'"),
    ("constraints", ["drop <= 0.1"], "study.constraints[0]: 'drop' is not a metric; choose from accuracy"),
    ("runtime", "onnxruntim", "study.runtime: 'onnxruntim' is not a runtime; choose from onnxruntime"),
    ("runtime", "litert", "study.runtime: 'litert' loads .tflite files, which the pytorch trainer does not write"),
    ("runtime", {"tensorflow": "litert"}, "study.runtime: names no runtime for the pytorch trainer"),
    ("budget", {"trials": 0}, "study.budget.trials: 0 is not valid"),
    ("confirm", {"first_seed": 0}, "study.confirm.first_seed: 0 would train again with study.seed 0"),
    ("seed", "seven", "study.seed: 'seven' is not valid"),
    ("name", "a/b", "study.name: 'a/b' is not valid"),
    ("task", {"name": "mnits"}, "study.task.name: 'mnits' is not a task"),
    ("recipe.model", "lenet6", "study.recipe.model: the pytorch trainer has no 'lenet6'; choose from lenet5"),
    ("recipe.model", {"choices": []}, "study.recipe.model.choices: [] must be a list with at least one value"),
    ("recipe.trainer", "jax", "study.recipe.trainer: 'jax' is not valid; choose from pytorch, tensorflow, onnx"),
    ("recipe.pruning.sparsity", 1.2, "study.recipe.pruning.sparsity: 1.2 must lie between 0 and 0.99"),
    ("recipe.pruning.sparsity", {"low": 0.9, "high": 0.2}, "low 0.9 must be below high 0.2"),
    ("recipe.pruning.sparsity", {"low": 0.1}, "study.recipe.pruning.sparsity.high: None must be a number"),
    ("recipe.pruning.granularty", "none", "no such field (did you mean granularity?)"),
    ("recipe.quantization.scheme", "int9", "'int9' is not valid; choose from none, float16"),
    ("recipe.quantization.clusters", 12, "12 is not valid; choose from 0, 8, 16, 32"),
    ("recipe.distillation.temperature", {"low": 0, "high": 3, "log": True}, "must lie between 0.1 and 100"),
    ("recipe.distillation.teacher", "lenet5", "choose from baseline, pytorch/lenet5"),
    ("recipe.finetuning.epochs", 1.5, "study.recipe.finetuning.epochs: 1.5 must be a whole number"),
    ("dense_of", {"lenet55": {"epochs": 2}}, "study.dense_of.lenet55: no such field (did you mean lenet300?)"),
    ("dense_of", {"lenet5": {"augment": "mirror"}}, "study.dense_of.lenet5.augment: 'mirror' is not valid"),
    ("published", {"A": {"accuracy": 0.9, "ratio": 9}}, "study.published.A.ratio: 'ratio' is not a metric"),
    ("published", {"A": {"float32_ratio": 9}}, "study.published.A: gives float32_ratio; it needs accuracy and one"),
    ("published", {"a/b": {"accuracy": 0.9, "size_bytes": 9}}, "study.published"),
    ("references", {"bad": {"pruning": {"granularity": "block"}}}, "study.references.bad.pruning.granularity: 'block'"),
]


@pytest.mark.parametrize(("field", "value", "says"), MISTAKES, ids=lambda v: str(v)[:40])
def test_one_mistake_one_message(raw: dict[str, Any], field: str, value: Any, says: str) -> None:
    _put(raw["study"], field, value)
    with pytest.raises(ConfigError) as caught:
        check(raw)
    assert [p for p in caught.value.problems if says in p], caught.value.problems
    assert len(caught.value.problems) == 1, caught.value.problems


def test_all_mistakes_at_once(raw: dict[str, Any]) -> None:
    broken = copy.deepcopy(raw)
    broken["executr"] = {}
    for field, value in (("runtime", "x"), ("seed", -1), ("recipe.pruning.sparsity", 2), ("objectives", ["speed"])):
        _put(broken["study"], field, value)
    with pytest.raises(ConfigError) as caught:
        check(broken)
    assert len(caught.value.problems) == 5


def _put(study: dict[str, Any], field: str, value: Any) -> None:
    *parents, leaf = field.split(".")
    for parent in parents:
        study = study[parent]
    study[leaf] = value
