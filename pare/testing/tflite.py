"""Small `.tflite` files written with the format's own schema: TensorFlow is not needed."""

from __future__ import annotations

from collections.abc import Sequence

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
from ai_edge_litert import schema_py_generated as schema

_KINDS = {"float32": schema.TensorType.FLOAT32, "int32": schema.TensorType.INT32, "int64": schema.TensorType.INT64}


class Graph:
    """A graph under construction. Tensors are the numbers that the methods return."""

    def __init__(self) -> None:
        self._model, self._graph = schema.ModelT(), schema.SubGraphT()
        self._model.version, self._model.buffers, self._model.operatorCodes = 3, [schema.BufferT()], []
        self._graph.tensors, self._graph.operators = [], []

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: type = np.float32,
        content: np.ndarray | None = None,
        marked: Sequence[int] = (),
    ) -> int:
        """A tensor; `content` for a stored one, `marked`: its shape with -1 for free axes."""
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name, list(shape), _KINDS[np.dtype(dtype).name], 0
        made.shapeSignature = list(marked) or None
        if content is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(content).tobytes(), np.uint8)
            made.buffer = len(self._model.buffers)
            self._model.buffers.append(buffer)
        self._graph.tensors.append(made)
        return len(self._graph.tensors) - 1

    def fully_connected(
        self, given: int, name: str, kernel: np.ndarray, bias: np.ndarray | None = None, relu: bool = False
    ) -> int:
        """`given` @ kernel [inputs, outputs] + bias."""
        options = schema.FullyConnectedOptionsT()
        activations = schema.ActivationFunctionType
        options.fusedActivationFunction = activations.RELU if relu else activations.NONE
        wide = kernel.shape[1]
        stored = self.tensor(f"{name}_kernel", kernel.T.shape, content=kernel.T)
        added = np.zeros(wide, np.float32) if bias is None else bias
        inputs = [given, stored, self.tensor(f"{name}_bias", (wide,), content=added)]
        return self._operator("FULLY_CONNECTED", inputs, name, (1, wide), "FullyConnectedOptions", options)

    def mean(self, given: int, name: str, shape: Sequence[int], axis: int) -> int:
        """The mean over one axis, which is gone then."""
        axes = self.tensor(f"{name}_axis", (1,), np.int32, np.array([axis], np.int32))
        return self._operator("MEAN", [given, axes], name, shape, "ReducerOptions", schema.ReducerOptionsT())

    def gather(self, table: np.ndarray, ids: int, name: str, shape: Sequence[int]) -> int:
        """The rows of the table that `ids` names."""
        stored = self.tensor(f"{name}_table", table.shape, content=table)
        return self._operator("GATHER", [stored, ids], name, shape, "GatherOptions", schema.GatherOptionsT())

    def expanded(self, given: int, name: str, shape: Sequence[int]) -> int:
        """The same with one more axis, of size 1, at the end."""
        axis = self.tensor(f"{name}_axis", (1,), np.int32, np.array([-1], np.int32))
        options = schema.ExpandDimsOptionsT()
        return self._operator("EXPAND_DIMS", [given, axis], name, shape, "ExpandDimsOptions", options)

    def multiply(self, left: int, right: int, name: str, shape: Sequence[int]) -> int:
        """The product, with axes of size 1 repeated."""
        return self._operator("MUL", [left, right], name, shape, "MulOptions", schema.MulOptionsT())

    def written(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        """The file, with a signature that names inputs and outputs."""
        self._graph.inputs, self._graph.outputs = list(inputs), list(outputs)
        self._model.subgraphs = [self._graph]
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = "serving_default", 0
        signature.inputs, signature.outputs = self._named(inputs), self._named(outputs)
        self._model.signatureDefs = [signature]
        builder = flatbuffers.Builder()
        builder.Finish(self._model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _named(self, tensors: Sequence[int]) -> list[schema.TensorMapT]:
        made = []
        for index in tensors:
            each = schema.TensorMapT()
            each.name, each.tensorIndex = self._graph.tensors[index].name, index
            made.append(each)
        return made

    def _operator(
        self, kind: str, inputs: list[int], name: str, shape: Sequence[int], options_kind: str, options: object
    ) -> int:
        code, layer = schema.OperatorCodeT(), schema.OperatorT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, kind)
        output = self.tensor(name, shape)
        layer.opcodeIndex, layer.inputs, layer.outputs = len(self._model.operatorCodes), inputs, [output]
        layer.builtinOptionsType, layer.builtinOptions = getattr(schema.BuiltinOptions, options_kind), options
        self._model.operatorCodes.append(code)
        self._graph.operators.append(layer)
        return output
