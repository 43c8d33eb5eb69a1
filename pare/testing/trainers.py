"""The contract of a Trainer, as tests: derive a class from TrainerContract in a test file of one's own.

    from pare.testing.trainers import TrainerContract

    class TestMine(TrainerContract):
        trainer, task, model = "my_package.trainer:Trainer", staticmethod(my_task), "small"

pytest runs every method that begins with `test_`. All work happens in a process of its own, so that no two frameworks
meet; `task` and the trainer must therefore be found by import there.
"""
# ruff: noqa: D102 - the name of a test says what it shows

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from pare.testing import trainer_work
from pare.testing.trainer_work import FRAMEWORKS, Result, Subject, carry_out, digests, make_dense, open_dense, planted
from tasks.base import Task, TaskInfo
from trainers.base import Capabilities, Dense, Teacher, TrainingError, capabilities
from trainers.recipe import Distillation, FineTuning, Pruning, Quantization, Recipe, RecipeError


class TrainerContract:
    """What every trainer must do. Set `trainer`, `task` (makes a small task) and `model` in a class of your own.

    `learned`: what the first metric of a trained model reaches. `dense_training`: how the dense model is trained.
    `loss_of_quality`: what a compressed model may lose of that metric. `agreement`: of a file with its model; `coarse`:
    the same of weights rounded to 4 bits after the training. `tuning`: of all recipes. `pretrained`: a model of the
    task that comes with its weights, if it has one.
    """

    trainer: str
    task: Callable[[], Task]
    model: str
    learned: float = 0.9
    loss_of_quality: float = 0.1
    agreement: float = 0.97
    coarse: float = 0.85
    dense_training: ClassVar[Mapping[str, Any]] = {"epochs": 4, "learning_rate": 2e-3, "batch_size": 100}
    tuning = FineTuning(epochs=2, qat_epochs=1, learning_rate=2e-3, batch_size=100)
    sparsity: float = 0.6
    pretrained: str = ""

    # What the tests below are given.

    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls) -> Subject:
        """What is tested."""
        return Subject(cls.trainer, cls.task, cls.model, cls.dense_training)

    @pytest.fixture(scope="class")
    @classmethod
    def able(cls, subject: Subject) -> Capabilities:
        """What the trainer says of itself."""
        return capabilities(subject.trainer)

    @pytest.fixture(scope="class")
    @classmethod
    def info(cls, subject: Subject) -> TaskInfo:
        """What the task says of itself."""
        found: TaskInfo = cls.in_worker(subject, trainer_work.info_of, subject)
        return found

    @pytest.fixture(scope="class")
    @classmethod
    def dense(cls, subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Dense:
        """The dense model, trained once."""
        made: Dense = cls.in_worker(subject, make_dense, subject, tmp_path_factory.mktemp("dense"))
        return made

    @pytest.fixture(scope="class")
    @classmethod
    def carried_out(cls, subject: Subject, dense: Dense) -> Callable[..., Result]:
        """`carried_out(recipe, teacher)`: each recipe is run once, unless `again`."""
        kept: dict[Any, tuple[Result, Teacher | None]] = {}  # the teacher too: its id stands for it

        def run(recipe: Recipe, teacher: Teacher | None = None, again: bool = False, **more: Any) -> Result:
            key = recipe, id(teacher), *more.items()
            if again or key not in kept:
                kept[key] = cls.in_worker(subject, carry_out, subject, recipe, dense, teacher, **more), teacher
            return kept[key][0]

        return run

    @pytest.fixture
    def recipe(self, subject: Subject) -> Recipe:
        """The dense recipe, with the contract's fine-tuning."""
        return Recipe(subject.model, subject.trainer, finetuning=self.tuning)

    @staticmethod
    def in_worker(subject: Subject, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What `work(...)` gives in the trainer's process; raises what it raises."""
        return trainer_work.pool(subject.trainer).submit(work, *args, **kwargs).result()

    @staticmethod
    def needs_training(able: Capabilities) -> None:
        """Leave the test out where nothing is trained."""
        if not able.trains:
            pytest.skip("this trainer trains nothing")

    def good(self, result: Result, info: TaskInfo, dense: Result) -> bool:
        """Whether the file is about as good as the dense one, by the task's first metric."""
        metric = info.metrics[0]
        lost = dense.metrics[metric.name] - result.metrics[metric.name]
        return (lost if metric.direction == "maximize" else -lost) <= self.loss_of_quality

    # The tests.

    def test_its_capabilities_are_read_without_a_framework(self, subject: Subject) -> None:
        code = (
            "import sys; from trainers.base import capabilities; "
            f"capabilities({subject.trainer!r}); print([m for m in {FRAMEWORKS!r} if m in sys.modules])"
        )
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (said.stdout.strip(), said.stderr) == ("[]", "")

    def test_the_dense_model_is_as_good_as_it_should_be(
        self, dense: Dense, info: TaskInfo, carried_out: Any, recipe: Recipe
    ) -> None:
        assert dense.parameters > 0
        metric = info.metrics[0]
        value = carried_out(recipe).metrics[metric.name]
        assert value >= self.learned if metric.direction == "maximize" else value <= self.learned

    def test_the_outputs_of_the_dense_model_say_what_it_has_learned(
        self, able: Capabilities, dense: Dense, info: TaskInfo, subject: Subject
    ) -> None:
        self.needs_training(able)
        assert dense.outputs is not None
        assert set(dense.outputs) == {port.name for port in info.outputs}
        for port in info.outputs:
            assert dense.outputs[port.name].dtype == np.float32
            assert dense.outputs[port.name].shape == (info.counts["train"], *port.shape[1:])
        metric = info.metrics[0]
        value = self.in_worker(subject, trainer_work.scored, subject, dense.outputs)[metric.name]
        assert value >= self.learned if metric.direction == "maximize" else value <= self.learned

    def test_the_dense_model_is_found_again(self, subject: Subject, dense: Dense) -> None:
        found = self.in_worker(subject, open_dense, subject, dense.spec, dense.folder)
        assert (found.spec, found.parameters) == (dense.spec, dense.parameters)
        assert all(np.array_equal(found.outputs[name], array) for name, array in (dense.outputs or {}).items())
        with pytest.raises(ValueError, match="holds the dense model of"):
            self.in_worker(subject, open_dense, subject, replace(dense.spec, seed=1), dense.folder)

    def test_the_dense_model_comes_out_the_same_twice(self, subject: Subject, dense: Dense, tmp_path: Path) -> None:
        self.in_worker(subject, make_dense, subject, tmp_path / "again")
        assert digests(tmp_path / "again") == digests(dense.folder)

    def test_every_scheme_gives_a_file_that_says_what_the_model_says(
        self, able: Capabilities, info: TaskInfo, carried_out: Any, recipe: Recipe
    ) -> None:
        for scheme in able.schemes:
            result = carried_out(replace(recipe, quantization=Quantization(scheme)))
            self.check_result(result, info)
            least = self.coarse if scheme == "weight_only_int4" else self.agreement
            assert result.agreement >= least, f"{scheme}: {result.agreement}"
            assert self.good(result, info, carried_out(recipe)), scheme

    def check_result(self, result: Result, info: TaskInfo) -> None:
        """What every Compressed is like."""
        made = result.compressed
        assert 0 <= made.sparsity < 1
        assert 0 <= made.pruned < 1
        assert 0 < made.rows <= info.counts["validation"]
        for port in info.outputs:
            assert made.outputs[port.name].dtype == np.float32
            assert made.outputs[port.name].shape == result.outputs[port.name].shape == (made.rows, *port.shape[1:])
        assert made.stages["export"] > 0
        assert all(isinstance(note, str) for note in made.notes)

    def test_the_dense_recipe_is_the_dense_model(self, carried_out: Any, recipe: Recipe) -> None:
        made = carried_out(recipe).compressed
        assert made.curves == []
        assert (made.sparsity, made.pruned) == (0.0, 0.0)

    def test_weights_are_set_to_zero(
        self, able: Capabilities, carried_out: Any, recipe: Recipe, info: TaskInfo
    ) -> None:
        for granularity in set(able.granularities) & {"unstructured", "block", "n_m"}:
            for schedule in ("one_shot", "gradual"):
                pruned = Pruning(granularity, 0.5 if granularity == "n_m" else self.sparsity, schedule)
                result = carried_out(replace(recipe, pruning=pruned))
                self.check_result(result, info)
                # Of a group of fewer than 4 inputs less than half can go.
                least = 0.4 if granularity == "n_m" else self.sparsity - 0.02
                assert least <= result.compressed.pruned <= pruned.sparsity + 0.02, pruned
                assert least <= result.compressed.sparsity <= pruned.sparsity + 0.02, pruned
                assert self.good(result, info, carried_out(recipe)), pruned

    def test_channels_are_removed(self, able: Capabilities, carried_out: Any, recipe: Recipe, info: TaskInfo) -> None:
        if "channel" not in able.granularities:
            pytest.skip("this trainer removes no channels")
        for schedule in ("one_shot", "gradual"):
            result = carried_out(replace(recipe, pruning=Pruning("channel", 0.5, schedule)))
            self.check_result(result, info)
            assert result.compressed.pruned > 0.3
            assert result.compressed.sparsity > 0.2
            assert len(result.content) < 0.9 * len(carried_out(recipe).content)
            assert self.good(result, info, carried_out(recipe)), schedule

    def test_a_shape_is_that_of_the_file_that_training_gives(
        self, able: Capabilities, subject: Subject, carried_out: Any, recipe: Recipe, dense: Dense
    ) -> None:
        share = {"none": 0.0, "n_m": 0.5}
        pruned = [Pruning(granularity, share.get(granularity, self.sparsity)) for granularity in able.granularities]
        recipes = [replace(recipe, pruning=pruning) for pruning in pruned]
        recipes += [replace(recipe, quantization=Quantization(scheme)) for scheme in able.schemes]
        recipes += [replace(recipe, quantization=Quantization(clusters=count)) for count in able.clusters if count][:1]
        recipes += [self.everything(able, recipe)]
        for each in recipes:
            outlined = self.in_worker(subject, trainer_work.outlined, subject, each, dense)
            if outlined is None:
                pytest.skip("this trainer knows no shape without training")
            built = self.in_worker(subject, trainer_work.built, subject, carried_out(each).content)
            assert outlined[0] == built[0], each.describe()
            assert outlined[1] == pytest.approx(built[1], rel=0.1), each.describe()

    def everything(self, able: Capabilities, recipe: Recipe) -> Recipe:
        """The recipe with as much as the trainer can do at once."""
        pruned = next((g for g in ("unstructured", "n_m", "block", "channel") if g in able.granularities), "none")
        scheme = next((s for s in ("qat_int8", "static_int8", "float16") if s in able.schemes), "none")
        pruning = Pruning(pruned, 0.5 if pruned != "none" else 0.0)
        return replace(recipe, pruning=pruning, quantization=Quantization(scheme))

    def test_the_same_recipe_gives_the_same_file(self, able: Capabilities, carried_out: Any, recipe: Recipe) -> None:
        everything = self.everything(able, recipe)
        assert carried_out(everything, again=True).content == carried_out(everything).content

    def test_another_seed_gives_another_file(self, able: Capabilities, carried_out: Any, recipe: Recipe) -> None:
        self.needs_training(able)
        trained = replace(self.everything(able, recipe), quantization=Quantization())
        assert carried_out(replace(trained, seed=1)).content != carried_out(trained).content

    @pytest.mark.parametrize("kind", ["soft", "hard"])
    def test_the_student_learns_what_the_teacher_says(
        self, kind: str, able: Capabilities, carried_out: Any, recipe: Recipe, dense: Dense, info: TaskInfo
    ) -> None:
        self.needs_training(able)
        taught = replace(recipe, distillation=Distillation(kind, 2.0, 1.0))
        result = carried_out(taught, Teacher(planted(dense.outputs or {}, info.outputs)))
        wanted = planted(carried_out(recipe).compressed.outputs, info.outputs)
        for port in info.outputs:
            said, other = result.outputs[port.name], carried_out(recipe).outputs[port.name]
            if port.kind == "logits":
                right = np.mean(said.argmax(port.axis) == wanted[port.name].argmax(port.axis))
                assert right > 0.6, port.name
            else:
                assert np.mean(np.abs(said - wanted[port.name])) < np.mean(np.abs(other - wanted[port.name])), port.name

    def test_a_dense_model_teaches_live(
        self, able: Capabilities, carried_out: Any, recipe: Recipe, dense: Dense, info: TaskInfo
    ) -> None:
        self.needs_training(able)
        taught = replace(recipe, distillation=Distillation("soft", 2.0, 0.5))
        result = carried_out(taught, Teacher(None, dense))
        assert result.compressed.curves
        assert self.good(result, info, carried_out(recipe))

    def test_a_loss_that_is_not_a_number_ends_the_trial_with_that_reason(
        self, able: Capabilities, carried_out: Any, recipe: Recipe, dense: Dense
    ) -> None:
        self.needs_training(able)
        broken = Teacher({name: np.full_like(array, np.nan) for name, array in (dense.outputs or {}).items()})
        with pytest.raises(TrainingError, match=r"(?i)loss.* nan.*learning_rate"):
            carried_out(replace(recipe, distillation=Distillation("soft", 2.0, 0.5)), broken)

    def test_a_recipe_that_cannot_be_carried_out_is_refused_with_the_choices(
        self, carried_out: Any, recipe: Recipe, able: Capabilities, info: TaskInfo, dense: Dense
    ) -> None:
        rows = info.counts["train"]
        taught = Distillation("soft", 2.0, 0.5)
        cases: list[tuple[dict[str, Any], Teacher | None, str]] = [
            ({"model": "no-such-model"}, None, "model: .* has no 'no-such-model' .*; choose from"),
        ]
        if able.trains:
            short = {name: array[1:] for name, array in (dense.outputs or {}).items()}
            cases += [
                ({"distillation": taught}, None, f"needs the teacher's outputs on the {rows} .* given none"),
                ({"distillation": taught}, Teacher(short), rf"on the {rows} .* given of shape \({rows - 1}, "),
            ]
        else:
            cases.append(({"distillation": taught}, None, "distillation.kind: the .* trainer trains nothing"))
        for part, field, valid, every in (
            (Pruning, "granularity", able.granularities, ("block", "channel", "n_m", "unstructured")),
            (Quantization, "scheme", able.schemes, ("qat_int4", "float16", "qat_int8", "static_int8", "dynamic_int8")),
        ):
            for value in [value for value in every if value not in valid][:1]:
                change: dict[str, Any] = {part.__name__.lower(): part(value)}
                cases.append((change, None, rf"{field}: .* has no '{value}'; choose from none"))
        for change, teacher, message in cases:
            with pytest.raises(RecipeError, match=message):
                carried_out(replace(recipe, **change), teacher)

    def test_a_dense_model_of_another_name_is_refused(self, subject: Subject, recipe: Recipe, dense: Dense) -> None:
        other = replace(dense, spec=replace(dense.spec, model="another"))
        with pytest.raises(RecipeError, match=f"{recipe.model!r}, but the dense model given is 'another'"):
            self.in_worker(subject, carry_out, subject, recipe, other, None)

    def test_what_it_has_of_fine_tuning_works_and_the_rest_is_refused(
        self, carried_out: Any, recipe: Recipe, able: Capabilities, info: TaskInfo
    ) -> None:
        values: dict[str, Any] = {"micro_batch": 30, "weight_decay": 0.01, "ema": 0.9, "trainable": "norm_bias_head"}
        for name, value in values.items():
            changed = replace(self.everything(able, recipe), quantization=Quantization())
            changed = replace(changed, finetuning=replace(self.tuning, **{name: value}))
            if name in able.tuning:
                self.check_result(carried_out(changed), info)
            else:
                with pytest.raises(RecipeError, match=f"finetuning.{name}: the .* trainer has none; leave it out"):
                    carried_out(changed)

    def test_half_an_epoch_is_a_training(self, carried_out: Any, recipe: Recipe, able: Capabilities) -> None:
        self.needs_training(able)
        short = replace(self.everything(able, recipe), quantization=Quantization())
        short = replace(short, finetuning=replace(self.tuning, epochs=0.5))
        curves = carried_out(short).compressed.curves
        assert curves[-1]["epoch"] == pytest.approx(0.5, abs=0.1)

    def test_training_asks_for_pauses_and_tells_its_progress(
        self, carried_out: Any, recipe: Recipe, able: Capabilities, info: TaskInfo
    ) -> None:
        everything = self.everything(able, recipe)
        result = carried_out(everything, again=True)
        if not able.trains:
            assert result.pauses > 0
            assert result.compressed.curves == []
            return
        epochs = self.tuning.epochs + (self.tuning.qat_epochs if "qat" in everything.quantization.scheme else 0)
        assert result.pauses >= info.counts["train"] // self.tuning.batch_size * epochs / 8
        for each in {stage for stage, _ in result.progress}:
            fractions = [fraction for stage, fraction in result.progress if stage == each]
            assert fractions == sorted(fractions)
            assert 0 <= fractions[0] <= fractions[-1] == 1.0
        curves = result.compressed.curves
        assert [epoch["epoch"] for epoch in curves] == pytest.approx(list(range(1, int(epochs) + 1)))
        assert set(curves[0]) >= {"epoch", "loss", *(metric.name for metric in info.metrics)}

    def test_a_task_that_does_not_train_is_quantized_and_nothing_else(
        self, carried_out: Any, recipe: Recipe, able: Capabilities, info: TaskInfo
    ) -> None:
        self.needs_training(able)
        scheme = "static_int8" if "static_int8" in able.schemes else "none"
        after = carried_out(replace(recipe, quantization=Quantization(scheme)), trains=False)
        assert after.agreement >= self.agreement
        with pytest.raises(RecipeError, match=r"trains, and the task .* has no loss or no training data"):
            carried_out(replace(recipe, distillation=Distillation("soft", 2.0, 0.5)), trains=False)

    def test_a_model_with_weights_of_its_own_is_taken_as_it_is(
        self, subject: Subject, recipe: Recipe, info: TaskInfo, tmp_path: Path
    ) -> None:
        if not self.pretrained:
            pytest.skip("the task has no model with weights of its own")
        given = replace(subject, model=self.pretrained)
        dense = self.in_worker(given, make_dense, given, tmp_path / "one")
        again = self.in_worker(given, make_dense, replace(given, dense={"epochs": 1, "seed": 9}), tmp_path / "two")
        assert json.loads((dense.folder / "record.json").read_text())["curve"] == []
        assert all(np.array_equal(dense.outputs[name], array) for name, array in again.outputs.items())
        made = self.in_worker(given, carry_out, given, replace(recipe, model=self.pretrained), dense, None)
        assert made.agreement >= self.agreement

    def test_no_process_has_two_frameworks(self, carried_out: Any, recipe: Recipe) -> None:
        kinds = {"keras": "tensorflow", "tf_keras": "tensorflow"}
        assert len({kinds.get(name, name) for name in carried_out(recipe).frameworks}) <= 1

    def test_the_dense_files_are_left_unchanged(
        self, carried_out: Any, recipe: Recipe, dense: Dense, able: Capabilities
    ) -> None:
        before = digests(dense.folder)
        # A recipe not run before, so that at least one runs between the two looks.
        carried_out(replace(self.everything(able, recipe), seed=7))
        assert digests(dense.folder) == before
