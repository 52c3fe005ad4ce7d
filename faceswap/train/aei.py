"""GHOST's recipe for AEI-Net (Groshev et al., "GHOST", IEEE Access 2022).

The generator swaps; it is judged by a discriminator over three scales (realism), an identity
encoder (whose face), its own attribute encoder (what stayed of the target) and, on pairs of two
photos of one person, by the pixels of the target. Every further term of the article's trials is a
weight in the configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from faceswap.models import build as build_network
from faceswap.models.aei import AEINet, blend
from faceswap.train.config import AeiConfig
from faceswap.train.critics import IdentityCritic, PairClassifier
from faceswap.train.data import Crops
from faceswap.train.judges import EyeJudge, IdentityJudge, disturbed, mean_embedding
from faceswap.train.losses import (
    attribute_loss,
    cycle_loss,
    eye_loss,
    gaze_loss,
    gradient_penalty,
    hinge_attack,
    hinge_discriminator,
    mask_loss,
    pair_loss,
    reconstruction_loss,
    ssim_loss,
)
from faceswap.train.pairs import Pairs
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
from faceswap.train.transfer import sent


@dataclass(slots=True)
class _Players:
    """Everything the step function works with."""

    config: AeiConfig
    swapper: AEINet
    critics: nn.ModuleDict  # "critic" and, where they are on, "identity_critic" and "pair"
    attributes: Callable[[Tensor], tuple[Tensor, ...]]  # of the swapper, compiled or not
    render: Callable[[tuple[Tensor, ...], Tensor], tuple[Tensor, Tensor | None]]
    judge: IdentityJudge
    eyes: EyeJudge | None
    gradients: Gradients

    def swap(
        self, attributes: tuple[Tensor, ...], identity: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The swapped face, blended by its own mask where there is one, and the mask's logits."""
        face, mask = self.render(attributes, identity)
        return (face if mask is None else blend(face, mask, target)), mask


@dataclass(frozen=True, slots=True)
class _Swap:
    """What the generator's turn hands to the critics'."""

    pairs: Pairs
    identity: Tensor  # (n, D)
    swapped: Tensor  # (n, 3, S, S), detached


def build(config: AeiConfig, data: Crops, device: torch.device, group: Group = ALONE) -> Task:
    """The "aei" task on a prepared folder.

    Raises:
        ConfigError: data, batch and processes that do not go together.
        WeightError: an encoder that is not here.
    """
    gradients = Gradients.of(config, device, group)
    judge = IdentityJudge(config.encoders, device)
    swapper, args = make_network(config, judge.embedding_size, device, group)
    sampler = make_sampler(config, data, device, group)
    feed = make_feed(config, sampler)
    critics = _make_critics(config, judge.embedding_size).to(device)
    weight = config.losses
    eyes = EyeJudge(config.eye_teacher, device) if weight.eyes or weight.gaze else None
    players = _Players(
        config,
        swapper,
        critics,
        compiled(swapper.attributes, config, device),
        compiled(swapper.render, config, device),
        judge,
        eyes,
        gradients,
    )
    betas = (0.0, 0.999)
    optimizers: dict[str, torch.optim.Optimizer] = {
        "swapper": torch.optim.Adam(
            swapper.parameters(), lr=config.lr, betas=betas, weight_decay=1e-4
        ),
        "critics": torch.optim.Adam(
            [{"params": list(critics.parameters()), "lr_scale": config.critic_lr}],
            lr=config.lr,
            betas=betas,
            weight_decay=1e-4,
        ),
    }

    def step(index: int, generator: torch.Generator) -> dict[str, Term]:
        draw = feed.take(index, generator)
        parts = sampler.views(draw).split(config.accumulate)
        # Same-person pairs of the whole batch: parts and processes then add up to its loss.
        count = draw.count / (config.accumulate * group.world)
        seen: dict[str, Term] = {}
        swaps = _swapper_turn(players, optimizers["swapper"], parts, count, generator, seen)
        _critics_turn(players, optimizers["critics"], swaps, index, seen)
        gradients.scaler.update()
        return seen

    networks: dict[str, nn.Module] = {"swapper": swapper, **dict(critics.items())}
    return Task(
        networks,
        optimizers,
        step,
        "swapper",
        exporter(args, {"recipe": "aei", "encoders": list(config.encoders)}),
        make_preview(data, sampler, judge),
        scalers={"all": gradients.scaler},
        archs={"aei": "swapper", "discriminator": "critic"},
    )


def _make_critics(config: AeiConfig, embedding_size: int) -> nn.ModuleDict:
    critics = nn.ModuleDict({"critic": build_network("discriminator", width=config.critic_width)})
    if config.losses.identity_critic:
        critics["identity_critic"] = IdentityCritic(embedding_size)
    if config.losses.pair:
        critics["pair"] = PairClassifier()
    return critics


