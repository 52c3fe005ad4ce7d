"""Weights out of an ONNX file, without the package onnx, whose import takes a third of a second.

An ONNX file is a protocol buffer; of its schema (github.com/onnx/onnx, onnx.proto) this knows the
graph, its nodes and its float tensors. Nothing is run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from faceswap.errors import WeightError

_VARINT, _WIDE, _BYTES, _NARROW = 0, 1, 2, 5  # wire types
_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_INITIALIZER = 7, 1, 5  # field numbers
_GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_VALUE = 11, 12, 13
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR, _TENSOR_ELEMENT = 1, 2, 1, 1
_NODE_INPUT, _NODE_OPERATOR = 1, 4
_DIMS, _TYPE, _FLOATS, _NAME, _RAW = 1, 2, 4, 8, 9  # of a tensor
_FLOAT = 1  # data type


@dataclass(frozen=True, slots=True)
class Node:
    """One operation."""

    operator: str
    inputs: tuple[str, ...]


def read_onnx(path: Path) -> tuple[list[Node], dict[str, Tensor]]:
    """Nodes in the order in which they run, and the float32 tensors that are stored, by name.

    Raises:
        WeightError: the file is no protocol buffer, or its tensors are cut short.
    """
    nodes: list[Node] = []
    tensors: dict[str, Tensor] = {}
    try:
        for number, graph in _fields(memoryview(path.read_bytes())):
            if number != _MODEL_GRAPH:
                continue
            for kind, value in _fields(_bytes(graph)):
                if kind == _GRAPH_NODE:
                    nodes.append(_node(_bytes(value)))
                elif kind == _GRAPH_INITIALIZER:
                    tensors |= _tensor(_bytes(value))
    except (ValueError, IndexError, RuntimeError) as error:
        raise WeightError(f"{path}: not an ONNX file") from error
    return nodes, tensors


def with_constant_weights(path: Path) -> bytes:
    """The model of a file, for pictures of any size and with weights that nobody can replace.

    Old exporters list weights among the graph's inputs, as defaults; an engine must then neither
    fold nor pack them. Shapes of inputs, outputs and values are left out.

    Raises:
        WeightError: as `read_onnx`.
    """
    out = b""
    try:
        for number, value, raw in _spans(memoryview(path.read_bytes())):
            graph = number == _MODEL_GRAPH
            out += _message(number, _constant(_bytes(value))) if graph else raw
    except (ValueError, IndexError) as error:
        raise WeightError(f"{path}: not an ONNX file") from error
    return out


def _constant(graph: memoryview) -> bytes:
    """A graph whose inputs are those that are not stored in it."""
    stored = {
        _text(_bytes(value), _NAME)
        for number, value in _fields(graph)
        if number == _GRAPH_INITIALIZER
    }
    out = b""
    for number, value, raw in _spans(graph):
        if number in (_GRAPH_INPUT, _GRAPH_OUTPUT):
            name = _text(_bytes(value), _VALUE_NAME)
            out += b"" if name in stored else _message(number, _float_value(name))
        elif number != _GRAPH_VALUE:
            out += raw
    return out


def _text(data: memoryview, field: int) -> str:
    """A field of a message that holds words; empty if it is not there."""
    found = [value for number, value in _fields(data) if number == field]
    return bytes(_bytes(found[0])).decode() if found else ""


def _float_value(name: str) -> bytes:
    """A value of any shape: ``ValueInfoProto``."""
    tensor = bytes([_TENSOR_ELEMENT << 3 | _VARINT, _FLOAT])
    kind = _message(_VALUE_TYPE, _message(_TYPE_TENSOR, tensor))
    return _message(_VALUE_NAME, name.encode()) + kind


def _message(number: int, payload: bytes) -> bytes:
    """A field that holds bytes."""
    size, length = len(payload), []
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes([number << 3 | _BYTES, *length, size]) + payload


def _node(data: memoryview) -> Node:
    operator, inputs = "", []
    for number, value in _fields(data):
        if number == _NODE_INPUT:
            inputs.append(bytes(_bytes(value)).decode())
        elif number == _NODE_OPERATOR:
            operator = bytes(_bytes(value)).decode()
    return Node(operator, tuple(inputs))


def _tensor(data: memoryview) -> dict[str, Tensor]:
    """The tensor by its name; nothing if it holds no floats."""
    shape: list[int] = []
    name, dtype, raw = "", 0, b""
    for number, value in _fields(data):
        if number == _DIMS:
            shape += [value] if isinstance(value, int) else _varints(value)
        elif number == _TYPE:
            dtype = value if isinstance(value, int) else 0
        elif number == _NAME:
            name = bytes(_bytes(value)).decode()
        elif number in (_FLOATS, _RAW):  # packed floats have the layout of raw ones
            raw += bytes(_bytes(value))
    if dtype != _FLOAT:
        return {}
    return {name: torch.from_numpy(np.frombuffer(raw, "<f4").astype(np.float32)).reshape(shape)}


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of a message."""
    for number, value, _ in _spans(data):
        yield number, value


def _spans(data: memoryview) -> Iterator[tuple[int, int | memoryview, memoryview]]:
    """Number and value of each field of a message, and all of its bytes."""
    at = 0
    while at < len(data):
        begin = at
        key, at = _varint(data, at)
        value: int | memoryview
        if key & 7 == _VARINT:
            value, at = _varint(data, at)
        else:
            widths = {_WIDE: 8, _NARROW: 4}
            if key & 7 == _BYTES:
                size, at = _varint(data, at)
            elif key & 7 in widths:
                size = widths[key & 7]
            else:
                raise ValueError(f"wire type {key & 7}")
            value = data[at : at + size]
            at += size
            if at > len(data):
                raise ValueError("cut short")
        yield key >> 3, value, data[begin:at]


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _varints(data: memoryview) -> list[int]:
    out, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        out.append(value)
    return out


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where bytes belong")
    return value
