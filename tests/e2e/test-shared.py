#!/usr/bin/env python3
"""System prompts that an administrator marked: what all users share of them, and what nobody does."""
from steamd_e2e import *

ALICE, BOB, CAROL = 4001, 4002, 4003
PAGE = 16
POLICY = "You are a helpful assistant. Answer in one short sentence, and say so when you do not know. " * 3


def need_root():
    if os.geteuid() != 0:
        raise Skip("several uids need root")


class Marked:
    """A directory of marked prompts."""

    def __init__(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="steamd-shared-"))
        self.dir.chmod(0o755)
        self.write("policy.txt", POLICY + "\n")

    def write(self, name, text, mode=0o644):
        path = self.dir / name
        path.write_text(text)
        path.chmod(mode)
        return path

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.dir)


def daemon(marked, *sets):
    return Daemon("air", f"PageTokens={PAGE}", f"SharedPrompts={marked.dir}", *sets, socket_mode="0666")


def ask(d, uid, question, system=POLICY, n=4):
    """The usage of a question, and the answer's text."""
    out = d.lines("ask", "--json", "--temperature", 0, "--max-tokens", n, "--system", system, question, uid=uid)
    return out[-1]["usage"], "".join(line.get("text", "") for line in out[:-1])


def shared(d):
    return d.status()["shared_prompts"]


def warm(d, name="policy.txt"):
    """The marked prompt, once all of it has been computed, though nobody asked."""
    def all_of_it():
        p = shared(d)["prompts"].get(name)
        return p if p and p["arena_pages"] == p["pages"] and not shared(d)["warming"]["running"] else None
    try:
        return wait_for(all_of_it, 100, "all of it")
    except AssertionError as e:
        raise AssertionError(f"{e}: {shared(d)}") from None


def whole_pages(n):
    return n // PAGE * PAGE


