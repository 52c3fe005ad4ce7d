"""What README says can be done, can be done."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from faceswap.cli import commands
from faceswap.weights import Pack

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
LINES = [
    line.split("#")[0].strip()
    for language, block in BLOCKS
    if language == ""
    for line in block.splitlines()
    if "faceswap " in line
]


@pytest.mark.parametrize("line", LINES)
def test_every_command_of_the_readme_exists_with_its_options(line: str) -> None:
    words = shlex.split(line.removeprefix("uv run "))
    assert words.pop(0) == "faceswap"
    command: click.Command = commands
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
    unknown = [w for w in words if w.startswith("-") and w not in known]
    assert unknown == []


def test_the_first_screen_has_a_picture_that_is_there() -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert pictures
    assert [p for p in pictures if not (ROOT / p).is_file()] == []


def test_the_python_example_runs(
    lite_pack: Pack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (example,) = [block for language, block in BLOCKS if language == "python"]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), scope)
    assert (tmp_path / "swapped.jpg").stat().st_size > 10_000
