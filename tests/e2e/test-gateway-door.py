#!/usr/bin/env python3
"""Who may come into the gateway, how much, and how fast it has to be read."""
import contextlib
import itertools
import random
import re
import threading

from gatewayhttp import *
from steamd_e2e import *


def a_web_page_may_not_come_in():
    with Daemon("air") as d, Gateway(d, "AllowOrigins=http://good.example", "AllowHosts=box.lan") as g:
        for headers, status in (({"Host": "evil.example"}, 403), ({"Host": f"localhost:{g.port}"}, 200),
                                ({"Host": "LOCALHOST"}, 200), ({"Host": "[::1]:80"}, 200),
                                ({"Host": "127.8.0.1:1"}, 200), ({"Host": "128.0.0.1"}, 403),
                                ({"Host": "box.lan:1"}, 200), ({"Host": "127.0.0.1.evil.example"}, 403),
                                ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403),
                                ({"Origin": f"http://127.0.0.1:{g.port}"}, 403),
                                ({"Origin": "http://good.example"}, 200), ({"Sec-Fetch-Site": "cross-site"}, 403),
                                ({"Sec-Fetch-Site": "none"}, 200)):
            got = g.get("/v1/models", headers=headers)
            assert got.status == status, (headers, got.status, got.body)
            if status == 403:
                assert got.error()["code"] == "denied"
            assert got.headers["Access-Control-Allow-Origin"] == (
                headers["Origin"] if "good" in headers.get("Origin", "") else None)
        asked = g.send("OPTIONS", "/v1/chat/completions", headers={"Origin": "http://good.example"})
        assert asked.status == 204 and "POST" in asked.headers["Access-Control-Allow-Methods"]
        # browsers take * for every header but this one
        assert asked.headers["Access-Control-Allow-Headers"].split(", ") == ["Authorization", "*"]
        refused = chat(g, headers={"Origin": "http://good.example"}, n=9)
        assert refused.status == 400 and "Retry-After" in refused.headers["Access-Control-Expose-Headers"]
        assert g.send("OPTIONS", "/v1/chat/completions", headers={"Origin": "http://evil.example"}).status == 403
        assert g.send("OPTIONS", "/v1/chat/completions").status == 405
        c = UnixConnection(g.socket_path)
        assert g.get("/v1/models", headers={"Host": "whatever"}, connection=c).status == 200


def other_users_are_refused():
    if os.geteuid() != 0:
        raise Skip("becoming another user needs root")
    def become():
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)

    with Daemon("air") as d, Gateway(d) as g:
        command = ["curl", "--silent", "--write-out", " %{http_code}", f"{g.url}/v1/models"]
        out = subprocess.run(command, preexec_fn=become, capture_output=True, check=True, cwd="/").stdout
        assert out.endswith(b" 403") and b"uid 65534" in out, out
        mapped = [*command[:-1], f"http://[::ffff:127.0.0.1]:{g.port}/v1/models", "--header", "Host: localhost"]
        out = subprocess.run(mapped, preexec_fn=become, capture_output=True, check=True, cwd="/").stdout
        assert out.endswith(b" 403") and b"uid 65534" in out, out
        assert subprocess.run(mapped, capture_output=True, check=True).stdout.endswith(b" 200")
        assert g.get("/v1/models").status == 200
        lines = g.get("/metrics").body.decode()
        assert "steamd_gateway_refused_connections_total 2\n" in lines
        assert (g.socket_path.stat().st_mode & 0o777) == 0o600
    # nor do they take the places of those that are served
    def crowd(port, ready, end):
        become()
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(400)]
        os.write(ready, b"%d" % len(held))
        os.read(end, 1)

    with Daemon("air") as d, Gateway(d, "MaxConnections=20", "HeaderTimeout=60") as g:
        (ready, told), (end, ending) = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(ending)
                crowd(g.port, told, end)
            finally:
                os._exit(0)
        os.close(told)
        assert os.read(ready, 3) == b"400"
        assert b"steamd_gateway_connections 257\n" in g.get("/metrics").body
        own = [g.connect() for _ in range(20)]
        assert {g.get("/health", connection=c).status for c in own} == {200}
        os.close(ending)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(end)


