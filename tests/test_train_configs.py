"""The shipped training configurations are complete, say what they are for, and fit their code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from faceswap.config import load_config
from faceswap.models import build, without_initial_weights
from faceswap.train.config import (
    SCHEMAS,
    AeiConfig,
    DistillConfig,
    SwapRunConfig,
    load_train_config,
)
from faceswap.train.run import SHARED, TASKS
from faceswap.weights import entries

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(
    path for path in FOLDER.glob("*.yaml") if "task" in yaml.safe_load(path.read_text())
)
NAMES = {path.stem for path in CONFIGS}


def test_all_of_the_article_are_there():
    wanted = "aei_1blk aei_2blk aei_3blk aei_2blk_linknet aei_2blk_resnet aei_2blk_fpn "
    wanted += "aei_2blk_eyes distill_1blk lite_swapper lite_identity lite_landmarks "
    wanted += "lite_detector lite_occlusion debug restorer"
    assert set(wanted.split()) <= NAMES


def test_every_task_has_a_schema():
    assert set(TASKS) == set(SCHEMAS)
    assert set(SHARED) < set(TASKS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_loads_and_says_what_it_is(path):
    config = load_train_config(path)
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    said = " ".join(head)
    assert path.read_text().startswith("#")
    assert any(word in said for word in ("GPU", "H100", "CPU")), "which hardware"
    assert any(word in said for word in ("minute", "hour", "day", "tenth of stage")), "how long"
    assert all(len(line) <= 100 for line in path.read_text().splitlines())
    # Reading back what a run writes beside its output gives the same settings.
    again = SCHEMAS[config.task].model_validate(
        yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))
    )
    assert again == config
    assert load_config(path, schema=type(config)) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_its_network_can_be_built(path):
    config = load_train_config(path)
    with torch.device("meta"), without_initial_weights():
        if isinstance(config, SwapRunConfig):
            network = build("aei", **{**config.model.model_dump(), "embedding_size": 512})
            assert network.size == config.model.size
        else:
            arch = {"swapper": "aei_guided"}.get(config.task, config.task)
            build(arch, **(config.model if isinstance(config.model, dict) else dict(config.model)))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_weights_it_names_are_known(path):
    config = load_train_config(path)
    if isinstance(config, SwapRunConfig):
        assert all(name in entries() for name in config.encoders)
    if isinstance(config, DistillConfig):
        assert config.teacher in entries()


def test_variants_differ_from_the_main_model_in_one_thing():
    main = load_train_config(FOLDER / "aei_2blk.yaml")
    for name in ("aei_1blk", "aei_3blk", "aei_2blk_linknet", "aei_2blk_resnet", "aei_2blk_fpn"):
        other = load_train_config(FOLDER / f"{name}.yaml")
        assert isinstance(other, AeiConfig)
        assert other.model_copy(update={"model": main.model}) == main
        changed = other.model.model_dump().items() ^ main.model.model_dump().items()
        assert len({key for key, _ in changed}) == 1, name
