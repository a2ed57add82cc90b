"""An agent in Python: does what it is told on standard input, one attachment at a time.

It answers each line with a line. The one in Go, in ../agent_linux_test.go,
understands the same lines and gives the same answers.
"""

import io
import os
import signal
import sys
import time
import traceback

from shmkit import AbandonedError, Segment, TruncatedError, unlink

raw_blocks = {}  # by name: CPython wants an object to unlink


def attach_raw(name, plain=False):
    """Attach to a raw block without leaving it to the resource tracker."""
    from multiprocessing import resource_tracker, shared_memory

    if plain:
        return shared_memory.SharedMemory(name)
    if sys.version_info >= (3, 13):
        return shared_memory.SharedMemory(name, track=False)
    block = shared_memory.SharedMemory(name)
    resource_tracker.unregister(block._name, "shared_memory")
    return block


class Raw:
    """multiprocessing's SharedMemory with the interface of Segment."""

    def __init__(self, block):
        self.block, self.name, self.size, self.buf = block, block.name, block.size, block.buf
        raw_blocks[self.name] = self.registered = block

    @property
    def linked(self):
        return os.path.samestat(os.fstat(self.block._fd), os.stat("/dev/shm/" + self.name)) if exists(self.name) else False

    def close(self):
        self.buf = None
        self.block.close()


def exists(name):
    return os.path.exists("/dev/shm/" + name)


def create_raw(name, size):
    from multiprocessing import resource_tracker, shared_memory

    block = shared_memory.SharedMemory(name, create=True, size=size)
    resource_tracker.unregister(block._name, "shared_memory")
    return Raw(block)


def unlink_raw(name):
    from multiprocessing import resource_tracker

    block = raw_blocks.pop(name, None)
    if block is None:
        block = attach_raw(name)
        block.close()
    if getattr(block, "_track", True):  # unlink takes away what must be there
        resource_tracker.register(block._name, "shared_memory")
    try:
        block.unlink()
    except FileNotFoundError:
        if getattr(block, "_track", True):
            resource_tracker.unregister(block._name, "shared_memory")
        raise


seg = follower = held = None


def create(name, size, raw=""):
    global seg
    seg = create_raw(name, int(size)) if raw else Segment.create(name, int(size))


def open_(name, how=""):
    global seg
    if how == "raw":
        seg = Raw(attach_raw(name))
    elif how == "plain":
        seg = Raw(attach_raw(name, plain=True))
    else:
        seg = Segment.open(name, readonly=how == "readonly")


def kill_at(what, name, point):
    """Fork a process that does something and is killed before or after a call.

    The calls are those that shmkit makes of functions in C, and so of the
    system; both ends of each are points to be killed at.
    """
    pid = os.fork()
    if pid == 0:
        left = int(point)

        def watch(frame, event, arg):
            nonlocal left
            if event in ("c_call", "c_return", "c_exception") and os.sep + "shmkit" + os.sep in frame.f_code.co_filename:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        own = None
        if what not in ("open", "create"):
            own = Segment.open(name)
        sys.setprofile(watch)
        try:
            if what == "open":
                Segment.open(name).close()
            elif what == "create":
                Segment.create(name, 100).close()
            elif what == "lock":
                with own.lock():
                    pass
            elif what == "follow":
                own.follow(timeout=0).read(100)
            else:
                {"append": lambda: own.append(b"abc"), "truncate": lambda: own.truncate(5), "finish": own.finish}[
                    what
                ]()
        except (FileNotFoundError, TimeoutError):
            pass  # it was a stale one, or there was nothing to read
        except Exception:
            traceback.print_exc()
            os._exit(1)
        sys.setprofile(None)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return {signal.SIGKILL: "killed"}.get(os.WTERMSIG(status), "died otherwise")
    return "done" if status == 0 else "failed"


def leave_stale(name):
    """Fork a process that creates a block and ends as if killed."""
    pid = os.fork()
    if pid == 0:
        kept = Segment.create(name, 100)
        os._exit(kept.closed)
    os.waitpid(pid, 0)


def fork():
    """Fork a process that has what this one has, until it is killed."""
    pid = os.fork()
    if pid == 0:
        os.closerange(0, 3)
        while True:
            signal.pause()
    return pid


