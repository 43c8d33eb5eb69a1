"""Runs the model of this folder with numpy and its runtime alone: python infer.py [IMAGES.npy | INPUTS.npz]

Without a file it answers example.npz and compares with what was answered when the model was picked. IMAGES.npy: whole
pixel values from 0 to 255, [N, height, width] grey or [N, height, width, 3]. INPUTS.npz: the model's inputs by name,
prepared as for training. Labels are printed; other outputs are written to outputs.npz. Copied by search.pick.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


def load(about: Mapping[str, Any]) -> Run:
    """The file on its runtime, with as many threads as the search measured it with."""
    file = HERE / f"model.{about['format']}"
    if about["format"] == "tflite":
        return _litert(file, about)
    return _openvino(file, about) if about["runtime"] == "openvino" else _onnxruntime(file, about)


def _onnxruntime(file: Path, about: Mapping[str, Any]) -> Run:
    import onnxruntime

    def session(saturate: bool) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = about["threads"]
        if saturate:
            options.add_session_config_entry("session.x64quantprecision", "1")
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    cpuinfo = Path("/proc/cpuinfo")
    saturate = platform.machine() in ("x86_64", "AMD64") and not (cpuinfo.exists() and "vnni" in cpuinfo.read_text())
    made = [session(saturate)]  # on x86 without VNNI sums of int8 would overflow
    names = [port.name for port in made[0].get_outputs()]

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            found = made[0].run(None, dict(inputs))
        except Exception:
            if not saturate:
                raise
            made[0] = session(False)  # some files refuse that option, at the first run
            found = made[0].run(None, dict(inputs))
        return dict(zip(names, found, strict=True))

    return run


def _openvino(file: Path, about: Mapping[str, Any]) -> Run:
    import openvino

    threads = {"INFERENCE_NUM_THREADS": about["threads"]}
    compiled = openvino.Core().compile_model(str(file), "CPU", threads)

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = compiled(dict(inputs))
        return {port["name"]: found[at] for at, port in enumerate(about["outputs"])}

    return run


def _litert(file: Path, about: Mapping[str, Any]) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file), num_threads=about["threads"])
    given, gives = interpreter.get_input_details(), interpreter.get_output_details()

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays = [inputs[port["name"]] for port in about["inputs"]]
        for port, array in zip(given, arrays, strict=True):
            interpreter.resize_tensor_input(port["index"], array.shape)
        interpreter.allocate_tensors()
        for port, array in zip(given, arrays, strict=True):
            interpreter.set_tensor(port["index"], np.ascontiguousarray(array, port["dtype"]))
        interpreter.invoke()
        found = [interpreter.get_tensor(port["index"]).copy() for port in gives]
        return {port["name"]: array for port, array in zip(about["outputs"], found, strict=True)}

    return run


def prepared(images: np.ndarray, about: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Pixels from 0 to 255 -> the model's input: scaled to 0..1, normalized, in the file's layout."""
    serving, port = about["serving"] or {}, about["inputs"][0]
    if serving.get("kind") != "image" or len(about["inputs"]) != 1:
        sys.exit("infer.py: this model takes no images; give its inputs as INPUTS.npz, one array per name")
    options = serving["options"]
    pixels: Any = np.asarray(images, np.float32)
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    pixels = (pixels / 255 - np.float32(options["mean"])) / np.float32(options["std"])
    shape = [axis if isinstance(axis, int) else -1 for axis in port["shape"]]
    if shape[1] == pixels.shape[3] and shape[3] != pixels.shape[3]:
        pixels = np.moveaxis(pixels, 3, 1)
    if any(-1 != wanted != got for wanted, got in zip(shape[1:], pixels.shape[1:], strict=True)):
        sys.exit(f"infer.py: images of {list(images.shape[1:])} do not fit the model's input {port['shape']}")
    return {port["name"]: np.ascontiguousarray(pixels, port["dtype"])}


def check(run: Run) -> str:
    """Answer example.npz as when the model was picked; other CPUs round int8 a little otherwise."""
    with np.load(HERE / "example.npz") as stored:
        inputs = {name[2:]: stored[name] for name in stored.files if name.startswith("i.")}
        wanted = {name[2:]: stored[name] for name in stored.files if name.startswith("o.")}
    found = run(inputs)
    worst = max(float(np.sqrt(np.mean((found[n] - w) ** 2) / max(np.mean(w**2), 1e-30))) for n, w in wanted.items())
    if worst > 0.05:
        sys.exit(
            f"infer.py: the answers to example.npz are off by {worst:.1%}; the file is not the one that was picked"
        )
    return f"example.npz: answered as when the model was picked (largest relative error {worst:.1e})"


def main() -> None:
    """The command line."""
    about = json.loads((HERE / "about.json").read_text())
    run = load(about)
    if len(sys.argv) < 2:
        print(check(run))
        return
    given = np.load(sys.argv[1])
    inputs = {name: given[name] for name in given.files} if sys.argv[1].endswith(".npz") else prepared(given, about)
    outputs = run(inputs)
    serving = about["serving"] or {}
    if serving.get("answer") == "label" and len(outputs) == 1:
        classes = serving.get("classes") or []
        for row in next(iter(outputs.values())).argmax(-1):
            print(classes[int(row)] if int(row) < len(classes) else int(row))
        return
    np.savez("outputs.npz", **outputs)  # type: ignore[arg-type]
    print("outputs.npz: " + ", ".join(f"{name} {list(array.shape)}" for name, array in outputs.items()))


if __name__ == "__main__":
    main()
