"""The life of a block, step by step as in refcount.go and segment.go."""

import atexit
import contextlib
import errno
import functools
import io
import mmap
import os
import re
import secrets
import struct
import sys
import threading
import warnings
import weakref
from types import TracebackType
from typing import Any, Callable, List, Optional, Set, Tuple, Type

from . import _header, _linux
from ._header import COUNT, DEAD, LIVE, SIZE, STATE, WRITTEN, Layout
from ._linux import ALONE, LIFE, MUTEX, SHARED, UNHELD, Again, Object, os_error, patiently

# Before 3.13 each mapping keeps a copy of the descriptor, which data does not need.
_UNTRACKED = {"trackfd": False} if sys.version_info >= (3, 13) else {}


def _access(writable: bool) -> int:
    return mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ


class _Words:
    """The words of the header that change.

    Each is read and written by one aligned access of its size. Only who holds
    the mutex lane changes count; what a Python process does to the others needs
    no comparison with what they were (see Segment.truncate).
    """

    def __init__(self, o: Object, layout: Layout, writable: bool) -> None:
        self._name = o.name
        self._whole = layout.object_size
        self._map = mmap.mmap(o.fd, layout.header_size, access=_access(writable))
        self._view = memoryview(self._map)
        self._by_size = {4: self._view.cast("I"), 8: self._view.cast("Q")}

    def _check(self) -> None:
        # To access memory that somebody has truncated would end the process.
        if self._map.size() < self._whole:
            raise OSError(errno.EFAULT, "block was truncated by another program", self._name)

    def load(self, offset: int, size: int) -> int:
        self._check()
        return int(self._by_size[size][offset // size])

    def store(self, offset: int, size: int, value: int) -> None:
        self._check()
        self._by_size[size][offset // size] = value

    def close(self) -> None:
        """Unmap the header; again, do nothing. What uses it in another thread raises ValueError."""
        for view in (*self._by_size.values(), self._view):
            view.release()
        self._map.close()


class _Attachment:
    """An object that this process has open and is attached to.

    An exception such as KeyboardInterrupt can stop each method at any
    instruction. What it has done until then is in the fields, so that _leave can
    be called then, and called again if it is stopped itself.
    """

    def __init__(self, o: Object, layout: Layout) -> None:
        self.object = o
        self.layout = layout
        self.pid = os.getpid()
        self.counted = False
        # What the count is without this attachment; none while others can change it.
        self.others: Optional[int] = None
        self.settled = False  # nothing is left to do but to let go
        self.words = _Words(o, layout, o.writable)
        self._detaching = threading.Lock()
        self._watches: List["weakref.ref[mmap.mmap]"] = []

    def watch(self, data: mmap.mmap) -> None:
        """Detach when data is deallocated, or at the end of the interpreter.

        What refers to data keeps it alive, and thereby the attachment.
        """
        _attached.add(self)
        # The exception that stops the first function at its first instruction
        # does not stop the second.
        self._watches = [weakref.ref(data, self._dropped), weakref.ref(data, self._dropped)]

    def _dropped(self, _: object) -> None:
        if not self.object.closed and not self._detaching.locked():
            self.detach()
            cap = self.layout.capacity
            warnings.warn(f"unclosed <shmkit.Segment {self.object.name!r} cap={cap}>", ResourceWarning, source=self)

    def found(self) -> None:
        """Make this the first attachment of a block that has no name yet.

        The life lane is held before it gets one, so a block with a name had
        somebody attached, and once nobody is, it is dead.
        """
        self.object.check_lockable()
        self.object.must_lock(LIFE, SHARED)
        os.pwrite(self.object.fd, _header.marshal(self.layout), 0)
        self.counted = True

    def attach(self) -> None:
        """Attach, or raise; whoever calls detaches then, to drop the locks."""
        if not self.object.writable:
            return self._attach_uncounted()
        self.object.must_lock(MUTEX, ALONE)
        abandoned = self.object.lock(LIFE, ALONE)
        if abandoned and not self.layout.persistent:
            with contextlib.suppress(OSError):
                _bury(self.object)  # whoever was attached was killed
            raise os_error(errno.ENOENT, self.object.name)
        self._share()
        self.others = 0 if abandoned else self.words.load(COUNT, 4)  # abandoned: killed processes are in it
        self.words.store(COUNT, 4, (self.others + 1) & 0xFFFFFFFF)
        self.counted = True
        self.others = None
        self.object.must_lock(MUTEX, UNHELD)

    def _attach_uncounted(self) -> None:
        """Attach without permission to write, and so without a part in the count.

        It must see somebody attached before it shares the life lane: two such
        processes that came to a dead block and looked afterwards would take each
        other for a reason to stay.
        """
        how = self.object.holder(LIFE)
        if how == ALONE:  # somebody is finding out whether the block is dead
            raise Again from _linux.busy(self.object.name)
        if how == UNHELD and not self.layout.persistent:
            raise os_error(errno.ENOENT, self.object.name)
        self._share()

    def _share(self) -> None:
        """Share the life lane of a block that its name still leads to."""
        self.object.must_lock(LIFE, SHARED)
        if not self.object.named():
            raise Again from os_error(errno.ENOENT, self.object.name)
        if self.words.load(STATE, 4) != LIVE:
            raise Again from _header.HeaderError("damaged block header: dead under its name")

    def detach(self) -> None:
        """End the attachment, and the block if it was the last one; again, do nothing.

        The kernel's locks decide that; the count may hold killed processes. If a
        stopped peer keeps the mutex lane beyond patience, the block, if nobody
        else is attached, is left for whoever comes next. An exception such as
        KeyboardInterrupt is raised when the attachment has ended.
        """
        if self._detaching.locked():  # by another thread, or by what a signal handler has interrupted
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
            if os.getpid() == self.pid:  # a forked child must leave its parent's locks alone
                if not self.settled:
                    with contextlib.suppress(OSError):  # which does not keep us attached
                        self._settle()
                    self.settled = True
                self.object.unlock()
            self.words.close()
            self._watches = []
            _attached.discard(self)
            self.object.close()

    def _settle(self) -> None:
        """Leave the count, and end the block if nobody else is attached."""
        if not self.counted and self.others is None:
            return
        try:
            patiently(functools.partial(self.object.must_lock, MUTEX, ALONE))
            alone = True
        except TimeoutError:
            alone = False
        with contextlib.suppress(OSError):  # truncated, which does not change the verdict
            if self.others is None:
                self.others = (self.words.load(COUNT, 4) - 1) & 0xFFFFFFFF
            self.words.store(COUNT, 4, self.others)
        if alone and not self.layout.persistent and self.object.lock(LIFE, ALONE):
            _bury(self.object)


_attached: Set[_Attachment] = set()


@atexit.register
def _detach_all() -> None:
    for attachment in list(_attached):
        attachment.detach()


def _bury(o: Object) -> None:
    """End a block that nobody is attached to, or raise why it could not be unlinked.

    The caller holds both lanes alone. In a directory with the sticky bit only
    the owner may unlink; the block then stays, dead, for its owner.
    """
    try:
        os.pwrite(o.fd, struct.pack("=I", DEAD), STATE)
    except OSError:  # a full object does not change the verdict
        pass
    _linux.unlink_if_named(o)


def _read_header(o: Object) -> Layout:
    # Read past the mapping: nothing is mapped before it is known to be sound.
    o.check_regular()
    return _header.parse(os.pread(o.fd, _header.USED, 0), o.stat.st_size)


def _reap(name: str) -> bool:
    """Unlink the block called name if it is ours and dead, and return whether it was."""
    o = _linux.open_object(name, True)
    try:
        try:
            layout = _read_header(o)
        except _header.TruncatedError as e:
            layout = e.layout
        if layout.persistent:
            return False
        o.check_lockable()
        # Asking first spares the living: the lock would make an opener wait.
        how = o.holder(LIFE)
        if how == SHARED:
            return False
        if how == ALONE:
            raise Again from _linux.busy(name)
        try:
            o.must_lock(MUTEX, ALONE)
            o.must_lock(LIFE, ALONE)
            _bury(o)
            return True
        finally:
            o.unlock()
    finally:
        o.close()


def _taken(name: str) -> bool:
    """Whether a block has the name that is in use, persistent, or another user's; a dead one loses it."""
    try:
        return not _reap(name)
    except PermissionError:
        return True
    except (OSError, ValueError, Again):
        return False


def reap() -> List[str]:
    """Unlink all dead blocks, as far as this process may, and return their names.

    A dead block is one that only killed processes were attached to. Those of
    other programs, and persistent ones, are left alone.
    """
    reaped = []
    for name in _linux.names():
        try:
            if _reap(_clean(name)):
                reaped.append(name)
        except (OSError, ValueError, Again):
            pass  # not ours, not dead, or not for us to remove
    return reaped


def unlink(name: str) -> None:
    """Take the name of a block away at once, whether somebody is attached or not.

    Everybody who is attached keeps the memory. It works on every kind of block.
    Raises FileNotFoundError, PermissionError, TimeoutError, or ValueError for a
    bad name or what is not a regular file.
    """
    name = _clean(name)
    patiently(lambda: _unlink_once(name, None))


def _unlink_once(name: str, only: Optional[Object]) -> None:
    """Unlink whatever block has the name or, with only, that one."""
    if only is not None and not only.named():
        raise os_error(errno.ENOENT, name)
    try:
        o = _linux.open_object(name, True)
    except PermissionError:
        return _linux.unlink_unopened(name)
    try:
        o.check_regular()
        o.must_lock(MUTEX, ALONE)
        try:
            if not o.named():
                raise Again from os_error(errno.ENOENT, name)  # another block has the name now
            _linux.unlink_if_named(only or o)
        finally:
            o.unlock()
    finally:
        o.close()


def _clean(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {type(name).__name__}")
    name = name[1:] if name.startswith("/") else name
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}", name):
        raise ValueError(f"bad name: {name!r}")
    return name


class Segment:
    """An attachment to a block, made by :meth:`create` or :meth:`open`.

    It ends with :meth:`close`, at the end of a ``with`` statement, or with the
    process, whatever ends that. A Segment that is dropped is detached, with a
    ResourceWarning, once nothing uses its memory any more. Methods of a closed
    one raise ValueError, as those of a file do.

    Threads can share a Segment. A process forked by ``os.fork`` is no attachment
    of its own: what it inherits is valid memory, and keeps the block as long as
    either process has it, until the parent closes. Open the block in the child
    to be counted. Pickling does that: the copy is a new attachment.
    """

    def __init__(self, attachment: _Attachment, data: mmap.mmap, readonly: bool) -> None:
        """Not for users."""
        self._attachment = attachment
        self._data: Optional[mmap.mmap] = data
        self._readonly = readonly

    @classmethod
    def create(
        cls, name: Optional[str], size: int, *, mode: int = 0o600, persistent: bool = False, sparse: bool = False
    ) -> "Segment":
        """Create a block of size bytes, all zero, and attach to it.

        With None as its name it gets one that no other block has. A persistent
        block stays until it is unlinked. The memory is reserved unless the block
        is sparse; access to a sparse one ends the process when memory runs out.

        Raises FileExistsError (a dead block is replaced), OSError with ENOSPC,
        ENOTSUP where /dev/shm is no tmpfs, PermissionError, TimeoutError, or
        ValueError for a bad name, size or mode. What fails leaves nothing behind.
        """
        clean = _clean(name) if name is not None else "shm-" + secrets.token_hex(10)
        if not 0 < size < 1 << 62:
            raise ValueError(f"bad size: {size}")
        if mode & ~0o777 or mode & 0o600 != 0o600:
            raise ValueError(f"bad mode: {mode:o}")
        if name is not None and _taken(clean):  # no memory need be found for nothing
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
            a.found()
            patiently(lambda: _publish(o))

        return cls._begin(o, layout, False, start)

    @classmethod
    def open(cls, name: str, *, readonly: bool = False) -> "Segment":
        """Attach to the block called name.

        A readonly Segment needs no permission to write; without it, it keeps the
        block alive but is not in the count of references.

        Raises FileNotFoundError if there is no block, or none that anybody is
        attached to, PermissionError, NotSegmentError, VersionError or HeaderError
        (all ValueError), ValueError for a bad name, OSError, or TimeoutError if a
        process was stopped in the middle of attaching or detaching. What fails
        changes nothing.
        """
        clean = _clean(name)
        return patiently(lambda: cls._open_once(clean, readonly))

    @classmethod
    def _open_once(cls, name: str, readonly: bool) -> "Segment":
        try:
            # Write permission is needed to be counted, so it is asked for even to read.
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
        return cls._begin(o, layout, readonly, _Attachment.attach)

    @classmethod
    def _begin(
        cls, o: Object, layout: Layout, readonly: bool, start: Callable[[_Attachment], None]
    ) -> "Segment":
        try:
            attachment = _Attachment(o, layout)
        except BaseException:
            o.close()
            raise
        try:
            access = _access(not readonly)
            data = mmap.mmap(o.fd, layout.capacity, access=access, offset=layout.header_size, **_UNTRACKED)
            attachment.watch(data)
            start(attachment)
            return cls(attachment, data, readonly)
        except BaseException:
            attachment.detach()
            raise

    def close(self) -> None:
        """Detach, and unlink the block if nobody else is attached; again, do nothing.

        It makes pauses of two seconds in all while other processes hold the block's
        lock, and then gives up the unlinking, not the detaching. Memory in use stays
        valid: it is unmapped when no view of buf and no array made from one refers
        to it. But the process is not attached to the block any more.
        KeyboardInterrupt during close is raised when it has detached.
        """
        try:
            self._attachment.detach()
        finally:
            # It is not closed: an array of NumPy can refer to a mapping without
            # an export of its buffer that would keep close from unmapping it.
            self._data = None

    def _open_data(self) -> mmap.mmap:
        data = self._data
        if data is None or self.closed:
            raise ValueError("segment is closed")
        return data

    @property
    def buf(self) -> memoryview:
        """The memory of the block, size bytes as of now; read-only for a readonly Segment.

        Each use makes a new view, so keep it where speed matters.
        """
        data = self._open_data()
        if not self._readonly:
            self._attachment.words.store(WRITTEN, 8, self.cap)
        return memoryview(data)[: self.size]

    @property
    def name(self) -> str:
        """The name of the block, without a leading slash."""
        return self._attachment.object.name

    @property
    def cap(self) -> int:
        """How many bytes the block can hold, which never changes."""
        return self._attachment.layout.capacity

    @property
    def size(self) -> int:
        """How many bytes the block holds, which all processes see change."""
        self._open_data()
        return min(self._attachment.words.load(SIZE, 8), self.cap)

    @property
    def refs(self) -> int:
        """How many attachments the header counts: killed processes, but none that may only read."""
        self._open_data()
        return min(self._attachment.words.load(COUNT, 4), (1 << 31) - 1)

    @property
    def id(self) -> bytes:
        """16 random bytes that tell blocks of one name apart."""
        return self._attachment.layout.id

    @property
    def readonly(self) -> bool:
        return self._readonly

    @property
    def closed(self) -> bool:
        return self._attachment.object.closed

    @property
    def linked(self) -> bool:
        """Whether the name still leads to this block."""
        self._open_data()
        return self._attachment.object.named()

    def truncate(self, size: int) -> None:
        """Set size, 0 to cap, for all processes; bytes cut off are cleared.

        Python has no atomic comparison, so of a process that appends at the same
        moment the new size can be lost. One process at a time should set it.
        """
        data = self._open_data()
        if self._readonly:
            raise io.UnsupportedOperation("segment is read-only")
        if not 0 <= size <= self.cap:
            raise ValueError(f"size {size} of at most {self.cap}")
        # All bytes beyond size are zero, so that a block grows by setting size.
        words, old = self._attachment.words, self.size
        end = min(old, words.load(WRITTEN, 8))
        if size < old and self._attachment.layout.sparse:
            end = min(end, self._punch(data, size, old))
        piece = bytes(1 << 20)
        for offset in range(size, end, len(piece)):
            n = min(len(piece), end - offset)
            data[offset : offset + n] = piece[:n]
        words.store(SIZE, 8, size)

    def _punch(self, data: mmap.mmap, start: int, end: int) -> int:
        """Give back the pages of data[start:end], and return where what is left to clear ends."""
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        if first < end:
            try:
                data.madvise(mmap.MADV_REMOVE, first, end - first)
            except OSError:  # the memory is locked: madvise(2)
                return end
        # What is left of the first page is cleared only if it is not zero: to
        # write to a hole takes memory, and ends the process if there is none.
        rest = min(first, end) - start
        left = os.pread(self._attachment.object.fd, rest, self._attachment.layout.header_size + start)
        return start + rest if any(left) else start

    def unlink(self) -> None:
        """Take the block's name away at once; whoever is attached keeps the memory.

        Raises FileNotFoundError if it has lost it already, PermissionError or
        TimeoutError.
        """
        self._open_data()
        patiently(lambda: _unlink_once(self.name, self._attachment.object))

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


def _publish(o: Object) -> None:
    """Give the block its name, which a dead block must make free."""
    try:
        o.publish()
    except FileExistsError as e:
        try:
            gone = _reap(o.name)
        except (FileNotFoundError, Again):
            gone = True
        except (OSError, ValueError):
            gone = False
        if gone:
            raise Again from e
        raise
