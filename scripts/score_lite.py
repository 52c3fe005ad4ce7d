"""Score the lite pack's networks on people held back from training; says which weights are better.

    python scripts/score_lite.py DATA --swapper A.safetensors --swapper B.safetensors \\
        --encoder mobilefacenet.ts --encoder omz_reid.ts \\
        --facemesh facemesh.ts --iris iris.ts --took-part mobilefacenet

DATA is what `faceswap prepare` made; a person is held back by a hash of their name
(`faceswap.train.data.is_held_back`). Swaps are scored against the target redrawn and the bare
warp, all on the same pairs (`score_swaps`). ``--landmarks FILE`` and ``--identity FILE`` score
those networks. Without any file the networks of the pack are scored.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from score_swaps import Scored, Scorer, choose_pairs, score_all
from torch import Tensor, nn

from faceswap.errors import ConfigError, FaceSwapError
from faceswap.evaluate.intervals import estimate
from faceswap.evaluate.report import finite
from faceswap.faces.identity import IdentityEncoder
from faceswap.models import load_model
from faceswap.models.guided import GuidedAEINet
from faceswap.models.mesh import MARGIN, TEMPLATE
from faceswap.ops.geometry import align
from faceswap.ops.shape import ShapeModel
from faceswap.ops.topology import five_points
from faceswap.train.data import Crops, cut, load_crops
from faceswap.train.label import (
    MeshLabeler,
    PackLabeler,
    TeacherLabeler,
    load_recogniser,
    load_script,
)
from faceswap.train.preview import save_sheet

PART = 32
CPU = torch.device("cpu")
SHOWN = 10  # swaps of the sheet
FINE = ("border_tone", "blur_ratio")  # two digits


def score_landmarks(data: Crops, net: nn.Module, count: int = 300) -> dict[str, float]:
    """Error against the teacher's labels in % of the distance of the eye centres."""
    rows = torch.nonzero(data.held_back)[:, 0]
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count]]
    truth = data.mesh[rows][..., :2]
    eyes = five_points(truth)
    unit = (eyes[:, 0] - eyes[:, 1]).norm(dim=-1)
    size = int(net.size)  # type: ignore[arg-type]
    at = align(data.points[rows], size, template=TEMPLATE, margin=MARGIN)
    views = cut(data.pixels(rows), at.matrix, size)
    found = torch.cat([net(part)[0] for part in views.split(PART)])
    error = (at.inverse_points(found[..., :2]) - truth).norm(dim=-1).mean(1) / unit * 100
    return {"faces": len(rows), "mean_%": float(error.mean()), "median_%": float(error.median())}


def score_identity(data: Crops, net: nn.Module) -> dict[str, float | None]:
    """Verification on LFW people held back, and agreement with the teacher's embeddings."""
    by_person: dict[int, list[int]] = {}
    for row in torch.nonzero(data.held_back)[:, 0].tolist():
        if data.names[row].startswith("lfw"):
            by_person.setdefault(int(data.identity[row]), []).append(row)
    same = [p for v in by_person.values() for p in zip(v[:8:2], v[1:8:2], strict=False)]
    first = [v[0] for v in by_person.values()]
    order = torch.randperm(len(first), generator=torch.Generator().manual_seed(0)).tolist()
    other = [(first[i], first[j]) for i, j in itertools.pairwise(order)][: len(same)]
    rows = torch.tensor(sorted({row for pair in same + other for row in pair}))
    place = {row: i for i, row in enumerate(rows.tolist())}
    size = int(net.size)  # type: ignore[arg-type]
    at = align(data.points[rows], size, template="arcface").matrix
    parts = zip(rows.split(PART), at.split(PART), strict=True)
    encoder = IdentityEncoder(net, mirrored=True)  # as the pipeline has it
    embedding = torch.cat([encoder.embed(cut(data.pixels(r), m, size)) for r, m in parts])
    unit = F.normalize(embedding)

    def cosine(pairs: list[tuple[int, int]]) -> Tensor:
        return torch.stack([unit[place[a]] @ unit[place[b]] for a, b in pairs])

    yes, no = cosine(same), cosine(other)
    steps = torch.linspace(-0.2, 0.95, 300)
    right = torch.stack([torch.cat([yes > t, no <= t]) for t in steps]).float()
    # As LFW has it: the threshold for a tenth of the pairs is the best one of the other nine.
    fold = torch.cat([torch.arange(len(yes)), torch.arange(len(no))]) % 10
    folds = [right[int(right[:, fold != i].mean(1).argmax())][fold == i] for i in range(10)]
    best = int(right.mean(1).argmax())
    teacher = data.embedding
    return {
        "pairs": len(same) + len(other),
        "accuracy": float(torch.cat(folds).mean()),
        "accuracy_best_threshold": float(right[best].mean()),
        "threshold": float(steps[best]),
        "same_mean": float(yes.mean()),
        "other_mean": float(no.mean()),
        "agreement": agreement(embedding, None if teacher is None else teacher[rows]),
    }


