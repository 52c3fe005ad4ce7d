"""What the benchmarks report holds for what they ran; how fast that was is not tested."""

import json

import pytest
import torch
from click.testing import CliRunner

from faceswap.bench.image import bench_image, format_image_bench
from faceswap.bench.material import photo, rule_made, write_clip
from faceswap.bench.model import bench_model, format_model_bench
from faceswap.bench.packs import load_swapper, network
from faceswap.bench.train import bench_train, format_train_bench
from faceswap.bench.video import bench_video, format_video_bench, shares
from faceswap.cli import commands
from faceswap.config import SwapConfig, VideoConfig
from faceswap.errors import ConfigError
from faceswap.faces.detect import VIDEO_SIDES
from faceswap.media.reader import VideoReader
from faceswap.models import build, save_model
from faceswap.models.fused import FusedAEINet
from faceswap.train.config import SCHEMAS, AeiConfig, load_train_config

CPU = {"device": "cpu"}


@pytest.fixture(autouse=True)
def _no_files_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("FACESWAP_WEIGHTS", str(tmp_path / "none"))


@pytest.mark.parametrize("faces", [1, 3])
def test_pictures_have_as_many_faces_as_asked(faces):
    swapper, stand_ins = load_swapper(SwapConfig(**CPU))
    assert stand_ins == []
    for moment in (0.0, 1.3):
        found = swapper.detect(photo(faces, (720, 1280), moment=moment)[None])
        assert len(found) == faces
    still, later = photo(1, (360, 640)), photo(1, (360, 640), moment=1.0)
    assert not torch.equal(still, later), "heads move"
    assert torch.equal(still, photo(1, (360, 640))), "and always in the same way"


