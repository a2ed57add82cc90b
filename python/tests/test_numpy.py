"""Arrays of NumPy, and other views, over the memory of a Segment that ends before them."""

import ctypes
import gc
import itertools
import os
import traceback
import unittest
import warnings

import shmkit
from shmkit import Segment

from test_segment import Case

try:
    import numpy
except ImportError:
    numpy = None

N = 100

# What programs make of a Segment. Each refers to numbers 0 to N-1 of the block,
# for which it can be summed up and the first be changed.
VIEWS = {
    "memoryview": lambda seg: seg.buf.cast("d"),
    "slices": lambda seg: seg.buf[4:][4:-8][8:][-8 * (N - 2) :].cast("d"),
    "ctypes": lambda seg: (ctypes.c_double * N).from_buffer(seg.buf),
    "ctypes of a mapping": lambda seg: (ctypes.c_double * N).from_buffer(seg.buf.obj),
}
if numpy is not None:
    f = numpy.float64
    VIEWS.update(
        {
            "ndarray": lambda seg: numpy.ndarray((N,), f, seg.buf),
            "ndarray by name": lambda seg: numpy.ndarray((N,), f, buffer=seg.buf),
            "ndarray at an offset": lambda seg: numpy.ndarray((N - 2,), f, seg.buf, 8),
            "ndarray of a slice": lambda seg: numpy.ndarray((N - 1,), f, seg.buf[8:]),
            "ndarray of a cast": lambda seg: numpy.ndarray((N,), f, seg.buf.cast("d")),
            "ndarray of an ndarray": lambda seg: numpy.ndarray((N,), f, numpy.ndarray((8 * N,), numpy.uint8, seg.buf)),
            "ndarray of a mapping": lambda seg: numpy.ndarray((N,), f, seg.buf.obj),
            "frombuffer": lambda seg: numpy.frombuffer(seg.buf, f),
            "frombuffer of an ndarray": lambda seg: numpy.frombuffer(numpy.ndarray((N,), f, seg.buf), f),
            "asarray": lambda seg: numpy.asarray(seg.buf).view(f),
            "asarray of a memoryview": lambda seg: numpy.asarray(memoryview(seg.buf).cast("d")),
            "memoryview of an ndarray": lambda seg: memoryview(numpy.ndarray((N,), f, seg.buf)),
            "ndarray of a memoryview of an ndarray": lambda seg: numpy.ndarray(
                (N,), f, memoryview(numpy.ndarray((N,), f, seg.buf))
            ),
            "recarray": lambda seg: numpy.recarray((N,), [("x", f)], seg.buf).x,
            "views": lambda seg: numpy.ndarray((10, N // 10), f, seg.buf).T[::-1].view(f)[1:],
            "strides": lambda seg: numpy.lib.stride_tricks.as_strided(numpy.ndarray((N,), f, seg.buf), (N // 2,), (16,)),
            "ufunc": lambda seg: numpy.add(numpy.ndarray((N,), f, seg.buf), 0, out=numpy.ndarray((N,), f, seg.buf)),
        }
    )


def total(view):
    """The sum of the numbers, each of which is accessed."""
    return float(sum(view) if numpy is None or not isinstance(view, numpy.ndarray) else view.sum())


class Outliving(Case):
    """A view is as good after close, del, unlink, fork and gc as before, in every order of them."""

    STEPS = "fork", "close", "del", "unlink", "gc"

    def test_every_order(self):
        for what, make in VIEWS.items():
            forks = 0 if what in ("memoryview", "ndarray") else 1  # which take most of the time
            with self.subTest(what):
                with self.create(8 * N) as witness:
                    numbers = witness.buf.cast("d")
                    for i in range(N):
                        numbers[i] = i
                    pid = os.fork()
                    if pid == 0:
                        code = 1
                        try:
                            gc.freeze()  # what there is now makes collections slow
                            warnings.simplefilter("ignore", ResourceWarning)
                            for order in itertools.permutations(self.STEPS[forks:]):
                                self.go_through(order, make, witness)
                            code = 0
                        except BaseException:
                            traceback.print_exc()
                        finally:
                            os._exit(code)
                    self.assertEqual(os.waitpid(pid, 0)[1], 0)
                    del numbers

    def go_through(self, order, make, witness):
        name = self.name + "x"
        seg = Segment.create(name, 8 * N)
        peer = Segment.open(name)
        seg.buf[:] = witness.buf
        view = make(seg)
        whole, closed = total(view), False
        for step in order:
            if step == "close" and seg is not None:
                seg.close()
                closed = True
            elif step == "del":
                seg = None
            elif step == "unlink":
                shmkit.unlink(name)
            elif step == "fork":
                pid = os.fork()
                if pid == 0:
                    ok = total(view) == whole
                    if seg is not None:
                        seg.close()
                        seg = None
                    gc.collect()
                    os._exit(not (ok and total(view) == whole))
                assert os.waitpid(pid, 0)[1] == 0, (order, "fork")
            elif step == "gc":
                gc.collect()
            # Nothing else comes to the addresses.
            others = [Segment.create(None, 8 * N) for _ in range(2)]
            assert total(view) == whole, (order, step)
            assert peer.refs == (1 if closed else 2), (order, step, peer.refs)
            for other in others:
                assert not any(other.buf[:])
                other.close()
        seg = view = None
        assert peer.refs == 1, (order, peer.refs)
        peer.close()
        assert not os.path.exists("/dev/shm/" + name)

    def test_no_lock_after_close(self):
        """A view keeps the memory of a closed Segment, and no lock of its block."""
        for what, make in VIEWS.items():
            with self.subTest(what), self.create(8 * N) as first:
                view = make(first)
                first.close()
                self.assertFalse(self.exists())
                with self.create(8 * N), self.open() as second:
                    self.assertNotEqual(second.id, first.id)
                    second.buf[:] = bytes([1]) * (8 * N)
                self.assertEqual(total(view), 0)


if __name__ == "__main__":
    unittest.main()
