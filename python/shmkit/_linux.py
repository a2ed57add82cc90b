"""Objects, names and locks, as in platform_linux.go; nothing about headers."""

import errno
import fcntl
import itertools
import os
import random
import select
import stat
import struct
import time
from typing import Callable, Dict, List, NamedTuple, Set, Tuple, TypeVar

DIR = "/dev/shm/"

# Since Python 3.9 in fcntl; the same on all architectures of Linux.
_F_OFD_GETLK = getattr(fcntl, "F_OFD_GETLK", 36)
_F_OFD_SETLK = getattr(fcntl, "F_OFD_SETLK", 37)
# struct flock: type, whence, start, length, process id (zero), padding.
_FLOCK = struct.Struct("hhqqi0q")

# The locks are on bytes of the object beyond all data: one that try_lock locks, and
# one for each attachment that has joined, which says whose it is. To be alone is to
# lock all of them. They end below 1<<63-1: a lock up to there is reported with
# length 0.
SIZE_GUEST = (1 << 62) - 2  # two for guests of the locks in the header, whom being alone does not concern
GUEST = (1 << 62) - 1
LOCK_BYTE = 1 << 62
WRITERS = 5 << 60  # own bytes of attachments that may write
READERS = 6 << 60  # and of the others, and of those that have only followed
END_OF_LOCKS = 7 << 60
TAG_MASK = (1 << 60) - 1

# A tag names an attachment: 20 bits for the namespace of process ids, 0 if it is
# not known, 22 for the process id, 18 that count attachments of the process.
_PID_BITS = 22  # process ids end at 4194303: PID_MAX_LIMIT
_COUNT_BITS = 18

_tags = itertools.count(random.randrange(1 << _COUNT_BITS))


def _namespace() -> int:
    """The low 20 bits of the inode number of this process's namespace of process ids.

    The kernel hands the numbers out from the lowest: namespaces(7). It is asked each
    time, because a forked child can have another namespace.
    """
    try:
        return os.stat("/proc/self/ns/pid").st_ino & ((1 << 20) - 1)
    except OSError:
        return 0


def _new_tag() -> int:
    count = next(_tags) & ((1 << _COUNT_BITS) - 1)
    return _namespace() << (_PID_BITS + _COUNT_BITS) | os.getpid() << _COUNT_BITS | count


def _own_byte(tag: int, writer: bool) -> int:
    return (WRITERS if writer else READERS) | tag & TAG_MASK


class Holder(NamedTuple):
    """An attachment to a block.

    That it exists is the word of the kernel. What it says of itself is the word of
    its process, which can forge it.
    """

    pid: int  #: process id, as the process saw it
    readonly: bool  #: opened so, or it has only followed
    here: bool  #: pid means that process here: it has the same namespace of process ids
    gone: bool  #: the process has ended, but a child of it has the attachment


