"""The locks in the header, which Python takes as a guest: see lockWords in lock.go."""

import contextlib
import math
import os
import threading
import time
from typing import Dict, Optional

from . import _linux
from ._linux import TAG_MASK, Object
from ._words import Words, barrier

# Where the words are, and the bits of the first two. A tag comes before the bit.
HELD = 0  # 8 bytes
_GUEST = 8  # 8 bytes
_WAKE = 16  # 4 bytes
_HAS = 1  # in guest: has the lock, or has come after one that had it and is gone

_NOBODY = TAG_MASK << 1  # guest or held of an attachment that was closed with the lock
_AGAIN = 0.02  # seconds after which to ask again whether the holder exists


class Gate:
    """Keeps threads apart that change the locks of an object, until it is closed.

    A thread can enter again. KeyboardInterrupt can come before a thread has left, so that
    others wait no longer than patience, in which time all that the Gate protects ends.
    """

    def __init__(self) -> None:
        self.closed = False
        self._threads: Dict[int, int] = {}  # by process: a forked child has not entered

    def __enter__(self) -> None:
        """Enter, or raise ValueError if it is closed."""
        left, pause = _linux.PATIENCE, 1e-3
        pid, own = os.getpid(), threading.get_ident()
        while self._threads.setdefault(pid, own) != own:
            if left <= 0:
                self._threads.pop(pid, None)
                continue
            time.sleep(pause)
            left -= pause
            pause = min(2 * pause, 10e-3)
        if self.closed:
            self.__exit__()
            raise ValueError("segment is closed")

    def __exit__(self, *_: object) -> None:
        self._threads.pop(os.getpid(), None)

    def close(self) -> None:
        with contextlib.suppress(ValueError), self:
            self.closed = True


class GuestLock:
    """A lock in the header, as an attachment of this process sees it.

    Python has no compare-and-swap. So it announces itself as a guest, of which there is
    one by a lock of the kernel, and waits until nobody holds the lock: a Go process that
    takes it then gives way. An exception, such as KeyboardInterrupt, can stop each method
    at any instruction; release undoes whatever there is.
    """

    def __init__(self, o: Object, words: Words, at: int, byte: int, gate: Gate) -> None:
        self._object, self._words, self._at, self._byte = o, words, at, byte
        self._gate = gate
        # The call that has the lock or is in line for it, of all threads of a process.
        # A forked child has what its parent had, which is no call of the child.
        self._calls: Dict[int, object] = {}

    def call(self) -> Optional[object]:
        """The call of this process that has the lock or is in line for it."""
        return self._calls.get(os.getpid())

    def uses(self, tag: int) -> bool:
        """Whether the tag is that of one that has, or had, the lock."""
        return tag in (self._words.load(self._at + word, 8) >> 1 for word in (HELD, _GUEST))

    def take(self, call: object) -> Optional[bool]:
        """Take the lock and return whether the last holder is gone; None if another one has it.

        The call is in line for it then: it comes again, or calls release.
        """
        o, words = self._object, self._words
        with self._gate:
            if self._calls.setdefault(os.getpid(), call) is not call or not o.try_guest(self._byte):
                return None
        guest = words.load(self._at + _GUEST, 8)
        if guest >> 1 != o.tag:  # of one that is gone
            guest = o.tag << 1 | guest & _HAS
            words.store(self._at + _GUEST, 8, guest)
        barrier()
        held = words.load(self._at + HELD, 8)
        if held and not o.gone(held >> 1):
            return None
        words.store(self._at + _GUEST, 8, guest | _HAS)
        if held:
            words.publish(self._at + HELD, 8, 0)
        return bool(guest & _HAS or held)

    def acquire(self, call: object, timeout: Optional[float]) -> Optional[bool]:
        """Take the lock as soon as it is free; None if it is not within timeout seconds.

        Death makes no sound, so it asks again now and then whether the holder exists.
        """
        end = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            seen = self._words.load(self._at + _WAKE, 4)
            recovered = self.take(call)
            if recovered is not None:
                return recovered
            left = end - time.monotonic()
            if left <= 0:
                self.release(call, True)
                return None
            self._words.sleep(self._at + _WAKE, seen, min(left, _AGAIN))

    def release(self, call: object, given_up: bool) -> bool:
        """Release what the call has; False if that is nothing. It may be repeated.

        With given_up the next holder learns that the call had the lock, or was to learn
        that another one had.
        """
        if call is None or self.call() is not call:
            return False
        o, words = self._object, self._words
        with contextlib.suppress(OSError):  # truncated by another program
            guest = words.load(self._at + _GUEST, 8)
            if guest >> 1 == o.tag:
                words.store(self._at + _GUEST, 8, _NOBODY | _HAS if given_up and guest & _HAS else 0)
        o.end_guest(self._byte)
        self._calls.pop(os.getpid(), None)
        words.wake(self._at + _WAKE)
        return True
