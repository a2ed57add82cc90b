"""Exceptions, and calls, at every instruction of what shmkit does.

A signal can come between any two instructions, and its handler can raise
KeyboardInterrupt there, or close a Segment, as another thread can.
"""

import contextlib
import functools
import os
import random
import signal
import sys
import threading
import time
import unittest
import warnings

import shmkit
from shmkit import Segment, _header, _linux, _segment

from test_segment import DIR, Case


def interrupt():
    raise KeyboardInterrupt


class Intruder:
    """Has action done at one of the lines, or the instructions, of a call."""

    def __init__(self, event, number, action):
        self.event, self.left, self.action = event, number, action
        self.done = False  # whether the call came to its end first

    def run(self, f):
        """Return f(), or raise."""
        self.thread = threading.get_ident()
        if self.event == "opcode" and sys.version_info >= (3, 12):  # where settrace misses some
            start, end = self.monitor, self.end_monitor
        else:
            start, end = functools.partial(sys.settrace, self.trace), functools.partial(sys.settrace, None)
        try:
            start()
            return f()
        finally:
            end()
            self.done = self.left >= 0

    def monitor(self):
        tool, event = sys.monitoring.DEBUGGER_ID, sys.monitoring.events.INSTRUCTION
        sys.monitoring.use_tool_id(tool, "intruder")
        sys.monitoring.register_callback(tool, event, self.instruction)
        sys.monitoring.set_events(tool, event)

    def end_monitor(self):
        sys.monitoring.set_events(sys.monitoring.DEBUGGER_ID, 0)
        sys.monitoring.free_tool_id(sys.monitoring.DEBUGGER_ID)

    def trace(self, frame, event, arg):
        frame.f_trace_lines = self.event == "line"
        frame.f_trace_opcodes = self.event == "opcode"
        if event == self.event:
            self.instruction(frame.f_code, None)
        return self.trace

    def instruction(self, code, offset):
        if threading.get_ident() != self.thread or code.co_filename == __file__:
            return  # sys.monitoring sees all threads
        if code is _header.crc32c.__code__:
            return  # it only computes, at length
        self.left -= 1
        if self.left == -1:
            self.action()


