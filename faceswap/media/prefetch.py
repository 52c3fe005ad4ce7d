"""Threads at the two ends of a pipeline: read ahead, write behind.

Queues are bounded, so memory does not depend on the length of a clip. An error of the source is
raised by the consumer's ``next``, an error of the sink by the next ``send`` or at the end of the
block. Leaving a block always ends its thread.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class _Closed(Exception):
    """Nothing more comes through the channel."""


class _Channel(Generic[T]):
    """A bounded queue that either side can close; nobody waits on a closed one."""

    def __init__(self, depth: int) -> None:
        self._items: collections.deque[T] = collections.deque()
        self._depth = depth
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: T) -> None:
        """Wait for room; raises _Closed if the other side has gone."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._depth)
            if self._closed:
                raise _Closed
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> T:
        """Wait for an item; raises _Closed when there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or bool(self._items))
            if not self._items:
                raise _Closed
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self, *, drop: bool = False) -> None:
        """Take nothing more; with ``drop``, forget what is still inside."""
        with self._changed:
            self._closed = True
            if drop:
                self._items.clear()
            self._changed.notify_all()


class Prefetch(Generic[T]):
    """Iterate over ``source`` in a thread, at most ``depth`` items ahead.

    Use it in a ``with`` block; the block may be left at any time. The source is iterated by the
    thread only, and the thread has ended when the block has, so the source can be closed then.
    """

    def __init__(self, source: Iterable[T], depth: int = 2) -> None:
        self._source = source
        self._channel: _Channel[T] = _Channel(depth)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._done: Future[None] | None = None

    def _run(self) -> None:
        try:
            for item in self._source:
                self._channel.put(item)
        except _Closed:
            pass  # the consumer has left
        finally:
            self._channel.close()

    def __enter__(self) -> Prefetch[T]:
        self._done = self._pool.submit(self._run)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._channel.close(drop=True)
        self._pool.shutdown(wait=True)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        assert self._done is not None, "use Prefetch in a with block"
        try:
            return self._channel.get()
        except _Closed:
            self._done.result()  # raises what the source raised
            raise StopIteration from None


class Sink(Generic[T]):
    """Call ``consume`` on every item sent, in order, in a thread, at most ``depth`` items behind.

    Leaving the ``with`` block waits until everything is consumed; leaving it through an error
    forgets what is still waiting.
    """

    def __init__(self, consume: Callable[[T], None], depth: int = 2) -> None:
        self._consume = consume
        self._channel: _Channel[T] = _Channel(depth)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sink")
        self._done: Future[None] | None = None

    def _run(self) -> None:
        try:
            while True:
                self._consume(self._channel.get())
        except _Closed:
            pass  # everything is consumed
        finally:
            self._channel.close(drop=True)  # after an error, nobody may wait for room

    def send(self, item: T) -> None:
        """Hand over an item; waits while the queue is full; raises what ``consume`` raised."""
        assert self._done is not None, "use Sink in a with block"
        try:
            self._channel.put(item)
        except _Closed:
            self._done.result()
            raise RuntimeError("send() after the end of the block") from None

    def __enter__(self) -> Sink[T]:
        self._done = self._pool.submit(self._run)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._channel.close(drop=error is not None)
        self._pool.shutdown(wait=True)
        if error is None and self._done is not None:
            self._done.result()
