"""int8 files of one trained network by every quantizer: Pare's, ONNX Runtime's, NNCF's on ONNX and on OpenVINO."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx

from benchmarks import openvino_ir
from benchmarks.trained import NETWORKS, told, trained
from runtimes.base import Artifact
from search.trial.evaluate import score
from search.trial.timing import FileTimer
from tasks.base import Arrays
from trainers.base import COMPARED_ROWS, Job
from trainers.onnx import run
from trainers.onnx.static import Reader
from trainers.onnx.weights import prepared, quietly
from trainers.recipe import FineTuning, Pruning, Quantization, Recipe

RUNTIMES = {"onnxruntime": "onnx", "benchmarks.openvino_ir": openvino_ir.FORMAT}
TITLES = {"onnxruntime": "ONNX Runtime", "benchmarks.openvino_ir": "OpenVINO"}
CALIBRATION = 256


@dataclass
class Made:
    """A quantized file for a runtime and what was found of it. `own`: agreement with the network it was made of."""

    quantizer: str
    runtime: str
    file: Path
    own: float | None = None
    notes: tuple[str, ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)


class Bench:
    """One trained network: its float file, calibration samples, and what each quantizer makes of them."""

    def __init__(self, name: str, home: Path, minutes: float, folder: Path) -> None:
        self.name, self.folder, self.transformer = name, folder, NETWORKS[name].transformer
        self.home = home
        self.task, self.trainer, self.dense = trained(name, home, minutes)
        self.float = self._compressed("float", "onnxruntime", Recipe(self.dense.spec.model)).file
        data = self.task.data("train")
        self.samples = [
            {key: array[row : row + 1] for key, array in batch.items()}
            for batch in run.calibration(data, CALIBRATION, lambda leaving=None: None)
            for row in range(len(next(iter(batch.values()))))
        ]

    def _compressed(self, name: str, runtime: str, recipe: Recipe) -> Made:
        """What Pare makes of the recipe for the runtime, integers only where they are faster there."""
        folder = self.folder / f"{name}-{runtime}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        timer = FileTimer("openvino" if "openvino" in runtime else runtime, self.task)
        kept = self.home / "quantizers-networks"  # what is fine-tuned once serves every scheme and runtime
        job = Job(self.task, folder, "onnx", progress=told, timer=timer, decisions=folder / "decisions", networks=kept)
        made = self.trainer.compress(recipe, self.dense, None, job)
        first = score("onnxruntime", Artifact.of(made.file), self.task, self.task.data("validation"), made.rows)[1]
        return Made(name, runtime, made.file, self.task.agreement(first, made.outputs), made.notes)

    def pare(self, runtime: str) -> Made:
        """Static int8 with measured placement."""
        recipe = Recipe(self.dense.spec.model, quantization=Quantization("static_int8"))
        return self._compressed("pare", runtime, recipe)

    def pruned(self, runtime: str, epochs: float, scheme: str = "static_int8") -> Made:
        """Half of the channels, fine-tuned, then the same."""
        recipe = Recipe(
            self.dense.spec.model,
            pruning=Pruning("channel", 0.5, "one_shot"),
            quantization=Quantization(scheme),
            finetuning=FineTuning(epochs=epochs, learning_rate=self.dense.spec.learning_rate),
        )
        return self._compressed(f"half the channels, {scheme.replace('none', 'fp32')}", runtime, recipe)

    def ort(self) -> onnx.ModelProto:
        """ONNX Runtime's static QDQ with its own preparation, unsigned activations, signed weights per channel."""
        import onnxruntime.quantization as library

        ready, made = self.folder / "prepared.onnx", self.folder / "ort.onnx"
        with quietly():
            library.quantize_static(
                prepared(self.float, ready),
                made,
                Reader(self.samples),
                quant_format=library.QuantFormat.QDQ,
                per_channel=True,
                activation_type=library.QuantType.QUInt8,
                weight_type=library.QuantType.QInt8,
            )
        return onnx.load(made)

    def nncf(self, model: Any) -> Any:
        """NNCF's post-training quantization of an ONNX or OpenVINO model."""
        import nncf

        return nncf.quantize(
            model,
            nncf.Dataset(self.samples),
            subset_size=len(self.samples),
            target_device=nncf.TargetDevice.CPU,
            model_type=nncf.ModelType.TRANSFORMER if self.transformer else None,
        )

    def nncf_onnx(self) -> onnx.ModelProto:
        """NNCF on the ONNX file."""
        made: onnx.ModelProto = self.nncf(onnx.load(self.float))
        return made

    def nncf_openvino(self) -> Any:
        """NNCF on OpenVINO's own format, which is OpenVINO's own quantizer."""
        import openvino

        return self.nncf(openvino.Core().read_model(self.float))

    def all(self) -> Iterator[Made]:
        """Every quantizer's file for every runtime, the float one first; what fails has its reason as a note."""
        foreign: dict[str, Callable[[], Any]] = {
            "onnxruntime.quantization": self.ort,
            "NNCF on ONNX": self.nncf_onnx,
            "NNCF on OpenVINO": self.nncf_openvino,
        }
        for runtime in RUNTIMES:
            yield self.stored(Made("fp32", runtime, self.float))
            yield self.stored(self.pare(runtime))
        for name, make in foreign.items():
            told(f"{self.name}: {name}", 0.0)
            try:
                model = make()
            except Exception as problem:  # the libraries raise whatever happens inside
                yield Made(name, "", Path(), notes=(f"fails: {run.reason(problem)[:160]}",))
                continue
            if isinstance(model, onnx.ModelProto):
                file = self.folder / f"{name}.onnx"
                onnx.save(model, file)
                for runtime in RUNTIMES:
                    yield self.stored(Made(name, runtime, file))
            else:
                file = openvino_ir.write(model, self.folder / f"{name}.{openvino_ir.FORMAT}")
                yield Made(name, "benchmarks.openvino_ir", file)

    def stored(self, made: Made) -> Made:
        """The same, its file in the runtime's own format."""
        if RUNTIMES[made.runtime] == made.file.suffix.lstrip("."):
            return made
        import openvino

        file = made.file.with_suffix(f".{openvino_ir.FORMAT}")
        return replace(made, file=openvino_ir.write(openvino.Core().read_model(made.file), file))

    def judge(self, made: Made, exact: Arrays) -> Arrays:
        """Adds accuracy and agreement; returns the outputs on the first rows of validation."""
        if not made.runtime:
            return exact
        data = self.task.data("validation")
        try:
            metrics, outputs = score(made.runtime, Artifact.of(made.file), self.task, data, COMPARED_ROWS)
        except Exception as problem:
            made.notes, made.runtime = (*made.notes, f"fails: {run.reason(problem)[:160]}"), ""
            return exact
        made.figures |= metrics | {"agrees_with_fp32": self.task.agreement(outputs, exact or outputs)}
        made.figures["size_bytes"] = Artifact.of(made.file).size_bytes()
        return outputs
