#!/usr/bin/env python3
"""What is seen over HTTP when gateway, broker or executor are killed, and while the model is loaded."""
import re
import threading

from gatewayhttp import *
from stored import *

LONG = {"prompt": "go on", "max_tokens": 600 if SANITIZED else 4000, "ignore_eos": True, "seed": 1, "temperature": 0.7}


def begin(g, **fields):
    """A stream of which the first chunk has come: connection and response."""
    c = g.connect()
    c.request("POST", "/v1/completions", json.dumps({**LONG, "stream": True, **fields}),
              {"Content-Type": "application/json"})
    response = c.getresponse()
    assert response.status == 200
    assert response.readline().startswith(b"data: ")
    return c, response


def rest(response):
    """The data that are left; ends with the stream, however it ends."""
    found = []
    try:
        for line in response:
            if line.startswith(b"data: "):
                found.append(line[6:].decode().strip())
    except (http.client.IncompleteRead, ConnectionError):
        found.append(None)
    return found


def a_killed_gateway_ends_its_streams_and_their_turns():
    with Daemon("air") as d:
        g = Gateway(d)
        g.__enter__()
        _, response = begin(g, max_tokens=50000)
        g.process.kill()
        g.process.wait()
        data = rest(response)
        assert "[DONE]" not in data
        wait_for(lambda: all(t["state"] == "ended" for t in json.loads(d.ctl("ps", "--json"))["turns"]),
                 what="the end of its turns")
        with Gateway(d) as again:  # it left its socket's file behind, and nothing else
            assert again.post("/v1/completions", {"prompt": "a", "max_tokens": 1}).status == 200


def a_killed_executor_is_a_pause():
    with Daemon("air") as d, Gateway(d) as g:
        whole = g.post("/v1/completions", LONG).json()["choices"][0]["text"]
        _, response = begin(g)
        os.kill(d.executor(), signal.SIGKILL)
        data = rest(response)
        assert data[-1] == "[DONE]", data[-3:]
        text = "".join(json.loads(x)["choices"][0]["text"] for x in data[:-1])
        assert whole.endswith(text) and len(text) > len(whole) * 0.5
        assert d.status()["executor"]["starts"] == 2


def a_killed_broker_is_an_error_where_nobody_holds_its_memory():
    """Under systemd, which keeps its descriptors, it is a pause; by hand its turns are lost with it."""
    with Daemon("air") as d, Gateway(d) as g:
        _, response = begin(g, max_tokens=50000)
        d.process.kill()
        d.process.wait()
        d.log_path.write_text("")
        d.__enter__()
        data = rest(response)
        error = json.loads(data[-1])["error"]
        assert error["code"] == "no-such" and error["message"], data[-1]
        # the gateway is there as before
        assert g.post("/v1/completions", {"prompt": "a", "max_tokens": 1}).status == 200


def a_killed_broker_whose_memory_is_held_is_a_pause():
    with Stored("air") as d, Gateway(d) as g:
        whole = g.post("/v1/completions", LONG).json()["choices"][0]["text"]
        _, response = begin(g)
        d.process.kill()
        d.again()
        data = rest(response)
        assert data[-1] == "[DONE]", data[-3:]
        text = "".join(json.loads(x)["choices"][0]["text"] for x in data[:-1])
        assert whole.endswith(text) and len(text) > len(whole) * 0.5


def a_gateway_that_systemd_started_leaves_when_idle():
    with Daemon("air") as d, socket.create_server(("127.0.0.1", 0)) as door:
        os.set_inheritable(door.fileno(), True)

        def start():
            return subprocess.Popen(
                ["sh", "-c", f'exec 3<&{door.fileno()}; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@"', "sh",
                 str(GATEWAY), "--socket", str(d.socket), "--set", "IdleExit=1"],
                env=ENV, close_fds=False, stderr=subprocess.DEVNULL)

        for _ in range(2):
            c = http.client.HTTPConnection("127.0.0.1", door.getsockname()[1], timeout=30)
            c.connect()  # before there is anybody, as with systemd
            process = start()
            c.request("GET", "/v1/models")
            assert c.getresponse().status == 200
            assert process.poll() is None
            c.close()
            assert process.wait(20) == 0


def a_restarted_broker_is_waited_for():
    with Daemon("air") as d, Gateway(d) as g:
        assert g.post("/v1/completions", {"prompt": "a", "max_tokens": 1}).status == 200
        d.kill()
        c = g.connect()
        c.request("POST", "/v1/completions", json.dumps({"prompt": "a", "max_tokens": 1}),
                  {"Content-Type": "application/json"})
        d.log_path.write_text("")
        d.__enter__()
        assert c.getresponse().status == 200


