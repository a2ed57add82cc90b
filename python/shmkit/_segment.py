"""The life of a block, with the steps of refcount.go and create.go."""

import atexit
import contextlib
import errno
import functools
import io
import math
import mmap
import os
import re
import secrets
import struct
import sys
import threading
import time
import warnings
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, List, Optional, Set, Tuple, Type, TypeVar, cast

from . import _header, _linux
from ._follow import Follower
from ._header import BEGUN, COUNT, CUT, DIRTY, EVENT, FINISHED, GENERATION, KEEP
from ._header import LIVE, LOCK, SIZE, SIZE_LOCK, STALE, STATE, WRITTEN, Layout
from ._linux import Again, Attempt, Holder, Object, os_error, patiently
from ._lock import Gate, GuestLock
from ._words import Words, barrier

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# Before 3.13 each mapping keeps a copy of the descriptor, which data does not need.
_UNTRACKED = {"trackfd": False} if sys.version_info >= (3, 13) else {}


def _access(writable: bool) -> int:
    return mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ


# Bounds how late a process learns of what makes no sound: the end of another one, be it
# just before it had to wake somebody.
_TICK = 0.25
_LOOK = 2e-3  # the pauses of a process that may not write, and so cannot be woken

T = TypeVar("T")


class _Attachment:
    """An object that this process has open and is attached to.

    An exception such as KeyboardInterrupt can stop each method at any instruction. The
    fields record what it has done until then, so that _leave can be called after that, and
    again if it is stopped itself.
    """

    def __init__(self, o: Object, layout: Layout, readonly: bool) -> None:
        self.object = o
        self.layout = layout
        self.readonly = readonly
        self.pid = os.getpid()
        self.joined = False  # other processes may have seen it
        self.counted = False  # in the count of the header
        # What the count is without this attachment, while that is being changed.
        self.others: Optional[int] = None
        self.settled = False  # only locks and memory are left to release
        self.words = Words(o, layout, o.writable)
        self.active = False  # it has written, so that it counts as a possible writer
        self.gate = Gate()  # closed when it detaches: then no lock is taken any more
        self.lock = GuestLock(o, self.words, LOCK, _linux.GUEST, self.gate)
        self.size_lock = GuestLock(o, self.words, SIZE_LOCK, _linux.SIZE_GUEST, self.gate)
        self._detaching = threading.Lock()
        self._watches: List["weakref.ref[mmap.mmap]"] = []

    def watch(self, data: mmap.mmap) -> None:
        """Detach when data is deallocated, or at the end of the interpreter.

        A reference to data keeps the attachment.
        """
        _attached.add(self)
        # An exception that stops the first function at its first instruction does not
        # stop the second.
        self._watches = [weakref.ref(data, self._dropped), weakref.ref(data, self._dropped)]

    def _dropped(self, _: object) -> None:
        if not self.object.closed and not self._detaching.locked():
            self.detach()
            cap = self.layout.capacity
            warnings.warn(f"unclosed <shmkit.Segment {self.object.name!r} cap={cap}>", ResourceWarning, source=self)

    def init_header(self) -> None:
        """Make this the first attachment of a block that is not published.

        It joins before: a block that is published had an attachment, and is stale
        once it has none.
        """
        self.object.check_lockable()
        self._join()
        os.pwrite(self.object.fd, _header.marshal(self.layout), 0)
        self.counted = True

    def attach(self, attempt: Attempt) -> None:
        """Register with the block. If it raises, the caller detaches.

        Once this attachment has joined, another process may have seen it and left the
        block to it.
        """
        held = _in_use(attempt, self.object)
        if not held and not _kept(self.object, self.layout):
            if self.object.writable:
                self.object.must_be_alone()
                if _kept(self.object, self.layout):  # by one that has ended since
                    raise Again from os_error(errno.ENOENT, self.object.name)
                with contextlib.suppress(OSError):
                    _unlink_and_mark_stale(self.object)  # all that were attached have been killed
            raise os_error(errno.ENOENT, self.object.name)
        self._join()
        if not self.object.linked():
            raise Again from os_error(errno.ENOENT, self.object.name)
        if self.words.load(STATE, 4) != LIVE:
            raise Again from _header.HeaderError("damaged block header: marked stale under its name")
        if self.object.writable:
            self.others = self.words.load(COUNT, 4) if held else 0  # if it is alone, the others were killed
            self.words.store(COUNT, 4, (self.others + 1) & 0xFFFFFFFF)
            self.counted = True
            self.others = None

    def _join(self) -> None:
        self.joined = True
        try:
            self.object.must_join(not self.readonly, self._tag_used)
        except Again:
            self.joined = False
            raise

    def _tag_used(self, tag: int) -> bool:
        """Whether a lock is held under the tag, by an attachment that is gone: it would seem to be back."""
        return self.lock.uses(tag) or self.size_lock.uses(tag)

    def holders(self) -> List[Holder]:
        """Who is attached, this attachment included."""
        gone = self.forked and _linux.ended(self.pid)  # of a forked child it is the parent's
        return [*self.object.holders(), Holder(self.pid, not self.object.writer, True, gone)]

    def detach(self) -> None:
        """End the attachment, and the block if it was the last one. A second call does nothing.

        The locks decide that: killed processes can still be in the count, which only
        says which order to try first. If a process that was stopped while it was alone
        keeps others from the block, detach waits no longer than patience. If no other
        process is attached, the block is then stale. An exception such as
        KeyboardInterrupt is raised when the attachment has ended.
        """
        if self._detaching.locked():  # by another thread, or a call that a signal handler has interrupted
            return
        try:
            self._leave()
        except BaseException:
            self._leave()
            raise

    def _leave(self) -> None:
        if self.object.closed:
            return
        with self._detaching:
            if self.object.closed:
                return
            if not self.forked:  # a child must not release its parent's locks
                self.gate.close()
                if not self.settled:
                    with contextlib.suppress(OSError):  # it detaches all the same
                        self._settle()
                    self.settled = True
                self._release()
            self.words.close()
            self._watches = []
            _attached.discard(self)
            self.object.close()

    def _settle(self) -> None:
        """Leave the count, and end the block if no other process is attached."""
        self._give_up_locks()
        last = self._uncount()
        o = self.object
        if not self.joined or not o.writable or _kept(o, self.layout):
            return
        if last and o.try_alone():
            return _end(o, self.layout)
        # Having left, one of several that leave at once finds that it is the last.
        self._release()
        patiently(lambda _: _end_unless_used(o, self.layout))

    def _give_up_locks(self) -> None:
        """Release the locks in the header, after calls of other threads that change the size."""
        call = self.size_lock.call()
        if isinstance(call, _Call) and call.thread != threading.get_ident():
            with contextlib.suppress(TimeoutError):
                patiently(self._must_have_sized)
        for lock in self.lock, self.size_lock:
            call = lock.call()
            if call is not None:
                with contextlib.suppress(OSError):
                    lock.release(call, True)

    def _must_have_sized(self, _: Attempt) -> None:
        if self.size_lock.call() is not None:
            raise Again from _linux.busy(self.object.name)

    def _release(self) -> None:
        """Release all locks, and let those that wait look whether there is a writer left."""
        self.object.leave()
        if self.joined and self.object.writable:
            with contextlib.suppress(OSError, ValueError):
                self.words.wake()

    def _uncount(self) -> bool:
        """Leave the count, and return whether that makes it zero."""
        last = False
        if self.counted or self.others is not None:
            with contextlib.suppress(OSError):  # truncated, which does not change the verdict
                if self.others is None:
                    self.others = (self.words.load(COUNT, 4) - 1) & 0xFFFFFFFF
                self.words.store(COUNT, 4, self.others)
            last = self.others == 0
            self.counted = False
            self.others = None
        return last


    @property
    def forked(self) -> bool:
        """Whether this process has inherited the attachment of its parent."""
        return os.getpid() != self.pid

    def check_open(self) -> None:
        if self.gate.closed or self.object.closed:
            raise ValueError("segment is closed")

    def check_writable(self) -> None:
        if self.readonly:
            raise io.UnsupportedOperation("segment is read-only")

    def be_writer(self) -> None:
        """Count as a possible writer from now on, before it writes."""
        if not self.active:
            with self.gate:
                self.object.set_writer(True)
                self.active = True

    def step_aside(self) -> None:
        """Count as a possible writer no more, unless it has written.

        Those that wait for a writer look whether there is one left.
        """
        if self.active or self.readonly or self.forked:
            return
        with self.gate:
            if not self.active:
                self.object.set_writer(False)
            if self.active:  # by a signal handler
                self.object.set_writer(True)
        self.wake_own()

    def abandoned(self) -> bool:
        """Whether no possible writer is attached."""
        if not self.readonly and (self.active or self.forked):
            return False
        return not self.object.writers()

    def wait(self, look: Callable[[bool], bool], end: Optional[float]) -> None:
        """Call look until it returns True, or time.monotonic() returns end.

        A look that comes with True comes just before it sleeps: what changes after
        that wakes it.
        """
        done = look(False)
        while not done:
            self.check_open()
            event = self.words.load(EVENT, 4)
            if self.object.writable:
                self.words.arm()
            done = look(True)
            left = math.inf if end is None else end - time.monotonic()
            if done or left <= 0:
                return
            self.check_open()
            if self.object.writable:
                self.words.sleep(EVENT, event, min(left, _TICK))
            else:
                time.sleep(min(left, _LOOK))

    def wake_own(self) -> None:
        """Wake those that sleep, of this attachment among others, if that is possible."""
        if self.object.writable:
            with contextlib.suppress(OSError, ValueError):
                self.words.wake()

    def read(self, b: memoryview, offset: int, size: int) -> int:
        """Copy what there is from offset to size to b, past the mapping: a hole takes no memory."""
        n = min(len(b), min(size, self.layout.capacity) - offset)
        if n <= 0:
            return 0
        got = os.preadv(self.object.fd, [b[:n]], self.layout.header_size + offset)
        if got == 0:
            raise OSError(errno.EFAULT, "block was truncated by another program", self.object.name)
        return got

    def with_size_lock(self, f: Callable[[], T]) -> T:
        """Call f while no other call in Python changes the size, and no truncate in Go."""
        self.check_writable()
        self.be_writer()
        call = _Call()

        def take() -> None:
            if self.size_lock.take(call) is None:
                raise Again from _linux.busy(self.object.name)

        try:
            try:
                patiently(lambda _: take())
                return f()
            finally:
                self.size_lock.release(call, False)
        except BaseException:
            self.size_lock.release(call, False)
            raise

    def raise_written(self, end: int) -> None:
        """Note that bytes up to end may be written to. It may note more, up to four times of end."""
        if self.words.load(WRITTEN, 8) < end:
            self.words.set_bit(WRITTEN, 8, (end - 1).bit_length())

    def clear_tail(self, data: mmap.mmap) -> int:
        """Clear what was cut off, and return the word SIZE. The caller has the size lock.

        No other process changes a size that is cut.
        """
        words, size = self.words, self.words.load(SIZE, 8)
        if not size & CUT:
            return size
        start, end = _header.length(size), min(words.load(DIRTY, 8), self.layout.capacity)
        written = min(end, words.load(WRITTEN, 8))
        if start < end and self.layout.sparse:
            written = min(written, self._punch(data, start, end))
        piece = bytes(1 << 20)
        for offset in range(start, written, len(piece)):
            self.check_open()  # once it has detached, these bytes may be another writer's
            n = min(len(piece), written - offset)
            data[offset : offset + n] = piece[:n]
        self.check_open()
        size &= ~CUT
        words.publish(SIZE, 8, size)
        return size

    def _punch(self, data: mmap.mmap, start: int, end: int) -> int:
        """Release the pages of data[start:end]; return the end of what is left to clear."""
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        if first < end:
            try:
                data.madvise(mmap.MADV_REMOVE, first, end - first)
            except OSError:  # the memory is locked: madvise(2)
                return end
        # The rest of the first page is cleared only if it is not zero: a store to a hole
        # takes memory, and ends the process if there is none.
        rest = min(first, end) - start
        left = os.pread(self.object.fd, rest, self.layout.header_size + start)
        return start + rest if any(left) else start

    def truncate(self, data: mmap.mmap, n: int) -> None:
        """Set the length, with the size lock.

        All bytes beyond the length are zero, but while it is cut: then the next one that
        wants to raise it clears them first. It is lowered before they are cleared, so that
        a truncate has happened or not, also if it is killed.
        """
        words, size = self.words, self.words.load(SIZE, 8)
        if n >= _header.length(size):
            size = self.clear_tail(data)
        length = _header.length(size)
        if n == length and not size & FINISHED:
            return
        if n > length and not size & FINISHED:
            words.publish(SIZE, 8, _header.size_word(n, _header.low(size), BEGUN))
            return words.wake()
        cut = CUT if n < length else 0
        if cut and not size & CUT:
            # More than the length: what another process appends meanwhile is cut off, too.
            words.store(DIRTY, 8, self.layout.capacity)
        generation = words.load(GENERATION, 8)
        if _header.low_bits(generation) == _header.low(size):
            generation = (generation + 1) & ((1 << 64) - 1)
            words.publish(GENERATION, 8, generation)
        words.publish(SIZE, 8, _header.size_word(n, generation, cut))
        words.wake()
        self.clear_tail(data)

    def append(self, data: mmap.mmap, content: memoryview) -> int:
        """Append content with the size lock, and return where it begins."""
        name = self.object.name
        start = _header.length(self._growing(data))
        end = start + len(content)
        if end > self.layout.capacity:
            raise OSError(errno.EFBIG, f"no room for {len(content)} bytes at {start} of {self.layout.capacity}", name)
        self.raise_written(end)
        at = self.layout.header_size
        while start < end:
            start += os.pwrite(self.object.fd, content[start - end :], at + start)
        self.check_open()
        barrier()  # the bytes come before the length that includes them
        size = self._growing(data)
        if end > _header.length(size):
            self.words.store(SIZE, 8, _header.size_word(end, _header.low(size), BEGUN))
            self.words.wake()
        return end - len(content)

    def _growing(self, data: mmap.mmap) -> int:
        """The word SIZE of a block that may grow."""
        size = self.clear_tail(data)
        if size & FINISHED:
            raise BrokenPipeError(errno.EPIPE, "block is finished", self.object.name)
        return size

    def finish(self, data: mmap.mmap) -> None:
        """Declare that the block is complete, with the size lock: so it is not cut meanwhile."""
        if not self.clear_tail(data) & FINISHED:
            self.words.set_bit(SIZE, 8, 63)
            self.words.wake()


