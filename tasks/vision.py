"""`timm:NAME` and `torchvision:NAME`: a library's network with its own preprocessing. Only workers import this."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from tasks import weights
from tasks.address import Address, install, located, nearest
from tasks.base import TaskError, TaskSpec
from tasks.images import ImageOptions
from tasks.imports import import_torchvision

DOWNLOADED = "pretrained"  # task.weights: the library's own, fetched by it


class VisionSubject:
    """A network of a library for `classes` classes, set once the data is known. See `tasks.torch_program.Subject`."""

    def __init__(self, spec: TaskSpec, address: Address) -> None:
        self.spec, self.address = spec, address
        self.name = address.place.rpartition("/")[2].replace(":", "-")
        self.classes: int | None = None
        self.replaced: tuple[str, ...] = ()
        self.heads: tuple[str, ...] = ()
        self.notes: list[str] = []
        library: dict[str, Callable[[VisionSubject], _Library]] = {"timm": _Timm, "torchvision": _Torchvision}
        self.library = library[address.kind](self)

    def settle(self, classes: int | None) -> None:
        """Take the number of classes; reads the weights once, so that what does not fit is said at once."""
        self.classes = classes
        model = self.build()
        self.heads = self.library.heads(model)
        if self.replaced:
            self.notes.append(
                f"{self.name}: the weights are for another number of classes than the {classes} of the data; the head "
                f"{', '.join(self.replaced)} starts fresh and is trained"
            )
        elif not self.spec.weights:
            self.notes.append(f"{self.name}: no task.weights, so it starts fresh and is trained by the study's `dense`")

    def build(self, model: str = "") -> nn.Module:
        """The module, new each time; the task's first one if none is named."""
        if self.spec.weights == DOWNLOADED:
            made, self.replaced = self.library.downloaded(self.classes)
            return made.eval()
        made = self.library.make(self.classes)
        if self.spec.weights:
            self.replaced = weights.fit(made, located(self.spec, self.spec.weights), self.library.heads(made))
        return made.eval()

    def pretrained(self, model: str = "") -> bool:
        """See Subject: not where the head starts fresh."""
        return bool(self.spec.weights) and not self.replaced

    @functools.cached_property
    def image(self) -> ImageOptions:
        """How images become the model's input: its own configuration, at the study's `size` if it names one."""
        own = self.library.image()
        size = self.spec.size
        if size is None or own.size == (size, size):
            return own
        self.notes.append(f"{self.name}: images are resized to {size} x {size} as the study says, not {own.size[0]}")
        return replace(own, size=(size, size), resize=size if own.fit == "crop" else own.resize)


class _Library:
    """What differs between the libraries."""

    def __init__(self, subject: VisionSubject) -> None:
        self.subject, self.name = subject, subject.address.place

    def make(self, classes: int | None) -> nn.Module:
        """Freshly started."""
        raise NotImplementedError

    def downloaded(self, classes: int | None) -> tuple[nn.Module, tuple[str, ...]]:
        """With the library's weights, and the heads that start fresh."""
        raise NotImplementedError

    def image(self) -> ImageOptions:
        """The model's own preprocessing."""
        raise NotImplementedError

    def heads(self, model: nn.Module) -> tuple[str, ...]:
        """Modules that give the class scores."""
        raise NotImplementedError

    def not_fetched(self, error: Exception) -> TaskError:
        """The library could not fetch its weights."""
        reason = " ".join(str(error).split())[:200]
        return TaskError(
            f"task.weights: the pretrained weights of {self.name} cannot be fetched: {reason}; name a file of weights, "
            "or leave task.weights out to train from a fresh start",
            "weights",
        )


