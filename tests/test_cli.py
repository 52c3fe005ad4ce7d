"""The command line: what it takes, what reaches the library, what it prints where."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from PIL import Image

import faceswap.photo
import faceswap.swap
import faceswap.train.prepare
import faceswap.train.run
import faceswap.weights
from faceswap.cli import commands, main, split, swapped_name
from faceswap.config import SwapConfig
from faceswap.errors import ConfigError, DeviceError, NoFaceError, WeightError
from faceswap.media.image import write_image
from faceswap.media.provenance import Provenance, xmp_packet
from faceswap.train.prepare import PrepareReport
from faceswap.types import ImageReport

# What every command takes. A new option is a decision: change this list with it.
OPTIONS = {
    "": "--version --help",
    "image": "SOURCE TARGET --output --overwrite --quality --target-ref --all-faces --face --map "
    "--source-face --source-extra --pack --swapper --mask --color-match --no-color-match --alpha "
    "--occlusion --no-occlusion --restore --no-restore --device --precision --config --set --json "
    "--verbose --quiet --help",
    "video": "SOURCE CLIP --output --overwrite --target-ref --all-faces --face --map "
    "--source-face --source-extra --start --end --fps --codec --crf --preset --encoder --no-audio "
    "--max-gap --smoothing --detect-every --batch-size --resume --preview --sidecar --pack "
    "--swapper --mask --color-match --no-color-match --alpha --occlusion --no-occlusion --restore "
    "--no-restore --device --precision --config --set --json --verbose --quiet --help",
    "faces": "CLIP --output --start --end --pack --device --set --json --verbose --quiet --help",
    "weights": "--help",
    "weights list": "--commercial-only --json --help",
    "weights fetch": "NAME... --verbose --quiet --help",
    "weights verify": "[NAME...] --verbose --quiet --help",
    "weights import": "FILE --as --verbose --quiet --help",
    "weights where": "--help",
    "train": "--config --data --out --resume --init-from --max-minutes --device --set --verbose "
    "--quiet --help",
    "export": "RUN --to --output --overwrite --verbose --quiet --help",
    "doctor": "--json --help",
    "origin": "FILE... --json --help",
    "evaluate": "--sources --targets --triples --faceforensics --method --pairs --compression "
    "--compare --extractor --pairing --limit --frames --track --seed --output --overwrite --pack "
    "--swapper --mask --color-match --no-color-match --alpha --occlusion --no-occlusion --restore "
    "--no-restore --device --precision --config --set --json --verbose --quiet --help",
    "bench": "--help",
    "bench image": "--repeats --pack --device --precision --set --json --verbose --quiet --help",
    "bench video": "--size --seconds --faces --batch-size --pack --device --precision --set --json "
    "--verbose --quiet --help",
    "bench model": "NAME --batch --repeats --precision --device --json --verbose --quiet --help",
    "bench train": "--config --steps --device --set --json --verbose --quiet --help",
    "prepare": "PHOTOS... OUT --flat --size --margin --min-size --min-sharpness --min-similarity "
    "--mesh-teacher --iris-teacher --identity-teacher --workers --device --json --verbose --quiet "
    "--help",
}
HEAVY = {"torch", "torchvision", "kornia", "cv2", "av", "insightface", "onnx", "PIL", "numpy"}


def taken(command: click.Command, name: str = "") -> dict[str, str]:
    """Command -> its arguments and long options, in the order of ``--help``."""
    context = click.Context(command, info_name=name, help_option_names=["-h", "--help"])
    words = []
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Argument):
            words.append(parameter.make_metavar(context))
        names = [*parameter.opts, *parameter.secondary_opts]
        words += [each for each in names if each.startswith("--")]
    found = {name: " ".join(words)}
    for sub, each in getattr(command, "commands", {}).items():
        found |= taken(each, f"{name} {sub}".strip())
    return found


def test_options_are_a_decision():
    assert taken(commands) == OPTIONS


def test_help_of_every_command_loads_nothing_heavy():
    code = (
        "import json, sys; from faceswap.cli import main\n"
        f"for name in {list(OPTIONS)!r}: assert main([*name.split(), '--help']) == 0\n"
        "print(json.dumps([name.split('.')[0] for name in sys.modules]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("Usage: faceswap") == len(OPTIONS)
    loaded = set(json.loads(run.stdout.splitlines()[-1]))
    assert "click" in loaded
    assert loaded & (HEAVY | {"pydantic", "tqdm"}) == set()


def test_help_is_quick():
    """Seconds of processor time, the best of three: what other programs do does not count."""
    spent = []
    for _ in range(3):
        before = os.times()
        subprocess.run(
            [sys.executable, "-m", "faceswap", "--help"], capture_output=True, check=True
        )
        after = os.times()
        spent.append(sum(after[2:4]) - sum(before[2:4]))  # of children
    assert min(spent) < 0.5


def test_without_a_command_it_shows_help(capsys):
    assert main([]) == 0
    assert "Commands:" in capsys.readouterr().out


# ------------------------------------------------------------------------------- image


class Call:
    """What `faceswap image` handed to the library, in place of the library."""

    config: SwapConfig
    source: object
    target: str
    output: str
    given: dict[str, object]
    error: BaseException | None = None
    warnings: tuple[str, ...] = ()

    def __call__(self, swapper, source, target, output=None, **given):
        self.source, self.target, self.output, self.given = source, target, output, given
        logging.getLogger("faceswap.photo").warning("two\nlines")
        if self.error:
            raise self.error
        seconds = {"detect": 0.25, "total": 1.25}
        picture = torch.zeros(3, 1, 1, dtype=torch.uint8)
        return ImageReport(str(output), 3, 1, "lite", "cpu", seconds, self.warnings, picture)


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Runs in a folder with files a.jpg to d.jpg, which nobody reads."""
    call = Call()
    for name in "abcd":
        (tmp_path / f"{name}.jpg").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        faceswap.swap.Swapper, "from_config", lambda config: setattr(call, "config", config)
    )
    monkeypatch.setattr(faceswap.photo, "swap_image", call)
    return call


