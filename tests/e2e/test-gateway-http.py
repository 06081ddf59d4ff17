#!/usr/bin/env python3
"""The gateway's HTTP with clients that go by it in odd ways, and with steamd that does not answer."""
import contextlib
import threading

from gatewayhttp import *
from steamd_e2e import *


def post(path, body, *headers, version=b"1.1"):
    """The bytes of a request."""
    body = json.dumps(body).encode()
    return b"".join((b"POST " + path.encode() + b" HTTP/" + version + b"\r\nHost: localhost\r\n",
                     b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body), *headers, b"\r\n", body))


def everything(s):
    found = b""
    while piece := s.recv(65536):
        found += piece
    return found


@contextlib.contextmanager
def stopped(process):
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def clients_that_say_no_more_are_answered_in_one_go():
    with Daemon("air") as d, Gateway(d) as g, contextlib.ExitStack() as held:
        assert g.get("/ready").status == 200
        waiting = []
        with stopped(d.process):
            for i in range(20):
                body = {"prompt": "go on", "max_tokens": 10, "ignore_eos": True, "stream": i % 2 == 1}
                s = socket.create_connection(("127.0.0.1", g.port), timeout=60)
                waiting.append(held.enter_context(s))
                # every fourth has asked for more than that
                s.sendall(post("/v1/completions", body) * (2 if i % 4 == 3 else 1))
                s.shutdown(socket.SHUT_WR)
                assert g.get("/health").status == 200  # it was read
            g.process.send_signal(signal.SIGSTOP)
        with stopped(g.process):
            wait_for(lambda: d.status()["completion_tokens"] >= 200, 60, "their ends")
        for i, s in enumerate(waiting):
            got, n = everything(s), 2 if i % 4 == 3 else 1
            assert got.count(b'"finish_reason":"length"') == got.count(b"HTTP/1.1 200 OK\r\n") == n, (i, got[-500:])
            assert got.count(b"data: [DONE]\n\n") == (n if i % 2 else 0), (i, got[-500:])
        assert "steamd_gateway_abandoned_total 0\n" in g.get("/metrics").body.decode()


def steamd_that_does_not_answer_holds_nobody_up():
    body = {"prompt": "go on", "max_tokens": 5, "ignore_eos": True}
    with Daemon("air") as d, Gateway(d) as g:
        def lively():
            """/health, which wants nothing of steamd, is never late."""
            begun = time.monotonic()
            assert g.get("/health").status == 200 and time.monotonic() - begun < 1

        def parked(n):
            found = []
            for i in range(n):
                s = socket.create_connection(("127.0.0.1", g.port), timeout=60)
                s.sendall(post("/v1/completions", {**body, "stream": i % 2 == 1}, b"Connection: close\r\n"))
                found.append(s)
                lively()
            return found

        def refused(path):
            got = g.get(path)
            assert got.status == 503 and got.headers["Retry-After"] and got.error()["code"] == "no-daemon", got.body
            assert str(d.socket) in got.error()["message"], got.body

        # before it ever said hello: what is asked waits …
        with stopped(d.process):
            waiting = parked(10)
            gone, waiting = waiting[0], waiting[1:]
            gone.close()
            lively()
        for s in waiting:
            got = everything(s)
            assert got.startswith(b"HTTP/1.1 200 OK\r\n") and b'"finish_reason":"length"' in got, got
            s.close()
        assert g.get("/ready").status == 200
    with Daemon("air") as d, Gateway(d) as g:
        with stopped(d.process):  # … but not for ever
            waiting, begun = parked(4), time.monotonic()
            refused("/ready")
            lively()
            for s in waiting:
                got = everything(s)
                assert got.startswith(b"HTTP/1.1 503 ") and b'"code":"no-daemon"' in got, got
                assert b"Retry-After: " in got and str(d.socket).encode() in got, got
                s.close()
            assert 8 < time.monotonic() - begun < 13, time.monotonic() - begun
        assert g.post("/v1/completions", body).status == 200  # and it is tried again
        # one that was there, and stopped
        with stopped(d.process):
            begun = time.monotonic()
            refused("/ready")
            assert 3 < time.monotonic() - begun < 8
            for _ in range(20):
                refused("/ready")
                assert b"steamd_up 0\n" in g.get("/metrics").body
            assert time.monotonic() - begun < 10
            waiting = parked(2)
        for s in waiting:
            assert everything(s).startswith(b"HTTP/1.1 200 OK\r\n")
            s.close()
        wait_for(lambda: g.get("/ready").status == 200, what="it to be ready")
        assert b"steamd_up 1\n" in g.get("/metrics").body