def keys_stand_for_labels():
    with Daemon("air") as d:
        keys = d.dir / "keys"
        keys.write_text("# one a line\nalice alice-key-0123456789\nbob bob-key-0123456789ab\n")
        with Gateway(d, f"Keys={keys}") as g:
            alice, bob = [{"Authorization": f"Bearer {k}"} for k in ("alice-key-0123456789", "bob-key-0123456789ab")]
            assert g.get("/health").status == 200
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic abc"},
                            {"Authorization": "Bearer alice-key-012345678"}):
                got = g.get("/v1/models", headers=headers)
                assert got.status == 401 and got.error()["type"] == "authentication_error", headers
            body = {"prompt": "word " * 200, "max_tokens": 2}
            assert g.post("/v1/completions", body, headers=alice).status == 200
            hits = [g.post("/v1/completions", body, headers=who).json()["usage"]["prompt_tokens_details"]
                    ["cached_tokens"] for who in (alice, bob)]
            assert hits[0] > 100 and hits[1] == 0, hits  # what one said serves no other
        keys.write_text("short key\n")
        p = subprocess.run([str(GATEWAY), "--listen", "127.0.0.1:0", "--set", f"Keys={keys}"], env=ENV,
                           capture_output=True, check=False)
        assert p.returncode == 64 and b"line 1" in p.stderr, p.stderr


def limits_hold():
    with Daemon("air") as d, Gateway(d, "MaxBodySize=4096", "MaxConnectionsPerPeer=5", "HeaderTimeout=1",
                                     "KeepAlive=2", "BodyTimeout=1", "MaxRequestsPerConnection=3") as g:
        got = g.post("/v1/completions", {"prompt": "x" * 5000})
        assert got.status == 413 and "4096" in got.error()["message"]
        c = g.connect()
        c.request("POST", "/v1/completions", iter([b"x" * 3000] * 3), {"Content-Type": "application/json"},
                  encode_chunked=True)
        assert c.getresponse().status == 413
        c.close()
        open_ones = [socket.create_connection(("127.0.0.1", g.port)) for _ in range(5)]
        assert g.get("/health").status == 429
        for s in open_ones:  # no header comes: closed without a word
            s.settimeout(10)
            assert s.recv(1) == b""
            s.close()
        c = g.connect()
        statuses = [g.get("/health", connection=c) for _ in range(3)]
        assert [r.headers.get("Connection") for r in statuses] == [None, None, "close"] or \
            statuses[-1].headers["Connection"].lower() == "close"
        idle = socket.create_connection(("127.0.0.1", g.port), timeout=10)
        idle.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        begin = time.monotonic()
        assert idle.recv(65536).startswith(b"HTTP/1.1 200 ") and idle.recv(1) == b""  # closed after KeepAlive=
        assert 1 < time.monotonic() - begin < 8
        idle.close()
        trickle = socket.create_connection(("127.0.0.1", g.port))  # a byte now and then is no headers either
        begin = time.monotonic()
        try:
            while time.monotonic() < begin + 8:
                trickle.sendall(b"G")
                time.sleep(0.2)
            raise AssertionError("slow headers were waited for")
        except ConnectionError:
            assert time.monotonic() - begin > 0.9
        trickle.close()
        slow = socket.create_connection(("127.0.0.1", g.port))
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        slow.settimeout(10)
        assert b"200" not in slow.recv(100)
        slow.close()
        big = g.send("GET", "/health", headers={"X-Big": "x" * 40000})
        assert big.status in (413, 431, 494)


