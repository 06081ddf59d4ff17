#!/usr/bin/env python3
"""The wire itself: detached turns, resuming by index, credit, deadlines, labels, lost connections."""
import fcntl
import socket

from steamd_e2e import *


def pack(value):
    """msgpack of what our messages are made of."""
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return b"\xcf" + struct.pack(">Q", value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, bytes):
        return b"\xc6" + struct.pack(">I", len(value)) + value
    if isinstance(value, str):
        data = value.encode()
        return b"\xdb" + struct.pack(">I", len(data)) + data
    if isinstance(value, list):
        return b"\xdd" + struct.pack(">I", len(value)) + b"".join(map(pack, value))
    return b"\xdf" + struct.pack(">I", len(value)) + b"".join(pack(k) + pack(v) for k, v in value.items())


def unpack(data, at=0):
    """The other way: returns the value and where it ends."""
    c = data[at]
    at += 1
    if c < 0x80:
        return c, at
    if 0x80 <= c <= 0x8f or c in (0xde, 0xdf):
        n = c & 15 if c < 0x90 else int.from_bytes(data[at:at + (2 if c == 0xde else 4)], "big")
        at += 0 if c < 0x90 else 2 if c == 0xde else 4
        value = {}
        for _ in range(n):
            k, at = unpack(data, at)
            value[k], at = unpack(data, at)
        return value, at
    if 0x90 <= c <= 0x9f or c in (0xdc, 0xdd):
        n = c & 15 if c < 0xa0 else int.from_bytes(data[at:at + (2 if c == 0xdc else 4)], "big")
        at += 0 if c < 0xa0 else 2 if c == 0xdc else 4
        value = []
        for _ in range(n):
            item, at = unpack(data, at)
            value.append(item)
        return value, at
    if 0xa0 <= c <= 0xbf:
        return data[at:at + (c & 31)].decode(), at + (c & 31)
    sizes = {0xd9: 1, 0xda: 2, 0xdb: 4, 0xc4: 1, 0xc5: 2, 0xc6: 4}
    if c in sizes:
        n = int.from_bytes(data[at:at + sizes[c]], "big")
        at += sizes[c]
        raw = bytes(data[at:at + n])
        return (raw.decode() if c >= 0xd9 else raw), at + n
    if c in (0xc2, 0xc3):
        return c == 0xc3, at
    if c in (0xcc, 0xcd, 0xce, 0xcf):
        n = 1 << (c - 0xcc)
        return int.from_bytes(data[at:at + n], "big"), at + n
    if c == 0xcb:
        return struct.unpack(">d", data[at:at + 8])[0], at + 8
    if c == 0xca:
        return struct.unpack(">f", data[at:at + 4])[0], at + 4
    raise AssertionError(f"unexpected msgpack byte {c:#x}")


HELLO, DONE, ERROR, CANCELLED, ACCEPTED, PROGRESS, TOKENS, CREDIT, CANCEL = range(1, 10)
GENERATE, SCORE, RESUME, TOKENIZE, RENDER = 16, 17, 18, 19, 21
STATUS, MODELS, SESSION_LIST, SESSION_FORK, SESSION_IMPORT = 22, 24, 32, 35, 41
SESSION_DATA, SESSION_WANT = 70, 71


