"""`maps-vla serve`."""

import asyncio
import dataclasses
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from octo_integration.cli.devices import say_devices
from octo_integration.common.limits import Limit, check_limits
from octo_integration.config import FinetuneConfig, read_config
from octo_integration.data import mapping, standardize
from octo_integration.policy.policy import Policy, check_dataset
from octo_integration.policy.trained import Trained, checkpoint_of, fingerprint, load_run
from octo_integration.serve.key import read_key
from octo_integration.serve.names import PROTOCOL, spellings
from octo_integration.serve.server import Limits, Service, run_server

LOCAL = ("127.0.0.1", "::1", "localhost")
NONE = "none"


@dataclasses.dataclass(frozen=True)
class Options:
    """Answers robots over a websocket with the policy of a fine-tuned run: openpi's protocol, which its clients speak.

    maps-vla serve --run runs/maps --port 8000

    A request has an image of every camera of the run, its proprio and a prompt: image_primary, image_wrist, proprio,
    prompt, or as openpi's LIBERO example calls them. GET /healthz says that it is up. Ctrl-C or SIGTERM ends it.
    """

    run: str
    """Run directory of finetune."""
    port: int = 8000
    """TCP port; 0: any that is free."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0: all of this machine, for robots elsewhere."""
    step: int | None = None
    """Step of the checkpoint; default: the latest."""
    dataset: str | None = None
    """Of a run on a mixture, the data set in whose units the robot is."""
    names: str | None = None
    """JSON file, {"their/name": "image_primary", ...}: what your client calls the entries of an observation."""
    standardize: str | None = None
    """Standardisation of the data set whose convention the actions have, its gripper say: a name, or module:NAME;
    none: as standardised episodes have them. Default: the run's."""
    api_key_file: str | None = None
    """File with the key that clients must send."""

    def __post_init__(self) -> None:
        """Refuses a port that there cannot be."""
        check_limits(self, {"port": Limit(lambda x: 0 <= x < 2**16, "a number from 0 to 65535")})


def run(config: Options) -> int:
    """Serves until it is told to stop."""
    run_dir = Path(config.run)
    own = own_actions(config, read_config(run_dir))
    check_dataset(run_dir, config.dataset)
    key = None if config.api_key_file is None else read_key(Path(config.api_key_file))
    say_devices()
    trained = load_run(run_dir, config.step)
    policy = Policy(trained, config.dataset)
    names = spellings(policy.inputs, None if config.names is None else Path(config.names))
    print("compiling ...", flush=True)
    blank = {n: np.zeros(shape, np.float32 if n == "proprio" else np.uint8) for n, shape in policy.inputs.items()}
    chunk = policy(blank, "")
    metadata = {**_about(config, trained), "action_dim": chunk.shape[1], "names": names}
    service = Service(lambda: Policy(trained, config.dataset), own, names, metadata)
    if policy.looks_back:
        print(f"it looks back {policy.looks_back} moments: clients must send reset where an episode begins", flush=True)
    if config.host not in LOCAL and key is None:
        print(f"anyone who reaches {config.host} can ask; --api-key-file asks for a key", flush=True)
    asyncio.run(_serve(service, config, key))
    return 0


async def _serve(service: Service, config: Options, key: str | None) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    def started(port: int) -> None:
        print(f"serving {config.run} at ws://{config.host}:{port}; Ctrl-C ends it", flush=True)

    await run_server(service, config.host, config.port, stop, Limits(api_key=key), started)


def _about(config: Options, trained: Trained) -> dict[str, Any]:
    """What clients are told."""
    data = trained.config.data
    return {
        "protocol": PROTOCOL,
        "run": Path(config.run).resolve().name,
        "step": checkpoint_of(Path(config.run), config.step),
        "weights": fingerprint(trained.params),
        "dataset": config.dataset,
        "cameras": list(data.cameras),
        "image_size": data.pixels,
        "window": data.window,
        "chunk": data.chunk,
    }


def own_actions(config: Options, run: FinetuneConfig) -> Callable[[np.ndarray], np.ndarray]:
    """Standardised actions -> those that the robot takes. A module that only the run names is not imported.

    Raises:
      ValueError: the run does not tell.
    """
    name = config.standardize or run.data.standardize
    if name == NONE:
        return lambda actions: actions
    if config.standardize is None and (run.data.mixture is not None or ":" in name):
        what = "a mixture" if run.data.mixture is not None else f"{name}, which a file alone may not make us import"
        raise ValueError(
            f"the run was trained on {what}; give --standardize, the standardisation of the data set whose convention "
            f"the actions shall have, or --standardize {NONE}."
        )
    if config.standardize is None and mapping.is_mapping(name):
        name = str(Path(config.run) / mapping.COPY)
    return standardize.find(name).own
