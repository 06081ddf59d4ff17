#!/usr/bin/env python3
"""
kill -9 of the broker while sessions are written: with a descriptor store, without one, and at every write.

What is served afterwards is what is computed: every page of the survivor is compared with one computed anew.
"""
import contextlib
import importlib.util
import random
import shutil

from kvpages import Recomputed
from stored import *

SEED = int(os.environ.get("SEED", random.randrange(1 << 32)))
N = 60 if SANITIZED else 300  # tokens of an answer
ROUNDS = int(os.environ.get("ROUNDS", 5 if SANITIZED else 60))


def a_killed_broker_loses_no_turn_that_was_saved_and_has_none_half():
    print(f"SEED={SEED} ROUNDS={ROUNDS}")
    rng = random.Random(SEED)
    resumed = refused = compared = 0
    sets = ("ChatTemplate=glm47", "Context=32768", "PageTokens=16")
    with Stored("air", *sets) as d, Recomputed("air", *sets) as again:
        want = None
        saved = []  # content of turn after turn
        for i in range(ROUNDS):
            p = start(d, "talk", f"Question {i}", N, 1000 + i)
            time.sleep(rng.random() * 0.25)
            d.process.kill()
            d.again()
            said, why = finish(p)
            if said:
                assert said["session"]["saved"] is True, said
                assert said["session"]["turn"] == len(saved) + 1, (said["session"], len(saved))
                assert len(said["ids"]) == N, len(said["ids"])
                saved.append(said["content"])
                resumed += 1
            else:
                # killed while saying hello; or asked again before its first frame came, while that goes on
                assert why[0] in (66, 69, 75), why
                refused += 1
                wait_for(lambda: not json.loads(d.ctl("ps", "--json"))["turns"] or
                         [d.ctl("cancel", t["turn"]) for t in json.loads(d.ctl("ps", "--json"))["turns"]] and None,
                         20, "the turn's end")
                wait_for(lambda: not [t for t in show(d, "talk") if "running" in t] if saved else True, 20, "the end")
            turns = show(d, "talk") if saved else []
            assert [t["answer"]["content"] for t in turns][:len(saved)] == saved, (i, turns)
            assert all(t["finish"] in ("length", "cancelled") for t in turns), turns
            saved = [t["answer"]["content"] for t in turns]
            if len(saved) > 3:
                d.ctl("session", "rewind", "talk", 1)
                del saved[1:]
            if i % 10 == 9:
                compared += again.compare(d)
        compared += again.compare(d, N // 16)
        print(f"{compared} pages compared with computing them anew, bit by bit")
        running = d.log().count("1 turns taken over")
        print(f"{resumed} answers went on, {running} of them running when their broker died; {refused} did not")
        assert resumed >= ROUNDS // 2, (resumed, refused)
        assert d.status()["sessions"]["rows_damaged"] == 0
        # a killed turn says what an undisturbed one says
        d.ctl("session", "fork", "talk", "other", "--turn", 0)
        p = start(d, "other", "Question", N, 7)
        want, _ = finish(p)
        d.ctl("session", "rewind", "other", 0)
        p = start(d, "other", "Question", N, 7)
        p.stdout.readline()
        d.process.kill()
        d.again()
        got, why = finish(p)
        assert got and got["ids"] == want["ids"], why


def without_a_store_of_descriptors_the_turn_is_absent_and_the_rest_there():
    with Daemon("air", "ChatTemplate=glm47") as d:
        said, _ = finish(start(d, "talk", "one", 5, 1))
        p = start(d, "talk", "two", 40000, 2)
        p.stdout.readline()
        fresh = start(d, "fresh", "one", 40000, 2)
        fresh.stdout.readline()
        d.process.kill()
        d.process.wait()
        d.log_path.write_text("")
        d.__enter__()
        assert finish(p)[1][0] == 66 and finish(fresh)[1][0] == 66
        [turn] = show(d, "talk")
        assert turn["answer"]["content"] == said["content"]
        assert [s["name"] for s in json.loads(d.ctl("session", "list", "--json"))["sessions"]] == ["talk"]
        assert d.status()["sessions"]["turns_unfinished"] == 2
        said, _ = finish(start(d, "talk", "two", 5, 1))
        assert said["session"]["turn"] == 2


def an_ended_turn_that_is_still_kept_is_not_taken_for_a_later_one():
    spec = importlib.util.spec_from_file_location("wire", SRC / "tests" / "e2e" / "test-wire.py")
    wire = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(wire)
    question = {"messages": json.dumps({"messages": [{"role": "user", "content": "first"}]}), "max_tokens": 5,
                "ignore_eos": True, "detach": True, "session": "talk", "session_create": True}
    with Stored("air", "ChatTemplate=glm47") as d:
        w = wire.Wire(d)
        w.send(wire.GENERATE, 1, question)
        wire.accepted(w)
        w.close()  # its turn ends, and is kept for a reader that does not come
        wait_for(lambda: any("answer" in t for t in show(d, "talk")), 10, "the answer")
        d.ctl("session", "rewind", "talk", 0)
        p = start(d, "talk", "second", 20 * N, 1)
        p.stdout.readline()
        d.process.kill()
        d.again()
        said, why = finish(p)
        assert said and said["session"]["saved"], why
        [turn] = show(d, "talk")
        assert turn["request"]["messages"][0]["content"] == "second", turn
        assert turn["answer"]["content"] == said["content"], turn


def a_turn_that_was_saved_by_a_broker_that_died_is_called_saved_by_the_next():
    wire = sibling("test-wire")
    question = {"messages": json.dumps({"messages": [{"role": "user", "content": "first"}]}), "max_tokens": 5,
                "ignore_eos": True, "detach": True, "session": "talk", "session_create": True}
    with Stored("air", "ChatTemplate=glm47") as d:
        w = wire.Wire(d)
        w.send(wire.GENERATE, 1, question)
        turn = wire.accepted(w)
        w.close()
        wait_for(lambda: d.status()["sessions"]["turns_saved"] == 1, 10, "the answer")
        d.process.kill()
        d.again()
        w = wire.Wire(d)
        w.send(wire.RESUME, 1, {"turn": turn, "index": 0})
        kind, ids, done = w.until_end()
        assert kind == wire.DONE and len(ids) == 5, (kind, ids)
        assert done["session_turn"] == 1 and done["saved"] is True and "not_saved" not in done, done
        w.close()


def what_was_tidied_in_advance_is_no_turn_of_the_next_broker():
    with Stored("air", "ChatTemplate=glm45", "TidyOver=1", "Isa=ref") as d:
        d.ctl("ask", "--json", "--ignore-eos", "-n", 300, "--seed", 1, "Hello there")
        wait_for(lambda: d.status()["tidy"]["running"], 20, "tidying")
        d.log_path.write_text("")
        d.process.kill()
        d.again()
        wait_for(lambda: "turns taken over" in d.log(), 20, "adoption")
        status = d.status()
        assert status["tidy"]["running"] is False and status["load"]["running"] == 0, status
        assert [t["state"] for t in json.loads(d.ctl("ps", "--json"))["turns"]] in ([], ["ended"])
        want = d.complete([5, 6, 7], 5)["ids"]
        assert d.complete([5, 6, 7], 5)["ids"] == want


def a_turn_that_goes_on_over_a_crash_is_tidied_when_it_ends():
    # one arithmetic: an answer that happens to call a tool is not tidied
    with Stored("air", "ChatTemplate=glm45", "TidyOver=1", "Isa=portable") as d:
        p = d.popen("ask", "--json", "--ignore-eos", "-n", 600, "--seed", 1, "Hello there", stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL)
        p.stdout.readline()
        d.log_path.write_text("")
        d.process.kill()
        d.again()
        out, _ = p.communicate(timeout=60)
        assert p.returncode == 0 and "usage" in json.loads(out.splitlines()[-1]), out[-300:]
        assert "1 turns taken over" in d.log(), d.log()
        wait_for(lambda: d.status()["tidy"]["done"] == 1, 60, "tidying")


def sibling(name):
    spec = importlib.util.spec_from_file_location(name.replace("-", "_"), SRC / "tests" / "e2e" / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def telling_seed(d, n):
    """The seed of an answer whose text a tokenizer would say in another number of ids."""
    sessions = sibling("test-sessions")
    for seed in range(1, 60):
        said = d.lines("ask", "--json", "--no-think", "--ignore-eos", "-n", n, "--seed", seed, "Hello there")[-1]
        again = json.loads(d.ctl("tokenize", "--json", "--no-special", stdin=said["content"].encode()))["ids"]
        if len(again) != n and sessions.is_as_written(d, said["ids"], said["content"]):
            return seed
    raise AssertionError("no seed tells")


def resend(d, said, wire):
    """The whole conversation once more, by a program that knows of no session: tokens of its prompt, and cached."""
    messages = [{"role": "user", "content": "Hello there"}, {"role": "assistant", "content": said["content"]},
                {"role": "user", "content": "And now?"}]
    w = wire.Wire(d)
    w.send(wire.GENERATE, 1, {"messages": json.dumps({"messages": messages, "enable_thinking": False}),
                              "max_tokens": 1, "ignore_eos": True})
    kind, _, done = w.until_end()
    w.close()
    assert kind == wire.DONE, done
    return done["n_prompt"], done["n_cached"]


def a_program_that_sends_all_again_is_understood_by_the_next_broker():
    wire = sibling("test-wire")
    with Daemon("air", "ChatTemplate=glm47") as d:
        seed = telling_seed(d, 12)
    for kind in (Stored, Daemon):  # a crash; and a reboot, after which there is the state directory alone
        with kind("air", "ChatTemplate=glm47") as d:
            said, why = finish(start(d, "talk", "Hello there", 12, seed))
            assert said, why
            want = resend(d, said, wire)
            asked = said["usage"]["prompt_tokens"]
            assert want[1] >= asked + 11, (want, asked)
            d.log_path.write_text("")
            d.process.kill()
            d.process.wait(20)
            d.__enter__()
            wait_for(lambda: d.status()["sessions"]["recalled"] == 1, 20, "the session to be recalled")
            got = resend(d, said, wire)
            assert got[0] == want[0], (kind, got, want)
            if kind is Stored:
                assert got[1] >= want[1], (got, want)
            # what no session keeps is what the tokenizer makes of it
            d.ctl("session", "rm", "talk")
            wait_for(lambda: not json.loads(d.ctl("ps", "--json"))["turns"], 40, "no turn to be taken over")
            d.process.kill()
            d.process.wait(20)
            d.log_path.write_text("")
            d.__enter__()
            wait_for(lambda: d.status()["sessions"]["recalling"] is False, 20, "the recall's end")
            assert resend(d, said, wire)[0] != want[0]


def kill_at(call, when, *args):
    """A command that kills what it runs at its Nth such call."""
    if not shutil.which("strace"):
        raise Skip("strace is not installed")
    if subprocess.run(["strace", "-f", "-e", "trace=none", "true"], capture_output=True).returncode != 0:
        raise Skip("strace may not trace here")
    # one tracer at a time: that of leaks would be a second
    asan = "ASAN_OPTIONS=" + os.environ.get("ASAN_OPTIONS", "") + ":detect_leaks=0"
    return ["env", asan, "strace", "-D", "-f", "-o", "/dev/null", *args,
            "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={when}"]


def kills(d):
    """Those of writes to the database."""
    state = str(d.dir / "state" / "state.db")
    return [kill_at(call, when, "-P", state, "-P", state + "-wal")
            for call in ("pwrite64", "fdatasync", "ftruncate") for when in (1, 2, 3, 6)]


def a_broker_that_is_killed_at_any_word_to_the_service_manager_loses_no_turn():
    with Stored("air", "ChatTemplate=glm47", "PageTokens=16", "Isa=portable") as d:
        want = finish(start(d, "talk", "Question", 10 * N, 1))[0]["ids"]
        for when in range(1, 20):
            d.ctl("session", "rewind", "talk", 0)
            p = start(d, "talk", "Question", 10 * N, 1)
            p.stdout.readline()
            d.process.kill()
            d.process.wait(20)
            d.tracer = kill_at("sendmsg", when)
            with contextlib.suppress(AssertionError):
                d.__enter__()
            ends = []
            reader = threading.Thread(target=lambda p=p, ends=ends: ends.append(finish(p)))
            reader.start()
            wait_for(lambda: ends or d.process.poll() is not None, 60, "an end")
            died = d.process.poll() is not None
            d.process.terminate()
            d.tracer = ()
            d.again()
            reader.join()
            [(said, why)] = ends
            assert said and said["session"]["saved"] is True and said["ids"] == want, (when, why)
            if not died:
                break
        print(f"killed at {when - 1} words")
        assert when > 2, when


def a_turn_whose_broker_is_killed_at_any_write_is_saved_by_the_next():
    n_hit = n_saved = 0
    sets = ("ChatTemplate=glm47", "PageTokens=16")
    with Stored("air", *sets) as d, Recomputed("air", *sets) as again:
        for n, tracer in enumerate(kills(d)):
            d.process.terminate()
            d.tracer = tracer
            with contextlib.suppress(AssertionError):  # it may die at its start
                d.again()
            p = start(d, "talk", "x", 3, n)
            wait_for(lambda: p.poll() is not None or d.process.poll() is not None, 30, "an end")
            n_hit += d.process.poll() is not None
            d.process.terminate()
            d.tracer = ()
            d.again()
            said, why = finish(p)
            if not said:
                # the turn was not begun, or it goes on without its client
                assert why[0] in (66, 69, 75), why
                d.ctl("session", "list")
                continue
            assert said["session"]["saved"] is True, said
            turns = show(d, "talk")
            assert turns[-1]["answer"]["content"] == said["content"], turns
            assert len(turns) == said["session"]["turn"], turns
            d.ctl("session", "rewind", "talk", 0)
            n_saved += 1
            again.compare(d, 0)  # of a turn that was taken over none may be sealed yet
        print(f"{n_hit} kills, {n_saved} turns saved; {len(again.pages)} pages compared")
        assert len(again.pages) > 0
        assert n_hit >= 3 and n_saved >= 8, (n_hit, n_saved)
        assert d.status()["sessions"]["rows_damaged"] == 0


def a_kill_at_any_write_of_the_store_loses_nothing():
    n_hit = 0
    with Daemon("air", "ChatTemplate=glm47") as d:
        saved = []
        plain = d.command()
        for tracer in kills(d):
            d.kill()
            d.command = lambda: [*tracer, *plain]
            d.log_path.write_text("")
            p = None
            with contextlib.suppress(AssertionError):  # it may die at its start
                d.__enter__()
                p = start(d, "talk", "x", 3, len(saved))
                wait_for(lambda: p.poll() is not None or d.process.poll() is not None, 30, "an end")
            n_hit += d.process.poll() is not None
            d.kill()
            d.command = lambda: plain
            d.log_path.write_text("")
            d.__enter__()
            said = finish(p)[0] if p else None
            if said:
                assert said["session"]["saved"] is True
                saved.append(said["content"])
            turns = show(d, "talk") if saved else []
            assert [t["answer"]["content"] for t in turns][:len(saved)] == saved, tracer
            assert len(turns) <= len(saved) + 1 and all("answer" in t for t in turns), (tracer, turns)
            saved = [t["answer"]["content"] for t in turns]
            if len(saved) > 4:
                d.ctl("session", "rewind", "talk", 1)
                del saved[1:]
        print(f"{n_hit} kills")
        assert n_hit >= 3, n_hit


def a_bit_of_the_database_s_log_that_flips_is_told_and_no_turn_is_lost():
    with Daemon("air", "ChatTemplate=glm47") as d:
        said = [finish(start(d, "talk", f"Question {i}", 5, i))[0]["content"] for i in range(4)]
        log = d.dir / "state" / "state.db-wal"
        d.process.kill()
        d.process.wait()
        data = bytearray(log.read_bytes())
        data[32 + 3 * (24 + 4096) + 24 + 4000] ^= 1  # in a page of the fourth frame, and a low bit of a word
        assert len(data) > 32 + 6 * (24 + 4096), len(data)
        log.write_bytes(data)
        d.log_path.write_text("")
        d.__enter__()
        told = d.status()["sessions"]
        assert (told["log_frames_mended"], told["log_frames_lost"], told["databases_set_aside"]) == (1, 0, 0), told
        assert "one bit was wrong in 1 frames" in d.log(), d.log()
        assert [t["answer"]["content"] for t in show(d, "talk")] == said
        # a whole sector of it looks like a power cut: it is told, and what came before it is there
        said += [finish(start(d, "talk", f"Question {i}", 5, i))[0]["content"] for i in range(4, 8)]
        d.process.kill()
        d.process.wait()
        data = bytearray(log.read_bytes())
        at = 32 + 5 * (24 + 4096) + 1024
        data[at:at + 512] = bytes(x ^ 0x55 for x in data[at:at + 512])
        log.write_bytes(data)
        d.log_path.write_text("")
        d.__enter__()
        told = d.status()["sessions"]
        assert (told["log_frames_torn"], told["log_frames_lost"], told["databases_set_aside"]) == (1, 0, 0), told
        assert told["text"] == "", told
        assert "1 frames are torn" in d.log(), d.log()
        kept = [t["answer"]["content"] for t in show(d, "talk") if "answer" in t]
        assert kept and kept == said[:len(kept)], (kept, said)


if __name__ == "__main__":
    run([v for k, v in list(globals().items()) if callable(v) and getattr(v, "__module__", "") == "__main__"
         and k not in ("kills", "kill_at", "sibling", "telling_seed", "resend")])
