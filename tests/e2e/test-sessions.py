#!/usr/bin/env python3
"""Sessions through steamctl and the real daemon: kept over restarts and kills, each user's own."""
import sqlite3

from steamd_e2e import *


def restart(d, sig=signal.SIGTERM):
    d.process.send_signal(sig)
    d.process.wait(20)
    d.log_path.write_text("")
    d.__enter__()


def ask(d, name, text, n, *args, **kwargs):
    return d.lines("ask", "--json", "--no-think", "--session", name, "--ignore-eos", "-n", n, *args, text, **kwargs)[-1]


def sessions(d, **kwargs):
    return json.loads(d.ctl("session", "list", "--json", **kwargs))["sessions"]


def show(d, name, **kwargs):
    return json.loads(d.ctl("session", "show", "--json", name, **kwargs))


def is_as_written(d, ids, content):
    """Whether the template leaves the answer as it is, and a tokenizer would say it in other ids."""
    again = json.loads(d.ctl("tokenize", "--json", "--no-special", stdin=content.encode()))["ids"]
    return content.strip() == content and "\ufffd" not in content and again != ids and all(
        json.loads(d.ctl("detokenize", "--json", "--skip-special", str(i)))["text"] for i in ids)


def first_seed(d, n):
    """Random models say all kinds of things: the seed of an answer that is_as_written()."""
    for seed in range(1, 400):
        said = d.lines("ask", "--json", "--no-think", "--ignore-eos", "-n", n, "--seed", seed, "Hello there")[-1]
        if is_as_written(d, said["ids"], said["content"]):
            return seed
    raise AssertionError("no seed gives a plain answer")


def a_session_goes_on_after_a_restart():
    with Daemon("air", "ChatTemplate=glm47", "Isa=portable") as d:
        first = ask(d, "talk", "Hello there", 12, "--seed", first_seed(d, 12))
        assert first["session"]["turn"] == 1 and first["session"]["saved"] is True, first
        restart(d)
        [listed] = sessions(d)
        assert (listed["name"], listed["turns"], listed["id"]) == ("talk", 1, first["session"]["id"]), listed
        assert listed["tokens"] == first["usage"]["prompt_tokens"] + 12, (listed, first)
        second = ask(d, first["session"]["id"], "And now?", 5, "--seed", 2)
        assert second["session"]["turn"] == 2, second
        said = show(d, "talk")
        # every id of the first turn's prompt and answer begins the second's prompt
        assert said["turn"][1]["n_kept"] == said["turn"][0]["n_ids"] == listed["tokens"], said
        assert [t["request"]["messages"][0]["content"] for t in said["turn"]] == ["Hello there", "And now?"], said
        assert [t["answer"]["content"] for t in said["turn"]] == [first["content"], second["content"]], said


def a_client_that_sends_all_again_goes_on_as_sampled():
    with Daemon("air", "ChatTemplate=glm47") as d:
        seed = first_seed(d, 12)
        rest = d.lines("ask", "--json", "--no-think", "-n", 1, "And now?")[-1]["usage"]["prompt_tokens"] - 2
        lines = d.lines("chat", "--json", "--no-think", "--ignore-eos", "-n", 12, "--seed", seed,
                        stdin=b"Hello there\nAnd now?\n")
        first, second = [line["usage"]["prompt_tokens"] for line in lines if "usage" in line]
        assert second == first + 12 + rest, (first, second, rest)


def reasoning_that_the_template_drops_is_not_kept():
    with Daemon("air", "ChatTemplate=glm47") as d:
        first = d.lines("ask", "--json", "--session", "talk", "--ignore-eos", "-n", 12, "Hello there")[-1]
        ask(d, "talk", "And now?", 3)
        said = show(d, "talk")["turn"]
        assert said[1]["n_kept"] == first["usage"]["prompt_tokens"] - 1, said  # all but the <think> it opens


