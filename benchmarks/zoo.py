"""Networks as people have them, with fresh weights and inputs that they take: what any network is tried on.

Each is a small member of its family (narrow, few layers, small inputs), so that all of them go through in minutes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tasks.base import Port
from tasks.imports import import_torchvision

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Network:
    """A network to try. `example(rows)`: valid inputs by position. `keep`: its heads. `inputs`: () has a free batch."""

    build: Callable[[], nn.Module]
    example: Callable[[int], Tensors]
    keep: tuple[str, ...] = ()
    inputs: tuple[Port, ...] = ()


class Answers(nn.Module):
    """A network whose answer is a dict, a dataclass or a nested sequence, as one that returns a tuple of tensors."""

    def __init__(self, network: nn.Module, names: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *inputs: torch.Tensor) -> Tensors:
        """Tensors in, tensors out, both by position."""
        named = dict(zip(self.names, inputs, strict=True)) if self.names else {}
        return tuple(_tensors(self.network(**named) if named else self.network(*inputs)))


def _tensors(answer: Any) -> list[torch.Tensor]:
    if isinstance(answer, torch.Tensor):
        return [answer]
    values = answer.values() if hasattr(answer, "values") else answer
    return [tensor for value in values if value is not None for tensor in _tensors(value)]


def images(size: int, channels: int = 3) -> Callable[[int], Tensors]:
    """Square images of noise."""
    return lambda rows: (torch.randn(rows, channels, size, size),)


def ids(length: int, vocabulary: int, mask: bool = True) -> Callable[[int], Tensors]:
    """Token ids and, with `mask`, a mask that ends a little before the end."""

    def made(rows: int) -> Tensors:
        tokens, kept = torch.randint(1, vocabulary, (rows, length)), torch.ones(rows, length, dtype=torch.int64)
        kept[::2, -2:] = 0
        return (tokens, kept) if mask else (tokens,)

    return made


TEXT = (Port("input_ids", ("batch", "length"), "int64"), Port("attention_mask", ("batch", "length"), "int64"))


def torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    """A classifier of torchvision with fresh weights."""

    def build() -> nn.Module:
        import_torchvision()
        made: nn.Module = importlib.import_module("torchvision.models").get_model(name, weights=None, **options)
        return made

    return build


def timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    """A classifier of timm with fresh weights."""

    def build() -> nn.Module:
        import_torchvision()
        made: nn.Module = importlib.import_module("timm").create_model(name, pretrained=False, **options)
        return made

    return build


def transformers(model: str, config: str, names: tuple[str, ...], **options: Any) -> Callable[[], nn.Module]:
    """A model of transformers from its configuration alone."""

    def build() -> nn.Module:
        import_torchvision()
        library = importlib.import_module("transformers")
        return Answers(getattr(library, model)(getattr(library, config)(**options)), names)

    return build


class Lraspp(nn.Module):
    """torchvision's LRASPP, its dict of outputs as one tensor."""

    def __init__(self) -> None:
        super().__init__()
        import_torchvision()
        segmentation = importlib.import_module("torchvision.models.segmentation")
        made = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)
        self.backbone, self.classifier = made.backbone, made.classifier

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """float [N, 3, H, W] -> scores [N, 5, H, W]."""
        scores = self.classifier(self.backbone(pixels))
        return nn.functional.interpolate(scores, size=pixels.shape[-2:], mode="bilinear", align_corners=False)


class Detector(nn.Module):
    """The backbone and heads of one of torchvision's detectors; anchors and suppression are left out."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        import_torchvision()
        detection = importlib.import_module("torchvision.models.detection")
        made = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=5, **options)
        self.backbone, self.head = made.backbone, made.head

    def forward(self, pixels: torch.Tensor) -> Tensors:
        """float [N, 3, H, W] -> the heads' tensors, by name in the order that torchvision has."""
        features = self.backbone(pixels)
        maps = [features] if isinstance(features, torch.Tensor) else list(features.values())
        return tuple(self.head(maps).values())


