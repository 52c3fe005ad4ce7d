"""Fixtures that more than one test file needs."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from faceswap import weights


@pytest.fixture(autouse=True)
def quiet_logger() -> Iterator[None]:
    """A test that runs a command leaves the package's logger as it was."""
    logger = logging.getLogger("faceswap")
    handlers, level = logger.handlers[:], logger.level
    yield
    logger.handlers = handlers
    logger.setLevel(level)


@pytest.fixture(scope="session")
def lite_pack() -> weights.Pack:
    """The lite pack, for tests that swap for real; they are left out where it is not there."""
    pack = weights.pack("lite")
    if not all(weights.present(name) for name in pack.weights):
        pytest.skip("lite pack not trained yet")
    return pack


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny networks are slower on two threads than on one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
