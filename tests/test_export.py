"""What is exported gives the same numbers elsewhere."""

from __future__ import annotations

import onnxruntime
import pytest
import torch

from faceswap.errors import ConfigError, MediaError, MissingWeightError
from faceswap.models import build, load_model, save_model
from faceswap.train.export import export, exportable, find_weights

ARGS = {
    "aei": {"size": 32, "width": 0.125, "num_blocks": 2, "embedding_size": 16},
    "aei_guided": {
        **{"widths": (8, 8, 16, 16, 16), "embedding_size": 16, "shape_rank": 4},
        **{"extra_layers": 2, "mapping": 8},
    },
    "detector": {"widths": (8, 8, 8, 12, 12), "neck": 8},
    "identity": {"widths": (8, 8, 16), "depths": (1, 1, 1), "embedding_size": 16},
    "mesh": {"widths": (8,) * 4, "depths": (1,) * 4, "rank": 8, "size": 64},
    "occlusion": {"widths": (8, 12, 12)},
    "restorer": {"widths": (8, 12), "depths": (1, 1)},
}


@pytest.fixture
def run(tmp_path):
    """Folder of a run, by architecture."""

    def make(arch: str):
        torch.manual_seed(0)
        save_model(tmp_path / f"{arch}.safetensors", build(arch, **ARGS[arch]), arch, ARGS[arch])
        return tmp_path

    return make


@pytest.mark.parametrize("arch", ARGS)
def test_onnx_gives_the_same(run, arch):
    """Also for another number of faces than the example's."""
    path = export(run(arch), "onnx")
    assert path.name == f"{arch}.onnx"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    parts = exportable(load_model(path.with_suffix(".safetensors")))
    for n in (1, 2, 5):
        inputs = {k: torch.cat([v, 1 - v, v])[:n] for k, v in parts.inputs.items()}
        with torch.no_grad():
            expected = parts.network(*inputs.values())
        expected = expected if isinstance(expected, tuple) else (expected,)
        found = session.run(list(parts.outputs), {k: v.numpy() for k, v in inputs.items()})
        for a, b in zip(found, expected, strict=True):
            assert a.shape == tuple(b.shape)
            assert (torch.from_numpy(a) - b).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("arch", "sizes"),
    [
        ("detector", [(32, 32), (96, 160), (224, 64)]),
        ("occlusion", [(16, 16), (64, 40), (160, 160)]),
        ("restorer", [(16, 16), (64, 40), (128, 128)]),
    ],
)
def test_pictures_of_any_size(run, arch, sizes):
    """Another height, width and number than the example's."""
    path = export(run(arch), "onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    network = load_model(path.with_suffix(".safetensors"))
    for n, (height, width) in enumerate(sizes, start=1):
        pictures = torch.rand(n, 3, height, width)
        (name,) = (each.name for each in session.get_inputs())
        found = [torch.from_numpy(x) for x in session.run(None, {name: pictures.numpy()})]
        with torch.no_grad():
            expected = network(pictures)
        if arch in ("occlusion", "restorer"):
            assert (found[0] - expected).abs().max() < 1e-3
            continue
        begin = 0
        for grid in expected:  # the cells of the three grids one after the other
            end = begin + grid.score[0].numel()
            score, box, points = (column[:, begin:end] for column in found)
            assert (score - grid.score.flatten(1).sigmoid()).abs().max() < 1e-3
            assert (box - grid.box.flatten(1, 2)).abs().max() < 1e-3
            assert (points - grid.points.flatten(1, 2)).abs().max() < 1e-3
            begin = end
        assert begin == found[0].shape[1]


@pytest.mark.parametrize(
    ("encoder", "injection", "mask_head"),
    [("linknet", "adaconv", True), ("fpn", "attention", False), ("resnet", "adain", False)],
)
def test_every_kind_of_aei(tmp_path, encoder, injection, mask_head):
    args = {**ARGS["aei"], "attribute_encoder": encoder, "identity_injection": injection}
    args["mask_head"] = mask_head
    torch.manual_seed(0)
    save_model(tmp_path / "swapper.safetensors", build("aei", **args), "aei", args)
    path = export(tmp_path, "onnx")
    network = load_model(tmp_path / "swapper.safetensors")
    target, identity = torch.rand(3, 3, 32, 32), torch.randn(3, 16)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = {"target": target.numpy(), "identity": identity.numpy()}
    (found,) = session.run(None, given)
    with torch.no_grad():
        assert (torch.from_numpy(found) - network(target, identity)).abs().max() < 1e-3


def test_safetensors_of_a_plain_state_dict(tmp_path):
    """As for the published files: recognised, and afterwards a file that says what it is."""
    torch.manual_seed(0)
    network = build("aei", **ARGS["aei"]).eval()
    torch.save(network.state_dict(), tmp_path / "G.pth")
    path = export(tmp_path / "G.pth", "safetensors")
    again = load_model(path)
    target, identity = torch.rand(1, 3, 32, 32), torch.randn(1, 16)
    with torch.no_grad():
        difference = (again(target, identity) - network(target, identity)).abs().max()
    assert difference < 5e-3  # fp16 on disk


def test_bad_input(run, tmp_path):
    with pytest.raises(MissingWeightError, match="no weights"):
        export(tmp_path, "onnx")
    folder = run("aei")
    assert find_weights(folder / "aei.safetensors") == folder / "aei.safetensors"
    with pytest.raises(ConfigError, match="is a safetensors file already"):
        export(folder, "safetensors")
    export(folder, "onnx")
    with pytest.raises(MediaError, match="--overwrite"):
        export(folder, "onnx")
    export(folder, "onnx", overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(MediaError, match="cannot be written"):
        export(folder, "onnx", tmp_path / "file" / "a.onnx")
    (folder / "last.pt").touch()
    with pytest.raises(ConfigError, match=f"the state of a run, to go on with; export {folder}"):
        export(folder / "last.pt", "onnx")
    assert not list(folder.glob("*.part"))
    run("identity")
    with pytest.raises(ConfigError, match="2 weight files"):
        export(folder, "onnx")
    with pytest.raises(ConfigError, match="Discriminator cannot be exported"):
        exportable(build("discriminator", width=0.125))
