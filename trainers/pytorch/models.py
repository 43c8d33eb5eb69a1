"""The networks, as plain modules: every activation its own instance, so that graphs can be pruned and quantized."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from trainers.recipe import RecipeError


class LeNet5(nn.Module):
    """Caffe's LeNet-5 (431,080 parameters): two valid 5x5 convolutions, two fully connected layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1, self.pool1 = nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2)
        self.conv2, self.relu2, self.pool2 = nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc1, self.relu3 = nn.Linear(800, 500), nn.ReLU()
        self.fc2 = nn.Linear(500, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """float [N, 1, 28, 28] -> logits [N, 10]."""
        maps = self.pool1(self.relu1(self.conv1(images)))
        maps = self.pool2(self.relu2(self.conv2(maps)))
        return self.fc2(self.relu3(self.fc1(self.flatten(maps))))


class LeNet300(nn.Module):
    """LeNet-300-100 (266,610 parameters): a perceptron with two hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.fc1, self.relu1 = nn.Linear(784, 300), nn.ReLU()
        self.fc2, self.relu2 = nn.Linear(300, 100), nn.ReLU()
        self.fc3 = nn.Linear(100, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """float [N, 1, 28, 28] -> logits [N, 10]."""
        hidden = self.relu1(self.fc1(self.flatten(images)))
        return self.fc3(self.relu2(self.fc2(hidden)))


class ConvNet(nn.Module):
    """A small network with batch norm (24,058 parameters): 16, 32, 64 channels, global average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.relu1, self.pool1 = nn.ReLU(), nn.MaxPool2d(2)
        self.conv2, self.bn2 = nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.relu2, self.pool2 = nn.ReLU(), nn.MaxPool2d(2)
        self.conv3, self.bn3 = nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
        self.relu3, self.pool3 = nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """float [N, 1, 28, 28] -> logits [N, 10]."""
        maps = self.pool1(self.relu1(self.bn1(self.conv1(images))))
        maps = self.pool2(self.relu2(self.bn2(self.conv2(maps))))
        maps = self.pool3(self.relu3(self.bn3(self.conv3(maps))))
        return self.fc(self.flatten(maps))


MODELS: dict[str, Callable[[], nn.Module]] = {"lenet5": LeNet5, "lenet300": LeNet300, "convnet": ConvNet}


def build(name: str) -> nn.Module:
    """The named network with fresh weights from torch's global generator; RecipeError for an unknown name."""
    if name not in MODELS:
        raise RecipeError(f"model: the pytorch trainer has no {name!r}; choose from {', '.join(MODELS)}")
    model = MODELS[name]()
    for layer in prunable(model).values():
        # Glorot, as Caffe and Keras start: torch's own start is so small that short trainings end 2 points lower.
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return model


def prunable(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Name -> layer of every layer whose weight may be pruned: all convolutions and fully connected layers."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))}


def trainable(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