class _Call:
    """One call that changes the size."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()


def _in_use(attempt: Attempt, o: Object) -> bool:
    """Whether a process is attached to the block; if not, and it is not persistent, it is stale."""
    others = o.others()
    if others == _linux.DECIDING or others == _linux.ENDING and attempt.may_await_ending():
        raise Again from _linux.busy(o.name)
    return others != _linux.NOBODY


def _kept(o: Object, layout: Layout) -> bool:
    """Whether the block outlives its attachments.

    Another process can keep it and end at any moment until this one is alone.
    """
    return layout.persistent or any(os.pread(o.fd, 4, KEEP))


def _end(o: Object, layout: Layout) -> None:
    """End a block, unless it is kept. The caller is alone."""
    if not _kept(o, layout):
        _unlink_and_mark_stale(o)


def _end_unless_used(o: Object, layout: Layout) -> None:
    """End a block that this process has left, unless another one is attached."""
    others = o.others()
    if others == _linux.DECIDING:
        raise Again from _linux.busy(o.name)
    if others == _linux.NOBODY:
        o.must_be_alone()
        _end(o, layout)


_attached: Set[_Attachment] = set()


@atexit.register
def _detach_all() -> None:
    for attachment in list(_attached):
        attachment.detach()


def _unlink_and_mark_stale(o: Object) -> None:
    """Remove a block without attachments, or raise why it could not be unlinked.

    The caller is alone. In a directory with the sticky bit only the owner may
    unlink; the block then stays, stale, for its owner. The mark comes last: were a
    block marked under its name by a process that is then killed, and a child of that
    kept a lock, it could be neither opened nor removed.
    """
    try:
        _linux.unlink_if_linked(o)
    except FileNotFoundError:
        _mark_stale(o)
        raise
    _mark_stale(o)


def _mark_stale(o: Object) -> None:
    with contextlib.suppress(OSError):  # a full or truncated object does not matter any more
        os.pwrite(o.fd, struct.pack("=I", STALE), STATE)


def _read_header(o: Object) -> Layout:
    # Read by a system call: nothing is mapped before the header is checked.
    o.check_regular()
    return _header.parse(os.pread(o.fd, _header.USED, 0), o.stat.st_size)


def _reap(attempt: Attempt, name: str) -> bool:
    """Unlink the block called name if it has a header and is stale, and return whether it did."""
    o = _linux.open_object(name, True)
    try:
        try:
            layout = _read_header(o)
        except _header.ShortError as e:
            layout = e.layout
        if _kept(o, layout):
            return False
        o.check_lockable()
        if _in_use(attempt, o):
            return False
        try:
            o.must_be_alone()  # another process may have attached in the meantime
            if _kept(o, layout):
                return False
            _unlink_and_mark_stale(o)
            return True
        finally:
            o.leave()
    finally:
        o.close()


def _name_in_use(attempt: Attempt, name: str) -> bool:
    """Whether the name is that of a block that is in use, persistent, or another user's.

    A stale block loses it.
    """
    try:
        return not _reap(attempt, name)
    except PermissionError:
        return True
    except (OSError, ValueError, Again):
        return False


def reap() -> List[str]:
    """Unlink all stale blocks, as far as this process may, and return their names.

    A block is stale if it is not persistent and no process is attached to it: such
    blocks are what killed processes leave behind.
    """
    reaped = []
    for name in _linux.names():
        try:
            if _reap(Attempt(0), _clean(name)):  # without waiting
                reaped.append(name)
        except (OSError, ValueError, Again):
            pass  # not ours, not stale, or not for us to remove
    return reaped


def unlink(name: str) -> None:
    """Take the name of a block away at once, attached or not.

    Existing attachments keep the memory. It works on every kind of block.
    Raises FileNotFoundError, PermissionError, TimeoutError, or ValueError for a
    bad name or what is not a regular file.
    """
    name = _clean(name)
    patiently(lambda _: _unlink_once(name, None))


def _unlink_once(name: str, only: Optional[Object]) -> None:
    """Unlink whatever block has the name or, with only, that one."""
    if only is not None and not only.linked():
        raise os_error(errno.ENOENT, name)
    try:
        o = _linux.open_object(name, True)
    except PermissionError:
        return _linux.unlink_unopened(name)
    try:
        o.check_regular()
        o.must_lock()
        try:
            if not o.linked():
                raise Again from os_error(errno.ENOENT, name)  # another block has the name now
            _linux.unlink_if_linked(only or o)
        finally:
            o.leave()
    finally:
        o.close()


def _clean(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {type(name).__name__}")
    name = name[1:] if name.startswith("/") else name
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}", name):
        raise ValueError(f"bad name {name!r}: must be 1 to 255 of A-Z a-z 0-9 . _ - and not begin with a dot")
    return name


class Segment:
    """An attachment to a block, made by :meth:`create` or :meth:`open`.

    It ends with :meth:`close`, at the end of a ``with`` statement, or with the process,
    however that ends. A Segment that is dropped is detached, with a ResourceWarning, once
    nothing uses its memory. Methods of a closed Segment raise ValueError, as those of a
    file do.

    Threads can share a Segment. A process forked by ``os.fork`` is no attachment
    of its own: what it inherits is valid memory, and keeps the block as long as
    either process has it, until the parent closes. Open the block in the child
    to attach it. Pickling does that: the copy is a new attachment.
    """

    def __init__(self, attachment: _Attachment, data: mmap.mmap) -> None:
        """Not for users."""
        self._attachment = attachment
        self._data: Optional[mmap.mmap] = data

    @classmethod
    def create(
        cls, name: Optional[str], size: int, *, mode: int = 0o600, persistent: bool = False, sparse: bool = False
    ) -> "Segment":
        """Create a block of size bytes, all zero, and attach to it.

        If name is None, the block gets a random name that no other block has. A stale
        block of the name is replaced. A persistent block stays until it is unlinked. The
        memory is reserved unless the block is sparse. Access to a sparse block ends the
        process if there is no memory left.

        Raises FileExistsError (a stale block is replaced), OSError with ENOSPC,
        ENOTSUP where /dev/shm is no tmpfs, PermissionError, TimeoutError, or
        ValueError for a bad name, size or mode. What fails leaves nothing behind.
        """
        clean = _clean(name) if name is not None else "shm-" + secrets.token_hex(10)
        if size <= 0:
            raise ValueError(f"size {size}: must be at least 1")
        if mode & ~0o777 or mode & 0o600 != 0o600:
            raise ValueError(f"bad mode: {mode:o}")
        if size >= 1 << 48:  # no address space has room for it
            raise os_error(errno.ENOSPC, clean)
        attempt = Attempt(_linux.PATIENCE)
        if name is not None and _name_in_use(attempt, clean):  # before memory is looked for
            raise os_error(errno.EEXIST, clean)
        flags = (_header.PERSISTENT if persistent else 0) | (_header.SPARSE if sparse else 0)
        layout = _header.new_layout(size, flags)
        new = functools.partial(_linux.create_object, clean, layout.object_size, mode, sparse)
        try:
            o = new()
        except OSError as e:
            if e.errno != errno.ENOSPC or not reap():
                raise
            o = new()

        def start(a: _Attachment) -> None:
            a.init_header()
            attempt.retry(lambda: _publish(attempt, o))

        return cls._begin(o, layout, False, start)

    @classmethod
    def open(cls, name: str, *, readonly: bool = False) -> "Segment":
        """Attach to the block called name.

        A readonly Segment needs no permission to write; without it, it cannot unlink
        the block when it is the last to leave.

        Raises FileNotFoundError if there is no block, or none that a process is
        attached to, PermissionError, NotSegmentError, VersionError or HeaderError
        (all ValueError), ValueError for a bad name, OSError, or TimeoutError if a
        process was stopped while it ends the block. What fails changes nothing.

        A block whose processes have all ended may still have a lock of a child that
        is about to release it: open waits for that for a second at most.
        """
        clean = _clean(name)
        return patiently(lambda attempt: cls._open_once(attempt, clean, readonly))

    @classmethod
    def open_wait(cls, name: str, timeout: Optional[float] = None, *, readonly: bool = False) -> "Segment":
        """Attach to the block called name as soon as there is one that open attaches to.

        It looks every ten milliseconds. Raises TimeoutError after timeout seconds, and
        the errors of open but FileNotFoundError.
        """
        end = math.inf if timeout is None else time.monotonic() + timeout
        pause = 1e-3
        while True:
            try:
                return cls.open(name, readonly=readonly)
            except FileNotFoundError as e:
                left = end - time.monotonic()
                if left <= 0:
                    raise os_error(errno.ETIMEDOUT, e.filename) from None
            time.sleep(min(pause, left))
            pause = min(2 * pause, 10e-3)

    @classmethod
    def _open_once(cls, attempt: Attempt, name: str, readonly: bool) -> "Segment":
        try:
            # Only with write permission can it end the block, so it is asked for even to read.
            o = _linux.open_object(name, True)
        except PermissionError:
            if not readonly:
                raise
            o = _linux.open_object(name, False)
        try:
            layout = _read_header(o)
            o.check_lockable()
        except BaseException:
            o.close()
            raise
        return cls._begin(o, layout, readonly, lambda a: a.attach(attempt))

    @classmethod
    def _begin(
        cls, o: Object, layout: Layout, readonly: bool, start: Callable[[_Attachment], None]
    ) -> "Segment":
        try:
            attachment = _Attachment(o, layout, readonly)
        except BaseException:
            o.close()
            raise
        try:
            access = _access(not readonly)
            data = mmap.mmap(o.fd, layout.capacity, access=access, offset=layout.header_size, **_UNTRACKED)
            attachment.watch(data)
            start(attachment)
            return cls(attachment, data)
        except BaseException:
            attachment.detach()
            raise

    def close(self) -> None:
        """Detach, and unlink the block if no other process is attached; again, do nothing.

        It waits two seconds in all for a process that was stopped while it ends the
        block, and then gives up the unlinking, not the detaching. Memory in use stays
        valid: it is unmapped when no view of buf and no array made from one refers
        to it. But the process is not attached to the block any more.
        KeyboardInterrupt during close is raised when it has detached.
        """
        try:
            self._attachment.detach()
        finally:
            # Not closed but dropped: a NumPy array can refer to the mapping without an
            # export of its buffer, which would keep mmap.close from unmapping it.
            self._data = None

    def _open_data(self) -> mmap.mmap:
        data = self._data
        if data is None or self.closed:
            raise ValueError("segment is closed")
        return data

    @property
    def buf(self) -> memoryview:
        """The memory of the block, of its size at this moment; read-only for a readonly Segment.

        Each access creates a new view, so keep the view where speed matters.
        """
        data = self._open_data()
        size = self.size
        if not self.readonly:
            self._attachment.raise_written(size)
        return memoryview(data)[:size]

    @property
    def name(self) -> str:
        """The name of the block, without a leading slash."""
        return self._attachment.object.name

    @property
    def cap(self) -> int:
        """The number of bytes that the block can hold, which never changes."""
        return self._attachment.layout.capacity

    @property
    def size(self) -> int:
        """The number of bytes that the block holds; all processes see it change."""
        self._open_data()
        return min(_header.length(self._attachment.words.load(SIZE, 8)), self.cap)

    @property
    def refs(self) -> int:
        """How many Segments, in all processes, are attached to the block.

        It is exact whenever no process attaches or detaches meanwhile, and a lower
        bound from about 2,000 on.
        """
        return len(self.holders())

    def holders(self) -> List[Holder]:
        """Who is attached to the block, this Segment included, in no order."""
        self._open_data()
        return self._attachment.holders()

    @property
    def id(self) -> bytes:
        """16 random bytes that distinguish blocks of one name."""
        return self._attachment.layout.id

    @property
    def readonly(self) -> bool:
        return self._attachment.readonly

    @property
    def closed(self) -> bool:
        return self._attachment.object.closed

    @property
    def linked(self) -> bool:
        """Whether the name leads to this block."""
        self._open_data()
        return self._attachment.object.linked()

    def truncate(self, size: int) -> None:
        """Set size, 0 to cap, for all processes. Bytes that are cut off are cleared.

        It opens a finished block again. Raises ValueError, io.UnsupportedOperation for a
        readonly Segment, or TimeoutError if a process was stopped while it changes the
        size.
        """
        data, a = self._open_data(), self._attachment
        if not 0 <= size <= self.cap:
            raise ValueError(f"bad size {size}: must be 0 to {self.cap}")
        a.with_size_lock(lambda: a.truncate(data, size))

    def append(self, content: "ReadableBuffer") -> int:
        """Copy content to the end of the block, raise size, and return where the content begins.

        Calls in Python, of all processes, come one after the other. Those that follow the
        block see the bytes when all are there.

        Raises BrokenPipeError for a finished block, OSError with EFBIG if there is no room,
        in which case nothing is written, and the errors of truncate.
        """
        data, a = self._open_data(), self._attachment
        with memoryview(content) as view, view.cast("B") as b:
            return a.with_size_lock(lambda: a.append(data, b))

    def finish(self) -> None:
        """Declare that the block is complete: those that follow it are at its end at size.

        What would raise size raises BrokenPipeError, in every process, until truncate
        opens the block again. Raises the errors of truncate.
        """
        data, a = self._open_data(), self._attachment
        a.with_size_lock(lambda: a.finish(data))

    @property
    def finished(self) -> bool:
        """Whether the block is complete."""
        self._open_data()
        return bool(self._attachment.words.load(SIZE, 8) & FINISHED)

    def follow(self, timeout: Optional[float] = None) -> Follower:
        """Return a binary stream that reads the block from its beginning, and waits at size until it is finished.

        It waits for a stream that nobody has begun yet: of a block whose size was not raised
        since it was created, or since truncate lowered it, nothing is read before finish. A
        read that has to wait for longer than timeout seconds raises TimeoutError.

        A Segment on which follow was called does not count as a possible writer until it
        calls append, truncate, finish or lock.
        """
        self._open_data()
        self._attachment.step_aside()
        return Follower(self, timeout)

    def wait_for(self, predicate: Callable[[], T], timeout: Optional[float] = None) -> T:
        """Wait until predicate returns something true, and return that.

        predicate is called in this thread: at once; after every change of size, every
        notify_all, finish and truncate of the block by any process; and now and then in
        between. So nothing is missed that happens before a notify_all, and a call too many
        does no harm. After timeout seconds the last value that it has returned is
        returned, as by threading.Condition.wait_for.

        Raises ValueError as soon as the Segment is closed. A process that may not write
        to the block calls predicate every few milliseconds.
        """
        self._open_data()
        end = None if timeout is None else time.monotonic() + timeout
        value: Optional[T] = None

        def look(_: bool) -> bool:
            nonlocal value
            value = predicate()
            return bool(value)

        self._attachment.wait(look, end)
        return cast(T, value)

    def notify_all(self) -> None:
        """Make all that wait on the block look again, in all processes.

        What changes size does that by itself. Stores through buf do not. Raises
        PermissionError if the process may not write to the block.
        """
        self._open_data()
        if not self._attachment.object.writable:
            raise os_error(errno.EACCES, self.name)
        self._attachment.words.wake()

    def lock(self) -> "BlockLock":
        """Return a context manager that holds the block's lock::

            with seg.lock() as lock:
                if lock.recovered:
                    ...  # the last holder was killed: what it has left may be half changed
        """
        self._open_data()
        return BlockLock(self)

    def keep(self) -> None:
        """Make the block outlive its attachments, as persistent does from the beginning.

        Raises io.UnsupportedOperation for a readonly Segment.
        """
        self._open_data()
        self._attachment.check_writable()
        self._attachment.words.store(KEEP, 4, 1)

    def unlink(self) -> None:
        """Take the block's name away at once; existing attachments keep the memory.

        Raises FileNotFoundError if the block has lost its name already, PermissionError or
        TimeoutError.
        """
        self._open_data()
        patiently(lambda _: _unlink_once(self.name, self._attachment.object))

    def __enter__(self) -> "Segment":
        self._open_data()
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def __reduce__(self) -> Tuple[Any, ...]:
        return functools.partial(Segment.open, self.name, readonly=self.readonly), ()

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<shmkit.Segment {self.name!r} cap={self.cap}{state}>"


class BlockLock:
    """The lock of a block, of :meth:`Segment.lock`: one Segment at a time has it, of all in all processes.

    The kernel releases it if its holder is killed: it is free within some hundredths of a
    second then. It is not reentrant, and threads that share a Segment exclude each other,
    too. Nothing is promised about the order in which waiters get it. A process that may
    write to the block can forge it: it protects from mistakes, not from attacks.

    A forked child has no lock of its own (RuntimeError): open the block in the child. An
    object that is dropped with the lock releases it, as if its holder had been killed.
    """

    def __init__(self, segment: Segment) -> None:
        """Not for users."""
        self._segment = segment
        self._call: object = None
        #: The last holder was killed, or has closed its Segment, without release.
        self.recovered = False

    def acquire(self, timeout: Optional[float] = None) -> bool:
        """Take the lock and return True, or return False if it is not free within timeout seconds.

        Raises ValueError as soon as the Segment is closed, and io.UnsupportedOperation
        for a readonly Segment.
        """
        self._segment._open_data()
        a = self._segment._attachment
        a.check_writable()
        if a.forked:
            raise RuntimeError("a forked child has no lock of its own: open the block in the child")
        a.be_writer()
        call = object()
        try:
            recovered = a.lock.acquire(call, timeout)
            if recovered is not None:
                self._call, self.recovered = call, recovered
            return recovered is not None
        except BaseException:
            a.lock.release(call, True)
            raise

    def release(self) -> None:
        """Release the lock. Raises RuntimeError if this object does not have it, or ValueError."""
        self._segment._open_data()
        lock = self._segment._attachment.lock
        try:
            released = lock.release(self._call, False)
        except BaseException:
            lock.release(self._call, False)
            raise
        if not released:
            raise RuntimeError("the lock is not held")

    def __del__(self) -> None:
        # KeyboardInterrupt can come between acquire and the body of a with statement, and
        # in __init__.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._segment._attachment.lock.release(self._call, True)

    def __enter__(self) -> "BlockLock":
        self.acquire()
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.release()


def _publish(attempt: Attempt, o: Object) -> None:
    """Publish the block, if need be in the place of a stale one."""
    try:
        o.publish()
    except FileExistsError as e:
        try:
            reaped = _reap(attempt, o.name)
        except (FileNotFoundError, Again):
            reaped = True
        except (OSError, ValueError):
            reaped = False
        if reaped:
            raise Again from e
        raise
