#!/usr/bin/env python3
"""
The broker killed at every call that leaves something behind, and each such call failing; the executor killed at
each that the broker hears of: nothing is lost.

One scenario of two users (sessions, the cache in memory and on disk, restarts, sleep) is run undisturbed, and then
again for a call at which it is disturbed: all that was said and kept is to be the same. SECONDS=60 of them, spread
over all kinds of calls; ROUNDS=all: each call once. KINDS=write:half,sync: of these alone.
"""
import contextlib
import errno
import functools
import itertools
import random
import sqlite3

from calls import *
from kvpages import *
from stored import *

SEED = int(os.environ.get("SEED", random.randrange(1 << 32)))
ROUNDS = os.environ.get("ROUNDS")
SECONDS = int(os.environ.get("SECONDS", 17))
SETS = ("ChatTemplate=glm47", "PageTokens=16", "Context=2048")
N = 12
OTHER = 12345 if os.geteuid() == 0 else None
TEXT = [3 + i * 37 % 470 for i in range(70)]
KILLS = [("write", "before"), ("write", "half"), ("write", "after"), ("bell", "before"), ("bell", "after"),
         ("sync", "before"), ("sync", "after"), ("rename", "before"), ("rename", "after"), ("truncate", "before"),
         ("truncate", "after"), ("memfd", "before"), ("memfd", "after"), ("notify", "before"), ("notify", "after"),
         ("send", "before"), ("send", "after"), ("unlink", "before"), ("unlink", "after")]
EXECUTOR_KILLS = [("bell", "before"), ("bell", "after"), ("send", "before"), ("send", "after")]
FAILURES = [("write", "EIO"), ("write", "ENOSPC"), ("sync", "EIO"), ("rename", "EIO"), ("truncate", "ENOSPC"),
            ("memfd", "EMFILE"), ("memfd", "ENOMEM"), ("notify", "ENOBUFS"), ("send", "EAGAIN"), ("send", "ENOBUFS"),
            ("unlink", "EIO")]


@functools.cache
def damaged_database():
    """One with a session "old" of two turns, of which a page of an index is no page: it is mended."""
    with Daemon("air", *SETS) as d:
        for k in (1, 2):
            d.ctl("ask", "--no-think", "--session", "old", "--ignore-eos", "-n", N, "--seed", k, f"Before {k}")
        d.process.terminate()
        assert d.process.wait(20) == 0
        path = d.dir / "state" / "state.db"
        db = sqlite3.connect(path)
        page, = db.execute("SELECT rootpage FROM sqlite_schema WHERE type='index' AND tbl_name='turn'").fetchone()
        db.close()
        data = bytearray(path.read_bytes())
        data[(page - 1) * 4096:page * 4096] = b"\xa5" * 4096
        os.truncate(d.log_path, 0)
        d.__enter__()
        return bytes(data)


