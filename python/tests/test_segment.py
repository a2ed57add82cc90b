"""Tests of shmkit among Python processes; those with Go are in internal/interop."""

import ast
import errno
import fcntl
import gc
import io
import itertools
import mmap
import os
import pathlib
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
import unittest
import unittest.mock
import warnings

import shmkit
from shmkit import Segment, _header, _linux

HERE = pathlib.Path(__file__).parent
DIR = "/dev/shm/"
ENV = dict(os.environ, PYTHONPATH=str(HERE.parent))


class Peer:
    """Another process, which executes the Python that it is sent, line by line."""

    PROGRAM = """
import os, signal, sys
from shmkit import *
for line in sys.stdin:
    try:
        exec(line, globals())
        answer = "done"
    except Exception as e:
        answer = type(e).__name__
    print(answer, flush=True)
os._exit(0)
"""

    def __init__(self, **kwargs):
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.PROGRAM],
            env=ENV,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            universal_newlines=True,
            **kwargs,
        )

    def say(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self):
        return self.process.stdout.readline().strip()

    def do(self, line):
        self.say(line)
        return self.hear()

    def end(self):
        self.process.kill()  # does nothing to one that has been waited for
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class Case(unittest.TestCase):
    counter = itertools.count()

    def setUp(self):
        self.name = f"pytest-{os.getpid()}-{next(self.counter)}"
        self.addCleanup(self.remove)

    def remove(self):
        try:
            os.unlink(DIR + self.name)
        except FileNotFoundError:
            pass

    def peer(self, **kwargs):
        p = Peer(**kwargs)
        self.addCleanup(p.end)
        return p

    def exists(self):
        return os.path.exists(DIR + self.name)

    def create(self, size=100, **kwargs):
        seg = Segment.create(self.name, size, **kwargs)
        self.addCleanup(seg.close)
        return seg

    def open(self, **kwargs):
        seg = Segment.open(self.name, **kwargs)
        self.addCleanup(seg.close)
        return seg

    def damage(self, offset, content):
        with open(DIR + self.name, "r+b") as f:
            f.seek(offset)
            f.write(content)


