#!/usr/bin/env python3
"""The KV cache through the whole daemon: the same answer, bit for bit, wherever its beginning comes from."""
import random

from kvpages import Recomputed
from stored import *

PAGE = 16
SETS = (f"PageTokens={PAGE}", "Context=4096")
N = 24


def ids_of(n, seed=1):
    """@n tokens of which no two prompts have a beginning in common."""
    rng = random.Random(seed)
    return [rng.randrange(3, 480) for _ in range(n)]


def cached(result):
    return result["usage"]["cached_tokens"]


def exact(d, ids, n=N, *args, **kwargs):
    """A greedy answer with all that can be compared: its ids, log-probabilities, the best five, and what was cached."""
    lines = d.lines("complete", "--ids", "--json", "--temperature", "0", "--max-tokens", n, "--ignore-eos", "--top", 5,
                    *args, stdin=json.dumps(ids).encode(), **kwargs)
    said = {"ids": [], "logprobs": [], "top": []}
    for line in lines[:-1]:
        for key, values in said.items():
            values += line.get(key, [])
    assert len(said["ids"]) == len(said["logprobs"]) == len(said["top"]) == n, lines[-1]
    return said, cached(lines[-1])


class Cold:
    """Answers of namespaces that nobody has used: they are computed from the first token on."""

    def __init__(self, d):
        self.d = d
        self.n = 0

    def __call__(self, ids, n=N):
        self.n += 1
        said, hit = exact(self.d, ids, n, "--label", f"cold-{self.n}")
        assert hit == 0, hit
        return said


def kv(d):
    return d.status()["kv"]


def restart(d, between=lambda: None):
    """Stopped and started again without a descriptor store: as by a reboot, only what is on disk is left."""
    d.process.terminate()
    assert d.process.wait(60) == 0, d.log()
    between()
    os.truncate(d.log_path, 0)
    d.__enter__()


def the_same_prompt_again_is_found_and_answered_the_same():
    ids = ids_of(130)
    with Daemon("air", *SETS) as d:
        before = kv(d)
        first = d.complete(ids, N)
        assert cached(first) == 0, first
        between = kv(d)
        second = d.complete(ids, N)
        # 153 tokens were fed: nine pages and a tenth that is not full; what is being written is held
        wait_for(lambda: kv(d)["written_pages"] == 10, 20, "all pages on disk")
        after = kv(d)
        assert second["ids"] == first["ids"]
        assert cached(second) == 129, second["usage"]
        assert second["usage"]["prompt_tokens"] == 130
        assert before["found_tokens"] == before["sealed_pages"] == 0, before
        assert between["found_tokens"] == 0, between
        assert between["sealed_pages"] == 10, between
        assert after["found_tokens"] == 129, after
        assert after["damaged_pages"] == after["evicted_pages"] == after["held_pages"] == 0, after
        assert after["kept_pages"] + after["free_pages"] == after["pages"], after


def a_hit_of_any_length_is_bit_for_bit_a_cold_run():
    ids = ids_of(200)
    with Daemon("air", *SETS) as d:
        cold = Cold(d)
        exact(d, ids)
        for n in (1, 7, 15, 16, 17, 31, 32, 33, 64, 97, 127, 128, 129, 199):
            text = ids[:n] + ids_of(40, 100 + n)
            want = cold(text)
            got, hit = exact(d, text)
            assert hit == n, (hit, n)
            assert got == want, f"{n} tokens shared: {got} is not {want}"
            again, hit = exact(d, text)
            assert hit == len(text) - 1, hit
            assert again == want, f"{n} tokens shared, all again"


def so_it_is_with_every_kind_of_model_and_page():
    ids = ids_of(150)
    for model, page in (("bf16", 8), ("w4g128", 64), ("w4all", 16), ("glm46", 32), ("odd", 24), ("long", 256)):
        with Daemon(model, f"PageTokens={page}", "Context=1024", "KVCacheSize=64M") as d:
            cold = Cold(d)
            exact(d, ids)
            for n in (1, page - 1, page, page + 1, 149):
                if n > 149:
                    continue
                text = ids[:n] + ids_of(20, 400 + n)
                want = cold(text)
                got, hit = exact(d, text)
                assert hit == n, (model, hit, n)
                assert got == want, f"{model}: {n} tokens shared: {got} is not {want}"


