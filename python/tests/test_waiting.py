"""Tests of following, waiting and locking among Python processes."""

import contextlib
import errno
import io
import os
import signal
import struct
import sys
import threading
import time
import unittest
import unittest.mock

import shmkit
from shmkit import Segment, _header, _linux, _lock, _segment, _words

from test_segment import DIR, Case

SOON = 10  # seconds, which nothing but a defect takes


class Waiting(Case):
    def word(self, offset, size=8):
        with open(DIR + self.name, "rb") as f:
            f.seek(offset)
            return int.from_bytes(f.read(size), sys.byteorder)

    def set_word(self, offset, value, size=8):
        self.damage(offset, value.to_bytes(size, sys.byteorder))

    def begin(self, size=1000, **kwargs):
        """Create a block with an empty stream."""
        a = self.create(size, **kwargs)
        a.truncate(0)
        return a

    def patch(self, module, name, value):
        patch = unittest.mock.patch.object(module, name, value)
        patch.start()
        self.addCleanup(patch.stop)

    def without_tick(self):
        """Let only what wakes end a wait, and only what is released be locked."""
        self.patch(_segment, "_TICK", 1e6)
        self.patch(_lock, "_AGAIN", 1e6)

    def asleep(self, thread):
        """Wait until the thread sleeps on a word that processes share: FUTEX_WAIT, which is 0."""
        end = time.monotonic() + SOON
        while True:
            with open(f"/proc/self/task/{thread.native_id}/syscall") as f:
                call = f.read().split()
            if call[0] == str(_words._FUTEX) and call[2] == "0x0":
                return
            self.assertLess(time.monotonic(), end)
            time.sleep(1e-3)

    def in_thread(self, f):
        """Start f in a thread, wait until it sleeps, and return what waits for its result."""
        results = []

        def run():
            try:
                results.append(f())
            except BaseException as e:
                results.append(e)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()

        def result():
            thread.join(SOON)
            self.assertFalse(thread.is_alive())
            if isinstance(results[0], BaseException):
                raise results[0]
            return results[0]

        self.addCleanup(thread.join, SOON)
        self.asleep(thread)
        return result

    def start(self, line):
        """Return another process that has executed the line with this block, s, and its name."""
        p = self.peer()
        self.assertEqual(p.do(f"name = {self.name!r}; s = Segment.open(name)"), "done")
        self.assertEqual(p.do(line), "done")
        return p


