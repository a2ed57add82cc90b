"""Reading a block as a stream, as in follow.go."""

import contextlib
import errno
import io
import time
from typing import TYPE_CHECKING, Optional, Tuple

from . import _header
from ._header import BEGUN, FINISHED, GENERATION, SIZE
from ._linux import os_error

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from ._segment import Segment


class TruncatedError(EOFError):
    """The stream that was followed was ended by truncate."""


class AbandonedError(EOFError):
    """The stream is not finished, and no process is attached that could write to it."""


class Follower(io.RawIOBase):
    """Reads a block as a stream, made by :meth:`Segment.follow`.

    It is a raw binary stream, like a pipe opened without a buffer: read and readinto wait
    until there is a byte to read, and return what there is then; at the end of a finished
    stream they return b"" and 0. Iteration yields lines, byte by byte; io.BufferedReader is
    faster at that.

    Before the end, read raises TruncatedError once the block was truncated, which is final:
    it never returns bytes of another stream, or its end. It raises AbandonedError if
    no process that could write to the block is attached, and looks again at the next
    call; TimeoutError after the timeout; ValueError once the Follower or the Segment is
    closed; or OSError if another program has truncated the file. What was read until then
    by one call of readall or readline is lost.

    One thread at a time can read. close ends the Follower, not the Segment.
    """

    def __init__(self, segment: "Segment", timeout: Optional[float]) -> None:
        """Not for users."""
        self._segment = segment
        self._timeout = timeout
        self._offset = 0
        self._generation = 0
        self._following = False  # some of the stream was delivered, or its end

    @property
    def name(self) -> str:
        """The name of the block."""
        return self._segment.name

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        with memoryview(buffer) as view, view.cast("B") as b:
            return self._read(b)

    def _read(self, b: memoryview) -> int:
        attachment = self._segment._attachment
        n: Optional[int] = None

        def look(last: bool) -> bool:
            nonlocal n
            if self.closed:
                raise ValueError("follower is closed")
            n = self._look(b)
            if n is None and last and self._following and attachment.abandoned():
                n = self._look(b)  # its last bytes may have come since
                if n is None:
                    raise AbandonedError(f"no writer is attached: {self.name!r}")
            return n is not None

        if len(b) == 0:
            return 0
        end = None if self._timeout is None else time.monotonic() + self._timeout
        attachment.wait(look, end)
        if n is None:
            raise os_error(errno.ETIMEDOUT, self.name)
        return n

    def _look(self, b: memoryview) -> Optional[int]:
        """Read what there is at the offset: None if that is nothing yet, 0 at the end."""
        while True:
            generation, size = self._stream()
            if not size & (BEGUN | FINISHED):
                return None
            n = self._segment._attachment.read(b, self._offset, _header.length(size))
            if n == 0 and not size & FINISHED:
                return None
            # The bytes, or the end, are of the stream if that was not truncated meanwhile.
            if not self._gone(generation, self._load(SIZE)):
                break
            if self._following:
                raise self._truncated()
        self._generation, self._following = generation, True
        self._offset += n
        return n

    def _stream(self) -> Tuple[int, int]:
        """The generation of the stream that is read, or that can be begun, and its size."""
        if self._following:
            size = self._load(SIZE)
            if self._gone(self._generation, size):
                raise self._truncated()
            return self._generation, size
        while True:
            generation, size = self._load(GENERATION), self._load(SIZE)
            if self._load(GENERATION) == generation:
                break
        if _header.low(size) != _header.low_bits(generation):  # truncate changes generation first
            generation = (generation - 1) & ((1 << 64) - 1)
        return generation, size

    def _gone(self, generation: int, size: int) -> bool:
        """Whether the stream of that generation is gone.

        The low bits in size tell of a truncate at once, but repeat themselves.
        GENERATION does not, but is one ahead of size for a moment.
        """
        ahead = (self._load(GENERATION) - generation) & ((1 << 64) - 1)
        return _header.low(size) != _header.low_bits(generation) or ahead > 1

    def _load(self, offset: int) -> int:
        return self._segment._attachment.words.load(offset, 8)

    def _truncated(self) -> TruncatedError:
        return TruncatedError(f"block was truncated: {self.name!r}")

    def close(self) -> None:
        """End the Follower. A read that waits in another thread raises ValueError."""
        if not self.closed:
            super().close()
            with contextlib.suppress(AttributeError):  # it has no Segment: __init__ was interrupted
                self._segment._attachment.wake_own()

    def __repr__(self) -> str:
        return f"<shmkit.Follower of {self.name!r} at {self._offset}>"
