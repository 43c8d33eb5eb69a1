"""MNIST for the PyTorch trainer: the networks and the loss.

The networks are plain modules, every activation its own instance, so that graphs can be pruned and quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn

SHIFT = 1  # pixels


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


class Teacher(nn.Module):
    """A larger convolutional network (317,162 parameters) that smaller ones learn from: 99.4 % after 8 epochs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 32, 5, bias=False), nn.BatchNorm2d(32)
        self.relu1, self.pool1 = nn.ReLU(), nn.MaxPool2d(2)
        self.conv2, self.bn2 = nn.Conv2d(32, 64, 5, bias=False), nn.BatchNorm2d(64)
        self.relu2, self.pool2 = nn.ReLU(), nn.MaxPool2d(2)
        self.flatten, self.dropout1 = nn.Flatten(), nn.Dropout(0.3)
        self.fc1, self.relu3, self.dropout2 = nn.Linear(1024, 256), nn.ReLU(), nn.Dropout(0.4)
        self.fc2 = nn.Linear(256, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """float [N, 1, 28, 28] -> logits [N, 10]."""
        maps = self.pool1(self.relu1(self.bn1(self.conv1(images))))
        maps = self.pool2(self.relu2(self.bn2(self.conv2(maps))))
        hidden = self.relu3(self.fc1(self.dropout1(self.flatten(maps))))
        return self.fc2(self.dropout2(hidden))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "lenet5": LeNet5,
    "lenet300": LeNet300,
    "convnet": ConvNet,
    "teacher": Teacher,
}


class Program:
    """See `trainers.pytorch.program.TorchProgram`."""

    def build(self, model: str) -> nn.Module:
        """The named network with fresh weights from torch's global generator."""
        network = MODELS[model]()
        for layer in network.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                # Glorot, as Caffe and Keras start: torch's own start is so small that short trainings end 2 points
                # lower.
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        return network.eval()

    def pretrained(self, model: str) -> bool:
        """Never: the networks are trained here."""
        return False

    def loss(
        self,
        outputs: Mapping[str, torch.Tensor],
        inputs: Mapping[str, torch.Tensor],
        targets: Any,
        label_smoothing: float = 0.0,
    ) -> torch.Tensor:
        """Cross-entropy, mean over the batch; `targets`: int64 [B] labels."""
        return nn.functional.cross_entropy(outputs["logits"], targets, label_smoothing=label_smoothing)

    def keep(self, network: nn.Module) -> Collection[str]:
        """The classifier, the last layer of each."""
        return [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)][-1:]

    def augments(self, stage: str, step: int) -> bool:
        """Every second batch of the dense model's training is shifted; what is fine-tuned has seen enough."""
        return stage == "dense" and step % 2 == 1

    def augment(self, inputs: Mapping[str, torch.Tensor], generator: torch.Generator) -> Mapping[str, torch.Tensor]:
        """The batch moved by the same random number of pixels in x and y, at most SHIFT."""
        return {"input": shifted(inputs["input"], generator)}


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The batch [B, 1, H, W] moved by up to SHIFT pixels; what comes in has the edge's value."""
    right, down = (int(n) for n in torch.randint(0, 2 * SHIFT + 1, (2,), generator=generator))
    height, width = images.shape[2:]
    padded = nn.functional.pad(images, (SHIFT, SHIFT, SHIFT, SHIFT), mode="replicate")
    return padded[:, :, down : down + height, right : right + width]
