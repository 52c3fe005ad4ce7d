"""A small AEI-Net that imitates a large one (GHOST, section IV: the light model).

The student gets the same target and identity as the teacher and is to give the same picture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceswap.errors import ConfigError
from faceswap.models import load_model
from faceswap.models.aei import AEINet
from faceswap.train.config import DistillConfig
from faceswap.train.data import Crops
from faceswap.train.judges import IdentityJudge, mean_embedding
from faceswap.train.losses import attribute_loss
from faceswap.train.parallel import ALONE, Group
from faceswap.train.swapping import (
    Gradients,
    compiled,
    exporter,
    make_feed,
    make_network,
    make_preview,
    make_sampler,
)
from faceswap.train.task import Task, Term, add_terms, check_finite


def load_teacher(config: DistillConfig, judge: IdentityJudge, device: torch.device) -> AEINet:
    """The large network, frozen.

    Raises:
        ConfigError: no AEI-Net, or one of another size or identity encoder.
        WeightError: not here.
    """
    teacher = load_model(config.teacher, device=device)
    if not isinstance(teacher, AEINet):
        raise ConfigError(f"teacher {config.teacher}: a {type(teacher).__name__}, not an AEINet")
    if teacher.size != config.model.size:
        raise ConfigError(
            f"teacher {config.teacher}: {teacher.size} px, the student has {config.model.size}; "
            f"set model.size={teacher.size}"
        )
    if teacher.embedding_size != judge.embedding_size:
        raise ConfigError(
            f"teacher {config.teacher}: wants {teacher.embedding_size} numbers of identity, "
            f"{', '.join(config.encoders)} gives {judge.embedding_size}"
        )
    return teacher.requires_grad_(False)


def build(config: DistillConfig, data: Crops, device: torch.device, group: Group = ALONE) -> Task:
    """The "distill" task on a prepared folder; raises as `load_teacher` and the "aei" task."""
    gradients = Gradients.of(config, device, group)
    judge = IdentityJudge(config.encoders, device)
    teacher = load_teacher(config, judge, device)
    student, args = make_network(config, judge.embedding_size, device, group)
    sampler = make_sampler(config, data, device, group)
    feed = make_feed(config, sampler)
    optimizer = torch.optim.Adam(student.parameters(), lr=config.lr, betas=(0.5, 0.999))
    forward = compiled(student, config, device)
    weights = config.losses.model_dump()

    def step(index: int, generator: torch.Generator) -> dict[str, Term]:
        batch = sampler.views(feed.take(index, generator))
        student.train()
        seen: dict[str, Term] = {}
        parts = batch.split(config.accumulate)
        for pairs in parts:
            with gradients.autocast():
                with torch.no_grad():
                    theirs = judge.each(pairs.source, pairs.source_points)
                    identity = mean_embedding(theirs)
                    wanted = teacher(pairs.target, identity)
                made = forward(pairs.target, identity)
                terms: dict[str, Tensor] = {"pixels": F.mse_loss(made, wanted)}
                if config.losses.perceptual:
                    terms["perceptual"] = attribute_loss(
                        teacher.attributes(made), teacher.attributes(wanted)
                    )
                if config.losses.identity:
                    terms["identity"] = judge.distance(judge.each(made, pairs.points), theirs)
            check_finite(terms)
            gradients.backward(torch.stack([weights[k] * v for k, v in terms.items()]).sum())
            add_terms(seen, terms, 1 / len(parts))
        gradients.step(optimizer, student.parameters(), config.clip_norm)
        gradients.scaler.update()
        return seen

    networks: dict[str, nn.Module] = {"swapper": student}
    return Task(
        networks,
        {"swapper": optimizer},
        step,
        "swapper",
        exporter(args, {"recipe": "distill", "teacher": config.teacher}),
        make_preview(data, sampler, judge),
        scalers={"all": gradients.scaler},
        archs={"aei": "swapper"},
    )
