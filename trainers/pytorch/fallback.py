"""Integers for a network that torch.export cannot capture: in its exported file, by ONNX Runtime's own quantizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from trainers.base import Job
from trainers.onnx import run
from trainers.onnx.graph import described
from trainers.onnx.place import placed
from trainers.pytorch.capture import CaptureError
from trainers.recipe import Recipe

CALIBRATION_ROWS = 256


def quantized_file(recipe: Recipe, job: Job, file: Path, about: Mapping[str, str], problem: CaptureError) -> list[str]:
    """Give the float ONNX `file` integer operators where they pay, in place; returns what was done, in words.

    `problem`: why the network was not captured. `qat_int8` becomes int8 after training: there is no program with
    fake quantization to train. Raises TrainingError where ONNX Runtime's quantizer fails too.
    """
    dataset = job.task.data("train" if job.task.info().trains else "validation")
    made, notes = placed(recipe, job, file, run.calibration(dataset, CALIBRATION_ROWS, job.pause), ())
    onnx.save(described(made, about), file)
    untrained = ", after training: there is no program to train with" if recipe.quantization.trained else ""
    return [f"int8 by onnxruntime.quantization{untrained} ({problem.message})", *notes]