def a_sleeping_model_is_woken():
    with Daemon("air") as d, Gateway(d, "WaitForModel=0") as now, Gateway(d) as g:
        d.ctl("sleep", "gone")
        ready = g.get("/ready")
        assert ready.status == 200 and ready.json()["status"] == "asleep", ready.body
        got = now.post("/v1/completions", {"prompt": "a", "max_tokens": 1})
        assert got.status in (200, 503), got.body
        if got.status == 503:
            assert got.error()["code"] == "unavailable" and got.headers["Retry-After"] == "5", got.body
        assert g.post("/v1/completions", {"prompt": "a", "max_tokens": 1}).status == 200
        assert g.get("/ready").json()["status"] == "ready"


class Loading(Daemon):
    """One that is there before its model is."""

    def is_ready(self):
        return "listening at" in self.log()


def large_model(folder):
    """A random model that takes a while to be loaded: time enough to stop who loads it."""
    subprocess.run([str(BUILD / "tests" / "bench" / "make-model"), "--layers", "8", "--vocab", "4000", "--dim", "1024",
                    "--moe-ffn", "512", "--experts", "64", str(folder)], check=True, capture_output=True)
    return folder


def a_model_that_is_slow_to_load_is_told_of_or_waited_for():
    ask = {"prompt": [1, 2, 3], "max_tokens": 1}
    answers = []

    def wait_with(g, **fields):
        def run_it():
            answers.append(g.post("/v1/completions", {**ask, **fields}).status)

        thread = threading.Thread(target=run_it)
        thread.start()
        return thread

    def stop_at_work(d):
        """Whoever loads stands still, with something done and something left."""
        def some():
            os.kill(d.executor(), signal.SIGCONT)
            time.sleep(0.005)
            os.kill(d.executor(), signal.SIGSTOP)
            executor = d.status()["executor"]
            assert executor["state"] in ("starting", "loading"), executor
            return executor.get("percent", 0) > 0

        os.kill(d.executor(), signal.SIGSTOP)
        wait_for(some, 60, "a part of the model")

    def look(d, now, brief, g):
        threads = [wait_with(g), wait_with(g, stream=True)]
        for fields in ({}, {"stream": True}):
            got = now.post("/v1/completions", {**ask, **fields})
            assert got.status == 503 and got.headers["Retry-After"] == "5", got.body
            error = got.error()
            assert error["code"] == "unavailable" and error["type"] == "server_error", error
            assert int(re.search(r"loading (\d+) %", error["message"])[1]) > 0, error
            begin = time.monotonic()
            got = brief.post("/v1/completions", {**ask, **fields})
            assert got.status == 503 and 1 <= time.monotonic() - begin < 20, got.body
        ready = g.get("/ready")
        assert ready.status == 503 and ready.headers["Retry-After"], ready.body
        assert re.search(r"being loaded: [1-9]\d* %", ready.error()["message"]), ready.body
        assert g.get("/health").status == 200 and g.get("/v1/models").status == 200
        assert not answers, answers
        os.kill(d.executor(), signal.SIGCONT)
        for thread in threads:
            thread.join()
        assert set(answers) == {200}, answers
        answers.clear()
        assert g.get("/ready").json()["status"] == "ready"

    with tempfile.TemporaryDirectory(prefix="steamd-e2e-") as folder:
        with Loading(large_model(pathlib.Path(folder) / "model")) as d:
            stop_at_work(d)
            with Gateway(d, "WaitForModel=0") as now, Gateway(d, "WaitForModel=1") as brief, Gateway(d) as g:
                look(d, now, brief, g)  # after a start
                d.ctl("sleep", "gone")
                wait_for(lambda: not children(d.process.pid), what="the executor's end")
                thread = wait_with(g, max_tokens=2)
                stop_at_work(d)
                look(d, now, brief, g)  # after a sleep
                thread.join()


run([
    a_killed_gateway_ends_its_streams_and_their_turns,
    a_killed_executor_is_a_pause,
    a_killed_broker_is_an_error_where_nobody_holds_its_memory,
    a_killed_broker_whose_memory_is_held_is_a_pause,
    a_gateway_that_systemd_started_leaves_when_idle,
    a_restarted_broker_is_waited_for,
    a_sleeping_model_is_woken,
    a_model_that_is_slow_to_load_is_told_of_or_waited_for,
])
