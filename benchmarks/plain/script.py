"""What an engineer writes without Pare: PyTorch, torch.nn.utils.prune, channels cut by hand, ONNX Runtime's own
quantizer, Optuna's NSGA-II. `benchmarks.plain` starts one of these per core, each with one thread; they share a study.

    python -m benchmarks.plain.script SETTINGS.json WORKER

It is written to be fair: the data lie in memory as one tensor, the teacher is asked once, equal weights to start from,
the same references first, the same epochs, ranges and batch as Pare's study. It trains in float32, as torch does unless
told otherwise (`--precision bfloat16` changes that). It knows nothing of Pare but the user's own network.
"""

from __future__ import annotations

import json
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import optuna
import safetensors.torch
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune

from benchmarks.plain import channels
from tasks.cifar10.pytorch import ResNet20
from tasks.mnist.pytorch import LeNet5, LeNet300

NETWORKS: dict[str, Callable[[], nn.Module]] = {"lenet5": LeNet5, "lenet300": LeNet300, "resnet20": ResNet20}
CALIBRATION = 256  # images
CALLS = 200  # of which the median is the latency
POPULATION = 20


class Data:
    """A split in memory: normalized float32 [N, C, H, W], int64 [N]."""

    def __init__(self, folder: Path, mean: list[float], std: list[float], size: int | None) -> None:
        images, labels = np.load(folder / "images.npy"), np.load(folder / "labels.npy")
        images = images[:size].reshape(-1, len(mean), *images.shape[-2:])
        pixels = torch.from_numpy(np.ascontiguousarray(images)).float() / 255
        shape = (1, len(mean), 1, 1)
        self.x = (pixels - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
        self.y = torch.from_numpy(labels[:size]).long()


class Calibration(CalibrationDataReader):
    """The first training images, one by one."""

    def __init__(self, images: torch.Tensor) -> None:
        self.batches = iter([{"input": image[None].numpy()} for image in images[:CALIBRATION]])

    def get_next(self) -> Any:
        """The next input, None after the last."""
        return next(self.batches, None)


class Search:
    """The objective, and what it needs."""

    def __init__(self, settings: dict[str, Any], worker: int) -> None:
        self.settings, self.recipe = settings, settings["recipe"]
        self.into = Path(settings["into"])
        data = Path(settings["data"])
        args = settings["mean"], settings["std"]
        self.train = Data(data / "train", *args, settings["train_size"])
        self.validation = Data(data / "validation", *args, settings["validation_size"])
        self.generator = torch.Generator().manual_seed(1000 * settings["seed"] + worker)
        self.log = self.into / f"trials-{worker}.jsonl"
        with torch.no_grad():
            self.teacher = torch.cat([self.dense()(x) for x in self.train.x.split(500)])

    def dense(self) -> nn.Module:
        """The trained network."""
        network = NETWORKS[self.settings["model"]]()
        network.load_state_dict(safetensors.torch.load_file(self.settings["dense"]))
        return network.eval()

    def value(self, trial: optuna.Trial, name: str, entry: Any) -> Any:
        """A value of the study: constant, one of `choices`, or from `low` to `high`."""
        if not isinstance(entry, dict):
            return entry
        if "choices" in entry:
            return trial.suggest_categorical(name, entry["choices"])
        return trial.suggest_float(
            name, entry["low"], entry["high"], step=entry.get("step"), log=entry.get("log", False)
        )

    def __call__(self, trial: optuna.Trial) -> tuple[float, float, float]:
        """(accuracy, latency in ms, bytes compressed) of the exported file."""
        pruning, tuning, teaching = (self.recipe[part] for part in ("pruning", "finetuning", "distillation"))
        granularity = self.value(trial, "granularity", pruning["granularity"])
        scheme = self.value(trial, "scheme", self.recipe["quantization"]["scheme"])
        kind = self.value(trial, "kind", teaching["kind"])
        network = self.dense()
        if granularity != "none":
            of = pruning["sparsity"]
            sparsity = self.value(trial, f"sparsity_{granularity}", of.get(granularity, of))
            if granularity == "channel":
                channels.cut(network, sparsity)
            else:
                weights = [(m, "weight") for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
                prune.global_unstructured(weights, prune.L1Unstructured, amount=sparsity)
        if granularity != "none" or kind != "none":
            temperature = self.value(trial, "temperature", teaching["temperature"]) if kind != "none" else 0.0
            rate = self.value(trial, "learning_rate", tuning["learning_rate"])
            alpha = teaching["alpha"] if kind != "none" else 0.0
            self.finetune(network, rate, tuning["epochs"], tuning["batch_size"], temperature, alpha)
        if granularity == "unstructured":
            for module, name in weights:
                prune.remove(module, name)
        file = self.export(network, trial.number, scheme)
        return self.accuracy(file), latency(file, self.validation.x[:1]), len(zlib.compress(file.read_bytes(), 9))

    def finetune(
        self, network: nn.Module, rate: float, epochs: float, batch: int, temperature: float, alpha: float
    ) -> None:
        """Adam, one cycle, with the teacher's logits."""
        network.train()
        count = len(self.train.y)
        steps = max(1, round(epochs * -(-count // batch)))
        optimizer = torch.optim.Adam(network.parameters(), lr=rate, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps, pct_start=0.1)
        half = self.settings.get("precision") == "bfloat16"
        done = 0
        while done < steps:
            for rows in torch.randperm(count, generator=self.generator).split(batch)[: steps - done]:
                x = self.train.x[rows]
                if self.settings["augment"]:
                    x = moved(x, self.generator)
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    logits = network(x).float()
                    loss = functional.cross_entropy(logits, self.train.y[rows])
                    if alpha:
                        soft = functional.log_softmax(self.teacher[rows] / temperature, 1)
                        own = functional.log_softmax(logits / temperature, 1)
                        divergence = functional.kl_div(own, soft, reduction="batchmean", log_target=True)
                        loss = (1 - alpha) * loss + alpha * temperature**2 * divergence
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                done += 1
        network.eval()

    def export(self, network: nn.Module, number: int, scheme: str) -> Path:
        """The network as ONNX, quantized where `scheme` says so."""
        folder = self.into / f"{number:05d}"
        folder.mkdir(parents=True)
        file = folder / "model.onnx"
        shapes = ({0: torch.export.Dim("batch")},)
        example = (self.train.x[:2],)
        names: dict[str, Any] = {"input_names": ["input"], "output_names": ["logits"]}
        made = torch.onnx.export(network, example, dynamo=True, dynamic_shapes=shapes, verbose=False, **names)
        assert made is not None
        made.save(file)
        if scheme == "none":
            return file
        ready, small = folder / "prepared.onnx", folder / "int8.onnx"
        quant_pre_process(str(file), str(ready), skip_symbolic_shape=True)
        types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        quantize_static(
            str(ready), str(small), Calibration(self.train.x), quant_format=QuantFormat.QDQ, per_channel=True, **types
        )
        return small

    def accuracy(self, file: Path) -> float:
        """Of the file, on the validation split."""
        run = session(file)
        found = [run.run(None, {"input": x.numpy()})[0].argmax(1) for x in self.validation.x.split(250)]
        return float(np.mean(np.concatenate(found) == self.validation.y.numpy()))

    def told(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        """One line per trial that has ended."""
        state = "trained" if trial.state == optuna.trial.TrialState.COMPLETE else "failed"
        folder = self.into / f"{trial.number:05d}"
        file = next((str(f) for name in ("int8", "model") if (f := folder / f"{name}.onnx").exists()), "")
        line = {"at": time.time(), "state": state, "values": trial.values, "file": file, "params": trial.params}
        with self.log.open("a") as log:
            log.write(json.dumps(line) + "\n")


def moved(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Half of the images mirrored, all of them moved by up to 4 pixels."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    right, down = torch.randint(0, 9, (2,), generator=generator).tolist()
    height, width = images.shape[2:]
    return functional.pad(images, (4, 4, 4, 4))[:, :, down : down + height, right : right + width]


def session(file: Path) -> onnxruntime.InferenceSession:
    """The file in ONNX Runtime with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def latency(file: Path, image: torch.Tensor) -> float:
    """Median milliseconds of a call with one image."""
    run, given, spent = session(file), {"input": image.numpy()}, []
    for _ in range(CALLS + 20):
        began = time.perf_counter()
        run.run(None, given)
        spent.append(time.perf_counter() - began)
    return 1000 * float(np.median(spent[20:]))


def main() -> None:
    """Search until this process is ended."""
    settings, worker = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="plain",
        directions=["maximize", "minimize", "minimize"],
        storage=JournalStorage(JournalFileBackend(str(Path(settings["into"]) / "journal.log"))),
        sampler=optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=1000 * settings["seed"] + worker),
        load_if_exists=True,
    )
    if worker == 0:
        for reference in settings["references"]:
            study.enqueue_trial(reference)
    search = Search(settings, worker)
    study.optimize(search, n_trials=settings.get("trials"), callbacks=[search.told], catch=(Exception,))


if __name__ == "__main__":
    main()
