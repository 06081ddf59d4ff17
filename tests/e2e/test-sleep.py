#!/usr/bin/env python3
"""Asleep and awake: rungs by command, idleness, lease, pressure and suspend; nothing fails, nothing changes."""
import contextlib
import importlib.util
import pty
import random
import threading

from stored import *

PROMPT = prompt("air", "t33")
N = 20


def power(d):
    return d.status()["power"]


def rung(d):
    p = power(d)
    return p["rung"] if not p["moving"] else "moving"


def on_rung(d, name, seconds=20):
    wait_for(lambda: rung(d) == name, seconds, f"the rung {name}")


def answer(d, n=N, **kwargs):
    return d.complete(PROMPT["ids"], n, **kwargs)["ids"]


def begin(d, n, **kwargs):
    request = d.popen("complete", "--ids", "--json", "--temperature", "0", "--max-tokens", n, "--ignore-eos",
                      stdin=subprocess.PIPE, stdout=subprocess.PIPE, **kwargs)
    request.stdin.write(json.dumps(PROMPT["ids"]).encode())
    request.stdin.close()
    return request


def end_whole(request):
    out = request.stdout.read()
    assert request.wait(60) == 0, request.returncode
    return json.loads(out.splitlines()[-1])


def end(request):
    return end_whole(request)["ids"]


