"""What several folders of tests share."""

from pathlib import Path

import pytest

SHARED_BRIDGE = Path(__file__).parents[3] / "shared/data/bridge_dataset/1.0.0"


@pytest.fixture(scope="session")
def bridge_path() -> str:
    """The 25 real BridgeData V2 episodes, where the developers' shared data are."""
    if not SHARED_BRIDGE.is_dir():
        pytest.skip(f"{SHARED_BRIDGE} is not there: the real Bridge episodes are not tested")
    return str(SHARED_BRIDGE)