class Size(Waiting):
    def test_append(self):
        a = self.begin(100)
        self.assertEqual([a.append(b"12"), a.append(bytearray(b"345")), a.append(b"")], [0, 2, 5])
        self.assertEqual([a.size, bytes(a.buf)], [5, b"12345"])
        words = memoryview(b"abcdef").cast("H")
        self.assertEqual([a.append(words), bytes(a.buf)], [5, b"12345abcdef"])
        with self.assertRaises(OSError) as e:
            a.append(bytes(90))
        self.assertEqual([e.exception.errno, a.size], [errno.EFBIG, 11])
        a.append(bytes(89))
        self.assertEqual(a.size, a.cap)
        r = self.open(readonly=True)
        for f in lambda: r.append(b""), r.finish, r.keep, lambda: r.lock().acquire(), lambda: r.truncate(0):
            with self.assertRaises(io.UnsupportedOperation):
                f()
        with self.assertRaises(TypeError):
            a.append("text")

    def test_finish(self):
        a, b = self.begin(), self.open()
        a.append(b"all")
        self.assertFalse(b.finished)
        a.finish()
        b.finish()
        self.assertTrue(a.finished and b.finished)
        for seg in a, b:
            with self.assertRaises(BrokenPipeError) as e:
                seg.append(b"more")
            self.assertEqual((e.exception.errno, e.exception.filename), (errno.EPIPE, self.name))
        self.assertEqual([a.size, bytes(a.buf)], [3, b"all"])
        for n in 3, 5, 2:  # each opens it again
            generation = self.word(_header.GENERATION)
            a.truncate(n)
            self.assertFalse(b.finished)
            self.assertEqual([b.size, self.word(_header.GENERATION)], [n, generation + 1])
            a.finish()

    def test_words(self):
        """Every step changes the words that the format says."""
        a = self.create(100)
        self.assertEqual(self.word(_header.SIZE), 100)
        a.truncate(100)  # changes nothing
        self.assertEqual([self.word(_header.SIZE), self.word(_header.GENERATION)], [100, 0])
        a.truncate(7)
        self.assertEqual([self.word(_header.SIZE), self.word(_header.GENERATION)], [7 | 1 << 48, 1])
        a.append(b"x")
        self.assertEqual(self.word(_header.SIZE), 8 | 1 << 48 | _header.BEGUN)
        self.assertTrue(8 <= self.word(_header.WRITTEN) <= 32)
        a.finish()
        self.assertEqual(self.word(_header.SIZE), 8 | 1 << 48 | _header.BEGUN | _header.FINISHED)
        self.set_word(_header.GENERATION, 8191)
        self.set_word(_header.SIZE, 8 | 8191 << 48)
        a.truncate(0)
        self.assertEqual([self.word(_header.SIZE), self.word(_header.GENERATION)], [0, 8192])
        a.truncate(9)
        self.assertEqual(self.word(_header.SIZE), 9 | _header.BEGUN)
        self.set_word(_header.GENERATION, 8193)  # by one that was killed before it changed size
        a.truncate(0)
        self.assertEqual([self.word(_header.SIZE), self.word(_header.GENERATION)], [1 << 48, 8193])
        self.assertEqual([self.word(_header.LOCK + i) for i in (0, 8, 64, 72)], [0] * 4)

    def test_written(self):
        """Written notes all that was touched, and is never lowered."""
        a = self.begin(1 << 40, sparse=True)
        noted = 0
        for n in 1, 2, 3, 5, 8, 9, 4097, (1 << 32) - 1, 1 << 32, (1 << 32) + 1, 3 << 38:
            a._attachment.raise_written(n)
            noted, before = self.word(_header.WRITTEN), noted
            self.assertTrue(max(n, before) <= noted <= 4 * n, (n, noted))
        a.truncate(1 << 39)
        a.buf
        self.assertEqual(self.word(_header.WRITTEN), noted)

    def test_cut(self):
        """What a killed truncate has cut off is cleared before size is raised, or the block finished."""

        def finish(seg):
            seg.finish()
            self.assertFalse(self.word(_header.SIZE) & _header.CUT)
            seg.truncate(2)

        for step in lambda s: s.append(b""), finish, lambda s: s.truncate(2), lambda s: s.truncate(1), lambda s: s.truncate(3):
            for sparse in False, True:
                with self.create(3 << 20, sparse=sparse) as a:
                    a.buf[:] = b"x" * a.size
                    self.set_word(_header.GENERATION, 1)
                    self.set_word(_header.DIRTY, a.cap)
                    self.set_word(_header.SIZE, 2 | 1 << 48 | _header.CUT)
                    self.assertEqual(a.size, 2)
                    step(a)
                    self.assertFalse(self.word(_header.SIZE) & _header.CUT)
                    n = min(a.size, 2)
                    a.truncate(a.cap)
                    self.assertEqual(bytes(a.buf), b"x" * n + bytes(a.cap - n))

    def test_many_append(self):
        """Threads and processes append at once: each record is there once, whole."""
        a = self.begin(1 << 20)
        peers = [self.start("from threading import Thread") for _ in range(3)]
        for i, p in enumerate(peers):
            f = f"[s.append(b'%d-%d-%03d\\n' % ({i}, j, k)) for k in range(100)]"
            p.say(f"t = [Thread(target=lambda j=j: {f}) for j in range(2)]; [x.start() for x in t]; [x.join() for x in t]")
        self.assertEqual([p.hear() for p in peers], ["done"] * 3)
        lines = bytes(a.buf).split()
        self.assertEqual(sorted(lines), [b"%d-%d-%03d" % (i, j, k) for i in range(3) for j in range(2) for k in range(100)])

    def test_close_waits_for_truncate(self):
        """Close waits for a truncate in another thread, which ends: what it clears may soon be another writer's."""
        a, b = self.create(4 << 20), self.open()
        a.buf[:] = b"x" * a.cap
        check_open = _segment._Attachment.check_open
        closing = threading.Thread(target=a.close)
        waited = []

        def check(attachment):
            if attachment is a._attachment and not waited and self.word(_header.SIZE) & _header.CUT:  # it clears
                waited.append(True)
                closing.start()
                closing.join(0.3)
                waited[:] = [closing.is_alive(), b._attachment.size_lock.take(self)]
            check_open(attachment)

        with unittest.mock.patch.object(_segment._Attachment, "check_open", check):
            with self.assertRaises(ValueError):
                a.truncate(1)
        closing.join()
        self.assertEqual(waited, [True, None])
        with open(DIR + self.name, "rb") as f:
            f.seek(-1, os.SEEK_END)
            self.assertEqual(f.read(), b"x")
        b._attachment.size_lock.release(self, False)
        self.assertEqual(b.append(b"y"), 1)
        b.truncate(b.cap)
        self.assertEqual(bytes(b.buf), b"xy" + bytes(b.cap - 2))

    def test_killed(self):
        """Killed before and after every call, append, truncate and finish have happened or not; nothing is locked."""
        before, after = b"0123456789", {"append": b"0123456789abc", "truncate": b"01234", "finish": b"0123456789"}
        for verb, argument in ("append", "b'abc'"), ("truncate", "5"), ("finish", ""):
            point, killed = 0, True
            while killed:
                with self.subTest(verb, point=point), self.begin(5000) as a:
                    a.append(before)
                    killed = self.killed_at(f"s.{verb}({argument})", point)
                    self.assertIn(bytes(a.buf), [before, after[verb]])
                    self.assertTrue(killed or bytes(a.buf) == after[verb])
                    n, content = a.size, bytes(a.buf)
                    if not a.finished:
                        self.assertEqual(a.append(b"z"), n)
                        content += b"z"
                    a.truncate(a.cap)
                    rest = bytes(a.buf)[len(content) :]
                    self.assertEqual(bytes(a.buf)[: len(content)], content)
                    if verb != "append":  # which leaves what it has copied
                        self.assertFalse(any(rest))
                    a.truncate(0)
                    a.truncate(a.cap)
                    self.assertFalse(any(a.buf))
                    self.assertEqual(a.refs, 1)
                point += 1
            self.assertGreater(point, 20)

    def killed_at(self, statement, point):
        """Execute the statement with the block s in another process, killed at a call; whether it was."""
        pid = os.fork()
        if pid == 0:
            s = Segment.open(self.name)
            left = point

            def watch(frame, event, arg):
                nonlocal left
                if event in ("c_call", "c_return", "c_exception") and os.sep + "shmkit" + os.sep in frame.f_code.co_filename:
                    left -= 1
                    if left < 0:
                        os.kill(os.getpid(), signal.SIGKILL)

            try:
                code = compile(statement, "", "exec")
                sys.setprofile(watch)
                exec(code, {"s": s})
            finally:
                sys.setprofile(None)
                os._exit(0)
        _, status = os.waitpid(pid, 0)
        return os.WIFSIGNALED(status)


