"""The log of a run: one JSON line every so many steps, and TensorBoard where it is installed."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from faceswap.train.disk import write_whole, writing

FILE = "metrics.jsonl"


class Record:
    """An open log.

    Args:
        out: run folder.
        step: where the run goes on; lines of later steps, left by a run that was killed after its
            last checkpoint, are taken out.
        active: whether anything is written at all (one process of several does).
    """

    def __init__(self, out: Path, step: int, *, active: bool = True) -> None:
        self.path, self.active = out / FILE, active
        self.board: Any = None
        self.minutes = 0.0  # that the run took before, as far as its log says
        if not active:
            return
        if self.path.exists():
            lines = self.path.read_text().splitlines(keepends=True)
            whole = [each for each in lines if each.endswith("\n")]
            kept = [x for x in whole if json.loads(x)["step"] <= step]
            write_whole(self.path, "".join(kept))
            if kept:
                self.minutes = float(json.loads(kept[-1])["minutes"])
        if find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            # The first step that is taken anew: TensorBoard forgets it and all later ones.
            self.board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> Record:
        return self

    def write(self, step: int, minutes: float, terms: dict[str, float]) -> str:
        """Add a line; the line. Minutes are those since the run went on."""
        minutes += self.minutes
        rounded = {name: round(value, 5) for name, value in terms.items()}
        line = json.dumps({"step": step, "minutes": round(minutes, 2), **rounded})
        if self.active:
            with writing(self.path), self.path.open("a") as log:
                log.write(line + "\n")
        if self.board is not None:
            for name, value in terms.items():
                self.board.add_scalar(name, value, step)
        return line

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if self.board is not None:
            self.board.close()