def rss(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def switches(pid):
    n = 0
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if "ctxt_switches:" in line:
                n += int(line.split()[1])
    return n


def is_still(pid, seconds):
    before = switches(pid)
    time.sleep(seconds)
    return switches(pid) == before


def the_answer_is_the_same_after_every_rung():
    with Daemon("air") as d:
        want = answer(d)
        executor = d.executor()
        before = rss(executor)
        assert d.ctl("sleep") == b"parked\n"
        s = d.status()
        assert s["state"] == "asleep" and s["power"]["rung"] == "parked", s
        assert s["power"]["held"]["weights_bytes"] == 0, s
        if not SANITIZED:  # a sanitizer keeps what was freed
            assert before - rss(executor) > 0.9 * s["power"]["rungs"]["parked"]["frees_bytes"], (before, rss(executor))
        assert answer(d) == want
        assert d.executor() == executor
        assert d.ctl("sleep", "gone") == b"gone\n"
        wait_for(lambda: not children(d.process.pid), 10, "the executor's end")
        assert d.status()["executor"]["state"] == "gone"
        assert answer(d) == want
        assert d.executor() != executor
        prices = power(d)["rungs"]
        assert prices["parked"]["measured"] and prices["gone"]["measured"], prices
        assert prices["gone"]["frees_bytes"] >= prices["parked"]["frees_bytes"] > 1000000, prices
        assert 0 < prices["parked"]["return_seconds"] < 60, prices


def wake_loads_without_a_request_and_tokenizing_needs_none():
    with Daemon("air") as d:
        d.ctl("sleep", "gone")
        d.ctl("tokenize", "some text")
        d.ctl("render", "-", stdin=b'{"messages":[{"role":"user","content":"x"}]}')
        assert rung(d) == "gone"  # a request wakes what it needs and no more
        assert json.loads(d.ctl("wake", "--json"))["rung"] == "quiet"
        assert d.status()["state"] == "ready"


def idleness_leads_down_the_ladder():
    with Daemon("air", "IdlePark=1", "IdleExit=3") as d:
        want = answer(d)
        wait_for(lambda: power(d).get("next") == "parked", 5, "what comes next")
        on_rung(d, "parked")
        assert power(d)["next"] == "gone"
        on_rung(d, "gone")
        assert "next" not in power(d)
        assert answer(d) == want
        on_rung(d, "parked")


class Configured(Daemon):
    """One whose settings are in a file that the test changes."""

    def command(self):
        return [str(STEAMD), "--config", str(self.dir / "conf"), "--socket", str(self.socket),
                "--state", str(self.dir / "state")]

    def write(self, *lines):
        (self.dir / "conf").write_text("\n".join(["[steamd]", f"Model={self.model}", *lines, ""]))


def idle_times_change_with_a_reload():
    d = Configured("air")
    d.write("IdlePark=3600")
    with d:
        assert power(d)["next"] == "parked" and power(d)["next_in_ms"] > 3000000, power(d)
        d.write("IdlePark=1")
        d.ctl("reload")
        on_rung(d, "parked")
        d.write("IdleExit=1")
        d.ctl("reload")
        on_rung(d, "gone")
        d.write()
        d.ctl("reload")
        d.ctl("wake")
        assert "next" not in power(d)


def requests_that_come_while_it_parks_are_answered():
    rounds = 5 if SANITIZED else 30
    with Daemon("air") as d:
        want = answer(d)
        for i in range(rounds):
            sleep = d.popen("sleep", "gone" if i % 3 == 2 else "parked", stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL)
            time.sleep(0.0007 * (i % 10))
            requests = [begin(d, N) for _ in range(3)]
            assert all(end(r) == want for r in requests), i
            assert sleep.wait(30) == 0, i


def a_running_answer_is_finished_before_it_sleeps():
    with Daemon("air") as d:
        n = 300 if SANITIZED else 700
        want = answer(d, n)
        request = begin(d, n)
        wait_for(lambda: d.status()["load"]["running"], 10, "the turn")
        assert d.ctl("sleep") == b"parked\n"
        assert "waiting for answers: 1 being computed, 0 queued; 'sleep --now' pauses them" in d.last_stderr, d.last_stderr
        assert request.wait(20) == 0
        assert json.loads(request.stdout.read().splitlines()[-1])["ids"] == want
        assert rung(d) == "parked"


def sleep_now_pauses_answers_until_there_is_another_request_or_a_wake_up():
    n = 300 if SANITIZED else 1500
    with Daemon("air") as d:
        want = answer(d, n)
        for how, wake in (("parked", True), ("gone", True), ("parked", False), ("gone", False)):
            request = begin(d, n)
            wait_for(lambda: d.status()["load"]["running"], 10, "the turn")
            assert d.ctl("sleep", how, "--now").decode() == how + "\n"
            assert request.poll() is None and rung(d) == how
            time.sleep(0.3)
            assert request.poll() is None and rung(d) == how  # what pauses wakes nobody up
            if wake:
                d.ctl("wake")
            else:
                answer(d)
            out = end_whole(request)
            assert out["ids"] == want
            assert out["usage"].get("recomputed_tokens", 0) == 0, out["usage"]


def nothing_fails_because_it_came_while_asleep():
    ids = json.dumps(PROMPT["ids"]).encode()
    chat = b'{"messages":[{"role":"user","content":"x"}]}'
    kinds = [
        (("ask", "--json", "-n", 2, "hello"), b""),
        (("ask", "--json", "-n", 2, "--session", "talk", "hello"), b""),
        (("complete", "--ids", "--json", "-n", 2), ids),
        (("score", "--ids", "--json"), ids),
        (("tokenize", "text"), b""),
        (("detokenize", "5"), b""),
        (("render", "-"), chat),
        (("session", "list"), b""),
        (("session", "show", "kept"), b""),
        (("session", "new", "other"), b""),
        (("session", "fork", "kept", "copy"), b""),
        (("session", "pin", "copy"), b""),
        (("session", "rm", "copy"), b""),
        (("session", "rm", "other"), b""),
        (("cache", "explain", "--json", "kept"), b""),
        (("status", "--json"), b""),
        (("ps", "--json"), b""),
        (("models",), b""),
        (("reload",), b""),
    ]
    with Daemon("air", "ChatTemplate=glm47", "DiskCache=yes") as d:
        d.ctl("ask", "--json", "-n", 2, "--session", "kept", "hello")
        for how in ("parked", "gone"):
            for command, stdin in kinds:
                d.ctl("sleep", how)
                assert rung(d) == how
                d.ctl(*command, stdin=stdin)
                # a request wakes what it needs: what computes nothing wakes nothing
                assert (rung(d) == "quiet") == (command[0] in ("ask", "complete", "score")), (command, rung(d))
            held = power(d)["held"]
            assert held["kv_disk_bytes"] >= 0 and held["kv_arena_bytes"] > 0, held


def timers(pid):
    """Those that are armed."""
    n = 0
    for fd in pathlib.Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            text = fd.read_text()
            n += "clockid:" in text and "it_value: (0, 0)" not in text
    return n


def no_timer_is_armed_but_that_of_the_next_rung():
    with Daemon("air") as d:
        answer(d)
        for how in ("quiet", "parked", "gone"):
            d.ctl("sleep", how)
            wait_for(lambda: timers(d.process.pid) == 0, 10, f"no timer on the rung {how}")
    with Daemon("air", "IdleExit=3600") as d:
        answer(d)
        wait_for(lambda: timers(d.process.pid) == 1, 10, "the timer of the next rung alone")
        d.ctl("sleep", "gone")
        wait_for(lambda: timers(d.process.pid) == 0, 10, "no timer on the last rung")


def a_long_text_leaves_the_broker_as_small_as_it_was():
    if SANITIZED:
        raise Skip("what is freed is kept there")
    with Daemon("air") as d:
        before = power(d)["held"]["broker_bytes"]
        for i in range(2):
            d.ctl("ask", "--session", f"talk{i}", stdin=b"word " * (2 << 20), code=65)
        after = power(d)["held"]["broker_bytes"]
        assert after < before + (8 << 20), (before, after)


def progress_is_told_to_who_waits_for_the_wake_up():
    spec = importlib.util.spec_from_file_location("wire", SRC / "tests" / "e2e" / "test-wire.py")
    wire = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(wire)
    with Daemon("air") as d:
        want = answer(d)
        for how in ("parked", "gone"):
            d.ctl("sleep", how)
            w = wire.Wire(d)
            w.send(wire.GENERATE, 7, wire.request(PROMPT, N))
            states, ids = [], []
            while True:
                kind, _, fields = w.receive()
                if kind == wire.PROGRESS:
                    states.append((fields["state"], fields.get("done")))
                elif kind == wire.TOKENS:
                    ids += struct.unpack(f"<{len(fields['ids']) // 4}I", fields["ids"])
                elif kind == wire.DONE:
                    break
                else:
                    assert kind == wire.ACCEPTED, (kind, fields)
            assert ids == want
            loads = [done for state, done in states if state == "loading"]
            assert loads and loads == sorted(loads), states
            assert not any(state == "restarting" for state, _ in states), states
            w.close()


def on_terminal(d, *args, stdin=b""):
    """What a command writes to stdout, and to a terminal as stderr."""
    master, slave = pty.openpty()
    p = d.popen(*args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=slave)
    os.close(slave)
    out, _ = p.communicate(stdin, timeout=30)
    assert p.returncode == 0, out
    seen = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while data := os.read(master, 65536):
            seen += data
    os.close(master)
    return out, seen


def a_person_sees_the_wake_up_and_a_script_does_not():
    complete = ("complete", "--ids", "--temperature", "0", "--max-tokens", "3", "--ignore-eos")
    ids = json.dumps(PROMPT["ids"]).encode()
    with Daemon("air") as d:
        d.complete([5, 6, 7], 1)
        for how in ("parked", "gone"):
            for args, stdin in ((("wake",), b""), (complete, ids)):
                d.ctl("sleep", how)
                out, seen = on_terminal(d, *args, stdin=stdin)
                assert b"loading" in seen, (args, seen)
                assert b"%" not in seen.rsplit(b"\r\x1b[K", 1)[1], seen  # and nothing of it stays
                assert b"loading" not in out and (args != ("wake",) or out == b"quiet\n"), out
                for more in ((), ("--json",)):
                    d.ctl("sleep", how)
                    out = d.ctl(*args, *more, stdin=stdin)
                    assert "loading" not in d.last_stderr and b"loading" not in out, (d.last_stderr, out)
                    if args == ("wake",):
                        assert out == (b'{"rung":"quiet"}\n' if more else b"quiet\n"), out


def a_kill_while_it_wakes_costs_time_and_nothing_else():
    rounds = 4 if SANITIZED else 25
    with Daemon("air") as d:
        want = answer(d)
        for i in range(rounds):
            left = None if i % 2 else d.executor()  # it may still be leaving when the next one comes
            d.ctl("sleep", "parked" if i % 2 else "gone")
            request = begin(d, N)
            victim = wait_for(lambda: set(children(d.process.pid)) - {left}, 10, "an executor").pop()
            time.sleep(0.001 * (i % 12))
            os.kill(victim, signal.SIGKILL)
            assert end(request) == want, i
            wait_for(lambda: d.status()["state"] == "ready", 20, "an executor")


def a_kill_in_its_sleep_leaves_it_asleep():
    with Daemon("air") as d:
        want = answer(d)
        d.ctl("sleep")
        os.kill(d.executor(), signal.SIGKILL)
        on_rung(d, "gone")
        assert d.status()["executor"]["deaths"] == 0
        assert answer(d) == want


def a_lease_lasts_as_long_as_its_process():
    with Daemon("air") as d:
        want = answer(d)
        holder = subprocess.Popen(["sleep", "1000"])
        try:
            out = json.loads(d.ctl("yield", "3M", "--for-pid", holder.pid, "--json"))
            assert out["freed_bytes"] >= 3 << 20 and out["rung"] == "parked", out
            assert power(d)["leases"] == 1 and power(d)["leased_bytes"] == 3 << 20, power(d)
            assert answer(d) == want  # slower, never failed
            on_rung(d, "parked")      # and down again by itself
        finally:
            holder.kill()
            holder.wait()
        wait_for(lambda: power(d)["leases"] == 0, 10, "the lease's end")
        assert d.ctl("yield", "1G", "--for-pid", holder.pid, code=66) == b""
        assert f"there is no process {holder.pid}" in d.last_stderr, d.last_stderr


def a_lease_without_a_process_lasts_as_long_as_its_connection():
    with Daemon("air") as d:
        holder = d.popen("yield", "3M", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert b"kept free until this connection ends" in holder.stderr.readline()
        assert power(d)["leases"] == 1 and rung(d) == "parked", power(d)
        holder.send_signal(signal.SIGINT)
        assert holder.wait(10) == 0
        wait_for(lambda: power(d)["leases"] == 0, 10, "the lease's end")
        d.ctl("wake")  # or there would be nothing to give
        holder = d.popen("yield", "3M", "--json", stdout=subprocess.PIPE)
        held = json.loads(holder.stdout.readline())
        assert held["state"] == "yielded" and held["freed_mib"] >= 3 and held["wanted_mib"] == 3, held
        d.ctl("wake")
        assert json.loads(holder.stdout.read())["lease"] == "ended: it was woken up"
        assert holder.wait(10) == 0 and power(d)["leases"] == 0


def sleep_and_yield_are_for_administrators():
    if os.geteuid() != 0:
        raise Skip("several uids need root")
    with Daemon("air", socket_mode="0666") as d:
        d.ctl("sleep", uid=4001, code=77)
        assert "may not send the daemon to sleep" in d.last_stderr, d.last_stderr
        d.ctl("yield", "1G", uid=4001, code=77)
        d.ctl("sleep")
        d.ctl("wake", uid=4001)  # as a request would
        holder = subprocess.Popen(["sleep", "1000"])
        try:
            d.ctl("yield", "3M", "--for-pid", holder.pid)
            d.ctl("wake", uid=4001, code=77)
            assert "may not end the leases of memory that was yielded" in d.last_stderr, d.last_stderr
            assert power(d)["leases"] == 1, power(d)
            d.ctl("wake")
            assert power(d)["leases"] == 0, power(d)
        finally:
            holder.kill()
            holder.wait()


def what_makes_no_sense_is_said_so():
    with Daemon("air") as d:
        d.ctl("sleep", "deeply", code=64)
        assert "there is no rung 'deeply'; quiet, parked and gone are" in d.last_stderr, d.last_stderr
        d.ctl("sleep", "parked", "gone", code=64)
        d.ctl("yield", code=64)
        d.ctl("yield", "much", code=64)
        assert "yield wants one size" in d.last_stderr, d.last_stderr


def a_model_that_changed_is_refused_until_reload():
    with tempfile.TemporaryDirectory() as dir:
        model = pathlib.Path(dir, "m")
        shutil.copytree(GOLDEN / "air", model)
        file = next(model.glob("*.safetensors"))
        for how in ("parked", "gone"):
            with Daemon(str(model)) as d:
                want = answer(d)
                d.ctl("sleep", how)
                data = bytearray(file.read_bytes())
                data[-1000] ^= 4
                file.write_bytes(data)
                p = begin(d, N, stderr=subprocess.PIPE)
                assert p.wait(30) == 78
                assert b"changed on disk while it slept" in p.stderr.read()
                assert d.status()["state"] == "model-refused"
                d.ctl("wake", code=78)
                d.ctl("reload")
                wait_for(lambda: d.status()["state"] == "ready", 30, "the model as it is")
                assert len(answer(d)) == len(want)
                data[-1000] ^= 4
                file.write_bytes(data)


def a_reload_before_the_wake_up_takes_the_model_as_it_is():
    with tempfile.TemporaryDirectory() as dir:
        model = pathlib.Path(dir, "m")
        shutil.copytree(GOLDEN / "air", model)
        file = next(model.glob("*.safetensors"))
        with Daemon(str(model)) as d:
            n = len(answer(d))
            d.ctl("sleep")
            d.ctl("reload")
            assert rung(d) == "parked"  # nothing had changed
            data = bytearray(file.read_bytes())
            data[-1000] ^= 4
            file.write_bytes(data)
            d.ctl("reload")
            assert len(answer(d)) == n


def memory_pressure_leads_down_the_ladder():
    with tempfile.TemporaryDirectory() as dir:
        fifo = pathlib.Path(dir, "pressure")
        os.mkfifo(fifo)
        ENV["MEMORY_PRESSURE_WATCH"] = str(fifo)
        try:
            with Daemon("air") as d:
                want = answer(d)
                assert power(d)["memory_pressure"] == str(fifo)
                with open(fifo, "wb", buffering=0) as f:
                    # pages that are cheaper to have back than the executor go before it
                    for foot in ({"parked", "gone"}, {"gone"}):
                        wait_for(lambda: rung(d) in foot or f.write(b"x") and False, 20, f"the rung {foot}")
                    f.write(b"x")
                    assert answer(d) == want
        finally:
            ENV["MEMORY_PRESSURE_WATCH"] = "/dev/null"


def the_kernel_s_own_signs_are_watched_unless_the_manager_wants_none():
    with Daemon("air") as d:
        assert power(d)["memory_pressure"] == "off: the service manager wants none"
    del ENV["MEMORY_PRESSURE_WATCH"]
    try:
        with Daemon("air") as d:
            how = power(d)["memory_pressure"]
            if how.startswith("off: "):
                raise Skip(how)
            assert how == "/proc/pressure/memory", how
    finally:
        ENV["MEMORY_PRESSURE_WATCH"] = "/dev/null"


def restart(d, how=signal.SIGKILL):
    d.process.send_signal(how)
    d.again()


def executor_of(d):
    return d.status()["executor"]["pid"]


def a_restarted_broker_finds_it_asleep():
    for how in (signal.SIGKILL, signal.SIGTERM):
        with Stored("air") as d:
            want = answer(d)
            executor = executor_of(d)
            d.ctl("sleep")
            restart(d, how)
            on_rung(d, "parked")
            assert power(d)["rungs"]["parked"]["frees_bytes"] > 1000000
            assert answer(d) == want
            assert executor_of(d) == executor, "the parked process woke up"
            d.ctl("sleep", "gone")
            restart(d, how)
            on_rung(d, "gone")
            assert answer(d) == want


def a_broker_that_dies_while_it_goes_down_or_up_is_followed_by_one_that_goes_on():
    rounds = 4 if SANITIZED else 16
    with Stored("air") as d:
        want = answer(d)
        for i in range(rounds):
            if i % 2:
                d.ctl("sleep", "parked" if i % 4 == 1 else "gone")
            busy = d.popen("wake" if i % 2 else "sleep", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(0.001 * (i % 8))
            restart(d)
            assert answer(d) == want, i
            busy.kill()
            busy.wait()


def a_lease_outlives_the_broker():
    with Stored("air") as d:
        want = answer(d)
        holder = subprocess.Popen(["sleep", "1000"])
        try:
            d.ctl("yield", "3M", "--for-pid", holder.pid)
            restart(d)
            on_rung(d, "parked")
            assert power(d)["leases"] == 1 and power(d)["leased_bytes"] == 3 << 20, power(d)
            assert answer(d) == want
            on_rung(d, "parked")  # what was yielded stays yielded
        finally:
            holder.kill()
            holder.wait()
        wait_for(lambda: power(d)["leases"] == 0, 10, "the lease's end")
        wait_for(lambda: not any(e[0].startswith("lease-") for e in d.store), 10, "an empty store")


def whatever_happens_at_random_moments_no_answer_changes():
    """Clients ask all the time; rungs, leases, pressure, kills and restarts come in between."""
    seed = int(os.environ.get("SLEEP_SEED", time.time_ns() % 100000))
    print(f"seed {seed}")  # SLEEP_SEED=… does the same again, as far as processes do
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as dir:
        ENV["MEMORY_PRESSURE_WATCH"] = os.path.join(dir, "pressure")
        os.mkfifo(ENV["MEMORY_PRESSURE_WATCH"])
        try:
            with Stored("air", "IdlePark=1", "IdleExit=2") as d, open(ENV["MEMORY_PRESSURE_WATCH"], "wb", 0) as pressure:
                disturb(d, rng, pressure, 8)
        finally:
            ENV["MEMORY_PRESSURE_WATCH"] = "/dev/null"


def disturb(d, rng, pressure, seconds):
    want = {n: answer(d, n) for n in (5, 40, 200)}
    over, wrong, counts, begun = threading.Event(), [], [0], []

    def ask(own):
        while not over.is_set():
            n = own.choice(list(want))
            try:
                p = begin(d, n, stderr=subprocess.DEVNULL)
            except BrokenPipeError:
                continue  # it had nobody to talk to
            out = p.stdout.read()
            code = p.wait(60)
            if code == 0 and json.loads(out.splitlines()[-1])["ids"] == want[n]:
                counts[0] += 1
            elif code in (69, 75):  # without systemd there is no socket while nobody listens
                over.wait(0.1)
            else:
                wrong.append((n, code))
            if own.random() < 0.2:
                over.wait(own.uniform(0, 2.5))

    def start(*command, program=d.popen):
        begun.append(program(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        return begun[-1].pid

    clients = [threading.Thread(target=ask, args=(random.Random(rng.random()),), daemon=True) for _ in range(3)]
    for c in clients:
        c.start()
    end_at = time.monotonic() + seconds
    while time.monotonic() < end_at and not wrong:
        what = rng.randrange(7)
        if what < 2:
            start("sleep", ("parked", "gone")[what])
        elif what == 2:
            start("wake")
        elif what == 3:
            pressure.write(b"x")
        elif what == 4:
            start("yield", "3M", "--for-pid", start(["sleep", "2"], program=subprocess.Popen))
        elif what == 5:
            pid = d.status().get("executor", {}).get("pid", 0)
            if pid and rng.random() < 0.3:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        elif rng.random() < 0.5:
            restart(d, rng.choice((signal.SIGKILL, signal.SIGTERM)))
        time.sleep(rng.choice((0, 0.01, 0.05, 0.3, 1.2)))
    over.set()
    for c in clients:
        c.join(90)
    for p in begun:
        p.kill()
        p.wait()
    assert not wrong, wrong
    assert not any(c.is_alive() for c in clients), "an answer did not come"
    assert counts[0] > 0


def the_status_line_tells_of_the_sleep():
    with Stored("air") as d:
        answer(d)
        d.ctl("sleep")
        wait_for(lambda: any("STATUS=Asleep (parked): " in m for m in d.messages), 10, "the status line")
        answer(d)
        assert any("STATUS=Serving" in m for m in d.messages[-20:]), d.messages[-20:]


class Bus:
    """A private system bus with python-dbusmock's logind."""

    def __enter__(self):
        python = "/usr/bin/python3"
        if not shutil.which("dbus-daemon") or \
                subprocess.run([python, "-c", "import dbusmock.templates.logind"], capture_output=True).returncode:
            raise Skip("no dbus-daemon or no python3-dbusmock")
        self.dir = tempfile.mkdtemp(prefix="steamd-bus-")
        address = f"unix:path={self.dir}/bus"
        pathlib.Path(self.dir, "conf").write_text(
            '<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" '
            '"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">'
            f'<busconfig><type>custom</type><listen>{address}</listen><auth>EXTERNAL</auth>'
            '<policy context="default"><allow user="*"/><allow send_destination="*" eavesdrop="true"/>'
            '<allow eavesdrop="true"/><allow own="*"/></policy></busconfig>')
        self.daemon = subprocess.Popen(["dbus-daemon", f"--config-file={self.dir}/conf", "--nofork", "--nopidfile"],
                                       stderr=subprocess.DEVNULL)
        wait_for(lambda: pathlib.Path(self.dir, "bus").exists(), 10, "the bus")
        ENV["DBUS_SYSTEM_BUS_ADDRESS"] = address
        self.mock = subprocess.Popen([python, "-m", "dbusmock", "--system", "--template", "logind"], env=ENV,
                                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: self.call("Manager.ListInhibitors", ok=False) is not None, 20, "logind")
        return self

    def __exit__(self, *args):
        ENV["DBUS_SYSTEM_BUS_ADDRESS"] = "unix:path=/nonexistent"
        for p in (self.mock, self.daemon):
            p.terminate()
            p.wait()
        shutil.rmtree(self.dir, ignore_errors=True)

    def call(self, method, *args, interface="org.freedesktop.login1.", ok=True):
        p = subprocess.run(["busctl", f"--address=unix:path={self.dir}/bus", "call", "org.freedesktop.login1",
                            "/org/freedesktop/login1", interface + method.rsplit(".", 1)[0],
                            method.rsplit(".", 1)[1], *args], capture_output=True, env=ENV)
        if p.returncode and ok:
            raise AssertionError(p.stderr)
        return None if p.returncode else p.stdout.decode()

    def inhibited(self):
        return '"steamd"' in self.call("Manager.ListInhibitors")

    def prepare(self, asleep):
        self.call("DBus.Mock.EmitSignal", "sssav", "org.freedesktop.login1.Manager", "PrepareForSleep", "b", "1", "b",
                  "true" if asleep else "false", interface="org.freedesktop.")


def before_suspend_it_is_made_safe_and_streams_go_on_after_it():
    with Bus() as bus, Daemon("air") as d:
        n = 300 if SANITIZED else 1500
        want = answer(d, n)
        wait_for(bus.inhibited, 10, "the inhibitor")
        assert power(d)["suspend"] == "logind waits for us"
        request = begin(d, n)
        wait_for(lambda: d.status()["load"]["running"], 10, "the turn")
        bus.prepare(True)
        wait_for(lambda: not bus.inhibited(), 10, "the inhibitor's release")
        assert rung(d) == "gone" and request.poll() is None
        wait_for(lambda: not children(d.process.pid), 10, "the executor's end")
        bus.prepare(False)
        out = end_whole(request)
        assert out["ids"] == want
        assert out["usage"].get("recomputed_tokens", 0) == 0, out["usage"]  # it was sealed to its last token
        wait_for(bus.inhibited, 10, "the inhibitor, again")
        assert rung(d) == "quiet"
        wait_for(lambda: is_still(d.process.pid, 0.3), 10, "the end of all that was begun")
        assert is_still(d.process.pid, 2)  # a bus that says nothing wakes nobody


def what_was_computed_before_suspend_is_on_disk_before_the_machine_sleeps():
    with Bus() as bus, Daemon("air", "PageTokens=16") as d:
        wait_for(bus.inhibited, 10, "the inhibitor")
        request = begin(d, 1500)
        wait_for(lambda: d.status()["load"]["running"], 10, "the turn")
        bus.prepare(True)
        wait_for(lambda: not bus.inhibited(), 10, "the inhibitor's release")
        kv = d.status()["kv"]
        assert kv["sealed_pages"] > 2 and kv["written_pages"] >= kv["sealed_pages"] - 1, kv  # the last is a part
        d.process.kill()  # the battery was empty
        d.process.wait()
        request.kill()
        request.wait()
        bus.prepare(False)
        d.log_path.write_text("")
        d.__enter__()
        assert d.complete(PROMPT["ids"], 1)["usage"]["cached_disk"] == 32


def without_logind_the_bus_is_of_no_use_and_no_harm():
    with Bus() as bus:
        bus.mock.terminate()
        bus.mock.wait()
        with Daemon("air") as d:
            wait_for(lambda: power(d)["suspend"].startswith("off: logind: "), 30, "the answer")
            bus.daemon.terminate()
            wait_for(lambda: power(d)["suspend"] == "off: the system bus is gone", 10, "the end of the bus")
            answer(d)


if __name__ == "__main__":
    run([v for k, v in list(globals().items()) if callable(v) and getattr(v, "__module__", "") == "__main__"
         and k not in ("restart", "executor_of", "Bus", "Configured", "power", "rung", "on_rung", "answer", "begin", "end", "end_whole", "timers", "rss", "switches", "is_still", "disturb", "on_terminal")])
