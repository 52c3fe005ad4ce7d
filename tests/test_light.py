"""Light on faces, against values worked out by hand."""

from __future__ import annotations

import pytest
import torch

from faceswap.ops.color import luma
from faceswap.ops.light import evened, relit, shade, tone

SIDE = 16


def flat(*colour: float) -> torch.Tensor:
    """``(1, 3, SIDE, SIDE)`` of one colour."""
    return torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, SIDE, SIDE).clone()


def everywhere(value: float = 1.0) -> torch.Tensor:
    return torch.full((1, 1, SIDE, SIDE), value)


def colour_of(images: torch.Tensor) -> list[float]:
    assert float(images.std((2, 3)).max()) < 1e-4, "not of one colour"
    out: list[float] = images.mean((0, 2, 3)).tolist()
    return out


def test_tone_is_the_bare_skins_and_takes_nothing_from_what_is_not() -> None:
    image, bare = flat(0.6, 0.4, 0.3), everywhere()
    image[..., :8], bare[..., :8] = 0.0, 0.0
    # By the definitions in `mean` and `average`: the fringe of a prior that knows the skin only.
    got = tone(image, bare)
    share = 128 / (128 + 1e-3 * 256)
    for channel, want in enumerate((0.6, 0.4, 0.3)):
        assert got[0, channel].amin() >= want * share - 1e-6
        assert got[0, channel].amax() <= want + 1e-6


def test_the_same_light_changes_nothing() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 3, SIDE, SIDE)
    light = flat(0.6, 0.45, 0.4)
    torch.testing.assert_close(relit(image, light, light), image, atol=1e-6, rtol=0)


def test_skin_takes_the_lights_colour_and_what_is_dark_its_factor() -> None:
    own, light = flat(0.5, 0.5, 0.5), flat(0.75, 0.5, 0.25)
    assert colour_of(relit(own, own, light)) == pytest.approx([0.75, 0.5, 0.25], abs=1e-4)
    # A tenth of the skin's brightness: deeper than _DARK, so by (0.75 + 0.05) / (0.5 + 0.05).
    dark = relit(flat(0.05, 0.05, 0.05), own, light)
    want = [0.05 * 0.8 / 0.55, 0.05, 0.05 * 0.3 / 0.55]
    assert colour_of(dark) == pytest.approx(want, abs=1e-4)


def test_a_small_light_field_lights_a_large_picture() -> None:
    own, light = (x[..., ::2, ::2] for x in (flat(0.5, 0.5, 0.5), flat(0.6, 0.6, 0.6)))
    assert colour_of(relit(flat(0.5, 0.5, 0.5), own, light)) == pytest.approx([0.6] * 3, abs=1e-4)


@pytest.mark.parametrize(
    ("colour", "want"),
    [
        ((0.10, 0.14, 0.12), (0.10, 0.11, 0.11)),  # a green moustache
        ((0.10, 0.10, 0.16), (0.10, 0.10, 0.11)),  # a blue one
        ((0.16, 0.12, 0.08), (0.16, 0.12, 0.08)),  # a brown one stays
        ((0.10, 0.10, 0.10), (0.10, 0.10, 0.10)),  # so does a black one
    ],
)
def test_hair_is_neither_green_nor_blue(
    colour: tuple[float, float, float], want: tuple[float, float, float]
) -> None:
    """On skin of this light; 0.01 is what a camera's noise may do."""
    got = evened(flat(*colour), flat(0.7, 0.5, 0.4), everywhere())
    assert colour_of(got) == pytest.approx(want, abs=1e-5)


def test_in_green_light_hair_may_be_green() -> None:
    green = flat(0.10, 0.14, 0.08)
    got = evened(green, flat(0.4, 0.5, 0.3), everywhere())
    assert colour_of(got) == pytest.approx([0.10, 0.14, 0.08], abs=1e-5)


def test_eyes_and_lips_keep_their_colour() -> None:
    eye = flat(0.2, 0.5, 0.4)
    torch.testing.assert_close(evened(eye, flat(0.7, 0.5, 0.4), everywhere(0.0)), eye)


