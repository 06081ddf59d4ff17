"""
What is true whoever keeps the broker's descriptors: one list of checks, and no word of how a holder does it.

A check is given a steamd in service and what holds its descriptors, which offers, besides what Client has:

broker(), executor()    process ids; 0: there is none
restart()               as an administrator would; returns when the next broker serves
back(pid)               process pid, a broker, is dead or about to be; returns when the next one serves
stop(), start()         to the end of all its processes, and from none
put(name, fd)           has the broker's holder keep a copy of fd, as if the broker had asked for it
kept()                  how many descriptors it keeps now
log()                   all that was ever logged

The daemon is configured with SETS. The checks share it: each has texts and sessions of its own.
"""
import contextlib
import random

from steamd_e2e import *

PAGE = 16
SETS = ("ChatTemplate=glm47", f"PageTokens={PAGE}", "Context=4096", "KVCacheSize=64M")
LONG = int(os.environ.get("STEAMD_TEST_TOKENS", 300 if SANITIZED else 1500))  # tokens of an answer to be disturbed
PROMPT = 130
FIRST_BYTES = 8  # where a memfd says what it is


def text_of(seed):
    rng = random.Random(seed)
    return [rng.randrange(3, 480) for _ in range(PROMPT)]


def cold(h, seed, n):
    """The answer as computed from the first token on: of a namespace that nobody else uses."""
    said = h.complete(text_of(seed), n, "--label", f"cold-{seed}")
    assert said["usage"]["cached_tokens"] == 0, said["usage"]
    return said["ids"]


