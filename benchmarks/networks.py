"""What works on which network: `python -m benchmarks.networks [NAME ...]` prints it and writes docs/networks.md.

Every network of `benchmarks.zoo` with fresh weights goes through channel pruning, masks, static int8, one step of QAT,
dynamic and weight-only int8 and the export at two batch sizes (and two lengths). A cell is `ok` with a figure, or why
not. Fresh weights show what goes through, not what it costs in accuracy.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from benchmarks.zoo import NETWORKS, Network
from trainers.base import TrainingError
from trainers.onnx import weights
from trainers.onnx.static import StaticInt8
from trainers.pytorch import masks, quantize
from trainers.pytorch.capture import CaptureError, outputs_of, ports_of
from trainers.pytorch.channels import ChannelPruning
from trainers.pytorch.export import export, relative_error
from trainers.pytorch.recover import reestimate
from trainers.recipe import Pruning

ROWS = 8
COLUMNS = ("export", "channel", "mask", "static int8", "QAT", "dynamic int8", "weight-only int8")
PAGE = Path(__file__).parents[1] / "docs" / "networks.md"
PREFACE = """# Networks that go through

Written by `python -m benchmarks.networks` {made}. Every cell is `ok` with a figure, or the reason.

- *export*: an ONNX file checked against the network at two batch sizes and lengths; in brackets the exporter where it
  is not the fast one.
- *channel*: share of the parameters left at 50 % of the channels. *mask*: share of all parameters that masks reach.
- *static int8*, *QAT* (one step): 1 - relative error of the file against the fake-quantized network. Of deep networks
  with fresh weights it is low: each rounding tips the next. Trained ones agree (experiments/LOG.md). What torch.export
  cannot capture is quantized as a file, by onnxruntime.quantization, and compared with the float network.
- *dynamic int8*, *weight-only int8*: 1 - relative error against fp32, and the bytes.
"""


class Trial:
    """One network and what each column does to it."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network, self.folder = network, folder
        torch.manual_seed(0)
        model = network.build()
        self.inputs = network.example(ROWS)
        with contextlib.suppress(Exception):  # one that decides by its data may not even run twice alike
            reestimate(model, [self.inputs])
        self.state = {name: value.clone() for name, value in model.state_dict().items()}

    def model(self) -> nn.Module:
        """The network as it was built."""
        torch.manual_seed(0)
        model = self.network.build().eval()
        model.load_state_dict(self.state)
        return model

    def export(self) -> str:
        """Checked against the network at two batch sizes and lengths by `export` itself."""
        way = export(self.model(), self.network.example(2), self.folder / "float.onnx", {}, self.network.inputs)
        return "" if way == "dynamo-inner" else f"({way})"

    def channel(self) -> str:
        """Half of the channels; then exported, which checks the batch sizes."""
        model = self.model()
        dense = sum(p.numel() for p in model.parameters())
        narrowing = ChannelPruning(
            model, Pruning("channel", 0.5, "one_shot"), self.network.example(2), self.network.keep
        )
        if not narrowing.finish():
            raise TrainingError(narrowing.coverage().describe())
        self._export(model)
        return f"{sum(p.numel() for p in model.parameters()) / dense:.2f} of the parameters left"

    def mask(self) -> str:
        """80 % of all weights that masks reach."""
        model = self.model()
        reached = masks.coverage(model).share
        masked = masks.MaskedPruning(model, Pruning("unstructured", 0.8))
        masked.finish()
        return f"{100 * reached:.0f} % reached"

    def static(self) -> str:
        """Calibrated on a batch; the file against the fake-quantized network.

        Of a network that torch.export cannot capture the float file is quantized, and compared with the network.
        """
        try:
            prepared = quantize.prepare(self.model(), [self.inputs], 8, self.network.inputs)
        except CaptureError:
            return f"{self._quantized_file():.2f} (onnxruntime.quantization)"
        return f"{self._agreement(prepared):.2f}"

    def _quantized_file(self) -> float:
        ports = self.network.inputs or ports_of(self.inputs, "input")
        given = {port.name: each.numpy() for port, each in zip(ports, self.inputs, strict=True)}
        with StaticInt8(self._export(self.model()), [given]) as static:
            _, made = next(static.candidates())
            return 1.0 - static.error(made)

    def qat(self) -> str:
        """One step with fake quantization that changes the weights."""
        prepared = quantize.prepare(self.model(), [self.inputs], 8, self.network.inputs)
        quantize.unfreeze(prepared)
        optimizer = torch.optim.SGD(prepared.parameters(), lr=1e-4)
        # Not towards 0, which is what a fresh head may answer already.
        loss = sum(
            (each.float() - 1.0).square().mean() for each in outputs_of(prepared(*self.inputs)) if each.requires_grad
        )
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        moved = sum(float(p.grad.abs().sum()) for p in prepared.parameters() if p.grad is not None)
        assert moved > 0
        optimizer.step()
        quantize.freeze(prepared, self.inputs)
        return f"{self._agreement(prepared):.2f}"

    def dynamic(self) -> str:
        """ONNX Runtime's own, of the exported file."""
        return self._transformed(weights.dynamic_int8)

    def weight_only(self) -> str:
        """int8 weights, float arithmetic."""
        return self._transformed(weights.weight_only_int8)

    def _export(self, model: nn.Module) -> Path:
        file = self.folder / "model.onnx"
        export(model, self.network.example(2), file, {}, self.network.inputs)
        return file

    def _agreement(self, prepared: torch.fx.GraphModule) -> float:
        """1 - the relative error of the exported file's outputs against those of the fake-quantized network."""
        with torch.no_grad():
            wanted = [each.numpy() for each in outputs_of(prepared(*self.inputs))]
        return self._compared(self._export(quantize.convert(prepared)), wanted)

    def _transformed(self, change: Callable[[Path], None]) -> str:
        model = self.model()
        file = self._export(model)
        before = file.stat().st_size
        change(file)
        with torch.no_grad():
            wanted = [each.numpy() for each in outputs_of(model(*self.inputs))]
        agreement = self._compared(file, wanted)
        return f"{agreement:.2f}, {file.stat().st_size / before:.2f} of the bytes"

    def _compared(self, file: Path, wanted: list[np.ndarray]) -> float:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        ports = self.network.inputs or ports_of(self.inputs, "input")
        known = {each.name for each in session.get_inputs()}
        feeds = {port.name: each.numpy() for port, each in zip(ports, self.inputs, strict=True) if port.name in known}
        found = session.run(None, feeds)
        return 1.0 - max(relative_error(np.asarray(a), b) for a, b in zip(found, wanted, strict=True))


