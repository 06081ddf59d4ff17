#!/usr/bin/env python3
"""
What users see when processes die, clients stall, and others share the machine.

ROUNDS=200: so many deaths of the executor. SEED=n: at the moments of that run.
"""
import random
import threading

from kvpages import Recomputed
from steamd_e2e import *

SEED = int(os.environ.get("SEED", random.randrange(1 << 32)))
ROUNDS = int(os.environ.get("ROUNDS", 10 if SANITIZED else 50))


def reference(d, p, n):
    return d.complete(p["ids"], n)["ids"]


def is_followed(d, victim):
    now = children(d.process.pid)  # asked once: it may end, or begin, between two looks
    return now and victim not in now


def requests_survive_the_executor_s_death_unchanged():
    p = prompt("air", "t33")
    n = 100 if SANITIZED else 800
    print(f"SEED={SEED} ROUNDS={ROUNDS}")
    rng = random.Random(SEED)
    n_during = n_compared = 0
    sets = ("PageTokens=16",)
    with Daemon("air", *sets) as d, Recomputed("air", *sets) as again:
        want = reference(d, p, n)
        for i in range(ROUNDS):
            request = d.popen("complete", "--ids", "--json", "--temperature", "0", "--max-tokens", n,
                              "--ignore-eos", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            victim = d.executor()
            request.stdin.write(json.dumps(p["ids"]).encode())
            request.stdin.close()
            for _ in range(rng.randrange(8)):  # so many pieces of it have come
                assert request.stdout.readline()
            n_during += request.poll() is None
            os.kill(victim, signal.SIGKILL)
            out = request.stdout.read()
            assert request.wait(60) == 0, i
            assert json.loads(out.splitlines()[-1])["ids"] == want, i
            # a request that was over before the kill does not wait for the next executor
            wait_for(lambda: is_followed(d, victim), 20, "a new executor")
            n_compared += again.compare(d, n // 16)
        print(f"{n_during} of {ROUNDS} deaths while it was asked; none changed an answer, or one of {n_compared} pages")
        assert n_during > ROUNDS // 2, n_during


def a_request_in_flight_at_deaths_in_a_row_is_told_so():
    p = prompt("air", "t33")
    with Daemon("air") as d:
        # a pipe that nobody reads would be full before the third death
        out = open(d.dir / "out", "w+b")
        request = d.popen("complete", "--ids", "--json", "--temperature", "0", "--max-tokens", 20000, "--ignore-eos",
                          stdin=subprocess.PIPE, stdout=out, stderr=subprocess.PIPE)
        request.stdin.write(json.dumps(p["ids"]).encode())
        request.stdin.close()
        killed = set()
        end = time.monotonic() + 60
        while request.poll() is None and time.monotonic() < end:
            for pid in children(d.process.pid):
                if pid not in killed and d.status()["state"] == "ready" and \
                        any(t["state"] == "running" for t in json.loads(d.ctl("ps", "--json"))["turns"]):
                    time.sleep(0.1)
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
            time.sleep(0.02)
        assert request.poll() == 70, (request.poll(), request.stderr.read())
        assert b"executor" in request.stderr.read()
        # what it cost until then is told
        with out:
            out.seek(0)
            lines = [json.loads(line) for line in out]
        last = lines[-1]
        assert last["finish"] == "error" and last["error"]["code"] == "exec-fault", last["error"]
        assert last["usage"]["prompt_tokens"] == len(p["ids"]), last["usage"]
        assert last["usage"]["completion_tokens"] == len(last["ids"]) > 0, last["usage"]
        # and the next one is served as ever, after the third death's back-off
        wait_for(lambda: d.status()["state"] == "ready", 20, "an executor")
        assert len(d.complete(p["ids"], 4)["ids"]) == 4


def the_executor_leaves_when_the_broker_dies():
    with Daemon("air") as d:
        executor = d.executor()
        d.process.kill()
        wait_for(lambda: not pathlib.Path(f"/proc/{executor}").exists() or
                 "\nState:\tZ" in pathlib.Path(f"/proc/{executor}/status").read_text(), 5, "the executor's end")
        d.process.wait()
        d.log_path.write_text("")
        d.__enter__()


def a_closed_stdout_cancels_the_request():
    p = prompt("air", "t33")
    with Daemon("air") as d:
        request = d.popen("complete", "--ids", "--temperature", "0", "--max-tokens", 50000, "--ignore-eos",
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        request.stdin.write(json.dumps(p["ids"]).encode())
        request.stdin.close()
        request.stdout.read(1)
        request.stdout.close()
        request.wait(20)
        wait_for(lambda: not json.loads(d.ctl("ps", "--json"))["turns"], 10, "the turn's end")


def cancel_ends_a_turn_for_its_owner():
    p = prompt("air", "t33")
    with Daemon("air") as d:
        request = d.popen("complete", "--ids", "--json", "--temperature", "0", "--max-tokens", 50000, "--ignore-eos",
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        request.stdin.write(json.dumps(p["ids"]).encode())
        request.stdin.close()
        turn = wait_for(lambda: json.loads(d.ctl("ps", "--json"))["turns"], 10, "a turn")[0]["turn"]
        d.ctl("cancel", turn)
        assert request.wait(20) != 0


def need_root():
    if os.geteuid() != 0:
        raise Skip("several uids need root")


def ten_clients_of_three_users_share_while_one_reader_stalls():
    need_root()
    p = prompt("air", "t33")
    n = 100 if SANITIZED else 300
    sets = ("PageTokens=16",)
    with Daemon("air", *sets, socket_mode="0666") as d, Recomputed("air", *sets) as again:
        want = reference(d, p, n)
        stalled = d.popen("complete", "--ids", "--temperature", "0", "--max-tokens", 40000, "--ignore-eos",
                          uid=4001, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        stalled.stdin.write(json.dumps(p["ids"]).encode())
        stalled.stdin.close()
        stalled.stdout.read(1)
        os.kill(stalled.pid, signal.SIGSTOP)
        results, threads = [], []

        def ask(i):
            out = d.lines("complete", "--ids", "--json", "--temperature", "0", "--max-tokens", n, "--ignore-eos",
                          stdin=json.dumps(p["ids"]).encode(), uid=4001 + i % 3)
            results.append(out[-1]["ids"])

        for i in range(9):
            threads.append(threading.Thread(target=ask, args=(i,)))
            threads[-1].start()
        for t in threads:
            t.join()
        assert results == [want] * 9, "an answer depended on who else was asking"
        # the stalled reader pauses its own turn only: it ends up out of credit, not in memory
        turns = wait_for(lambda: [t for t in json.loads(d.ctl("ps", "--json"))["turns"]], 10, "the stalled turn")
        assert len(turns) == 1, turns
        os.kill(stalled.pid, signal.SIGCONT)
        stalled.kill()
        wait_for(lambda: not json.loads(d.ctl("ps", "--json"))["turns"], 10, "its end")
        again.compare(d, 3 * (n // 16))


def users_cannot_see_or_cancel_each_other():
    need_root()
    p = prompt("air", "t33")
    with Daemon("air", socket_mode="0666") as d:
        request = d.popen("complete", "--ids", "--temperature", "0", "--max-tokens", 50000, "--ignore-eos",
                          uid=4001, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        request.stdin.write(json.dumps(p["ids"]).encode())
        request.stdin.close()
        turn = wait_for(lambda: json.loads(d.ctl("ps", "--json", uid=4001))["turns"], 10, "a turn")[0]["turn"]
        other = json.loads(d.ctl("ps", "--json", uid=4002))
        assert other["turns"] == [], other
        assert other["others"]["running"] + other["others"]["queued"] + other["others"].get("paused", 0) >= 1, other
        d.ctl("cancel", turn, uid=4002, code=66)  # whose it is, is none of another's business
        d.ctl("reload", uid=4002, code=77)
        d.ctl("cancel", turn)  # root may
        request.wait(20)


def by_hand_the_socket_serves_its_own_user_only():
    need_root()
    with Daemon("air") as d:
        assert os.stat(d.socket).st_mode & 0o777 == 0o600
        d.ctl("status", uid=4001, code=69)


def nothing_wakes_up_while_nothing_is_asked():
    def switches(pid):
        total = 0
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            for line in (task / "status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches") or line.startswith("nonvoluntary_ctxt"):
                    total += int(line.split()[1])
        return total

    with Daemon("air") as d:
        d.complete([5, 6, 7], 4)
        time.sleep(1)
        pids = (d.process.pid, d.executor())
        before = [switches(pid) for pid in pids]
        time.sleep(10)
        assert [switches(pid) for pid in pids] == before, "somebody woke up"


def a_second_daemon_at_the_same_socket_is_refused():
    with Daemon("air") as d:
        p = subprocess.run(d.command(), capture_output=True, timeout=60)
        assert p.returncode not in (0, None) and str(d.socket).encode() in p.stderr, (p.returncode, p.stderr)
        assert d.complete([5], 2)["finish"] == "length"


def reload_applies_what_can_change_and_names_the_rest():
    with tempfile.TemporaryDirectory() as dir:
        path = pathlib.Path(dir, "steamd.conf")
        path.write_text(f"[steamd]\nModel={GOLDEN / 'air'}\nMaxTokens=7\n")

        class Configured(Daemon):
            def command(self):
                return [str(STEAMD), "--config", str(path), "--socket", str(self.socket),
                        "--state", str(self.dir / "state")]

        with Configured("air") as d:
            assert d.lines("complete", "--ids", "--json", "--ignore-eos", stdin=b"[5]")[-1]["usage"][
                "completion_tokens"] == 7
            path.write_text(f"[steamd]\nModel={GOLDEN / 'air'}\nMaxTokens=9\nExecutor=cpu\n")
            report = d.ctl("reload").decode()
            assert "Executor" in report, report
            assert d.lines("complete", "--ids", "--json", "--ignore-eos", stdin=b"[5]")[-1]["usage"][
                "completion_tokens"] == 9
            path.write_text("[steamd]\nMaxTokens=none\n")
            d.ctl("reload", code=64)
            assert "steamd.conf:2" in d.last_stderr, d.last_stderr
            assert d.complete([5], 2)["finish"] == "length"


if __name__ == "__main__":
    run([v for k, v in list(globals().items()) if callable(v) and getattr(v, "__module__", "") == "__main__"
         and k not in ("reference", "need_root", "is_followed")])
