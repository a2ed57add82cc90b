"""Named shared memory that lives exactly as long as a process is attached to it.

A block is memory with a name, which the processes of one machine can attach to. A
:class:`Segment` is one attachment. Python processes attach by this module and Go
processes by github.com/shmkit/shm. They use the same format and the same locks of the
kernel, so a block ends with its last attachment in either language. If the last process
was killed, the block is stale: nothing can attach to it, and the next create or open of
its name, or :func:`reap`, removes it::

    from shmkit import Segment

    with Segment.open("frames") as seg:     # or Segment.create("frames", 64 << 20)
        pixels = numpy.frombuffer(seg.buf, numpy.uint8)     # no copy

Processes that work together on a block append to it, follow it as a stream, wait for
changes and lock it: :meth:`Segment.append`, :meth:`Segment.follow`,
:meth:`Segment.wait_for`, :meth:`Segment.lock`.

It needs Linux and only the standard library. It does not use ``multiprocessing``, whose
resource tracker unlinks blocks that other processes use.

A name has 1 to 255 bytes of A-Z, a-z, 0-9, '.', '_' and '-' and does not begin with a
dot. One leading slash is removed.
"""

import sys

if not sys.platform.startswith("linux"):
    raise ImportError("shmkit needs Linux: elsewhere blocks are not held by file locks")

from ._follow import AbandonedError, Follower, TruncatedError
from ._header import HeaderError, NotSegmentError, VersionError
from ._linux import Holder
from ._segment import BlockLock, Segment, reap, unlink

__all__ = [
    "AbandonedError",
    "BlockLock",
    "Follower",
    "HeaderError",
    "Holder",
    "NotSegmentError",
    "Segment",
    "TruncatedError",
    "VersionError",
    "reap",
    "unlink",
]
__version__ = "0.1.0"
