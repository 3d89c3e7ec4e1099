"""A new TFDS directory, whole or not at all."""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from octo_integration.common import lock
from octo_integration.common.paths import refuse_schemes
from octo_integration.data.tf import tf, tfds

Examples = Mapping[str, Sequence[Any]]

EXAMPLES_PER_SHARD = 1000
DIRECTORY_MODE = 0o755


def check_new(out: Path) -> None:
    """Raises FileExistsError if there is anything at `out` but an empty directory."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is there already; remove it or give another --out.")


@contextlib.contextmanager
def new_dataset(
    out: Path,
    *,
    name: str,
    description: str,
    features: Any,
    splits: Sequence[str],
    expected_bytes: int,
    check: Callable[[Path], None] = lambda directory: None,
) -> Iterator[Callable[[Examples], None]]:
    """Gives a function that adds examples, {split: [example, ...]}; `out` appears when the block ends well.

    An exception, Ctrl-C or SIGTERM inside the block leaves nothing behind. Read it with
    `tfds.builder_from_directory(out)`; examples keep their order.

    Args:
      out: the directory that will hold dataset_info.json.
      features: tfds.features.FeaturesDict; images may be given as encoded bytes.
      splits: all of them, also those that stay empty.
      expected_bytes: rough size, for finding a disk too small before the work.
      check: looks at the finished directory before it gets its name; what it raises leaves nothing behind.

    Raises:
      FileExistsError: `out` is there and not empty.
      OSError: the disk is full, or cannot be written to; another process makes `out`.
    """
    refuse_schemes(out, "out")
    with lock.held(lock.beside(out), out):
        check_new(out)
        with _one_line_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(out.parent).free
            if free < expected_bytes:
                raise OSError(f"about {expected_bytes >> 20} MiB are needed, {free >> 20} are free")
            partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            with _exit_on_sigterm():
                with _one_line_errors(out):
                    identity = tfds.core.dataset_info.DatasetIdentity(
                        name=name,
                        version=tfds.core.Version("1.0.0"),
                        data_dir=os.fspath(partial),
                        module_name=__name__,
                    )
                    info = tfds.core.DatasetInfo(builder=identity, description=description, features=features)
                    writer = tfds.core.SequentialWriter(info, EXAMPLES_PER_SHARD)
                    writer.initialize_splits(list(splits))

                def add(examples: Examples) -> None:
                    with _one_line_errors(out):
                        writer.add_examples(examples)

                yield add
                with _one_line_errors(out):
                    writer.close_all()
                    check(partial)
                    partial.chmod(DIRECTORY_MODE)
                    partial.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _one_line_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        reason = error.message if isinstance(error, tf.errors.OpError) else error
        raise OSError(
            f"cannot write {out}: {reason}. Nothing was kept of it; free some space or give another --out."
        ) from None


@contextlib.contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Makes SIGTERM an exit that unwinds the stack, so that what is half-written is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