class Wire:
    """One connection; frames go and come as lists."""

    def __init__(self, d, label=None):
        self.s = socket.socket(socket.AF_UNIX)
        self.s.connect(str(d.socket))
        self.s.settimeout(30)
        self.send(HELLO, 0, {"proto": 1, "name": "e2e", **({"label": label} if label else {})})
        self.hello = self.receive()[2]

    def send(self, kind, id, fields):
        self.send_all((kind, id, fields))

    def send_all(self, *frames):
        """Several frames in one piece, so that the daemon reads them at once."""
        payloads = [pack(list(frame)) for frame in frames]
        self.s.sendall(b"".join(struct.pack("<I", len(p)) + p for p in payloads))

    def send_with(self, fd, kind, id, fields):
        """With a descriptor on the frame's first byte."""
        payload = pack([kind, id, fields])
        socket.send_fds(self.s, [struct.pack("<I", len(payload)) + payload], [fd])

    def exactly(self, n):
        data = b""
        while len(data) < n:
            more = self.s.recv(n - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def receive(self):
        return unpack(self.exactly(struct.unpack("<I", self.exactly(4))[0]))[0]

    def until_end(self):
        """Ids by index until the terminal frame."""
        ids, expected = {}, None
        while True:
            kind, _, fields = self.receive()
            if kind == TOKENS:
                got = struct.unpack(f"<{len(fields['ids']) // 4}I", fields["ids"])
                assert expected is None or fields["index"] == expected, "an index was skipped"
                expected = fields["index"] + len(got)
                ids.update(enumerate(got, fields["index"]))
            elif kind in (DONE, ERROR, CANCELLED):
                return kind, ids, fields

    def close(self):
        self.s.close()


def request(p, n, **more):
    return {"ids": struct.pack(f"<{len(p['ids'])}I", *p["ids"]), "temperature": 0.0, "max_tokens": n,
            "ignore_eos": True, **more}


def accepted(w):
    while True:
        kind, _, fields = w.receive()
        if kind == ACCEPTED:
            return fields["turn"]


def a_detached_turn_goes_on_and_is_resumed_from_any_index():
    p = prompt("air", "t33")
    with Daemon("air") as d:
        want = d.complete(p["ids"], 300)["ids"]
        for index in (0, 7, 299):
            w = Wire(d)
            w.send(GENERATE, 1, request(p, 300, detach=True))
            turn = accepted(w)
            w.close()
            w = Wire(d)
            w.send(RESUME, 2, {"turn": turn, "index": 0})
            while w.receive()[0] != TOKENS:
                pass
            w.close()  # and once more, from further on
            w = Wire(d)
            wait_for(lambda: json.loads(d.ctl("ps", "--json"))["turns"][0]["n_completion"] >= index, 20, "the index")
            w.send(RESUME, 3, {"turn": turn, "index": index})
            kind, ids, _ = w.until_end()
            assert kind == DONE and [ids[i] for i in range(index, 300)] == want[index:], (index, kind)
        w.send(RESUME, 99, {"turn": turn ^ 1, "index": 0})
        kind, _, fields = w.until_end()
        assert kind == ERROR and fields["code"] == "no-such", fields


def a_lost_connection_cancels_what_is_not_detached():
    p = prompt("air", "t33")
    with Daemon("air") as d:
        w = Wire(d)
        w.send(GENERATE, 1, request(p, 60000))
        accepted(w)
        assert json.loads(d.ctl("ps", "--json"))["turns"]
        w.close()
        wait_for(lambda: not json.loads(d.ctl("ps", "--json"))["turns"], 10, "the turn's end")


def credit_bounds_what_is_sent():
    p = prompt("air", "t33")
    with Daemon("air") as d:
        w = Wire(d)
        w.send(GENERATE, 1, request(p, 50, credit=10))
        ids = []
        while len(ids) < 10:
            kind, _, fields = w.receive()
            if kind == TOKENS:
                ids += struct.unpack(f"<{len(fields['ids']) // 4}I", fields["ids"])
        assert len(ids) == 10
        w.s.settimeout(0.5)
        try:
            kind, _, _ = w.receive()
            assert kind == PROGRESS, kind
        except socket.timeout:
            pass
        w.s.settimeout(30)
        w.send(CREDIT, 1, {"n_tokens": 1000})
        kind, rest, _ = w.until_end()
        assert kind == DONE and len(rest) == 40


def cancel_gives_exactly_one_terminal_frame():
    p = prompt("air", "t33")
    with Daemon("air") as d:
        w = Wire(d)
        w.send(GENERATE, 5, request(p, 60000))
        accepted(w)
        w.send(CANCEL, 5, {})
        w.send(CANCEL, 5, {})
        kind, _, _ = w.until_end()
        assert kind == CANCELLED
        w.send(GENERATE, 6, request(p, 2))
        kind, ids, _ = w.until_end()
        assert kind == DONE and len(ids) == 2, "something came after the terminal frame"


def a_deadline_ends_a_turn_with_what_there_is():
    p = prompt("air", "t33")
    with Daemon("air") as d:
        w = Wire(d)
        w.send(GENERATE, 1, request(p, 60000, deadline_ms=700))
        begin = time.monotonic()
        kind, ids, fields = w.until_end()
        assert kind == DONE and fields["finish"] == "deadline" and 0 < len(ids) < 60000, (kind, fields)
        assert 0.6 < time.monotonic() - begin < 5
        # with nothing of it: an error, which says what it cost
        w.send(GENERATE, 2, request({"ids": [5 + i % 300 for i in range(8000)]}, 10, deadline_ms=1))
        kind, ids, fields = w.until_end()
        assert kind == ERROR and fields["code"] == "deadline" and not ids, (kind, fields)
        assert fields["n_prompt"] == 8000 and fields["n_completion"] == 0 and fields["n_cached"] == 0, fields


def a_turn_that_is_cancelled_while_it_begins_leaves_its_session_free():
    question = {"messages": json.dumps({"messages": [{"role": "user", "content": "hi"}]}), "max_tokens": 2,
                "session": "talk", "session_create": True}
    with Daemon("air") as d:
        w = Wire(d)
        w.send_all((GENERATE, 1, question), (CANCEL, 1, {}))
        kind, _, _ = w.until_end()
        assert kind == CANCELLED, kind
        gone = Wire(d)
        gone.send_all((GENERATE, 1, {**question, "max_tokens": 4000, "ignore_eos": True}))  # not said before it closes
        gone.close()
        wait_for(lambda: json.loads(d.ctl("session", "list", "--json"))["sessions"] == [], 10, "no session")
        w.send(GENERATE, 2, question)
        kind, _, fields = w.until_end()
        assert kind == DONE and fields["saved"] is True and fields["session_turn"] == 1, (kind, fields)


def the_same_question_again_takes_up_the_turn_that_nobody_reads():
    n = 300 if SANITIZED else 2000
    question = {"messages": json.dumps({"messages": [{"role": "user", "content": "hi"}]}), "max_tokens": n,
                "ignore_eos": True, "detach": True, "session": "talk", "session_create": True}
    with Daemon("air") as d:
        first, second, other = Wire(d), Wire(d), Wire(d)
        first.send(GENERATE, 1, question)
        turn = accepted(first)
        second.send(GENERATE, 1, question)
        kind, _, fields = second.until_end()
        assert kind == ERROR and fields["code"] == "busy" and fields["retryable"], fields
        first.close()
        wait_for(lambda: not json.loads(d.ctl("ps", "--json"))["turns"][0]["attached"], 10, "no reader")
        other.send(GENERATE, 1, {**question, "messages": question["messages"].replace("hi", "ho")})
        assert other.until_end()[2]["code"] == "busy"
        second.send(GENERATE, 2, question)
        assert accepted(second) == turn
        kind, ids, fields = second.until_end()
        assert kind == DONE and len(ids) == n and fields["saved"] and fields["session_turn"] == 1, fields


def an_end_that_had_to_wait_is_none_that_is_open():
    """What a reader has not taken yet when it ends counts no longer than until it does."""
    p = prompt("air", "t33")
    with Daemon("air", "MaxRequestsPerUser=30") as d:
        w = Wire(d)
        w.send(TOKENIZE, 1, {"text": "a b " * 50000})  # more than the socket holds
        for i in range(2, 22):
            w.send(GENERATE, i, request(p, 1))
        wait_for(lambda: d.status()["load"] | {"steps": 0} == {
            "queued": 0, "running": 0, "paused": 0, "queued_tokens": 0, "steps": 0}, what="the end of all")
        assert [w.until_end()[0] for _ in range(21)] == [DONE] * 21
        for i in range(30, 55):
            w.send(GENERATE, i, request(p, 1))
        ends = [w.until_end() for _ in range(25)]
        assert [kind for kind, _, _ in ends] == [DONE] * 25, ends


def what_is_attached_counts_as_long_as_it_is_needed():
    """Eight of 60 MiB are more than a user's 256 MiB; one after the other there is room for each."""
    fd = os.memfd_create("attached", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 60 << 20)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0xf)
    with Daemon("air") as d:
        w = Wire(d)
        for i in range(1, 9):
            w.send_with(fd, RENDER, i, {"attached": "messages"})
        ends = [w.receive()[2] for _ in range(8)]
        busy = [e for e in ends if e["code"] == "busy"]
        assert busy and all("this one wants 62914560 more; 268435456 may be" in e["text"] for e in busy), ends
        assert [e["code"] for e in ends if e not in busy][:4] == ["bad-request"] * 4, ends
        w.send_with(fd, RENDER, 9, {"attached": "messages"})
        assert w.receive()[2]["code"] == "bad-request"
    os.close(fd)


