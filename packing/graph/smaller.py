"""All passes in order: from an exported ONNX model to one that says the same in fewer bytes."""

from __future__ import annotations

import onnx

from packing.graph.channel_steps import split_channel_steps
from packing.graph.dead_units import remove_dead_units
from packing.graph.implied import drop_defaults, flatten_reshapes, positive_zeros
from packing.graph.integers import store_integers
from packing.graph.names import shorten


def smaller(
    model: onnx.ModelProto, *, integers: bool = False, fold: bool = True, steps: bool = False
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """(a smaller model, the metadata that was in it). `model` is left as it is.

    Inputs and outputs keep their names, types and shapes; outputs keep their values up to the rounding of sums whose
    terms are fewer. `integers`: weights on a grid as int8 behind one DequantizeLinear for each tensor, which makes the
    plain file smaller and a packed one a little larger. `fold`: see `remove_dead_units`. `steps`: see
    `split_channel_steps`, which rounds.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    positive_zeros(made)
    flatten_reshapes(made)
    remove_dead_units(made, fold)
    if steps:
        split_channel_steps(made)
    if integers:
        store_integers(made)
    drop_defaults(made)
    return made, shorten(made)
