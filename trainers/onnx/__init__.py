"""The trainer for ONNX files without training code: smaller numbers, fewer weights and channels, no epoch of training.

What changes an ONNX file that another trainer exported lies here too. No framework is imported.
"""

from trainers.base import Capabilities

CAPABILITIES = Capabilities(
    granularities=("none", "unstructured", "channel"),
    schemes=("none", "float16", "dynamic_int8", "static_int8", "weight_only_int8", "weight_only_int4"),
    clusters=(0,),
    formats=("onnx",),
    trains=False,
)
