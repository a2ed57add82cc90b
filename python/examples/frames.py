"""Create a block of images for Go, wait until Go has changed it, and add it up.

    python3 frames.py

prints the name of the block, waits for a line, and prints the sum.
"""

import numpy

from shmkit import Segment

shape = (4, 120, 160)

with Segment.create(None, 4 * 120 * 160) as seg:
    frames = numpy.ndarray(shape, numpy.uint8, seg.buf)
    frames[:] = numpy.arange(4).reshape(4, 1, 1)
    print(seg.name, flush=True)
    input()
    print(frames.sum())
