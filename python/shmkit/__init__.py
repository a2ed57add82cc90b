"""Named shared memory that lives exactly as long as somebody is attached to it.

A block is memory with a name that every process of the machine can attach to. A
:class:`Segment` is one attachment. The processes can be Python ones, through
this module, and Go ones, through github.com/shmkit/shm: they share the format
of the block and the kernel's locks, so a block ends with the last attachment of
either kind, however that ends::

    from shmkit import Segment

    with Segment.open("frames") as seg:     # or Segment.create("frames", 64 << 20)
        pixels = numpy.frombuffer(seg.buf, numpy.uint8)     # no copy

It needs Linux and nothing but the standard library. It does not use
``multiprocessing``, whose resource tracker unlinks blocks that others use.

Names are 1 to 255 bytes of A-Z, a-z, 0-9, '.', '_' and '-' and do not begin
with a dot; one leading slash is dropped.
"""

import sys

if not sys.platform.startswith("linux"):
    raise ImportError("shmkit needs Linux: elsewhere blocks are not held by file locks")

from ._header import HeaderError, NotSegmentError, VersionError
from ._segment import Segment, reap, unlink

__all__ = ["HeaderError", "NotSegmentError", "Segment", "VersionError", "reap", "unlink"]
__version__ = "0.1.0"