def descriptors():
    """What is open in this process, by number."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            st = os.stat(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # that of listdir
            continue
        found[number] = st.st_dev, st.st_ino
    return found


class Everywhere(Case):
    def setUp(self):
        super().setUp()
        # What is raised in a finalizer is printed, and that is the end of it.
        self.addCleanup(setattr, sys, "unraisablehook", sys.unraisablehook)
        self.unraisable = []
        sys.unraisablehook = lambda u: self.unraisable.append(u.exc_type)
        catch = warnings.catch_warnings()
        catch.__enter__()
        self.addCleanup(catch.__exit__, None, None, None)
        warnings.simplefilter("ignore", ResourceWarning)

    def at_every(self, prepare, f, check, action=None):
        """Interrupt f(prepare()) everywhere, drop what is left of it, and check.

        With action, call action(prepare()) there instead.
        """
        f(prepare())  # what is done once, such as to compile an expression, is done
        check(descriptors())
        for event, least in ("line", 3), ("opcode", 20):
            number, done = 0, False
            while not done:
                argument = prepare()
                before = descriptors()
                intruder = Intruder(event, number, functools.partial(action, argument) if action else interrupt)
                decoys, failures = [], []

                def call():
                    kept = None
                    try:
                        kept = intruder.run(functools.partial(f, argument))
                    except KeyboardInterrupt:
                        pass
                    except BaseException as e:
                        failures.append(repr(e))
                    # These get the numbers of what has been closed.
                    decoys.extend(os.open("/dev/null", os.O_RDONLY) for _ in range(5))
                    del kept

                # A thread takes with it what an interpreter forgets that is
                # interrupted where no signal can interrupt it: a handled exception.
                thread = threading.Thread(target=call)
                thread.start()
                thread.join()
                done = intruder.done
                intruder = argument = call = thread = None
                try:
                    for fd in decoys:
                        self.assertTrue(os.path.samestat(os.fstat(fd), os.stat("/dev/null")))
                        os.close(fd)
                    check(before)
                    self.assertEqual(failures, [])
                    self.assertIn(self.unraisable, ([], [KeyboardInterrupt]))
                except BaseException as e:
                    raise AssertionError(f"at {event} {number}") from e
                self.unraisable.clear()
                number += 1
            self.assertGreater(number, least)

    def check_descriptors(self, before):
        """Nothing may have been opened, and nothing closed but what is ours."""
        leaked = {n: st for n, st in descriptors().items() if before.get(n) != st}
        self.assertEqual(leaked, {})

    def alone(self, f, prepare=lambda: None, **kwargs):
        """Interrupt f, after which there must be no block."""

        def check(before):
            self.check_descriptors(before)
            self.assertFalse(self.exists())

        self.at_every(prepare, f, check, **kwargs)

    def beside(self, f, prepare=lambda: None, linked=(True,), first=lambda witness: None, **kwargs):
        """Interrupt f, after which a witness must be the only one attached.

        Before that call first(witness).
        """
        witness = None

        def start():
            nonlocal witness
            witness = Segment.create(self.name, 100)
            return prepare()

        def check(before):
            first(witness)
            self.check_descriptors(before)
            self.assertEqual(witness.refs, 1)
            self.assertIn(witness.linked, linked)
            if witness.linked:
                self.assertEqual(witness._attachment.words.load(_header.COUNT, 4), 1)
                with self.open() as b:
                    self.assertEqual((b.id, b.refs), (witness.id, 2))
            witness.close()
            self.assertFalse(self.exists())

        self.at_every(start, f, check, **kwargs)

    def leave_stale(self):
        """Leave behind what a killed process does."""
        layout = _header.new_layout(100, 0)
        o = _linux.create_object(self.name, layout.object_size, 0o600, False)
        os.pwrite(o.fd, _header.marshal(layout), 0)
        o.publish()
        o.close()

    def stale(self, f):
        """Interrupt f at a stale block, which must stay stale or go."""

        def check(before):
            self.check_descriptors(before)
            with self.assertRaises(FileNotFoundError):
                Segment.open(self.name)
            self.assertFalse(self.exists())

        self.at_every(self.leave_stale, f, check)

    def test_create(self):
        self.alone(lambda _: Segment.create(self.name, 100))

    def test_open(self):
        self.beside(lambda _: Segment.open(self.name))

    def test_open_readonly(self):
        self.beside(lambda _: Segment.open(self.name, readonly=True))

    def test_create_where_it_exists(self):
        def f(_):
            with self.assertRaises(FileExistsError):
                Segment.create(self.name, 100)

        self.beside(f)

    def test_create_at_stale(self):
        self.stale(lambda _: Segment.create(self.name, 100))

    def test_open_at_stale(self):
        def f(_):
            with self.assertRaises(FileNotFoundError):
                Segment.open(self.name)

        self.stale(f)

    def test_reap(self):
        def f(_):
            with contextlib.suppress(FileNotFoundError):  # another program reaped it
                _segment._reap(_linux.Attempt(0), self.name)

        self.stale(f)

    def test_open_persistent(self):
        """The first to come finds those that were killed in the count."""

        def prepare():
            Segment.create(self.name, 100, persistent=True).close()
            self.damage(_header.COUNT, b"\7")

        def check(before):
            self.check_descriptors(before)
            with Segment.open(self.name) as a:
                self.assertEqual(a.refs, 1)
                self.assertEqual(a._attachment.words.load(_header.COUNT, 4), 1)
                a.unlink()

        self.at_every(prepare, lambda _: Segment.open(self.name), check)

    def test_close(self):
        self.alone(Segment.close, lambda: Segment.create(self.name, 100))
        self.beside(Segment.close, lambda: Segment.open(self.name))

    def test_close_again(self):
        """An interrupted close can be repeated, and leaves nothing to those that keep the Segment."""
        kept = []

        def prepare():
            kept[:] = [Segment.open(self.name)]

        def f(_):
            try:
                kept[0].close()
            except KeyboardInterrupt:
                kept[0].close()
                raise

        self.beside(f, prepare)

    def test_close_within_close(self):
        self.alone(Segment.close, lambda: Segment.create(self.name, 100), action=Segment.close)
        self.beside(Segment.close, lambda: Segment.open(self.name), action=Segment.close)

    def test_close_within_other_uses(self):
        """They return what is true, or raise ValueError."""
        values = {"size": (100,), "refs": (1, 2), "linked": (True,), "buf": (memoryview(bytes(100)),)}

        def close(a):
            a.close()
            for _ in range(5):  # the numbers that were its own
                self.addCleanup(os.close, os.open("/dev/null", os.O_RDONLY))

        for use, right in values.items():
            number, done = 0, False
            while not done:
                witness, a = self.create(), self.open()
                intruder = Intruder("opcode", number, functools.partial(close, a))
                with self.subTest(use, number=number):
                    try:
                        value = intruder.run(lambda: getattr(a, use))
                    except ValueError:
                        self.assertTrue(a.closed)
                    else:
                        self.assertIn(value, right)
                        value = None
                done = intruder.done
                number += 1
                a.close()
                witness.close()
                self.doCleanups()
            self.assertGreater(number, 20)

    def test_with(self):
        def f(_):
            with Segment.open(self.name) as a:
                a.buf[0] = 1

        self.beside(f)

    def test_drop(self):
        self.beside(lambda box: box.clear(), lambda: [Segment.open(self.name)])

    def test_unlink(self):
        self.beside(lambda _: shmkit.unlink(self.name), linked=(True, False))
        self.beside(lambda box: box[0].unlink(), lambda: [Segment.open(self.name)], linked=(True, False))


    def test_locks(self):
        """What is interrupted has no lock, though its Segment is open, and can be done again."""
        self.addCleanup(setattr, _linux, "PATIENCE", _linux.PATIENCE)
        _linux.PATIENCE = 0.005  # for which a thread can keep others out of a Gate that it was to leave
        uses = {
            "append": lambda seg: seg.append(b"x"),
            "lock": self.hold,
            "lock that another one has": lambda seg: seg.lock().acquire(0),
        }
        for name, use in uses.items():
            kept, held = [], []

            def prepare():
                kept[:] = [Segment.open(self.name)]
                kept[0].truncate(0)
                if "another" in name:
                    held[:] = [Segment.open(self.name)]
                    held.append(held[0].lock())
                    held[1].acquire()

            def first(witness):
                if held:
                    self.assertFalse(witness.lock().acquire(0))
                    held.pop().release()
                    held.pop().close()
                for seg in witness, kept[0]:
                    lock = seg.lock()
                    self.assertTrue(lock.acquire(0))
                    lock.release()
                    self.assertIs(seg._attachment.size_lock.take(self), False)
                    seg._attachment.size_lock.release(self, False)
                self.assertIn((witness.size, bytes(witness.buf)), [(0, b""), (1, b"x")])
                use(kept[0])
                kept.pop().close()

            with self.subTest(name):
                self.beside(lambda _: use(kept[0]), prepare, first=first)

    def hold(self, seg):
        with seg.lock():
            pass

    def test_follow(self):
        """A read that is interrupted has lost nothing, or its bytes."""
        kept = []

        def prepare():
            kept[:] = [Segment.open(self.name)]
            kept[0].truncate(0)
            kept[0].append(b"x")

        def read(_):
            with Segment.open(self.name) as seg, seg.follow() as f:
                self.assertEqual(f.read(5), b"x")
                self.assertEqual(seg.wait_for(lambda: False, 0), False)

        self.beside(read, prepare, first=lambda witness: kept.pop().close())


class Signals(Case):
    def test_sigint(self):
        """SIGINT at random moments of create, open and close."""
        self.addCleanup(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler))
        before = descriptors()
        interrupted = 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            for _ in range(200):
                with self.create() as witness:
                    delay = random.uniform(0, 2e-3)
                    begun, begin = os.pipe()
                    pid = os.fork()
                    if pid == 0:
                        os.read(begun, 1)  # os.fork has functions to call, too, and nobody to raise to
                        time.sleep(delay)
                        os.kill(os.getppid(), signal.SIGINT)
                        os._exit(0)
                    try:
                        os.write(begin, b"x")
                        for _ in range(20):
                            Segment.open(self.name).close()
                            Segment.create(self.name + "x", 100).close()
                        os.waitpid(pid, 0)
                    except KeyboardInterrupt:
                        interrupted += 1
                    try:
                        os.waitpid(pid, 0)
                    except ChildProcessError:
                        pass
                    os.close(begin)
                    os.close(begun)
                    self.assertEqual(witness.refs, 1)
                    self.assertFalse(os.path.exists(DIR + self.name + "x"))
                self.assertFalse(self.exists())
                self.assertEqual(descriptors(), before)
        self.assertEqual(interrupted, 200)


if __name__ == "__main__":
    unittest.main()
