"""Settings of a training run, validated before anything is loaded: one schema a task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from faceswap.config import Settings, Unit, load_config
from faceswap.errors import ConfigError, unknown

Weight = Annotated[float, Field(ge=0)]  # of a loss term; 0 turns it off
Positive = Annotated[float, Field(ge=0)]
Width = Annotated[float, Field(gt=0, le=4)]  # factor on channels
Precision = Literal["fp32", "bf16", "fp16"]

# Loss terms of the lite tasks that have a plain table of them.
LITE_LOSSES: dict[str, tuple[str, ...]] = {
    "mesh": (),
    "identity": ("direction", "relation", "ranking", "maps"),
}


class RunConfig(Settings):
    """What every training run has."""

    task: str
    """Which step function trains."""
    data: str = "data/prepared"
    """A folder made by `faceswap prepare`."""
    batch_size: int = Field(32, ge=1)
    """Samples a step, of all processes together."""
    steps: int = Field(1000, ge=1)
    """Optimiser steps of the whole run (the cosine ends there)."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    final_lr: float = Field(0.02, ge=0, le=1)
    """Share of it the cosine ends at; 1 keeps the rate constant."""
    ema: float = Field(0.999, ge=0, lt=1)
    """Decay of the exported average."""
    warmup: int = Field(100, ge=0)
    """Steps of linear rise."""
    save_every: int = Field(200, ge=1)
    """Steps between checkpoints."""
    keep: int = Field(1, ge=1)
    """Full checkpoints that are kept."""
    log_every: int = Field(20, ge=1)
    """Steps between lines of metrics.jsonl."""
    seed: int = 0
    """Of weights and batches."""
    workers: int = Field(2, ge=0)
    """Threads that draw batches ahead of the step that needs them; 0: none. Where scenes are
    composed for a GPU (task detector) they are processes: as many as there are cores to spare."""
    ahead: int = Field(4, ge=1)
    """Batches they may be ahead."""
    init: tuple[str, ...] = ()
    """Weights to begin with, each file for the network it is of: ours, or published GHOST files."""

    @field_validator("init", mode="before")
    @classmethod
    def _files(cls, value: object) -> object:
        return tuple(filter(None, (value,))) if isinstance(value, str) else value


class LiteConfig(RunConfig):
    """What trainings of the lite pack's own networks share."""

    model: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the network's constructor."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of autocast; bf16 was 1.5 to 1.9 times as fast on a CPU with AMX."""


class TrainConfig(LiteConfig):
    """The lite pack's landmarks and identity encoder."""

    task: Literal["mesh", "identity"]
    """Which step function trains."""
    losses: dict[str, float] = Field(default_factory=dict)
    """Weight of each loss term the task knows; 0 turns it off."""
    augment: float = Field(1.0, ge=0, le=2)
    """How far views of task mesh are moved, recoloured and degraded; less than 1 for the last
    steps."""
    person: Unit = 0.0
    """Share that the mean of a person's photos has in what task identity should see in each."""
    teacher: str | None = None
    """TorchScript recogniser that task identity asks about each view; none: the embeddings in the
    data, which are of the photos as they are."""
    mixed: Unit = 0.0
    """Share of a batch that are mixtures of two faces, made anew each time, for such a teacher."""
    weaning: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = (0, 0)
    """Steps from which on, and until which, blocks of the student get more and more often its own
    maps, not the teacher's, where `losses.maps` is on."""
    compile: bool = False
    """torch.compile task identity's student; a CPU needs g++ for it."""

    @model_validator(mode="after")
    def _known_losses(self) -> TrainConfig:
        identity: dict[str, object] = {"person": 0, "teacher": None, "mixed": 0}
        identity |= {"weaning": (0, 0), "compile": False}
        for name, default in {"augment": 1, **identity}.items():
            task = "identity" if name in identity else "mesh"
            if getattr(self, name) != default and self.task != task:
                raise ValueError(f"{name}: task {self.task} has none; leave it out")
        if self.mixed and self.teacher is None:
            raise ValueError("mixed: nobody knows who a mixture is; name a teacher")
        if self.person and self.teacher is not None:
            raise ValueError("person: a teacher answers for each view by itself; leave one out")
        if self.losses.get("maps") and self.teacher is None:
            raise ValueError("losses.maps: they are a teacher's; name one")
        for name in self.losses:
            if name not in LITE_LOSSES[self.task]:
                raise ValueError(str(unknown(f"loss of {self.task}", name, LITE_LOSSES[self.task])))
        return self