class Life(Case):
    def test_last_close_unlinks(self):
        a = self.create()
        b, c = self.open(), self.open(readonly=True)
        self.assertEqual([a.refs, a.size, a.cap, len(a.buf)], [3, 100, 100, 100])
        self.assertEqual({a.id}, {b.id, c.id})
        for seg in (b, a):
            seg.close()
            seg.close()  # does nothing
            self.assertTrue(self.exists() and c.linked)
        self.assertEqual(c.refs, 1)
        c.close()
        self.assertFalse(self.exists())

    def test_bytes_are_shared(self):
        a, b = self.create(5000), self.open()
        a.buf[4990:] = bytes(range(10))
        self.assertEqual(bytes(b.buf), bytes(4990) + bytes(range(10)))
        r = self.open(readonly=True)
        self.assertTrue(r.buf.readonly)
        with self.assertRaises(TypeError):
            r.buf[0] = 1

    def test_sizes(self):
        for size in 1, 4095, 4096, 4097, (2 << 20) + 1:
            with self.subTest(size), self.create(size) as a, self.open() as b:
                self.assertEqual([a.cap, b.cap, b.size, len(b.buf)], [size] * 4)
                self.assertEqual(os.stat(DIR + self.name).st_size, mmap.PAGESIZE + size)
                self.assertEqual(os.stat(DIR + self.name).st_mode & 0o777, 0o600)

    def test_truncate(self):
        a, b = self.create(3 << 20), self.open()
        a.buf[:] = b"x" * a.size
        a.truncate(10)
        self.assertEqual([b.size, bytes(b.buf)], [10, b"x" * 10])
        b.truncate(b.cap)
        self.assertEqual(bytes(a.buf), b"x" * 10 + bytes(a.cap - 10))
        for size in -1, a.cap + 1:
            with self.assertRaises(ValueError):
                a.truncate(size)
        with self.assertRaises(io.UnsupportedOperation):
            self.open(readonly=True).truncate(1)

    def test_sparse_takes_no_memory(self):
        self.create(64 << 20, sparse=True)
        self.assertLess(os.stat(DIR + self.name).st_blocks * 512, 1 << 20)

    def test_truncate_gives_back(self):
        """Truncate of a sparse block gives back pages, also of what was only read, and takes none."""

        def taken():
            return os.stat(DIR + self.name).st_blocks * 512 // mmap.PAGESIZE

        a = self.create(32 << 20, sparse=True)
        a.buf[0] = a.buf[5000] = a.buf[9000] = 1
        self.assertEqual(bytes(a.buf[1 << 20 : 9 << 20]), bytes(8 << 20))
        a.truncate(5001)
        self.assertLessEqual(taken(), 1 + 2)
        a.truncate(a.cap)
        self.assertEqual((a.buf[0], a.buf[5000], a.buf[9000]), (1, 1, 0))
        a.truncate(5000)
        a.truncate(a.cap)
        self.assertEqual((a.buf[0], a.buf[5000]), (1, 0))
        a.truncate(0)
        a.truncate(a.cap)
        before = taken()
        a.truncate(100)  # into a hole
        self.assertLessEqual(taken(), before)
        a.truncate(a.cap)
        self.assertFalse(any(a.buf[: 1 << 20]))

    def test_mode_beats_umask(self):
        self.addCleanup(os.umask, os.umask(0o077))
        self.create(mode=0o666)
        self.assertEqual(os.stat(DIR + self.name).st_mode & 0o777, 0o666)

    def test_made_up_names_differ(self):
        with Segment.create(None, 1) as a, Segment.create(None, 1) as b:
            self.assertNotEqual(a.name, b.name)

    def test_leading_slash(self):
        with Segment.create("/" + self.name, 1) as a, Segment.open("/" + self.name):
            self.assertEqual(a.name, self.name)

    def test_unlink(self):
        a, b = self.create(), self.open()
        a.unlink()
        self.assertFalse(self.exists() or a.linked or b.linked)
        with self.assertRaises(FileNotFoundError):
            b.unlink()
        new = self.create()
        with self.assertRaises(FileNotFoundError):
            b.unlink()  # not the new one
        a.close()
        b.close()
        self.assertTrue(new.linked)
        shmkit.unlink(self.name)
        self.assertFalse(new.linked)

    def test_block_replaced_while_opening(self):
        """The name leads to another block once the one it led to is open."""
        old = self.create()
        open_object = _linux.open_object
        self.addCleanup(setattr, _linux, "open_object", open_object)

        def replace(name, write):
            o = open_object(name, write)
            _linux.open_object = open_object
            os.unlink(DIR + name)
            self.new = self.create()
            return o

        _linux.open_object = replace
        self.assertEqual(self.open().id, self.new.id)
        self.assertNotEqual(self.new.id, old.id)

    def test_persistent(self):
        a = self.create(persistent=True)
        a.buf[:4] = b"stay"
        a.close()
        b = self.open()
        self.assertEqual([bytes(b.buf[:4]), b.refs], [b"stay", 1])
        p = self.peer()
        self.assertEqual(p.do(f"s = Segment.open({self.name!r})"), "done")
        b.close()
        p.end()
        c = self.open()
        self.assertEqual(c.refs, 1)  # the killed one is not counted any more
        c.unlink()

    def test_errors(self):
        with self.assertRaises(FileNotFoundError) as e:
            Segment.open(self.name)
        self.assertEqual(e.exception.filename, self.name)
        with self.assertRaises(FileNotFoundError):
            shmkit.unlink(self.name)
        a = self.create()
        with self.assertRaises(FileExistsError):
            Segment.create(self.name, 1)
        for name in "", ".", "..", ".a", "a/b", "//a", "a\0", "a b", "ä", "a\n", "x" * 256:
            for f in Segment.open, shmkit.unlink, lambda n: Segment.create(n, 1):
                with self.subTest(name), self.assertRaises(ValueError):
                    f(name)
        for name in b"a", pathlib.Path("a"), 1:
            for f in Segment.open, shmkit.unlink, lambda n: Segment.create(n, 1):
                with self.subTest(name), self.assertRaisesRegex(TypeError, "name must be a str, not " + type(name).__name__):
                    f(name)
        for f in Segment.open, shmkit.unlink:
            with self.assertRaisesRegex(TypeError, "name must be a str, not NoneType"):
                f(None)
        for size in 0, -1:
            with self.assertRaises(ValueError):
                Segment.create(None, size)
        for mode in 0o400, 0o4600:
            with self.assertRaises(ValueError):
                Segment.create(None, 1, mode=mode)
        for size in 1 << 47, 1 << 48, 1 << 64:
            with self.assertRaises(OSError) as e:
                Segment.create(self.name + "x", size)
            self.assertEqual(e.exception.errno, errno.ENOSPC)
        a.close()
        for use in "buf", "size", "refs", "holders", "linked", "unlink", "__enter__":
            with self.subTest(use), self.assertRaises(ValueError):
                value = getattr(a, use)
                value()
        self.assertTrue(a.closed and a.name and a.cap)


