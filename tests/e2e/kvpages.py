"""The sealed pages of a running daemon, read out of its own memory, against those of one that computes them anew.

Directory and arena are memfds that describe themselves: see daemon/kv/kvdir.c, daemon/kv/kvpool.c and kernels/cpu/kv.h.
"""
import contextlib

from steamd_e2e import *

HEAD_BYTES = 4096  # of the directory
TAIL_BYTES = 4096  # of the arena, behind its pages
SEALED = 2
HEAD = struct.Struct("<QIIIIQQ")
ENTRY = struct.Struct("<IIQIIII16s16s16s16sQ")


class Page:
    """One sealed page: whose, which tokens, what is before it, and the bytes of the KV of the first n of them."""

    def __init__(self, uid, tokens, parent, root, rows):
        self.uid, self.tokens, self.parent, self.root, self.rows = uid, tokens, parent, root, rows

    def begins_with(self, other):
        return (self.parent, self.root) == (other.parent, other.root) and \
            self.tokens[:len(other.tokens)] == other.tokens


def memfd(pid, name):
    """The bytes of the process's memfd of this name."""
    for fd in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # others come and go
            if os.readlink(fd) == f"/memfd:{name} (deleted)":
                return fd.read_bytes()
    raise AssertionError(f"process {pid} has no memfd {name}")


def groups(model):
    """Rows of KV of one token: each layer has K and V of each kv head."""
    config = json.loads((pathlib.Path(model) / "config.json").read_text())
    return config["num_hidden_layers"] * 2 * config["num_key_value_heads"]


def rows_of(data, n_groups, page_tokens, n_tokens):
    """What the first tokens of a page have in it: behind them may be anything."""
    if n_tokens == page_tokens:
        return data
    row = len(data) // n_groups // page_tokens
    return b"".join(data[i * page_tokens * row:(i * page_tokens + n_tokens) * row] for i in range(n_groups))


def sealed(d):
    """{hash: Page} of all that @d would serve, once nothing is under way."""
    wait_for(lambda: d.status().get("kv", {}).get("held_pages") == 0, 20, "pages that nobody holds")
    directory, arena = memfd(d.process.pid, "steamd-kvdir"), memfd(d.process.pid, "steamd-arena")
    magic, version, n_pages, page_tokens, entry_bytes, _, _ = HEAD.unpack_from(directory)
    assert magic == int.from_bytes(b"smtvdir1", "little") and version == 1, (magic, version)
    page_bytes = (len(arena) - TAIL_BYTES) // n_pages
    pages = {}
    for i in range(n_pages):
        at = HEAD_BYTES + i * entry_bytes
        state, _, _, uid, _, n_tokens, _, own, parent, root, _, _ = ENTRY.unpack_from(directory, at)
        if state != SEALED:
            continue
        tokens = struct.unpack_from(f"<{n_tokens}I", directory, at + ENTRY.size)
        data = arena[i * page_bytes:(i + 1) * page_bytes]
        assert own not in pages, "two pages of one hash"
        pages[own] = Page(uid, tokens, parent, root,
                          lambda n, data=data: rows_of(data, groups(d.model), page_tokens, n))
    return pages


def texts(pages):
    """(hash, uid, token ids) of every chain of @pages that no other continues."""
    parents = {p.parent for p in pages.values()}
    for own, page in pages.items():
        if own in parents:
            continue
        ids, at = page.tokens, page
        while at.parent != at.root:
            at = pages[at.parent]
            ids = at.tokens + ids
        yield own, page.uid, ids


class Recomputed:
    """A daemon that nothing disturbs, of the same model and settings: what it computes is what pages have to be."""

    def __init__(self, model, *sets):
        self.d = Daemon(model, *sets, "KVCacheSize=256M", "DiskCache=no", socket_mode="0666")
        self.pages = {}

    def __enter__(self):
        self.d.__enter__()
        return self

    def __exit__(self, *reason):
        self.d.__exit__(*reason)

    def compare(self, d, least=1):
        """
        Computes what @d has pages of, and compares every page, bit by bit. Pages of labels other than none
        are left out, for their hashes are others. Returns how many were compared, @least at least.
        """
        got = sealed(d)
        new = [text for own, *text in texts(got) if own not in self.pages]
        for uid, ids in new:
            self.d.complete(list(ids), 1, uid=uid or None)
        if new:
            self.pages.update(sealed(self.d))
        want = self.pages
        roots = {p.root for p in want.values()}
        n = 0
        for own, page in got.items():
            if page.root not in roots:
                continue
            # the end of a text that a longer one goes on from is found in that one's page
            anew = want.get(own) or next((w for w in want.values() if w.begins_with(page)), None)
            assert anew, f"no page of the tokens {page.tokens} was computed anew"
            assert anew.begins_with(page), (page.tokens, anew.tokens)
            count = len(page.tokens)
            assert page.rows(count) == anew.rows(count), f"the page of the tokens {page.tokens} is not what is computed"
            n += 1
        assert n >= least, f"{n} pages compared, at least {least} are wanted"
        return n
