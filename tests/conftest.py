"""Fixtures that more than one test file needs."""

from __future__ import annotations

import pytest

from faceswap import weights


@pytest.fixture(scope="session")
def lite_pack() -> weights.Pack:
    """The lite pack, for tests that swap for real; they are left out where it is not there."""
    pack = weights.pack("lite")
    if not all(weights.present(name) for name in pack.weights):
        pytest.skip("lite pack not trained yet")
    return pack
