"""What tests/e2e/calls.c is told, and what it counted: a program's calls by kind, and what befalls the Nth."""
import mmap

from steamd_e2e import *

LIBRARY = BUILD / "tests" / "e2e" / ".libs" / "calls.so"
KINDS = ["none", "write", "bell", "sync", "rename", "truncate", "memfd", "notify", "send", "unlink"]
HOWS = ["nothing", "before", "half", "after", "fail"]
ORDER = struct.Struct("<IIQiI64s")
COUNTS = struct.Struct(f"<{len(KINDS)}Q")


def need_library():
    if SANITIZED:
        raise Skip("the sanitizers' own library has to be the first; runs in the optimised build")
    if not LIBRARY.exists():
        raise Skip(f"{LIBRARY} was not built")


class Calls:
    """Watches the program of this name of @d, which has not been started yet."""

    def __init__(self, d, program="steamd"):
        path = d.dir / "calls"
        path.write_bytes(bytes(ORDER.size + COUNTS.size))
        with open(path, "r+b") as file:
            self.map = mmap.mmap(file.fileno(), 0)
        d.env = {"LD_PRELOAD": str(LIBRARY), "STEAMD_TEST_CALLS": str(path), "STEAMD_TEST_CALLS_OF": program}

    def order(self, kind, how, at, error=0):
        """At the @at'th call of this kind since the program was first started."""
        self.map[:ORDER.size] = ORDER.pack(KINDS.index(kind), HOWS.index(how), at, error, 0, b"")

    def done(self):
        """Where it happened, or None."""
        _, _, _, _, done, where = ORDER.unpack_from(self.map)
        return where.rstrip(b"\0").decode() or "?" if done else None

    def counts(self):
        return dict(zip(KINDS, COUNTS.unpack_from(self.map, ORDER.size)))
