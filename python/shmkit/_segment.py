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
from ._linux import Again, Attempt, Holder, Object, os_error, patiently

# Before 3.13 each mapping keeps a copy of the descriptor, which data does not need.
_UNTRACKED = {"trackfd": False} if sys.version_info >= (3, 13) else {}


def _access(writable: bool) -> int:
    return mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ


class _Words:
    """The words of the header that change.

    Each is read and written by one aligned access of its size. The count decides
    nothing, so that a change of it can be lost; what a Python process does to the
    others needs no comparison with what they were (see Segment.truncate).
    """

    def __init__(self, o: Object, layout: Layout, writable: bool) -> None:
        self._name = o.name
        self._whole = layout.object_size
        self._map = mmap.mmap(o.fd, layout.header_size, access=_access(writable))
        self._view = memoryview(self._map)
        self._by_size = {4: self._view.cast("I"), 8: self._view.cast("Q")}

    def _check(self) -> None:
        # To access memory that another process has truncated would end the process.
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
        if not held and not self.layout.persistent:
            if self.object.writable:
                self.object.must_be_alone()
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
            self.object.must_join(not self.readonly)
        except Again:
            self.joined = False
            raise

    def holders(self) -> List[Holder]:
        """Who is attached, this attachment included."""
        gone = self.pid != os.getpid() and _linux.ended(self.pid)  # of a forked child it is the parent's
        return [*self.object.holders(), Holder(self.pid, self.readonly, True, gone)]

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
            if os.getpid() == self.pid:  # a forked child must not release its parent's locks
                if not self.settled:
                    with contextlib.suppress(OSError):  # it detaches all the same
                        self._settle()
                    self.settled = True
                self.object.leave()
            self.words.close()
            self._watches = []
            _attached.discard(self)
            self.object.close()

    def _settle(self) -> None:
        """Leave the count, and end the block if no other process is attached."""
        last = self._uncount()
        o = self.object
        if not self.joined or self.layout.persistent or not o.writable:
            return
        if last and o.try_alone():
            return _unlink_and_mark_stale(o)
        # Having left, one of several that leave at once finds that it is the last.
        o.leave()
        patiently(lambda _: _end(o))

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


def _in_use(attempt: Attempt, o: Object) -> bool:
    """Whether a process is attached to the block; if not, and it is not persistent, it is stale."""
    others = o.others()
    if others == _linux.DECIDING or others == _linux.ENDING and attempt.may_await_ending():
        raise Again from _linux.busy(o.name)
    return others != _linux.NOBODY


def _end(o: Object) -> None:
    """End a block that this process has left, unless another one is attached."""
    others = o.others()
    if others == _linux.DECIDING:
        raise Again from _linux.busy(o.name)
    if others == _linux.NOBODY:
        o.must_be_alone()
        _unlink_and_mark_stale(o)


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
        except _header.TruncatedError as e:
            layout = e.layout
        if layout.persistent:
            return False
        o.check_lockable()
        if _in_use(attempt, o):
            return False
        try:
            o.must_be_alone()  # another process may have attached in the meantime
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
        if not self.readonly:
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

        Python has no atomic compare-and-swap: if another process appends at the same moment,
        its new size can be lost. Only one process at a time should set the size.
        """
        data = self._open_data()
        if self.readonly:
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