class Headers(Case):
    def test_crc(self):
        self.assertEqual(_header.crc32c(b"123456789"), 0xE3069283)  # the check value of CRC-32C

    def test_layout(self):
        self.create(1000)
        with open(DIR + self.name, "rb") as f:
            b = f.read(_header.USED)
        values = struct.unpack_from("=8sIIQII", b)
        self.assertEqual(values, (b"shmkit\x1a\n", 2, mmap.PAGESIZE, 1000, 0, os.getpid()))
        self.assertEqual(struct.unpack_from("=I", b, 60)[0], _header.crc32c(b[:60]))

    def test_every_damaged_byte_is_noticed(self):
        # A persistent block, which nobody reaps between two tries.
        self.create(persistent=True).close()
        with open(DIR + self.name, "rb") as f:
            sound = f.read(64)
        for i in range(64):
            self.damage(i, bytes([sound[i] ^ 0x40]))
            with self.subTest(i), self.assertRaises(shmkit.HeaderError) as e:
                Segment.open(self.name)
            self.assertIs(type(e.exception), shmkit.NotSegmentError if i < 8 else shmkit.HeaderError)
            self.damage(i, sound[i : i + 1])
        self.open().unlink()

    def forge(self, **values):
        fields = dict(version=2, header_size=4096, capacity=100, flags=0)
        fields.update(values)
        b = _header._FIXED.pack(b"shmkit\x1a\n", *fields.values(), 1, 1, bytes(16), 0, 0)[:60]
        return b + struct.pack("=I", _header.crc32c(b)) + bytes(_header.USED - 64)

    def test_lies(self):
        for kind, values in [
            (shmkit.VersionError, dict(version=1)),
            (shmkit.VersionError, dict(version=3)),
            (shmkit.HeaderError, dict(header_size=0)),
            (shmkit.HeaderError, dict(header_size=2048)),
            (shmkit.HeaderError, dict(header_size=4097)),
            (shmkit.HeaderError, dict(header_size=1 << 17)),
            (shmkit.HeaderError, dict(capacity=0)),
            (shmkit.HeaderError, dict(capacity=1 << 63)),
            (shmkit.HeaderError, dict(capacity=101)),
        ]:
            with self.subTest(values), self.assertRaises(kind):
                _header.parse(self.forge(**values), 4096 + 100)
        self.assertEqual(_header.parse(self.forge(), 4096 + 100).capacity, 100)
        for n in range(_header.USED):
            with self.assertRaises(shmkit.NotSegmentError if n < 64 else shmkit.HeaderError) as e:
                _header.parse(self.forge()[:n], n)
            self.assertIs(type(e.exception), shmkit.NotSegmentError if n < 64 else _header.ShortError)

    def test_scribbled_words(self):
        a = self.create()
        self.damage(_header.COUNT, b"\xff" * 4)
        self.damage(_header.SIZE, b"\xff" * 8)
        self.assertEqual([a.size, len(a.buf), a.refs], [100, 100, 1])
        self.damage(_header.STATE, struct.pack("=I", 7))
        self.addCleanup(setattr, _linux, "PATIENCE", _linux.PATIENCE)
        _linux.PATIENCE = 0.05
        with self.assertRaises(shmkit.HeaderError):
            self.open()
        a.close()
        self.assertFalse(self.exists())

    def test_other_things(self):
        for content in b"", b"raw bytes of another program", bytes(8192):
            with open(DIR + self.name, "wb") as f:
                f.write(content)
            with self.assertRaises(shmkit.NotSegmentError):
                Segment.open(self.name)
            with self.assertRaises(FileExistsError):
                Segment.create(self.name, 1)
            self.assertNotIn(self.name, shmkit.reap())
            shmkit.unlink(self.name)
        makers = os.mkdir, os.mkfifo, lambda path: os.symlink("/etc/passwd", path)
        for make, remove in zip(makers, (os.rmdir, os.unlink, os.unlink)):
            make(DIR + self.name)
            for f in Segment.open, shmkit.unlink:
                with self.assertRaises(ValueError):
                    f(self.name)
            with self.assertRaises(FileExistsError):
                Segment.create(self.name, 1)
            remove(DIR + self.name)

    def test_truncated_under_our_hands(self):
        a, b = self.create(), self.open()
        for size in mmap.PAGESIZE, 0:
            os.truncate(DIR + self.name, size)
            self.assertEqual(a.refs, 2)
            for use in "size", "buf":
                with self.subTest(use), self.assertRaises(OSError):
                    getattr(a, use)
            with self.assertRaises(shmkit.HeaderError):
                Segment.open(self.name)
        a.close()
        b.close()
        self.assertFalse(self.exists())