def the_next_turn_of_a_conversation_is_bit_for_bit_a_cold_run():
    with Daemon("air", *SETS) as d:
        cold = Cold(d)
        text = ids_of(50)
        for turn in range(4):
            got, hit = exact(d, text)
            assert got == cold(text), turn
            # all that was fed before: the last sampled token never was
            assert hit == (0 if turn == 0 else fed), (turn, hit)
            fed = len(text) + N - 1
            text = text + got["ids"] + ids_of(20, 200 + turn)


def what_comes_from_disk_is_bit_for_bit_a_cold_run():
    ids = ids_of(200)
    with Daemon("air", *SETS) as d, Recomputed("air", *SETS) as again:
        want = exact(d, ids)[0]
        wait_for(lambda: kv(d)["written_pages"] == 14, 20, "fourteen pages on disk")
        restart(d)
        assert kv(d)["read_pages"] == 0
        for n in (16, 40, 100, 200):
            text = ids[:n] + ids_of(30, 300 + n) if n < 200 else ids
            cold = Cold(d)
            cold.n = 1000 + n
            got, hit = exact(d, text)
            assert hit >= min(n, 199) // PAGE * PAGE, (n, hit)
            assert got == cold(text), n
        assert got == want
        assert kv(d)["read_pages"] >= 12, kv(d)
        assert kv(d)["damaged_pages"] == 0
        again.compare(d, 13)


def after_a_reboot_the_next_turn_computes_only_what_is_new():
    """Nothing is waited for: what was not on disk yet is written when the daemon is told to stop."""
    for model, sets in (("air", SETS), ("odd", ("PageTokens=24", "Context=1024", "KVCacheSize=64M"))):
        with Daemon(model, *sets) as d:
            text = ids_of(130)
            for turn in range(3):
                got, hit = exact(d, text)
                assert hit == (0 if turn == 0 else fed), (model, turn, hit)
                if turn > 0:
                    cold = Cold(d)
                    cold.n = 1000 + turn
                    assert got == cold(text), (model, turn)
                fed = len(text) + N - 1
                text = text + got["ids"] + ids_of(9, 200 + turn)
                restart(d)
            assert kv(d)["damaged_pages"] == 0, kv(d)


def what_another_instruction_set_computed_is_not_served():
    ids = ids_of(130)
    with Daemon("air", *SETS, "Isa=portable") as d:
        exact(d, ids)
        wait_for(lambda: kv(d)["written_pages"] == 10, 20, "ten pages on disk")
        d.sets[-1] = "Isa=auto"
        restart(d)
        if d.status()["executor"]["isa"] == "portable":
            raise Skip("this processor has no other instruction set")
        got, hit = exact(d, ids)
        assert hit == 0, hit
        assert got == Cold(d)(ids)
        d.sets[-1] = "Isa=portable"
        restart(d)
        assert exact(d, ids)[1] == 128  # it is still there


