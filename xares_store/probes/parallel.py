"""Independent pieces of training side by side, one thread each.

Torch divides every operation among its threads and waits for the slowest. The operations of a probe take microseconds, and
where another process holds a core for a moment, each of them waits for the scheduler: 50 times slower was measured. Pieces
that compute with one thread each wait for nobody, and use both cores as well.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


class StoppedError(Exception):
    """Raised inside a piece when the others have failed or the user has interrupted."""


def side_by_side(pieces: Sequence[Callable[[threading.Event], T]], threads: int) -> list[T]:
    """Run pieces of work and return what they return, in order.

    Args:
        pieces: called with an event that is set when there is no use in going on; they raise :class:`StoppedError` then.
        threads: how many run at a time; each computes with one torch thread. With 1, pieces run here, one after another,
            and torch keeps its threads.

    Raises:
        BaseException: what the first failing piece raised, after the others have stopped.
    """
    stop = threading.Event()
    if threads <= 1 or len(pieces) <= 1:
        return [piece(stop) for piece in pieces]
    before = torch.get_num_threads()

    def run(piece: Callable[[threading.Event], T]) -> T:
        torch.set_num_threads(1)  # counts for this thread; the total is set back below
        try:
            with torch.inference_mode():
                return piece(stop)
        except BaseException:
            stop.set()
            raise

    pool = ThreadPoolExecutor(threads, thread_name_prefix="xares-train")
    try:
        futures = [pool.submit(run, piece) for piece in pieces]
        found: list[T] = []
        failure: BaseException | None = None
        for future in futures:
            try:
                found.append(future.result())
            except StoppedError:
                continue
            except BaseException as error:
                if not isinstance(error, Exception):
                    raise
                failure = failure or error
        if failure is not None:
            raise failure
        return found
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(before)