@pytest.mark.parametrize(
    ("words", "setting", "value"),
    [
        ("", "pack", "lite"),
        ("--pack ghost-2", "pack", "ghost-2"),
        ("--swapper runs/it's:#1/a.safetensors", "swapper", "runs/it's:#1/a.safetensors"),
        ("--swapper 12", "swapper", "12"),
        ("--device cuda:1", "device", "cuda:1"),
        ("--precision bf16", "precision", "bf16"),
        ("--mask ghost", "mask.kind", "ghost"),
        ("", "mask.kind", None),
        ("--alpha 0.4", "blend.alpha", 0.4),
        ("--color-match", "blend.color_match", 1.0),
        ("--color-match --set blend.color_match=0.3", "blend.color_match", 0.3),
        ("--config my.yaml", "blend.color_match", 0.7),
        ("--config my.yaml --no-color-match", "blend.color_match", 0.0),
        ("--config my.yaml", "restorer.enabled", True),
        ("--config my.yaml --no-restore", "restorer.enabled", False),
        ("--restore", "restorer.enabled", True),
        ("--set mask.feather=0.1 --set mask.feather=0.2", "mask.feather", 0.2),
    ],
)
def test_options_reach_the_configuration(call, tmp_path, words, setting, value):
    (tmp_path / "my.yaml").write_text("restorer: {enabled: true}\nblend: {color_match: 0.7}\n")
    assert main(["image", "a.jpg", "b.jpg", *words.split()]) == 0
    found = call.config
    for part in setting.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def selection(call):
    return call.given["select"].face, call.given["select"].all_faces


@pytest.mark.parametrize(
    ("words", "look", "value"),
    [
        ("a.jpg b.jpg", lambda call: (call.source, call.target), ("a.jpg", "b.jpg")),
        ("a.jpg b.jpg", lambda call: call.output, "b_swapped.jpg"),
        ("a.jpg b.jpg -o x.png", lambda call: call.output, "x.png"),
        ("a.jpg b.jpg", selection, (None, False)),
        ("a.jpg b.jpg --all-faces", selection, (None, True)),
        ("a.jpg b.jpg --face 1", selection, (0, False)),
        ("a.jpg b.jpg --face 3", selection, (2, False)),
        ("a.jpg b.jpg --target-ref c.jpg", lambda call: call.given["reference"], "c.jpg"),
        ("a.jpg b.jpg", lambda call: call.given["reference"], None),
        ("a.jpg b.jpg", lambda call: call.given["source_face"], None),
        ("a.jpg b.jpg --source-face 1", lambda call: call.given["source_face"], 0),
        (
            "a.jpg b.jpg --source-extra c.jpg --source-extra d.jpg",
            lambda call: call.given["extra"],
            ("c.jpg", "d.jpg"),
        ),
        ("a.jpg b.jpg --quality 80", lambda call: call.given["quality"], 80),
        ("a.jpg b.jpg", lambda call: call.given["overwrite"], False),
        ("a.jpg b.jpg -o c.jpg --overwrite", lambda call: call.given["overwrite"], True),
        (
            "--map a.jpg=c.jpg --map d.jpg=a.jpg b.jpg",
            lambda call: (call.source, call.target),
            ((("a.jpg", "c.jpg"), ("d.jpg", "a.jpg")), "b.jpg"),
        ),
    ],
)
def test_arguments_reach_the_call(call, words, look, value):
    assert main(["image", *words.split()]) == 0
    assert look(call) == value