class Follow(Waiting):
    def test_stream(self):
        self.without_tick()
        a = self.begin()
        f = self.open().follow()
        for text in b"one", b"two":
            result = self.in_thread(lambda: f.read(100))
            a.append(text)
            self.assertEqual(result(), text)
        result = self.in_thread(lambda: f.read(100))
        a.finish()
        self.assertEqual([result(), f.read(1), f.readinto(bytearray(5)), f.read(0)], [b"", b"", 0, b""])
        self.assertEqual(a.follow().read(), b"onetwo")
        self.assertTrue(f.readable() and not f.writable() and not f.seekable())

    def test_readinto(self):
        a = self.begin()
        a.append(b"\1\2\3\4\5")
        a.finish()
        words = memoryview(bytearray(8)).cast("H")
        f = a.follow()
        self.assertEqual([f.readinto(words[:2]), bytes(words)], [4, b"\1\2\3\4\0\0\0\0"])
        self.assertEqual([f.read(9), f.read(9)], [b"\5", b""])
        self.assertEqual(f.readinto(bytearray()), 0)

    def test_lines(self):
        a = self.begin(1 << 20)
        a.append(b"one\ntwo\nrest")
        a.finish()
        self.assertEqual(list(a.follow()), [b"one\n", b"two\n", b"rest"])
        with io.BufferedReader(a.follow()) as lines:
            self.assertEqual(list(lines), [b"one\n", b"two\n", b"rest"])

    def test_not_begun(self):
        """Nothing is read of a stream that nobody has begun or finished, also if the block has bytes."""
        for begin in lambda a: a.finish(), lambda a: (a.truncate(0), a.truncate(100)):
            with self.create() as a:
                a.buf[:] = b"x" * 100
                f = a.follow(timeout=0)
                with self.assertRaises(TimeoutError):
                    f.read(1)
                begin(a)
                self.assertEqual(len(f.read(200)), 100)

    def test_truncated(self):
        a = self.begin()
        a.append(b"old")
        f, late = a.follow(), a.follow()
        self.assertEqual(f.read(2), b"ol")
        a.truncate(0)
        a.append(b"new")
        for _ in range(2):
            with self.assertRaises(shmkit.TruncatedError):
                f.read(1)
        self.assertEqual(late.read(9), b"new")
        a.finish()
        self.assertEqual(late.read(9), b"")
        a.truncate(3)  # opened again
        with self.assertRaises(shmkit.TruncatedError):
            late.read(9)

    def test_truncated_while_it_waits(self):
        self.without_tick()
        a = self.begin()
        a.append(b"x")
        f = self.open().follow()
        f.read(1)
        result = self.in_thread(lambda: f.read(1))
        a.truncate(0)
        with self.assertRaises(shmkit.TruncatedError):
            result()

    def test_truncated_between(self):
        """Bytes that were copied while the block was truncated are not delivered."""
        a = self.begin()
        a.append(b"old")
        read = _segment._Attachment.read
        for delivered in 0, 1:
            f = a.follow()
            f.read(delivered)

            def truncate(attachment, b, offset, size):
                self.patched.stop()
                n = read(attachment, b, offset, size)
                a.truncate(0)
                a.append(b"new")
                return n

            self.patched = unittest.mock.patch.object(_segment._Attachment, "read", truncate)
            self.patched.start()
            if delivered:
                with self.assertRaises(shmkit.TruncatedError):
                    f.read(9)
            else:
                self.assertEqual(f.read(9), b"new")

    def test_low_bits_again(self):
        """After 8192 truncates the low bits are those of before."""
        a = self.begin()
        a.append(b"old")
        f = a.follow()
        f.read(1)
        self.set_word(_header.GENERATION, self.word(_header.GENERATION) + (1 << 13))
        with self.assertRaises(shmkit.TruncatedError):
            f.read(1)

    def test_begins_between(self):
        """A follower that begins between the two stores of truncate is not of the new stream."""
        a = self.begin()
        a.append(b"old")
        self.set_word(_header.GENERATION, 2)
        f = self.open(readonly=True).follow()
        self.assertEqual(f.read(1), b"o")
        a.truncate(0)
        a.append(b"new")
        with self.assertRaises(shmkit.TruncatedError):
            f.read(1)

    def test_abandoned(self):
        """No writer is left, by kill or by close: an exception, after which it looks again."""
        for end in "kill", "s.close()", "del s":
            with self.subTest(end), self.create() as creator, self.open() as a, self.open(readonly=True) as b:
                p = self.start("s.truncate(0); s.append(b'half')")
                creator.close()
                followers = a.follow(timeout=SOON), b.follow(timeout=SOON)
                self.assertEqual([f.read(9) for f in followers], [b"half"] * 2)
                if end == "kill":
                    p.end()
                else:
                    self.without_tick()
                    results = [self.in_thread(lambda f=f: f.read(9)) for f in followers]
                    p.do(end)
                    for result in results:
                        with self.assertRaises(shmkit.AbandonedError):
                            result()
                for f in followers * 2:
                    with self.assertRaises(shmkit.AbandonedError):
                        f.read(1)
                a.append(b"+")
                self.assertEqual([f.read(9) for f in followers], [b"+"] * 2)

    def test_last_bytes_of_a_writer(self):
        """Bytes that come before the last writer leaves are read."""
        a = self.create()
        p = self.start("s.truncate(0); s.append(b'begun')")
        a.close()
        f = self.open(readonly=True).follow(timeout=SOON)
        self.assertEqual(f.read(9), b"begun")
        writers = _linux.Object.writers

        def leave(o):
            p.do("s.append(b'last')")
            p.end()
            return writers(o)

        with unittest.mock.patch.object(_linux.Object, "writers", leave):
            self.assertEqual(f.read(9), b"last")
        with self.assertRaises(shmkit.AbandonedError):
            f.read(9)

    def test_follower_is_no_writer(self):
        """A Segment that has only followed is out of the writers; it is back before it writes."""
        self.begin().close()
        for write in lambda s: s.append(b""), lambda s: s.truncate(0), lambda s: s.finish(), lambda s: s.lock().acquire(0):
            with self.create() as a, self.open() as b:
                observer = self.open(readonly=True)._attachment.object
                for seg in a, b:
                    self.assertTrue(observer.writers())
                    seg.follow()
                    seg.follow()
                self.assertFalse(observer.writers())
                self.assertEqual([h.readonly for h in a.holders()], [True] * 3)
                tag = b._attachment.object.tag
                write(b)
                self.assertTrue(observer.writers() and not observer.gone(tag))
                b.follow()  # stays
                self.assertTrue(observer.writers())
                self.assertEqual(a.refs, 3)
                observer.leave()

    def test_last_writer_steps_aside(self):
        self.without_tick()
        a, b = self.begin(), self.open()
        a.append(b"x")
        c = self.open()
        f = b.follow()
        self.assertEqual(f.read(1), b"x")
        a.close()
        result = self.in_thread(lambda: f.read(1))
        g = c.follow()
        with self.assertRaises(shmkit.AbandonedError):
            result()
        g.close()

    def test_moves(self):
        """One that moves has a byte all the time, and counts once; where its byte is taken it gets another tag."""
        a, b = self.create(), self.open()
        o = b._attachment.object
        with unittest.mock.patch.object(_linux.Object, "_unlock_own", lambda *_: self.assertEqual(a.refs, 2)):
            b.follow()
        self.assertEqual(a.refs, 2)
        other = _linux.open_object(self.name, True)
        self.addCleanup(other.close)
        self.assertTrue(other._lock_own(o.tag, False) is False)
        o._unlock_own(o.tag, True)
        self.assertTrue(other._lock_own(o.tag, True))
        before = o.tag
        b.truncate(0)
        self.assertNotEqual(o.tag, before)
        other.leave()
        self.assertEqual(a.refs, 2)
        self.assertFalse(a._attachment.object.gone(o.tag))

    def test_ends(self):
        """A read that waits ends with its Follower, and with its Segment."""
        self.without_tick()
        self.begin()
        for readonly in False, True:
            a = self.open(readonly=readonly)
            f, g = a.follow(), a.follow()
            result = self.in_thread(lambda: f.read(1))
            f.close()
            with self.assertRaises(ValueError):
                result()
            with self.assertRaises(ValueError):
                f.read(1)
            result = self.in_thread(lambda: g.read(1))
            a.close()
            with self.assertRaises(ValueError):
                result()
            with self.assertRaises(ValueError):
                a.follow()
            f.close()
            g.close()
            repr(g)

    def test_timeout(self):
        f = self.begin().follow(timeout=0.3)
        start = time.monotonic()
        with self.assertRaises(TimeoutError):
            f.read(1)
        self.assertGreaterEqual(time.monotonic() - start, 0.3)

    def test_truncated_by_another_program(self):
        a = self.begin()
        a.append(b"x")
        f = a.follow()
        os.truncate(DIR + self.name, 4096)
        for use in lambda: f.read(1), lambda: a.wait_for(lambda: False), lambda: a.append(b"x"), a.finish:
            with self.assertRaises(OSError) as e:
                use()
            self.assertEqual(e.exception.errno, errno.EFAULT)
        self.assertEqual(os.stat(DIR + self.name).st_size, 4096)

    def test_sparse(self):
        """To follow takes no memory."""
        a = self.begin(64 << 20, sparse=True)
        a.truncate(a.cap)
        before = os.stat(DIR + self.name).st_blocks
        a.finish()
        self.assertEqual(len(a.follow().read()), a.cap)
        self.assertEqual(os.stat(DIR + self.name).st_blocks, before)

    @unittest.skipUnless(os.getuid() == 0, "only root can become another user: run as root")
    def test_another_user(self):
        """One that may only read follows and waits, but cannot wake or be woken."""
        a = self.begin(mode=0o644)
        p = self.peer()
        self.assertEqual(p.do(f"os.setuid(65534); s = Segment.open({self.name!r}, readonly=True)"), "done")
        p.say("f = s.follow(); assert f.read(9) == b'x'")
        a.append(b"x")
        self.assertEqual(p.hear(), "done")
        p.say("assert s.wait_for(lambda: s.size > 1)")
        a.append(b"y")
        self.assertEqual(p.hear(), "done")
        self.assertEqual(p.do("s.notify_all()"), "PermissionError")
        a.finish()
        self.assertEqual(p.do("assert f.read() == b'y'"), "done")


