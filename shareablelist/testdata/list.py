"""Does with a ShareableList what it is told on standard input, one list at a time.

Lines are JSON: an array of the verb and its arguments, answered by an array, or
by the name of the exception. A value is an array of its type and of a text.
"""

import json
import sys
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import ShareableList

encoders = {
    "int": str,
    "float": float.hex,
    "bool": lambda v: "x" * v,
    "str": str,
    "bytes": bytes.hex,
    "NoneType": lambda v: "",
}
decoders = {
    "int": int,
    "float": float.fromhex,
    "bool": bool,
    "str": str,
    "bytes": bytes.fromhex,
    "NoneType": lambda s: None,
}


def encode(v):
    return [type(v).__name__, encoders[type(v).__name__](v)]


def decode(v):
    return decoders[v[0]](v[1])


shared = None


def use(new):
    """Keep the list from the resource tracker, and its exit from our block."""
    global shared
    if shared is not None:
        shared.shm.close()
    shared = new
    resource_tracker.unregister(new.shm._name, "shared_memory")
    return []


verbs = {
    "new": lambda name, values: use(ShareableList([decode(v) for v in values], name=name)),
    "open": lambda name: use(ShareableList(name=name)),
    "get": lambda i: encode(shared[i]),
    "all": lambda: [encode(v) for v in shared],
    "set": lambda i, v: shared.__setitem__(i, decode(v)) or [],
    "format": lambda: [shared.format],
    "index": lambda v: [shared.index(decode(v)), shared.count(decode(v))],
}

for line in sys.stdin:
    verb, *args = json.loads(line)
    try:
        answer = verbs[verb](*args)
    except Exception as e:
        answer = type(e).__name__
    print(json.dumps(answer), flush=True)
