#!/usr/bin/env python3
"""Tidying: what a chat's next turn begins with is computed while nothing else is."""
from steamd_e2e import *


def ask(d, *args):
    return d.lines("ask", "--json", "--ignore-eos", *args)[-1]


def ids_of(d, *markers):
    return [json.loads(d.ctl("tokenize", "--json", stdin=m.encode()))["ids"][-1] for m in markers]


def quiet(d):
    """What status says when text work is done that was begun before."""
    d.ctl("tokenize", stdin=b"word " * 20000)  # long: it comes behind what the worker does
    tidy = d.status()["tidy"]
    return tidy["done"] + tidy["cut_short"] + tidy["waiting"] + tidy["running"] == 0


def tidied(d, n):
    return wait_for(lambda: d.status()["tidy"]["done"] >= n, 60, "tidying")


def reasons_once(d, layout):
    """Options with which a random model thinks first, and then answers at length."""
    begin, end = ids_of(d, "<think>", "</think>")
    opens = [] if layout == "glm47" else ["--logit-bias", f"{begin}=60"]
    # what was said once is not said again
    bias = opens + ["--logit-bias", f"{end}=6", "--presence-penalty", 90, "-n", 200]
    for seed in range(60):
        said = ask(d, *bias, "--seed", seed, "Hello there")
        if said.get("reasoning") and end in said["ids"][3:100] and said["content"].strip():
            return bias + ["--seed", seed], 200 - said["ids"].index(end)
    raise AssertionError("no seed thinks and answers")


def how_much_is_computed(layout, options, *sets):
    """Tokens of a second turn's prompt that no cache had, those of its own text, and what status says."""
    with Daemon("air", f"ChatTemplate={layout}", *sets) as d:
        ask(d, "--session", "talk", *options, "Hello there")
        if "TidyOver=1" in sets:
            tidied(d, 1)
        else:
            assert quiet(d)
        usage = ask(d, "--session", "talk", "-n", 1, "And now?")["usage"]
        own = ask(d, "-n", 1, "And now?")["usage"]["prompt_tokens"] - 3  # [gMASK]<sop><|user|>
        return usage["prompt_tokens"] - usage["cached_tokens"], own


def after_reasoning_the_next_turn_computes_its_own_text_only():
    for layout in ("glm45", "glm47"):
        with Daemon("air", f"ChatTemplate={layout}", "TidyOver=0") as d:
            options, n_said = reasons_once(d, layout)
        computed, own = how_much_is_computed(layout, options, "TidyOver=1")
        assert computed == own, (layout, computed, own)
        for over in (0, 100000):  # never; or what takes more than this
            computed, own = how_much_is_computed(layout, options, f"TidyOver={over}")
            assert computed >= own + n_said - 3, (layout, computed, own, n_said)


