"""What of an exported file decides how fast it runs: its graph, not the values of its weights.

Two files of one architecture take equal time (experiments/LOG.md, "Cost first"), so that one of them is measured. Where
that does not hold, or a file's graph cannot be read, a file is its own architecture.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from runtimes import foreign
from runtimes.base import FORMATS, Artifact


def architecture_of(artifact: Artifact, runtime: str, zeros: bool = False) -> str:
    """16 hex digits that files of equal speed on `runtime` share; `zeros`: whether its weights were set to zero.

    Raises ArtifactError when the file is no longer what was made.
    """
    content = artifact.read()
    if artifact.format != "onnx" or (zeros and zeros_matter(runtime)):
        return artifact.sha256[:16]
    return _digest(graph_of(content))


def zeros_matter(runtime: str) -> bool:
    """Whether weights that are zero may change how fast a file runs: of ours none makes use of them.

    A runtime of another package is believed when its module says ZEROS_MATTER = False.
    """
    return runtime not in FORMATS and bool(getattr(foreign.load(runtime), "ZEROS_MATTER", True))


def graph_of(content: bytes) -> list[Any]:
    """An ONNX file's operators with their attributes, connections, dtypes and shapes, as plain values.

    Of constants only whole numbers of 64 bits count: shapes and axes. Names are replaced by the order in which they
    come, and what the file says of itself is left out.
    """
    import onnx

    model = onnx.load_model_from_string(content)
    versions = sorted((each.domain, each.version) for each in model.opset_import)
    functions = [[each.domain, each.name, _nodes(each.node, {})] for each in model.functions]
    return [versions, functions, _graph(model.graph, {})]


def _graph(graph: Any, names: dict[str, int]) -> list[Any]:
    names = dict(names)
    ends = [[_number(names, each.name), _value(each.type)] for each in graph.input]
    constants = [[_number(names, each.name), *_tensor(each)] for each in graph.initializer]
    nodes = _nodes(graph.node, names)
    return [ends, constants, nodes, [[_number(names, each.name), _value(each.type)] for each in graph.output]]


def _nodes(nodes: Iterable[Any], names: dict[str, int]) -> list[Any]:
    return [
        [
            node.domain,
            node.op_type,
            [_number(names, name) for name in node.input],
            [_number(names, name) for name in node.output],
            sorted([each.name, _attribute(each, names)] for each in node.attribute),
        ]
        for node in nodes
    ]


def _number(names: dict[str, int], name: str) -> int:
    return names.setdefault(name, len(names)) if name else -1


def _value(kind: Any) -> str:
    return _hex(kind.SerializeToString(deterministic=True))


def _attribute(attribute: Any, names: dict[str, int]) -> Any:
    import onnx

    if attribute.type == onnx.AttributeProto.GRAPH:
        return _graph(attribute.g, names)
    if attribute.type == onnx.AttributeProto.GRAPHS:
        return [_graph(each, names) for each in attribute.graphs]
    if attribute.type == onnx.AttributeProto.TENSOR:
        return _tensor(attribute.t)
    if attribute.type == onnx.AttributeProto.FLOAT:
        return "float"
    return _hex(attribute.SerializeToString(deterministic=True))


def _tensor(tensor: Any) -> list[Any]:
    import onnx

    told = _hex(onnx.numpy_helper.to_array(tensor).tobytes()) if tensor.data_type == onnx.TensorProto.INT64 else ""
    return [tensor.data_type, list(tensor.dims), told]


def _hex(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _digest(value: Any) -> str:
    return _hex(json.dumps(value).encode())