def row(name: str) -> dict[str, str]:
    """Column -> `ok ...`, or the reason; of one network."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(NETWORKS[name], Path(folder))
        steps = (trial.export, trial.channel, trial.mask, trial.static, trial.qat, trial.dynamic, trial.weight_only)
        for column, step in zip(COLUMNS, steps, strict=True):
            try:
                found[column] = f"ok {step()}".strip()
            except (TrainingError, RuntimeError, ValueError) as problem:
                found[column] = str(problem).strip().splitlines()[0].replace(f"{PAGE.parents[1]}/", "")
    gc.collect()
    return found


def page(rows: dict[str, dict[str, str]], seconds: float) -> str:
    """docs/networks.md."""
    made = f"({len(rows)} networks, fresh weights, {seconds:.0f} s on one thread; torch {torch.__version__}"
    lines = [PREFACE.format(made=f"{made}, ONNX Runtime {onnxruntime.__version__})")]
    lines += [f"| network | {' | '.join(COLUMNS)} |", f"| --- |{' --- |' * len(COLUMNS)}"]
    for name, cells in rows.items():
        lines.append(f"| {name} | {' | '.join(cells[column].replace('|', '/') for column in COLUMNS)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """All networks, or those named; the page is written for all."""
    torch.set_num_threads(1)
    names = sys.argv[1:] or list(NETWORKS)
    start, rows = time.monotonic(), {}
    for name in names:
        begun = time.monotonic()
        rows[name] = row(name)
        print(f"{name} ({time.monotonic() - begun:.0f} s)")
        for column, cell in rows[name].items():
            print(f"    {column}: {cell}", flush=True)
    if not sys.argv[1:]:
        PAGE.write_text(page(rows, time.monotonic() - start))


if __name__ == "__main__":
    main()
