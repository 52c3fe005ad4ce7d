"""Same keys, same shapes, same function as the original GHOST networks (../shared/golden)."""

import functools
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from faceswap.models import build, without_initial_weights
from faceswap.models.checkpoint import Checkpoint, fill, recognise

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
SEED = 11

pytestmark = pytest.mark.skipif(
    not (GOLDEN / "ghost_keys.json.gz").is_file(),
    reason=f"golden files of the original networks are not at {GOLDEN}",
)

ENCODERS = ("unet", "linknet", "resnet")
GENERATORS = [f"{encoder}_{blocks}" for encoder in ENCODERS for blocks in "123"]


def new(name: str) -> nn.Module:
    with without_initial_weights():
        if "_" not in name:
            return build(name)
        encoder, blocks = name.split("_")
        return build("aei", attribute_encoder=encoder, num_blocks=int(blocks))


@functools.cache
def originals() -> dict[str, dict[str, list[int]]]:
    with gzip.open(GOLDEN / "ghost_keys.json.gz") as file:
        return json.load(file)


def keys_of_original(name: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(shape) for key, shape in originals()[name].items()}


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}_seed{SEED}.npz") as file:
        return dict(file)


def fill_by_rule(model: nn.Module) -> nn.Module:
    """The golden README's rule: every tensor from its own numpy generator."""
    state = model.state_dict()
    for i, key in enumerate(sorted(state)):
        tensor = state[key]
        if not tensor.is_floating_point():
            tensor.zero_()
            continue
        random = np.random.RandomState((SEED * 100003 + i) % 2**32)
        x = random.standard_normal(tensor.numel()).astype(np.float32).reshape(tensor.shape)
        if key.endswith("running_var"):
            x = 1 + 0.2 * np.abs(x)
        elif tensor.ndim >= 2:
            x *= np.float32((tensor.numel() / tensor.shape[0]) ** -0.5)
        elif tensor.ndim == 1 and key.endswith("weight"):
            x = 1 + 0.1 * x
        else:
            x = 0.1 * x
        tensor.copy_(torch.from_numpy(x))
    return model.eval()


def images(size: int, random: np.random.RandomState) -> torch.Tensor:
    """The original's input in [-1, 1], moved to our [0, 1]."""
    x = random.uniform(-1, 1, (2, 3, size, size)).astype(np.float32)
    return (torch.from_numpy(x) + 1) / 2


@pytest.mark.parametrize("name", [*GENERATORS, "iresnet100", "discriminator"])
def test_keys_and_shapes_are_the_originals(name):
    with torch.device("meta"):
        model = new(name)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes == keys_of_original(name)


@pytest.mark.parametrize("name", [*GENERATORS, "iresnet100", "discriminator"])
def test_a_published_state_dict_is_recognised_and_loads_strictly(name):
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in keys_of_original(name).items()}
    arch, args, title = recognise(state)
    with torch.device("meta"):
        model = build(arch, **args)
    fill(model, Checkpoint(Path(name), state, arch=arch, args=args, title=title))
    if arch == "aei":
        assert (args["attribute_encoder"], str(args["num_blocks"])) == tuple(name.split("_"))


@pytest.mark.parametrize("name", ["unet_2", "linknet_1", "resnet_3"])
@torch.inference_mode()
def test_generator_computes_the_originals_function(name):
    model = fill_by_rule(new(name))
    expected = golden(f"aei_{name}")
    random = np.random.RandomState(SEED + 7)
    target = images(256, random)
    identity = torch.from_numpy(random.standard_normal((2, 512)).astype(np.float32))
    attributes = model.attributes(target)
    mean = np.array([maps.double().mean().item() for maps in attributes])
    std = np.array([maps.double().std().item() for maps in attributes])
    swapped = model.generate(attributes, identity)
    np.testing.assert_allclose(mean, expected["attr_mean"], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(std, expected["attr_std"], rtol=1e-3)
    picture = expected["y"].astype(np.float32)
    np.testing.assert_allclose(2 * swapped.numpy() - 1, picture, atol=2e-3, rtol=0)
    assert picture.std() > 0.1  # a real test: neither flat nor saturated
    assert (np.abs(picture) < 0.99).mean() > 0.5


@torch.inference_mode()
def test_discriminator_computes_the_originals_function():
    model = fill_by_rule(new("discriminator"))
    expected = golden("discriminator")
    logits = model(images(256, np.random.RandomState(SEED + 7)))
    assert len(logits) == len(expected) == 3
    for i, logit in enumerate(logits):
        scale = np.abs(expected[f"y{i}"]).max()
        np.testing.assert_allclose(logit.numpy(), expected[f"y{i}"], atol=1e-3 * scale, rtol=0)


@torch.inference_mode()
def test_iresnet100_computes_the_originals_function():
    model = fill_by_rule(new("iresnet100"))
    expected = golden("iresnet100")["y0"]
    embedding = model(images(112, np.random.RandomState(SEED + 7))).numpy()
    scale = np.abs(expected).max()
    np.testing.assert_allclose(embedding, expected, atol=1e-3 * scale, rtol=0)
