#!/usr/bin/env python3
"""Users beside each other: limits and who sees them, other users' turns, and where prompts must not appear."""
import importlib.util
import socket
from select import select

from steamd_e2e import *

spec = importlib.util.spec_from_file_location("wire", SRC / "tests" / "e2e" / "test-wire.py")
wire = importlib.util.module_from_spec(spec)
spec.loader.exec_module(wire)

ALICE, BOB = 4001, 4002


def need_root():
    if os.geteuid() != 0:
        raise Skip("several uids need root")


def connect(d, uid):
    """A connection of @uid: the kernel tells the daemon the effective one."""
    os.seteuid(uid)
    try:
        return wire.Wire(d)
    finally:
        os.seteuid(0)


def limits(d, **kwargs):
    return json.loads(d.ctl("status", "--limits", "--json", **kwargs))["users"]


def end_of(w):
    """The terminal frame, whatever comes before it."""
    return wire.Wire.until_end(w)[::2]


def sessions_and_bytes_on_disk_are_told_beside_their_limits():
    need_root()
    with Daemon("air", "ChatTemplate=glm47", "PageTokens=16", "DiskQuotaPerUser=64M", "MaxSessionsPerUser=5",
                "SessionQuotaPerUser=64K",
                "DiskCacheSize=128M", "MinCachePerUser=30", socket_mode="0666") as d:
        for name, label in (("one", "a"), ("two", "b")):  # of all labels together
            d.ctl("ask", "--session", name, "--label", label, "--no-think", "-n", 40, "--ignore-eos", "word " * 40,
                  uid=ALICE)
        own = wait_for(lambda: [u for u in limits(d, uid=ALICE) if u["disk_bytes"]["used"] > 0], 20, "pages on disk")[0]
        assert own["sessions"] == {"used": 2, "limit": 5}, own
        of = own["session_bytes"]
        assert 2 * 512 < of["used"] < of["limit"] == 64 << 10, of
        # files are of 16 MiB: a quarter of what one may have; two of them are within 30 % of all
        assert own["disk_bytes"]["limit"] == 64 << 20 and 30 << 20 < own["disk_bytes"]["least"] <= (128 << 20) * 3 // 10, own
        text = [line.split() for line in d.ctl("status", "--limits", uid=ALICE).decode().splitlines()]
        assert ["disk_bytes", *(str(own["disk_bytes"][k]) for k in ("used", "least", "limit"))] in text, text
        # within what is its by right nothing has to be computed again, and that is 30 % of the arena
        assert own["cache_pages"]["least"] == d.status()["kv"]["pages"] * 3 // 10, own
        folder = d.dir / "state" / "kv" / str(ALICE)
        wait_for(lambda: limits(d, uid=ALICE)[0]["disk_bytes"]["used"] == sum(
            f.stat().st_blocks * 512 for f in folder.iterdir()) or limits(d, uid=ALICE)[0]["disk_bytes"]["used"] == sum(
            f.stat().st_size for f in folder.iterdir()), 20, "the bytes of its files")
        other = limits(d, uid=BOB)[0]
        assert other["session_bytes"]["used"] == other["sessions"]["used"] == 0 and other["disk_bytes"]["used"] == 0, other


def who_has_its_bytes_of_sessions_is_refused_more_and_loses_nothing():
    need_root()
    with Daemon("air", "SessionQuotaPerUser=8K", socket_mode="0666") as d:
        def say(uid, text, code=0):
            return d.ctl("ask", "--session", "talk", "-n", 4, "--ignore-eos", text, uid=uid, code=code)
        say(ALICE, "first")
        before = limits(d, uid=ALICE)[0]["session_bytes"]
        say(ALICE, "x" * 9000, code=75)
        assert "of sessions; 8192 may be" in d.last_stderr, d.last_stderr
        assert limits(d, uid=ALICE)[0]["session_bytes"] == before
        say(BOB, "x" * 1000)
        d.ctl("session", "rm", "talk", uid=ALICE)
        assert limits(d, uid=ALICE)[0]["session_bytes"]["used"] == 0
        say(ALICE, "y" * 2000)


