"""Objects, names and locks, as in platform_linux.go; nothing about headers."""

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

# Two bytes of the object, beyond all data, that are locked.
MUTEX = 1 << 62  # locked ALONE, for microseconds, to attach, detach or unlink
LIFE = MUTEX + 1  # locked SHARED by each attachment

T = TypeVar("T")


class Retry(Exception):
    """A transient condition, its cause: retry from the name."""


PATIENCE = 2.0  # seconds, the sum of the pauses of a call that waits for other processes


def retry(f: Callable[[], T]) -> T:
    """Call f until it does not raise Retry, with pauses of PATIENCE in all; then raise the cause.

    It adds up the pauses instead of reading a clock: a process that was stopped meanwhile,
    as in a frozen container, must not give up when it continues.
    """
    pause, waited = 20e-6, 0.0
    while True:
        try:
            return f()
        except Retry as transient:
            if waited >= PATIENCE:
                assert transient.__cause__ is not None
                raise transient.__cause__ from None
        time.sleep(pause)
        waited += pause
        pause = min(2 * pause, 5e-3)


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

    def lock(self, byte: int, how: int) -> bool:
        """Lock, relock or unlock a byte without waiting; False if another lock conflicts.

        A failed change from SHARED to ALONE keeps the lock SHARED. The kernel releases
        the locks with the description, however the process ends.
        """
        try:
            fcntl.fcntl(self.fd, _F_OFD_SETLK, _FLOCK.pack(how, os.SEEK_SET, byte, 1, 0))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def must_lock(self, byte: int, how: int) -> None:
        """lock, but raise Retry if another lock conflicts."""
        if not self.lock(byte, how):
            raise Retry from busy(self.name)

    def unlock(self) -> None:
        """Release all locks.

        It must come before close: a child that another thread is starting, and a mapping
        and its views, keep the description open.
        """
        fcntl.fcntl(self.fd, _F_OFD_SETLK, _FLOCK.pack(UNHELD, os.SEEK_SET, 0, 0, 0))

    def holder(self, byte: int) -> int:
        """Return how other descriptions have locked a byte; takes no lock."""
        lock = fcntl.fcntl(self.fd, _F_OFD_GETLK, _FLOCK.pack(ALONE, os.SEEK_SET, byte, 1, 0))
        return int(_FLOCK.unpack(lock)[0])

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

    def named(self) -> bool:
        """Return whether the name leads to this object. The inode number of an open file is not reused."""
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
            raise Retry from busy(name)
        raise renamed(e, name) from None


def unlink_if_named(o: Object) -> None:
    """Unlink the object, or raise FileNotFoundError if its name does not lead to it."""
    if not o.named():
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

