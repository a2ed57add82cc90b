"""The words of the header that change, and sleeping until one of them does: futex(2)."""

import ctypes
import errno
import mmap
import os
import struct
import sys
from typing import Optional

from ._header import ARMED, EVENT, Layout
from ._linux import Object

_WAIT, _WAKE_OP = 0, 5  # operations on words that processes share
_ADD, _OR, _SHIFTED = 1, 2, 8  # what _WAKE_OP does to a word; 1 << operand instead of the operand
_ALL = (1 << 31) - 1

# The number of the system call, for which no library has a function, on the machines
# that Go knows: in 32-bit processes and in others.
_NUMBERS = {
    "x86_64": (240, 202),
    "i": (240, None),
    "aarch64": (240, 98),
    "arm": (240, None),
    "riscv": (None, 98),
    "loongarch": (None, 98),
    "ppc": (221, 221),
    "s390": (238, 238),
    "mips": (4238, 5194),
}


def _number() -> int:
    machine, wide = os.uname().machine, struct.calcsize("P") == 8
    for prefix, numbers in _NUMBERS.items():
        number = numbers[wide]
        if machine.startswith(prefix) and number:
            return number
    raise ImportError(f"shmkit does not know the system calls of {machine}")


_FUTEX = _number()
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [
    ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32
]  # fmt: skip


def _change(word: ctypes.c_uint32, operation: int, operand: int) -> None:
    """Change a word by an atomic operation, and wake all that sleep on it.

    It is the only atomic operation that Python can use, and a full barrier: what this
    thread has stored before, others see before what it loads after.
    """
    at = ctypes.byref(word)
    if _syscall(_FUTEX, at, _WAKE_OP, _ALL, None, at, operation << 28 | operand << 12) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_own = ctypes.c_uint32()


def barrier() -> None:
    """Let others see what this thread has stored before, before what it stores or loads after."""
    _change(_own, _ADD, 0)


class Words:
    """The words of the header that change.

    Each is read and written by one aligned access of its size. The count decides
    nothing, so that a change of it can be lost. What may change in another process at
    the same moment is changed by an atomic operation of the kernel, or under a lock.
    """

    def __init__(self, o: Object, layout: Layout, writable: bool) -> None:
        self._name = o.name
        self._whole = layout.object_size
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        self._map: Optional[mmap.mmap] = mmap.mmap(o.fd, layout.header_size, access=access)
        self._view = memoryview(self._map)
        self._by_size = {4: self._view.cast("I"), 8: self._view.cast("Q")}

    def _check(self) -> mmap.mmap:
        whole = self._map
        if whole is None:
            raise ValueError("segment is closed")
        # To access memory that another process has truncated would end the process.
        if whole.size() < self._whole:
            raise OSError(errno.EFAULT, "block was truncated by another program", self._name)
        return whole

    def load(self, offset: int, size: int) -> int:
        self._check()
        return int(self._by_size[size][offset // size])

    def store(self, offset: int, size: int, value: int) -> None:
        self._check()
        self._by_size[size][offset // size] = value

    def publish(self, offset: int, size: int, value: int) -> None:
        """Store a word that others may see only after what was stored before."""
        barrier()
        self.store(offset, size, value)

    def set_bit(self, offset: int, size: int, bit: int) -> None:
        """Set a bit of a word by an atomic operation."""
        half = bit // 32 if sys.byteorder == "little" else size // 4 - 1 - bit // 32
        _change(self._word(offset + 4 * half), _OR | _SHIFTED, bit % 32)

    def arm(self) -> None:
        """Have those that change a word wake this process, before it looks at that."""
        self.set_bit(ARMED, 4, 0)

    def wake(self, offset: int = EVENT) -> None:
        """Change a word, and wake all that sleep on it.

        It does not ask whether one is armed: that costs no less. One that arms meanwhile
        has seen the word before it changes.
        """
        if offset == EVENT and self.load(ARMED, 4):
            self.store(ARMED, 4, 0)
        _change(self._word(offset), _ADD, 1)

    def sleep(self, offset: int, value: int, seconds: float) -> None:
        """Return at once unless the word has that value; else when woken, after seconds, or earlier."""
        timeout = (ctypes.c_long * 2)(int(seconds), int(seconds % 1 * 1e9))
        if _syscall(_FUTEX, ctypes.byref(self._word(offset)), _WAIT, value, timeout, None, 0) < 0:
            number = ctypes.get_errno()
            if number not in (errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.EFAULT):
                raise OSError(number, os.strerror(number), self._name)

    def _word(self, offset: int) -> ctypes.c_uint32:
        return ctypes.c_uint32.from_buffer(self._check(), offset)  # keeps the mapping

    def close(self) -> None:
        """Drop the header. A second call does nothing. Uses in other threads raise ValueError."""
        for view in (*self._by_size.values(), self._view):
            view.release()
        self._map = None  # not closed: a thread may be asleep on it