def a_second_user_computes_what_follows_a_marked_prompt():
    need_root()
    with Marked() as m, daemon(m) as d:
        p = warm(d)
        assert shared(d)["refused"] == [], shared(d)
        assert p["pages"] == p["tokens"] // PAGE >= 3, p
        first, text = ask(d, ALICE, "What is a prime number?")
        assert first["cached_tokens"] == whole_pages(p["tokens"]), first  # it tells nothing of who came before
        second, same = ask(d, BOB, "What is a prime number?")
        assert second["cached_tokens"] == whole_pages(p["tokens"]), (second, p)
        assert same == text
        again, same = ask(d, BOB, "What is a prime number?")  # its own, to the last token
        assert again["cached_tokens"] == again["prompt_tokens"] - 1 and same == text, again
        # who knows only the first half of it has nothing
        half, _ = ask(d, CAROL, "What is a prime number?", system=POLICY[:len(POLICY) // 2])
        assert half["cached_tokens"] == 0, half
        assert "shared_prompts" not in json.loads(d.ctl("status", "--json", uid=BOB))


def what_is_not_marked_is_not_shared():
    need_root()
    with Marked() as m, daemon(m) as d:
        other = POLICY.replace("short", "long")
        ask(d, ALICE, "What is a prime number?", system=other)
        usage, _ = ask(d, BOB, "What is a prime number?", system=other)
        assert usage["cached_tokens"] == 0, usage


def the_disk_has_it_and_a_new_broker_too():
    need_root()
    with Marked() as m:
        d = daemon(m)
        d.__enter__()
        first, text = ask(d, ALICE, "What is a prime number?")
        p = wait_for(lambda: [p for p in [shared(d)["prompts"]["policy.txt"]] if p["arena_pages"] == p["pages"]],
                     20, "all of it")[0]
        wait_for(lambda: d.status()["kv"]["written_pages"] >= p["pages"], 20, "it is on disk")
        assert (d.dir / "state" / "kv" / str(2**32 - 3)).is_dir(), list((d.dir / "state" / "kv").iterdir())
        d.kill()
        with open(d.log_path, "w"):
            pass
        with d:
            warm(d)
            assert shared(d)["warming"]["tokens"] == 0, shared(d)  # it was read, not computed
            usage, same = ask(d, BOB, "What is a prime number?")
            assert usage["cached_tokens"] == whole_pages(p["tokens"]) and same == text, usage
            assert d.status()["kv"]["read_pages"] == p["pages"]
            # and what continues it is on disk in its user's own name
            usage, same = ask(d, ALICE, "What is a prime number?")
            assert usage["cached_tokens"] >= whole_pages(first["prompt_tokens"] - 1) and same == text, usage


def a_reload_reads_them_again():
    need_root()
    with Marked() as m, daemon(m) as d:
        ask(d, ALICE, "Hello")
        (m.dir / "policy.txt").unlink()  # its pages stay, as the beginning of another
        talk = {"messages": [{"role": "system", "content": POLICY}, {"role": "user", "content": "Begin, please. " * 9}]}
        m.write("talk.json", json.dumps(talk))
        d.ctl("reload")
        before = shared(d)["warming"]["tokens"]
        p = warm(d, "talk.json")
        assert list(shared(d)["prompts"]) == ["talk.json"], shared(d)
        assert shared(d)["warming"]["tokens"] - before < whole_pages(p["tokens"]), shared(d)
        usage, _ = ask(d, BOB, "Hello")
        assert usage["cached_tokens"] == 0, usage
        usage, _ = ask(d, BOB, talk["messages"][1]["content"])
        assert usage["cached_tokens"] == whole_pages(p["tokens"]), (usage, p)


def a_sleeping_daemon_is_not_woken_for_it_and_a_new_executor_is_asked():
    with Marked() as m, daemon(m, "DiskCache=no") as d:
        n = warm(d)["pages"]
        d.ctl("sleep", "gone")
        m.write("other.txt", POLICY.replace("short", "long"))
        d.ctl("reload")
        wait_for(lambda: "other.txt" in shared(d)["prompts"], 20, "the other one")
        time.sleep(0.5)
        assert d.status()["power"]["rung"] == "gone", d.status()["power"]
        assert shared(d)["prompts"]["other.txt"]["arena_pages"] < n, shared(d)
        d.ctl("wake")
        warm(d, "other.txt")
        os.kill(d.executor(), signal.SIGKILL)
        done = shared(d)["warming"]["done"]
        d.complete([5] * 20, 1)
        warm(d), warm(d, "other.txt")
        assert shared(d)["warming"]["done"] == done, shared(d)  # nothing was lost


def a_user_that_comes_while_it_is_computed_comes_first():
    need_root()
    with Marked() as m:
        m.write("long.txt", POLICY * 30)
        with daemon(m) as d:
            ask(d, ALICE, "What is a prime number?", system="Be brief", n=30)
            warm(d, "long.txt")
            first, _ = ask(d, BOB, "Hello", system=POLICY * 30)
            assert first["cached_tokens"] == whole_pages(shared(d)["prompts"]["long.txt"]["tokens"]), first


def what_others_could_have_written_is_refused_with_a_sentence():
    need_root()
    with Marked() as m:
        os.chown(m.write("alice.txt", POLICY), ALICE, ALICE)
        m.write("group.txt", POLICY, 0o664)
        m.write("notes.md", "x")
        m.write("broken.json", '{"messages": 7}')
        m.write("syntax.json", "{")
        m.write("latin.txt", "").write_bytes(b"\xe9" * 100)
        m.write("large.txt", "x" * (1 << 20) + "x")
        (m.dir / "link.txt").symlink_to(m.dir / "policy.txt")
        (m.dir / "dir.txt").mkdir()
        os.mkfifo(m.dir / "fifo.txt", 0o600)
        with daemon(m) as d:
            found = shared(d)
            assert list(found["prompts"]) == ["policy.txt"], found
            assert found["refused"] == [f"SharedPrompts=: {s}" for s in (
                f"'alice.txt': is of uid {ALICE}; uid 0 or 0 is wanted",
                "'broken.json': messages is an integer; a list is wanted",
                "'dir.txt': is no regular file",
                "'fifo.txt': is no regular file",
                "'group.txt': has mode 0664; one in which neither group nor others may write is wanted",
                "'large.txt': has more than 1048576 bytes",
                "'latin.txt': is not UTF-8",
                "'link.txt': is a symbolic link; a file is wanted",
                "'notes.md': ends in neither .txt nor .json",
                "'syntax.json': no valid JSON at line 1, column 1: string or '}' expected near end of file")], "\n".join(found["refused"])
            for sentence in found["refused"]:
                assert sentence in d.log(), sentence
            m.dir.chmod(0o777)
            d.ctl("reload")
            wait_for(lambda: not shared(d)["prompts"], 20, "no prompts")
            assert shared(d)["refused"] == [
                f"SharedPrompts=: '{m.dir}': has mode 0777; one in which neither group nor others may write is wanted"]
            m.dir.chmod(0o755)
    with Daemon("air", "SharedPrompts=/nonexistent") as d:
        assert shared(d)["refused"] == ["SharedPrompts=: '/nonexistent': cannot be opened: No such file or directory"]


def no_client_comes_under_the_uid_that_shares():
    need_root()
    with Marked() as m, daemon(m) as d:
        d.ctl("status", uid=2**32 - 4)
        d.ctl("status", uid=2**32 - 3, code=69)


if __name__ == "__main__":
    run([v for k, v in list(globals().items()) if callable(v) and getattr(v, "__module__", "") == "__main__"
         and k not in ("need_root", "warm", "Marked", "daemon", "ask", "shared", "whole_pages")])
