"""The pipeline: frames in, frames with swapped faces out.

``Swapper.__call__`` is all of it, from top to bottom; what it calls are plain functions of frames
and `Faces`. A photo is a batch of one.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from faceswap import weights
from faceswap.config import SwapConfig
from faceswap.errors import ConfigError, DeviceError, MissingWeightError, NoFaceError
from faceswap.faces.detect import (
    PHOTO_FINE,
    PHOTO_SIDES,
    VIDEO_SIDES,
    CenterFaceDetector,
    Detector,
    GridDetector,
    ScrfdDetector,
    detect_any_rotation,
)
from faceswap.faces.engine import CenterFaceEngine
from faceswap.faces.identity import IdentityEncoder
from faceswap.faces.landmarks import Insight106Landmarker, Landmarker, MeshLandmarker
from faceswap.faces.looks import angles, nearest
from faceswap.faces.source import hidden_eyes, shortcomings
from faceswap.models import load_model, to_precision
from faceswap.models.aei import AEINet
from faceswap.models.centerface import CenterFace
from faceswap.models.detector import FaceDetector
from faceswap.models.engine import GatesEngine, MeshEngine
from faceswap.models.fused import Condition, FusedAEINet, fuse
from faceswap.models.guided import GuidedAEINet
from faceswap.models.identity import IdentityNet
from faceswap.models.iresnet import IResNet
from faceswap.models.mesh import MeshNet
from faceswap.occlude import OcclusionMask, load_occlusion, without_rims
from faceswap.ops.blend import paint
from faceswap.ops.color import color_statistics, transfer_color
from faceswap.ops.geometry import TEMPLATES, Alignment, align
from faceswap.ops.guide import make_guide
from faceswap.ops.mask import Response, adaptive_mask, ghost_mask
from faceswap.ops.shape import ShapeModel
from faceswap.ops.skin import Skin, find_skin
from faceswap.ops.sockets import keep_sockets
from faceswap.ops.topology import MESH_POINTS, covering, five_points
from faceswap.restore import FaceRestorer, load_restorer
from faceswap.types import Faces, Identities, SwapResult

SOURCE_SIDE = 512  # px, side of the source crops that warp guidance takes its texture from
GUIDED_SIDES = (128, 256, 512)  # px, sides a guided swap may be rendered at
# Of crops that go through a generator together on a CPU: 2 of 512 px. Eight took as long (lite, two
# cores) and 345 MB more.
_CPU_PIXELS = 2 * 512**2
GHOST_MASK_SIDE = 224  # px, the original's crop: its mask table and recogniser go by it

_log = logging.getLogger("faceswap")

# (faces, their embeddings) -> (N,) int64 identity of each face, -1 = leave alone
Choice = Callable[[Faces, Tensor | None], Tensor]
# (rows (M,), colour statistics of their crops and of their targets) -> both, steadied over time
Settle = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Swapper:
    """Detector, landmarks, identity encoder and generator of one pack, loaded once.

    Make it with `Swapper.from_pack` or `Swapper.from_config`. It holds no state of what it was
    last used for: calls on other photos, people or threads do not affect each other.
    """

    def __init__(
        self,
        config: SwapConfig,
        *,
        pack: weights.Pack,
        detector: Detector,
        landmarks: Landmarker,
        encoder: IdentityEncoder,
        generator: GuidedAEINet | AEINet | FusedAEINet,
        occlusion: OcclusionMask | None = None,
        restorer: FaceRestorer | None = None,
        device: torch.device,
    ) -> None:
        self.config = config
        self.pack = pack
        self.detector = detector
        self.landmarks = landmarks
        self.encoder = encoder
        self.generator = generator
        self.occlusion = occlusion
        self.restorer = restorer
        self.device = device
        self.dtype = _dtype(config.precision, device)
        self._half: FusedAEINet | None = None  # the generator in half precision, if that is wanted
        if isinstance(generator, FusedAEINet) and self.dtype != torch.float32:
            self._half = copy.deepcopy(generator)
            to_precision(self._half, "bf16" if self.dtype == torch.bfloat16 else "fp16")
        # of people still in use: what the generators make of their embeddings alone
        self._conditions: tuple[WeakTensorKeyDictionary, WeakTensorKeyDictionary]
        self._conditions = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
        self._sources = WeakTensorKeyDictionary()  # of people still in use, see `_textures`
        self.reruns = 0  # batches whose half-precision output was not finite, done again in fp32
        self.seconds: dict[str, float] = {}  # stage -> seconds so far
        self._adding = threading.Lock()  # to them
        self.twins: tuple[Swapper, ...] = ()  # the same on further devices, for clips

    @classmethod
    def from_pack(cls, name: str = "lite", *, config: SwapConfig | None = None) -> Swapper:
        """Load a pack by name.

        Args:
            name: "lite", "ghost-1", "ghost-2", "ghost-3" or an alias.
            config: everything else that can be set; its ``pack`` is replaced by `name`.

        Raises:
            ConfigError: no such pack.
            MissingWeightError: a file of the pack is not here; says how to get it.
            DeviceError: the device asked for cannot be had.
        """
        return cls.from_config((config or SwapConfig()).model_copy(update={"pack": name}))

    @classmethod
    def from_config(cls, config: SwapConfig, *, video: bool = False) -> Swapper:
        """Load what a configuration asks for; raises as `from_pack`.

        Of several devices the first is the swapper's, and the others those of its `twins`.

        Args:
            video: detect at the faster working resolutions meant for clips.
        """
        first, *more = per_device(config)
        if more:
            swapper = cls.from_config(first, video=video)
            swapper.twins = tuple(cls.from_config(each, video=video) for each in more)
            return swapper
        pack = weights.pack(config.pack)
        device = choose_device(config.device)
        replaced = {pack.swapper} if config.swapper else set()
        replaced |= {pack.detector} if config.detector.weights else set()
        missing = [n for n in pack.weights if n not in replaced and not weights.present(n)]
        if missing:
            raise MissingWeightError(
                f"pack {pack.name}: {', '.join(missing)} not here; get them with: "
                f"faceswap weights fetch {pack.name}"
            )
        generator = load_model(config.swapper or pack.swapper, device=device)
        if not isinstance(generator, (GuidedAEINet, AEINet)):
            raise ConfigError(
                f"{config.swapper}: holds a {type(generator).__name__}, which is no swapper"
            )
        fast = use_engine(config, device, video=video)
        if fast and isinstance(generator, GuidedAEINet):
            generator.engine = GatesEngine(generator)
        fused = fuse(generator)  # a plain AEINet becomes a FusedAEINet, others stay
        assert isinstance(fused, (GuidedAEINet, AEINet, FusedAEINet))
        return cls(
            config,
            pack=pack,
            detector=_load_detector(config, pack, device, video=video, fast=fast),
            landmarks=load_landmarks(pack, device, fast=fast),
            encoder=_load_encoder(pack, device),
            generator=fused,
            occlusion=load_occlusion(config.occlusion, pack, device, fast=fast),
            restorer=load_restorer(config.restorer, pack, device),
            device=device,
        )

    def detect(
        self,
        frames: Tensor,
        *,
        unsure: float = 1.0,
        consecutive: bool = False,
        everyone: bool = False,
    ) -> Faces:
        """Faces of ``(B, 3, H, W) uint8`` frames, turned ones too if the settings say so.

        Args:
            frames: where to look.
            unsure: factor on the detector's threshold; under 1, faces it is unsure of come too.
            consecutive: the frames follow each other in a clip; see `detect_any_rotation`.
            everyone: look closer for small faces even if there are larger ones; a photo of
                12 megapixels takes seconds more on a CPU. Clips are not looked at more closely.
        """
        with self._stage("detect"):
            sure = self.detector.threshold
            detector = self.detector if unsure == 1 else self.detector.with_threshold(sure * unsure)
            if self.config.detector.rotate:
                faces = detect_any_rotation(detector, frames, sure=sure, consecutive=consecutive)
            else:
                faces = detector(frames)
            if (everyone or not len(faces)) and isinstance(detector, CenterFaceDetector):
                return detector.look_closer(frames, faces)
            return faces

    def embed(self, frames: Tensor, faces: Faces) -> Tensor:
        """Identity embeddings ``(N, D)`` of faces, as the generator wants them."""
        with self._stage("identify"):
            return self.encoder(frames, faces)

    def dense(self, frames: Tensor, faces: Faces) -> Tensor:
        """Dense landmarks ``(N, P, 3)`` of faces, in frame pixels."""
        with self._stage("landmarks"):
            return self.landmarks(frames, faces)

    def covers(self, frames: Tensor, faces: Faces) -> Tensor:
        """What lies before faces, ``(N, 1, s, s)`` in [0, 1] at the occlusion network's side.

        In crops as `replace` cuts them by these five points; with an occlusion network only.
        """
        assert self.occlusion is not None
        with self._stage("occlusion"), torch.no_grad():
            at = align(faces.points, self.occlusion.size, template=self.pack.template)
            return self.occlusion.find(at.crop(frames, faces.frame), self._safely)

    def identify(
        self,
        photos: Sequence[Tensor],  # (3, H, W) uint8 RGB each, all of one person, best one first
        name: str = "source",
        *,
        face: int | None = None,  # which face of the first photo, from the left, 0 = leftmost
        names: Sequence[str] = (),  # of each photo, for messages; default: `name` for all
    ) -> Identities:
        """One person to swap in, from one or several photos.

        The embedding is the mean over the photos; texture (guided swappers) is that of the photo
        turned most like the target (`faceswap.faces.looks`), without the rims of glasses where the
        target's occlusions are kept.

        Raises:
            NoFaceError: a photo without a face, or without that many.
        """
        embeddings, shown = [], []
        for index, photo in enumerate(photos):
            frames = photo[None].to(self.device)
            called = names[index] if names else name
            chosen = self._source_face(frames, called, face if index == 0 else None)
            embeddings.append(self.embed(frames, chosen))
            shown.append((frames, chosen))
        if not shown:
            raise ConfigError(f"{name}: no photo to identify")
        embedding = torch.stack(embeddings).mean(0)
        if not isinstance(self.generator, GuidedAEINet):
            return Identities((name,), embedding)
        looks = [self._look(*each, names[row] if names else name) for row, each in enumerate(shown)]
        crops, meshes = (torch.cat(each) for each in zip(*looks, strict=True))
        person = torch.zeros(len(looks), dtype=torch.int64) if len(looks) > 1 else None
        return Identities((name,), embedding, crops, meshes, person)

    def _look(self, frames: Tensor, face: Faces, name: str) -> tuple[Tensor, Tensor]:
        """A source's crop ``(1, 3, S, S)`` and mesh in it; says what is wrong with the photo."""
        assert isinstance(self.generator, GuidedAEINet)
        seen = self._align(frames, face, SOURCE_SIDE)[0]
        crop, mesh, covered = self.source_crops(frames, face, seen)
        hidden = 0.0 if covered is None else hidden_eyes(covered, mesh)
        height, width = frames.shape[-2:]
        poor = shortcomings(seen, self.generator.shape_mean, (height, width), hidden=hidden)
        if poor:
            _log.warning("%s: the face %s; another photo may do better", name, " and ".join(poor))
        return crop, mesh

    def source_crops(
        self,
        frames: Tensor,  # (B, 3, H, W) uint8 RGB
        faces: Faces,  # N faces
        mesh: Tensor,  # (N, P, 3) float32, frame px
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What a guided swapper sees of sources.

        Returns:
            Crops ``(N, 3, S, S)`` float in [0, 1], without the rims of glasses where the targets'
            occlusions are kept; the mesh in crop px; what covers the faces ``(N, 1, S, S)``, if
            that is looked for.
        """
        _, alignment = self._align(frames, faces, SOURCE_SIDE, mesh)
        crop = alignment.crop(frames, faces.frame, padding="reflection")
        inside = in_crop(mesh, alignment)
        covered = self._covered(crop, inside)
        return crop if covered is None else without_rims(crop, covered), inside, covered

    def __call__(self, frames: Tensor, identities: Identities, choose: Choice) -> SwapResult:
        """Swap faces in a batch of frames.

        Args:
            frames: ``(B, 3, H, W) uint8`` RGB.
            identities: the people to put in.
            choose: says which face becomes whom; receives embeddings if it has an attribute
                ``needs_embedding`` that is true; one ``needs_everyone`` has it asked about faces
                too small to be seen at first sight too.

        Returns:
            Frames on the device they came from; pixels that no mask covers are bit-exact.
        """
        device, frames = frames.device, frames.to(self.device)
        faces = self.detect(frames, everyone=getattr(choose, "needs_everyone", False))
        wanted = getattr(choose, "needs_embedding", False) and len(faces)
        embedding = self.embed(frames, faces) if wanted else None
        source = choose(faces, embedding).to(self.device)
        chosen = source >= 0
        if bool(chosen.any()):
            frames = self.replace(frames, faces[chosen], identities, source[chosen])
        return SwapResult(frames.to(device), faces, source, embedding)

    def replace(
        self,
        frames: Tensor,  # (B, 3, H, W) uint8 RGB
        faces: Faces,  # N faces, all of them to be swapped
        identities: Identities,
        source: Tensor,  # (N,) int64 row of `identities` for each face
        *,
        mesh: Tensor | None = None,  # (N, P, 3) float32, frame px; None: looked for
        side: Tensor | None = None,  # (N,) int64, px to render at; None: by the size of the faces
        opacity: Tensor | None = None,  # (N,) float32 in [0, 1]; None: 1
        covered: Tensor | None = None,  # (N, 1, s, s) of `covers`; None: looked for, if wanted
        look: Tensor | None = None,  # (N,) int64 row of the identities' crops; None: by pose
        settle: Settle | None = None,
    ) -> Tensor:
        """Frames with these faces swapped, ``(B, 3, H, W) uint8``.

        What a video knows of the frames before and after comes in through the options: steadied
        landmarks, sides that do not change from frame to frame, fading, what lies before the faces
        for longer than a moment, steadied colours.
        """
        mesh, alignment = self._align(frames, faces, self.generator.size, mesh)
        parts: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}  # side -> rows, crops, masks
        for rows, size in self._chunks(alignment, side):
            at = alignment[rows].scaled(size / alignment.size)
            with self._stage("swap"), torch.no_grad():
                target = at.crop(frames, faces.frame[rows])
            here = in_crop(mesh[rows], at)
            hidden = self._covered(target, here, None if covered is None else covered[rows])
            with self._stage("swap"), torch.no_grad():
                chosen = None if look is None else look[rows]
                crops, shape, target_mesh = self._generate(
                    target, here, identities, source[rows], chosen, hidden
                )
            if self.restorer is not None:
                with self._stage("restore"), torch.no_grad():
                    crops = self.restorer(crops, at.size / at.scale, self._safely)
            with self._stage("mask"):
                mask = self._mask(shape, target_mesh, size)
                if hidden is not None:
                    mask = mask * (1 - hidden)
                crops = self._match_color(crops, target, mask, rows, settle)
                if opacity is not None:
                    mask = mask * opacity[rows].view(-1, 1, 1, 1)
                mask = mask * self.config.blend.alpha
            parts.setdefault(size, []).append((rows, crops, mask))
        with self._stage("paste"):
            for size, done in parts.items():
                rows = torch.cat([each for each, _, _ in done])
                at = alignment[rows].scaled(size / alignment.size)
                layers = [crop for _, several, _ in done for crop in several]
                shown = [mask for _, _, several in done for mask in several]
                frames = paint(frames, faces.frame[rows], at, layers, shown)
        return frames

    def sides(
        self,
        extent: Tensor,  # (N,) float32, side of the swapper's crop in frame px
    ) -> Tensor:
        """Side to render each face at, ``(N,) int64``: a guided swapper follows its size."""
        if not isinstance(self.generator, GuidedAEINet):
            return torch.full_like(extent, int(self.generator.size), dtype=torch.int64)
        index = torch.bucketize(0.85 * extent, extent.new_tensor(GUIDED_SIDES))
        return torch.tensor(GUIDED_SIDES, device=extent.device)[index.clamp(max=2)]

    def _chunks(self, alignment: Alignment, side: Tensor | None) -> Iterator[tuple[Tensor, int]]:
        """Rows that go through the generator together, and the side to render them at."""
        device, size = alignment.matrix.device, self.config.batch_size
        if side is None:
            for rows in torch.arange(len(alignment), device=device).split(size):
                yield rows, int(self.sides(alignment.size / alignment[rows].scale).max())
            return
        for wanted in side.unique().tolist():
            most = size if device.type != "cpu" else min(size, max(1, _CPU_PIXELS // wanted**2))
            for rows in torch.nonzero(side == wanted)[:, 0].split(most):
                yield rows, wanted

    def _source_face(self, frames: Tensor, name: str, face: int | None) -> Faces:
        """The face of a source photo: the largest, or the one asked for."""
        faces = self.detect(frames)
        if not len(faces):
            raise NoFaceError(f"{name}: no face found; use a photo that shows one clearly")
        if face is not None:
            if not 0 <= face < len(faces):
                raise NoFaceError(f"{name}: has {len(faces)} faces, there is no number {face + 1}")
            return faces[torch.tensor([face], device=faces.frame.device)]
        if len(faces) > 1:
            _log.warning(
                "%s: %d faces, the largest is taken; --source-face N takes another",
                name,
                len(faces),
            )
        return faces[faces.size.argmax()[None]]

    def _align(
        self, frames: Tensor, faces: Faces, size: int, mesh: Tensor | None = None
    ) -> tuple[Tensor, Alignment]:
        """Dense landmarks in frame pixels ``(N, P, 3)``, and the swapper's crops."""
        with self._stage("landmarks"):
            mesh = self.landmarks(frames, faces) if mesh is None else mesh
            points = five_points(mesh) if mesh.shape[1] == MESH_POINTS else faces.points
            return mesh, align(points, size, template=self.pack.template)

    def _generate(
        self,
        target: Tensor,  # (N, 3, S, S) float in [0, 1]
        mesh: Tensor,  # (N, P, 3) float32, crop px
        people: Identities,  # K rows
        source: Tensor,  # (N,) int64 row of `people` for each face
        look: Tensor | None,  # (N,) int64 row of their crops; None: by pose
        covered: Tensor | None,  # (N, 1, S, S) in [0, 1], what lies before the faces
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Swapped crops, landmarks of the swapped faces and of the targets, in crop px."""
        if isinstance(self.generator, GuidedAEINet):
            assert people.crop is not None
            assert people.mesh is not None
            net = self.generator
            model = ShapeModel(net.shape_mean, net.shape_basis, net.shape_expression)
            texture, own, skin = self._textures(people.crop, people.mesh, target.shape[-1])
            identity = people.embedding.to(self.device)[source]
            if people.person is None:
                look = source
            elif look is None:
                apart = angles(mesh, people.mesh, net.shape_mean)
                look = nearest(apart, source, people.person.to(self.device))
            guide, shape = make_guide(
                model,
                texture[look],
                own[look],
                target,
                mesh,
                source_skin=skin.rows(look),
                covered=covered,
            )
            swapped = self._safely(lambda: net(target, identity, guide))
            return keep_sockets(swapped, guide), shape, mesh
        crops = self._unguided(target, people, source)
        return crops, self._landmarks_of(crops), mesh

    def _covered(self, crops: Tensor, mesh: Tensor, found: Tensor | None = None) -> Tensor | None:
        """What lies before faces and stays, ``(N, 1, S, S)`` in [0, 1]; mesh in crop px.

        ``found`` is what `covers` saw there, if it was asked before.
        """
        if self.occlusion is None:
            return None
        with self._stage("occlusion"), torch.no_grad():
            if found is None:
                found = self.occlusion.find(crops, self._safely)
            return self.occlusion.fit(found, crops, mesh)

    def _textures(self, crop: Tensor, mesh: Tensor, side: int) -> tuple[Tensor, Tensor, Skin]:
        """Crops of people at a side, their meshes and skin; found once for all their frames."""
        known: dict[int, tuple[Tensor, Tensor, Skin]] = self._sources.setdefault(crop, {})
        if side not in known:
            texture = F.interpolate(crop, size=(side, side), mode="area")
            ratio = side / SOURCE_SIDE
            own = torch.cat([(mesh[..., :2] + 0.5) * ratio - 0.5, mesh[..., 2:] * ratio], -1)
            known[side] = texture, own, find_skin(texture, own)
        return known[side]

    def _unguided(self, target: Tensor, people: Identities, source: Tensor) -> Tensor:
        """What a generator that knows people by their embedding alone makes of the targets."""
        net = self.generator
        if not isinstance(net, FusedAEINet):
            identity = people.embedding.to(self.device)[source]
            return self._safely(lambda: net(target, identity))
        if self._half is not None:
            out: Tensor = self._half(target, self._condition(self._half, people).rows(source))
            if bool(torch.isfinite(out).all()):
                return out
            self.reruns += 1
        out = net(target, self._condition(net, people).rows(source))
        return out

    def _condition(self, net: FusedAEINet, people: Identities) -> Condition:
        """A generator's terms for these people, computed once for all their frames."""
        memory = self._conditions[net is self._half]
        known: Condition | None = memory.get(people.embedding)
        if known is None:
            known = net.condition(people.embedding.to(self.device))
            memory[people.embedding] = known
        return known

    def _landmarks_of(self, crops: Tensor) -> Tensor:
        """Landmarks of swapped crops, found again (a plain generator does not tell), in crop px."""
        n, side = len(crops), crops.shape[-1]
        points = (TEMPLATES["ghost_frontal"].to(crops.device) + 0.5) * side / 112 - 0.5
        low, high = 0.15 * side, 0.85 * side
        faces = Faces(
            torch.arange(n, device=crops.device),
            torch.tensor([[low, low, high, high]], device=crops.device).expand(n, 4).contiguous(),
            points.expand(n, 5, 2).contiguous(),
            torch.ones(n, device=crops.device),
        )
        return self.landmarks((crops * 255).round().byte(), faces)

    def _safely(self, run: Callable[[], Tensor]) -> Tensor:
        """Run the generator in the wanted precision; again in fp32 if the result is not finite."""
        if self.dtype == torch.float32:
            return run()
        with torch.autocast(self.device.type, self.dtype):
            out = run().float()
        if bool(torch.isfinite(out).all()):
            return out
        self.reruns += 1
        return run().float()

    def _mask(self, swapped: Tensor, target: Tensor, side: int) -> Tensor:
        """Mask of each crop ``(N, 1, S, S)`` in [0, 1], of the kind the settings or pack name."""
        settings = self.config.mask
        if (settings.kind or self.pack.mask) == "adaptive":
            response = Response(
                span=settings.span,
                growth_wide=settings.grow,
                growth_rest=settings.rest,
                growth_narrow=-settings.shrink,
                feather_rest=settings.feather,
                feather_wide=settings.feather * settings.sharpen,
                feather_narrow=settings.feather * settings.soften,
            )
            cover = covering(swapped, target) if swapped.shape[1] == MESH_POINTS else swapped
            return adaptive_mask(cover, target, side, response=response)
        ratio = GHOST_MASK_SIDE / side
        mask = ghost_mask(
            (swapped[..., :2] + 0.5) * ratio - 0.5,
            (target[..., :2] + 0.5) * ratio - 0.5,
            size=GHOST_MASK_SIDE,
        )
        return F.interpolate(mask, size=(side, side), mode="bilinear", align_corners=False)

    def _match_color(
        self, crops: Tensor, target: Tensor, mask: Tensor, rows: Tensor, settle: Settle | None
    ) -> Tensor:
        strength = self.config.blend.color_match
        if not strength:
            return crops
        own, wanted = color_statistics(crops, mask), color_statistics(target, mask)
        if settle is not None:
            own, wanted = settle(rows, own, wanted)
        return transfer_color(crops, own, wanted, strength=strength)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            if self.device.type == "cuda":
                torch.cuda.current_stream(self.device).synchronize()  # copies beside go on
            with self._adding:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


def merge(people: Sequence[Identities]) -> Identities:
    """Several people as one table, in order."""
    if len(people) == 1:
        return people[0]
    crops = [p.crop for p in people if p.crop is not None]
    meshes = [p.mesh for p in people if p.mesh is not None]
    return Identities(
        tuple(name for p in people for name in p.names),
        torch.cat([p.embedding for p in people]),
        torch.cat(crops) if crops else None,
        torch.cat(meshes) if meshes else None,
        _whose(people) if any(p.person is not None for p in people) else None,
    )


def _whose(people: Sequence[Identities]) -> Tensor:
    """Person of each look of a table merged from these."""
    parts, before = [], 0
    for each in people:
        own = torch.arange(len(each)) if each.person is None else each.person
        parts.append(own + before)
        before += len(each)
    return torch.cat(parts)


def per_device(config: SwapConfig) -> list[SwapConfig]:
    """The configuration for each of its devices."""
    return [config.model_copy(update={"device": name}) for name in config.device.split(",")]


def choose_device(name: str) -> torch.device:
    """The device a setting means; "auto" takes CUDA where it works and says so where it does not.

    Raises:
        DeviceError: that device was asked for and cannot be had, with the reason.
    """
    if name == "cpu":
        return torch.device("cpu")
    if "," in name:
        raise DeviceError(f"--device {name}: only clips are shared out; name one device")
    reason = _why_no_cuda()
    if name == "auto":
        if reason:
            _log.info("device: cpu (%s)", reason)
            return torch.device("cpu")
        return torch.device("cuda")
    if reason:
        raise DeviceError(f"--device {name}: {reason}; use --device cpu or auto")
    index = torch.device(name).index or 0
    if index >= torch.cuda.device_count():
        raise DeviceError(f"--device {name}: this machine has {torch.cuda.device_count()} GPU(s)")
    return torch.device(name)


def _why_no_cuda() -> str:
    """One clause on what stands in the way of CUDA, empty if nothing does."""
    if torch.version.cuda is None:
        return "this torch was built without CUDA"
    if not torch.cuda.is_available():
        return "no usable NVIDIA GPU or driver"
    return ""


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def _load_detector(
    config: SwapConfig, pack: weights.Pack, device: torch.device, *, video: bool, fast: bool
) -> Detector:
    """The detector that the settings or the pack name: CenterFace, SCRFD, or one of our training.

    Raises:
        ConfigError: nobody knows the name, or the file holds another kind of network.
        MissingWeightError, WeightError: see `load_model`.
    """
    settings = config.detector
    name = settings.weights or pack.detector
    known = weights.entries().get(name)
    if known is not None and known.arch not in ("centerface", "detector"):
        if known.role != "detector":
            raise ConfigError(f"{name} is no detector: its role is {known.role}")
        return ScrfdDetector(weights.resolve(name), threshold=settings.threshold or 0.6)
    sides = settings.sides or (VIDEO_SIDES if video else PHOTO_SIDES)
    fine = 0 if video or settings.sides else PHOTO_FINE
    threshold = settings.threshold or 0.5
    if known is not None and known.arch == "centerface":
        file = weights.resolve(name)
        model = CenterFace.from_onnx(file).to(device).eval()
        engine = CenterFaceEngine(file) if fast else None
        return CenterFaceDetector(model, sides=sides, fine=fine, threshold=threshold, engine=engine)
    network = load_model(name, device=device)
    if not isinstance(network, FaceDetector):
        raise ConfigError(f"{name}: holds a {type(network).__name__}, which is no detector")
    return GridDetector(network.folded(), sides=sides, fine=fine, threshold=threshold)


def use_engine(config: SwapConfig, device: torch.device, *, video: bool) -> bool:
    """Whether onnxruntime runs what it can, see `SwapConfig.engine`."""
    wanted = config.engine == "onnxruntime" or (config.engine == "auto" and video)
    return wanted and device.type == "cpu" and _dtype(config.precision, device) == torch.float32


def _load_encoder(pack: weights.Pack, device: torch.device) -> IdentityEncoder:
    """The pack's encoder, always by torch: onnxruntime took 2.7 times as long for lite-identity."""
    model = load_model(pack.identity, device=device)
    if isinstance(model, IResNet):  # GHOST gives it its own swap crop, halved by the network
        return IdentityEncoder(fuse(model), template=pack.template, size=GHOST_MASK_SIDE)
    return IdentityEncoder(fuse(model), mirrored=isinstance(model, IdentityNet))


def load_landmarks(pack: weights.Pack, device: torch.device, *, fast: bool) -> Landmarker:
    """The pack's landmarks; ``fast``: by onnxruntime where torch is the usual way."""
    if weights.entry(pack.landmarks).arch != "mesh":
        return Insight106Landmarker(weights.resolve(pack.landmarks))
    model = load_model(pack.landmarks, device=device)
    if fast and isinstance(model, MeshNet):
        return MeshLandmarker(MeshEngine(model))
    return MeshLandmarker(fuse(model))


def in_crop(mesh: Tensor, alignment: Alignment) -> Tensor:
    """Dense landmarks ``(N, P, 3)`` from frame to crop pixels, z scaled likewise."""
    return torch.cat(
        [alignment.points(mesh[..., :2]), mesh[..., 2:] * alignment.scale[:, None, None]], -1
    )