class Unet(nn.Module):
    """Two levels, skips that are concatenated, transposed convolutions on the way up."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = self.block(3, 16), self.block(16, 32), self.block(32, 64)
        self.pool = nn.MaxPool2d(2)
        self.up2, self.up1 = nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)
        self.join2, self.join1, self.head = self.block(64, 32), self.block(32, 16), nn.Conv2d(16, 4, 1)

    @staticmethod
    def block(before: int, after: int) -> nn.Sequential:
        """A convolution with batch norm and ReLU."""
        return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """float [N, 3, H, W] -> scores [N, 4, H, W]; H and W are multiples of 4."""
        one = self.down1(pixels)
        two = self.down2(self.pool(one))
        up = self.join2(torch.cat([self.up2(self.bottom(self.pool(two))), two], 1))
        return self.head(self.join1(torch.cat([self.up1(up), one], 1)))


def smp_unet() -> nn.Module:
    """segmentation_models_pytorch's U-Net over a ResNet-18."""
    import_torchvision()
    made: nn.Module = importlib.import_module("segmentation_models_pytorch").Unet(
        "resnet18", encoder_weights=None, classes=4
    )
    return made


class Heads(nn.Module):
    """Two heads of 20 and 8 outputs over one trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3, 2), nn.ReLU()
        )
        self.first, self.second = nn.Linear(64, 20), nn.Linear(64, 8)

    def forward(self, pixels: torch.Tensor) -> Tensors:
        """float [N, 3, H, W] -> [N, 20] and [N, 8]."""
        features = self.trunk(pixels).mean((2, 3))
        return self.first(features), self.second(features)


class M5(nn.Sequential):
    """M5 of Dai et al., arXiv:1610.00087, half as wide: one-dimensional convolutions over a waveform."""

    def __init__(self) -> None:
        def block(before: int, after: int, size: int, stride: int = 1) -> list[nn.Module]:
            return [nn.Conv1d(before, after, size, stride), nn.BatchNorm1d(after), nn.ReLU(), nn.MaxPool1d(4)]

        super().__init__(
            *block(1, 64, 80, 16), *block(64, 64, 3), *block(64, 128, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
            nn.Linear(128, 12),
        )  # fmt: skip


class DsCnn(nn.Sequential):
    """DS-CNN of Zhang et al., arXiv:1711.07128: depthwise separable convolutions over spectra."""

    def __init__(self) -> None:
        def block(width: int) -> list[nn.Module]:
            depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
            pointwise = nn.Conv2d(width, width, 1, bias=False)
            return [
                depthwise, nn.BatchNorm2d(width), nn.ReLU(), pointwise, nn.BatchNorm2d(width), nn.ReLU(),
            ]  # fmt: skip

        first = [nn.Conv2d(1, 64, (10, 4), 2, (5, 1), bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        super().__init__(*first, *block(64), *block(64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 12))


class Recurrent(nn.Module):
    """Two recurrent layers over a sequence of features."""

    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.layers, self.head = kind(12, 32, 2, batch_first=True), nn.Linear(32, 9)

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        """float [N, T, 12] -> logits [N, 9]."""
        states, _ = self.layers(steps)
        return self.head(states[:, -1])


class Ncf(nn.Module):
    """Neural collaborative filtering, arXiv:1708.05031: user and item ids to a score."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(200, 32), nn.Embedding(300, 32)
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """int64 [N] twice -> score [N]."""
        return self.layers(torch.cat([self.users(user), self.items(item)], 1)).squeeze(1)