class _Timm(_Library):
    """https://huggingface.co/docs/timm."""

    @functools.cached_property
    def timm(self) -> Any:
        import_torchvision()
        try:
            import timm
        except ImportError:
            raise TaskError(f"task.model: timm is not installed; run {install('vision')}", "model") from None
        if not timm.is_model(self.name) and ":" not in self.name:
            known = timm.list_models()
            raise TaskError(f"task.model: timm has no {self.name!r}{nearest(self.name, known, 8)}", "model")
        return timm

    def make(self, classes: int | None) -> nn.Module:
        """Freshly started."""
        size = {} if self.subject.spec.size is None else {"img_size": self.subject.spec.size}
        counted = {} if classes is None else {"num_classes": classes}
        try:
            return self.timm.create_model(self.name, pretrained=False, **counted, **size)
        except TypeError:  # convolutional networks take any size and know no img_size
            return self.timm.create_model(self.name, pretrained=False, **counted)

    def downloaded(self, classes: int | None) -> tuple[nn.Module, tuple[str, ...]]:
        """With the library's weights, and the heads that start fresh."""
        counted = {} if classes is None else {"num_classes": classes}
        try:
            model = self.timm.create_model(self.name, pretrained=True, **counted)
        except Exception as error:  # of the hub, the network, the file
            raise self.not_fetched(error) from None
        same = classes is None or model.pretrained_cfg.get("num_classes") == classes
        return model, () if same else self.heads(model)

    def image(self) -> ImageOptions:
        """See _Library: `timm.data.resolve_model_data_config`, as its evaluation transform applies it."""
        config = self.timm.data.resolve_model_data_config(self.make(None))
        _, height, width = config["input_size"]
        resize = int(min(height, width) / config["crop_pct"])
        fit = "squash" if config["crop_mode"] == "squash" else "crop"
        return ImageOptions(
            (height, width),
            resize if fit == "crop" else None,
            fit,  # type: ignore[arg-type]
            "RGB" if config["input_size"][0] == 3 else "L",
            config["interpolation"] if config["interpolation"] != "random" else "bilinear",
            tuple(map(float, config["mean"])),
            tuple(map(float, config["std"])),
        )

    def heads(self, model: nn.Module) -> tuple[str, ...]:
        """Modules that give the class scores."""
        found = model.default_cfg.get("classifier") or ()
        return (found,) if isinstance(found, str) else tuple(found)


class _Torchvision(_Library):
    """https://docs.pytorch.org/vision/stable/models.html: its classifiers."""

    @functools.cached_property
    def models(self) -> Any:
        models = import_torchvision().models
        classifiers = list(models.list_models(module=models))
        if self.name not in classifiers:
            other = " is no classifier; write a FILE.py for it" if self.name in models.list_models() else ""
            rule = other or f"has no {self.name!r}{nearest(self.name, classifiers, 8)}"
            raise TaskError(f"task.model: torchvision{f': {self.name!r}' if other else ' '}{rule}", "model")
        return models

    def make(self, classes: int | None) -> nn.Module:
        """Freshly started."""
        counted = {} if classes is None else {"num_classes": classes}
        size: Mapping[str, int] = {}
        if self.subject.spec.size is not None and self.name.startswith("vit_"):
            size = {"image_size": self.subject.spec.size}
        # Inception and GoogLeNet return a tuple while they train; the auxiliary heads are no part of the network.
        plain = {"aux_logits": False} if self.name in ("googlenet", "inception_v3") else {}
        plain |= {"init_weights": True} if plain else {}
        return self.models.get_model(self.name, weights=None, **counted, **size, **plain)

    def downloaded(self, classes: int | None) -> tuple[nn.Module, tuple[str, ...]]:
        """With the library's weights, and the heads that start fresh."""
        try:
            source = self.models.get_model(self.name, weights="DEFAULT")
        except Exception as error:  # of the network, the file
            raise self.not_fetched(error) from None
        model = self.make(classes)
        own, heads = model.state_dict(), self.heads(model)
        state = {name: value for name, value in source.state_dict().items() if name in own}
        fresh = tuple(head for head in heads if state[f"{head}.weight"].shape != own[f"{head}.weight"].shape)
        kept = {name: value for name, value in state.items() if not any(name.startswith(f"{h}.") for h in fresh)}
        model.load_state_dict(kept, strict=False)
        return model, fresh

    def image(self) -> ImageOptions:
        """See _Library: the transforms of the model's default weights."""
        transforms = self.models.get_model_weights(self.name).DEFAULT.transforms()
        resize, crop = transforms.resize_size, transforms.crop_size
        return ImageOptions(
            (crop[0], crop[0]),
            resize[0],
            "crop",
            "RGB",
            transforms.interpolation.value,
            tuple(map(float, transforms.mean)),
            tuple(map(float, transforms.std)),
        )

    def heads(self, model: nn.Module) -> tuple[str, ...]:
        """See _Library: the last linear layer or, in SqueezeNet, the last convolution."""
        layers = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
        if not layers:
            layers = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
        return tuple(layers[-1:])
