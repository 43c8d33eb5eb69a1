"""The Recipe: what is done to a dense model, as plain frozen data.

It can be printed, logged, hashed, sent to another machine and run again. No framework is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any

from tasks.base import digest_of

GRANULARITIES = ("none", "unstructured", "block", "n_m", "channel")
SCHEDULES = ("one_shot", "gradual")
SCHEMES = (
    *("none", "float16", "dynamic_int8", "static_int8", "qat_int8", "qat_int4"),
    *("weights_int2", "weights_int3", "weights_int4", "weights_mixed"),
    *("weight_only_int8", "weight_only_int4"),
)
PLACED = ("static_int8", "qat_int8")  # schemes of which some layers may stay float
SCORES = ("magnitude", "fisher")
ALLOCATIONS = ("uniform", "global", "sensitivity")
IMPORTANCES = ("magnitude", "taylor", "activation")
RECOVERIES = ("none", "bias", "least_squares")
AUGMENTS = ("none", "affine")
STARTS = ("dense", "fresh")
DISTILLATIONS = ("none", "soft", "hard")
CLUSTERS = (0, 8, 16, 32)
TRAINABLE = ("all", "norm_bias_head", "lora")
QAT_RATE = 0.3  # of the fine-tuning's learning rate, where a recipe names none
# What is pruned and how it is quantized, in words.
_PRUNED = {"unstructured": "weights", "block": "weight blocks", "channel": "channels"}
_SCHEMES = {
    "float16": "fp16",
    "dynamic_int8": "dynamic int8",
    "static_int8": "int8",
    "qat_int8": "QAT int8",
    "qat_int4": "QAT int4",
    "weights_int2": "2-bit weights",
    "weights_int3": "3-bit weights",
    "weights_int4": "4-bit weights",
    "weights_mixed": "mixed weights",
    "weight_only_int8": "int8 weights",
    "weight_only_int4": "int4 weights",
}


def about(default: Any, text: str, later: bool = False) -> Any:
    """A field with its default and what `--help` says of it. `later`: added since version 0.1; see Recipe.essence."""
    return field(default=default, metadata={"about": text, "later": later})


class RecipeError(ValueError):
    """A recipe that cannot be carried out; the message names field, value, rule and valid choices."""


def choice(where: str, value: object, valid: tuple[Any, ...]) -> None:
    """Raise RecipeError naming the valid choices when `value` is none of them."""
    if value not in valid:
        raise RecipeError(f"{where}: {value!r} is not valid; choose from {', '.join(map(str, valid))}")


def _bound(where: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise RecipeError(f"{where}: {value!r} must lie between {low:g} and {high:g}")


@dataclass(frozen=True)
class Pruning:
    """`sparsity`: fraction of weights set to zero; for `channel` the fraction of each layer's output channels removed.

    `n_m` keeps the 2 largest of 4 neighbouring input weights (sparsity is then 0.5 by construction).
    `gradual` is the cubic ramp of Zhu & Gupta, arXiv:1710.01878, during fine-tuning.

    For `unstructured`: `density` is the share that is kept, another way to say the sparsity, and both are of the dense
    model's weights; `channels` of each layer are removed first, before any training. `score` fisher is |w| (E g^2)^0.4,
    g the weight's gradient; `group` raises it by the norms of the weight's row and column to that power, so that whole
    units die first.

    For `channel`: `sparsity` is of each layer with `allocation` uniform, else of all channels: global takes the least
    important ones wherever they are, sensitivity those whose layer costs the least loss (measured once for a model).
    `importance`: weights' norm, |weight * gradient| (taylor) or mean output (activation), the last two over a few
    batches. `recovery`, with one_shot: biases, or weights and biases, fitted to what the dense layers say.
    """

    granularity: str = about("none", "what is removed: single weights, blocks of them, 2 of 4, whole channels")
    sparsity: float = about(0.0, "share of the weights, or of each layer's channels, that is removed: 0 to 0.9999")
    schedule: str = about("gradual", "one_shot, or gradual: a cubic ramp during fine-tuning")
    density: float = about(0.0, "share of the weights that is kept, in place of sparsity; 0: by sparsity", later=True)
    score: str = about("magnitude", "what a weight is worth: magnitude, or fisher: with its gradients", later=True)
    group: float = about(0.0, "how far weak rows and columns go first: 0 to 1, such as 0.5", later=True)
    channels: float = about(0.0, "share of each layer's channels that is removed before the weights", later=True)
    allocation: str = about("uniform", "of channels: the same share of each layer, global, or sensitivity", later=True)
    importance: str = about("magnitude", "what a channel is worth: its weights, taylor, or activation", later=True)
    recovery: str = about("none", "of removed channels, before training: bias, or least_squares", later=True)

    def __post_init__(self) -> None:
        choice("pruning.granularity", self.granularity, GRANULARITIES)
        choice("pruning.schedule", self.schedule, SCHEDULES)
        choice("pruning.score", self.score, SCORES)
        choice("pruning.allocation", self.allocation, ALLOCATIONS)
        choice("pruning.importance", self.importance, IMPORTANCES)
        choice("pruning.recovery", self.recovery, RECOVERIES)
        _bound("pruning.sparsity", self.sparsity, 0.0, 0.9999)
        _bound("pruning.density", self.density, 0.0, 1.0)
        _bound("pruning.group", self.group, 0.0, 1.0)
        _bound("pruning.channels", self.channels, 0.0, 0.99)

    @property
    def scored(self) -> bool:
        """Whether weights are judged by more than their magnitude over the network as it is."""
        return self.score != "magnitude" or self.group > 0 or self.channels > 0


@dataclass(frozen=True)
class Quantization:
    """`scheme`: what weights and activations become; `clusters`: distinct values per weight tensor (0 = off).

    `weights_intN`: weights on one grid for each tensor, 2^N - 1 values, and biases on a finer one; activations float.
    `weights_mixed`: the same with 2, 3, 4 or 8 bits or floats, layer by layer where they cost the least loss, so that a
    weight takes `bits` on average. `weight_only_intN`: weights as integers with a scale for each output channel (8
    bits) or 32 weights (4), after training; arithmetic is float. `max_drop`: the share of answers that may change
    against the float model by static_int8 or qat_int8 before training; the layers that cost most stay float until it
    holds.
    """

    scheme: str = about("none", "number format; qat_, weights_ trained with it, the others after training")
    clusters: int = about(0, "distinct values per weight tensor, which makes the file smaller; 0: off")
    bits: float = about(4.0, "mean bits of a weight, of weights_mixed: 2 to 32", later=True)
    max_drop: float = about(0.0, "share of answers that integers may change; 0: all layers are integer", later=True)

    def __post_init__(self) -> None:
        choice("quantization.scheme", self.scheme, SCHEMES)
        choice("quantization.clusters", self.clusters, CLUSTERS)
        _bound("quantization.max_drop", self.max_drop, 0.0, 1.0)
        _bound("quantization.bits", self.bits, 2.0, 32.0)

    @property
    def trained(self) -> bool:
        """Whether the network is trained further in its number format."""
        return self.scheme.startswith(("qat_", "weights_"))


@dataclass(frozen=True)
class Distillation:
    """Hinton et al., arXiv:1503.02531: loss = alpha * T^2 * KL(teacher/T, student/T) + (1 - alpha) * CE(labels).

    `hard` replaces the KL term by cross-entropy with the teacher's argmax. `teacher` is `baseline` (the dense
    model of the recipe) or `TRAINER/MODEL`, another dense model of the study.
    """

    kind: str = about("none", "soft: learn the teacher's softened outputs; hard: its labels")
    temperature: float = about(1.0, "how much the outputs are softened: 0.1 to 100")
    alpha: float = about(0.0, "weight of the teacher against the labels: 0 to 1")
    teacher: str = about("baseline", "baseline: the dense model itself; or another one, TRAINER/MODEL")

    def __post_init__(self) -> None:
        choice("distillation.kind", self.kind, DISTILLATIONS)
        _bound("distillation.temperature", self.temperature, 0.1, 100.0)
        _bound("distillation.alpha", self.alpha, 0.0, 1.0)


@dataclass(frozen=True)
class FineTuning:
    """`epochs` after pruning or with distillation; `qat_epochs` with fake quantization. Adam, cosine with warm-up.

    Epochs may be a fraction: 0.25 is a complete schedule over a quarter of the training samples. `micro_batch`: the
    gradients of so many samples at once are summed to those of a batch. `weight_decay` is AdamW's, of weight matrices
    alone. `ema`: the model takes the moving average of its weights. `norm_bias_head` leaves all weights as they are but
    those of norms, biases and the model's head. `lora` trains these and, in place of each weight matrix, a change of it
    of rank `lora_rank` (arXiv:2106.09685); pruning is then done at once, before, and with quantized weights it is as
    norm_bias_head. `augment: affine` learns from eight moved copies of the images too, and
    with a teacher from what it says of each.
    """

    epochs: float = about(2, "passes over the training split after pruning, or with a teacher; may be a fraction")
    qat_epochs: float = about(1, "further passes with quantized weights, of a qat_ scheme; may be a fraction")
    learning_rate: float = about(1e-3, "Adam's largest step, cosine with warm-up")
    batch_size: int = about(128, "samples per training step")
    micro_batch: int = about(0, "samples per forward pass, where memory is short; 0: a batch", later=True)
    weight_decay: float = about(0.0, "how much weights shrink in every step: 0 to 1", later=True)
    label_smoothing: float = about(0.0, "share of each target given to all classes: 0 to 0.9", later=True)
    ema: float = about(0.0, "decay of a moving average of the weights, such as 0.999; 0: off", later=True)
    trainable: str = about("all", "which parameters are trained: all, norm_bias_head, or lora", later=True)
    lora_rank: int = about(8, "of the changes that lora trains: 1 to 1024", later=True)
    qat_learning_rate: float = about(0.0, "the same for qat_epochs; 0: 0.3 of learning_rate", later=True)
    augment: str = about("none", "affine: every other batch is of images moved a little", later=True)
    start: str = about("dense", "fresh: from new weights, where the dense model's lead into a corner", later=True)

    def __post_init__(self) -> None:
        for name in ("epochs", "qat_epochs"):  # 2.0 and 2 are one recipe, and have one digest
            if isinstance(value := getattr(self, name), float) and value.is_integer():
                object.__setattr__(self, name, int(value))
        _bound("finetuning.epochs", self.epochs, 0, 1000)
        _bound("finetuning.qat_epochs", self.qat_epochs, 0, 1000)
        _bound("finetuning.learning_rate", self.learning_rate, 1e-7, 10.0)
        _bound("finetuning.batch_size", self.batch_size, 1, 65536)
        _bound("finetuning.micro_batch", self.micro_batch, 0, 65536)
        _bound("finetuning.weight_decay", self.weight_decay, 0.0, 1.0)
        _bound("finetuning.label_smoothing", self.label_smoothing, 0.0, 0.9)
        _bound("finetuning.ema", self.ema, 0.0, 0.99999)
        _bound("finetuning.qat_learning_rate", self.qat_learning_rate, 0.0, 10.0)
        choice("finetuning.trainable", self.trainable, TRAINABLE)
        _bound("finetuning.lora_rank", self.lora_rank, 1, 1024)
        choice("finetuning.augment", self.augment, AUGMENTS)
        choice("finetuning.start", self.start, STARTS)

    @property
    def qat_rate(self) -> float:
        """The learning rate of `qat_epochs`: lower, since the network is nearly where it should be."""
        return self.qat_learning_rate or QAT_RATE * self.learning_rate


@dataclass(frozen=True)
class Recipe:
    """One way to make a compressed model from a dense one. Two equal recipes give the same file."""

    model: str = field(metadata={"about": "the dense model; several are searched with {choices: [A, B]}"})
    trainer: str = about("pytorch", "who carries the recipe out")
    pruning: Pruning = field(default_factory=Pruning)
    quantization: Quantization = field(default_factory=Quantization)
    distillation: Distillation = field(default_factory=Distillation)
    finetuning: FineTuning = field(default_factory=FineTuning)
    seed: int = about(0, "of everything random in the trial")

    @property
    def trains(self) -> bool:
        """Whether fine-tuning runs: after pruning or with a teacher; a dense or post-training recipe needs none."""
        return self.pruning.granularity != "none" or self.distillation.kind != "none"

    @property
    def seeded(self) -> bool:
        """Whether the seed changes the file: where nothing is trained, every seed gives the same."""
        return self.trains or self.quantization.trained or self.quantization.clusters > 0

    def shortened(self, share: float) -> Recipe:
        """The same with `share` of its epochs, canonical: a complete schedule of its own, where it trains for any."""
        tuning = self.finetuning
        epochs, qat_epochs = round(share * tuning.epochs, 6), round(share * tuning.qat_epochs, 6)
        return replace(self, finetuning=replace(tuning, epochs=epochs, qat_epochs=qat_epochs)).canonical()

    def untrained(self) -> Recipe:
        """What is left of the recipe without its training: recipes that share it give files of one architecture."""
        pruning = replace(self.pruning, schedule="one_shot", score="magnitude", group=0.0, recovery="none")
        scheme = "static_int8" if self.quantization.scheme == "qat_int8" else self.quantization.scheme
        return replace(
            self,
            pruning=pruning,
            quantization=replace(self.quantization, scheme=scheme),
            distillation=Distillation(),
            finetuning=FineTuning(epochs=0, qat_epochs=0),
            seed=0,
        ).canonical()

    def canonical(self) -> Recipe:
        """The same recipe with every setting that has no effect at its default, so that equal work compares equal."""
        pruning, distillation, tuning = self.pruning, self.distillation, self.finetuning
        if pruning.granularity == "none":
            pruning = Pruning()
        elif pruning.granularity == "n_m":
            pruning = replace(pruning, sparsity=0.5)
        if pruning.granularity != "channel":
            pruning = replace(pruning, allocation="uniform", importance="magnitude", recovery="none")
        elif pruning.schedule != "one_shot":
            pruning = replace(pruning, recovery="none")
        if pruning.granularity != "unstructured":
            pruning = replace(pruning, density=0.0, score="magnitude", group=0.0, channels=0.0)
        elif pruning.density:
            pruning = replace(pruning, sparsity=min(0.9999, round(1.0 - pruning.density, 10)), density=0.0)
        quantization, qat = self.quantization, self.quantization.trained
        if quantization.scheme not in PLACED:
            quantization = replace(quantization, max_drop=0.0)
        if quantization.scheme != "weights_mixed":
            quantization = replace(quantization, bits=Quantization().bits)
        if distillation.kind == "none" or not (self.pruning.granularity != "none" or qat or tuning.epochs):
            distillation = Distillation()
        elif distillation.kind == "hard":
            distillation = replace(distillation, temperature=1.0)
        default = FineTuning()
        if tuning.trainable != "lora":
            tuning = replace(tuning, lora_rank=default.lora_rank)
        elif pruning.granularity != "none":
            pruning = replace(pruning, schedule="one_shot")
        trains = pruning.granularity != "none" or distillation.kind != "none"
        if not trains:
            tuning = replace(tuning, epochs=default.epochs)
        if not qat:
            tuning = replace(tuning, qat_epochs=default.qat_epochs, qat_learning_rate=0.0)
        if not trains and not qat and not self.quantization.clusters:
            tuning = default
        return replace(self, pruning=pruning, quantization=quantization, distillation=distillation, finetuning=tuning)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as JSON takes them."""
        return asdict(self)

    def essence(self) -> dict[str, Any]:
        """As `to_dict`, without the later fields that have their default.

        It is what version 0.1 wrote, so that a recipe's digest and its file stay what they were.
        """
        values = self.to_dict()
        for part in fields(Recipe):
            section = getattr(self, part.name)
            for each in fields(section) if is_dataclass(section) else ():
                if each.metadata.get("later") and getattr(section, each.name) == each.default:
                    del values[part.name][each.name]
        return values

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Recipe:
        """Nested mapping -> Recipe; raises RecipeError naming the field for unknown keys and bad values."""
        parts = {
            "pruning": Pruning,
            "quantization": Quantization,
            "distillation": Distillation,
            "finetuning": FineTuning,
        }
        _known("recipe", values, Recipe)
        made: dict[str, Any] = dict(values)
        for name, part in parts.items():
            _known(f"recipe.{name}", made.get(name, {}), part)
            made[name] = part(**made.get(name, {}))
        return Recipe(**made)

    def flat(self) -> dict[str, Any]:
        """`{"pruning.sparsity": 0.9, ...}`: dotted names, as search spaces and MLflow params spell them."""
        return flatten(self.to_dict())

    def digest(self) -> str:
        """First 16 hex digits of the sha256 of the canonical recipe."""
        return digest_of(self.canonical().essence())

    def describe(self) -> str:
        """The recipe as people say it: `62 % of channels removed, QAT int8, temperature 4.1`."""
        said = []
        if self.pruning.granularity == "n_m":
            said.append("2 of 4 weights removed")
        elif self.pruning.granularity != "none":
            what = _PRUNED[self.pruning.granularity]
            share = percent(self.pruning.sparsity)
            first = f"{percent(self.pruning.channels)} of channels, then " if self.pruning.channels else ""
            said.append(f"half the {what} removed" if share == "50 %" else f"{first}{share} of {what} removed")
        if self.quantization.clusters:
            said.append(f"{self.quantization.clusters} clusters")
        if self.quantization.scheme != "none":
            said.append(_SCHEMES[self.quantization.scheme])
        if self.distillation.kind == "soft":
            said.append(f"temperature {self.distillation.temperature:.1f}")
        elif self.distillation.kind == "hard":
            said.append("hard distillation")
        return ", ".join(said) or "dense fp32"


def percent(share: float) -> str:
    """`62 %`; from 99 % on with two digits more, since what is left counts."""
    return f"{100 * share:.0f} %" if share < 0.99 else f"{100 * share:.2f} %"


def _known(where: str, values: Mapping[str, Any], kind: type) -> None:
    valid = [f.name for f in fields(kind)]
    for key in values:
        if key not in valid:
            raise RecipeError(f"{where}.{key}: no such field; choose from {', '.join(valid)}")


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings -> one mapping with dotted keys; an empty mapping is a value."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
