"""The header page of a block; header.go has the table of its format.

Any process that may write to the block can have changed it, so it is checked before use.
"""

import mmap
import os
import struct
import time
from typing import List, NamedTuple

MAGIC = b"shmkit\x1a\n"
VERSION = 2

PERSISTENT = 1 << 0
SPARSE = 1 << 1

LIVE = 1
STALE = 2

# Bytes 0 to 63: magic, version, size of the header, capacity, flags, creator's
# process id, time of creation, id, zero, checksum of all before it.
_FIXED = struct.Struct("=8sIIQIIQ16sII")
_CHECKED = 60

# The words after it change.
STATE = 64  # 4 bytes
KEEP = 68  # 4 bytes
COUNT = 128  # 4 bytes
SIZE = 192  # 8 bytes
ARMED = 200  # 4 bytes
GENERATION = 208  # 8 bytes
DIRTY = 216  # 8 bytes
WRITTEN = 256  # 8 bytes
EVENT = 320  # 4 bytes
LOCK = 384  # 20 bytes: see lockWords in lock.go
SIZE_LOCK = 448  # 20 bytes
USED = 768

# The bits of the word SIZE: see sizeWord in header.go. The low bits of GENERATION come
# after the length.
LENGTH_BITS, LOW_BITS = 48, 13
CUT = 1 << 61
BEGUN = 1 << 62
FINISHED = 1 << 63


def length(word: int) -> int:
    return word & ((1 << LENGTH_BITS) - 1)


def low(word: int) -> int:
    """The low bits of the generation in the word SIZE."""
    return low_bits(word >> LENGTH_BITS)


def low_bits(generation: int) -> int:
    return generation & ((1 << LOW_BITS) - 1)


def size_word(length: int, generation: int, flags: int) -> int:
    return length | low_bits(generation) << LENGTH_BITS | flags


_MIN_HEADER, _MAX_HEADER = 4 << 10, 64 << 10  # page sizes lie between these


class HeaderError(ValueError):
    """The header of a block is damaged."""


class NotSegmentError(HeaderError):
    """The object has no header: it is a block of another program, or no block at all."""


class VersionError(HeaderError):
    """The header has another version of the format."""


def _crc32c_table() -> List[int]:
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


_TABLE = _crc32c_table()


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of data (RFC 3720, appendix B.4), which zlib does not have."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


class Layout(NamedTuple):
    """The part of a header that never changes."""

    header_size: int
    capacity: int
    flags: int
    creator: int
    created: int
    id: bytes

    @property
    def persistent(self) -> bool:
        return bool(self.flags & PERSISTENT)

    @property
    def sparse(self) -> bool:
        return bool(self.flags & SPARSE)

    @property
    def object_size(self) -> int:
        return self.header_size + self.capacity


def new_layout(capacity: int, flags: int) -> Layout:
    return Layout(mmap.PAGESIZE, capacity, flags, os.getpid(), time.time_ns(), os.urandom(16))


def marshal(layout: Layout) -> bytes:
    """Return the header of a new block with one attachment."""
    b = bytearray(USED)
    _FIXED.pack_into(b, 0, MAGIC, VERSION, *layout, 0, 0)
    struct.pack_into("=I", b, _CHECKED, crc32c(b[:_CHECKED]))
    struct.pack_into("=I", b, STATE, LIVE)
    struct.pack_into("=I", b, COUNT, 1)
    struct.pack_into("=Q", b, SIZE, layout.capacity)
    return bytes(b)


def parse(b: bytes, object_size: int) -> Layout:
    """Return the layout from the header at the start of an object of object_size bytes.

    Raises NotSegmentError, VersionError, ShortError or HeaderError.
    """
    if len(b) < STATE or b[: len(MAGIC)] != MAGIC:
        raise NotSegmentError("not a block with a shm header")
    _, version, *rest, _, checksum = _FIXED.unpack_from(b)
    if crc32c(b[:_CHECKED]) != checksum:
        raise HeaderError("damaged block header: wrong checksum")
    if version != VERSION:
        raise VersionError(f"unknown version of block header: {version}: must be {VERSION}")
    layout = Layout(*rest)
    size = layout.header_size
    if not _MIN_HEADER <= size <= _MAX_HEADER or size & (size - 1) or not 0 < layout.capacity < 1 << 62:
        raise HeaderError(f"damaged block header: {size}+{layout.capacity} bytes")
    if object_size < layout.object_size:
        raise ShortError("damaged block header: shorter than it says", layout)
    return layout


class ShortError(HeaderError):
    """The header is correct, but its object is too short."""

    def __init__(self, message: str, layout: Layout) -> None:
        super().__init__(message)
        self.layout = layout
