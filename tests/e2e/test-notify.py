#!/usr/bin/env python3
"""Under a service manager: readiness, status, the watchdog, refusal and reload. The manager is this test."""
import re
import resource
import socket
import threading

from steamd_e2e import *


class Managed(Daemon):
    """A daemon whose NOTIFY_SOCKET is ours: messages collects what it says."""

    def __init__(self, model, *sets, watchdog_us=None):
        super().__init__(model, *sets)
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(self.dir / "notify"))
        self.messages = []
        self.watchdog_us = watchdog_us
        threading.Thread(target=self.collect, daemon=True).start()

    def collect(self):
        while True:
            data, ancillary, _, _ = self.notify.recvmsg(65536, 8192)
            for _, _, fds in ancillary:
                for i in range(0, len(fds) - len(fds) % 4, 4):
                    os.close(struct.unpack("i", fds[i:i + 4])[0])
            self.messages.append(data.decode(errors="replace"))

    def said(self, word):
        return any(word in m for m in self.messages)

    def __enter__(self):
        env = dict(ENV, NOTIFY_SOCKET=str(self.dir / "notify"))
        env.pop("XDG_RUNTIME_DIR", None)
        if self.watchdog_us:
            env["WATCHDOG_USEC"] = str(self.watchdog_us)
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(self.command(), stderr=log, stdout=log, stdin=subprocess.DEVNULL, env=env)
        wait_for(lambda: self.said("READY=1"), 60, "READY=1")
        return self


def ready_is_told_once_the_socket_answers_and_loading_in_the_status():
    with Managed("air") as d:
        assert d.status()["state"] in ("loading", "ready")
        wait_for(lambda: d.status()["state"] == "ready", 60, "the model")
        assert d.said("STATUS="), d.messages
        assert d.complete([5, 6], 3)["finish"] == "length"


def a_refused_model_leaves_the_broker_up_until_reload():
    with tempfile.TemporaryDirectory() as dir:
        model = pathlib.Path(dir, "m")
        shutil.copytree(GOLDEN / "bf16", model)
        config = model / "config.json"
        good = config.read_text()
        config.write_text(good.replace('"glm4_moe"', '"llama"'))
        with Managed(str(model)) as d:
            wait_for(lambda: d.status()["state"] == "model-refused", 60, "the refusal")
            assert "llama" in json.dumps(d.status()), d.status()
            d.ctl("ask", "x", code=78)
            assert "llama" in d.last_stderr, d.last_stderr
            config.write_text(good)
            d.ctl("reload")
            wait_for(lambda: d.status()["state"] == "ready", 60, "the model")
            assert d.complete([5, 6], 3)["finish"] == "length"


def a_want_that_lasts_is_waited_out_and_told():
    with tempfile.TemporaryDirectory() as dir:
        model = pathlib.Path(dir, "m")
        shutil.copytree(GOLDEN / "bf16", model)
        config = model / "config.json"
        good = config.read_text()
        config.write_text("{}")
        with Managed(str(model)) as d:
            wait_for(lambda: d.status()["state"] == "model-refused", 60, "the refusal")
            pid = d.process.pid
            limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            highest = max(int(fd) for fd in os.listdir(f"/proc/{pid}/fd"))
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 3, limits[1]))
            config.write_text(good)
            d.ctl("reload")
            status = wait_for(lambda: (s := d.status())["state"] == "waiting" and s, 20, "waiting")
            assert "Too many open files" in status["text"], status["text"]
            wait_for(lambda: d.log().count("cannot be opened now") >= 3, 20, "the third try")
            d.ctl("ask", "x", code=75)
            assert re.search(r"the model cannot be opened: .*Too many open files; it is tried again in \d s",
                             d.last_stderr), d.last_stderr
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
            wait_for(lambda: d.status()["state"] == "ready", 20, "the model, by itself")
            assert d.complete([5, 6], 3)["finish"] == "length"


def a_tokenizer_that_does_not_cover_eos_is_refused():
    with tempfile.TemporaryDirectory() as dir:
        model = pathlib.Path(dir, "m")
        shutil.copytree(GOLDEN / "air", model)
        shutil.copy(GOLDEN / "tokenizer" / "tokenizer_small.json", model / "tokenizer.json")
        p = subprocess.run([str(STEAMD), "--model", str(model), "--socket", dir + "/s", "--state", dir + "/st"],
                           capture_output=True, timeout=60)
        assert p.returncode == 65, (p.returncode, p.stderr)
        assert b"tokenizer.json" in p.stderr and b"6000" in p.stderr, p.stderr


def the_watchdog_is_fed_while_busy_and_disarmed_while_quiet():
    p = prompt("air", "t33")
    with Managed("air", watchdog_us=2000000) as d:
        wait_for(lambda: d.status()["state"] == "ready", 60, "the model")
        wait_for(lambda: d.said("WATCHDOG_USEC=0"), 10, "disarming")
        d.messages.clear()
        request = d.popen("complete", "--ids", "--json", "--temperature", "0", "--max-tokens", 60000,
                          "--ignore-eos", stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        request.stdin.write(json.dumps(p["ids"]).encode())
        request.stdin.close()
        wait_for(lambda: "WATCHDOG=1" in d.messages, 20, "a ping")
        d.messages.clear()
        request.kill()
        request.wait()
        wait_for(lambda: d.said("WATCHDOG_USEC=0"), 20, "disarming after the work")
        d.messages.clear()
        time.sleep(3)
        assert not d.said("WATCHDOG=1"), d.messages


def the_watchdog_rests_on_every_rung_and_is_there_for_who_wakes_it():
    with Managed("air", watchdog_us=400000) as d:
        wait_for(lambda: d.status()["state"] == "ready", 60, "the model")
        for how in ("quiet", "parked", "gone", "parked"):
            assert d.ctl("sleep", how).decode() == how + "\n"
            wait_for(lambda: [m for m in d.messages if "WATCHDOG" in m][-1] == "WATCHDOG_USEC=0", 10, "disarming")
            d.messages.clear()
            time.sleep(1)
            assert not d.said("WATCHDOG"), (how, d.messages)
            assert d.complete([5, 6, 7], 3)["finish"] == "length"
            assert [m for m in d.messages if "WATCHDOG" in m][0] == "WATCHDOG_USEC=400000\nWATCHDOG=1", (how, d.messages)


if __name__ == "__main__":
    run([v for k, v in list(globals().items()) if callable(v) and getattr(v, "__module__", "") == "__main__"
         and k not in ("Managed",)])
