"""Double, in place, the float64 numbers that another process has stored in a block.

    python3 double.py NAME

The array is the block's memory itself, so all attached processes see it change.
"""

import sys

import numpy

from shmkit import Segment

with Segment.open(sys.argv[1]) as seg:
    numbers = numpy.frombuffer(seg.buf, numpy.float64)  # no copy
    numbers *= 2
    print(numbers.sum())