def answers_that_nobody_reads_count():
    n = 9
    said = json.dumps({"messages": [{"role": "user", "content": "a" * (30 << 20)}]}).encode()
    fd = os.memfd_create("attached", os.MFD_ALLOW_SEALING)
    os.write(fd, said)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0xf)

    def used(what):
        return json.loads(d.ctl("status", "--limits", "--json"))["users"][0][what]["used"]

    with Daemon("air", "ChatTemplate=glm47") as d:
        lines = []
        for i in range(n):
            w = Wire(d)
            lines.append(w)
            w.send_with(fd, RENDER, 1, {"attached": "messages"})
            wait_for(lambda: used("requests") == 1, 30, "the end of the render")
            assert used("request_bytes") <= 256 << 20
        answers = [w.receive() for w in lines]
        assert [kind for kind, _, _ in answers[:8]] == [DONE] * 8
        assert "bytes of requests waiting and of answers not read" in answers[-1][2]["text"], answers[-1]
        assert used("request_bytes") < 1 << 20
        lines[0].send_with(fd, RENDER, 2, {"attached": "messages"})
        assert lines[0].receive()[0] == DONE
    os.close(fd)


def a_file_that_ends_behind_its_end_is_refused():
    """That there is no more of it is told where more is wanted, or there is nothing to say it of."""
    with Daemon("air") as d:
        d.ctl("session", "new", "talk")
        file = d.ctl("session", "export", "talk")
        w = Wire(d)
        w.send(SESSION_IMPORT, 1, {"pieces": True, "name": "copy"})
        while file:
            kind, _, fields = w.receive()
            assert kind == SESSION_WANT, (kind, fields)
            piece, file = file[:fields["bytes"]], file[fields["bytes"]:]
            w.send_all((SESSION_DATA, 1, {"data": piece}), *[(SESSION_DATA, 1, {"data": b""})] * (not file))
        kind, _, fields = w.receive()
        assert kind == ERROR and fields["code"] == "bad-state", (kind, fields)
        assert d.complete([5], 2)["finish"] == "length"


def labels_are_kept_and_hello_says_the_limits():
    with Daemon("air") as d:
        w = Wire(d, label="editor")
        assert w.hello["proto"] == 1 and w.hello["max_frame"] == 1 << 20 and w.hello["boot_id"]
        assert w.hello["model"] == "air" and w.hello["max_context"] == 65536, w.hello
        p = prompt("air", "t33")
        w.send(GENERATE, 1, request(p, 60000))
        accepted(w)
        assert json.loads(d.ctl("ps", "--json"))["turns"][0]["label"] == "editor"
        w.close()


if __name__ == "__main__":
    run([v for k, v in list(globals().items()) if callable(v) and getattr(v, "__module__", "") == "__main__"
         and k not in ("pack", "unpack", "request", "accepted", "Wire")])
