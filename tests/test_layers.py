"""Imports go down only, each library stays behind its wall, and importing us loads nothing heavy.

The layers and walls are those of DESIGN.md, "Layers".
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import faceswap

PACKAGE = Path(faceswap.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

LAYERS = {
    0: ("errors",),
    1: ("types", "config", "weights", "manifest", "download"),  # the last two serve weights
    2: ("ops", "media"),
    3: ("models",),
    4: ("faces",),
    5: (
        *("swap", "occlude", "restore", "photo", "folder"),
        *("video", "window", "render", "tally", "cast", "casting"),  # swap_video's parts
        *(
            "lanes",
            "lookout",
            "journal",
            "segments",
            "account",
            "people",
            "preview",
        ),  # more of them
        *("bench", "doctor", "evaluate", "train"),
    ),
    6: ("cli", "__main__"),
}
LAYER = {name: layer for layer, names in LAYERS.items() for name in names}
MAY_IMPORT = {0: (), 1: (0, 1), 2: (0, 1), 3: (0, 1), 4: (0, 1, 2, 3)}
MAY_IMPORT |= {5: (0, 1, 2, 3, 4, 5), 6: (0, 1, 2, 3, 4, 5, 6)}

WALLS = {  # library -> the only files that may name it
    "cv2": {"media/image.py"},
    "av": {"media/reader.py"},
    "ffmpeg": {"media/writer.py"},
    "jpegio": {"media/jpeg.py"},
    "insightface": {"faces/detect.py", "faces/landmarks.py"},
    "onnxruntime": {"faces/detect.py", "faces/landmarks.py"},
    "onnx": {"faces/detect.py", "faces/landmarks.py"},
    "click": {"cli.py"},
    "tqdm": {"cli.py"},
}
EXCEPTIONS = {  # (library, file) -> why
    ("av", "media/nut.py"): "raw frames with their times into ffmpeg's pipe",
    ("onnxruntime", "models/engine.py"): "small networks and CenterFace on a CPU",
    ("onnx", "train/script.py"): "what a TorchScript network consists of",
    ("onnxruntime", "train/script.py"): "its constants worked out",
}
HEAVY = {"torch", "torchvision", "kornia", "cv2", "av", "insightface", "onnx", "PIL", "numpy"}


@dataclass(frozen=True)
class Import:
    """One imported module, and where."""

    name: str  # dotted
    line: int
    at_load: bool  # runs when the module is loaded: not in a function, not for type checkers


def imports(path: Path) -> Iterator[Import]:
    """Every import of a file, wherever it stands; relative ones are not in use here."""

    def walk(node: ast.AST, at_load: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, child.lineno, at_load)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno}: relative import"
                for alias in child.names:
                    yield Import(f"{child.module}.{alias.name}", child.lineno, at_load)
            else:
                lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or (
                    isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
                )
                yield from walk(child, at_load and not lazy)

    yield from walk(ast.parse(path.read_text(encoding="utf-8"), str(path)), True)


def module(dotted: str) -> str | None:
    """The file of ours that a dotted name lies in, relative to the package; None: not ours."""
    first, *rest = dotted.split(".")
    if first != "faceswap":
        return None
    while rest:
        for candidate in (Path(*rest).with_suffix(".py"), Path(*rest) / "__init__.py"):
            if (PACKAGE / candidate).is_file():
                return candidate.as_posix()
        rest.pop()
    return "__init__.py"


def owner(file: str) -> str:
    """First name below the package: ``ops`` of ``ops/mask.py``, ``swap`` of ``swap.py``."""
    return file.removesuffix(".py").split("/")[0]


def files() -> list[str]:
    return [path.relative_to(PACKAGE).as_posix() for path in MODULES]


@pytest.mark.parametrize("file", [file for file in files() if file != "__init__.py"])
def test_imports_go_down_only(file):
    assert owner(file) in LAYER, f"{file}: give it a layer, here and in DESIGN.md"
    mine = LAYER[owner(file)]
    for each in imports(PACKAGE / file):
        target = module(each.name)
        if target is None:
            continue
        where = f"faceswap/{file}:{each.line} imports {each.name}"
        assert target != "__init__.py", f"{where}: name the module, not the public face"
        if owner(target) != owner(file):
            theirs = LAYER[owner(target)]
            assert theirs in MAY_IMPORT[mine], f"{where}: layer {mine} may not know layer {theirs}"


@pytest.mark.parametrize("file", files())
def test_libraries_stay_behind_their_walls(file):
    for each in imports(PACKAGE / file):
        library = each.name.split(".")[0]
        allowed = WALLS.get(library, {file}) | {f for lib, f in EXCEPTIONS if lib == library}
        assert file in allowed, (
            f"faceswap/{file}:{each.line} imports {library}, which belongs in {sorted(allowed)}"
        )


@pytest.mark.parametrize(("library", "file"), EXCEPTIONS)
def test_exceptions_are_in_use(library, file):
    assert library in {each.name.split(".")[0] for each in imports(PACKAGE / file)}


def test_no_import_cycles():
    graph = {
        file: {
            target
            for each in imports(PACKAGE / file)
            if each.at_load and (target := module(each.name)) not in (None, file)
        }
        for file in files()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_checks_see_what_they_should(tmp_path):
    """The parser finds imports in functions, under conditions and for type checkers."""
    path = tmp_path / "sample.py"
    path.write_text(
        "import cv2.dnn as d\n"
        "if TYPE_CHECKING:\n    from faceswap.types import Faces\n"
        "def f():\n    with x:\n        from faceswap import weights\n"
        "class C:\n    import av\n"
    )
    found = {(each.name, each.at_load) for each in imports(path)}
    assert found == {
        ("cv2.dnn", True),
        ("faceswap.types.Faces", False),
        ("faceswap.weights", False),
        ("av", True),
    }
    assert module("faceswap.types.Faces") == "types.py"
    assert module("faceswap.weights") == "weights.py"
    assert module("faceswap.Swapper") == "__init__.py"
    assert module("faceswap.models.load_model") == "models/__init__.py"


def loaded_by(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after running the code."""
    report = (
        "\nimport sys, json; sys.stdout.write(json.dumps([m.split('.')[0] for m in sys.modules]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import faceswap",
        "import faceswap.errors, faceswap.config",
        "from faceswap import weights; weights.resolve('centerface')",
        "from faceswap import load_config; load_config()",
    ],
)
def test_nothing_heavy_is_loaded(code):
    assert loaded_by(code) & HEAVY == set()


