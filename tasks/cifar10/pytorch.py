"""ResNet-20 for 32 x 32 colour images, as a plain module."""

from __future__ import annotations

import torch
from torch import nn


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