def a_client_that_sends_all_again_finds_it_too():
    with Daemon("air", "ChatTemplate=glm45", "TidyOver=1") as d:
        call = ids_of(d, "<tool_call>")[0]  # after which nothing is tidied
        p = d.popen("chat", "--json", "--ignore-eos", "-n", 100, "--seed", 1, "--logit-bias", f"{call}=-100",
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        usages = []
        for text in (b"Hello there\n", b"And now?\n"):
            p.stdin.write(text)
            p.stdin.flush()
            for line in p.stdout:
                usage = json.loads(line).get("usage")
                if usage:
                    break
            usages.append(usage)
            tidied(d, len(usages))
        p.communicate(timeout=20)
        own = ask(d, "-n", 1, "And now?")["usage"]["prompt_tokens"] - 3
        assert usages[1]["prompt_tokens"] - usages[1]["cached_tokens"] == own, (usages, own)


def after_a_tool_call_reasoning_stays():
    with Daemon("air", "ChatTemplate=glm45", "TidyOver=0") as d:
        call = ids_of(d, "<tool_call>")[0]
        options = ["-n", 100, "--logit-bias", f"{call}=6", "--presence-penalty", 90]
        seed = next(s for s in range(60) if ask(d, *options, "--seed", s, "Hello there").get("tool_calls"))
    with Daemon("air", "ChatTemplate=glm45", "TidyOver=1") as d:
        assert ask(d, *options, "--seed", seed, "Hello there")["tool_calls"]
        assert quiet(d)
        ask(d, "-n", 100, "--logit-bias", f"{call}=-100", "--seed", seed, "Hello there")
        tidied(d, 1)


def raw_text_and_cancelled_answers_are_left_alone():
    with Daemon("air", "ChatTemplate=glm45", "TidyOver=1") as d:
        d.complete([5, 6, 7] * 50, 20)
        ask(d, "-n", 50000, "--deadline", 300, "Hello there")
        assert quiet(d)


def slow():
    """Computes in double: there is time to look while it tidies."""
    return Daemon("air", "ChatTemplate=glm45", "TidyOver=1", "Isa=ref")


def is_tidying(d):
    return d.status()["tidy"]["running"]


def a_request_ends_it_and_it_goes_on_later():
    with slow() as d:
        # an answer that calls no tool, after which reasoning would stay
        first = ask(d, "--session", "talk", "-n", 300, "--seed", 1, "Hello there")["usage"]["prompt_tokens"]
        wait_for(lambda: is_tidying(d), 20, "tidying")
        assert d.status()["load"]["running"] == 0 and json.loads(d.ctl("ps", "--json"))["turns"] == []
        d.complete([5], 1)
        assert d.status()["tidy"]["cut_short"] == 1
        tidied(d, 1)
        computed = d.status()["tidy"]["tokens"]
        usage = ask(d, "--session", "talk", "-n", 1, "And now?")["usage"]
        own = ask(d, "-n", 1, "And now?")["usage"]["prompt_tokens"] - 3
        assert usage["prompt_tokens"] - usage["cached_tokens"] == own, usage
        # what it had before it was ended was not computed again
        assert abs(usage["cached_tokens"] - first - computed) < 3, (usage, first, computed)


def sleep_does_not_wait_for_it_nor_does_it_wake():
    with slow() as d:
        ask(d, "-n", 300, "--seed", 1, "Hello there")
        wait_for(lambda: is_tidying(d), 20, "tidying")
        assert d.ctl("sleep") == b"parked\n"
        tidy = d.status()["tidy"]
        assert (tidy["running"], tidy["waiting"], tidy["done"], tidy["cut_short"]) == (False, 0, 0, 1), tidy
        assert d.status()["state"] == "asleep"


def memory_on_lease_is_left_alone():
    with slow() as d:
        lease = d.popen("yield", "1M", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: d.status()["power"]["leases"] == 1, 20, "the lease")
        ask(d, "-n", 300, "--seed", 1, "Hello there")
        d.ctl("tokenize", stdin=b"word " * 20000)
        wait_for(lambda: d.status()["tidy"]["waiting"] == 0, 20, "a decision")
        assert quiet(d)
        lease.send_signal(signal.SIGINT)
        lease.wait(20)
        wait_for(lambda: d.status()["power"]["leases"] == 0, 20, "the end of the lease")
        ask(d, "-n", 300, "--seed", 1, "Hello there")
        tidied(d, 1)


def a_reload_and_an_end_do_not_wait_for_it():
    for what in (signal.SIGHUP, signal.SIGTERM):
        with slow() as d:
            ask(d, "-n", 300, "--seed", 1, "Hello there")
            wait_for(lambda: is_tidying(d), 20, "tidying")
            if what == signal.SIGTERM:
                d.process.terminate()
                assert d.process.wait(20) == 0
                d.log_path.write_text("")
                d.__enter__()
            else:
                d.ctl("reload")
            d.complete([5], 1)


def an_end_during_an_answer_forgets_what_was_kept_for_it():
    with Daemon("air", "ChatTemplate=glm45", "TidyOver=1") as d:
        p = d.popen("ask", "--json", "--ignore-eos", "-n", 50000, "Hello there", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        p.stdout.readline()
        d.process.terminate()
        assert d.process.wait(20) == 0
        p.kill()
        p.communicate()
        d.log_path.write_text("")
        d.__enter__()


if __name__ == "__main__":
    run([v for k, v in list(globals().items()) if callable(v) and getattr(v, "__module__", "") == "__main__"
         and k not in ("ask", "ids_of", "quiet", "tidied", "reasons_once", "how_much_is_computed", "slow", "is_tidying")])