def a_text_of_many_megabytes_holds_up_no_other():
    need_root()
    text = b"q9 #z @x !k " * 100
    with Daemon("air", socket_mode="0666") as d:
        long = d.popen("tokenize", uid=ALICE, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        long.stdin.write(text * 50000)  # 60 MB, and more ids than one answer carries
        long.stdin.close()
        wait_for(lambda: limits(d, uid=ALICE)[0]["request_bytes"]["used"] > len(text) * 49000, 20, "its text")
        n = 0
        while long.poll() is None:
            d.ctl("tokenize", stdin=text * 20, uid=BOB)  # too long for the loop itself
            n += 1
        said = long.stderr.read().decode()
        assert long.returncode == 65 and "67108864 can be sent" in said, said
        assert n >= 3, n


def who_is_over_its_disk_quota_loses_pages_of_its_own():
    need_root()
    with Daemon("air", "PageTokens=16", "Context=512", "KVCacheSize=1M", "DiskQuotaPerUser=1M", socket_mode="0666") as d:
        def used(uid):
            return limits(d, uid=uid)[0]["disk_bytes"]["used"]

        def cached(uid, seed):
            ids = [3 + (i * i * seed) % 400 for i in range(200)]
            return d.complete(ids, 1, uid=uid)["usage"]["cached_tokens"]
        cached(BOB, 1)
        wait_for(lambda: d.status()["kv_disk"]["pages"] == 13 and d.status()["kv_disk"]["waiting"] == 0, 20, "its pages")
        before = used(BOB)
        for seed in range(2, 12):  # each is 200 KiB
            cached(ALICE, seed)
            wait_for(lambda: d.status()["kv_disk"]["waiting"] == 0, 20, "the disk")
            own = limits(d, uid=ALICE)[0]["disk_bytes"]
            assert own["used"] <= own["limit"] == 1 << 20, own
        assert limits(d, uid=ALICE)[0]["disk_evicted"] > 0 and limits(d, uid=BOB)[0]["disk_evicted"] == 0
        text = d.ctl("status", "--limits", uid=ALICE).decode()
        assert f"{'disk_evicted':<16} {limits(d, uid=ALICE)[0]['disk_evicted']:>14}" in text, text
        assert "Over disk_bytes nothing is refused" in " ".join(text.split()), text
        assert d.status()["kv_disk"]["evicted_segments"] > 0, d.status()["kv_disk"]
        assert used(BOB) == before
        lease = d.popen("yield", "1G", stdout=subprocess.PIPE)  # nothing is in the arena any more
        wait_for(lambda: d.status()["kv"]["kept_pages"] == 0, 20, "an empty arena")
        lease.kill()
        lease.wait()
        assert cached(BOB, 1) == 192
        assert min(cached(ALICE, seed) for seed in range(2, 12)) < 16


def each_sees_its_own_limits_and_administrators_see_all():
    need_root()
    p = prompt("air", "t33")
    with Daemon("air", "UserWeights=4002:50", "MaxRequestsPerUser=7", socket_mode="0666") as d:
        w = connect(d, ALICE)
        w.send(wire.GENERATE, 1, wire.request(p, 60000))
        wire.accepted(w)
        own = wait_for(lambda: [u for u in limits(d, uid=ALICE) if u["executor_ms"] > 0], 20, "use of the executor")
        assert len(own) == 1 and own[0]["uid"] == ALICE, own
        assert own[0]["connections"] == {"used": 2, "limit": 64}, own  # steamctl's own is one
        assert own[0]["requests"] == {"used": 2, "limit": 7}, own
        assert own[0]["weight"] == 100
        assert own[0]["cache_pages"]["used"] > 0
        other = limits(d, uid=BOB)
        assert [u["uid"] for u in other] == [BOB], other
        assert other[0]["weight"] == 50 and other[0]["executor_ms"] == 0
        assert other[0]["requests"]["used"] == 1 and other[0]["cache_pages"]["used"] == 0
        assert {u["uid"] for u in limits(d)} == {0, ALICE}
        text = d.ctl("status", "--limits", uid=BOB).decode().splitlines()
        assert text[0].split() == ["uid", str(BOB), "used", "at", "least", "at", "most"], text
        assert ["requests", "1", "-", "7"] in [line.split() for line in text], text


def what_goes_over_a_limit_is_refused_with_the_numbers():
    need_root()
    p = prompt("air", "t33")
    with Daemon("air", "MaxRequestsPerUser=3", "MaxConnectionsPerUser=3", "MaxQueuedTokensPerUser=1024",
                "MaxBatch=1", "MaxCachePerUser=50", socket_mode="0666") as d:
        w = connect(d, ALICE)
        for i in (1, 2, 3):
            w.send(wire.GENERATE, i, wire.request(p, 30000))
            wire.accepted(w)
        w.send(wire.GENERATE, 4, wire.request(p, 10))
        kind, fields = end_of(w)
        assert kind == wire.ERROR and fields["code"] == "busy" and fields["retryable"], fields
        assert fields["text"] == f"uid {ALICE} has 3 requests open; 3 may be", fields
        b = connect(d, BOB)  # is not concerned
        b.send(wire.GENERATE, 1, wire.request({"ids": [5] * 1025}, 10))
        kind, fields = end_of(b)
        assert kind == wire.ERROR and fields["text"] == (
            f"user {BOB} has 0 tokens waiting; 1025 more would exceed MaxQueuedTokensPerUser=1024"), fields
        b.send(wire.GENERATE, 2, wire.request(p, 65000))
        kind, fields = end_of(b)
        assert kind == wire.ERROR and fields["code"] == "too-long" and "MaxCachePerUser=50" in fields["text"], fields
        more = [connect(d, BOB), connect(d, BOB)]
        os.seteuid(BOB)
        try:
            refused = wire.socket.socket(wire.socket.AF_UNIX)
            refused.connect(str(d.socket))
        finally:
            os.seteuid(0)
        assert f"uid {BOB} has 3 connections open; 3 may be".encode() in refused.recv(4096)
        for c in more + [b, w]:
            c.close()


def a_user_keeps_its_minimum_beside_the_longest_request():
    need_root()
    with Daemon("air", "PageTokens=16", "Context=512", "KVCacheSize=1M", "MinCachePerUser=30", "DiskCache=no",
                socket_mode="0666") as d:
        assert d.status()["kv"]["pages"] == 64  # two contexts
        ids = [3 + (i * i) % 400 for i in range(490)]
        # what is left are 21, 21 and 10 pages; then the third user needs 32
        for uid, n in ((ALICE, 330), (4003, 330), (BOB, 150), (BOB, 490)):
            d.ctl("complete", "--ids", "--max-tokens", 10, "--ignore-eos", stdin=json.dumps(ids[490 - n:]).encode(),
                  uid=uid)
        for uid in (ALICE, 4003):  # of the rest of 32 pages, half each; and a fourth user may come
            pages = limits(d, uid=uid)[0]["cache_pages"]
            assert 16 <= pages["used"] < 21 and pages["least"] == 32 // 3, pages
        last = d.lines("complete", "--ids", "--json", "--max-tokens", 1,
                       stdin=json.dumps(ids[160:]).encode(), uid=ALICE)[-1]
        assert last["usage"]["cached_tokens"] >= 16 * 16, last


def two_that_flood_leave_turns_for_a_third():
    need_root()
    p = prompt("air", "t33")
    with Daemon("air", "MaxRequestsPerUser=600", "MaxRequestsPerConnection=600", socket_mode="0666") as d:
        clients = []
        for uid, wanted in ((ALICE, 256), (BOB, 128), (4003, 64)):
            w = connect(d, uid)
            clients.append(w)
            for i in range(1, wanted + 2):
                w.send(wire.GENERATE, i, wire.request(p, 20000))
            n = 0
            while True:
                kind, _, fields = w.receive()
                n += kind == wire.ACCEPTED
                if kind == wire.ERROR:
                    break
            assert n == wanted, (uid, n)
            assert fields["code"] == "busy" and fields["text"] == (
                f"user {uid} has {wanted} turns queued and running; {wanted} of 512 are left, and nobody has "
                "more than that"), fields
        for w in clients:
            w.close()


def many_long_texts_of_one_hold_up_no_other():
    need_root()
    fd = os.memfd_create("long", os.MFD_ALLOW_SEALING)
    os.write(fd, b"a " * (2 << 20))
    wire.fcntl.fcntl(fd, wire.fcntl.F_ADD_SEALS, 0xf)
    with Daemon("air", socket_mode="0666") as d:
        alice, bob = connect(d, ALICE), connect(d, BOB)
        for i in range(10):
            alice.send_with(fd, wire.GENERATE, 1 + i, {"attached": "prompt"})
        assert end_of(alice)[1]["code"] == "too-long"
        bob.send(wire.TOKENIZE, 1, {"text": "a " * 20000})
        assert end_of(bob)[0] == wire.DONE
        counts = next(u for u in limits(d, uid=ALICE) if u["uid"] == ALICE)
        assert counts["requests"]["used"] >= 3, counts
        for _ in range(9):
            assert end_of(alice)[1]["code"] == "too-long"
    os.close(fd)


def many_frames_on_many_connections_hold_up_no_other():
    need_root()
    n_connections, n = 30, 200
    with Daemon("air", socket_mode="0666") as d:
        many = b"".join(struct.pack("<I", len(p)) + p for p in (wire.pack([wire.MODELS, 1 + i, {}]) for i in range(n)))
        alice, bob = [connect(d, ALICE) for _ in range(n_connections)], connect(d, BOB)
        bob.send(wire.MODELS, 1, {})
        answer = struct.unpack("<I", bob.s.recv(4, socket.MSG_PEEK))[0]
        end_of(bob)
        for w in alice:
            w.s.sendall(many)
        bob.send(wire.MODELS, 2, {})
        end_of(bob)
        answered = sum(len(w.s.recv(1 << 20, socket.MSG_PEEK | socket.MSG_DONTWAIT)) if select([w.s], [], [], 0)[0] else 0
                       for w in alice) // answer
        assert answered < n_connections * n // 4, f"{answered} of another's were answered before"
        for w in alice:
            w.close()


def many_sessions_of_one_hold_up_no_other():
    need_root()
    n = 200
    with Daemon("air", "MaxRequestsPerConnection=250", socket_mode="0666") as d:
        d.ctl("ask", "--session", "talk", "-n", 1, stdin=b"a " * 5000, uid=ALICE)
        alice, bob = connect(d, ALICE), connect(d, BOB)
        alice.send_all(*[(wire.SESSION_FORK, 1 + i, {"session": "talk", "name": f"copy{i}"}) for i in range(n)])
        bob.send(wire.SESSION_LIST, 1, {})
        assert end_of(bob)[0] == wire.DONE
        alice.send(wire.STATUS, n + 1, {})
        ends = [alice.receive()[:2] for _ in range(n + 1)]
        assert all(kind == wire.DONE for kind, _ in ends), ends
        assert ends.index([wire.DONE, n + 1]) < n * 3 // 4, "all were copied before"


def a_turn_is_resumed_and_cancelled_by_nobody_else():
    need_root()
    p = prompt("air", "t33")
    with Daemon("air", socket_mode="0666") as d:
        w = connect(d, ALICE)
        w.send(wire.GENERATE, 1, wire.request(p, 50000, detach=True))
        turn = wire.accepted(w)
        b = connect(d, BOB)
        b.send(wire.RESUME, 1, {"turn": turn, "index": 0})
        kind, fields = end_of(b)
        assert kind == wire.ERROR and fields["code"] == "no-such", fields
        # it says the same of a turn that never was
        b.send(wire.RESUME, 2, {"turn": turn ^ 1, "index": 0})
        assert end_of(b)[1]["text"].replace(str(turn ^ 1), str(turn)) == fields["text"]
        d.ctl("cancel", turn, uid=BOB, code=66)
        b.send(wire.CANCEL, 1, {})
        assert json.loads(d.ctl("ps", "--json", uid=BOB))["turns"] == []
        assert [t["turn"] for t in json.loads(d.ctl("ps", "--json", uid=ALICE))["turns"]] == [str(turn)]
        w.close()  # and its own user takes it up again
        w = connect(d, ALICE)
        w.send(wire.RESUME, 2, {"turn": turn, "index": 0})
        while w.receive()[0] != wire.TOKENS:
            pass
        d.ctl("cancel", turn, uid=ALICE)
        b.close()


def what_a_script_asks_is_batch_unless_it_says_otherwise():
    p = prompt("air", "t33")
    with Daemon("air") as d:
        for args, wanted in (((), "batch"), (("--class", "interactive"), "interactive"), (("--class=batch",), "batch")):
            request = d.popen("complete", "--ids", "--max-tokens", 50000, "--ignore-eos", *args,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            request.stdin.write(json.dumps(p["ids"]).encode())
            request.stdin.close()
            turn = wait_for(lambda: json.loads(d.ctl("ps", "--json"))["turns"], 20, "a turn")[0]
            assert turn["class"] == wanted, turn
            d.ctl("cancel", turn["turn"])
            request.stdout.read()
            request.wait(20)
            wait_for(lambda: not json.loads(d.ctl("ps", "--json"))["turns"], 20, "its end")
        d.ctl("ask", "--class", "urgent", "x", code=64)
        w = wire.Wire(d)
        w.send(wire.GENERATE, 1, wire.request(p, 3, **{"class": "urgent"}))
        kind, fields = end_of(w)
        assert kind == wire.ERROR and fields["text"] == (
            "generate.class is 'urgent'; interactive or batch is wanted"), fields


def prompts_are_in_no_log_and_seen_by_nobody_else():
    need_root()
    canary = "quetzalcoatlus-northropi"
    asked = f"Tell me about {canary}"
    with Daemon("air", "LogLevel=debug", socket_mode="0666") as d:
        # answered, refused, cancelled, lost, and in flight while the executor dies
        d.ctl("ask", "--max-tokens", 5, asked, uid=ALICE)
        d.ctl("complete", "--max-tokens", 5, "--stop", canary, asked, uid=ALICE)
        d.ctl("ask", "--max-tokens", 5, "--system", canary, asked, uid=ALICE)
        d.ctl("ask", "--model", canary, asked, uid=ALICE, code=66)
        d.ctl("score", asked, uid=ALICE)
        d.ctl("tokenize", asked, uid=ALICE)
        d.ctl("render", "-", stdin=f'{{"messages": [{canary}'.encode(), uid=ALICE, code=64)
        w = connect(d, ALICE)
        w.send(wire.GENERATE, 1, {"prompt": asked, "max_tokens": 60000, "ignore_eos": True, "detach": True})
        wire.accepted(w)
        while w.receive()[0] != wire.TOKENS:
            pass
        os.kill(d.executor(), signal.SIGKILL)
        w.s.sendall(struct.pack("<I", 1 << 30) + asked.encode())  # no frame at all
        for args in (("ps",), ("status",), ("status", "--limits"), ("models",)):
            out = d.ctl(*args, "--json", uid=BOB)
            assert canary.encode() not in out, (args, out)
        d.ctl("cancel", "1", uid=BOB, code=66)
        assert canary not in d.last_stderr
        assert canary not in d.log(), d.log()
        for file in d.dir.rglob("*"):
            assert not file.is_file() or canary.encode() not in file.read_bytes(), file


def neither_process_leaves_a_core_file():
    import resource
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))  # as of somebody who likes core files
    try:
        with Daemon("air") as d:
            for pid in (d.process.pid, d.executor()):
                found = [line.split()[4] for line in pathlib.Path(f"/proc/{pid}/limits").read_text().splitlines()
                         if line.startswith("Max core file size")]
                # with 0 the kernel would still pipe a dump to a handler
                # the sanitizers' library sets 0 when a program begins
                assert found == ["1"] or SANITIZED and found == ["0"], (pid, found)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


if __name__ == "__main__":
    run([v for k, v in list(globals().items()) if callable(v) and getattr(v, "__module__", "") == "__main__"
         and k not in ("need_root", "connect", "limits", "end_of")])
