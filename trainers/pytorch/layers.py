"""The kinds of layers that pruning knows, and layers of other kinds rewritten as these."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
LAYERS = (*CONVOLUTIONS, nn.Linear)


def channels_of(layer: nn.Module) -> int:
    """Output channels of a convolution, output features of a linear layer."""
    return int(getattr(layer, "out_features" if isinstance(layer, nn.Linear) else "out_channels"))


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> every convolution and linear layer, in the order of the modules."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LAYERS)}


def plain_layers(model: nn.Module) -> None:
    """Layers as torch-pruning knows them, in place, which compute the same.

    Weights that are computed anew in each forward pass by weight_norm become plain ones, and the Conv1D of
    transformers, a linear layer with a transposed weight, becomes one.
    """
    for name, module in list(model.named_modules()):
        if parametrize.is_parametrized(module):
            for weight in list(module.parametrizations):
                parametrize.remove_parametrizations(module, weight, leave_parametrized=True)
        if type(module).__name__ == "Conv1D" and not isinstance(module, LAYERS):
            inputs, outputs = module.weight.shape
            linear = nn.Linear(inputs, outputs, device=module.weight.device, dtype=module.weight.dtype)
            linear.weight = nn.Parameter(module.weight.detach().T.contiguous(), module.weight.requires_grad)
            linear.bias = module.bias
            model.set_submodule(name, linear)