class SwapperLosses(Settings):
    """Weights of the guided swapper's terms; 0 turns a term off."""

    rec: Weight = 8.0
    """Pixels, on same-person pairs, whose target is the truth."""
    gradient: Weight = 4.0
    """The same of neighbouring differences."""
    identity: Weight = 2.0
    """1 - cosine to the source, of strangers."""
    identity_rise: Annotated[int, Field(ge=0)] = 0
    """Steps over which the weights of identity and leak rise from nothing; 0: all at once."""
    leak: Weight = 2.0
    """Cosine to the target, of strangers."""
    leak_allowed: Unit = 0.1
    """Cosine to the target that costs nothing."""
    retrieval: Weight = 0.0
    """Finding the source among all people of the data, of strangers; for judges that give the
    data's embeddings, or were taught by who does."""
    tone: Weight = 4.0
    """Broad colours of the guide, of strangers."""
    other_photo: Unit = 0.0
    """Share that another photo of the source, if there is one, has in who identity is held to."""
    outline: Weight = 0.0
    """Edges near the face's outline that are not the guide's, of strangers."""
    outline_inside: Unit = 0.0
    """How much such edges farther inside count, against those."""
    points: Weight = 0.0
    """Points the landmarks see in the swapped face and those it should have."""
    eyes: Weight = 0.0
    """The article's eye loss: heat maps of the pupils, of the same points."""
    adversarial: Weight = 0.05
    """Hinge of the critic."""
    adversarial_from: Annotated[int, Field(ge=0)] = 0
    """Step at which it sets in."""
    r1: Weight = 0.0
    """Gradient penalty of the critic on real photos."""


class SwapperTeachers(Settings):
    """Networks that the guided swapper's training looks through."""

    identity: str | list[str] = "lite-identity"
    """Who is it? Our names or files, or TorchScript files; the losses of several are averaged. The
    one by default is cheap, and the evaluation's encoders stay apart."""
    encoder: str | None = None
    """Says who the sources are, as it does in swaps: one of our networks; none: the embeddings in
    the data, by their teacher."""
    landmarks: str = "lite-landmarks"
    """Sees the swapped face's points, if `losses.points` or `losses.eyes` is on."""
    occlusion: str | None = None
    """What lies before the targets' faces stays, as it does in swaps; none: it is swapped."""


class SwapperConfig(LiteConfig):
    """The guided AEI-Net of the lite pack."""

    task: Literal["swapper"] = "swapper"
    """Which step function trains."""
    teachers: SwapperTeachers = SwapperTeachers()
    """Networks it looks through."""
    losses: SwapperLosses = SwapperLosses()
    """Weight of each loss term."""
    same_person: Unit = 0.5
    """Share of pairs that are two photos of one person; the rest are strangers."""
    flip: Unit = 0.5
    """Share of mirrored views."""
    degrade: Unit = 0.0
    """Share of source photos made worse (downscaled, noisy)."""
    embedding_noise: float = Field(0.0, ge=0)
    """Standard deviation of noise on the source's embedding, as a share of its root mean square."""
    critic: Literal["patch", "multiscale"] = "patch"
    """patch: small, 34 px at a time; multiscale: GHOST's, three scales."""
    critic_width: Width = 0.25
    """Factor on the channels of the multiscale critic."""
    r1_every: int = Field(16, ge=1)
    """Steps between gradient penalties."""


class AeiModel(Settings):
    """AEI-Net, see `faceswap.models.aei.AEINet`; the embedding's size follows the encoders."""

    attribute_encoder: Literal["unet", "linknet", "resnet", "fpn"] = "unet"
    """How attributes of the target are taken; the article settled on unet."""
    num_blocks: Literal[1, 2, 3] = 2
    """AAD blocks of each level."""
    size: Literal[32, 64, 128, 256, 512] = 256
    """Crop side in pixels."""
    width: Width = 1.0
    """Factor on the inner channels."""
    identity_injection: Literal["adain", "adaconv", "attention"] = "adain"
    """How identity enters; the article tried the others without gain."""
    mask_head: bool = False
    """Also predict a soft mask of the face, outside of which the target shows."""