def the_verbs_do_what_they_say():
    with Daemon("air") as d:
        assert d.ctl("session", "new", "empty", "--temperature", "0") == b"empty\n"
        assert show(d, "empty")["defaults"] == {"temperature": 0.0}
        d.ctl("session", "new", "hot", "--temperature", 200, code=64)
        assert d.last_stderr.endswith("session_new.temperature is 200; 0 to 100 is possible\n"), d.last_stderr
        d.ctl("session", "show", "hot", code=66)
        first = ask(d, "empty", "x", 6)["ids"]
        d.ctl("session", "rewind", "empty", 0)
        assert ask(d, "empty", "x", 6)["ids"] == first, "the session's temperature is 0"
        ask(d, "talk", "one", 3)
        ask(d, "talk", "two", 3)
        d.ctl("session", "fork", "talk", "copy", "--turn", 1)
        assert len(show(d, "copy")["turn"]) == 1
        d.ctl("session", "rename", "copy", "other")
        d.ctl("session", "show", "copy", code=66)
        d.ctl("session", "pin", "other")
        assert {s["name"]: s["pinned"] for s in sessions(d)} == {"empty": False, "talk": False, "other": True}
        path = d.dir / "talk.session"
        d.ctl("session", "export", "talk", path)
        d.ctl("session", "rm", "talk")
        assert d.ctl("session", "import", path) == b"talk\n"
        assert d.last_stderr == "", d.last_stderr
        assert [t["n_ids"] for t in show(d, "talk")["turn"]][0] > 3
        assert d.ctl("session", "import", "-", stdin=path.read_bytes()) == b"talk-2\n"
        assert sorted(d.ctl("session", "list", "--names").split()) == [b"empty", b"other", b"talk", b"talk-2"]
        d.ctl("session", "gc", "--days", 0)
        assert [s["name"] for s in sessions(d)] == ["other"]
        d.ctl("session", "unpin", "other")
        d.ctl("session", "rm", "other")
        assert sessions(d) == []
        d.ctl("session", "forget", "x", code=64)
        d.ctl("session", "fork", "x", code=64)
        path.write_bytes(path.read_bytes()[:-5])
        assert d.ctl("session", "import", path) == b"talk\n"
        assert "the file ends" in d.last_stderr or "are left" in d.last_stderr, d.last_stderr
        path.write_bytes(b"nonsense")
        d.ctl("session", "import", path, code=64)


def a_turn_that_was_refused_leaves_no_session():
    with Daemon("air", "Context=64") as d:
        d.ctl("ask", "--session", "never", "word " * 200, code=65)
        assert sessions(d) == []
        ask(d, "talk", "hi", 3)
        d.ctl("ask", "--session", "talk", "word " * 200, code=65)
        assert len(show(d, "talk")["turn"]) == 1
        ask(d, "talk", "hi", 3)


def a_second_turn_at_once_is_refused():
    with Daemon("air") as d:
        long = d.popen("ask", "--json", "--session", "talk", "--ignore-eos", "-n", 50000, "go", stdout=subprocess.PIPE)
        long.stdout.readline()
        d.ctl("ask", "--session", "talk", "me too", code=75)
        assert "a turn of session 'talk' is running" in d.last_stderr, d.last_stderr
        assert sessions(d)[0]["running"] is True
        d.ctl("session", "rm", "talk", code=75)
        long.send_signal(signal.SIGINT)
        long.communicate(timeout=20)
        wait_for(lambda: not sessions(d)[0]["running"], 10, "the turn's end")
        [turn] = show(d, "talk")["turn"]
        assert turn["finish"] == "cancelled", turn["finish"]


def a_client_that_leaves_at_any_moment_leaves_a_session_that_goes_on():
    with Daemon("air") as d:
        ask(d, "talk", "hi", 3)
        for i in range(20):
            p = d.popen("ask", "--session", "talk", "--ignore-eos", "-n", 40000, "go", stdout=subprocess.DEVNULL)
            time.sleep(0.003 * (i % 10))
            p.kill()
            p.wait()
        wait_for(lambda: not sessions(d)[0]["running"], 20, "the turn's end")
        before = sessions(d)[0]["turns"]
        assert ask(d, "talk", "still there?", 3)["session"]["turn"] == before + 1


def chat_sends_what_is_new_and_the_session_keeps_all():
    with Daemon("air") as d:
        d.ctl("chat", "--session", "talk", "--no-think", "-n", 5, "--ignore-eos", "--system", "Be brief.",
              stdin=b"one\ntwo\n/clear\nthree\n")
        assert "rewind" in d.last_stderr, d.last_stderr
        turns = show(d, "talk")["turn"]
        assert [[m["content"] for m in t["request"]["messages"]] for t in turns] == [
            ["Be brief.", "one"], ["two"], ["three"]], turns