def many_texts_in_a_small_arena_are_bit_for_bit_cold_runs():
    texts = [ids_of(60 + 7 * i, 500 + i) for i in range(6)]
    with Daemon("air", "PageTokens=16", "Context=512", "KVCacheSize=512K") as d:
        want = [exact(d, text, 8, "--label", f"cold-{i}")[0] for i, text in enumerate(texts)]
        rng = random.Random(1)
        for _ in range(6):
            requests = []
            for i in [rng.randrange(6) for _ in range(5)]:
                p = d.popen("complete", "--ids", "--json", "--temperature", "0", "--max-tokens", 8, "--ignore-eos",
                            "--top", 5, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                p.stdin.write(json.dumps(texts[i]).encode())
                p.stdin.close()
                requests.append((i, p))
            for i, p in requests:
                lines = [json.loads(line) for line in p.stdout.read().splitlines()]
                assert p.wait(60) == 0
                for key in want[i]:
                    got = [v for line in lines[:-1] for v in line[key]]
                    assert got == want[i][key], (i, key, cached(lines[-1]))
        assert kv(d)["evicted_pages"] > 0 and kv(d)["read_pages"] > 0, kv(d)
        assert kv(d)["damaged_pages"] == 0, kv(d)


def a_restart_with_the_descriptor_store_finds_the_arena():
    ids = ids_of(130)
    with Stored("air", *SETS) as d, Recomputed("air", *SETS) as again:
        want, hit = exact(d, ids)
        assert hit == 0
        for how in (signal.SIGTERM, signal.SIGKILL):
            os.kill(d.process.pid, how)
            d.again()
            got, hit = exact(d, ids)
            assert hit == 129, (how, hit)
            assert got == want, how
            assert kv(d)["read_pages"] == 0, kv(d)
            assert kv(d)["damaged_pages"] == 0, kv(d)
            again.compare(d, 10)


def after_a_restart_the_next_turn_computes_only_what_is_new():
    """The page that is not full is found, too, if it was sealed before the broker died."""
    with Stored("air", *SETS) as d, Recomputed("air", *SETS) as again:
        text = ids_of(130)
        for turn, how in enumerate((signal.SIGTERM, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, None)):
            got, hit = exact(d, text)
            assert hit == (0 if turn == 0 else fed), (turn, hit)
            fed = len(text) + N - 1
            assert fed % PAGE != 0
            text = text + got["ids"] + ids_of(9, 200 + turn)
            if how:
                wait_for(lambda: kv(d)["held_pages"] == 0, 20, "its sum")  # which the executor is asked for at the end
                os.kill(d.process.pid, how)
                d.again()
        assert kv(d)["read_pages"] == kv(d)["damaged_pages"] == 0, kv(d)
        again.compare(d, 10)


def a_killed_executor_is_not_noticed_in_the_answer():
    ids, n = ids_of(130), 400
    with Daemon("air", *SETS) as d, Recomputed("air", *SETS) as again:
        want = Cold(d)(ids, n)
        os.kill(d.executor(), signal.SIGKILL)
        first, hit = exact(d, ids, n)
        assert hit == 0 and first == want
        before = d.executor()
        os.kill(before, signal.SIGKILL)
        got, hit = exact(d, ids, n)
        assert hit == 129, hit  # the arena is the broker's
        assert got == want
        # and in the middle of an answer
        executor = d.executor()
        request = d.popen("complete", "--ids", "--json", "--temperature", "0", "--max-tokens", n, "--ignore-eos",
                          "--top", 5, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        request.stdin.write(json.dumps(ids).encode())
        request.stdin.close()
        lines = [request.stdout.readline() for _ in range(3)]
        os.kill(executor, signal.SIGKILL)
        lines += request.stdout.read().splitlines()
        assert request.wait(60) == 0
        lines = [json.loads(line) for line in lines if line.strip()]
        assert lines[-1]["ids"] == want["ids"]
        assert [p for line in lines[:-1] for p in line.get("logprobs", [])] == want["logprobs"]
        assert d.executor() != executor
        assert kv(d)["damaged_pages"] == 0, kv(d)
        again.compare(d, 33)


def without_its_directory_it_still_answers():
    ids = ids_of(130)
    with Daemon("air", *SETS) as d:
        want = exact(d, ids)[0]
        restart(d, lambda: shutil.rmtree(d.dir / "state" / "kv"))
        got, hit = exact(d, ids)
        assert hit == 0, hit
        assert got == want
        # a file where the directory was: no disk, and it says so
        def block():
            shutil.rmtree(d.dir / "state" / "kv")
            (d.dir / "state" / "kv").write_text("not a directory")
        restart(d, block)
        got, hit = exact(d, ids)
        assert hit == 0 and got == want
        assert "no KV cache on disk: " in d.log(), d.log()
        got, hit = exact(d, ids)
        assert hit == 129 and got == want
        # it is tried again: when the model wakes up, and at a reload
        for how in (("sleep",), ("reload",)):
            assert d.status()["kv_disk"]["text"], d.status()["kv_disk"]
            (d.dir / "state" / "kv").unlink()
            d.ctl(*how)
            got, hit = exact(d, ids)
            assert hit == 129 and got == want
            wait_for(lambda: kv(d)["written_pages"] > 0 and not d.status()["kv_disk"]["text"], 20, "pages on disk")
            if how == ("sleep",):
                restart(d, block)
                got, hit = exact(d, ids)
                assert hit == 0 and got == want


def damaged_files_are_computed_again_and_counted():
    ids = ids_of(130)
    with Daemon("air", *SETS) as d:
        want = exact(d, ids)[0]
        wait_for(lambda: kv(d)["written_pages"] == 10, 20, "ten pages on disk")

        def damage():
            for path in (d.dir / "state" / "kv").rglob("*.kv"):
                with open(path, "r+b") as file:
                    data = bytearray(file.read(1 << 20))
                    # behind the header each record is a block and its page: a bit of each block of a page
                    for at in range(8192 + 100, len(data), 4096):
                        if len(set(data[at:at + 2048])) > 64:
                            data[at] ^= 1
                    file.seek(0)
                    file.write(data)
        restart(d, damage)
        got, hit = exact(d, ids)
        assert hit == 0, hit
        assert got == want
        wait_for(lambda: kv(d)["damaged_pages"] == 8, 20, "eight damaged pages, no more and no less")
        with Recomputed("air", *SETS) as again:
            again.compare(d, 9)


def another_uid_is_served_nothing_from_any_tier():
    if os.geteuid() != 0:
        raise Skip("only root may become another user")
    ids = ids_of(130)
    with Daemon("air", *SETS, socket_mode="0666") as d:
        want = exact(d, ids)[0]
        got, hit = exact(d, ids, uid=12345)
        assert hit == 0 and got == want, hit
        assert kv(d)["found_tokens"] == 0, kv(d)
        wait_for(lambda: kv(d)["written_pages"] == 20, 20, "ten pages on disk for each")
        restart(d)
        got, hit = exact(d, ids, uid=12346)
        assert hit == 0 and got == want, hit
        assert kv(d)["found_tokens"] == kv(d)["read_pages"] == 0, kv(d)
        got, hit = exact(d, ids, uid=12345)
        assert hit == 128 and got == want, hit
        assert kv(d)["read_pages"] == 8, kv(d)


def a_cancelled_answer_says_what_was_cached_too():
    with Daemon("air", *SETS) as d:
        ids = ids_of(100)
        d.complete(ids, 5)
        for end in (lambda p, turn: d.ctl("cancel", turn), lambda p, turn: p.send_signal(signal.SIGINT)):
            p = d.popen("complete", "--ids", "--json", "--temperature", "0", "--max-tokens", 3900, "--ignore-eos",
                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            p.stdin.write(json.dumps(ids).encode())
            p.stdin.close()
            p.stdin = None
            first = p.stdout.readline()
            end(p, json.loads(d.ctl("ps", "--json"))["turns"][0]["turn"])
            out, _ = p.communicate(timeout=20)
            assert p.returncode not in (0, None), out[-300:]
            last = json.loads(out.splitlines()[-1])
            usage = last["usage"]
            assert last["finish"] == "cancelled" and 0 < len(last["ids"]) < 3900, last
            assert last["ids"][:1] == json.loads(first)["ids"][:1], (first, last)
            assert usage["prompt_tokens"] == 100 and usage["cached_tokens"] == usage["cached_arena"] == 99, usage
            assert usage["cached_disk"] == usage["recomputed_tokens"] == 0, usage
            assert usage["completion_tokens"] >= len(last["ids"]) and usage["prefill_ms"] > 0, usage
            wait_for(lambda: not json.loads(d.ctl("ps", "--json"))["turns"], 10, "its end")


if __name__ == "__main__":
    run([v for v in list(globals().values()) if callable(v) and getattr(v, "__module__", "") == "__main__"
         and getattr(v, "__name__", "") not in ("Cold", "ids_of", "cached", "exact", "kv", "restart")])
