"""How tests are compiled, and in which order files are run."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

HERE = Path(__file__).parent
# The files that take minutes, first: a process that began with one of them last would end long after the others.
LONGEST = (
    "benchmarks/generalization/test_smoke.py",
    "octo_integration/processes/test_processes.py",
    "octo_integration/processes/test_lifeline.py",
    "octo_integration/train/test_loop.py",
    "octo_integration/train/test_crashes.py",
    "octo_integration/state/test_sharding.py",
    "benchmarks/generalization/test_train.py",
    "octo_integration/train/test_full_models.py",
    "maps_optax/test_sharding.py",
    "test_examples.py",
    "octo_integration/test_soak.py",
    "octo_integration/cli/test_environment.py",
    "octo_integration/state/test_lora.py",
    "test_paper.py",
    "octo_integration/pretrain/test_pretrain.py",
    "octo_integration/cli/test_import_weights.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With xdist's --no-loadscope-reorder this is the order in which files are given out."""
    rank = {HERE / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Processes that tests start keep what they compile for each other: many run the same program."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
        yield


@pytest.fixture(scope="module", autouse=True)
def quick_compiler(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compiles the programs of a module, and of the processes that it starts, without most optimisations.

    As JAX's own tests do. Compiling is most of what tests of small models take, and this halves it. What the process
    has compiled with them is forgotten, for it differs in the last bit. The library's own tests do without.
    """
    if request.path.parent == HERE / "maps_optax":
        yield
        return
    jax.clear_caches()
    before = jax.config.read("jax_disable_most_optimizations")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()