class Wait(Waiting):
    def test_value(self):
        a = self.create()
        self.assertEqual(a.wait_for(lambda: "true"), "true")
        start = time.monotonic()
        self.assertEqual(a.wait_for(lambda: [], 0.3), [])
        self.assertGreaterEqual(time.monotonic() - start, 0.3)
        calls = []
        self.assertIsNone(a.wait_for(lambda: calls.append(1), 0))
        self.assertTrue(calls)
        with self.assertRaises(ZeroDivisionError):
            a.wait_for(lambda: 1 / 0)

    def test_wakes(self):
        """Every change wakes, in other processes and in other threads."""
        self.without_tick()
        a = self.begin()
        p = self.start("pass")
        for change in "buf[0:0] = b''; s.notify_all()", "append(b'x')", "truncate(5)", "truncate(0)", "finish()", "truncate(0)":
            for wake in lambda: p.do("s." + change), lambda: exec("s." + change, {"s": a}):
                seen = []
                changed = threading.Event()
                result = self.in_thread(lambda: a.wait_for(lambda: (seen.append(a.size), changed.is_set())[1]))
                seen.clear()
                changed.set()
                wake()
                self.assertTrue(result(), change)
                if change.startswith("truncate") or change == "finish()":
                    a.append(b"for the next one") if not a.finished else a.truncate(1)
            if a.finished:
                a.truncate(1)

    def test_no_wake_is_lost(self):
        """Two processes hand over to each other, without ticks and with pauses."""
        self.without_tick()
        a = self.create()
        p = self.start("import shmkit._segment; shmkit._segment._TICK = 1e6; import random, time")
        hand = (
            "for i in range({}, 3000, 2):\n    s.wait_for(lambda: s.buf[0] == i % 256)\n"
            "    random.random() < .1 and time.sleep(random.random() * 1e-4)\n"
            "    s.buf[0] = (i + 1) % 256\n    s.notify_all()\n"
        )
        p.say(f"exec({hand.format(1)!r})")
        import random

        result = self.in_thread_now(lambda: exec(hand.format(0), {"s": a, "time": time, "random": random}))
        result()
        self.assertEqual(p.hear(), "done")

    def in_thread_now(self, f):
        with unittest.mock.patch.object(self, "asleep", lambda thread: None):
            return self.in_thread(f)

    def test_armed(self):
        """One that waits says so, before it looks; it is woken by all that changes."""
        a = self.create()
        seen = []

        def look():
            seen.append((self.word(_header.ARMED, 4), self.word(_header.EVENT, 4)))
            self.set_word(_header.ARMED, 0, 4)  # as those do that wake
            return False

        a.wait_for(look, 0)
        self.assertEqual([armed for armed, _ in seen], [0, 1])
        before = self.word(_header.EVENT, 4)
        a._attachment.words.arm()
        a.notify_all()
        self.assertEqual([self.word(_header.EVENT, 4), self.word(_header.ARMED, 4)], [before + 1, 0])
        self.set_word(_header.EVENT, (1 << 32) - 1, 4)
        a.notify_all()
        self.assertEqual(self.word(_header.EVENT, 4), 0)

    def test_signals(self):
        """An exception of a signal handler gets through to whoever sleeps."""

        def alarm(*_):
            raise KeyboardInterrupt

        self.addCleanup(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, alarm))
        a, b = self.begin(), self.open()
        held = b.lock()
        held.acquire()
        f = a.follow()
        self.without_tick()
        for wait in lambda: f.read(1), lambda: a.wait_for(lambda: False), lambda: a.lock().acquire():
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with self.assertRaises(KeyboardInterrupt):
                wait()
        held.release()
        self.assertTrue(a.lock().acquire(0))
        self.assertTrue(a.lock().acquire(0))  # an object that is dropped releases it

    def test_idle(self):
        """One that waits takes no processor time but for the tick."""
        a = self.create()
        before = time.thread_time()
        a.wait_for(lambda: False, 1)
        self.assertLess(time.thread_time() - before, 0.05)

    def test_fork(self):
        """A forked child waits, follows and writes with what it has inherited; it takes no lock."""
        a = self.begin()
        b = self.open()
        c = Segment.create(self.name + "c", 1)  # which has no other writer
        self.addCleanup(c.close)
        pid = os.fork()
        if pid == 0:
            try:
                f = b.follow(timeout=SOON)
                ok = f.read(1) == b"x" and not c._attachment.abandoned() and a.wait_for(lambda: a.size > 1, SOON)
                with contextlib.suppress(RuntimeError):
                    a.lock().acquire(0)
                    ok = False
                a.append(b"child")
                os._exit(not ok)
            finally:
                os._exit(2)
        a.append(b"x")
        a.append(b"y")
        self.assertEqual(os.waitpid(pid, 0)[1], 0)
        self.assertEqual([bytes(a.buf), a.refs], [b"xychild", 2])
        self.assertTrue(b.lock().acquire(0))

    def test_open_wait(self):
        with self.assertRaises(TimeoutError):
            Segment.open_wait(self.name, 0.05)
        with self.assertRaises(ValueError):
            Segment.open_wait("a b")
        p = self.peer()
        p.say(f"s = Segment.open_wait({self.name!r}, readonly=True)")
        a = self.create()
        self.assertEqual(p.hear(), "done")
        self.assertEqual(a.refs, 2)
        with Segment.open_wait(self.name, 0) as b:
            self.assertEqual(b.id, a.id)