class Views(Case):
    def test_outlive_close(self):
        a = self.create()
        a.buf[:5] = b"valid"
        view = a.buf[:5]
        a.close()
        self.assertFalse(self.exists())
        self.assertEqual(bytes(view), b"valid")

    def test_hold_no_lock_after_close(self):
        a, b = self.create(), self.open()
        view = a.buf
        a.close()
        b.close()
        self.assertFalse(self.exists())
        self.assertEqual(len(view), 100)

    def test_keep_a_dropped_segment_attached(self):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            view = Segment.create(self.name, 100).buf
            gc.collect()
            self.assertTrue(self.exists())
            with self.open() as b:
                self.assertEqual(b.refs, 2)
            view.release()
            del view
            gc.collect()
        self.assertFalse(self.exists())
        self.assertEqual([w.category for w in caught], [ResourceWarning])

    def test_no_descriptor_is_left(self):
        before = os.listdir("/proc/self/fd")
        for _ in range(3):
            with self.create(), self.open(), self.open(readonly=True):
                pass
            for f in lambda: self.open(), lambda: Segment.create(None, 1 << 55), lambda: Segment.create("x" * 300, 1):
                with self.assertRaises((OSError, ValueError)):
                    f()
        with self.create():
            with self.assertRaises(FileExistsError):
                self.create()
        self.assertEqual(os.listdir("/proc/self/fd"), before)