class Dlrm(nn.Module):
    """DLRM, arXiv:1906.00091: dense and sparse features, their products, a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(100, 16, mode="sum") for _ in range(4))
        self.bottom = nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, 16), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(16 + 10, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, dense: torch.Tensor, sparse: torch.Tensor) -> torch.Tensor:
        """float [N, 13], int64 [N, 4] -> score [N]."""
        low = self.bottom(dense)
        rows = torch.stack([low, *(table(sparse[:, i : i + 1]) for i, table in enumerate(self.tables))], 1)
        products = torch.bmm(rows, rows.transpose(1, 2))
        row, column = torch.tril_indices(5, 5, -1)
        return self.top(torch.cat([low, products[:, row, column]], 1)).squeeze(1)


class Attention(nn.Module):
    """nn.MultiheadAttention over embedded tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.attention = nn.Embedding(100, 64), nn.MultiheadAttention(64, 4, batch_first=True)
        self.norm, self.wide, self.narrow = nn.LayerNorm(64), nn.Linear(64, 128), nn.Linear(128, 64)
        self.head = nn.Linear(64, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [N, T] -> logits [N, 5]."""
        states = self.embedding(tokens)
        states = self.norm(states + self.attention(states, states, states, need_weights=False)[0])
        states = states + self.narrow(torch.relu(self.wide(states)))
        return self.head(states.mean(1))


class Encoder(nn.Module):
    """nn.TransformerEncoder over steps of features."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.first, self.layers, self.head = nn.Linear(12, 32), nn.TransformerEncoder(layer, 2), nn.Linear(32, 9)

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        """float [N, T, 12] -> logits [N, 9]."""
        return self.head(self.layers(self.first(steps)).mean(1))


class Autoencoder(nn.Sequential):
    """Convolutions down, transposed convolutions up."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(32, 16, 2, 2), nn.ReLU(), nn.ConvTranspose2d(16, 1, 2, 2), nn.Sigmoid(),
        )  # fmt: skip


class Volumes(nn.Sequential):
    """Three-dimensional convolutions."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv3d(1, 16, 3, padding=1), nn.BatchNorm3d(16), nn.ReLU(), nn.MaxPool3d(2),
            nn.Conv3d(16, 32, 3, padding=1), nn.BatchNorm3d(32), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(),
            nn.Linear(32, 4),
        )  # fmt: skip