class Keep(Waiting):
    def test_keep(self):
        a = self.create()
        a.keep()
        a.close()
        self.assertTrue(self.exists())
        self.assertNotIn(self.name, shmkit.reap())
        with self.assertRaises(FileExistsError):
            self.create()
        p = self.start("pass")
        p.end()
        self.assertNotIn(self.name, shmkit.reap())
        for _ in range(2):
            with self.open() as b:
                self.assertEqual(b.refs, 1)
        with self.open(readonly=True), self.open(readonly=True):
            pass
        shmkit.unlink(self.name)

    def test_kept_meanwhile(self):
        """Another process keeps the block and ends just before this one is alone."""

        def keep(o):
            self.set_word(_header.KEEP, 1, 4)
            return try_alone(o)

        try_alone = _linux.Object.try_alone
        kept = unittest.mock.patch.object(_linux.Object, "try_alone", keep)

        def closed_last():
            a = self.create()
            with kept:
                a.close()

        def closed_with_wrong_count():
            a = self.create()
            self.damage(_header.COUNT, struct.pack("=I", 7))
            with kept:
                a.close()

        def reaped():
            self.leave_stale()
            with kept:
                self.assertFalse(_segment._reap(_linux.Attempt(0), self.name))

        def opened():
            self.leave_stale()
            with kept:
                self.open().close()

        for end in closed_last, closed_with_wrong_count, reaped, opened:
            with self.subTest(end.__name__):
                end()
                self.assertTrue(self.exists())
                with self.open() as a:
                    self.assertEqual(a.refs, 1)
                shmkit.unlink(self.name)

    def leave_stale(self):
        p = self.peer()
        self.assertEqual(p.do(f"s = Segment.create({self.name!r}, 10)"), "done")
        p.end()


