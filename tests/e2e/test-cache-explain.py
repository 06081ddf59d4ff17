#!/usr/bin/env python3
"""steamctl cache explain: each cause of a miss, brought about in the real daemon."""
import re

from kvpages import HEAD, HEAD_BYTES, ENTRY, SEALED
from steamd_e2e import *
from stored import Stored


def explain(d, which, *args, **kwargs):
    if isinstance(which, dict):
        which = which["turn"]
    return json.loads(d.ctl("cache", "explain", "--json", which, *args, **kwargs))


def ask(d, text, *args, n=3):
    return d.lines("ask", "--json", "--ignore-eos", "--seed", 3, "-n", n, *args, text)[-1]


def another_text_is_told_token_by_token():
    with Daemon("air") as d:
        first = d.complete([5] * 60 + [7] * 40, 4)
        same = d.complete([5] * 60 + [7] * 40, 4)
        other = d.complete([5] * 60 + [9] * 40, 4)
        e = explain(d, first)
        assert (e["cause"], e["diverged_at"], e["cached_tokens"], e["cached_token"]) == ("new", 0, 0, None), e
        e = explain(d, same)
        assert (e["cause"], e["diverged_at"], e["cached_tokens"]) == ("none", None, 99), e
        e = explain(d, other)
        assert (e["cause"], e["diverged_at"], e["cached_tokens"], e["cached_arena"]) == ("text", 60, 60, 60), e
        for side, i in ("prompt_token", 9), ("cached_token", 7):
            text = json.loads(d.ctl("detokenize", "--json", i))["text"]
            assert e[side] == {"id": i, "text": text}, (e, text)
        assert e["turn"] == other["turn"] and e["prompt_tokens"] == 100 and e["recomputed_tokens"] == 0, e
        said = d.ctl("cache", "explain", other["turn"]).decode()
        assert said.startswith("60 of 100 tokens were cached: the text is another from there on\n"), said
        assert re.search(r"^missed from +60$", said, re.M) and re.search(r"^in cache +7 ", said, re.M), said


def another_system_prompt_is_told():
    with Daemon("air", "ChatTemplate=glm47") as d:
        ask(d, "Hello there", "--no-think", "--system", "You are short")
        e = explain(d, ask(d, "Hello there", "--no-think", "--system", "You are tall"))
        assert e["cause"] == "system-prompt" and e["cached_tokens"] == e["diverged_at"] > 2, e
        assert e["prompt_text"].lstrip() != e["cached_text"].lstrip(), e


def reasoning_that_the_template_drops_is_told():
    with Daemon("air", "ChatTemplate=glm47") as d:
        first = ask(d, "Hello there", "--session", "talk", n=12)
        second = ask(d, "And now?", "--session", "talk", "--no-think")
        e = explain(d, "talk")
        assert e == explain(d, second) == explain(d, second["session"]["id"]), e
        assert e["session"] == first["session"]["id"] and e["session_turn"] == 2, e
        assert e["cause"] == "reasoning-stripped", e
        assert e["prompt_token"]["text"] == "</think>" and e["prompt_text"].startswith("</think>"), e
        # the first prompt ends in the <think> that it opens
        assert e["diverged_at"] == e["cached_tokens"] == first["usage"]["prompt_tokens"] - 1, e
        assert e["cached_token"]["text"] == "<think>" and e["cached_text"].startswith("<think>"), e
        assert "reasoning out" in e["text"], e


def a_session_that_goes_on_misses_only_what_is_new():
    with Daemon("air", "ChatTemplate=glm47") as d:
        first = ask(d, "Hello there", "--session", "talk", "--no-think", n=1)
        ask(d, "And now?", "--session", "talk", "--no-think")
        e = explain(d, "talk")
        assert e["cause"] in ("end", "white-space"), e  # what the model says may end in white space
        assert e["diverged_at"] == e["cached_tokens"] >= first["usage"]["prompt_tokens"], e


def what_was_given_up_is_told():
    with Daemon("air", "Context=512", "DiskCache=no") as d:
        d.complete([5] * 500, 4)
        for i in range(20):
            d.complete([10 + i] * 500, 4)
            if d.status()["kv"]["evicted_pages"] > 0:
                break
        e = explain(d, d.complete([5] * 500, 4))
        assert e["cause"] == "evicted" and e["cached_tokens"] == e["diverged_at"] < 499, e
        assert e["prompt_token"]["id"] == 5 and e["cached_token"] is None, e


def kill(d):
    d.process.kill()
    d.again()


def what_an_earlier_broker_gave_up_is_told():
    with Stored("air", "Context=512", "DiskCache=no") as d:
        d.complete([5] * 500, 4)
        for i in range(20):
            d.complete([10 + i] * 500, 4)
            if d.status()["kv"]["evicted_pages"] > 0:
                break
        kill(d)
        e = explain(d, d.complete([5] * 500, 4))
        assert e["cause"] == "evicted" and e["cached_tokens"] == e["diverged_at"] < 499, e
        kill(d)
        e = explain(d, d.complete([5] * 500, 4))  # it is there again
        assert e["cause"] in ("none", "no-page") and e["cached_tokens"] > 400, e
        # one that begins with nothing does not know, and does not say that it does
        d.complete([6] * 500, 4)
        d.process.kill()
        d.process.wait(20)
        d.read_all()
        d.forget()
        d.__enter__()
        assert explain(d, d.complete([5] * 500, 4))["cause"] == "new"