class Augment(Settings):
    """How training views differ from the stored crops."""

    color: Unit = 0.2
    """Largest change of brightness, contrast, saturation; source and target independently."""
    flip: Unit = 0.5
    """Share of mirrored views."""
    rotation: Positive = 2.0
    """Degrees, standard deviation."""
    scale: Positive = 0.02
    """Standard deviation of the logarithm of the scale."""
    shift: Positive = 0.01
    """Standard deviation, fraction of the side."""
    degrade: Unit = 0.0
    """Share of source photos made worse (downscaled, noisy)."""


class SwapRunConfig(RunConfig):
    """What trainings of an AEI-Net share."""

    model: AeiModel = AeiModel()
    """The network that is trained."""
    encoders: tuple[str, ...] = Field(("ghost-identity",), min_length=1)
    """Identity encoders: names of `faceswap weights list`, weight files, TorchScript files. The
    generator gets the mean of their embeddings, the identity loss is the mean of theirs."""
    augment: Augment = Augment()
    """How training views differ from the stored crops."""
    same_person: Unit = 0.2
    """Share of pairs whose target is another photo of the source person (0.2 in the article)."""
    precision: Precision = "fp32"
    """Of autocast; norm statistics and losses stay fp32."""
    accumulate: int = Field(1, ge=1)
    """Parts that a batch goes through the networks in."""
    compile: bool = False
    """torch.compile the generator; a CPU needs g++ for it. Minutes go by before the first step."""
    channels_last: bool = True
    """Memory layout of the convolutions."""
    clip_norm: float = Field(0.0, ge=0)
    """Largest gradient norm of the generator; 0: no limit, as in the original."""


class AeiLosses(Settings):
    """Weights of the GHOST recipe; 0 turns a term off."""

    adversarial: Weight = 1.0
    """Hinge over the scales of the discriminator."""
    attribute: Weight = 10.0
    """Attribute maps of target and swapped face."""
    identity: Weight = 15.0
    """1 - cosine of the identity embeddings (the author's stage 1; the code's default is 20)."""
    reconstruction: Weight = 10.0
    """Pixels, on same-person pairs."""
    eyes: Weight = 0.0
    """Heat maps of the pupils; for stage 2."""
    gaze: Weight = 0.0
    """Place of the irises between the corners of their eyes."""
    cycle: Weight = 0.0
    """Swapping back gives the target."""
    ssim: Weight = 0.0
    """Structural similarity, on same-person pairs."""
    identity_critic: Weight = 0.0
    """A second critic, which is told whose face it should be."""
    pair: Weight = 0.0
    """A classifier of pairs of photos: the same person or not."""
    r1: Weight = 0.0
    """Gradient penalty of the discriminator on real photos."""
    mask: Weight = 1.0
    """Predicted mask and the face's region by its landmarks; only with model.mask_head."""


class AeiConfig(SwapRunConfig):
    """GHOST's recipe for AEI-Net."""

    task: Literal["aei"] = "aei"
    """Which step function trains."""
    losses: AeiLosses = AeiLosses()
    """Weight of each loss term."""
    attribute_form: Literal["normalised", "original"] = "normalised"
    """normalised: target side detached, each map by its power; original: as the article's code."""
    critic_width: Width = 1.0
    """Factor on the discriminator's channels."""
    critic_lr: float = Field(1.0, gt=0)
    """Discriminator's learning rate as a share of `lr`."""
    r1_every: int = Field(16, ge=1)
    """Steps between gradient penalties."""
    embedding_noise: float = Field(0.0, ge=0)
    """Standard deviation of noise on the source's embedding, as a share of its root mean square."""
    eye_teacher: str = ""
    """TorchScript FAN giving 98 WFLW heat maps of 256 px crops; empty: the lite landmarks."""


class DistillLosses(Settings):
    """Weights of the distillation; 0 turns a term off."""

    pixels: Weight = 10.0
    """Mean squared difference of student and teacher."""
    perceptual: Weight = 1.0
    """Features of the teacher's own attribute encoder."""
    identity: Weight = 1.0
    """1 - cosine of the identity embeddings."""


