"""ResNet-20 for 32 x 32 colour images, as a plain module."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

Tensors = Mapping[str, torch.Tensor]
SHIFT = 4  # pixels


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, given: int, made: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(given, made, 3, stride, padding=1, bias=False)
        self.bn1, self.relu1 = nn.BatchNorm2d(made), nn.ReLU()
        self.conv2 = nn.Conv2d(made, made, 3, padding=1, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(made), nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or given != made:
            self.shortcut = nn.Sequential(nn.Conv2d(given, made, 1, stride, bias=False), nn.BatchNorm2d(made))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """float [N, given, H, W] -> [N, made, H / stride, W / stride]."""
        inner = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(maps)))))
        return self.relu2(inner + self.shortcut(maps))


class ResNet20(nn.Module):
    """He et al., arXiv:1512.03385, section 4.2, with projections: 272,474 parameters, 41 million multiply-adds."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        widths = [(16, 16, 1), (16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 32, 1)]
        widths += [(32, 64, 2), (64, 64, 1), (64, 64, 1)]
        self.blocks = nn.Sequential(*(Block(*each) for each in widths))
        self.pool, self.flatten, self.fc = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """float [N, 3, 32, 32] -> logits [N, classes]."""
        return self.fc(self.flatten(self.pool(self.blocks(self.relu(self.bn(self.conv(images)))))))


class Program:
    """See `trainers.pytorch.program.TorchProgram`."""

    def build(self, model: str) -> nn.Module:
        """A new network; its start is torch's global generator's."""
        assert model == "resnet20"
        return ResNet20().eval()

    def pretrained(self, model: str) -> bool:
        """The networks are trained here."""
        return False

    def loss(
        self, outputs: Tensors, inputs: Tensors, targets: torch.Tensor, label_smoothing: float = 0.0
    ) -> torch.Tensor:
        """Mean cross-entropy with the labels, int64 [B]."""
        return nn.functional.cross_entropy(outputs["logits"], targets, label_smoothing=label_smoothing)

    def keep(self, network: nn.Module) -> list[str]:
        """The classifier keeps its width."""
        return ["fc"]

    def augment(self, inputs: Tensors, generator: torch.Generator) -> Tensors:
        """Each image mirrored or not, and moved by up to 4 pixels in x and y over a grey border."""
        images = inputs["input"]
        count, _, height, width = images.shape
        mirrored = torch.rand(count, generator=generator) < 0.5
        images = torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(3), images)
        padded = nn.functional.pad(images, (SHIFT,) * 4)
        right, down = torch.randint(0, 2 * SHIFT + 1, (2, count), generator=generator).to(images.device)
        rows = (down[:, None] + torch.arange(height, device=images.device))[:, None, :, None]
        columns = (right[:, None] + torch.arange(width, device=images.device))[:, None, None, :]
        sample = torch.arange(count, device=images.device)[:, None, None, None]
        channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
        moved = padded[sample, channel, rows, columns]
        return {"input": moved.contiguous(memory_format=torch.channels_last)}