class World:
    """The daemon of one run of the scenario; it is started again whenever it dies of what was ordered."""

    def __init__(self, kills=False, program="steamd"):
        self.kills, self.program = kills, program
        self.d = Stored("air", *SETS, socket_mode="0666")
        self.calls = Calls(self.d, program)
        self.deaths = []
        self.unsaved = False  # an answer said that its turn is not saved
        (self.d.dir / "state").mkdir()
        (self.d.dir / "state" / "state.db").write_bytes(damaged_database())

    def died(self):
        """It may have, once, and if it was not killed it has said why."""
        code = self.d.process.returncode
        assert self.program == "steamd", f"the broker ended with {code}:\n{self.d.log()}"
        self.deaths.append(code)
        assert len(self.deaths) == 1 and self.calls.done(), f"it ended with {self.deaths}:\n{self.d.log()}"
        assert code == -signal.SIGKILL if self.kills else code > 0, f"it ended with {code}:\n{self.d.log()}"
        if not self.kills:
            assert self.d.log().splitlines()[-1].startswith("steamd: "), self.d.log()

    def up(self):
        self.d.launch()
        wait_for(lambda: self.d.ready.is_set() or self.d.process.poll() is not None, 60, "READY=1")
        if self.d.process.poll() is not None:
            self.died()
            self.up()

    def stop(self):
        self.d.process.terminate()
        if self.d.process.wait(30) != 0:
            self.died()

    def command(self, *args, stdin=b"", uid=None):
        """Runs steamctl, whatever becomes of the daemon. Returns its exit code and what it said."""
        p = self.d.popen(*args, uid=uid, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        with contextlib.suppress(BrokenPipeError):  # it may have ended, for nobody answers
            p.stdin.write(stdin)
            p.stdin.close()
        end = time.monotonic() + 60
        while p.poll() is None:
            if self.d.process.poll() is not None:
                self.died()
                self.up()
            assert time.monotonic() < end, f"steamctl {args} does not end:\n{self.d.log()}"
            time.sleep(0.002)
        return p.returncode, p.stdout.read(), p.stderr.read().decode()

    def until_done(self, *args, done=lambda: None, **kwargs):
        """Asks again what was not answered, unless done() says that it was done all the same."""
        for _ in range(4):
            code, out, err = self.command(*args, **kwargs)
            if self.d.process.poll() is not None:
                self.died()
                self.up()
            if code == 0:
                return out
            # lost, or refused, with a sentence; 64: done already, for the client has asked again by itself
            assert self.calls.done() and err.splitlines()[-1].startswith("steamctl: "), (args, code, err)
            assert code in (66, 69, 70, 71, 75) or code == 64 and done(), (args, code, err)
            if "the model is being opened" in err:
                wait_for(lambda: "kv" in self.d.status(), 20, "the model")
            if "sessions are not kept: " in err and not self.kills:
                wait_for(lambda: self.command("session", "list")[0] == 0, 20, "sessions")
            there = done()
            if there:
                return there
        raise AssertionError(f"steamctl {args}: {code}, {err}\n{self.d.log()}")

    def turns(self, name, uid=None):
        """Those of the session, once none is running."""
        wait_for(lambda: not [t for t in json.loads(self.until_done("ps", "--json", uid=uid))["turns"]
                              if t["state"] != "ended"], 20, "the turn's end")
        for _ in range(2):  # the broker may die of this question
            code, out, err = self.command("session", "show", "--json", name, uid=uid)
            if self.d.process.poll() is not None:
                self.died()
                self.up()
            if code in (0, 66):
                break
            assert self.calls.done(), (code, err)
        assert code in (0, 66), (code, err)
        return [t for t in json.loads(out)["turn"] if "answer" in t] if code == 0 else []

    def ask(self, name, k, uid=None):
        """Turn @k of a session, said once."""
        def there():
            turns = self.turns(name, uid)
            return turns[k - 1]["answer"]["content"] if len(turns) >= k else None
        out = self.until_done("ask", "--json", "--no-think", "--session", name, "--ignore-eos", "-n", N, "--seed",
                              100 + k, f"Question {k}", done=there, uid=uid)
        if isinstance(out, str):
            return out
        said = json.loads(out.splitlines()[-1])
        assert said["session"]["turn"] == k, said
        if said["session"]["saved"] is not True:  # it says so, and is asked again
            assert self.calls.done() and not self.kills and not self.unsaved, said
            self.unsaved = True
            # of a commit whose last call failed nobody knows: it is there whole, or not at all
            assert (there() or self.ask(name, k, uid)) == said["content"]
        return said["content"]

    def complete(self, ids, uid=None):
        out = self.until_done("complete", "--ids", "--json", "--temperature", "0", "--max-tokens", N, "--ignore-eos",
                              stdin=json.dumps(ids).encode(), uid=uid)
        return json.loads(out.splitlines()[-1])["ids"]

    def names(self):
        return {s["name"] for s in json.loads(self.until_done("session", "list", "--json"))["sessions"]}

    def asleep(self):
        self.until_done("sleep")

    def play(self):
        """The scenario; returns all that was said and kept."""
        self.up()
        said = [self.ask("a", 1), self.ask("b", 1, OTHER), self.complete(TEXT)]
        self.stop()
        self.up()
        said += [self.ask("a", 2)]
        self.asleep()
        said += [self.ask("b", 2, OTHER)]
        self.until_done("session", "fork", "a", "c", done=lambda: "c" in self.names())
        said += [self.ask("c", 3)]
        self.until_done("session", "rm", "a", done=lambda: "a" not in self.names())
        self.stop()
        self.d.forget()
        self.up()
        said += [self.complete(TEXT + TEXT), self.ask("c", 4), self.ask("b", 3, OTHER)]
        for name, uid in (("b", OTHER), ("c", None), ("old", None)):
            said += [[(t["request"]["messages"], t["answer"]["content"], t["finish"]) for t in self.turns(name, uid)]]
        said += [sorted(self.names())]
        assert len(said[-2]) == 2, said[-2]
        aside = sorted(p.name for p in (self.d.dir / "state").glob("state.db*.*") if not p.name.endswith("-wal"))
        assert aside == ["state.db.damaged-1"], aside  # once, and nothing else is left behind
        assert "is refused" not in self.d.log(), self.d.log()
        return said

    def check(self, again):
        """What is true whatever happened. Returns how many pages were compared with those computed anew."""
        if not self.calls.done():
            self.calls.order("none", "nothing", 0)  # what was played is over
        wait_for(lambda: "kv" in self.d.status(), 20, "the cache")  # its last life may just have begun
        status = self.d.status()
        assert status["sessions"]["rows_damaged"] == 0, status["sessions"]
        assert status["kv"]["damaged_pages"] == 0, status["kv"]
        return again.compare(self.d)

    def __enter__(self):
        return self

    def __exit__(self, kind, *rest):
        if kind:
            print(f"order: {ORDER.unpack_from(self.calls.map)}\n{self.d.log()}")
        if self.d.process.poll() is None:
            self.stop()
        self.d.forget()
        self.d.leave()
        shutil.rmtree(self.d.dir, ignore_errors=True)


def spread(n, offset):
    """1 to @n, each once, so that any first few are spread evenly."""
    def turned(i):
        return int(f"{i:020b}"[::-1], 2)
    return [(i + offset) % n + 1 for i in sorted(range(n), key=turned)]


def plan(orders, counts, rng):
    """(kind, how, at): one of each of @orders, then the next of each."""
    wanted = os.environ.get("KINDS", "").split(",")
    lists = [[(kind, how, at) for at in spread(counts[kind], rng.randrange(counts[kind]))] for kind, how in orders
             if wanted == [""] or kind in wanted or f"{kind}:{how}" in wanted]
    return [order for row in itertools.zip_longest(*lists) for order in row if order]


def disturbed(orders, kills, program="steamd"):
    need_library()
    print(f"SEED={SEED}")
    with Recomputed("air", *SETS) as again:
        with World(program=program) as world:
            want = world.play()
            world.check(again)
            counts = world.calls.counts()
        todo = plan(orders, counts, random.Random(SEED))
        if not todo:
            raise Skip("KINDS= names none of these")
        n_all, n_missed, n_died, n_unsaved, n_pages, n = len(todo), 0, 0, 0, 0, 0
        if ROUNDS and ROUNDS != "all":
            todo = todo[:int(ROUNDS)]
        end = time.monotonic() + SECONDS
        for kind, how, at in todo:
            if not ROUNDS and time.monotonic() > end and n >= len(orders):
                break
            with World(kills, program) as world:
                world.calls.order(kind, how if kills else "fail", at, 0 if kills else getattr(errno, how))
                got = world.play()
                assert got == want, f"{kind} {at} {how}: {got}\nis not\n{want}"
                n_pages += world.check(again)
                n_missed += world.calls.done() is None
                n_died += len(world.deaths)
                n_unsaved += world.unsaved
                n += 1
                print(f"{n}: {kind} {at} {how}")
        print(f"calls of the scenario: {counts}")
        print(f"{n} of {n_all} disturbed, {n_missed} of them not reached, {n_died} ended the broker, "
              f"{n_unsaved} left a turn unsaved and said so; {n_pages} pages compared")
        assert n_missed <= n // 4 and n_pages > n, (n_missed, n_pages)


def a_kill_at_any_call_loses_nothing():
    disturbed(KILLS, True)


def an_executor_killed_at_any_call_loses_nothing():
    disturbed(EXECUTOR_KILLS, True, "steamd-exec-cpu")


def a_call_that_fails_loses_nothing():
    disturbed(FAILURES, False)


def a_call_that_fails_while_it_starts_is_made_again():
    """Nobody has to reload or restart for it."""
    need_library()
    print(f"SEED={SEED}")

    def start(order=None):
        d = Stored("air", *SETS)
        calls = Calls(d)
        if order:
            calls.order(order[0], "fail", order[2], getattr(errno, order[1]))
        try:
            d.launch()
            wait_for(lambda: d.ready.is_set() or d.process.poll() is not None, 60, "READY=1")
            if d.process.poll() is not None:  # it has said why, and the manager would start it again
                assert order and d.log().splitlines()[-1].startswith("steamd: "), d.log()
                return None
            seen = {wait_for(lambda: d.status()["state"], 5)}
            end = time.monotonic() + 20
            while "ready" not in seen:
                assert time.monotonic() < end, (seen, d.log())
                seen.add(d.status()["state"])
            assert "model-refused" not in seen and "is refused" not in d.log(), (seen, d.log())
            wait_for(lambda: d.popen("ask", "--no-think", "--session", "a", "-n", 3, "x", stdout=subprocess.DEVNULL,
                                     stderr=subprocess.DEVNULL).wait(60) == 0, 20, f"an answer: {d.log()}")
            return calls.counts()
        except Exception:
            print(f"order: {order}\n{d.log()}")
            raise
        finally:
            d.kill()
            d.forget()
            d.leave()
            shutil.rmtree(d.dir, ignore_errors=True)
    counts = start()
    failures = [("write", "ENOSPC"), ("truncate", "ENOSPC"), ("memfd", "EMFILE"), ("memfd", "ENOMEM"),
                ("write", "EIO")]
    end, n, n_ended = time.monotonic() + SECONDS, 0, 0
    for kind, how, at in plan(failures, counts, random.Random(SEED)):
        if not ROUNDS and time.monotonic() > end and n >= len(failures):
            break
        n_ended += start((kind, how, at)) is None
        n += 1
    print(f"{n} calls failed of {counts}; {n_ended} ended the broker")


def rows_of_sealed(d, tokens):
    """All rows of K and V in sealed pages of these tokens, those behind the tokens too."""
    directory, arena = memfd(d.process.pid, "steamd-kvdir"), memfd(d.process.pid, "steamd-arena")
    _, _, n_pages, page_tokens, entry_bytes, _, _ = HEAD.unpack_from(directory)
    page_bytes = (len(arena) - TAIL_BYTES) // n_pages
    row = page_bytes // groups(d.model) // page_tokens
    found = set()
    for i in range(n_pages):
        at = HEAD_BYTES + i * entry_bytes
        state, *_, n_tokens, _, _, _, _, _, _ = ENTRY.unpack_from(directory, at)
        if state == SEALED and struct.unpack_from("<I", directory, at + ENTRY.size)[0] in tokens:
            found.update(arena[k:k + row] for k in range(i * page_bytes, (i + 1) * page_bytes, row))
    return found - {bytes(row)}


def answers(d):
    try:
        d.status()
    except AssertionError:
        return False
    return True


def a_page_of_anothers_is_cleared_though_who_granted_it_dies():
    """The broker dies at each bell of the request, before the executor has heard of it; and every other time that one does."""
    need_library()
    if OTHER is None:
        raise Skip("several uids need root")
    hers, his = [3 + i % 200 for i in range(1000)], [210 + i * i % 200 for i in range(900)]
    n_killed = n_taken = 0
    end = time.monotonic() + SECONDS
    for at in itertools.count(1):
        # more pages than one step clears
        d = Stored("air", "PageTokens=8", "Context=1024", "BatchTokens=1024", "KVCacheSize=1M", "DiskCache=no",
                   socket_mode="0666")
        calls = Calls(d)
        with d:
            wait_for(lambda: d.status()["state"] == "ready", 20, "the model")
            d.complete(hers, 2)
            wait_for(lambda: d.status()["kv"]["held_pages"] == 0, 20, "pages that nobody holds")
            before = rows_of_sealed(d, hers)
            assert len(before) > 1000, len(before)
            executor = d.executor()
            calls.order("bell", "before", calls.counts()["bell"] + at)
            p = d.popen("complete", "--ids", "--json", "--temperature", "0", "--max-tokens", 20, "--ignore-eos",
                        uid=OTHER, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            p.stdin.write(json.dumps(his).encode())
            p.stdin.close()
            wait_for(lambda: p.poll() is not None or d.process.poll() is not None, 20, "an end")
            calls.order("none", "nothing", 0)
            killed = not answers(d)
            if killed:
                d.process.wait(20)
                n_killed += 1
                if at % 2:
                    os.kill(executor, signal.SIGKILL)
                d.again()
            said = json.loads(p.stdout.read().splitlines()[-1])
            assert p.wait(60) == 0 and len(said["ids"]) == 20, said
            wait_for(lambda: d.status().get("kv", {}).get("held_pages") == 0, 20, "pages that nobody holds")
            after = rows_of_sealed(d, his)
            assert len(after) > 900, len(after)
            n_taken += len(rows_of_sealed(d, hers)) < len(before)
            assert not after & before, f"bell {at}: {len(after & before)} rows of another's"
        if not killed or time.monotonic() > end:
            break
    print(f"{n_killed} brokers died while pages changed hands, at {at} bells; {n_taken} times some did")
    assert n_killed >= 3 and n_taken == at, (n_killed, n_taken)


if __name__ == "__main__":
    run([a_kill_at_any_call_loses_nothing, an_executor_killed_at_any_call_loses_nothing,
         a_call_that_fails_loses_nothing, a_call_that_fails_while_it_starts_is_made_again,
         a_page_of_anothers_is_cleared_though_who_granted_it_dies])