class Processes(Case):
    def test_killed(self):
        p = self.peer()
        self.assertEqual(p.do(f"s = Segment.create({self.name!r}, 10); s.buf[:4] = b'left'"), "done")
        a = self.open()
        p.end()
        self.assertEqual([bytes(a.buf[:4]), a.linked, a.refs], [b"left", True, 1])
        self.open().close()
        self.assertTrue(self.exists())
        a.close()
        self.assertFalse(self.exists())

    def test_all_killed(self):
        for find in "open", "create", "reap":
            p = self.peer()
            self.assertEqual(p.do(f"s = Segment.create({self.name!r}, 10)"), "done")
            p.end()
            # Other programs may find it stale before us, at any time.
            if find == "open":
                with self.assertRaises(FileNotFoundError):
                    self.open()
            elif find == "create":
                with self.create(20) as a:
                    self.assertEqual(a.cap, 20)
            else:
                shmkit.reap()
                end = time.monotonic() + 60
                while self.exists() and time.monotonic() < end:
                    shmkit.reap()  # which passes over what another program is just reaping
            self.assertFalse(self.exists())

    def test_reaped_by_another(self):
        p = self.peer()
        self.assertEqual(p.do(f"s = Segment.create({self.name!r}, 10)"), "done")
        p.end()
        unlink_if_linked = _linux.unlink_if_linked

        def late(o):
            if self.exists():
                os.unlink(DIR + self.name)  # as another process that reaps
            unlink_if_linked(o)

        with unittest.mock.patch.object(_linux, "unlink_if_linked", late), self.create(20) as a:
            self.assertEqual(a.cap, 20)

    def test_exit_without_close(self):
        end = f"from shmkit import *; s = Segment.create({self.name!r}, 10); v = s.buf; "
        for how in "", "exit(3)", "1/0", "del s", "import threading; threading.Thread(target=lambda: s).start()":
            subprocess.run(
                [sys.executable, "-c", end + how],
                env=ENV,
                stderr=subprocess.DEVNULL,
                check=False,
            )
            with self.subTest(how):
                self.assertFalse(self.exists())

    def stop_alone(self):
        """An Object that is alone for ever, as of a process that was stopped then."""
        o = _linux.open_object(self.name, True)
        self.addCleanup(o.close)
        self.assertTrue(o.try_alone())
        return o

    def impatient(self, patience):
        self.addCleanup(setattr, _linux, "PATIENCE", _linux.PATIENCE)
        _linux.PATIENCE = patience

    def test_stopped_alone(self):
        """A peer that is alone for ever: errors after patience, no hang."""
        a = self.create(persistent=True)
        a.close()
        o = self.stop_alone()
        self.impatient(0.05)
        for f in self.open, lambda: self.open(readonly=True), lambda: shmkit.unlink(self.name):
            with self.assertRaises(TimeoutError):
                f()
        with self.assertRaises(FileExistsError):
            self.create()
        o.leave()
        self.open().unlink()

    def test_stopped_in_unlink(self):
        """A peer that keeps the lock of unlink keeps no other from attaching, and the last from unlinking."""
        a = self.create()
        o = _linux.open_object(self.name, True)
        self.addCleanup(o.close)
        self.assertTrue(o.try_lock())
        self.impatient(0.05)
        b = self.open()
        for f in a.unlink, lambda: shmkit.unlink(self.name):
            with self.assertRaises(TimeoutError):
                f()
        a.close()
        b.close()
        self.assertTrue(self.exists())  # stale
        with self.assertRaises(TimeoutError):
            self.open()
        o.leave()
        with self.assertRaises(FileNotFoundError):
            self.open()
        self.assertFalse(self.exists())

    def test_stopped_while_waiting(self):
        """A process that wakes after it was stopped for long waits on: it has not waited so long."""
        self.create(persistent=True).close()
        p = self.peer()
        o = self.stop_alone()
        self.assertEqual(p.do("from shmkit import _linux; _linux.PATIENCE, sleep = 0.2, _linux.time.sleep"), "done")
        # It stops where it would make its first pause.
        stop = "setattr(_linux.time, 'sleep', sleep) or os.kill(os.getpid(), signal.SIGSTOP)"
        self.assertEqual(p.do(f"_linux.time.sleep = lambda _: {stop}"), "done")
        p.say(f"s = Segment.open({self.name!r})")
        self.assertTrue(os.WIFSTOPPED(os.waitpid(p.process.pid, os.WUNTRACED)[1]))
        time.sleep(0.4)  # twice its patience
        os.kill(p.process.pid, signal.SIGCONT)
        threading.Timer(0.02, o.leave).start()
        self.assertEqual(p.hear(), "done")
        a = self.open()
        self.assertEqual(a.refs, 2)
        a.unlink()

    def test_fork(self):
        """A forked child neither ends its parent's attachment nor adds one."""
        a = self.create()
        a.buf[:6] = b"parent"
        for leave in lambda: a.close(), lambda: sys.exit(0), lambda: None:
            pid = os.fork()
            if pid == 0:
                try:
                    a.buf[:6] = b"child "
                    leave()
                    if not a.closed:
                        a.close()
                finally:
                    os._exit(0)
            os.waitpid(pid, 0)
            self.assertEqual([bytes(a.buf[:6]), a.refs, a.linked], [b"child ", 1, True])
            with self.open() as b:  # would find a block without locks stale
                self.assertEqual(b.id, a.id)
        a.close()
        self.assertFalse(self.exists())

    def killed_parent(self):
        """A killed process whose forked child has its attachment, and what ends the child."""
        r, w = os.pipe()
        p = self.peer(pass_fds=[r])
        os.close(r)
        self.assertEqual(p.do(f"s = Segment.create({self.name!r}, 10)"), "done")
        self.assertEqual(p.do(f"pid = os.fork() or (os.close(0), os.read({r}, 1), os._exit(0))"), "done")
        p.process.kill()
        p.process.wait()

        def end():
            os.close(w)
            self.assertEqual(p.process.stdout.read(), "")  # the child has ended as well

        return p, end

    def test_forked_child_keeps_the_block_of_a_killed_parent(self):
        p, end = self.killed_parent()
        self.impatient(0.05)
        with self.assertRaises(FileExistsError):
            Segment.create(self.name, 10)
        a = self.open()
        self.assertEqual(a.refs, 2)
        self.assertIn((p.process.pid, False, True, True), a.holders())
        end()
        self.assertEqual(a.holders(), [(os.getpid(), False, True, False)])
        a.close()
        self.assertFalse(self.exists())

    def test_waits_for_the_locks_of_the_killed(self):
        """The kernel may release the locks of a killed process late: the block is not attached to, nor reaped."""
        for f, wanted in (self.open, FileNotFoundError), (lambda: self.open(readonly=True), FileNotFoundError), (self.create, None):
            p, end = self.killed_parent()
            self.assertNotIn(self.name, shmkit.reap())
            sleep, pauses = time.sleep, []

            def pause(seconds):
                pauses.append(seconds)
                if len(pauses) == 1:
                    end()
                sleep(seconds)

            with unittest.mock.patch.object(_linux.time, "sleep", pause):
                if wanted:
                    self.assertRaises(wanted, f)
                else:
                    a = f()
                    self.assertEqual(a.holders(), [(os.getpid(), False, True, False)])
                    a.close()
            self.assertTrue(pauses)
            self.assertFalse(self.exists())

    def test_holders(self):
        a, b = self.create(), self.open(readonly=True)
        p, killed, reader = self.peer(), self.peer(), self.peer()
        for peer, how in (p, ""), (killed, ""), (reader, ", readonly=True"):
            self.assertEqual(peer.do(f"s = Segment.open({self.name!r}{how})"), "done")
        me, pids = os.getpid(), [q.process.pid for q in (p, killed, reader)]
        every = [(me, False), (me, True), (pids[0], False), (pids[1], False), (pids[2], True)]
        self.assertEqual(sorted(a.holders()), sorted((*h, True, False) for h in every))
        self.assertEqual(sorted(b.holders()), sorted(a.holders()))
        self.assertIs(type(a.holders()[0]), shmkit.Holder)
        self.assertEqual([a.refs, b.refs], [5, 5])
        self.assertEqual(p.do(f"assert s.refs == 5 and sorted(s.holders()) == {sorted(a.holders())}"), "done")
        killed.end()
        reader.end()
        self.assertEqual([a.refs, b.refs], [3, 3])
        self.assertEqual(p.do("assert s.refs == 3"), "done")
        every = every[:3]
        self.assertEqual(sorted(a.holders()), sorted((*h, True, False) for h in every))

    def test_holders_of_another_namespace(self):
        """A process id that means nothing here says so, and keeps the block in use."""
        self.create()
        o = _linux.open_object(self.name, True)
        self.addCleanup(o.close)
        namespace = _linux._namespace()
        for other in namespace ^ 1, 0:
            with unittest.mock.patch.object(_linux, "_namespace", lambda: other):
                o.must_join(True, lambda tag: False)
        a = self.open()
        for h in a.holders():
            self.assertEqual([h.pid, h.gone], [os.getpid(), False])
        self.assertEqual(sorted(h.here for h in a.holders()), [False, False, True, True])
        with unittest.mock.patch.object(_linux, "_namespace", lambda: 0):  # this process does not know its own
            self.assertEqual(sorted(h.here for h in a.holders()), [False, False, False, True])

    def test_many_holders(self):
        many = [self.create()] + [self.open(readonly=i % 3 == 0) for i in range(200)]
        self.assertEqual(many[0].refs, 201)
        self.assertEqual(sum(h.readonly for h in many[0].holders()), 67)
        for seg in many[:100]:
            seg.close()
        self.assertEqual(many[-1].refs, 101)

    def test_count_is_a_hint(self):
        """However wrong the count of the header is, the last attachment unlinks; who is alone corrects it."""
        for count in 0, 1, 2, 7, (1 << 32) - 1:
            a, b = self.create(), self.open()
            self.damage(_header.COUNT, struct.pack("=I", count))
            a.close()
            self.assertTrue(b.linked)
            self.assertEqual(b.refs, 1)
            b.close()
            self.assertFalse(self.exists())
        self.create(persistent=True).close()
        self.damage(_header.COUNT, struct.pack("=I", 7))
        a = self.open()
        self.assertEqual(a._attachment.words.load(_header.COUNT, 4), 1)
        a.unlink()

    def test_byte_taken(self):
        """Two attachments of one tag: the second takes the next one, without a pause."""
        a = self.create()
        tags = iter([5, 5, 6, 7])
        with unittest.mock.patch.object(_linux, "_new_tag", lambda: next(tags)):
            with unittest.mock.patch.object(_linux.time, "sleep", None):
                self.open(), self.open(), self.open(readonly=True)
        self.assertEqual(a.refs, 4)
        self.assertEqual(list(tags), [])

    def test_close_at_once(self):
        """Of two that leave at once, one finds that it is the last: each has left before it asks."""
        a, b = self.create(), self.open()
        self.damage(_header.COUNT, struct.pack("=I", 7))
        others = _linux.Object.others

        def ask(o):
            answer = others(o)
            b.close()
            return answer

        with unittest.mock.patch.object(_linux.Object, "others", ask):
            a.close()
        self.assertFalse(self.exists())

    def test_close_leaves_before_it_closes(self):
        """A child that is being started has a copy of the descriptor, and no attachment."""
        a = self.create(persistent=True)
        self.addCleanup(os.close, os.dup(a._attachment.object.fd))
        a.close()
        b = self.open()
        self.assertEqual(b.refs, 1)
        b.unlink()

    def test_create_while_a_block_ends(self):
        """Create waits for a process that is alone with the last block of that name."""
        self.create(persistent=True).close()
        o = self.stop_alone()
        layout = _header.new_layout(100, 0)
        os.pwrite(o.fd, _header.marshal(layout), 0)  # persistent no more
        sleep = time.sleep

        def pause(seconds):
            if not o.closed:
                os.unlink(DIR + self.name)
                o.close()
            sleep(seconds)

        with unittest.mock.patch.object(_linux.time, "sleep", pause), self.create() as a:
            self.assertNotEqual(a.id, layout.id)

    def test_failed_open_has_the_duty_of_detach(self):
        """An open that fails after it has joined may be all that the last one saw when it left."""
        a = self.create()
        linked = _linux.Object.linked

        def leave(o):
            if not a.closed:
                a.close()
                self.assertTrue(self.exists())
                raise PermissionError("made up")
            return linked(o)

        with unittest.mock.patch.object(_linux.Object, "linked", leave), self.assertRaises(PermissionError):
            self.open()
        self.assertFalse(self.exists())

    def test_unlinks_before_it_marks(self):
        """A block that is marked stale has no name: it could be neither opened nor replaced."""
        a = self.create()
        fd = os.open(DIR + self.name, os.O_RDONLY)
        self.addCleanup(os.close, fd)
        states = []
        unlink = os.unlink

        def look(path):
            states.append(os.pread(fd, 4, _header.STATE))
            unlink(path)

        with unittest.mock.patch.object(_linux.os, "unlink", look):
            a.close()
        states.append(os.pread(fd, 4, _header.STATE))
        self.assertEqual(states, [struct.pack("=I", n) for n in (_header.LIVE, _header.STALE)])

    def test_pickle(self):
        a = self.create()
        for readonly in False, True:
            with pickle.loads(pickle.dumps(self.open(readonly=readonly))) as b:
                self.assertEqual([b.id, b.readonly], [a.id, readonly])

    def test_processes_race(self):
        """Processes create, open, write, close and are killed, all with one name."""
        program = """
import os, signal, sys
from shmkit import *
for i in range(300):
    try:
        with Segment.open(sys.argv[1]) as s:
            s.buf[0] = 1
    except FileNotFoundError:
        try:
            Segment.create(sys.argv[1], 10).close()
        except FileExistsError:
            pass
    if i == 60 and len(sys.argv) > 2:
        os.kill(os.getpid(), signal.SIGKILL)
"""
        for _ in range(2):
            peers = [
                subprocess.Popen([sys.executable, "-c", program, self.name] + ["killed"] * (i % 2), env=ENV)
                for i in range(6)
            ]
            self.assertEqual([p.wait() for p in peers], [0, -signal.SIGKILL] * 3)
            with self.assertRaises(FileNotFoundError):
                self.open()
            self.assertFalse(self.exists())

    @unittest.skipUnless(os.getuid() == 0, "only root can become another user: run as root")
    def test_another_user(self):
        a = self.create(mode=0o644)
        p = self.peer()
        self.assertEqual(p.do("os.setuid(65534)"), "done")
        self.assertEqual(p.do(f"s = Segment.open({self.name!r})"), "PermissionError")
        self.assertEqual(p.do(f"unlink({self.name!r})"), "PermissionError")
        self.assertEqual(p.do(f"s = Segment.open({self.name!r}, readonly=True)"), "done")
        self.assertEqual(p.do("assert s.size == 100 and s.refs == 2 and s.linked"), "done")
        self.assertIn((p.process.pid, True, True, False), a.holders())
        self.assertEqual(p.do("s.unlink()"), "PermissionError")
        a.close()
        self.open().close()  # kept alive by the one who may only read ...
        self.assertTrue(self.exists())
        self.assertEqual(p.do("s.close()"), "done")
        self.assertEqual(p.do(f"s = Segment.open({self.name!r}, readonly=True)"), "FileNotFoundError")
        with self.assertRaises(FileNotFoundError):  # ... and stale after it
            self.open()
        self.assertFalse(self.exists())

    def test_no_resource_tracker(self):
        p = self.peer()
        self.assertEqual(p.do(f"s = Segment.create({self.name!r}, 9); t = Segment.open({self.name!r}); s.close()"), "done")
        self.assertEqual(p.do("assert not [m for m in sys.modules if m.startswith('multiprocessing')]"), "done")
        self.assertEqual(p.do("t.close()"), "done")


