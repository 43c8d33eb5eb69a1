"""The PyTorch trainer. This module imports no torch: the driver reads the capabilities."""

import logging

from trainers.base import Capabilities

# At import torchao names the GPU libraries a CPU build lacks, and torch what torchao registers: no concern of users.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)

CAPABILITIES = Capabilities(
    granularities=("none", "unstructured", "n_m", "channel"),
    schemes=(
        *("none", "float16", "dynamic_int8", "static_int8", "qat_int8", "qat_int4"),
        *("weights_int2", "weights_int3", "weights_int4", "weights_mixed"),
        *("weight_only_int8", "weight_only_int4"),
    ),
    clusters=(0, 8, 16, 32),
    formats=("onnx", "pt2"),
    tuning=(
        *("micro_batch", "weight_decay", "label_smoothing", "ema", "trainable", "lora_rank"),
        *("qat_learning_rate", "augment", "start"),
    ),
    scores=("magnitude", "fisher"),
    allocations=("uniform", "global", "sensitivity"),
    importances=("magnitude", "taylor", "activation"),
    recoveries=("none", "bias", "least_squares"),
    trainables=("all", "norm_bias_head", "lora"),
)
