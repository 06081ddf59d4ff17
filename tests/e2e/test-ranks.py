#!/usr/bin/env python3
"""The CPU executor on several ranks, through the real daemon: what it says, keeps and survives."""
import ctypes
import random

from steamd_e2e import *

SEED = int(os.environ.get("SEED", random.randrange(1 << 32)))
ROUNDS = int(os.environ.get("ROUNDS", 3 if SANITIZED else 10))


def threads(pid, name):
    """Of a process, those so named."""
    found = []
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            if (task / "comm").read_text().strip() == name:
                found.append(int(task.name))
        except OSError:
            continue
    return found


def crash(pid, thread):
    """As a fault in that thread would end it, and the process with it; but no sanitizer reports it."""
    return ctypes.CDLL(None).tgkill(pid, thread, int(signal.SIGKILL))


def victims(d):
    """The executor and its other rank, once both are there."""
    executor = d.executor()
    return [(executor, rank) for rank in threads(executor, "rank 1")]


def ask(d, p, n, *args):
    return d.complete(p["ids"], n, *args)["ids"]


def two_ranks_say_what_one_says_greedily_and_by_seed():
    p = prompt("air", "t33")
    said = []
    for ranks in (1, 2):
        # in double the sums of two ranks differ from one's by less than any choice hangs on
        with Daemon("air", "Isa=ref", f"Ranks={ranks}") as d:
            assert len(threads(d.executor(), "rank 1")) == ranks - 1
            said.append([ask(d, p, 40)] +
                        [ask(d, p, 20, "--temperature", "1", "--seed", seed) for seed in range(4)])
    assert said[0] == said[1], said
    assert len({tuple(ids) for ids in said[0][1:]}) > 1, said


def requests_survive_the_death_of_a_rank_unchanged():
    p = prompt("air", "t33")
    n = 100 if SANITIZED else 800
    print(f"SEED={SEED} ROUNDS={ROUNDS}")
    rng = random.Random(SEED)
    n_during = 0
    with Daemon("air", "Ranks=2", "Threads=2") as d:
        want = ask(d, p, n)
        for i in range(ROUNDS):
            request = d.popen("complete", "--ids", "--json", "--temperature", "0", "--max-tokens", n,
                              "--ignore-eos", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            [(victim, rank)] = wait_for(lambda: victims(d), 20, "two ranks")
            request.stdin.write(json.dumps(p["ids"]).encode())
            request.stdin.close()
            for _ in range(rng.randrange(8)):  # so many pieces of it have come
                assert request.stdout.readline()
            n_during += request.poll() is None
            assert crash(victim, rank) == 0
            out = request.stdout.read()
            assert request.wait(60) == 0, i
            assert json.loads(out.splitlines()[-1])["ids"] == want, i
            wait_for(lambda: children(d.process.pid) and victim not in children(d.process.pid), 20, "a new executor")
        print(f"{n_during} of {ROUNDS} deaths while it was asked; none changed an answer")
        assert n_during > ROUNDS // 2, n_during
        assert d.status()["executor"]["starts"] == ROUNDS + 1


def pages_that_one_rank_wrote_to_disk_serve_two():
    p = prompt("air", "r130")
    with Daemon("air", "PageTokens=16", "Isa=ref", "Ranks=1") as d:
        want = ask(d, p, 10)
        d.process.terminate()
        assert d.process.wait(60) == 0, d.log()
        d.sets[-1] = "Ranks=2"
        os.truncate(d.log_path, 0)
        d.__enter__()
        assert len(threads(d.executor(), "rank 1")) == 1
        done = d.complete(p["ids"], 10)
        assert done["ids"] == want, (done["ids"], want)
        assert done["usage"]["cached_disk"] >= 112, done["usage"]


def ranks_that_wait_for_work_do_not_wake():
    p = prompt("air", "t33")
    with Daemon("air", "Ranks=2") as d:
        ask(d, p, 5)
        pid = d.executor()

        def switches():
            return [(task / "status").read_text().split("\nvoluntary_ctxt_switches:")[1].split()[0]
                    for task in sorted(pathlib.Path(f"/proc/{pid}/task").iterdir())]

        def stay():
            before = switches()
            time.sleep(1)
            return switches() == before

        assert wait_for(stay, 10, "a second without a wake-up")


def a_sleeping_model_wakes_up_on_its_ranks():
    p = prompt("air", "t33")
    with Daemon("air", "Ranks=2") as d:
        want = ask(d, p, 20)
        d.ctl("sleep")
        assert ask(d, p, 20) == want


def a_model_that_cannot_be_divided_is_refused_with_the_numbers():
    d = Daemon("air", "Ranks=4")
    try:
        with d:
            raise AssertionError("it is served")
    except AssertionError as e:
        assert "12 heads with 2 heads of keys and values cannot be divided among 4 ranks" in str(e), e
    assert d.process.returncode == 65, d.process.returncode


if __name__ == "__main__":
    run([
        two_ranks_say_what_one_says_greedily_and_by_seed,
        requests_survive_the_death_of_a_rank_unchanged,
        pages_that_one_rank_wrote_to_disk_serve_two,
        ranks_that_wait_for_work_do_not_wake,
        a_sleeping_model_wakes_up_on_its_ranks,
        a_model_that_cannot_be_divided_is_refused_with_the_numbers,
    ])