def what_is_no_proper_request_is_refused():
    body = json.dumps({"messages": HELLO, "max_tokens": 1}).encode()
    host, close = b"Host: localhost\r\n", b"Connection: close\r\n"
    length = b"Content-Length: %d\r\n" % len(body)

    def post(*headers, content=body, version=b"1.1"):
        return b"POST /v1/chat/completions HTTP/" + version + b"\r\n" + b"".join(headers) + b"\r\n" + content

    def get(url, *headers):
        return b"GET " + url + b" HTTP/1.1\r\n" + b"".join(headers) + close + b"\r\n"

    chunked = b"Transfer-Encoding: chunked\r\n"
    pieces = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    ours = [  # with an error object
        (get(b"/v1/models", host, b"Host: evil.example\r\n"), 400), (get(b"/v1/models"), 403),
        (get(b"/v1/models", b"Host: localhost:evil.example\r\n"), 403),
        (get(b"/v1/models", b"Host: localhost@evil.example\r\n"), 403),
        (get(b"http://evil.example/v1/models", host), 403),
        (get(b"http://localhost/v1/models", b"Host: evil.example\r\n"), 403),
        (get(b"/v1/models", host, b"Origin: \r\n"), 403), (get(b"*", host), 404), (get(b"/v1/../health", host), 404),
        (post(host, close, length, b"Content-Length: 5\r\n"), 400),
        (post(host, close, length, chunked, content=pieces), 400),
        (post(host, close, length, b"Content-Encoding: gzip\r\n"), 415),
        (post(host, close, length, b"Content-Type: application/jsonx\r\n"), 415),
        (post(host, close, b"Content-Length: 9999999999\r\n"), 413),
        (post(host, b"Content-Length: -1\r\n"), 400), (post(host, b"Content-Length: 12abc\r\n"), 400),
        (b"GET /health\r\n\r\n", 400), (b"hello, who is there?\r\n", 400), (b"\x16\x03\x01" + b"A" * 200, 400),
        (post(host, b"no colon\r\n"), 400), (post(host, b" folded\r\n"), 400),
        (post(host, b"Transfer-Encoding: gzip\r\n"), 501), (get(b"/health HTTP/1.1 x", host), 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505), (get(b"/" + b"x" * 60000, host), 414),
        (get(b"/health", host, b"X: " + b"y" * 60000 + b"\r\n"), 431),
        (get(b"/health", host, *[b"X-%d: y\r\n" % i for i in range(3000)]), 431),
        # what libmicrohttpd would read in another way, or has no room for
        (post(host, length[:-2] + b" \r\n"), 400), (post(host, chunked[:-2] + b"\t\r\n", content=pieces), 400),
        (get(b"/health?" + b"a&" * 3900, host), 414),
        (get(b"/health", host, b"Cookie: " + b"; ".join(b"c%d=x" % i for i in range(700)) + b"\r\n"), 431)]
    # of a body libmicrohttpd understood so little that it answers by itself
    http_errors = [(post(host, chunked, content=b"zz\r\n"), 400)]
    fine = [get(b"http://localhost/v1/models", host), get(b"http://LOCALHOST:80/health", host),
            post(host, close, length), post(host, close, chunked, content=pieces),
            post(host, close, length, b"Expect: 100-continue\r\n"), post(host, length, version=b"1.0"),
            post(host, close, length, b"Content-Type: application/json; charset=utf-8\r\n")]
    with Daemon("air") as d, Gateway(d, "HeaderTimeout=1", "BodyTimeout=1", "KeepAlive=1") as g:
        for data, status in ours + http_errors:
            got = g.raw(data)
            assert got.startswith(b"HTTP/1.1 %d " % status), (data[:100], got)
            if (data, status) in ours:
                error = json.loads(got.partition(b"\r\n\r\n")[2])["error"]
                assert error["message"] and error["code"], error
        for data in fine:
            got = g.raw(data)
            assert b"HTTP/1.1 200 OK\r\n" in got, (data[:100], got)
        several = b"".join([b"GET /health HTTP/1.1\r\n" + host + b"\r\n", post(host, length), get(b"/v1/models", host)])
        assert g.raw(several).count(b"HTTP/1.1 200 OK\r\n") == 3
        # nothing in the body of a later one is a request
        hidden = get(b"/v1/models", host)
        for status, found in ((501, post(host, b"Transfer-Encoding: gzip, chunked\r\n", content=pieces)),
                              (400, post(host, length.replace(b":", b" :"), content=hidden)),
                              (400, post(host, length, chunked.replace(b":", b" :"), content=b"0\r\n\r\n" + hidden))):
            first, later, *more = g.raw(b"GET /health HTTP/1.1\r\n" + host + b"\r\n" + found).split(b"HTTP/1.1 ")[1:]
            assert first.startswith(b"200 ") and later.startswith(b"%d " % status) and not more, (later, more)
            assert json.loads(later.partition(b"\r\n\r\n")[2])["error"]["message"], later
        assert g.send("POST", "/v1/models", {}).headers["Allow"] == "GET"
        assert g.send("PUT", "/v1/responses/x", {}).headers["Allow"] == "GET, DELETE"
        for data in (b"GET /hea", b"GET / HTTP/1.1\r\nHost: local", b"", post(host, chunked, content=b"ffffffffffffffff\r\nabc"),
                     post(host, b"Content-Length: 1000\r\n")):
            assert b" 200 " not in g.raw(data), data
        for text in (b'"\xff"', b"NaN", b"-1e999", b"[" * 5000, b'"\\ud800"', b"99999999999999999999"):
            got = g.post("/v1/chat/completions", b'{"temperature":' + text + b"}")
            assert got.status == 400 and got.error()["message"], got.body
        assert g.get("/health").status == 200