def agreement(embedding: Tensor, teacher: Tensor | None) -> float | None:
    """Mean cosine to the teacher's embeddings, where there are some of that size."""
    if teacher is None or teacher.shape[1] != embedding.shape[1]:
        return None
    return float(F.cosine_similarity(embedding, teacher).mean())


def make_scorer(data: Crops, options: argparse.Namespace) -> Scorer:
    """The measuring networks that were named, on the fixed pairs."""
    encoders = {}
    for file in options.encoder:
        name = Path(file).stem
        if name in encoders:
            raise ConfigError(f"--encoder: two are called {name}")
        encoders[name] = load_recogniser(file, CPU)
    labeler: MeshLabeler = PackLabeler(CPU)
    if options.facemesh:
        labeler = TeacherLabeler(
            load_script(Path(options.facemesh), CPU), load_script(Path(options.iris), CPU)
        )
    lite = load_model("lite-swapper")
    assert isinstance(lite, GuidedAEINet)
    shape = ShapeModel(lite.shape_mean, lite.shape_basis, lite.shape_expression)
    return Scorer(
        data, choose_pairs(data, options.people, options.targets), labeler, encoders, shape
    )


def summed(
    scored: Scored, who: Tensor, against: Scored | None = None
) -> dict[str, dict[str, float]]:
    """Means with 95 % intervals over sources; of paired differences if there is another side."""
    out = {}
    for name, values in scored.values.items():
        gap = values - against.values[name] if against else values
        out[name] = asdict(estimate(gap, (who,)))
    return out


def cell(name: str, value: dict[str, float]) -> str:
    """A mean and half of its interval's width."""
    digits = 3 if name.startswith("cos") else 2 if name in FINE else 1
    return f"{value['mean']:.{digits}f} ±{(value['high'] - value['low']) / 2:.{digits}f}"


def table(title: str, rows: dict[str, dict[str, dict[str, float]]], columns: list[str]) -> str:
    """Mean and half of the interval's width, in columns."""
    first = max(len(title), *(len(name) for name in rows))
    heads = [column.split(" ")[0] for column in columns]
    widths = [max(len(head), 14) + 2 for head in heads]
    lines = [title.ljust(first) + "".join(h.rjust(w) for h, w in zip(heads, widths, strict=True))]
    for name, values in rows.items():
        cells = [cell(column, values[column]) for column in columns]
        lines.append(
            name.ljust(first) + "".join(c.rjust(w) for c, w in zip(cells, widths, strict=True))
        )
    return "\n".join(lines)


def swapper_tables(
    scorer: Scorer, scored: list[Scored], took_part: dict[str, str], measured_with: str
) -> tuple[str, dict[str, Any]]:
    """All there is to say of the swaps, as text and for JSON."""
    who = scorer.protocol.who
    rows = {each.name: summed(each, who) for each in scored}
    base = scored[2] if len(scored) > 3 else scored[1]
    later = scored[3:] if len(scored) > 3 else scored[2:]
    gaps = {f"{each.name} minus {base.name}": summed(each, who, base) for each in later}
    ceiling = scorer.ceiling()
    parts = [
        f"{len(scorer.protocol.source)} sources held back, {len(who)} swaps; mean and half of the "
        "95 % interval over sources"
    ]
    for name in scorer.encoders:
        how = took_part.get(name)
        title = f"{name} ({how})" if how else name
        kinds = ("cos_source", "cos_other", "cos_target", "top1", "top1_other")
        columns = [f"{kind} {name}" for kind in kinds]
        parts.append(table(title, {**rows, **gaps}, columns))
        parts.append(
            f"ceiling, another photo of the source: cosine {ceiling[f'cos_source {name}']:.3f}, "
            f"top1 {ceiling[f'top1 {name}']:.1f}"
        )
    rest = [name for name in scored[0].values if " " not in name]
    half = (len(rest) + 1) // 2
    parts += [
        table(f"by {measured_with}", {**rows, **gaps}, names)
        for names in (rest[:half], rest[half:])
    ]
    about = {
        "sources": len(scorer.protocol.source),
        "swaps": len(who),
        "encoders": list(scorer.encoders),
        "took_part": took_part,
        "measured_with": measured_with,
        "ceiling": ceiling,
        "measures": rows,
        "differences": gaps,
        "cpu_seconds": {each.name: round(each.seconds, 1) for each in scored},
    }
    return "\n\n".join(parts), about


