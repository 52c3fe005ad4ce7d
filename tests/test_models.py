"""One contract for every generator we can build, exact layers, and weight files of all sorts."""

import errno
import json
import os
import pickle
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from faceswap import weights
from faceswap.errors import ConfigError, MissingWeightError, WeightError
from faceswap.models import (
    ARCHITECTURES,
    build,
    checkpoint,
    load_model,
    save_model,
    to_precision,
    without_initial_weights,
)
from faceswap.models.aad import AADLayer, AADResBlock, AdaptiveKernels, IdentityAttention
from faceswap.models.attributes import make_encoder, upsample

ENCODERS = ("unet", "linknet", "resnet", "fpn")
INJECTIONS = ("adain", "adaconv", "attention")
TINY = {"size": 32, "width": 0.125, "embedding_size": 16}
VARIANTS = [
    {"attribute_encoder": encoder, "num_blocks": blocks, "identity_injection": injection, **TINY}
    for encoder, blocks, injection in product(ENCODERS, (1, 2, 3), INJECTIONS)
]


def tiny(seed: int = 0, **args: object) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build("aei", **{**TINY, **args})


def inputs(size: int = 32, embedding_size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(5)
    target = torch.rand(2, 3, size, size, generator=random)
    return target, torch.randn(2, embedding_size, generator=random)


@pytest.mark.parametrize(
    "args",
    VARIANTS,
    ids=lambda a: f"{a['attribute_encoder']}-{a['num_blocks']}-{a['identity_injection']}",
)
class TestEveryGenerator:
    def test_swaps_attributes_and_gradients(self, args):
        torch.manual_seed(0)
        model = build("aei", **args)
        target, identity = inputs()
        target.requires_grad_()
        identity.requires_grad_()

        attributes = model.attributes(target)
        sides = [2, 4, 8, 16, 32]
        assert [maps.shape for maps in attributes] == [
            (2, channels, side, side)
            for channels, side in zip(model.encoder.channels, sides, strict=True)
        ]
        swapped = model.generate(attributes, identity)
        assert swapped.shape == (2, 3, 32, 32)
        assert swapped.dtype == torch.float32
        assert swapped.isfinite().all()
        assert swapped.min() >= 0
        assert swapped.max() <= 1

        (swapped - 0.3).square().sum().backward()
        parts = {"target": target, "identity": identity, **dict(model.named_parameters())}
        # the instance norm after it takes every constant away again, in the original too
        del parts["generator.up1.bias"]
        dead = [n for n, p in parts.items() if p.grad is None or not p.grad.abs().max() > 0]
        assert dead == []

    def test_weights_survive_the_file(self, args, tmp_path):
        model = build("aei", **args).eval()
        path = save_model(tmp_path / "tiny.safetensors", model, "aei", args, {"by": "test"})
        loaded = load_model(path)
        assert not loaded.training
        stored = {k: v.half().float() if v.ndim >= 2 else v for k, v in model.state_dict().items()}
        assert all(torch.equal(value, stored[key]) for key, value in loaded.state_dict().items())
        model.load_state_dict(stored)
        with torch.inference_mode():
            assert torch.equal(loaded(*inputs()), model(*inputs()))


class TestGenerator:
    @pytest.mark.parametrize("size", [32, 64, 128])
    def test_every_size_starts_at_two_pixels(self, size):
        model = tiny(size=size, num_blocks=1).eval()
        target, identity = inputs(size)
        with torch.inference_mode():
            sides = [maps.shape[-1] for maps in model.attributes(target)]
            assert sides == [2 << i for i in range(len(sides))]
            assert sides[-1] == size
            assert model(target, identity).shape == target.shape

    @pytest.mark.parametrize("encoder", ENCODERS)
    def test_512_adds_a_level(self, encoder):
        model = tiny(attribute_encoder=encoder, size=512, width=0.03, num_blocks=1).eval()
        target, identity = inputs(512)
        with torch.inference_mode():
            attributes = model.attributes(target[:1])
            assert [maps.shape[-1] for maps in attributes] == [2 << i for i in range(9)]
            assert model.generate(attributes, identity[:1]).shape == (1, 3, 512, 512)

    @pytest.mark.parametrize(
        ("encoder", "channels"),
        [  # the table of GHOST's encoders, 2 px ... 256 px
            ("unet", (1024, 2048, 1024, 512, 256, 128, 64, 64)),
            ("linknet", (1024, 1024, 512, 256, 128, 64, 32, 32)),
            ("resnet", (1024, 2048, 1024, 512, 256, 128, 64, 64)),
            ("fpn", (1024, 1024, 512, 256, 128, 64, 32, 32)),
        ],
    )
    def test_channels_at_full_width(self, encoder, channels):
        with without_initial_weights():
            assert make_encoder(encoder, 256).channels == channels

    def test_one_identity_serves_all_targets(self):
        model = tiny().eval()
        target, identity = inputs()
        with torch.inference_mode():
            torch.testing.assert_close(
                model(target, identity[:1]), model(target, identity[:1].repeat(2, 1))
            )

    @pytest.mark.parametrize("injection", INJECTIONS)
    def test_each_face_of_a_batch_depends_on_itself_alone(self, injection):
        model = tiny(identity_injection=injection).eval()
        target, identity = inputs()
        with torch.inference_mode():
            alone = torch.cat([model(target[i : i + 1], identity[i : i + 1]) for i in (0, 1)])
            torch.testing.assert_close(model(target, identity), alone, atol=1e-5, rtol=0)

    def test_wrong_input_is_named(self):
        model = tiny()
        target, identity = inputs()
        with pytest.raises(ValueError, match=r"target: expected \(N, 3, 32, 32\), got \(2, 3, 16"):
            model(target[..., :16, :16], identity)
        with pytest.raises(ValueError, match=r"identity: expected \(N, 16\), got \(2, 8\)"):
            model(target, identity[:, :8])

    @pytest.mark.parametrize(
        "args",
        [
            {"size": 48},
            {"size": 16},
            {"num_blocks": 4},
            {"width": 0},
            {"attribute_encoder": "vgg"},
            {"identity_injection": "film"},
            {"widht": 1.0},
        ],
        ids=str,
    )
    def test_wrong_arguments_are_refused(self, args):
        with pytest.raises(ConfigError, match=next(iter(args))):
            tiny(**args)


class TestLayers:
    def test_aad_by_hand(self):
        """h = (1, 3): mean 2, variance 1, so normalised (-1, 1); one channel, one attribute."""
        layer = AADLayer(1, 1, embedding_size=1)
        values = {"conv1": (2, 0.5), "conv2": (-1, 0.25), "fc1": (3, 1), "fc2": (0.5, -1)}
        with torch.no_grad():
            for name, (weight, bias) in {**values, "conv_h": (1.0986123, 0)}.items():
                getattr(layer, name).weight.fill_(weight)
                getattr(layer, name).bias.fill_(bias)
            out = layer(
                torch.tensor([[[[1.0, 3.0]]]]),
                torch.tensor([[[[0.0, 2.0]]]]),
                torch.tensor([[2.0]]),
            )
        # attribute: scale (.5, 4.5), shift (.25, -1.75) -> (-.25, 2.75)
        # identity:  scale 7, shift 0                    -> (-7, 7)
        # mask: sigmoid(-+ln 3) = (.25, .75)
        expected = torch.tensor([[[[0.75 * -0.25 + 0.25 * -7, 0.25 * 2.75 + 0.75 * 7]]]])
        torch.testing.assert_close(out, expected, atol=1e-4, rtol=0)

    def test_adaconv_with_only_centre_taps_is_adain(self):
        branch = AdaptiveKernels(4, 6)
        h, identity = torch.randn(2, 4, 5, 5), torch.randn(2, 6)
        centre = torch.zeros(4, 9, 1)
        centre[:, 4] = 1
        with torch.no_grad():
            branch.fc_kernel.weight.mul_(centre.expand(4, 9, 6).reshape(36, 6))
            branch.fc_kernel.bias.mul_(centre.flatten())
            scale = branch.fc_kernel(identity).view(2, 4, 9)[:, :, 4, None, None]
            expected = scale * h + branch.fc_bias(identity)[..., None, None]
            torch.testing.assert_close(branch(h, identity), expected)

    def test_adaconv_is_a_depthwise_convolution_of_its_own_for_each_face(self):
        branch = AdaptiveKernels(4, 6)
        h, identity = torch.randn(2, 4, 5, 7), torch.randn(2, 6)
        with torch.no_grad():
            kernels = branch.fc_kernel(identity).view(8, 1, 3, 3)
            padded = torch.nn.functional.pad(h, [1] * 4, mode="replicate").view(1, 8, 7, 9)
            expected = torch.nn.functional.conv2d(padded, kernels, groups=8).view(2, 4, 5, 7)
            expected = expected + branch.fc_bias(identity)[..., None, None]
            torch.testing.assert_close(branch(h, identity), expected)

    def test_attention_over_one_token_is_adain(self):
        branch = IdentityAttention(4, 6, tokens=1)
        h, identity = torch.randn(2, 4, 5, 5), torch.randn(2, 6)
        with torch.no_grad():
            token = branch.fc_tokens(identity)
            expected = branch.fc1(token)[..., None, None] * h + branch.fc2(token)[..., None, None]
            torch.testing.assert_close(branch(h, identity), expected)

    def test_attention_follows_the_query(self):
        """A position whose query points along one token gets that token's shift."""
        branch = IdentityAttention(2, 2, tokens=2, depth=2)
        with torch.no_grad():
            branch.fc_tokens.weight.zero_()
            branch.fc_tokens.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 1.0]))  # tokens e1, e2
            branch.query.weight.copy_(100 * torch.eye(2)[..., None, None])
            branch.query.bias.zero_()
            branch.fc1.weight.zero_()
            branch.fc1.bias.zero_()
            branch.fc2.weight.copy_(torch.tensor([[5.0, 7.0], [0.0, 0.0]]))
            branch.fc2.bias.zero_()
            h = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # pixel 0 asks e1, pixel 1 asks e2
            out = branch(h, torch.zeros(1, 2))
        torch.testing.assert_close(out, torch.tensor([[[[5.0, 7.0]], [[0.0, 0.0]]]]))

    @pytest.mark.parametrize(("cout", "steps"), [(8, 2), (4, 3)])
    def test_block_with_silent_convolutions_is_its_shortcut(self, cout, steps):
        block = AADResBlock(8, cout, attribute_channels=3, embedding_size=2, num_blocks=2)
        convolutions = [m for m in block.modules() if isinstance(m, torch.nn.Conv2d)]
        wide = [conv for conv in convolutions if conv.kernel_size == (3, 3)]
        assert len(wide) == steps
        torch.nn.init.zeros_(block.add_blocks[-1].weight)
        h = torch.randn(1, 8, 4, 4)
        with torch.no_grad():
            out = block(h, torch.randn(1, 3, 4, 4), torch.randn(1, 2))
        if cout == 8:
            assert torch.equal(out, h)
        else:
            assert out.shape == (1, 4, 4, 4)

    def test_upsample_keeps_the_corners(self):
        x = torch.tensor([[[[0.0, 3.0], [6.0, 9.0]]]])
        expected = torch.arange(4.0)[None] + 2 * torch.arange(4.0)[:, None]
        torch.testing.assert_close(upsample(x)[0, 0], expected)