def test_a_swap_loads_no_library_it_does_not_use(lite_pack):
    """Each of these costs a cold start between a tenth of a second and several seconds."""
    loaded = loaded_by(
        "import faceswap.photo, faceswap.video; from faceswap.swap import Swapper\n"
        "Swapper.from_pack('lite')"
    )
    assert "torch" in loaded
    unused = {"kornia", "torchvision", "scipy", "skimage", "insightface", "onnx", "onnxruntime"}
    assert loaded & unused == set()


def test_help_loads_nothing_heavy():
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "faceswap", "--help"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "Usage" in run.stdout
    loaded = {line.split("|")[-1].strip().split(".")[0] for line in run.stderr.splitlines()}
    assert "click" in loaded, "the report was not understood"
    assert loaded & HEAVY == set()


def test_public_names_are_there_and_typed():
    """What `__all__` promises comes out, and type checkers are told the same."""
    assert set(faceswap.__all__) == {*faceswap._HOME, "__version__"}
    told = {
        each.name.removeprefix("faceswap.")
        for each in imports(PACKAGE / "__init__.py")
        if each.name.startswith("faceswap.")
    }
    assert told == {f"{home}.{name}" for name, home in faceswap._HOME.items()}
    for name in faceswap.__all__:
        assert getattr(faceswap, name) is not None


def test_unknown_public_name():
    with pytest.raises(AttributeError, match="no attribute 'Swaper'"):
        _ = faceswap.Swaper
