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
    at = 0
    while at < len(data):
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
        yield key >> 3, value


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