class Lock(Waiting):
    def test_excludes(self):
        a, b = self.create(), self.open()
        with a.lock() as lock:
            self.assertFalse(lock.recovered)
            for seg in a, b:
                self.assertFalse(seg.lock().acquire(0))
            start = time.monotonic()
            self.assertFalse(b.lock().acquire(timeout=0.1))
            self.assertGreaterEqual(time.monotonic() - start, 0.1)
        other = b.lock()
        self.assertTrue(other.acquire(0))
        for wrong in lock, b.lock(), a.lock():
            with self.assertRaises(RuntimeError):
                wrong.release()
        other.release()
        with self.assertRaises(RuntimeError):
            other.release()
        self.assertEqual([self.word(_header.LOCK), self.word(_header.LOCK + 8)], [0, 0])
        with self.assertRaises(ZeroDivisionError), a.lock():
            1 / 0
        self.assertTrue(lock.acquire(0))
        a.close()
        for use in a.lock, lock.release, lock.acquire:
            with self.assertRaises(ValueError):
                use()

    def test_release_wakes(self):
        """Release and close let those go on that wait, in this process and in others."""
        self.without_tick()
        a, b = self.create(), self.open()
        p = self.start("import shmkit._lock; shmkit._lock._AGAIN = 1e6")
        lock = a.lock()
        for end in lock.release, a.close:
            lock.acquire()
            results = [self.in_thread(lambda: self.take(seg)) for seg in (a, b, b)]
            p.say("l = s.lock(); assert l.acquire(20); l.release()")
            end()
            if a.closed:
                with self.assertRaises(ValueError):
                    results[0]()
            for result in results[a.closed :]:
                result()
            self.assertEqual(p.hear(), "done")

    def take(self, seg):
        with seg.lock() as lock:
            return lock.recovered

    def test_close_while_waiting(self):
        self.without_tick()
        a, b = self.create(), self.open()
        with b.lock():
            result = self.in_thread(lambda: a.lock().acquire())
            a.close()
            with self.assertRaises(ValueError):
                result()
        with b.lock() as lock:
            self.assertFalse(lock.recovered)  # a did not have it

    def test_recovered(self):
        """One that ends with the lock leaves word, until one has taken the lock that can say so."""
        for end in "kill", "close":
            a = self.create()
            p = self.start("l = s.lock(); l.acquire()")
            self.assertFalse(a.lock().acquire(0))
            p.end() if end == "kill" else p.do("s.close()")
            b = self.open()
            # One that gives up in between does not take the word with it.
            gone = _linux.Object.gone
            with unittest.mock.patch.object(_linux.Object, "gone", lambda *_: False):
                self.set_word(_header.LOCK, 12345 << 1)
                self.assertFalse(b.lock().acquire(0))
            self.set_word(_header.LOCK, 0)
            self.assertIs(gone, _linux.Object.gone)
            b.close()
            with a.lock() as lock:
                self.assertTrue(lock.recovered)
            with a.lock() as lock:
                self.assertFalse(lock.recovered)
            a.close()

    def test_holder_of_another_kind(self):
        """One that holds the lock by compare-and-swap, as Go does."""
        a, b = self.create(), self.open()
        for seg in a, b:
            with seg.lock():  # makes it a writer
                pass
        tag = b._attachment.object.tag
        self.set_word(_header.LOCK, tag << 1 | 1)
        self.assertFalse(a.lock().acquire(0))
        self.assertEqual(self.word(_header.LOCK + 8), 0)
        threading.Timer(0.05, b.close).start()  # and held stays
        with a.lock() as lock:
            self.assertTrue(lock.recovered)
            self.assertEqual(self.word(_header.LOCK), 0)
            self.assertEqual(self.word(_header.LOCK + 8), a._attachment.object.tag << 1 | 1)
        self.set_word(_header.LOCK, (1 << 61) - 2)  # closed with the lock
        with a.lock() as lock:
            self.assertTrue(lock.recovered)

    def test_used_tag(self):
        """A tag in the words of a lock is nobody's any more."""
        a = self.create()
        for i, at in enumerate([0, 8, 64, 72]):
            self.set_word(_header.LOCK + at, (100 + i) << 1 | i % 2)
        tags = iter(range(100, 106))
        with unittest.mock.patch.object(_linux, "_new_tag", lambda: next(tags)):
            b, c = self.open(), self.open(readonly=True)
        self.assertEqual([b._attachment.object.tag, c._attachment.object.tag], [104, 105])
        self.assertEqual(a.refs, 3)
        with a.lock() as lock:
            self.assertTrue(lock.recovered)

    def test_counter(self):
        """Threads of processes add to a counter under the lock, and some are killed: no change is lost."""
        self.create(16)
        add = (
            "for i in range({}):\n    with s.lock():\n        v = int.from_bytes(s.buf[:8], 'little') + 1\n"
            "        time.sleep(0)\n        s.buf[8:16] = s.buf[:8] = v.to_bytes(8, 'little')\n"
        )
        a = self.open()
        peers = [self.start("import time, threading") for _ in range(4)]
        for p in peers[:2]:
            thread = f"threading.Thread(target=lambda: exec({add.format(200)!r}, globals()))"
            p.say(f"t = [{thread}, {thread}]; [x.start() for x in t]; [x.join() for x in t]")
        killed = 0
        for p in peers[2:]:
            # It dies with the lock, having added to one counter of the two.
            p.say(
                f"exec({add.format(50)!r}); l = s.lock(); l.acquire(); "
                "s.buf[:8] = (int.from_bytes(s.buf[:8], 'little') + 1).to_bytes(8, 'little'); os.kill(os.getpid(), 9)"
            )
            p.process.wait()
            killed += 1
        self.assertEqual([p.hear() for p in peers[:2]], ["done"] * 2)
        self.assertEqual(int.from_bytes(a.buf[:8], "little"), 800 + 100 + killed)

    def test_closed(self):
        """A call of another thread that comes late takes no lock, which a view would keep."""
        a, b = self.create(), self.open()
        for seg in a, b:
            view, attachment = seg.buf, seg._attachment
            seg.close()
            uses = attachment.be_writer, lambda: attachment.lock.take(self), lambda: attachment.size_lock.take(self)
            for use in uses:
                with self.assertRaises(ValueError):
                    use()
            self.assertEqual(len(view), 100)

    def test_stopped(self):
        """A process that is stopped while it changes the size: TimeoutError after patience."""
        a, b = self.begin(), self.open()
        self.addCleanup(setattr, _linux, "PATIENCE", _linux.PATIENCE)
        _linux.PATIENCE = 0.05
        self.assertIs(b._attachment.size_lock.take(self), False)
        for f in lambda: a.append(b"x"), lambda: a.truncate(1), a.finish:
            with self.assertRaises(TimeoutError):
                f()
        b._attachment.size_lock.release(self, False)
        a.append(b"x")
        self.assertEqual([self.word(_header.SIZE_LOCK), self.word(_header.SIZE_LOCK + 8)], [0, 0])


if __name__ == "__main__":
    unittest.main()
