"""The life of a block, with the steps of refcount.go and create.go."""

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
from ._header import COUNT, LIVE, SIZE, STALE, STATE, WRITTEN, Layout
from ._linux import ALONE, LIFE, MUTEX, SHARED, UNHELD, Object, Retry, os_error, retry

# Before 3.13 each mapping keeps a copy of the descriptor, which data does not need.
_UNTRACKED = {"trackfd": False} if sys.version_info >= (3, 13) else {}


def _access(writable: bool) -> int:
    return mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ


class _Words:
    """The words of the header that change.

    Each is read and written by one aligned access of its size. Only the holder of the
    mutex changes count. Stores to the others do not depend on their values before (see
    Segment.truncate).
    """

    def __init__(self, o: Object, layout: Layout, writable: bool) -> None:
        self._name = o.name
        self._whole = layout.object_size
        self._map = mmap.mmap(o.fd, layout.header_size, access=_access(writable))
        self._view = memoryview(self._map)
        self._by_size = {4: self._view.cast("I"), 8: self._view.cast("Q")}

    def _check(self) -> None:
        # Access to memory that another program has truncated would end the process.
        if self._map.size() < self._whole:
            raise OSError(errno.EFAULT, "block was truncated by another program", self._name)

    def load(self, offset: int, size: int) -> int:
        self._check()
        return int(self._by_size[size][offset // size])

    def store(self, offset: int, size: int, value: int) -> None:
        self._check()
        self._by_size[size][offset // size] = value

    def close(self) -> None:
        """Unmap the header. A second call does nothing. Uses in other threads raise ValueError."""
        for view in (*self._by_size.values(), self._view):
            view.release()
        self._map.close()


class _Attachment:
    """An object that this process has open and is attached to.

    An exception such as KeyboardInterrupt can stop each method at any instruction. The
    fields record what it has done until then, so that _leave can be called after that, and
    again if it is stopped itself.
    """

    def __init__(self, o: Object, layout: Layout) -> None:
        self.object = o
        self.layout = layout
        self.pid = os.getpid()
        self.counted = False
        # The count without this attachment; None while other processes can change it.
        self.others: Optional[int] = None
        self.settled = False  # only locks and memory are left to release
        self.words = _Words(o, layout, o.writable)
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

        It joins before: a block that is published had an attachment, and is stale once it
        has none.
        """
        self.object.check_lockable()
        self.object.must_lock(LIFE, SHARED)
        os.pwrite(self.object.fd, _header.marshal(self.layout), 0)
        self.counted = True

    def attach(self) -> None:
        """Attach, or raise; the caller then calls detach to release the locks."""
        if not self.object.writable:
            return self._attach_uncounted()
        self.object.must_lock(MUTEX, ALONE)
        abandoned = self.object.lock(LIFE, ALONE)
        if abandoned and not self.layout.persistent:
            with contextlib.suppress(OSError):
                _mark_stale_and_unlink(self.object)  # all that were attached have been killed
            raise os_error(errno.ENOENT, self.object.name)
        self._join()
        self.others = 0 if abandoned else self.words.load(COUNT, 4)  # abandoned: it counts killed processes
        self.words.store(COUNT, 4, (self.others + 1) & 0xFFFFFFFF)
        self.counted = True
        self.others = None
        self.object.must_lock(MUTEX, UNHELD)

    def _attach_uncounted(self) -> None:
        """Attach without permission to write, and so without being counted.

        It must see another attachment before it joins. Two such processes that came to a
        stale block and looked afterwards would each take the other for a reason to stay.
        """
        how = self.object.holder(LIFE)
        if how == ALONE:  # another process is finding out whether the block is stale
            raise Retry from _linux.busy(self.object.name)
        if how == UNHELD and not self.layout.persistent:
            raise os_error(errno.ENOENT, self.object.name)
        self._join()

    def _join(self) -> None:
        """Join, and make sure that the name still leads to this block."""
        self.object.must_lock(LIFE, SHARED)
        if not self.object.named():
            raise Retry from os_error(errno.ENOENT, self.object.name)
        if self.words.load(STATE, 4) != LIVE:
            raise Retry from _header.HeaderError("damaged block header: marked stale under its name")

    def detach(self) -> None:
        """End the attachment, and the block if it was the last one. A second call does nothing.

        The kernel's locks decide that, because the count can include killed processes. If a
        stopped process holds the mutex for longer than PATIENCE, the block stays, stale if no
        other process is attached. An exception such as KeyboardInterrupt is raised when the
        attachment has ended.
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
            if os.getpid() == self.pid:  # a forked child must not release its parent's locks
                if not self.settled:
                    with contextlib.suppress(OSError):  # it detaches all the same
                        self._settle()
                    self.settled = True
                self.object.unlock()
            self.words.close()
            self._watches = []
            _attached.discard(self)
            self.object.close()

    def _settle(self) -> None:
        """Lower the count, and remove the block if no other process is attached."""
        if not self.counted and self.others is None:
            return
        try:
            retry(functools.partial(self.object.must_lock, MUTEX, ALONE))
            alone = True
        except TimeoutError:
            alone = False
        with contextlib.suppress(OSError):  # a truncated block does not change the decision
            if self.others is None:
                self.others = (self.words.load(COUNT, 4) - 1) & 0xFFFFFFFF
            self.words.store(COUNT, 4, self.others)
        if alone and not self.layout.persistent and self.object.lock(LIFE, ALONE):
            _mark_stale_and_unlink(self.object)


_attached: Set[_Attachment] = set()


@atexit.register
def _detach_all() -> None:
    for attachment in list(_attached):
        attachment.detach()


def _mark_stale_and_unlink(o: Object) -> None:
    """Remove a block without attachments, or raise why it could not be unlinked.

    The caller has locked MUTEX and LIFE ALONE. In a directory with the sticky bit only the
    owner may unlink; otherwise the block stays, stale, for its owner.
    """
    try:
        os.pwrite(o.fd, struct.pack("=I", STALE), STATE)
    except OSError:  # a full object does not change the decision
        pass
    _linux.unlink_if_named(o)


def _read_header(o: Object) -> Layout:
    # Read by a system call: nothing is mapped before the header is checked.
    o.check_regular()
    return _header.parse(os.pread(o.fd, _header.USED, 0), o.stat.st_size)


def _reap(name: str) -> bool:
    """Unlink the block called name if it has a header and is stale; return whether it did."""
    o = _linux.open_object(name, True)
    try:
        try:
            layout = _read_header(o)
        except _header.TruncatedError as e:
            layout = e.layout
        if layout.persistent:
            return False
        o.check_lockable()
        # Asking first spares blocks in use: the lock would make an opener wait.
        how = o.holder(LIFE)
        if how == SHARED:
            return False
        if how == ALONE:
            raise Retry from _linux.busy(name)
        try:
            o.must_lock(MUTEX, ALONE)
            o.must_lock(LIFE, ALONE)
            _mark_stale_and_unlink(o)
            return True
        finally:
            o.unlock()
    finally:
        o.close()


def _taken(name: str) -> bool:
    """Return whether the name is that of a block in use, a persistent one, or another user's; remove a stale one."""
    try:
        return not _reap(name)
    except PermissionError:
        return True
    except (OSError, ValueError, Retry):
        return False


def reap() -> List[str]:
    """Unlink all stale blocks that the process is permitted to unlink; return their names.

    Blocks in use, persistent blocks, and blocks of other programs are not touched.
    """
    reaped = []
    for name in _linux.names():
        try:
            if _reap(_clean(name)):
                reaped.append(name)
        except (OSError, ValueError, Retry):
            pass  # another program's, not stale, or not permitted
    return reaped


def unlink(name: str) -> None:
    """Remove the name of a block immediately, whether processes are attached or not.

    Attachments keep the memory. It works on every kind of block. Raises FileNotFoundError,
    PermissionError, TimeoutError, or ValueError for a bad name or a file that is not regular.
    """
    name = _clean(name)
    retry(lambda: _unlink_once(name, None))


def _unlink_once(name: str, only: Optional[Object]) -> None:
    """Unlink only, or if that is None the block that has the name."""
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
                raise Retry from os_error(errno.ENOENT, name)  # another block has the name now
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
        raise ValueError(f"bad name {name!r}: must be 1 to 255 of A-Z a-z 0-9 . _ - and not begin with a dot")
    return name


class Segment:
    """An attachment to a block, made by :meth:`create` or :meth:`open`.

    It ends with :meth:`close`, at the end of a ``with`` statement, or with the process,
    however that ends. A Segment that is dropped is detached, with a ResourceWarning, once
    nothing uses its memory. Methods of a closed Segment raise ValueError, as those of a
    file do.

    Threads can share a Segment. A process forked by ``os.fork`` has no attachment of its
    own: the memory that it inherits stays valid, and keeps the block as long as either
    process has it, until the parent closes. Open the block in the child to attach it.
    A pickled Segment does that: its copy is a new attachment.
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

        If name is None, the block gets a random name that no other block has. A stale
        block of the name is replaced. A persistent block stays until it is unlinked. The
        memory is reserved unless the block is sparse. Access to a sparse block ends the
        process if there is no memory left.

        Raises FileExistsError, OSError with ENOSPC, or ENOTSUP if /dev/shm is not a tmpfs,
        PermissionError, TimeoutError, ValueError for a bad name, size or mode, or TypeError
        for a name that is not a str. On error it leaves nothing behind.
        """
        clean = _clean(name) if name is not None else "shm-" + secrets.token_hex(10)
        if not 0 < size < 1 << 62:
            raise ValueError(f"bad size {size}: must be at least 1 and less than 2**62")
        if mode & ~0o777 or mode & 0o600 != 0o600:
            raise ValueError(f"bad mode {mode:#o}: must be within 0o777 and include 0o600")
        if name is not None and _taken(clean):  # before any memory is allocated
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
            retry(lambda: _publish(o))

        return cls._begin(o, layout, False, start)

    @classmethod
    def open(cls, name: str, *, readonly: bool = False) -> "Segment":
        """Attach to the block called name.

        A readonly Segment needs no permission to write. Without that permission it keeps
        the block but is not counted in refs.

        Raises FileNotFoundError if there is no such block or it is stale, PermissionError,
        NotSegmentError, VersionError or HeaderError (all ValueError) for its header,
        ValueError for a bad name, TypeError for a name that is not a str, OSError, or
        TimeoutError if a process was stopped while it attached or detached. On error it
        does not change a block that is in use.
        """
        clean = _clean(name)
        return retry(lambda: cls._open_once(clean, readonly))

    @classmethod
    def _open_once(cls, name: str, readonly: bool) -> "Segment":
        try:
            # To be counted takes permission to write, so even a readonly Segment asks for it.
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
        """Detach, and unlink the block if no other process is attached. A second call does nothing.

        While another process holds the block's mutex it pauses, two seconds in all, and then
        detaches without unlinking. Memory in use stays valid: it is unmapped when no view of
        buf, and no array made from one, refers to it. But the process is not attached any
        more. KeyboardInterrupt during close is raised when it has detached.
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
        if not self._readonly:
            self._attachment.words.store(WRITTEN, 8, self.cap)
        return memoryview(data)[: self.size]

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
        return min(self._attachment.words.load(SIZE, 8), self.cap)

    @property
    def refs(self) -> int:
        """The count of attachments in the header: with killed processes, without those that may only read."""
        self._open_data()
        return min(self._attachment.words.load(COUNT, 4), (1 << 31) - 1)

    @property
    def id(self) -> bytes:
        """16 random bytes that distinguish blocks of one name."""
        return self._attachment.layout.id

    @property
    def readonly(self) -> bool:
        return self._readonly

    @property
    def closed(self) -> bool:
        return self._attachment.object.closed

    @property
    def linked(self) -> bool:
        """Whether the name leads to this block."""
        self._open_data()
        return self._attachment.object.named()

    def truncate(self, size: int) -> None:
        """Set size, 0 to cap, for all processes. Bytes that are cut off are cleared.

        Python has no atomic compare-and-swap: if another process appends at the same moment,
        its new size can be lost. Only one process at a time should set the size.
        """
        data = self._open_data()
        if self._readonly:
            raise io.UnsupportedOperation("segment is read-only")
        if not 0 <= size <= self.cap:
            raise ValueError(f"bad size {size}: must be 0 to {self.cap}")
        # All bytes beyond size are zero, so that setting size is all it takes to grow a block.
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
        left = os.pread(self._attachment.object.fd, rest, self._attachment.layout.header_size + start)
        return start + rest if any(left) else start

    def unlink(self) -> None:
        """Remove the block's name immediately. Attachments keep the memory.

        Raises FileNotFoundError if the block has lost its name already, PermissionError or
        TimeoutError.
        """
        self._open_data()
        retry(lambda: _unlink_once(self.name, self._attachment.object))

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
    """Give the block its name; a stale block of that name is removed."""
    try:
        o.publish()
    except FileExistsError as e:
        try:
            gone = _reap(o.name)
        except (FileNotFoundError, Retry):
            gone = True
        except (OSError, ValueError):
            gone = False
        if gone:
            raise Retry from e
        raise