def test_clips_are_as_asked(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", 2, size=(90, 160), frames=21, rate=30)
    with VideoReader(path) as reader:
        assert (reader.info.width, reader.info.height, reader.info.rate) == (160, 90, 30)
        assert sum(len(batch) for batch in reader) == 21


def test_video_bench_adds_up():
    config = VideoConfig(**CPU, batch_size=4)
    result = bench_video(config, size=(180, 320), seconds=0.6, first_frame=False)
    assert result["frames"] == result["faces_swapped"] == 15
    assert result["fps"] == pytest.approx(15 / result["seconds"])
    assert {"decode", "detect", "landmarks", "swap", "mask", "paste", "encode"} <= set(
        result["stages"]
    )
    threads = {"decode", "encode"}
    busy = sum(ms for stage, ms in result["stages"].items() if stage not in threads)
    assert busy * 15 / 1000 <= result["seconds"], "the device thread does one thing at a time"
    assert all(0 <= share <= 1 for share in result["waits"].values())
    assert result["waits"]["device_for_reader"] > 0
    assert result["peak_rss_mib"] > 100
    assert result["peak_vram_mib"] is None
    text = format_video_bench(result)
    assert "15 frames of 320x180" in text
    assert json.loads(json.dumps(result)) == result


def test_shares_are_of_the_whole_time():
    seconds = {"total": 10.0, "decode": 2.0, "encode": 9.0, "wait_decode": 0.5, "wait_encode": 3.0}
    assert shares(seconds) == pytest.approx(
        {"reader": 0.8, "writer": 0.1, "device_for_reader": 0.05, "device_for_writer": 0.3}
    )


def test_absent_weights_have_stand_ins_that_are_named():
    """ghost-2 in its own size: the networks that matter are built, nothing claims to be real."""
    model, line = network("ghost-swapper-2")
    assert "rule" in line
    assert sum(p.numel() for p in model.parameters()) > 150e6
    assert model.size == 256
    with pytest.raises(ConfigError, match="no network of ours"):
        network("insightface-landmarks")


def test_a_pack_with_stand_ins_swaps(monkeypatch):
    small = {
        "ghost-swapper-2": lambda: build("aei", size=64, width=0.125, embedding_size=16),
        "ghost-identity": lambda: build(
            "iresnet100", layers=(1, 1, 1, 1), embedding_size=16, width=0.125
        ),
    }
    monkeypatch.setattr(
        "faceswap.bench.packs.network", lambda name: (rule_made(small[name]()), f"{name}: by rule")
    )
    swapper, stand_ins = load_swapper(SwapConfig(pack="ghost-2", **CPU), video=True)
    assert len(stand_ins) == 4
    assert any("ghost-swapper-2" in line for line in stand_ins)
    assert isinstance(swapper.generator, FusedAEINet)
    assert swapper.detector.sides == VIDEO_SIDES
    result = bench_image(SwapConfig(pack="ghost-2", **CPU), repeats=1)
    assert result["cold"] is None, "no command runs with stand-ins"
    assert [row["swapped"] for row in result["photos"]] == [1, 4]
    assert result["fps"] == pytest.approx(1 / result["photos"][0]["seconds"])
    assert result["stages"]["swap"] > 0
    text = format_image_bench(result)
    assert "ghost-swapper-2: by rule" in text
    assert "not measured" in text


def test_model_bench_compares_outputs(tmp_path):
    torch.manual_seed(0)
    args = {"size": 64, "width": 0.125, "embedding_size": 16}
    path = save_model(tmp_path / "tiny.safetensors", rule_made(build("aei", **args)), "aei", args)
    result = bench_model(str(path), batches=(1, 2), device="cpu", repeats=1)
    assert [row["batch"] for row in result["networks"]] == [1, 2]
    for row in result["networks"]:
        assert 0 < row["max_difference"] < 1e-3, "two ways to the same picture"
        assert row["speedup"] == pytest.approx(row["plain_ms"] / row["fused_ms"])
        assert row["fps"] == pytest.approx(1000 * row["batch"] / row["fused_ms"])
        assert row["share_of_peak"] is None
    first, second = result["networks"]
    assert first["gflop"] == pytest.approx(second["gflop"]), "of one face"
    assert result["stand_ins"] == []
    assert "| 2 |" in format_model_bench(result)


def test_model_bench_knows_the_networks_of_a_pack():
    result = bench_model("lite", batches=(1,), device="cpu", repeats=1)
    for row in result["networks"]:
        by_engine = row["network"] in ("lite-landmarks", "lite-swapper")
        assert (row["engine_ms"] is not None) == by_engine, row["network"]
        assert row["max_difference"] < 1e-3, row["network"]
    names = [row["network"] for row in result["networks"]]
    assert names == ["centerface", "lite-landmarks", "lite-identity", "lite-swapper"]
    assert result["stand_ins"] == [], "all of these are shipped"
    assert all(row["max_difference"] < 1e-2 for row in result["networks"])  # px, embeddings
    with pytest.raises(ConfigError, match="lite-swaper"):
        bench_model("lite-swaper", batches=(1,), device="cpu", repeats=1)


def test_train_bench_times_the_task_on_data_of_its_own(tmp_path):
    args = {"widths": [8, 8, 16], "depths": [1, 1, 1], "embedding_size": 16}
    encoder = save_model(tmp_path / "id.safetensors", build("identity", **args), "identity", args)
    config = AeiConfig.model_validate(
        {
            "model": {"size": 32, "width": 0.0625},
            "encoders": [str(encoder)],
            "critic_width": 0.0625,
            "batch_size": 2,
            "data": "nowhere",
        }
    )
    result = bench_train(config, steps=2, device="cpu")
    assert result["images_per_second"] == result["fps"] > 0
    spent = (result["stages"]["data"] + result["stages"]["step"]) / 1000
    assert result["fps"] == pytest.approx(2 / spent)
    assert 0 < result["waits"]["device_for_data"] < 1
    assert result["stand_ins"] == ["data: one photo in many colours"]
    assert "batch 2" in format_train_bench(result)


@pytest.mark.parametrize(
    ("task", "side", "model"),
    [
        ("swapper", 64, {"widths": [8, 8, 8, 8, 8], "size": 64}),
        ("mesh", 64, {"widths": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "rank": 8, "size": 64}),
        ("identity", 128, {"widths": [8, 8, 16], "depths": [1, 1, 1]}),
    ],
)
def test_train_bench_times_the_trainings_of_the_lite_pack(task, side, model):
    config = SCHEMAS[task].model_validate({"task": task, "model": model, "batch_size": 4})
    result = bench_train(config, steps=1, device="cpu")
    assert result["fps"] > 0
    assert f"task {task} at {side} px, batch 4, fp32" in format_train_bench(result)


def test_other_trainings_are_refused(tmp_path):
    path = tmp_path / "detector.yaml"
    path.write_text("task: detector\n")
    with pytest.raises(ConfigError, match="mesh and identity can be timed, not detector"):
        bench_train(load_train_config(path), steps=1, device="cpu")


def test_a_wrong_size_is_a_usage_error():
    run = CliRunner().invoke(commands, ["bench", "video", "--size", "720p"])
    assert run.exit_code == 2
    assert "1280x720" in run.output


def test_bench_commands_print_one_json_object(tmp_path):
    args = {"size": 32, "width": 0.125, "embedding_size": 16}
    path = save_model(tmp_path / "tiny.safetensors", rule_made(build("aei", **args)), "aei", args)
    run = CliRunner().invoke(
        commands,
        [
            "bench",
            "model",
            str(path),
            "--json",
            "-q",
            *["--batch", "1", "--repeats", "1", "--device", "cpu"],
        ],
    )
    assert run.exit_code == 0, run.output
    assert {"fps", "stages", "machine", "networks"} <= set(json.loads(run.stdout))