def steamd_that_stops_in_the_middle_is_not_waited_for_ever():
    """It is there, says nothing, and does not answer when it is asked whether it is there."""
    body = {"prompt": "go on", "max_tokens": 50000, "ignore_eos": True}
    with Daemon("air", "MaxRequestsPerConnection=16") as d, Gateway(d) as g, contextlib.ExitStack() as held:
        def ask(data):
            s = held.enter_context(socket.create_connection(("127.0.0.1", g.port), timeout=60))
            s.sendall(data)
            return s

        stored = g.post("/v1/responses", {"input": "hello", "max_output_tokens": 4}).json()["id"]
        last = b"Connection: close\r\n"
        stream = ask(post("/v1/completions", {**body, "stream": True}, last))
        assert stream.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")
        with stopped(d.process):
            begun = time.monotonic()
            asked = [ask(post("/v1/completions", body, last)), ask(post("/tokenize", {"prompt": "x"}, last)),
                     ask(post("/v1/responses", {"input": "on", "previous_response_id": stored}, last)),
                     ask(b"GET /v1/responses/" + stored.encode() + b" HTTP/1.1\r\nHost: localhost\r\n" + last + b"\r\n")]
            for s in asked:
                got = everything(s)
                assert got.startswith(b"HTTP/1.1 503 ") and b"Retry-After: " in got, got
                assert b'"code":"no-daemon"' in got and str(d.socket).encode() in got, got
            data = everything(stream).split(b"data: ")
            assert b'"code":"no-daemon"' in data[-1] and data[-1].endswith(b"\r\n0\r\n\r\n"), data[-1]
            assert 5 < time.monotonic() - begun < 25, time.monotonic() - begun
            # who comes now is told at once
            begun = time.monotonic()
            assert g.post("/v1/completions", body).status == 503 and time.monotonic() - begun < 3
        wait_for(lambda: g.get("/ready").status == 200, what="it to be ready")
        assert g.post("/v1/completions", {**body, "max_tokens": 4}).status == 200
        assert g.get("/v1/responses/" + stored).status == 200
        wait_for(lambda: "steamd_gateway_running 0\n" in g.get("/metrics").body.decode(), what="the end of all that ran")