def test_skin_near_its_light_stays_and_glare_is_held() -> None:
    light = flat(0.5, 0.5, 0.5)
    near = flat(0.54, 0.54, 0.54)
    torch.testing.assert_close(evened(near, light, everywhere()), near)
    # 0.3 above the light, 0.2 above what glare may be: three quarters of that go.
    got = evened(flat(0.8, 0.8, 0.8), light, everywhere())
    assert colour_of(got) == pytest.approx([0.65] * 3, abs=1e-5)


def test_a_symmetric_face_has_no_shade_and_a_dark_half_has() -> None:
    """Points mirrored at the middle; the left half 0.2 darker than the right one."""
    axis = torch.tensor([2.0, 6.0, 9.0, 13.0])
    ys, xs = torch.meshgrid(axis, axis, indexing="ij")
    places = torch.stack([xs, ys], -1).view(1, 16, 2)
    twin = torch.arange(16).view(4, 4).flip(1).reshape(-1)
    facing = torch.ones(1, 16)
    even = flat(0.5, 0.5, 0.5)
    assert float(shade(even, everywhere(), places, twin, facing).abs().max()) < 1e-4
    dark = even.clone()
    dark[..., :8] -= 0.2
    got = shade(dark, everywhere(), places, twin, facing)
    assert float(got.max()) <= 0
    assert float(got[..., 4:12, 2].mean()) == pytest.approx(-0.2 * 0.2 / 0.21, abs=0.02)
    assert float(got[..., 4:12, 13].abs().max()) < 1e-3
    hidden = shade(dark, everywhere(), places, twin, -facing)
    assert float(hidden.abs().max()) < 1e-3


def test_a_reflection_is_no_shade() -> None:
    """The left half purple instead of grey: hardly darker, so hardly a shade, whatever its hue."""
    axis = torch.tensor([2.0, 6.0, 9.0, 13.0])
    ys, xs = torch.meshgrid(axis, axis, indexing="ij")
    places = torch.stack([xs, ys], -1).view(1, 16, 2)
    twin = torch.arange(16).view(4, 4).flip(1).reshape(-1)
    image = flat(0.5, 0.5, 0.5)
    image[..., :8] = torch.tensor([0.53, 0.44, 0.63]).view(3, 1, 1)
    darker = 0.5 - float(luma(image)[0, 0, 8, 2])
    got = shade(image, everywhere(), places, twin, torch.ones(1, 16))[0, :, 8, 2]
    colour = got - luma(got.view(1, 3, 1, 1)).view(1)
    assert 0 < darker < 0.02
    assert float(colour.norm()) <= 0.61 * darker
    assert float(luma(got.view(1, 3, 1, 1))) < 0


def test_what_is_pale_on_a_flushed_face_is_not_green_on_an_olive_one() -> None:
    """Where the light has a fifth of the colour, so has what differs from it in colour."""
    own, light = flat(0.9, 0.6, 0.5), flat(0.55, 0.5, 0.45)
    pale = flat(0.75, 0.67, 0.6)
    red, green, _ = colour_of(relit(pale, own, light))
    assert red > green
    grey = flat(0.5, 0.5, 0.5)
    red, green, blue = colour_of(relit(pale, own, grey))
    assert max(red, green, blue) - min(red, green, blue) < 0.02


def test_shading_has_the_colour_of_the_light_it_is_put_into() -> None:
    own, light = flat(0.8, 0.6, 0.5), flat(0.5, 0.5, 0.5)
    brighter = colour_of(relit(own * 1.1, own, light))
    assert max(brighter) - min(brighter) < 0.02
    assert sum(brighter) / 3 > 0.51


def test_a_shadow_has_the_hue_of_the_light_it_is_put_in():
    """Yellowed varnish: its shadows on a pale face are not mauve."""
    own = torch.tensor([0.78, 0.65, 0.35]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    light = torch.tensor([0.88, 0.76, 0.73]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    for depth in (0.1, 0.3):
        out = relit(own * (1 - depth), own, light)[0, :, 4, 4]
        share = out / light[0, :, 4, 4]
        assert torch.allclose(share, share.mean(), atol=1e-3)
        assert 1 - depth < float(share[0]) < 1 - 0.8 * depth  # a little weaker, as it got brighter
