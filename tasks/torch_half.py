"""The PyTorch half of a composed task: a user's module, however it came. Only workers import this."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tasks import scorers
from tasks.base import Arrays, Metric, Port, Scorer, Serving, TaskSpec
from tasks.own import Parts
from tasks.ports import Form
from tasks.torch_program import Program, Subject, inputs_form
from tasks.tree import Tree


class TorchHalf:
    """See `tasks.composed.Half`."""

    trainer = "pytorch"
    last_axis = False
    layout = "NCHW"

    def __init__(
        self,
        spec: TaskSpec,
        subject: Subject,
        parts: Parts,
        notes: Sequence[str] = (),
        metrics: tuple[Metric, ...] = (),
        serving: Serving | None = None,
        has_targets: bool = True,
    ) -> None:
        self.spec, self.subject, self.parts = spec, subject, parts
        self.models: tuple[str, ...] = (subject.name,)
        self.notes = list(notes)
        self._metrics, self._serving, self._has_targets = metrics, serving, has_targets
        self._program: Program | None = None

    def adapt(self, inputs: Tree, targets: Tree | None) -> tuple[Tree, Tree | None]:
        """See Half: as they are."""
        return inputs, targets

    def bind(self, inputs: Tree) -> Form:
        """Names for the inputs."""
        form = inputs_form(self.module(), inputs)
        self._program = self.make(form)
        return form

    def module(self) -> nn.Module:
        """The user's module, to look at its signature."""
        return self.subject.build()

    def make(self, form: Form) -> Program:
        """The program, once the inputs have names."""
        return Program(self.subject, form, self.parts, self.spec.loss, self.spec.keep)

    def program(self) -> Program:
        """What the trainer is given."""
        assert self._program is not None
        return self._program

    def probe(self, examples: Sequence[Arrays]) -> Sequence[Arrays]:
        """The model's outputs on examples."""
        return self.program().probe(examples)

    def outputs(self) -> Form:
        """Names of the outputs, known after `probe`."""
        found = self.program().outputs
        assert found is not None
        return found

    def kinds(self, outputs: tuple[Port, ...]) -> tuple[Port, ...]:
        """See Half: as the targets say."""
        return outputs

    def settle(self, inputs: tuple[Port, ...], outputs: tuple[Port, ...], images: bool) -> None:
        """Take the ports as they were described."""
        self.program().ports = outputs
        self.program().moves_images = images

    def metrics(self, outputs: tuple[Port, ...], classified: bool) -> tuple[Metric, ...]:
        """See Half; a name that is none of the known ones is a mistake here."""
        return scorers.metrics_named(self.spec.metric) or self._metrics

    def scorer(self, metrics: tuple[Metric, ...]) -> Scorer | None:
        """The half's own scorer; None for the usual ones."""
        return None

    def trains(self) -> bool:
        """See Half: there is a loss of the user's, or targets to compare with."""
        return self.parts.loss is not None or self._has_targets

    def serving(self) -> Serving | None:
        """What a request goes through; None where the source decides it."""
        return self._serving
