"""Jobs over fresh processes, results in order: every process has an OpenGL context and a cache of its own."""

import collections
import concurrent.futures
import io
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, cast

import numpy as np
from tqdm import tqdm

from octo_integration.simulators.protocol import Environment

Job = TypeVar("Job")
Result = TypeVar("Result")
E = TypeVar("E", bound=Environment)

# 4:4:4, because the goal is a few coloured pixels and half the colour resolution would smear it.
JPEG_QUALITY = 75
JPEG_SUBSAMPLING = 0


def parallel_map(
    function: Callable[[Job], Result], jobs: Iterable[Job], *, workers: int, label: str, unit: str
) -> Iterator[Result]:
    """function(job) for every job, in order, with a progress bar; `function` must be importable.

    Where the consumer stops early, as on a signal, the processes are ended where they are: what they write must be
    whole or not there.

    Raises:
      ChildProcessError: a process died. Whatever `function` raises.
    """
    others = multiprocessing.active_children()
    with concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_ignore_interrupts
    ) as pool:
        waiting = collections.deque(pool.submit(function, job) for job in jobs)
        try:
            with tqdm(total=len(waiting), desc=label, unit=unit) as bar:
                while waiting:
                    yield waiting.popleft().result()
                    bar.update()
        except concurrent.futures.process.BrokenProcessPool:
            raise ChildProcessError("a worker process died (out of memory?); try again with fewer workers.") from None
        except BaseException:
            for process in multiprocessing.active_children():
                if process not in others:
                    process.terminate()  # an episode takes a minute; the pool would wait for it
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _ignore_interrupts() -> None:
    # Ctrl-C reaches the whole process group; the parent alone decides what follows.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


_BUILT: dict[Any, Any] = {}


def environment(make: Callable[..., E], task: str, image_size: int, *, keep: int | None = None) -> E:
    """This process's environment of a task, built once; the process's end closes it.

    Args:
      keep: how many may be open, the oldest are closed; default: any number. LIBERO's take half a gigabyte each.
    """
    key = make, task, image_size
    if key not in _BUILT:
        while keep is not None and len(_BUILT) >= keep:
            _BUILT.pop(next(iter(_BUILT))).__exit__(None, None, None)
        _BUILT[key] = make(task, image_size=image_size)
    return cast(E, _BUILT[key])


def encode_jpeg(image: np.ndarray) -> bytes:
    """uint8[H, W, 3] as JPEG."""
    import PIL.Image  # with the simulator's other libraries, in the extra `sim`

    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=JPEG_SUBSAMPLING, optimize=True)
    return buffer.getvalue()
