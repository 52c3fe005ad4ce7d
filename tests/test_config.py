"""Settings: what is shipped equals the defaults, and what is mistyped is named."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

import faceswap.config
from faceswap.config import SwapConfig, VideoConfig, dump_config, load_config
from faceswap.errors import ConfigError

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.mark.parametrize(("file", "schema"), [("swap", SwapConfig), ("video", VideoConfig)])
def test_shipped_config_lists_every_default(file, schema):
    path = CONFIGS / f"{file}.yaml"
    assert load_config(path, schema=schema) == schema()
    assert yaml.safe_load(path.read_text()) == schema().model_dump(mode="json")


def test_file_then_overrides_later_wins(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("mask:\n  feather: 0.2\n  kind: ghost\nbatch_size: 3\n")
    config = load_config(path, ["mask.feather=0.1", "mask.feather=0.05", "device=cuda:1"])
    assert config == SwapConfig.model_validate(
        {"mask": {"feather": 0.05, "kind": "ghost"}, "batch_size": 3, "device": "cuda:1"}
    )


def test_empty_file_is_the_defaults(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_config(tmp_path / "empty.yaml") == SwapConfig()


def test_override_into_a_group_left_empty_in_the_file(tmp_path):
    (tmp_path / "my.yaml").write_text("mask:\n")
    assert load_config(tmp_path / "my.yaml", ["mask.grow=0.1"]).mask.grow == 0.1


def test_dump_reads_back_to_the_same(tmp_path):
    overrides = ["encode.fps=30000/1001", "end=1:30", "match.threshold=0.4", "encode.crf=18"]
    config = load_config(None, overrides, schema=VideoConfig)
    (tmp_path / "resolved.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "resolved.yaml", schema=VideoConfig) == config
    assert config.end == 90  # YAML reads 1:30 as minutes and seconds


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("mask.fether=0.1", "unknown setting 'mask.fether': did you mean mask.feather?"),
        ("feather=0.1", "did you mean mask.feather?"),
        ("encode.crf=18", "unknown setting 'encode'"),  # of a video, not of a picture
        ("mask.feather=3", "mask.feather: should be less than or equal to 0.5, got 3"),
        ("mask.feather=.nan", "mask.feather: should be a finite number"),
        ("mask.rest=0.4", "mask: rest (0.4) should lie between -shrink and grow"),
        ("detector.threshold=0", "detector.threshold: should be greater than 0, got 0"),
        ("detector.sides=[640, 8]", "detector.sides.1: should be greater than or equal to 64"),
        ("mask.kind=round", "mask.kind: should be 'adaptive' or 'ghost', got 'round'"),
        ("device=gpu", "device: should be auto, cpu, cuda or cuda:INDEX, got 'gpu'"),
        ("batch_size=0", "batch_size: should be greater than or equal to 1, got 0"),
        ("batch_size=2.5", "batch_size: should be a valid integer"),
        ("mask=3", "mask: is a group of settings"),
        ("mask.feather", "expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("mask..feather=1", "expected KEY=VALUE"),
        ("pack=[", "is not a YAML value"),
    ],
)
def test_wrong_override_is_named(override, said):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "--set" in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("encode.fps=0", "encode.fps: should be a positive number or fraction"),
        ("encode.fps=fast", "encode.fps: should be a positive number or fraction"),
        ("encode.fps=1/0", "encode.fps: should be a positive number or fraction"),
        ("encode.codec=divx", "encode.codec: should be 'h264'"),
        ("track.smoothing=2", "track.smoothing: should be less than or equal to 1"),
        ("end=2", "end (2 s) should be later than start (5 s)"),
        ("track.smoth=1", "did you mean track.smoothing?"),
    ],
)
def test_wrong_video_override_is_named(override, said):
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["start=5", override], schema=VideoConfig)
    assert said in str(caught.value)


def test_all_mistakes_are_named_with_where_they_stand(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("mask:\n  fether: 0.1\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["blend.alpha=2"])
    assert f"{path}: unknown setting 'mask.fether'" in str(caught.value)
    assert "--set: blend.alpha: should be less than or equal to 1" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"mask: [", "is not YAML"),
        (b"- a\n- b\n", "expected settings as key: value, got list"),
        (b"\xff\xfe\x00", "is not YAML"),
    ],
)
def test_unusable_file(tmp_path, content, said):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ConfigError, match="cannot read settings from"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot read settings from"):
        load_config(tmp_path)


def test_frozen():
    with pytest.raises(ValueError, match="frozen"):
        SwapConfig().pack = "ghost-2"


def test_mask_defaults_are_those_of_the_mask():
    from faceswap.ops.mask import Response

    mask = SwapConfig().mask
    told = Response(
        span=mask.span,
        growth_wide=mask.grow,
        growth_rest=mask.rest,
        growth_narrow=-mask.shrink,
        feather_wide=mask.feather * mask.sharpen,
        feather_rest=mask.feather,
        feather_narrow=mask.feather * mask.soften,
    )
    assert told == Response()


def test_every_setting_says_what_it_does():
    """A string under each field, so that reading the class is reading the manual."""
    tree = ast.parse(Path(faceswap.config.__file__).read_text())
    for group in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for field, below in zip(group.body, [*group.body[1:], None], strict=True):
            plain = isinstance(field, ast.AnnAssign) and not isinstance(field.value, ast.Call)
            if plain:
                said = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                assert said, f"{group.name}.{ast.unparse(field.target)} is not documented"