class DistillConfig(SwapRunConfig):
    """A small AEI-Net that imitates a large one."""

    task: Literal["distill"] = "distill"
    """Which step function trains."""
    teacher: str = "ghost-swapper-2"
    """The large one: a name of `faceswap weights list` or a weight file."""
    losses: DistillLosses = DistillLosses()
    """Weight of each loss term."""


class DetectorModel(Settings):
    """See `faceswap.models.detector.FaceDetector`."""

    widths: tuple[int, int, int, int, int] = (8, 24, 40, 64, 96)
    """Channels at strides 2, 4, 8, 16, 32."""
    depths: tuple[int, int, int] = (1, 1, 1)
    """Blocks at strides 8, 16, 32."""
    neck: Annotated[int, Field(ge=1)] = 40
    """Channels of the three grids."""


class DetectorLosses(Settings):
    """Weights of the detector's terms; 0 turns a term off."""

    score: Weight = 1.0
    """Is a face here, and how well does its box fit."""
    box: Weight = 2.0
    """1 - GIoU of the box."""
    points: Weight = 10.0
    """Distance of the five points in units of the face's size."""


class DetectorConfig(RunConfig):
    """A face detector on composed scenes."""

    task: Literal["detector"] = "detector"
    """Which step function trains."""
    model: DetectorModel = DetectorModel()
    """The network that is trained."""
    losses: DetectorLosses = DetectorLosses()
    """Weight of each loss term."""
    backgrounds: str = ""
    """Folder or tar of photos without faces; empty: the free ones that lie in scikit-image."""
    size: int = Field(320, ge=64)
    """Side of a scene in pixels, a multiple of 32."""
    smallest: float = Field(14.0, gt=4)
    """Pixels, root of a box's area; smaller faces are neither asked for nor held against it."""
    largest: float = Field(220.0, gt=16)
    """Pixels, of pasted faces; one that fills the scene may be larger."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of autocast; norm statistics and losses stay fp32."""


class RestorerModel(Settings):
    """The network, see `faceswap.models.restorer.Restorer`."""

    widths: tuple[int, ...] = (48, 96, 128)
    """Channels at 1/4, 1/8, 1/16 ... of the crop's side."""
    depths: tuple[int, ...] = (2, 2, 3)
    """Residual blocks at each of these."""


class Damage(Settings):
    """What the restorer's inputs have suffered; each kind by chance, its strength by chance up to
    the most. Lengths are pixels of the view."""

    clean: Unit = 0.05
    """Share left alone, so that good pictures are left alone."""
    warp: Unit = 0.3
    """Share resampled by a slight warp."""
    warp_px: Positive = 0.5
    """Largest deviation of its displacements."""
    blur: Unit = 0.6
    """Share blurred."""
    blur_px: Positive = 2.0
    """Largest sigma."""
    motion: Unit = 0.25
    """Share of the blurs that are motion rather than focus."""
    patches: Unit = 0.4
    """Share soft in places."""
    patches_px: Positive = 2.5
    """Largest sigma there."""
    shrink: Unit = 0.7
    """Share made small and large again."""
    smallest: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Strongest downscaling."""
    noise: Unit = 0.3
    """Share with noise."""
    noise_sd: Unit = 0.025
    """Largest standard deviation."""
    jpeg: Unit = 0.5
    """Share compressed."""
    quality: Annotated[int, Field(ge=1, le=95)] = 40
    """Worst quality."""


class RestorerLosses(Settings):
    """Weights of the loss terms; 0 turns one off."""

    pixels: Weight = 4.0
    """Mean absolute difference to the photo."""
    gradient: Weight = 4.0
    """The same of neighbouring differences."""
    features: Weight = 0.5
    """Features of the face detector (CenterFace), by which what looks alike is alike."""
    identity: Weight = 0.5
    """1 - cosine of the identity embeddings."""
    adversarial: Weight = 0.05
    """A small discriminator, once it sets in."""
    adversarial_from: Annotated[int, Field(ge=0)] = 1200
    """Step at which it does."""


class RestorerRunConfig(RunConfig):
    """A restorer, trained on photos made worse on purpose."""

    task: Literal["restorer"] = "restorer"
    """Which step function trains."""
    model: RestorerModel = RestorerModel()
    """The network."""
    sides: tuple[int, ...] = Field((128, 160, 192, 224), min_length=1)
    """Sides of the views, one drawn for each step. None is larger than the stored crops: what is
    enlarged is not sharp, and must not be the aim."""
    min_sharpness: Positive = 0.3
    """Photos below are no aim, of `faceswap.train.clean.sharpness`."""
    damage: Damage = Damage()
    """What the inputs have suffered."""
    losses: RestorerLosses = RestorerLosses()
    """Weight of each loss term."""
    encoders: tuple[str, ...] = Field(("lite-identity",), min_length=1)
    """Identity encoders: names of `faceswap weights list`, weight files, TorchScript files."""
    precision: Precision = "fp32"
    """Of autocast; losses stay fp32. bf16 is 2-3 times as fast on CPUs with AMX."""

    @field_validator("sides")
    @classmethod
    def _sides(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(side < 32 or side % 16 for side in value):
            raise ValueError("each should be a multiple of 16, at least 32")
        return value


class OcclusionModel(Settings):
    """See `faceswap.models.occlusion.OcclusionNet`."""

    widths: tuple[int, ...] = (16, 40, 80, 144, 160)
    """Channels at 1/2, 1/4, 1/8 ... of the crop's side."""
    size: Annotated[int, Field(ge=32)] = 160
    """Side of the crops it will be used on, pixels."""