def begin(h, seed, n=LONG):
    """A long answer, of which the first words have come."""
    request = h.popen("complete", "--ids", "--json", "--temperature", "0", "--max-tokens", n, "--ignore-eos",
                      stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    request.stdin.write(json.dumps(text_of(seed)).encode())
    request.stdin.close()
    request.stdin = None
    assert request.stdout.readline(), request.communicate()
    return request


def end_whole(request):
    out, err = request.communicate(timeout=60)
    assert request.returncode == 0, err.decode()
    return json.loads(out.splitlines()[-1])


def end(request):
    return end_whole(request)["ids"]


def found(h, seed, want, n):
    """The same prompt once more: the same answer, of @n tokens; returns the usage."""
    said = h.complete(text_of(seed), n, timeout=30)
    assert said["ids"] == want[:n], (seed, said["ids"], want[:n])
    return said["usage"]


def ask(h, name, text, *args, n=12):
    said = h.lines("ask", "--json", "--no-think", "--session", name, "--ignore-eos", "-n", n, "--temperature", "0",
                   *args, text)[-1]
    assert said["session"]["saved"] is True, said
    return said


def turns(h, name):
    return [t["answer"]["content"] for t in json.loads(h.ctl("session", "show", "--json", name))["turn"]
            if "answer" in t]


def rung(h):
    return h.status()["power"]["rung"]


def is_running(pid):
    with contextlib.suppress(OSError):
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
        return stat[stat.rindex(")") + 2] not in "ZX"
    return False


def killed(h):
    pid = h.broker()
    os.kill(pid, signal.SIGKILL)
    h.back(pid)


def damaged(h, name, change, executor=0):
    """The broker is killed (this executor too), and the memfd of this name is another one for the next broker."""
    pid = h.broker()
    dying = [pid, executor] if executor else [pid]
    for victim in dying:
        os.kill(victim, signal.SIGSTOP)
    for fd in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        if os.readlink(fd) == f"/memfd:{name} (deleted)":
            with open(fd, "r+b", buffering=0) as file:
                change(file)
            break
    else:
        raise AssertionError(f"the broker has no memfd {name}")
    for victim in dying:
        os.kill(victim, signal.SIGKILL)
    h.back(pid)


def head(file):
    """It does not say any more what it is."""
    was = file.read(FIRST_BYTES)
    file.seek(0)
    file.write(bytes(b ^ 0x55 for b in was))


def everything(file, spared=0):
    """Not a word of it is true; where there is no memory, there is none afterwards."""
    size, at = os.fstat(file.fileno()).st_size - spared, 0
    rng = random.Random(size)
    while at < size:
        try:
            at = os.lseek(file.fileno(), at, os.SEEK_DATA)
        except OSError:  # no more data
            return
        stop = min(os.lseek(file.fileno(), at, os.SEEK_HOLE), size)
        if stop <= at:
            return
        file.seek(at)
        file.write(rng.randbytes(stop - at))
        at = stop


def pages(file):
    """All of the arena but what it says of itself behind its pages."""
    everything(file, 4096)


def said_since(h, mark):
    return h.log()[mark:]


def goes_on(h, seed, disturb):
    """An answer whose broker is disturbed in the middle, by the same executor; and what was computed is found."""
    want = cold(h, seed, LONG)
    executor, mark = h.executor(), len(h.log())
    request = begin(h, seed)
    assert request.poll() is None, "it ended before it was disturbed"
    disturb(h)
    got = end(request)
    assert got == want, (got, want)
    assert "1 turns taken over" in said_since(h, mark), said_since(h, mark)
    assert h.executor() == executor, "the weights were read again"
    usage = found(h, seed, want, 5)
    assert usage["cached_arena"] == PROMPT - 1 and usage["cached_disk"] == 0, usage


def an_answer_goes_on_over_a_restart(h):
    goes_on(h, 1, lambda h: h.restart())


def an_answer_goes_on_over_a_kill_of_the_broker(h):
    goes_on(h, 2, killed)


def an_answer_goes_on_over_a_kill_of_the_executor(h):
    want = cold(h, 3, LONG)
    broker, executor = h.broker(), h.executor()
    request = begin(h, 3)
    assert request.poll() is None, "it ended before it was disturbed"
    os.kill(executor, signal.SIGKILL)  # early: what it computed of the prompt may not be summed yet
    got = end_whole(request)
    assert got["ids"] == want, (got, want)
    assert got["usage"].get("recomputed_tokens", 0) == 0, got["usage"]
    assert h.broker() == broker and h.executor() not in (0, executor)
    usage = found(h, 3, want, 5)
    assert usage["cached_arena"] == PROMPT - 1 and usage["cached_disk"] == 0, usage
    assert h.status()["kv"]["damaged_pages"] == 0, h.status()["kv"]


def both_killed_at_once_the_answer_goes_on(h):
    want = cold(h, 4, LONG)
    executor = h.executor()
    request = begin(h, 4)
    os.kill(executor, signal.SIGKILL)
    killed(h)
    got = end(request)
    assert got == want, (got, want)
    usage = found(h, 4, want, 5)
    assert usage["cached_arena"] == PROMPT - 1 and usage["cached_disk"] == 0, usage


def a_session_s_next_turn_computes_what_is_new(h):
    for i, disturb in enumerate((lambda h: h.restart(), killed)):
        name = f"next-{i}"
        texts = (f"{i}: the first question", "And the second")
        undisturbed = [ask(h, name, text, "--label", "cold") for text in texts]
        said = [ask(h, name, texts[0])]
        disturb(h)
        said += [ask(h, name, texts[1])]
        for got, want in zip(said, undisturbed):
            assert got["ids"] == want["ids"], (got, want)
        # what a first turn finds is what others asked before; what a second one finds is its first
        for key in ("prompt_tokens", "cached_tokens", "cached_arena", "cached_disk"):
            assert said[1]["usage"][key] == undisturbed[1]["usage"][key], (key, said, undisturbed)
        assert said[1]["usage"]["cached_arena"] > 0, said[1]["usage"]
        assert len(turns(h, name)) == 2


def a_stop_lets_go_of_memory_and_a_start_finds_disk_and_sessions(h):
    want = cold(h, 5, 24)
    found(h, 5, want, 24)
    first = ask(h, "stop", "The first question")
    broker, executor = h.broker(), h.executor()
    assert h.kept() > 0
    h.stop()
    assert h.kept() == 0, h.kept()
    assert h.broker() == 0 and not is_running(broker)
    wait_for(lambda: not is_running(executor), 20, "the executor's end")
    h.start()
    usage = found(h, 5, want, 24)
    assert usage["cached_disk"] == (PROMPT - 1) // PAGE * PAGE and usage["cached_arena"] == 0, usage
    assert turns(h, "stop") == [first["content"]]
    second = ask(h, "stop", "And the second")
    assert second["session"]["turn"] == 2 and second["usage"]["cached_disk"] > 0, second


def an_unknown_descriptor_is_discarded_with_a_line_and_nothing_is_lost(h):
    want = cold(h, 6, 300)
    kept, executor = h.kept(), h.executor()
    for disturb in (lambda h: h.restart(), killed):
        request = begin(h, 6, 300)
        fd = os.memfd_create("foreign")
        mark = len(h.log())
        h.put("foreign", fd)
        os.close(fd)
        assert h.kept() == kept + 1, (h.kept(), kept)
        disturb(h)
        assert end(request) == want
        line = "the descriptor store held 'foreign', which is of no use here: discarded"
        wait_for(lambda: h.kept() == kept, 10, "what was kept before, and no more")
        assert h.executor() == executor
        assert found(h, 6, want, 5)["cached_arena"] == PROMPT - 1
        assert said_since(h, mark).count(line) == 1, said_since(h, mark)


def foreign_descriptors_under_our_names_are_refused(h):
    """They come before ours: what was in memory is not found, all else is."""
    for i, name in enumerate(("arena", "kvdir", "turns", "causes", "ring", "ring-down", "ring-up", "exec-config",
                              "exec-ready", "exec-ctl")):
        want = cold(h, 20 + i, 24)
        found(h, 20 + i, want, 24)
        said = ask(h, f"foreign-{name}", "The first question")["content"]
        fd = os.memfd_create("foreign")
        os.write(fd, b"x" * 4096)
        h.put(name, fd)
        os.close(fd)
        killed(h)
        found(h, 20 + i, want, 24)
        assert turns(h, f"foreign-{name}") == [said], name
        assert ask(h, f"foreign-{name}", "And the second")["session"]["turn"] == 2, name


def a_damaged_directory_or_arena_costs_time_and_nothing_else(h):
    refused = "the stored KV cache is not taken over: "
    for i, (name, change, running, line) in enumerate((
            ("steamd-kvdir", head, False, refused), ("steamd-kvdir", everything, True, refused),
            ("steamd-arena", everything, False, refused),
            ("steamd-arena", pages, False, None), ("steamd-arena", pages, True, None))):
        n = LONG if running else 24
        want = cold(h, 40 + i, n)
        found(h, 40 + i, want, 24)
        executor, mark = h.executor(), len(h.log())
        request = begin(h, 40 + i) if running else None
        # what a living executor computes with is not checked again
        damaged(h, name, change, executor if running and not line else 0)
        if running:
            got = end(request)
            assert got == want, (name, change, got, want)
        found(h, 40 + i, want, 24)
        if line:
            assert said_since(h, mark).count(line) == 1, said_since(h, mark)
        else:
            assert h.status()["kv"]["damaged_pages"] > 0, h.status()["kv"]


VERSIONS = (("steamd-arena", -4096 + 8, "the stored KV cache is not taken over: the KV arena is not"),
            ("steamd-kvdir", 8, "the stored KV cache is not taken over: the KV directory is not"),
            ("steamd-causes", 8, "why KV was lost is forgotten: what was stored of it is damaged, or not"),
            ("steamd-turns", 8, "stored turns are not taken over: the turns' memory is not"),
            ("steamd-steps", 8, "the stored steps are not taken over: the step ring is not"),
            ("steamd-ready", 0, "what was stored of the executor is not taken over: it is damaged, or not"))


def each_memory_of_another_version_is_refused_in_one_sentence(h):
    want = cold(h, 79, 24)
    fd = os.memfd_create("steamd-config")  # the broker does not keep its own open
    os.write(fd, struct.pack("<II", 1, 99) + bytes(16384))
    mark = len(h.log())
    h.put("exec-config", fd)
    os.close(fd)
    killed(h)
    found(h, 79, want, 24)
    line = "nothing stored is taken over: the stored configuration is not of this version of steamd"
    assert said_since(h, mark).count(line) == 1, said_since(h, mark)
    for i, (name, at, line) in enumerate(VERSIONS):
        def other_version(file):
            where = at if at >= 0 else os.fstat(file.fileno()).st_size + at
            was = int.from_bytes(os.pread(file.fileno(), 4, where), "little")
            assert 0 < was < 1 << 16, (name, was)
            os.pwrite(file.fileno(), (was + 1).to_bytes(4, "little"), where)
        want = cold(h, 80 + i, 24)
        said = ask(h, f"version-{name}", "The first question")["content"]
        mark = len(h.log())
        damaged(h, name, other_version)
        found(h, 80 + i, want, 24)
        assert said_since(h, mark).count(f"{line} of this version of steamd") == 1, (name, said_since(h, mark))
        assert turns(h, f"version-{name}") == [said], name


def damaged_turns_are_absent_and_the_rest_is_there(h):
    for i, change in enumerate((head, everything)):
        name = f"turns-{i}"
        first = ask(h, name, "The first question")["content"]
        request = h.popen("ask", "--json", "--no-think", "--session", name, "--ignore-eos", "-n", LONG, "And the second",
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert request.stdout.readline()
        mark = len(h.log())
        damaged(h, "steamd-turns", change)
        _, err = request.communicate(timeout=60)
        assert request.returncode in (66, 69, 75), (request.returncode, err)
        assert said_since(h, mark).count("stored turns are not taken over: ") == 1, said_since(h, mark)
        assert turns(h, name) == [first]
        assert ask(h, name, "And the second")["session"]["turn"] == 2


def sleep_outlives_a_restart(h):
    want = cold(h, 60, 24)
    found(h, 60, want, 24)
    for disturb in (lambda h: h.restart(), killed):
        executor = h.executor()
        assert h.ctl("sleep", "parked") == b"parked\n"
        disturb(h)
        wait_for(lambda: rung(h) == "parked", 20, "the rung parked")
        usage = found(h, 60, want, 24)
        assert usage["cached_arena"] == PROMPT - 1, usage
        assert h.executor() == executor, "the parked executor was not taken over"
        assert h.ctl("sleep", "gone") == b"gone\n"
        wait_for(lambda: not is_running(executor), 20, "the executor's end")
        disturb(h)
        wait_for(lambda: rung(h) == "gone", 20, "the rung gone")
        assert h.executor() == 0
        usage = found(h, 60, want, 24)
        assert usage["cached_arena"] == PROMPT - 1, usage


def answers_that_pause_stay_paused_over_a_restart(h):
    want = cold(h, 61, LONG)
    for disturb in (lambda h: h.restart(), killed):
        for rung_name in ("parked", "gone"):
            request = begin(h, 61)
            assert h.ctl("sleep", rung_name, "--now").decode() == rung_name + "\n"
            disturb(h)
            wait_for(lambda: rung(h) == rung_name, 20, f"the rung {rung_name}")
            time.sleep(0.5)
            assert rung(h) == rung_name and request.poll() is None, (rung(h), request.poll())
            h.ctl("wake")
            got = end(request)
            assert got == want, (got, want)


def a_lease_lasts_as_long_as_its_process_whoever_serves(h):
    kept = h.kept()
    holder = subprocess.Popen(["sleep", "1000"])
    try:
        h.ctl("yield", "3M", "--for-pid", holder.pid)
        for disturb in (lambda h: h.restart(), killed):
            disturb(h)
            power = h.status()["power"]
            assert power["leases"] == 1 and power["leased_bytes"] == 3 << 20, power
    finally:
        holder.kill()
        holder.wait()
    wait_for(lambda: h.status()["power"]["leases"] == 0, 10, "the lease's end")
    h.ctl("wake")
    wait_for(lambda: h.kept() == kept, 10, "what was kept before, and no more")


CHECKS = (an_answer_goes_on_over_a_restart, an_answer_goes_on_over_a_kill_of_the_broker,
          an_answer_goes_on_over_a_kill_of_the_executor, both_killed_at_once_the_answer_goes_on,
          a_session_s_next_turn_computes_what_is_new, a_stop_lets_go_of_memory_and_a_start_finds_disk_and_sessions,
          an_unknown_descriptor_is_discarded_with_a_line_and_nothing_is_lost,
          foreign_descriptors_under_our_names_are_refused, a_damaged_directory_or_arena_costs_time_and_nothing_else,
          each_memory_of_another_version_is_refused_in_one_sentence,
          damaged_turns_are_absent_and_the_rest_is_there, sleep_outlives_a_restart,
          answers_that_pause_stay_paused_over_a_restart, a_lease_lasts_as_long_as_its_process_whoever_serves)


def named(check, h):
    """The check as run() takes it."""
    def test():
        check(h)
    test.__name__ = check.__name__
    return test


def run_all(h):
    run([named(check, h) for check in CHECKS])