@pytest.mark.parametrize(
    ("target", "output"),
    [
        ("b.jpg", "b_swapped.jpg"),
        ("some/where.there/b.c.JPEG", "some/where.there/b.c_swapped.JPEG"),
        ("/abs/b.gif", "/abs/b_swapped.png"),
        ("b", "b_swapped.png"),
        ("-b.tif", "-b_swapped.tif"),
    ],
)
def test_default_output(target, output):
    assert swapped_name(target) == output


def test_map_cuts_between_two_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a=b.jpg", "c.jpg"):
        (tmp_path / name).touch()
    assert split("x.jpg=y.jpg") == ("x.jpg", "y.jpg")
    assert split("a=b.jpg=c.jpg") == ("a=b.jpg", "c.jpg")
    assert split("c.jpg=a=b.jpg") == ("c.jpg", "a=b.jpg")
    assert split("x=y=z") == ("x", "y=z")  # neither way two files: the error names what is missing


def test_json_is_all_there_is_on_stdout(call, capsys):
    call.warnings = ("the alpha was dropped",)
    assert main(["image", "a.jpg", "b.jpg", "--json", "-v"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "output": "b_swapped.jpg",
        "faces_seen": 3,
        "faces_swapped": 1,
        "pack": "lite",
        "device": "cpu",
        "seconds": {"detect": 0.25, "total": 1.25},
        "warnings": ["the alpha was dropped"],
        "jpeg": "",
    }
    assert out.count("\n") == 1
    assert err.splitlines() == [
        "faceswap: warning: two lines",
        "faceswap: warning: the alpha was dropped",
        "faceswap: detect 0.25 s, total 1.25 s",
    ]


def test_report_in_a_line(call, capsys):
    assert main(["image", "a.jpg", "b.jpg"]) == 0
    out, err = capsys.readouterr()
    assert out == "b_swapped.jpg: 1 of 3 faces swapped (lite on cpu, 1.2 s)\n"
    assert err == "faceswap: warning: two lines\n"


def test_quiet(call, capsys):
    assert main(["image", "a.jpg", "b.jpg", "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["image", "a.jpg", "b.jpg"]) == 0  # and only this once
    assert capsys.readouterr().err


def test_progress_on_a_terminal_only(call, capsys, monkeypatch):
    assert main(["image", "a.jpg", "b.jpg"]) == 0
    assert "..." not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["image", "a.jpg", "b.jpg"]) == 0
    shown = capsys.readouterr().err.split("\r\x1b[K")
    assert [line for line in shown if line] == [
        *("loading models ...", "swapping ...", "faceswap: warning: two lines\n")
    ]
    assert main(["image", "a.jpg", "b.jpg", "-q"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NoFaceError("b.jpg: no\nface"), 1),
        (DeviceError("no\nface"), 1),
        (ConfigError("no\nface"), 2),
    ],
)
def test_errors_are_one_line(call, capsys, error, code):
    call.error = error
    assert main(["image", "a.jpg", "b.jpg", "-q", "--json"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "faceswap: " + " ".join(str(error).split()) + "\n"


def test_twice_verbose_says_where_from(call, capsys):
    call.error = NoFaceError("no face")
    assert main(["image", "a.jpg", "b.jpg", "-vv"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert "Traceback (most recent call last):" in lines
    assert lines[-1] == "faceswap: no face"


def test_interrupted(call, capsys):
    call.error = KeyboardInterrupt()
    assert main(["image", "a.jpg", "b.jpg", "-q"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "faceswap: interrupted"


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError("a bug"), ValueError("a bug")])
def test_bugs_keep_their_traceback(call, error):
    call.error = error
    with pytest.raises(type(error), match="a bug"):
        main(["image", "a.jpg", "b.jpg"])


# ----------------------------------------------------------------------------- weights


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FACESWAP_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


def test_weights_list(folder, capsys):
    assert main(["weights", "list"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "role", "size", "present", "licence", "terms"]
    assert [line.split()[0] for line in lines] == list(faceswap.weights.entries())
    line = next(line for line in lines if line.startswith("centerface"))
    assert line.split()[1:6] == ["detector", "7.3", "MB", "yes", "MIT"]
    assert faceswap.weights.entry("centerface").terms in line


def test_weights_list_json(folder, capsys):
    path = faceswap.weights.path_of(faceswap.weights.entry("ghost-eyes"))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"12345")
    assert main(["weights", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["weights"]}
    assert rows["ghost-eyes"]["present"] is True
    assert rows["ghost-eyes"]["size"] == 5
    assert rows["ghost-swapper-2"]["present"] is False
    assert rows["centerface"]["licence"] == "MIT"


def test_weights_commercial_only(folder, capsys):
    assert main(["weights", "list", "--commercial-only", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["weights"]
    assert {row["name"] for row in rows} == {
        name for name, item in faceswap.weights.entries().items() if item.commercial
    }
    assert 0 < len(rows) < len(faceswap.weights.entries())


def test_weights_where(folder, capsys):
    assert main(["weights", "where"]) == 0
    assert capsys.readouterr().out == f"{folder}\n"


def test_weights_import_and_verify(folder, tmp_path, capsys):
    (tmp_path / "mine.pth").write_bytes(b"weights")
    assert main(["weights", "import", str(tmp_path / "mine.pth"), "--as", "ghost-eyes"]) == 0
    path = faceswap.weights.path_of(faceswap.weights.entry("ghost-eyes"))
    out, err = capsys.readouterr()
    assert out == f"ghost-eyes: {path}\n"
    assert err.startswith("faceswap: warning: no checksum of ghost-eyes is published")
    assert main(["weights", "verify", "ghost-eyes"]) == 0
    assert capsys.readouterr().out == f"ghost-eyes: good, {path}\n"


def test_weights_verify_goes_on_after_a_bad_file(folder, monkeypatch, capsys):
    def verify(name):
        if name == "ghost-identity":
            raise WeightError(f"{name} is damaged")
        return folder / name

    monkeypatch.setattr(faceswap.weights, "verify", verify)
    assert main(["weights", "verify", "ghost-2"]) == 1
    out, err = capsys.readouterr()
    assert err == "faceswap: ghost-identity is damaged\n"
    good = [name for name in faceswap.weights.expand("ghost-2") if name != "ghost-identity"]
    assert [line.split(":")[0] for line in out.splitlines()] == good


def test_weights_fetch_takes_packs_and_files(folder, monkeypatch, capsys):
    def fetch(name, *, progress):
        progress(10, 0)
        progress(5, 20)  # a resumed file may turn out to be another one
        return folder / name

    monkeypatch.setattr(faceswap.weights, "fetch", fetch)
    assert main(["weights", "fetch", "ghost-2", "ghost-eyes", "ghost-identity"]) == 0
    out, err = capsys.readouterr()
    names = [*faceswap.weights.expand("ghost-2"), "ghost-eyes"]
    assert out.splitlines() == [f"{name}: {folder / name}" for name in names]
    assert err == ""  # no terminal, no bar


# ------------------------------------------------------------------------ train, doctor


@pytest.fixture
def trained(tmp_path, monkeypatch):
    calls = []

    def run_training(config, out, **given):
        given.pop("report")("a line")
        calls.append((config, str(out), given))
        return 7

    monkeypatch.setattr(faceswap.train.run, "run_training", run_training)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text("task: swapper\nsteps: 9\nlosses: {rec: 1, tone: 2}\n")
    return calls


def test_train(trained, capsys):
    words = "--data x --out o --resume --max-minutes 3 --device cpu --set losses.tone=5"
    words += " --set lr=0.1 --init-from G.pth --init-from D.pth"
    assert main(["train", "--config", "my.yaml", *words.split()]) == 0
    [(config, out, given)] = trained
    assert (config.task, config.steps, config.data, config.lr) == ("swapper", 9, "x", 0.1)
    assert (config.losses.rec, config.losses.tone) == (1, 5)
    assert config.init == ("G.pth", "D.pth")
    assert out == "o"
    assert given == {"device": "cpu", "resume": True, "max_minutes": 3}
    assert capsys.readouterr() == ("o: step 7 of 9\n", "")


def test_train_defaults(trained, capsys):
    assert main(["train", "--config", "my.yaml", "-v", "--device", "cpu"]) == 0
    [(config, out, given)] = trained
    assert (config.data, out) == ("data/prepared", "runs/my")
    assert given == {"device": "cpu", "resume": False, "max_minutes": float("inf")}
    assert capsys.readouterr().err == "faceswap: a line\n"


def test_train_says_nothing_where_nobody_listens(trained, capsys, monkeypatch):
    """With -q, and in all processes of torchrun but the first."""
    assert main(["train", "--config", "my.yaml", "-q"]) == 0
    monkeypatch.setenv("RANK", "1")
    assert main(["train", "--config", "my.yaml", "-v"]) == 0
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    assert main(["train", "--config", "my.yaml", "--device", "cpu"]) == 0
    assert capsys.readouterr() == ("runs/my: step 7 of 9\n", "")


def test_prepare(tmp_path, capsys, monkeypatch):
    report = PrepareReport("out", 9, 6, 2, {"no face": 2, "small": 1}, 1.0)
    monkeypatch.setattr(faceswap.train.prepare, "prepare", lambda *_, **given: report)
    words = ["prepare", "photos", "out", "--device", "cpu"]
    assert main(words) == 0
    line = "out: 6 faces of 2 people from 9 photos (dropped: 2 no face, 1 small; which and why: "
    assert capsys.readouterr() == (f"{line}out/report.json)\n", "")
    assert main([*words, "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main([*words, "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config", "nope.yaml"], "nope.yaml: no such configuration"),
        (["--config", "my.yaml", "--set", "stepz=3"], "did you mean steps?"),
        (["--config", "my.yaml", "--device", "gpu"], "expected auto, cpu, cuda or cuda:INDEX"),
        ([], "--config"),
    ],
)
def test_train_refuses(trained, capsys, words, said):
    assert main(["train", *words]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert trained == []


def test_doctor(folder, monkeypatch, capsys):
    monkeypatch.setattr(faceswap.weights, "present", lambda name: not name.startswith("ghost"))
    monkeypatch.setattr(faceswap.weights, "resolve", Path)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[4:18].strip() for line in lines] == [
        *("python", "torch", "cuda", "ffmpeg", "jpeg", "weights"),
        *(f"pack {name}" for name in faceswap.weights.packs()),
    ]
    found = {line[4:18].strip(): line for line in lines}
    assert torch.__version__ in found["torch"]
    assert found["cuda"].startswith("ok" if torch.cuda.is_available() else "--  cuda          no: ")
    assert found["pack lite"].startswith("ok")
    assert found["pack ghost-2"].startswith("--")
    assert found["pack ghost-2"].endswith("; faceswap weights fetch ghost-2")


def test_doctor_finds_the_default_pack_missing(folder, monkeypatch, capsys):
    monkeypatch.setattr(faceswap.weights, "present", lambda name: name != "lite-swapper")
    monkeypatch.setattr(faceswap.weights, "resolve", Path)
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["pack lite"]["ok"] is False
    assert "lite-swapper" in found["pack lite"]["text"]
    assert found["pack ghost-1"]["ok"] is True


def test_doctor_reads_the_files_through(folder, monkeypatch, capsys):
    entry = faceswap.weights.entry

    def other(name):
        item = entry(name)
        return replace(item, sha256="0" * 64) if name == "lite-landmarks" else item

    monkeypatch.setattr(faceswap.weights, "entry", other)
    assert main(["doctor"]) == 1
    (line,) = (each for each in capsys.readouterr().out.splitlines() if "pack lite" in each)
    assert line.startswith("!!")
    assert "is not lite-landmarks: its sha256 is" in line
    assert line.endswith("; reinstall faceswap")


# ------------------------------------------------------------------------------ origin


def camera_photo(path):
    """A photo that a camera has marked as its own, with a name that means mischief."""
    term = "http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(
        path, xmp=xmp_packet(Provenance(term, "Cam\x9b31m 1"))
    )


def test_origin_says_what_files_say(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_image("swap.png", torch.zeros(3, 8, 8, dtype=torch.uint8))
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("plain.jpg")
    camera_photo("camera.jpg")
    assert main(["origin", "swap.png", "plain.jpg", "camera.jpg"]) == 0
    lines = capsys.readouterr().out.splitlines()
    term = "compositeWithTrainedAlgorithmicMedia"
    assert lines[0].startswith(f"swap.png: synthetic in parts ({term}), made with faceswap ")
    assert lines[1] == "plain.jpg: no mark"
    assert lines[2] == "camera.jpg: taken by a camera (digitalCapture), made with Cam?31m 1"


def test_origin_of_what_is_not_there(tmp_path, monkeypatch, capsys):
    """Each other file is told all the same."""
    monkeypatch.chdir(tmp_path)
    write_image("swap.png", torch.zeros(3, 8, 8, dtype=torch.uint8))
    assert main(["origin", "nowhere.jpg", "swap.png", ".", "--json"]) == 1
    told = capsys.readouterr()
    assert list(json.loads(told.out)) == ["swap.png"]
    assert json.loads(told.out)["swap.png"]["source_type"].endswith("AlgorithmicMedia")
    assert [line.split(":")[0] for line in told.err.splitlines()] == ["faceswap", "faceswap"]
    assert "nowhere.jpg" in told.err