def names_complete_in_a_shell():
    def complete(*words):
        script = (f"source {BUILD / 'client/steamctl/completion/steamctl'}; COMP_WORDS=(\"$@\"); "
                  "COMP_CWORD=$(($# - 1)); _steamctl; echo ${COMPREPLY[@]}")
        env = dict(ENV, STEAMD_SOCKET=str(d.socket), PATH=f"{STEAMCTL.parent}:{os.environ['PATH']}")
        return subprocess.run(["bash", "-c", script, "bash", *words], env=env, capture_output=True, check=True,
                              text=True).stdout.split()

    with Daemon("air") as d:
        for name in ("paper", "party", "other"):
            d.ctl("session", "new", name)
        assert sorted(complete("steamctl", "ask", "--session", "pa")) == ["paper", "party"]
        assert complete("steamctl", "session", "show", "o") == ["other"]
        assert complete("steamctl", "session", "re") == ["rewind", "rename"]
        assert "--session" in complete("steamctl", "chat", "--se")
        assert "rewind NAME N" in d.ctl("session", "--help").decode()
        # a name may come with somebody's file: it is no command, neither now nor when the line is run
        d.ctl("session", "new", f"$(touch${{IFS}}{d.dir}/ran)")
        assert complete("steamctl", "session", "show", "$") == [fr"\$\(touch\$\{{IFS\}}{d.dir}/ran\)"]
        assert complete("steamctl", "session", "show", r"\$\(t") == complete("steamctl", "session", "show", "$")
        assert not (d.dir / "ran").exists()


def the_log_is_written_into_the_database_when_all_is_idle():
    with Daemon("air") as d:
        ask(d, "talk", "hi", 3)
        log = d.dir / "state" / "state.db-wal"
        assert log.stat().st_size > 0
        wait_for(lambda: log.stat().st_size == 0, 10, "the checkpoint")
        assert b"talk" in (d.dir / "state" / "state.db").read_bytes()


def one_user_cannot_see_or_probe_another():
    if os.geteuid() != 0:
        raise Skip("several uids need root")
    with Daemon("air", "MaxSessionsPerUser=2", socket_mode="0666") as d:
        session = ask(d, "talk", "my secret", 3, uid=4001)["session"]["id"]
        assert sessions(d, uid=4002) == []
        d.ctl("session", "show", "nothing", uid=4002, code=66)
        none = d.last_stderr.replace("nothing", "talk")
        for name in ("talk", session):
            for verb in (["show"], ["rm"], ["export"], ["pin"], ["rename", "x"], ["fork", "x"], ["rewind", "0"]):
                d.ctl("session", verb[0], name, *verb[1:], uid=4002, code=66)
                assert d.last_stderr.replace(session, "talk") == none, d.last_stderr
        d.ctl("session", "list", "--label", "other", uid=4001)
        assert sessions(d, uid=4001)[0]["name"] == "talk"
        ask(d, "talk", "mine", 3, uid=4002)
        ask(d, "two", "mine", 3, uid=4002)
        d.ctl("ask", "--session", "three", "x", uid=4002, code=75)
        assert "uid 4002 has 2 sessions; 2 may be" in d.last_stderr, d.last_stderr
        assert b"my secret" not in b"".join(p.read_bytes() for p in pathlib.Path(d.dir).glob("log"))
        state = d.dir / "state"
        assert state.stat().st_mode & 0o077 == 0 and (state / "state.db").stat().st_mode & 0o077 == 0


def without_a_store_all_else_is_served():
    with Daemon("air") as d:
        ask(d, "talk", "hi", 3)
        d.kill()
        with sqlite3.connect(d.dir / "state" / "state.db") as db:
            db.execute("PRAGMA user_version=99")
            db.execute("UPDATE format SET n=99")
        db.close()
        d.log_path.write_text("")
        d.__enter__()
        assert "has format 99, from a newer steamd" in d.log(), d.log()
        d.ctl("session", "list", code=75)
        assert "format 99" in d.last_stderr, d.last_stderr
        d.ctl("ask", "--session", "talk", "hi", code=75)
        assert d.complete([5], 2)["finish"] == "length"
        assert d.status()["sessions"]["state"] == "off"


def what_is_no_database_is_set_aside():
    with Daemon("air") as d:
        ask(d, "talk", "hi", 3)
        d.kill()
        (d.dir / "state" / "state.db").write_bytes(b"This is no database at all. " * 400)
        d.log_path.write_text("")
        d.__enter__()
        assert "set aside" in d.log(), d.log()
        assert (d.dir / "state" / "state.db.damaged-1").read_bytes().startswith(b"This is no")
        assert sessions(d) == []
        ask(d, "talk", "hi", 3)
        assert d.status()["sessions"]["databases_set_aside"] == 1


if __name__ == "__main__":
    run([v for k, v in list(globals().items()) if callable(v) and getattr(v, "__module__", "") == "__main__"
         and k not in ("restart", "ask", "sessions", "show", "is_as_written", "first_seed")])