def what_comes_later_and_is_no_http_is_refused_alike():
    get = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
    chunked = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    broken = ((b"GAR BAGE FOO\r\n\r\n", 400), (b"GET /health HTTP/2.0\r\n\r\n", 505), (get + b"foo\r\n\r\n", 400),
              (get + b"X: " + b"a" * 20000 + b"\r\n\r\n", 431), (b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\n\r\n", 414),
              (get + b"Content-Length: x\r\n\r\n", 400), (chunked + b"zz\r\nabc\r\n", 400),
              (chunked + b"3\r\nabcdef\r\n", 400), (chunked + b"f" * 20 + b"\r\nabc\r\n", 413))
    with Daemon("air") as d, Gateway(d) as g:
        def kept():
            s = socket.create_connection(("127.0.0.1", g.port), timeout=30)
            s.sendall(get + b"\r\n")
            assert s.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")
            return s

        for data, status in broken:
            with kept() as s:
                s.sendall(data)
                got = everything(s)
            assert got.startswith(b"HTTP/1.1 %d " % status) and got.count(b"HTTP/1.1 ") == 1, (data[:50], got)
            assert json.loads(got.partition(b"\r\n\r\n")[2])["error"]["code"] == "bad-request", (data[:50], got)
        with kept() as other:  # who is not meant notices nothing
            for data, status in broken:
                with kept() as s:
                    s.sendall(data)
                    got = everything(s)
                assert got.startswith(b"HTTP/1.1 %d " % status) and b" Error\r\n" not in got, (data[:50], got)
                if b"Content-Length: x" in data:  # headers that were read and make no sense are those of one alone
                    assert json.loads(got.partition(b"\r\n\r\n")[2])["error"]["code"] == "bad-request", got
                other.sendall(get + b"\r\n")
                got = other.recv(65536)
                assert got.startswith(b"HTTP/1.1 200 OK\r\n") and got.endswith(b'{"status":"ok"}'), (data[:50], got)


def where_a_request_ends_is_never_guessed():
    host, get = b"Host: localhost\r\n", b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
    chunks = b"f\r\n{\"prompt\": \"x\"}\r\n0\r\n\r\n"
    ask = b"POST /tokenize HTTP/1.1\r\n" + host
    with Daemon("air") as d, Gateway(d, "KeepAlive=1", "HeaderTimeout=1", "BodyTimeout=1") as g:
        old = ask.replace(b"1.1", b"1.0") + b"Connection: keep-alive\r\n"
        for data in (old + b"Transfer-Encoding: chunked\r\n\r\n" + chunks,
                     ask + b"X: a\rContent-Length: 4\r\n\r\n", ask + b"X: \x01\r\nContent-Length: 0\r\n\r\n",
                     ask + b"X: a\x7f\r\n\r\n", ask + b"X: y\r\n Content-Length: 4\r\n\r\n"):
            for before in (b"", get + b"\r\n"):
                n = 1 if before else 0
                # what is behind it is not answered: it may have been meant as a part of it
                answers = g.raw(before + data + get + b"Connection: close\r\n\r\n").split(b"HTTP/1.1 ")[1:]
                assert len(answers) == n + 1 and answers[n].startswith(b"400 "), (data, answers)
                assert json.loads(answers[n].partition(b"\r\n\r\n")[2])["error"]["message"], answers
        # of the bodies of others nothing is taken for a request
        for data in (get + b"Content-Length: %d\r\n\r\n" % len(get) + get,
                     ask + b"Transfer-Encoding: chunked\r\n\r\n" +
                     chunks.replace(b"0\r\n", b"0\r\nContent-Length: 9\r\n"),
                     get + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"):
            got = g.raw(data + get + b"Connection: close\r\n\r\n")
            assert got.count(b"HTTP/1.1 ") == got.count(b"HTTP/1.1 200 OK\r\n") == 2, (data, got)
        for method, path, body, status in ((b"HEAD", b"/v1/models", b"", 200),
                                           (b"HEAD", b"/v1/completions", b"{}", 405), (b"TRACE", b"/health", b"", 405), (b"CONNECT", b"localhost:80", b"", 404),
                                           (b"OPTIONS", b"*", b"", 404)):
            got = g.raw(b"%s %s HTTP/1.1\r\n" % (method, path) + host +
                        b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            assert got.startswith(b"HTTP/1.1 %d " % status), (method, got)
            assert method != b"HEAD" or got.endswith(b"\r\n\r\n"), got
        one = post("/v1/completions", {"prompt": "a", "max_tokens": 1})
        several = g.raw(one * 50 + get + b"Connection: close\r\n\r\n")
        assert several.count(b"HTTP/1.1 200 OK\r\n") == 51, several[-300:]


run([
    where_a_request_ends_is_never_guessed,
    steamd_that_does_not_answer_holds_nobody_up, steamd_that_stops_in_the_middle_is_not_waited_for_ever,
    clients_that_say_no_more_are_answered_in_one_go, what_comes_later_and_is_no_http_is_refused_alike,
])