def _swapper_turn(
    players: _Players,
    optimizer: torch.optim.Optimizer,
    parts: Sequence[Pairs],
    count: float,
    generator: torch.Generator,
    seen: dict[str, Term],
) -> list[_Swap]:
    """One step of the generator; what it made."""
    players.critics.requires_grad_(False)
    players.swapper.train()
    swaps = []
    for pairs in parts:
        with players.gradients.autocast(), torch.no_grad():
            theirs = players.judge.each(pairs.source, pairs.source_points)
        identity = _with_noise(mean_embedding(theirs), players.config.embedding_noise, generator)
        with players.gradients.autocast():
            attributes = players.attributes(pairs.target)
            swapped, mask = players.swap(attributes, identity, pairs.target)
            terms = _swapper_terms(players, pairs, attributes, identity, swapped, theirs, count)
            if mask is not None and players.config.losses.mask:
                terms["mask"] = mask_loss(mask, pairs.region)
        check_finite(terms)
        weights = players.config.losses.model_dump()
        players.gradients.backward(torch.stack([weights[k] * v for k, v in terms.items()]).sum())
        add_terms(seen, terms, 1 / len(parts))
        swaps.append(_Swap(pairs, identity, swapped.detach()))
    players.gradients.step(optimizer, players.swapper.parameters(), players.config.clip_norm)
    players.critics.requires_grad_(True)
    return swaps


def _with_noise(identity: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    if not strength:
        return identity
    noise = sent(torch.randn(identity.shape, generator=generator), identity.device).to(identity)
    return disturbed(identity, noise, strength)


def _swapper_terms(
    players: _Players,
    pairs: Pairs,
    attributes: tuple[Tensor, ...],
    identity: Tensor,
    swapped: Tensor,
    theirs: list[Tensor],
    count: float,
) -> dict[str, Tensor]:
    """The generator's loss terms that are on, by their names in the configuration."""
    on = players.config.losses
    critics = players.critics
    terms: dict[str, Tensor] = {}
    if on.adversarial:
        terms["adversarial"] = hinge_attack([x.float() for x in critics["critic"](swapped)])
    if on.attribute or on.cycle:
        again = players.attributes(swapped)
    if on.attribute:
        terms["attribute"] = attribute_loss(again, attributes, form=players.config.attribute_form)
    if on.identity:
        mine = players.judge.each(swapped, pairs.points)
        terms["identity"] = players.judge.distance(mine, theirs)
    if on.reconstruction:
        terms["reconstruction"] = reconstruction_loss(
            swapped, pairs.target, pairs.same, count=count
        )
    if on.ssim:
        terms["ssim"] = ssim_loss(swapped, pairs.target, pairs.same, count=count)
    if players.eyes is not None:
        heat, mesh = players.eyes(swapped, pairs.points)
        with torch.no_grad():
            wanted, wanted_mesh = players.eyes(pairs.target, pairs.points)
        terms["eyes"] = eye_loss(heat, wanted)
        terms["gaze"] = gaze_loss(mesh, wanted_mesh)
    if on.cycle:
        with torch.no_grad():
            own = mean_embedding(players.judge.each(pairs.target, pairs.points))
        back, _ = players.swap(again, own, swapped)
        terms["cycle"] = cycle_loss(back, pairs.target)
    if on.identity_critic:
        judged = critics["identity_critic"](swapped, identity)
        terms["identity_critic"] = hinge_attack([judged.float()])
    if on.pair:
        logits = critics["pair"](pairs.source, swapped).float()
        terms["pair"] = pair_loss(logits, torch.ones_like(pairs.same))
    return terms


def _critics_turn(
    players: _Players,
    optimizer: torch.optim.Optimizer,
    swaps: list[_Swap],
    index: int,
    seen: dict[str, Term],
) -> None:
    """One step of the discriminator and of the other critics that are on."""
    on = players.config.losses
    if not (on.adversarial or on.identity_critic or on.pair):
        return
    for swap in swaps:
        real, fake = swap.pairs.source, swap.swapped
        terms: dict[str, Tensor] = {}
        with players.gradients.autocast():
            if on.adversarial:
                critic = players.critics["critic"]
                terms["critic"] = hinge_discriminator(
                    [x.float() for x in critic(real)], [x.float() for x in critic(fake)]
                )
            if on.identity_critic:
                judge = players.critics["identity_critic"]
                terms["critic_identity"] = hinge_discriminator(
                    [judge(real, swap.identity).float()], [judge(fake, swap.identity).float()]
                )
            if on.pair:
                logits = players.critics["pair"](real, swap.pairs.target).float()
                terms["critic_pair"] = pair_loss(logits, swap.pairs.same)
        total = torch.stack(list(terms.values())).sum()
        if on.r1 and on.adversarial and index % players.config.r1_every == 0:
            photos = real.detach().requires_grad_()
            terms["r1"] = gradient_penalty(players.critics["critic"](photos), photos)
            total = total + on.r1 * players.config.r1_every * terms["r1"]
        check_finite(terms)
        players.gradients.backward(total)
        add_terms(seen, terms, 1 / len(swaps))
    players.gradients.step(optimizer, players.critics.parameters())
