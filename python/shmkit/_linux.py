"""What platform_linux.go is for Go: objects, names and locks, no headers."""

import errno
import fcntl
import os
import select
import stat
import struct
import time
from typing import Callable, List, Set, TypeVar

DIR = "/dev/shm/"

# Since Python 3.9 in fcntl; the same on all architectures of Linux.
_F_OFD_GETLK = getattr(fcntl, "F_OFD_GETLK", 36)
_F_OFD_SETLK = getattr(fcntl, "F_OFD_SETLK", 37)
# struct flock: type, whence, start, length, process id (zero), padding.
_FLOCK = struct.Struct("hhqqi0q")

UNHELD, SHARED, ALONE = fcntl.F_UNLCK, fcntl.F_RDLCK, fcntl.F_WRLCK

# Lanes are single bytes of the object, beyond all data, that a lock stands on.
MUTEX = 1 << 62  # held alone, for microseconds, by whoever attaches, detaches or unlinks
LIFE = MUTEX + 1  # held shared by everybody attached

T = TypeVar("T")


class Again(Exception):
    """A failure, its cause, that may go away: start over from the name."""


PATIENCE = 2.0  # seconds that we wait for a peer, who holds a lane for microseconds


def patiently(f: Callable[[], T]) -> T:
    """Call f until it does not raise Again, for about PATIENCE, then raise the cause.

    It adds up its pauses and does not ask the clock: a process that was stopped
    meanwhile, as in a frozen container, must not give up when it wakes.
    """
    pause, waited = 20e-6, 0.0
    while True:
        try:
            return f()
        except Again as again:
            if waited >= PATIENCE:
                assert again.__cause__ is not None
                raise again.__cause__ from None
        time.sleep(pause)
        waited += pause
        pause = min(2 * pause, 5e-3)


def os_error(number: int, name: str) -> OSError:
    """The OSError, or the subclass of it, for an error number."""
    return OSError(number, os.strerror(number), name)


def renamed(e: OSError, name: str) -> OSError:
    """An error of the system with the name of the block, and as Go tells it."""
    number = errno.EACCES if e.errno == errno.EROFS else e.errno
    return os_error(number or 0, name)


def busy(name: str) -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, "block is locked by another process", name)


class Object:
    """An open file description of its own, which is what Linux counts locks by.

    KeyboardInterrupt can come between any two instructions of Python, but not
    within a call of a function in C. So the descriptor is opened, and becomes
    that of an object that closes it once, in one such call. An epoll object can
    own a descriptor of any kind, and closes it when it is dropped, in silence.
    """

    def __init__(self, name: str, path: str, flags: int, mode: int = 0) -> None:
        """Open path, or raise OSError; name is for errors."""
        self.name = name
        self.writable = flags & os.O_ACCMODE == os.O_RDWR
        self._owner = next(map(select.epoll.fromfd, map(os.open, [path], [flags | os.O_CLOEXEC], [mode])))
        self.stat = os.fstat(self.fd)  # as it was opened; which file it is never changes

    @property
    def fd(self) -> int:
        return self._owner.fileno()  # or ValueError

    @property
    def closed(self) -> bool:
        return self._owner.closed

    def close(self) -> None:
        """Close the descriptor; again, do nothing."""
        self._owner.close()

    def lock(self, lane: int, how: int) -> bool:
        """Take, change or drop a lane without waiting; False if others are in the way.

        A failed change from SHARED to ALONE keeps it shared. The kernel drops
        the lanes when the description goes, however the process ends.
        """
        try:
            fcntl.fcntl(self.fd, _F_OFD_SETLK, _FLOCK.pack(how, os.SEEK_SET, lane, 1, 0))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def must_lock(self, lane: int, how: int) -> None:
        """lock, but Again if others are in the way."""
        if not self.lock(lane, how):
            raise Again from busy(self.name)

    def unlock(self) -> None:
        """Drop all lanes.

        It must come before close: a child being started by another thread, a
        mapping and whatever views it has keep the description open.
        """
        fcntl.fcntl(self.fd, _F_OFD_SETLK, _FLOCK.pack(UNHELD, os.SEEK_SET, 0, 0, 0))

    def holder(self, lane: int) -> int:
        """How others hold a lane, without disturbing them."""
        lock = fcntl.fcntl(self.fd, _F_OFD_GETLK, _FLOCK.pack(ALONE, os.SEEK_SET, lane, 1, 0))
        return int(_FLOCK.unpack(lock)[0])

    def check_regular(self) -> None:
        """Raise ValueError for what is not a regular file."""
        if not stat.S_ISREG(self.stat.st_mode):
            raise ValueError(f"not a regular file: {self.name!r}")

    def check_lockable(self) -> None:
        """Raise OSError (ENOTSUP) unless the object is on a tmpfs.

        On network and user-space file systems two kernels can both grant one lock.
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

    def named(self) -> bool:
        """Whether the name leads to this object; an open inode's number is not reused."""
        try:
            there = os.stat(DIR + self.name, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(self.stat, there)

    def publish(self) -> None:
        """Give a new object its name, or raise FileExistsError."""
        # os.link calls link(2), which does not follow the link in /proc, unless
        # it is given a directory; an absolute path does not use that.
        try:
            os.link(f"/proc/self/fd/{self.fd}", DIR + self.name, src_dir_fd=self.fd, follow_symlinks=True)
        except OSError as e:
            raise renamed(e, self.name) from None

    def reserve(self, size: int) -> None:
        """Allocate the memory of size bytes, or raise OSError (ENOSPC).

        A signal makes fallocate on tmpfs give back all that the call had
        allocated, so it goes by pieces. What cannot fit is not begun, for it
        would fill the file system on the way to failure.
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
    """A new object to be called name: it is gone when it is closed before publish."""
    try:
        o = Object(name, DIR, os.O_TMPFILE | os.O_RDWR, mode)
        try:
            os.fchmod(o.fd, mode)  # the umask took bits away
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
    """The object called name; what is not a regular file is never followed or waited for."""
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    try:
        return Object(name, DIR + name, flags | (os.O_RDWR if write else os.O_RDONLY))
    except OSError as e:
        if e.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise ValueError(f"not a regular file: {name!r}") from None
        if e.errno == errno.EAGAIN:  # somebody has a lease on it: fcntl(2)
            raise Again from busy(name)
        raise renamed(e, name) from None


def unlink_if_named(o: Object) -> None:
    """Take its name away from the object, or raise FileNotFoundError if it has lost it."""
    if not o.named():
        raise os_error(errno.ENOENT, o.name)
    unlink_object(o.name)


def unlink_object(name: str) -> None:
    """Take the name away, whatever it leads to."""
    try:
        os.unlink(DIR + name)
    except OSError as e:
        raise renamed(e, name) from None


def unlink_unopened(name: str) -> None:
    """Take the name away from a block that we may not open, for which that right suffices."""
    st = os.stat(DIR + name, follow_symlinks=False)
    if not stat.S_ISREG(st.st_mode):
        raise ValueError(f"not a regular file: {name!r}")
    unlink_object(name)


def names() -> List[str]:
    """The names of the objects there are."""
    with os.scandir(DIR) as entries:
        return [e.name for e in entries if e.is_file(follow_symlinks=False)]