class Occluders(Settings):
    """What is drawn before the faces, see `faceswap.train.occluders`."""

    glasses: Unit = 0.65
    """Share of faces that wear some; three in ten of them dark."""
    things: Unit = 0.25
    """Share with something else before them."""
    hands: Unit = 0.4
    """Share of these that are a hand."""
    microphones: Unit = 0.25
    """Share that are a microphone; the rest are boxes, round ones, anything."""


class OcclusionLosses(Settings):
    """Weights of the occlusion network's terms; 0 turns a term off."""

    pixels: Weight = 1.0
    """Cross-entropy of each pixel."""
    overlap: Weight = 0.5
    """1 - soft Dice of the batch, which weighs the few covered pixels like the many bare ones."""


class OcclusionRunConfig(RunConfig):
    """What lies before a face, learned from drawn occluders."""

    task: Literal["occlusion"] = "occlusion"
    """Which step function trains."""
    model: OcclusionModel = OcclusionModel()
    """The network that is trained."""
    occluders: Occluders = Occluders()
    """What is drawn."""
    losses: OcclusionLosses = OcclusionLosses()
    """Weight of each loss term."""
    sides: tuple[int, ...] = Field((160,), min_length=1)
    """Sides of the crops, one drawn for each step; batches are smaller by area at larger ones."""
    leave_out: Unit = 0.3
    """Share of the photos that most look as if they showed real glasses: nobody has marked them, so
    they would teach that only drawn ones count. Where there is a ``teacher``, it tells instead."""
    wearers: Unit = 0.0
    """Share of the faces of a batch that show real glasses, marked by ``teacher``."""
    teacher: str = ""
    """An occlusion network that tells who wears real glasses; our name or a file, "" for none."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of autocast; losses stay fp32."""


SCHEMAS: dict[str, type[RunConfig]] = {
    **dict.fromkeys(LITE_LOSSES, TrainConfig),
    "swapper": SwapperConfig,
    "aei": AeiConfig,
    "distill": DistillConfig,
    "detector": DetectorConfig,
    "restorer": RestorerRunConfig,
    "occlusion": OcclusionRunConfig,
}


class _Head(Settings):
    """Only the task, to know which schema to check against."""

    model_config = ConfigDict(extra="ignore")

    task: str = ""


def load_train_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and check a training configuration.

    Args:
        path: YAML file.
        overrides: ``key=value`` or ``losses.key=value``, as `load_config` takes them.

    Raises:
        ConfigError: the file is missing, not YAML, or has a wrong or unknown field (named).
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration; the shipped ones are in configs/")
    task = load_config(path, overrides, schema=_Head).task
    if not task:
        known = ", ".join(sorted(SCHEMAS))
        raise ConfigError(f"{path}: names no task to train; there are: {known}")
    if task not in SCHEMAS:
        raise unknown("task", task, SCHEMAS)
    return load_config(path, overrides, schema=SCHEMAS[task])