class TestOtherNetworks:
    def test_discriminator_judges_three_sizes(self):
        torch.manual_seed(0)
        model = build("discriminator", layers=3, width=0.125)
        images = torch.rand(2, 3, 64, 64)
        logits = model(images)
        assert [tuple(logit.shape) for logit in logits] == [
            (2, 1, 11, 11),
            (2, 1, 7, 7),
            (2, 1, 5, 5),
        ]
        # the last layer sees the full size: a change finer than the pooling reaches it alone
        model.layer2[0].weight.data.zero_()
        changed = model(images)
        assert not torch.allclose(changed[0], logits[0])
        assert torch.equal(changed[1], logits[1])

    def test_iresnet_resizes_as_ghost_does_and_is_not_normalised(self):
        torch.manual_seed(0)
        model = build("iresnet100", layers=(1, 1, 1, 1), embedding_size=16, width=0.125).eval()
        images = torch.rand(2, 3, 224, 224)
        half = torch.nn.functional.interpolate(
            images, scale_factor=0.5, mode="bilinear", align_corners=True
        )
        with torch.inference_mode():
            embedding = model(images)
            torch.testing.assert_close(embedding, model(half))
        assert embedding.shape == (2, 16)
        assert not torch.allclose(embedding.norm(dim=1), torch.ones(2), atol=0.1)


