"""An ONNX graph by name: who makes a tensor, who reads it, which are stored."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper


class Index:
    """Looks things up in `model.graph`; made again after nodes have changed. Initializers are changed through it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.stored = {tensor.name: tensor for tensor in self.graph.initializer}
        self.maker = {name: node for node in self.graph.node for name in node.output if name}
        self.outputs = {value.name for value in self.graph.output}
        self.inputs = {value.name for value in self.graph.input}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in reads(node):
                self.readers.setdefault(name, []).append(node)

    def reader(self, name: str) -> onnx.NodeProto | None:
        """The only node that reads the tensor; None where there are several, or it leaves the graph."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def constant(self, name: str) -> np.ndarray | None:
        """The value of an initializer that is no input of the graph; None for any other tensor."""
        if name not in self.stored or name in self.inputs:
            return None
        value: np.ndarray = numpy_helper.to_array(self.stored[name])
        return value

    def replace(self, name: str, value: np.ndarray) -> None:
        """Another value for the initializer, of the type that it has."""
        tensor = self.stored[name]
        kept = value.astype(numpy_helper.to_array(tensor).dtype)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(kept), name))

    def free(self, name: str) -> str:
        """`name`, longer when it is taken."""
        while name in self.stored or name in self.maker or name in self.inputs:
            name += "_"
        return name

    def add(self, name: str, value: np.ndarray) -> str:
        """A new initializer; returns its name, which is `name` where that is free."""
        name = self.free(name)
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        self.stored[name] = self.graph.initializer[-1]
        return name


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names of the tensors that the node reads, those that its subgraphs take from outside included; with repeats."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
            for inner in graph.node:
                yield from reads(inner)
            yield from (value.name for value in graph.output)


def attribute(node: onnx.NodeProto, name: str, default: object = None) -> object:
    """The value of the node's attribute, `default` where it has none."""
    for one in node.attribute:
        if one.name == name:
            return onnx.helper.get_attribute_value(one)
    return default


def prune_unused(model: onnx.ModelProto) -> None:
    """Remove initializers that nothing reads."""
    read = {name for node in model.graph.node for name in reads(node)} | {v.name for v in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    if len(kept) < len(model.graph.initializer):
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
