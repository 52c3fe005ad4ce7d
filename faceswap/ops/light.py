"""The light on a face, and a face put into another light.

Two parts of light are told apart: its broad colour and fall-off, a low-pass of bare skin; and
shade, which a face tells by itself: it is nearly symmetric, so what is darker than its mirror image
is turned away from the light or lies in the shadow of the nose.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from faceswap.ops.color import luma
from faceswap.ops.smooth import average, mean, resized
from faceswap.ops.spline import spread, thin_plate_grid

BROAD = 0.14  # fraction of the side, sigma of what counts as broad light
_FINE = 0.02  # of the difference between the halves; shadows have edges
_SURE = 0.01  # difference of brightness from which on shade is shade, not noise
_TINT = 0.6  # of its darkness, how much colour shade may have; of skin it has 0.4
_SKIN, _DARK = 0.35, 0.8  # how much darker than its skin a face's shading and its features are
_BLOTCH, _GLARE = 0.05, 0.1  # how far skin may be off its light, in colour and upwards
_COOL = 0.01  # how much bluer or greener than its light hair and shaded skin may be


def tone(
    images: Tensor,  # (N, 3, G, G) float in [0, 1]
    bare: Tensor,  # (N, 1, G, G) in [0, 1], bare skin
) -> Tensor:
    """Colour of bare skin all over a picture, ``(N, 3, G, G)``; smooth."""
    return average(images, bare, sigma=BROAD, prior=mean(images, bare), trust=0.1)


def shade(
    images: Tensor,  # (N, 3, G, G) float in [0, 1], faces
    clear: Tensor,  # (N, 1, G, G) in [0, 1], skin, lit or dark, without features and hair
    places: Tensor,  # (N, C, 2) float32, points of the faces in pixels of G
    twin: Tensor,  # (C,) int64, the mirror image of each point (`ShapeModel.mirror`)
    facing: Tensor,  # (N, C) float32 in [-1, 1], how much each point faces the camera
) -> Tensor:
    """How much darker each place is than its mirror image, ``(N, 3, G, G)`` <= 0 in brightness.

    What differs in colour and hardly in brightness is no shade: a reflection, a flush, make-up.

    The mirror image is the face warped by a thin-plate spline from each point to its twin. Where
    the other half is hidden, or is no skin, there is no shade.
    """
    side = images.shape[-1]
    seen = facing.minimum(facing[:, twin])
    grid = thin_plate_grid(places, places[:, twin], seen.clamp(0.05, 1), size=side)
    other = F.grid_sample(
        torch.cat([images, clear], 1), grid, align_corners=True, padding_mode="border"
    )
    both = clear * other[:, 3:] * spread(places, (2 * seen).clamp(0, 1), side)
    gap = images - other[:, :3]
    wide = average(gap, both, sigma=BROAD, trust=0.05)
    gap = average(gap, both, sigma=_FINE, prior=wide, trust=0.02)
    darker = -luma(gap)
    colour = gap + darker
    strength = colour.square().sum(1, keepdim=True).sqrt().clamp_min(1e-6)
    gap = colour * (_TINT * darker / strength).clamp(0, 1) - darker
    return gap * (darker / (darker.abs() + _SURE)).clamp(min=0)


def relit(
    image: Tensor,  # (N, 3, S, S) float in [0, 1]
    own: Tensor,  # (N, 3, G, G), its light; smooth, so G may be smaller than S
    light: Tensor,  # (N, 3, G, G), the light it is to have
) -> Tensor:
    """An image in another light, ``(N, 3, S, S)``; may leave [0, 1].

    Colours change mostly by a factor, as under a filter; brightness by a factor in what is much
    darker than the skin (a brow stays dark) and where it gets darker, half by a factor and half by
    a sum in skin that gets brighter: a factor alone blows up the contrast of dark skin in bright
    light, and a sum alone takes shadows below black in dark light, one colour after the other.
    Shadows take the light's hue: what is dark on yellowed varnish would be mauve on a pale face.
    Other differences of colour are as much weaker as the light has less colour: what is pale on a
    flushed face would be green on an olive one.
    """
    ratio = ((light + 0.05) / (own + 0.05)).clamp(0.25, 4)
    gain = ((luma(light) + 0.05) / (luma(own) + 0.05)).clamp(0.25, 4)
    half = (ratio / gain) ** 0.75 * gain.clamp(max=1) * gain.clamp(min=1).sqrt()
    muted = ((_colour(light) + 0.01) / (_colour(own) + 0.01)).clamp(max=1)
    weak = gain.clamp(min=1).rsqrt()
    fields = torch.cat([half, own, light, ratio, muted, weak, 1 / luma(own).clamp_min(0.05)], 1)
    half, own, light, ratio, muted, weak, level = resized(fields, image.shape[-1]).split(
        (3, 3, 3, 3, 1, 1, 1), 1
    )
    off = image - own
    shading = luma(off) * level  # what of it is a change of brightness alone: of its light's hue
    skin = light * (1 + weak * shading) + half * muted * (off - shading * own)
    depth = 1 - luma(image) * level
    share = ((depth - _SKIN) / (_DARK - _SKIN)).clamp(0, 1)
    share = share * share * (3 - 2 * share)
    return torch.lerp(skin, image * ratio, share.expand_as(skin))


def _colour(images: Tensor) -> Tensor:
    """How far colours are from grey of their brightness, ``(N, 1, H, W)``."""
    return (images - luma(images)).square().sum(1, keepdim=True).sqrt()


def evened(
    image: Tensor,  # (N, 3, S, S) float, lit
    light: Tensor,  # (N, 3, G, G), its light
    skin: Tensor,  # (N, 1, S, S) in [0, 1], where there are neither eyes nor lips
) -> Tensor:
    """Skin that keeps near its light, ``(N, 3, S, S)``; brows, beards and shadows stay.

    What is a pale socket on a flushed face turns white and blue where the flush is taken for light
    and lit otherwise. What a colour, or a brightness above the light, is off by more than usual is
    divided by four; what is dark is left alone, but that nothing is bluer than green or red, or
    greener than red, where the light is not (old photos have green moustaches). Holding back every
    difference alike took identity with it: cosine to the source .555 -> .542 (100 swaps,
    mobilefacenet).
    """
    light = resized(light, image.shape[-1])
    off = image - light
    bright = luma(off)
    colour = off - bright
    strength = colour.square().sum(1, keepdim=True).sqrt()
    level = (1 + bright / luma(light).clamp_min(0.05) - 0.6) / 0.25
    share = skin * level.clamp(0, 1)
    excess = (strength - _BLOTCH).clamp_min(0) / strength.clamp_min(1e-6)
    evened = colour * (1 - 0.75 * excess) + bright - 0.75 * (bright - _GLARE).clamp_min(0)
    image = image + share * (evened - off)
    red, green, blue = image.split(1, 1)
    room = (light[:, 1:] - light[:, :1]).clamp_min(0) + _COOL  # of green and blue over red
    green = torch.lerp(green, green.minimum(red + room[:, :1]), skin)
    most = (red + room[:, 1:]).minimum(green + (light[:, 2:] - light[:, 1:2]).clamp_min(0) + _COOL)
    return torch.cat([red, green, torch.lerp(blue, blue.minimum(most), skin)], 1)