class Branching(nn.Module):
    """Decides by its data: what TorchScript alone makes a file of."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """float [N, 4] -> [N, 3]."""
        made = self.layer(rows)
        return made if made.sum() > 0 else -made


class ByNumpy(Branching):
    """Decides by its data in NumPy: what no file can hold."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """float [N, 4] -> [N, 3]."""
        made = self.layer(rows)
        largest = float(made.detach().numpy().max())
        return made / largest if largest > 1.0 else made


def lightning() -> nn.Module:
    """A LightningModule as its users write one: the network inside."""
    import_torchvision()
    module: Any = importlib.import_module("lightning").LightningModule

    class Classifier(module):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Sequential(
                nn.Conv2d(3, 32, 3),
                nn.BatchNorm2d(32),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(32, 10),
            )

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.network(pixels)

    return Classifier()


def _noise(*shape: int) -> Callable[[int], Tensors]:
    return lambda rows: (torch.randn(rows, *shape),)


BERT = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 200,
}
VIT = {"img_size": 32, "patch_size": 8, "num_classes": 10, "depth": 4}

NETWORKS: dict[str, Network] = {
    "resnet18": Network(torchvision("resnet18", num_classes=10), images(32)),
    "mobilenet_v2": Network(torchvision("mobilenet_v2", num_classes=10), images(32)),
    "mobilenet_v3": Network(torchvision("mobilenet_v3_small", num_classes=10), images(64)),
    "efficientnet_b0": Network(torchvision("efficientnet_b0", num_classes=10), images(64)),
    "shufflenet_v2": Network(torchvision("shufflenet_v2_x0_5", num_classes=10), images(64)),
    "squeezenet": Network(torchvision("squeezenet1_1", num_classes=10), images(64)),
    "densenet121": Network(torchvision("densenet121", num_classes=10), images(32)),
    "regnet_y": Network(torchvision("regnet_y_400mf", num_classes=10), images(32)),
    "googlenet": Network(torchvision("googlenet", num_classes=10, aux_logits=False, init_weights=False), images(64)),
    "convnext_atto": Network(timm("convnext_atto", num_classes=10), images(64)),
    "ghostnet": Network(timm("ghostnet_050", num_classes=10), images(64)),
    "repvgg": Network(timm("repvgg_a0", num_classes=10), images(32)),
    "mobilevit": Network(timm("mobilevit_xxs", num_classes=10), images(64)),
    "vit_tiny": Network(timm("vit_tiny_patch16_224", **VIT), images(32)),
    "deit3": Network(timm("deit3_small_patch16_224", embed_dim=96, num_heads=6, **VIT), images(32)),
    "swin": Network(
        timm("swin_tiny_patch4_window7_224", img_size=64, patch_size=4, window_size=4, embed_dim=24,
             depths=(2, 2), num_heads=(2, 4), num_classes=10), images(64)),
    "mixer": Network(timm("mixer_s32_224", img_size=64, num_classes=10), images(64)),
    "bert": Network(
        transformers("BertForSequenceClassification", "BertConfig", ("input_ids", "attention_mask"), **BERT),
        ids(12, 200), ("network.classifier",), TEXT),
    "distilbert": Network(
        transformers("DistilBertForSequenceClassification", "DistilBertConfig", ("input_ids", "attention_mask"),
                     dim=64, n_layers=2, n_heads=4, hidden_dim=128, vocab_size=200),
        ids(12, 200), ("network.classifier",), TEXT),
    "gpt2": Network(
        transformers("GPT2ForSequenceClassification", "GPT2Config", ("input_ids",), n_embd=64, n_layer=2, n_head=4,
                     vocab_size=200, pad_token_id=0, use_cache=False), ids(12, 200, False), ("network.score",)),
    "t5_encoder": Network(
        transformers("T5EncoderModel", "T5Config", ("input_ids", "attention_mask"), d_model=64, d_kv=16, d_ff=128,
                     num_layers=2, num_heads=4, vocab_size=200), ids(12, 200), (), TEXT),
    "wav2vec2": Network(
        transformers("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", ("input_values",), hidden_size=64,
                     num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, conv_dim=(32, 32, 32),
                     conv_stride=(5, 4, 4), conv_kernel=(10, 8, 4), num_conv_pos_embeddings=16,
                     num_conv_pos_embedding_groups=4, num_labels=5), _noise(1600)),
    "unet": Network(Unet, images(32)),
    "smp_unet": Network(smp_unet, images(64)),
    "lraspp": Network(Lraspp, images(64)),
    "ssdlite": Network(lambda: Detector("ssdlite320_mobilenet_v3_large"), images(320)),
    "fcos": Network(lambda: Detector("fcos_resnet50_fpn", trainable_backbone_layers=5), images(128)),
    "two_heads": Network(Heads, images(32)),
    "autoencoder": Network(Autoencoder, images(28, 1)),
    "conv3d": Network(Volumes, _noise(1, 8, 16, 16)),
    "m5": Network(M5, _noise(1, 8000)),
    "ds_cnn": Network(DsCnn, _noise(1, 49, 10)),
    "lstm": Network(lambda: Recurrent(nn.LSTM), _noise(20, 12)),
    "gru": Network(lambda: Recurrent(nn.GRU), _noise(20, 12)),
    "attention": Network(Attention, ids(12, 100, False)),
    "encoder": Network(Encoder, _noise(20, 12)),
    "ncf": Network(Ncf, lambda rows: (torch.randint(200, (rows,)), torch.randint(300, (rows,)))),
    "dlrm": Network(Dlrm, lambda rows: (torch.randn(rows, 13), torch.randint(100, (rows, 4)))),
    "lightning": Network(lightning, images(32)),
    "branching": Network(Branching, _noise(4)),
    "by_numpy": Network(ByNumpy, _noise(4)),
}  # fmt: skip