def cycle(name):
    """Open and close until killed, with a line for each time."""
    while True:
        with Segment.open(name) as s:
            assert bytes(s.buf[:4]) == b"kept"
        print("cycle", flush=True)


def churn(name, n):
    """Attach, or create, and detach n times."""
    print("churning", flush=True)
    for _ in range(int(n)):
        try:
            s = Segment.open(name)
        except FileNotFoundError:
            try:
                s = Segment.create(name, 100)
            except FileExistsError:
                continue
        with s:
            if not s.linked:
                return "attached, and the name is gone"
            with Segment.open(name) as t:
                if s.id != t.id:
                    return "attached, and the name leads elsewhere"
    return "done"


def append(text):
    seg.append(text.encode())


def next_(n):
    """Read from the follower: what is there, or how it ends."""
    try:
        return follower.read(int(n)).decode() or "eof"
    except TruncatedError:
        return "truncated"
    except AbandonedError:
        return "abandoned"


def follow():
    global follower
    follower = seg.follow()


def drain():
    """Read the follower to its end, and return how many numbered lines there were, in order."""
    n = 0
    for line in io.BufferedReader(follower):
        assert int(line) == n, line
        n += 1
    return n


def stream(n):
    """Append numbered lines."""
    for i in range(int(n)):
        seg.append(b"%d\n" % i)


def take(timeout=None):
    global held
    held = seg.lock()
    if not held.acquire(timeout):
        return "busy"
    return "recovered" if held.recovered else "locked"


def wait(text):
    seg.wait_for(lambda: bytes(seg.buf[: len(text)]) == text.encode())


def count(slot):
    """Add to the count in word slot and to the sum in word 0, with the lock, until word 2 is set.

    A holder that was killed may have added to its count alone. Any other difference is
    noted in word 1.
    """
    print("counting", flush=True)
    slot, n = int(slot), 0
    with seg.buf.cast("Q") as words:
        while not words[2]:
            with seg.lock() as lock:
                total, counted = words[0], sum(words[3:])
                if counted != total and not (lock.recovered and counted == total + 1):
                    words[1] = 1
                words[slot] += 1
                if counted % 7 == 0:
                    time.sleep(0)
                words[0] = counted + 1
                n += 1
    return n


verbs = {
    "append": append,
    "finish": lambda: seg.finish(),
    "keep": lambda: seg.keep(),
    "notify": lambda: seg.notify_all(),
    "follow": follow,
    "next": next_,
    "drain": drain,
    "stream": stream,
    "lock": take,
    "trylock": lambda: take(0),
    "unlock": lambda: held.release(),
    "wait": wait,
    "openwait": lambda name: globals().__setitem__("seg", Segment.open_wait(name)),
    "count": count,
    "create": create,
    "open": open_,
    "close": lambda: seg.close(),
    "unlink": lambda name, raw="": unlink_raw(name) if raw else unlink(name),
    "write": lambda offset, text: seg.buf.__setitem__(slice(int(offset), int(offset) + len(text)), text.encode()),
    "read": lambda offset, n: bytes(seg.buf[int(offset) : int(offset) + int(n)]).decode(),
    "size": lambda: seg.size,
    "refs": lambda: seg.refs,
    "holders": lambda: " ".join(sorted("{}:{:d}:{:d}:{:d}".format(*h) for h in seg.holders())),
    "fork": fork,
    "setuid": lambda user: os.setuid(int(user)),
    "id": lambda: seg.id.hex(),
    "linked": lambda: str(seg.linked).lower(),
    "truncate": lambda n: seg.truncate(int(n)),
    "killat": kill_at,
    "leavestale": leave_stale,
    "cycle": cycle,
    "churn": churn,
}

errors = {BrokenPipeError: "finished", FileExistsError: "exist", FileNotFoundError: "notexist", PermissionError: "permission", ValueError: "invalid"}

for line in sys.stdin:
    verb, *args = line.split()
    try:
        answer = verbs[verb](*args)
        answer = "done" if answer is None else answer
    except Exception as e:
        answer = errors.get(type(e), repr(e))
    print(answer, flush=True)
