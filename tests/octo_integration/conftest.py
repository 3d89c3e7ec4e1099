"""What several folders of tests share."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

SHARED_BRIDGE = Path(__file__).parents[3] / "shared/data/bridge_dataset/1.0.0"


@pytest.fixture(scope="session")
def bridge_path() -> str:
    """The 25 real BridgeData V2 episodes, where the developers' shared data are."""
    if not SHARED_BRIDGE.is_dir():
        pytest.skip(f"{SHARED_BRIDGE} is not there: the real Bridge episodes are not tested")
    return str(SHARED_BRIDGE)


@pytest.fixture(scope="module")
def quick_compiler() -> Iterator[None]:
    """Compiles the programs of a module, and of the processes that it starts, without most optimisations.

    As JAX's own tests do. Compiling is most of what tests of small models take, and this halves it. What the process
    has compiled with them is forgotten, for it differs in the last bit.
    """
    jax.clear_caches()
    before = jax.config.read("jax_disable_most_optimizations")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()
