"""Starts the real gateway before a real daemon, and speaks HTTP to it."""
import http.client
import json
import os
import signal
import socket
import subprocess
import sys

from steamd_e2e import BUILD, ENV, SANITIZED, Daemon, wait_for


def _program():
    """The program itself, not libtool's wrapper: signals are meant for it."""
    real = BUILD / ".libs" / "steamd-gateway"
    return real if real.exists() else BUILD / "steamd-gateway"


GATEWAY = _program()


class Reply:
    def __init__(self, response):
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    def json(self):
        return json.loads(self.body)

    def error(self):
        return self.json()["error"]


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost")
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


class Gateway:
    """One steamd-gateway for @daemon on a port of its own, gone when the with block ends."""

    n = 0

    def __init__(self, daemon, *sets, listen="127.0.0.1:0", days=0):
        self.daemon, self.sets, self.listen, self.days = daemon, sets, listen, days
        Gateway.n += 1
        self.log_path = daemon.dir / f"gateway-{Gateway.n}.log"
        self.socket_path = daemon.dir / f"http-{Gateway.n}.sock"

    def __enter__(self):
        command = [str(GATEWAY), "--listen", self.listen, "--listen", str(self.socket_path), "--socket",
                   str(self.daemon.socket)]
        for s in self.sets:
            command += ["--set", s]
        env = ENV
        if self.days:  # its calendar is ahead
            env = dict(ENV, LD_PRELOAD=str(BUILD / "tests" / "e2e" / ".libs" / "clock.so"),
                       STEAMD_TEST_DAYS=str(self.days),
                       ASAN_OPTIONS=ENV.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0")
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log, stdin=subprocess.DEVNULL, env=env)
        wait_for(lambda: self.process.poll() is not None or "\nready\n" in self.log(), 20, "the gateway")
        assert self.process.poll() is None, self.log()
        line = next(line for line in self.log().splitlines() if "http://" in line)
        self.url = line[line.index("http://"):]
        self.port = int(self.url.rsplit(":", 1)[1])
        return self

    def __exit__(self, kind, value, trace):
        alive = self.process.poll() is None
        if alive:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        log = self.log()
        if kind or self.process.returncode != 0:
            sys.stdout.write(log)
        if not kind:
            assert alive, f"the gateway died during the test with {self.process.returncode}"
            assert self.process.returncode == 0, f"the gateway ended with {self.process.returncode}"
            assert "Sanitizer" not in log and "runtime error" not in log

    def log(self):
        return self.log_path.read_text(errors="replace")

    def connect(self, timeout=60):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def send(self, method, path, body=None, headers=(), connection=None):
        """One request; @body: JSON, or bytes as they are."""
        c = connection or self.connect()
        headers = dict(headers)
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
        c.request(method, path, body, headers)
        reply = Reply(c.getresponse())
        if not connection:
            c.close()
        return reply

    def get(self, path, **kwargs):
        return self.send("GET", path, **kwargs)

    def post(self, path, body, **kwargs):
        return self.send("POST", path, body, **kwargs)

    def raw(self, data, half_close=False):
        """All that comes for @data, bytes of whatever kind, until the gateway closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as s:
            found = b""
            try:
                s.sendall(data)
                if half_close:
                    s.shutdown(socket.SHUT_WR)
                while piece := s.recv(65536):
                    found += piece
            except ConnectionError:  # it had enough before all was sent
                pass
            return found

    def events(self, path, body):
        """The events of a stream, as (name or None, data as it came)."""
        c = self.connect()
        c.request("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        response = c.getresponse()
        assert response.status == 200, response.read()
        assert response.headers["Content-Type"] == "text/event-stream"
        name, found = None, []
        for line in response:
            line = line.decode().rstrip("\n")
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                found.append((name, line[6:]))
                name = None
        c.close()
        return found

    def memory(self):
        """Kilobytes that are its own: written pages, not those of libraries."""
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as f:
            return next(int(line.split()[1]) for line in f if line.startswith("RssAnon:"))


HELLO = [{"role": "user", "content": "Hello there"}]


def chat(g, messages=None, headers=(), **fields):
    body = {"messages": messages or HELLO, "max_tokens": 8, **fields}
    return g.post("/v1/chat/completions", body, headers=headers)


def chunks(g, path, **body):
    """The chunks of a stream, which ends as it has to."""
    events = g.events(path, {"stream": True, **body})
    assert events[-1] == (None, "[DONE]"), events[-1]
    return [json.loads(data) for _, data in events[:-1]]