def damage(d, depth):
    """Flips a bit in each sealed page of this depth, in what the store has."""
    memfds = {name: fd for name, fd, _ in d.store}
    directory = os.pread(memfds["kvdir"], os.fstat(memfds["kvdir"]).st_size, 0)
    _, _, n_pages, _, entry_bytes, _, _ = HEAD.unpack_from(directory)
    page_bytes = os.fstat(memfds["arena"]).st_size // n_pages
    n = 0
    for i in range(n_pages):
        entry = ENTRY.unpack_from(directory, HEAD_BYTES + i * entry_bytes)
        if entry[0] == SEALED and entry[6] == depth:
            [byte] = os.pread(memfds["arena"], 1, i * page_bytes)
            os.pwrite(memfds["arena"], bytes([byte ^ 1]), i * page_bytes)
            n += 1
    assert n > 0


def what_an_earlier_broker_found_damaged_is_told():
    with Stored("air", "DiskCache=no") as d:
        d.complete([5] * 500, 4)
        size = d.status()["kv"]["page_tokens"]
        d.process.kill()
        d.process.wait(20)
        d.read_all()
        damage(d, 2)
        d.__enter__()
        # goes on in its own way inside that page, which so is not computed again
        e = explain(d, d.complete([5] * (size + 8) + [7] * 40, 4))
        assert (e["cause"], e["cached_tokens"]) == ("damaged", size), e
        kill(d)
        e = explain(d, d.complete([5] * 500, 4))
        assert (e["cause"], e["cached_tokens"]) == ("damaged", size + 8), e
        kill(d)
        e = explain(d, d.complete([5] * 500, 4))
        assert (e["cause"], e["cached_tokens"]) == ("none", 499), e


def what_came_from_disk_is_counted():
    with Daemon("air") as d:
        d.complete([5] * 500, 4)
        wait_for(lambda: d.status()["kv"]["written_pages"] > 0, 20, "pages on disk")
        d.process.terminate()
        d.process.wait(20)
        d.log_path.write_text("")
        d.__enter__()
        again = d.complete([5] * 500, 4)
        e = explain(d, again)
        assert e["cached_disk"] == e["cached_tokens"] == again["usage"]["cached_disk"] > 0, (e, again["usage"])
        assert again["usage"]["cached_arena"] == e["cached_arena"] == 0, again["usage"]


def labels_of_one_user_are_told_and_others_are_not():
    with Daemon("air", socket_mode="0666") as d:
        mine = d.complete([5] * 100, 4)
        assert explain(d, d.complete([5] * 100, 4, "--label", "app"))["cause"] == "other-namespace"
        d.ctl("cache", "explain", "1", code=66)
        d.ctl("cache", "explain", "talk", code=66)
        ask(d, "Hello", "--session", "talk", "--no-think")
        d.ctl("cache", "explain", "--label", "app", "talk", code=66)
        d.ctl("cache", code=64)
        d.ctl("cache", "explain", code=64)
        d.ctl("cache", "forget", "talk", code=64)
        if os.getuid() != 0:
            raise Skip("only root can be another user")
        theirs = d.complete([5] * 100, 4, uid=4001)
        assert explain(d, theirs, uid=4001)["cause"] == "new"
        d.ctl("cache", "explain", mine["turn"], uid=4001, code=66)
        d.ctl("cache", "explain", theirs["turn"], code=66)  # not even an administrator's business
        d.ctl("cache", "explain", "talk", uid=4001, code=66)


def a_turn_that_runs_is_told_and_the_oldest_are_forgotten():
    with Daemon("air") as d:
        first = d.complete([5] * 100, 1)
        p = d.popen("complete", "--ids", "--json", "--ignore-eos", "-n", 4000, "-t", 0, stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        p.stdin.write(json.dumps([5] * 50 + [6] * 20).encode())
        p.stdin.close()
        p.stdout.readline()  # it has begun
        [turn] = [t["turn"] for t in json.loads(d.ctl("ps", "--json"))["turns"] if t["state"] != "ended"]
        e = explain(d, turn)
        assert (e["cause"], e["diverged_at"]) == ("text", 50), e
        d.ctl("cancel", turn)
        p.stdout.read()
        p.wait(20)
        assert explain(d, turn) == e
        assert explain(d, first)["cause"] == "new"
        for i in range(32):
            d.complete([8] * 10, 1)
        d.ctl("cache", "explain", first["turn"], code=66)



if __name__ == "__main__":
    run([v for v in list(globals().values()) if callable(v) and getattr(v, "__module__", "") == "__main__"
         and v.__name__ not in ("explain", "ask", "kill", "damage")])