def ended(pid: int) -> bool:
    """Whether no process has this id; one that may not be asked about exists: kill(2)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _holder(at: int) -> Holder:
    namespace = at >> (_PID_BITS + _COUNT_BITS) & ((1 << 20) - 1)
    pid = at >> _COUNT_BITS & ((1 << _PID_BITS) - 1)
    here = namespace != 0 and namespace == _namespace()
    return Holder(pid, at >= READERS, here, here and ended(pid))


# What Object.others can see.
NOBODY = 0
SOMEBODY = 1  # at least one other Object has joined
ENDING = 2  # as SOMEBODY, but all their processes have ended: the kernel is releasing their locks
DECIDING = 3  # another Object is alone

T = TypeVar("T")


class Again(Exception):
    """A transient condition, its cause: close the object and start again from the name."""


PATIENCE = 2.0  # seconds; what the pauses of one call that waits for other processes come to


class Attempt:
    """The state of one call that may have to wait, shared by all loops in which it does.

    It adds up its pauses and does not ask the clock: while the process, its container
    or the machine is frozen, time passes in which nothing could change.
    """

    def __init__(self, left: float) -> None:
        self.left = left  # what its pauses may still come to

    def may_await_ending(self) -> bool:
        """Whether it may still wait for the kernel to release the locks of ended processes."""
        return self.left > PATIENCE / 2

    def retry(self, f: Callable[[], T]) -> T:
        """Call f until it does not raise Again, or no patience is left; then raise the cause.

        The less patience is left, the shorter the pauses, so that a process that has
        waited for long comes before those that begin to.
        """
        first = pause = 20e-6
        while True:
            try:
                return f()
            except Again as again:
                if self.left <= 0:
                    assert again.__cause__ is not None
                    raise again.__cause__ from None
            # Processes that begin to wait together do not go on together.
            jittered = random.uniform(0.5, 1.5) * pause
            time.sleep(jittered)
            self.left -= jittered
            pause = min(2 * pause, 10e-3, max(self.left / 200, first))


def patiently(f: Callable[[Attempt], T]) -> T:
    """Retry f, a call that gets the attempt that it is part of."""
    attempt = Attempt(PATIENCE)
    return attempt.retry(lambda: f(attempt))


def os_error(number: int, name: str) -> OSError:
    """Return the OSError, or its subclass, for an error number."""
    return OSError(number, os.strerror(number), name)


def renamed(e: OSError, name: str) -> OSError:
    """Return an error of the system with the name of the block, and EACCES for EROFS, as Go has it."""
    number = errno.EACCES if e.errno == errno.EROFS else e.errno
    return os_error(number or 0, name)


def busy(name: str) -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, "block is locked by another process", name)


class Object:
    """An open file description, which owns locks on Linux.

    KeyboardInterrupt can be raised between any two instructions of Python, but not in a
    call of a C function. So one such call opens the descriptor and passes it to an object
    that closes it once. An epoll object can own a descriptor of any kind, and closes it
    when it is dropped, without a warning.
    """

    def __init__(self, name: str, path: str, flags: int, mode: int = 0) -> None:
        """Open path or raise OSError. name is for errors."""
        self.name = name
        self.writable = flags & os.O_ACCMODE == os.O_RDWR
        self.tag = 0  # once it has joined
        self.writer = False
        self._owner = next(map(select.epoll.fromfd, map(os.open, [path], [flags | os.O_CLOEXEC], [mode])))
        self.stat = os.fstat(self.fd)  # when it was opened; device and inode never change

    @property
    def fd(self) -> int:
        return self._owner.fileno()  # raises ValueError if closed

    @property
    def closed(self) -> bool:
        return self._owner.closed

    def close(self) -> None:
        """Close the descriptor. A second call does nothing."""
        self._owner.close()

    def _set_lock(self, how: int, start: int, length: int) -> bool:
        """Set a lock without waiting; False if another description is in the way.

        A change that fails keeps what there was. The kernel releases the locks when
        the description goes, however the process ends.
        """
        try:
            # The owner, not its number: no signal comes between asking for that and its use.
            fcntl.fcntl(self._owner, _F_OFD_SETLK, _FLOCK.pack(how, os.SEEK_SET, start, length, 0))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _get_lock(self, start: int, end: int) -> Tuple[bool, int, int]:
        """A lock of another description on one of the bytes: whether there is one, its start and length."""
        wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, end - start, 0)
        kind, _, at, length, _ = _FLOCK.unpack(fcntl.fcntl(self._owner, _F_OFD_GETLK, wanted))
        return kind != fcntl.F_UNLCK, at, length

    def must_join(self, writer: bool, used: Callable[[int], bool]) -> None:
        """Lock a byte of its own, among the writers or the others; Again while another Object is alone.

        The tag that it has then is not used.
        """
        while True:
            tag = _new_tag()
            if self._lock_own(tag, writer):
                if not used(tag):
                    break
                self._unlock_own(tag, writer)
        self.tag, self.writer = tag, writer

    def _lock_own(self, tag: int, writer: bool) -> bool:
        """Lock an own byte; False if another Object has it, Again if one is alone.

        A writable description takes a write lock, so that no other attachment has the
        byte. One for reading only can take no more than a read lock, and relies on the
        number that its process gives it.
        """
        own = _own_byte(tag, writer)
        if self._set_lock(fcntl.F_WRLCK if self.writable else fcntl.F_RDLCK, own, 1):
            return True
        there, _, length = self._get_lock(own, own + 1)
        if there and length != 1:
            raise Again from busy(self.name)
        return False

    def _unlock_own(self, tag: int, writer: bool) -> None:
        self._set_lock(fcntl.F_UNLCK, _own_byte(tag, writer), 1)

    def set_writer(self, writer: bool) -> None:
        """Move an Object that has joined to the writers or to the others.

        It locks the new byte before it unlocks the old one, so that it has joined all
        the time.
        """
        if self.writer == writer:
            return
        old = tag = self.tag
        while not self._lock_own(tag, writer):
            tag = _new_tag()
        self.tag = tag
        self._unlock_own(old, not writer)
        self.writer = writer

    def writers(self) -> bool:
        """Whether another Object has joined the writers."""
        return self._get_lock(WRITERS, READERS)[0]

    def gone(self, tag: int) -> bool:
        """Whether the other Object with that tag, of this or of another process, is no writer any more."""
        own = _own_byte(tag, True)
        return not self._get_lock(own, own + 1)[0]

    def try_guest(self, byte: int) -> bool:
        """Keep other Objects from being the guest of a lock in the header, until end_guest. It may be repeated."""
        return self._set_lock(fcntl.F_WRLCK, byte, 1)

    def end_guest(self, byte: int) -> None:
        self._set_lock(fcntl.F_UNLCK, byte, 1)

    def try_alone(self) -> bool:
        """Keep all other Objects from joining and from try_lock, until leave.

        False if another has joined, is alone, or has the lock of try_lock.
        """
        return self._set_lock(fcntl.F_WRLCK, LOCK_BYTE, END_OF_LOCKS - LOCK_BYTE)

    def must_be_alone(self) -> None:
        if not self.try_alone():
            raise Again from busy(self.name)

    def try_lock(self) -> bool:
        """Keep other Objects from being alone and from try_lock, until leave."""
        return self._set_lock(fcntl.F_WRLCK, LOCK_BYTE, 1)

    def must_lock(self) -> None:
        if not self.try_lock():
            raise Again from busy(self.name)

    def leave(self) -> None:
        """Release all locks.

        It must come before close: a child that another thread is starting, and a mapping
        and its views, keep the description open.
        """
        self._set_lock(fcntl.F_UNLCK, 0, 0)

    def others(self) -> int:
        """Which other Objects have joined, without a lock that they would see."""
        there, at, length = self._get_lock(WRITERS, END_OF_LOCKS)
        if not there:
            return NOBODY
        if length != 1:
            return DECIDING
        if _holder(at).gone and all(h.gone for h in self.holders()):
            return ENDING
        return SOMEBODY

    def holders(self) -> List[Holder]:
        """The other Objects that have joined, in no order: the kernel tells one lock a call.

        It is exact if none joins or leaves meanwhile.
        """
        holders: Dict[int, Holder] = {}  # one that moves has two bytes of one tag for a moment
        ranges = [(WRITERS, END_OF_LOCKS)]
        calls = 4096  # an end, should a process lock all bytes
        while ranges and calls:
            start, end = ranges.pop()
            if start >= end:
                continue
            calls -= 1
            there, at, length = self._get_lock(start, end)
            if not there:
                continue
            if length == 1:
                holders.setdefault(at & TAG_MASK, _holder(at))
            ranges += [(start, at), (at + max(length, 1), end)]
        return list(holders.values())

    def check_regular(self) -> None:
        """Raise ValueError unless the object is a regular file."""
        if not stat.S_ISREG(self.stat.st_mode):
            raise ValueError(f"not a regular file: {self.name!r}")

    def check_lockable(self) -> None:
        """Raise OSError (ENOTSUP) unless the object is on a tmpfs.

        On network and user-space file systems two machines can be granted one lock.
        """
        dev = self.stat.st_dev
        if dev in _tmpfs_devices:
            return
        number = f"{os.major(dev)}:{os.minor(dev)}"
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:  # proc_pid_mountinfo(5)
                mount, _, kind = line.partition(" - ")
                if mount.split()[2] == number and kind.split()[0] == "tmpfs":
                    _tmpfs_devices.add(dev)
                    return
        raise OSError(errno.ENOTSUP, f"{DIR} is not a tmpfs", self.name)

    def linked(self) -> bool:
        """Whether the name leads to this object; an open inode's number is not reused."""
        try:
            there = os.stat(DIR + self.name, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(self.stat, there)

    def publish(self) -> None:
        """Give a new object its name, or raise FileExistsError."""
        # Without a directory os.link calls link(2), which does not follow the link in
        # /proc. An absolute path does not use the directory.
        try:
            os.link(f"/proc/self/fd/{self.fd}", DIR + self.name, src_dir_fd=self.fd, follow_symlinks=True)
        except OSError as e:
            raise renamed(e, self.name) from None

    def reserve(self, size: int) -> None:
        """Allocate the memory of size bytes, or raise OSError (ENOSPC).

        A signal makes fallocate on tmpfs release all that the call has allocated, so it is
        called for one piece after the other. A size that cannot fit is not begun, because it
        would fill the file system before it fails.
        """
        fs = os.fstatvfs(self.fd)
        free = fs.f_bavail * fs.f_frsize
        if fs.f_blocks == 0:  # mounted without a limit: tmpfs(5)
            free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if size > free:
            raise os_error(errno.ENOSPC, self.name)
        piece = 2 << 20
        for offset in range(0, size, piece):
            os.posix_fallocate(self.fd, offset, min(piece, size - offset))


_tmpfs_devices: Set[int] = set()


def create_object(name: str, size: int, mode: int, sparse: bool) -> Object:
    """Create an object that publish will give its name; closed before that, it is gone."""
    try:
        o = Object(name, DIR, os.O_TMPFILE | os.O_RDWR, mode)
        try:
            os.fchmod(o.fd, mode)  # the umask has removed bits
            os.ftruncate(o.fd, size)
            if not sparse:
                o.reserve(size)
        except BaseException:
            o.close()
            raise
    except OSError as e:
        raise renamed(e, name) from None
    return o


def open_object(name: str, write: bool) -> Object:
    """Open the object called name. Links are not followed, and no kind of file makes it wait."""
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    try:
        return Object(name, DIR + name, flags | (os.O_RDWR if write else os.O_RDONLY))
    except OSError as e:
        if e.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise ValueError(f"not a regular file: {name!r}") from None
        if e.errno == errno.EAGAIN:  # another process has a lease on it: fcntl(2)
            raise Again from busy(name)
        raise renamed(e, name) from None


def unlink_if_linked(o: Object) -> None:
    """Unlink the object if its name leads to it, or raise FileNotFoundError."""
    if not o.linked():
        raise os_error(errno.ENOENT, o.name)
    unlink_object(o.name)


def unlink_object(name: str) -> None:
    """Remove the name, whatever it leads to."""
    try:
        os.unlink(DIR + name)
    except OSError as e:
        raise renamed(e, name) from None


def unlink_unopened(name: str) -> None:
    """Unlink a block that the process may not open; permission to unlink is sufficient."""
    st = os.stat(DIR + name, follow_symlinks=False)
    if not stat.S_ISREG(st.st_mode):
        raise ValueError(f"not a regular file: {name!r}")
    unlink_object(name)


def names() -> List[str]:
    """Return the names of all objects."""
    with os.scandir(DIR) as entries:
        return [e.name for e in entries if e.is_file(follow_symlinks=False)]