def sheet(path: Path, data: Crops, scorer: Scorer, scored: list[Scored]) -> None:
    """The first swaps, a column each: source, target, then every way of making them."""
    total = len(scorer.protocol.who)
    some = torch.arange(0, total, max(1, total // SHOWN))[:SHOWN]
    source = data.pixels(scorer.protocol.source[scorer.protocol.who[some]])
    save_sheet(path, [source / 255, *(each.swapped[some] / 255 for each in scored)], synthetic=True)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, or what stands for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="prepared folder")
    for name, what in (("swapper", "swapper"), ("landmarks", "landmarks"), ("identity", "encoder")):
        parser.add_argument(
            f"--{name}", action="append", default=[], metavar="FILE", help=f"{what} to score"
        )
    parser.add_argument(
        "--encoder",
        action="append",
        default=[],
        metavar="FILE",
        help="recogniser that judges the swaps: TorchScript .ts, or one of our files; repeat",
    )
    parser.add_argument(
        "--took-part",
        action="append",
        default=[],
        metavar="NAME[=HOW]",
        help="say at this encoder's figures that it took part in the training",
    )
    parser.add_argument("--facemesh", help="TorchScript that measures; else the pack's landmarks")
    parser.add_argument("--iris", help="goes with --facemesh")
    parser.add_argument("--people", type=int, default=100, help="sources (%(default)s)")
    parser.add_argument("--targets", type=int, default=5, help="of each source (%(default)s)")
    parser.add_argument(
        "--data-labels",
        action="store_true",
        help="points and embeddings for the swap by the data's teachers; else by the pack's own "
        "networks, as a user gets them",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--sheet", type=Path, help="PNG of some of the swaps")
    options = parser.parse_args(arguments)
    if bool(options.facemesh) != bool(options.iris):
        parser.error("--facemesh and --iris go together")
    if min(options.people, options.targets, options.threads) < 1:
        parser.error("--people, --targets and --threads have to be at least 1")
    if not (options.swapper or options.landmarks or options.identity):
        options.swapper, options.landmarks = ["lite-swapper"], ["lite-landmarks"]
        options.identity = ["lite-identity"]
    return options


@torch.no_grad()
def run(options: argparse.Namespace, data: Crops) -> dict[str, Any]:
    """Score, print, and give all figures."""
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {"data": str(options.data), "faces": len(data)}
    for kind, score in (("landmarks", score_landmarks), ("identity", score_identity)):
        for file in getattr(options, kind):
            result[f"{kind} {file}"] = figures = score(data, load_model(file))
            print(f"{kind} {file}: {json.dumps(figures)}", flush=True)
    if options.swapper:
        took_part = {}
        for text in options.took_part:
            name, _, how = text.partition("=")
            took_part[name] = how or "took part in training"
        scorer = make_scorer(data, options)
        unknown = set(took_part) - set(scorer.encoders)
        if unknown:
            raise ConfigError(f"--took-part: no --encoder is called {', '.join(sorted(unknown))}")
        scored = score_all(
            options.swapper,
            data,
            scorer,
            settings=options.settings,
            own_labels=not options.data_labels,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
        text, result["swaps"] = swapper_tables(
            scorer, scored, took_part, "FaceMesh and Iris" if options.facemesh else "lite-landmarks"
        )
        print(text)
        if options.sheet:
            sheet(options.sheet, data, scorer, scored)
    if options.json:
        options.json.write_text(json.dumps(finite(result), indent=1) + "\n")
    return result


def main() -> None:
    """Run; what cannot be done is one line."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")  # TorchScript retires
    began = time.process_time()
    try:
        options = parse()
        run(options, load_crops(options.data))
    except FaceSwapError as error:
        sys.exit(f"score_lite: {error}")
    print(f"{time.process_time() - began:.0f} s of CPU time", file=sys.stderr)


if __name__ == "__main__":
    main()