def a_chunk_that_does_not_begin_stops_nobody():
    begun = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5;"
    with Daemon("air") as d, Gateway(d, "BodyTimeout=2") as g:
        with socket.create_connection(("127.0.0.1", g.port), timeout=30) as s:
            s.sendall(begun + b"x" * 20000)
            for _ in range(10):
                with contextlib.closing(g.connect(timeout=10)) as c:
                    assert g.get("/health", connection=c).status == 200
                    assert chat(g, max_tokens=1).status == 200
            with contextlib.suppress(ConnectionError):
                assert s.recv(100) == b""  # and it is let go
        wait_for(lambda: b"steamd_gateway_connections 1\n" in g.get("/metrics").body, what="the end of it")


def a_head_as_long_as_can_be_is_understood():
    with Daemon("air") as d, Gateway(d) as g:
        line, host = b"GET /health HTTP/1.1\r\n", b"Host: localhost\r\nConnection: close\r\n"
        room = 8192 - len(line + host) - 2
        one = b"X: " + b"y" * (room - 5) + b"\r\n"
        many = [b"X-%02d: " % i + b"y" * (room // 98 - 8) + b"\r\n" for i in range(98)]
        address = b"GET /health?" + b"x" * (room - 1) + b" HTTP/1.1\r\n"
        for head in (line + host + one, line + host + b"".join(many), line + b"X:\r\n" * 98 + host, address + host):
            assert g.raw(head + b"\r\n").startswith(b"HTTP/1.1 200 OK\r\n"), head
        # however it is cut
        head = line + host + b"\r\n"
        for at in range(1, len(head), 7):
            with socket.create_connection(("127.0.0.1", g.port), timeout=30) as s:
                s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                s.sendall(head[:at])
                g.get("/health")  # it has been looked at
                s.sendall(head[at:])
                assert s.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n"), at


def random_bytes_do_no_harm():
    random.seed(8)
    body = json.dumps({"messages": HELLO, "max_tokens": 1}).encode()
    whole = (b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
             b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    pieces = (b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
              b"8\r\n{\"prompt\r\n8;x=y\r\n\": \"abc\"\r\n1\r\n}\r\n0\r\nA: b\r\n\r\n")
    unit = [b"\r\n", b"\n", b"\r", b"\0", b" ", b":", b"HTTP/1.1", b"GET ", b"\x16\x03", b"\xff", b"Host: localhost\r\n",
            b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", b"ffffffff\r\n"]

    def mutated(data):
        data = bytearray(data)
        for _ in range(random.randint(1, 4)):
            at, what = random.randrange(len(data)), random.randrange(4)
            if what == 0:
                data[at] ^= 1 << random.randrange(8)
            elif what == 1:
                data[at:at] = random.choice(unit)
            elif what == 2:
                del data[at:at + random.randint(1, 20)]
            else:
                data[at:] = bytes(random.randrange(256) for _ in range(random.randint(1, 60)))
            if not data:
                data = bytearray(b"x")
        return bytes(data)

    with Daemon("air") as d, Gateway(d, "HeaderTimeout=1", "BodyTimeout=1", "KeepAlive=1") as g:
        seen = set()

        def throw(inputs):
            for data in inputs:
                got = g.raw(data, half_close=True)
                if not got.startswith(b"HTTP/1.1 "):
                    assert got == b"", (data, got)  # it ended in mid-request
                    continue
                status, head, rest = int(got[9:12]), *got.split(b"\r\n\r\n", 1)
                seen.add(status)
                assert status < 500 or status in (501, 505), (data, got)
                if status >= 400 and b"application/json" in head:
                    assert json.loads(rest[:rest.index(b"}}") + 2])["error"]["message"], (data, got)

        inputs = [mutated(random.choice((whole, pieces))) for _ in range(600)]
        inputs += [bytes(random.randrange(256) for _ in range(random.randint(1, 300))) for _ in range(200)]
        threads = [threading.Thread(target=throw, args=(inputs[i::16],)) for i in range(16)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(120)
            assert not t.is_alive(), "one hangs"
        assert {200, 400} <= seen, seen
        wait_for(lambda: b"steamd_gateway_connections 1\n" in g.get("/metrics").body, what="the end of all")


def what_a_peer_makes_the_gateway_hold_is_bounded():
    with Daemon("air", "MaxRequestsPerConnection=9") as d, Gateway(d, "MaxBodiesSize=1M", "MaxBodySize=1M") as g:
        # one answer at a time: the others wait, and count with what was made of their bodies
        running = g.connect()
        body = {"prompt": "go on", "max_tokens": 60000, "ignore_eos": True, "stream": True}
        running.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        assert running.getresponse().status == 200
        waiting = [g.connect() for _ in range(10)]
        for c in waiting:
            c.request("POST", "/v1/completions", json.dumps({"prompt": "a", "max_tokens": 1, "user": "x" * 100000}),
                      {"Content-Type": "application/json"})
            assert g.get("/health").status == 200  # it was read
        refused = g.post("/v1/completions", {"prompt": "a", "user": "x" * 100000})
        assert refused.status == 429 and refused.headers["Retry-After"] == "1", refused.body
        assert "held" in refused.error()["message"]
        running.sock.close()
        running.close()
        statuses = [c.getresponse().status for c in waiting]
        assert 3 <= statuses.count(200) <= 6 and statuses.count(429) == 10 - statuses.count(200), statuses
        for _ in range(20):  # and what was held is let go
            assert g.post("/v1/completions", {"prompt": "a", "max_tokens": 1, "user": "x" * 100000}).status == 200
    with Daemon("air") as d, Gateway(d) as g:
        before = g.memory()
        for piece in (b"{},", b"[],", b"0,", b'"",', b'{"":', b"[["):
            got = g.post("/v1/chat/completions", b'{"messages":[' + piece * ((16 << 20) // len(piece)))
            assert got.status == 400 and got.error()["code"] == "too-long", (piece, got.body)
        ids = g.post("/v1/completions", {"prompt": [1] * 200000, "max_tokens": 1})
        assert ids.status == 400 and "context" in ids.error()["message"], ids.body
        assert SANITIZED or g.memory() < before + 40000, (before, g.memory())


def a_client_that_leaves_ends_its_turn():
    def running(d):
        return [t for t in json.loads(d.ctl("ps", "--json"))["turns"] if t["state"] != "ended"]

    with Daemon("air") as d, Gateway(d) as g:
        for stream in (True, False):
            c = g.connect()
            body = {"prompt": "go on", "max_tokens": 60000, "ignore_eos": True, "stream": stream}
            c.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            wait_for(lambda: running(d), what="a turn")
            c.sock.close()
            c.close()
            wait_for(lambda: not running(d), what="its end")
        assert "steamd_gateway_abandoned_total 2\n" in g.get("/metrics").body.decode()


def a_client_that_says_no_more_gets_its_whole_answer():
    with Daemon("air") as d, Gateway(d) as g:
        for stream, version, unix in itertools.product((False, True), (b"1.0", b"1.1"), (False, True)):
            body = {"prompt": "go on", "max_tokens": 600, "ignore_eos": True, "stream": stream}
            body = json.dumps(body).encode()
            request = (b"POST /v1/completions HTTP/%s\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                       b"Content-Length: %d\r\n\r\n%s" % (version, len(body), body))
            if unix:
                s = socket.socket(socket.AF_UNIX)
                s.connect(str(g.socket_path))
            else:
                s = socket.create_connection(("127.0.0.1", g.port), timeout=60)
            with s:
                s.sendall(request)
                s.shutdown(socket.SHUT_WR)
                got = b""
                while piece := s.recv(65536):
                    got += piece
            assert got.startswith(b"HTTP/1.1 200 OK\r\n"), (stream, version, unix, got)
            assert got.count(b'"finish_reason":"length"') == 1, (stream, version, unix, got)
            assert (b"data: [DONE]\n\n" in got) == stream
        # and may leave altogether while it waits
        for stream, unix in itertools.product((False, True), (False, True)):
            body = {"prompt": "go on", "max_tokens": 60000, "ignore_eos": True, "stream": stream}
            c = UnixConnection(g.socket_path) if unix else g.connect()
            c.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            c.sock.shutdown(socket.SHUT_WR)
            wait_for(lambda: [t for t in json.loads(d.ctl("ps", "--json"))["turns"] if t["state"] != "ended"],
                     what="a turn")
            c.sock.close()
            c.close()
            wait_for(lambda: not [t for t in json.loads(d.ctl("ps", "--json"))["turns"] if t["state"] != "ended"],
                     what="its end")
        assert "steamd_gateway_abandoned_total 4\n" in g.get("/metrics").body.decode()


def a_stalled_reader_pauses_its_own_stream_only():
    with Daemon("air") as d, Gateway(d) as g:
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.connect(("127.0.0.1", g.port))
        body = json.dumps({"prompt": "go on", "max_tokens": 60000, "ignore_eos": True, "stream": True}).encode()
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                  b"Content-Length: %d\r\n\r\n" % len(body) + body)

        def paused():
            turns = json.loads(d.ctl("ps", "--json"))["turns"]
            return turns and turns[0]["state"] == "paused" and turns[0]["n_completion"]

        n = wait_for(paused, 180 if SANITIZED else 60, "the pause")
        assert n < 20000, n
        assert chat(g).status == 200  # others do not notice
        assert g.memory() < (40000 if SANITIZED else 8000), g.memory()
        before = paused()
        s.settimeout(30)
        got = 0
        while got < 1 << 20:
            got += len(s.recv(65536))
        wait_for(lambda: not paused() or paused() > before, 30, "it to go on")
        s.close()


def a_reader_that_stalls_for_too_long_is_let_go():
    with Daemon("air") as d, Gateway(d, "StallTimeout=1") as g:
        versions = ("1.1",) if SANITIZED else ("1.1", "1.0")
        for version in versions:
            data = json.dumps({"prompt": "go on", "max_tokens": 60000, "ignore_eos": True, "stream": True}).encode()
            s = socket.socket()
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.connect(("127.0.0.1", g.port))
            s.sendall(f"POST /v1/completions HTTP/{version}\r\nHost: localhost\r\n"
                      f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
            wait_for(lambda: b"steamd_gateway_running 1\n" in g.get("/metrics").body, what="its turn")
            wait_for(lambda: b"steamd_gateway_running 0\n" in g.get("/metrics").body, 60, "its end")
            s.settimeout(10)
            try:
                while s.recv(65536):
                    pass
            except ConnectionResetError:
                pass
            s.close()
        assert f"steamd_gateway_abandoned_total {len(versions)}\n" in g.get("/metrics").body.decode()
        slow = chunks(g, "/v1/completions", prompt="go on", max_tokens=300 if SANITIZED else 3000, ignore_eos=True)
        assert slow[-1]["choices"][0]["finish_reason"] == "length"  # whoever reads stays


def a_slow_reader_gets_every_byte():
    def count(g, name):
        return int(re.search(rf"^steamd_gateway_{name} (\d+)$", g.get("/metrics").body.decode(), re.M)[1])

    def paused(d):
        return any(t["state"] == "paused" for t in json.loads(d.ctl("ps", "--json"))["turns"])

    with Daemon("air") as d, Gateway(d) as g:
        # all of it is there before it is read, or more than is kept for it; chunks are cut where nobody chose to
        for n, version, header in ((1200, "1.1", ""), (1200, "1.1", "Connection: close\r\n"), (1200, "1.0", ""),
                                   (4000, "1.1", ""))[:1 if SANITIZED else 4]:
            body = {"prompt": "go on", "max_tokens": n, "ignore_eos": True, "seed": 3}
            whole = g.post("/v1/completions", body).json()["choices"][0]["text"]
            data = json.dumps({**body, "stream": True}).encode()
            before = count(g, "tokens_total")
            s = socket.socket()
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.connect(("127.0.0.1", g.port))
            s.sendall(f"POST /v1/completions HTTP/{version}\r\nHost: localhost\r\n{header}"
                      f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
            if n == 1200:
                wait_for(lambda: count(g, "tokens_total") == before + n and count(g, "running") == 0, 60, "all of it")
            else:
                wait_for(lambda: paused(d), 60, "the pause")
            response = http.client.HTTPResponse(s)
            response.begin()
            assert (response.getheader("Transfer-Encoding") == "chunked") == (version == "1.1")
            lines = [line[6:] for line in response.read().decode().split("\n\n") if line.startswith("data: ")]
            assert lines[-1] == "[DONE]", lines[-1]
            text = "".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1])
            assert text == whole, (n, version, header, len(text), len(whole))
            s.close()


def requests_beyond_what_a_connection_carries_wait():
    with Daemon("air", "MaxRequestsPerConnection=12") as d, Gateway(d, "MaxQueued=10") as g:
        statuses, lock = [], threading.Lock()

        def one():
            got = chat(g, max_tokens=40, ignore_eos=True)
            with lock:
                statuses.append((got.status, got.headers.get("Retry-After")))

        threads = [threading.Thread(target=one) for _ in range(40)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        ok, refused = [[s for s in statuses if s[0] == code] for code in (200, 429)]
        assert len(ok) + len(refused) == 40 and len(ok) >= 14, statuses
        assert all(s[1] == "1" for s in refused), refused


def a_wrong_command_line_is_named():
    for args, word in ((["--listen", "nowhere"], "ADDRESS:PORT"), (["--lisen", "x"], "--lisen"), ([], "--listen"),
                       (["--listen", "127.0.0.1:65536"], "65535"), (["--listen", "127.0.0.1:99999999999"], "65535"),
                       (["--listen", "127.0.0.1:-1"], "65535"), (["--listen", "0.0.0.0:0"], "keys"), (["--set", "Foo=1"], "Foo"),
                       (["--set", "MaxQueued=x"], "MaxQueued"), (["--config", "/nonexistent"], "/nonexistent"),
                       (["--config", "/tmp"], "Is a directory")):
        p = subprocess.run([str(GATEWAY), *args], env=ENV, capture_output=True, check=False, timeout=20)
        assert p.returncode == 64 and word.encode() in p.stderr and p.stderr.count(b"\n") == 1, (args, p.stderr)
    with tempfile.NamedTemporaryFile() as config:
        for text, word in ((b"KeepAlive=5\0\n", b":1: it holds a NUL"), (b"\r\n#\r\nAllowHosts=a\r\nFoo=1", b":4: there is no"),
                           (b"#" + b"x" * 10000 + b"\nFoo=1", b":2: there is no")):
            config.seek(0)
            config.truncate()
            config.write(text)
            config.flush()
            p = subprocess.run([str(GATEWAY), "--listen", "127.0.0.1:0", "--config", config.name], env=ENV,
                               capture_output=True, check=False, timeout=20)
            assert p.returncode == 64 and word in p.stderr, (text[:20], p.stderr)
    p = subprocess.run([str(GATEWAY), "--help"], env=ENV, capture_output=True, check=True)
    assert b"service_tier" in p.stdout and b"WaitForModel" in p.stdout


def without_steamd_it_is_said():
    class Nowhere:
        dir = pathlib.Path(tempfile.mkdtemp(prefix="steamd-e2e-"))
        socket = dir / "none.sock"

    try:
        with Gateway(Nowhere()) as g:
            assert g.get("/health").status == 200
            got = g.get("/ready")
            assert got.status == 503 and got.headers["Retry-After"] and got.error()["code"] == "no-daemon"
            got = chat(g)
            assert got.status == 503 and "none.sock" in got.error()["message"], got.body
            assert b"steamd_up 0\n" in g.get("/metrics").body
    finally:
        shutil.rmtree(Nowhere.dir)


run([
    a_web_page_may_not_come_in,
    other_users_are_refused,
    keys_stand_for_labels,
    limits_hold,
    what_is_no_proper_request_is_refused,
    a_chunk_that_does_not_begin_stops_nobody,
    a_head_as_long_as_can_be_is_understood,
    random_bytes_do_no_harm,
    what_a_peer_makes_the_gateway_hold_is_bounded,
    a_client_that_leaves_ends_its_turn,
    a_client_that_says_no_more_gets_its_whole_answer,
    a_stalled_reader_pauses_its_own_stream_only,
    a_reader_that_stalls_for_too_long_is_let_go,
    a_slow_reader_gets_every_byte,
    requests_beyond_what_a_connection_carries_wait,
    a_wrong_command_line_is_named,
    without_steamd_it_is_said,
])
