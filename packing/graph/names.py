"""What a graph says besides what it computes: names, documentation, where it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import onnx

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_PRODUCER = ("producer_name", "producer_version", "domain", "model_version", "doc_string")


def shorten(model: onnx.ModelProto) -> dict[str, str]:
    """Short names for everything but the graph's inputs and outputs, none for nodes, no documentation; in place.

    Returns the metadata that was in the file: it belongs into a file beside it.
    """
    about = {entry.key: entry.value for entry in model.metadata_props}
    for name in (*_PRODUCER, "metadata_props"):
        model.ClearField(name)
    used = {node.domain for graph in graphs(model.graph) for node in graph.node}
    domains = [opset for opset in model.opset_import if opset.domain in used or not opset.domain or model.functions]
    del model.opset_import[:]
    model.opset_import.extend(domains)
    kept = {value.name for value in (*model.graph.input, *model.graph.output)}
    renamed = _Renamed(kept)
    for graph in graphs(model.graph):
        _bare(graph)
        for value in (*graph.input, *graph.output, *graph.initializer):
            value.name = renamed[value.name]
        for sparse in graph.sparse_initializer:
            sparse.values.name = renamed[sparse.values.name]
        for node in graph.node:
            node.input[:] = [renamed[name] for name in node.input]
            node.output[:] = [renamed[name] for name in node.output]
    return about


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and those inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
                yield from graphs(inner)


def _bare(graph: onnx.GraphProto) -> None:
    """Without what explains."""
    graph.name = "g"
    for name in ("doc_string", "value_info", "quantization_annotation", "metadata_props"):
        graph.ClearField(name)
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    for node in graph.node:
        node.ClearField("name")
        for attribute in node.attribute:
            attribute.ClearField("doc_string")


class _Renamed(dict[str, str]):
    """Old name -> new name, made at its first use; `kept` stay as they are. Names are unique over all graphs."""

    def __init__(self, kept: set[str]) -> None:
        super().__init__({name: name for name in kept} | {"": ""})
        self.new = (name for name in _short() if name not in kept)

    def __missing__(self, name: str) -> str:
        self[name] = next(self.new)
        return self[name]


def _short() -> Iterator[str]:
    """a, b, ..., Z, aa, ab, ..."""
    for number in count():
        name = ""
        while True:
            name = LETTERS[number % len(LETTERS)] + name
            number = number // len(LETTERS) - 1
            if number < 0:
                break
        yield name