@pytest.fixture
def saved(tmp_path):
    args = {"num_blocks": 1, **TINY}
    return save_model(tmp_path / "tiny.safetensors", tiny(num_blocks=1), "aei", args)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


class TestFiles:
    def test_metadata_and_precision_on_disk(self, tmp_path):
        model = build("iresnet100", layers=(1, 1, 1, 1), embedding_size=8, width=0.125)
        model.bn2.running_var.fill_(1e6)  # beyond fp16
        args = {"layers": [1, 1, 1, 1], "embedding_size": 8, "width": 0.125}
        path = save_model(tmp_path / "deep" / "id.safetensors", model, "iresnet100", args, {"a": 1})
        stored = load_file(path)
        assert stored["fc.weight"].dtype == torch.float16
        assert stored["bn2.running_var"].dtype == torch.float32
        assert load_model(path).bn2.running_var[0] == 1e6
        content = checkpoint.read_checkpoint(path)
        assert (content.arch, content.args, content.card) == ("iresnet100", args, {"a": 1})
        assert [p.name for p in path.parent.iterdir()] == ["id.safetensors"]

    @pytest.mark.parametrize("precision", ["fp16", "bf16"])
    def test_half_precision_keeps_norms_in_fp32(self, saved, precision):
        full, half = load_model(saved), load_model(saved, precision=precision)
        assert half.encoder.conv1[0].weight.dtype != torch.float32
        assert half.encoder.conv1[1].running_var.dtype == torch.float32
        with torch.inference_mode():
            swapped = half(*inputs())
            assert swapped.dtype == torch.float32
            torch.testing.assert_close(swapped, full(*inputs()), atol=3e-2, rtol=0)

    def test_half_precision_of_group_and_layer_norm(self):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3), torch.nn.GroupNorm(2, 8), torch.nn.LayerNorm((4, 4))
        )
        x = torch.rand(1, 3, 6, 6)
        with torch.inference_mode():
            expected = model(x)
            out = to_precision(model, "bf16")(x.bfloat16())
        assert model[1].weight.dtype == torch.float32
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.float(), expected, atol=5e-2, rtol=0)

    @pytest.mark.parametrize("encoder", ["unet", "linknet", "resnet", "fpn"])
    @pytest.mark.parametrize("injection", INJECTIONS)
    def test_a_plain_state_dict_is_recognised(self, tmp_path, encoder, injection):
        model = tiny(attribute_encoder=encoder, identity_injection=injection, num_blocks=2)
        torch.save(model.state_dict(), tmp_path / "G.pth")
        loaded = load_model(tmp_path / "G.pth")
        assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())

    @pytest.mark.filterwarnings("ignore:Detected pickle protocol")
    def test_code_in_a_pickle_is_refused_and_not_run(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        torch.save({"generator.up1.weight": Trap()}, "trap.pth")
        Path("old.pt").write_bytes(pickle.dumps(Trap(), protocol=2))
        Path("new.pt").write_bytes(pickle.dumps(Trap()))
        torch.save(tiny(num_blocks=1), "whole_model.pth")
        for name, word in {
            "trap.pth": "holds Python code .*mkdir",
            "old.pt": "holds Python code .*mkdir",
            "new.pt": "not opened",
            "whole_model.pth": "holds Python code .*AEINet",
        }.items():
            with pytest.raises(WeightError, match=f"{name}: .*{word}") as error:
                load_model(name)
            assert "\n" not in str(error.value)
        assert not Path("trapped").exists()

    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    @pytest.mark.parametrize("content", [b"", b"no weights here", b"\x00" * 4096], ids=len)
    def test_a_damaged_file_is_named(self, tmp_path, suffix, content):
        path = tmp_path / f"bad{suffix}"
        path.write_bytes(content)
        with pytest.raises(WeightError, match="damaged or not a"):
            load_model(path)

    @pytest.mark.parametrize("keep", [0.5, 0.999])
    def test_a_truncated_file_is_named(self, saved, keep, tmp_path):
        torch.save(load_file(saved), tmp_path / "cut.pth")
        for path in (saved, tmp_path / "cut.pth"):
            path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
            with pytest.raises(WeightError, match="damaged or not a"):
                load_model(path)

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(MissingWeightError, match="nowhere"):
            load_model(tmp_path / "nowhere.safetensors")

    def test_not_a_state_dict(self, tmp_path):
        path = tmp_path / "training.pth"
        torch.save({"step": 5, "model": {}}, path)
        with pytest.raises(WeightError, match=r"expected a state dict.*a dict of step, model"):
            load_model(path)

    def test_an_unknown_network_is_described(self, tmp_path):
        torch.save({"stem.weight": torch.zeros(3), "head.bias": torch.zeros(1)}, tmp_path / "x.pt")
        with pytest.raises(WeightError, match=r"unknown network of 2 tensors .stem\.weight, head"):
            load_model(tmp_path / "x.pt")

    def test_a_wrong_file_names_the_keys_and_what_it_looks_like(self, saved):
        state = load_file(saved)
        odd = state["generator.up1.bias"]
        state["generator.up1.bias"] = torch.zeros(3)
        del state["encoder.conv1.0.weight"]
        state["extra.weight"] = torch.zeros(1)
        args = {"num_blocks": 2, **TINY}
        save_file(state, saved, metadata={"arch": "aei", "args": json.dumps(args)})
        with pytest.raises(WeightError) as error:
            load_model(saved)
        text = str(error.value)
        assert "does not fit aei" in text
        assert "missing encoder.conv1.0.weight, generator.AADBlk1.add_blocks.3" in text
        assert "more; unexpected extra.weight;" in text
        assert f"wrong shape generator.up1.bias (3,) instead of ({len(odd)},)" in text
        assert "\n" not in text

    @pytest.mark.parametrize(
        ("arch", "args", "match"),
        [("aei9", {}, "unknown architecture"), ("aei", {"heads": 3}, "unknown argument")],
    )
    def test_a_file_of_a_later_version_is_refused(self, tmp_path, arch, args, match):
        path = save_model(tmp_path / "new.safetensors", torch.nn.Linear(1, 1), arch, args)
        with pytest.raises(WeightError, match=f"new.safetensors: {match}"):
            load_model(path)

    def test_others_may_read_what_anybody_may_read(self, tmp_path):
        """A shared folder of weights is shared; safetensors alone would lock it."""
        plain = tmp_path / "plain"
        plain.touch()
        path = save_model(tmp_path / "new.safetensors", tiny(num_blocks=1), "aei")
        assert path.stat().st_mode == plain.stat().st_mode

    def test_a_full_disk_leaves_the_old_file(self, saved, monkeypatch):
        before = saved.read_bytes()

        def full(state, part, metadata):
            Path(part).write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(checkpoint, "save_file", full)
        with pytest.raises(WeightError, match=r"cannot be written .*No space left"):
            save_model(saved, tiny(num_blocks=1), "aei")
        assert saved.read_bytes() == before
        assert [path.name for path in saved.parent.iterdir()] == [saved.name]

    def test_by_name(self, saved, tmp_path, monkeypatch):
        plain = tmp_path / "G.pth"
        torch.save(load_file(saved), plain)
        args = {"num_blocks": 1, **TINY}
        table = {
            "ours": SimpleNamespace(arch="aei", args={}, file="x"),
            "published": SimpleNamespace(arch="aei", args=args, file="x"),
            "detector": SimpleNamespace(arch="scrfd", args={}, file="det.onnx"),
        }
        monkeypatch.setattr(weights, "entry", table.__getitem__)
        monkeypatch.setattr(weights, "resolve", {"ours": saved, "published": plain}.get)
        for name in ("ours", "published"):
            state = load_model(name).state_dict()
            assert all(torch.equal(v.float(), state[k]) for k, v in load_file(saved).items())
        with pytest.raises(WeightError, match=r"no network of faceswap.models reads det.onnx"):
            load_model("detector")

    def test_unknown_architecture_suggests_the_nearest(self):
        with pytest.raises(ConfigError, match="did you mean discriminator"):
            build("discriminater")
        assert set(ARCHITECTURES) >= {"aei", "iresnet100", "discriminator"}


class _Convolutions(TorchDispatchMode):
    """Remembers the input of every convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[torch.Size] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.inputs.append(args[0].shape)
        return func(*args, **(kwargs or {}))


def test_nothing_convolves_a_single_pixel():
    """Compiled for CUDA, the gradient of such a convolution has not the layout it should."""
    for encoder in ("unet", "linknet", "resnet", "fpn"):
        model = build("aei", attribute_encoder=encoder, size=32, width=0.125, embedding_size=16)
        with _Convolutions() as seen:
            model(torch.rand(2, 3, 32, 32), torch.randn(2, 16))
        assert len(seen.inputs) > 20
        assert min(min(shape[-2:]) for shape in seen.inputs) > 1, encoder