class Mounts(unittest.TestCase):
    """Programs that have a /dev/shm of their own."""

    def setUp(self):
        if subprocess.call(["unshare", "-m", "true"], stderr=subprocess.DEVNULL) != 0:
            self.skipTest("only root can mount file systems: run as root")

    def run_on(self, fstype, options, program):
        mount = f'mount -t {fstype} -o {options} shmtest /dev/shm && exec "$0" -c "$1"'
        imports = "import errno, os, shmkit\nfrom shmkit import Segment\n"
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", mount, sys.executable, imports + program],
            env=ENV,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            universal_newlines=True,
        )
        self.assertEqual((done.returncode, done.stdout), (0, "end\n"))

    def test_full(self):
        program = """
def free():
    fs = os.statvfs("/dev/shm")
    return fs.f_bavail, fs.f_ffree
for size, filled in (1 << 20, 0), (2 << 20, 0), (1 << 60, 0), (1 << 19, 1 << 19), (1, (1 << 20) - 4096):
    with open("/dev/shm/fill", "wb") as f:
        f.write(bytes(filled))
    before = free()
    try:
        Segment.create("full", size)
    except OSError as e:
        assert e.errno == errno.ENOSPC and e.filename == "full", e
    else:
        print("created", size)
    assert before == free()
    os.unlink("/dev/shm/fill")
with Segment.create("taken", 600 << 10):
    try:
        Segment.create("taken", 600 << 10)
    except FileExistsError:
        print("end")
"""
        self.run_on("tmpfs", "size=1m", program)

    def test_stale_blocks_make_room(self):
        program = """
pid = os.fork()
if pid == 0:
    kept = Segment.create("stale", 800 << 10)
    os._exit(0)
os.waitpid(pid, 0)
assert os.path.exists("/dev/shm/stale")
with Segment.create("new", 700 << 10):
    assert os.listdir("/dev/shm") == ["new"]
print("end")
"""
        self.run_on("tmpfs", "size=1m", program)

    def test_without_limit(self):
        program = """
Segment.create("some", 1 << 20).close()
try:
    Segment.create("huge", 1 << 50)
except OSError as e:
    assert e.errno == errno.ENOSPC, e
    print("end")
"""
        self.run_on("tmpfs", "size=0", program)

    def test_no_tmpfs(self):
        program = """
try:
    Segment.create("name", 1)
except OSError as e:
    assert e.errno == errno.ENOTSUP, e
    print("end")
assert not os.listdir("/dev/shm")
"""
        self.run_on("ramfs", "mode=1777", program)

    def test_read_only(self):
        program = """
try:
    Segment.create("name", 1)
except PermissionError:
    print("end")
"""
        self.run_on("tmpfs", "ro", program)


class Source(unittest.TestCase):
    def test_grammar_is_that_of_3_8(self):
        for path in [HERE.parent / "backend.py", *(HERE.parent / "shmkit").glob("*.py")]:
            ast.parse(path.read_text(), str(path), feature_version=(3, 8))

    def test_lock_commands(self):
        for name, value in ("F_OFD_GETLK", _linux._F_OFD_GETLK), ("F_OFD_SETLK", _linux._F_OFD_SETLK):
            self.assertEqual(getattr(fcntl, name, value), value)


if __name__ == "__main__":
    unittest.main()
