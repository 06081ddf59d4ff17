#!/usr/bin/env python3
"""The commands that scripts rely on, against the reference data, through the real daemon."""
import contextlib
import re

from steamd_e2e import *


def cases(name):
    return json.loads((GOLDEN / name).read_text())


def tokenize_and_detokenize_agree_with_the_reference():
    with Daemon("air") as d:
        n = 0
        for c in cases("tokenizer/cases.json")["encode"][::5]:
            text = c["text"].encode("utf-8", "surrogatepass")
            off = c.get("ids_all_added_off", c.get("ids_special_off", c["ids"]))
            assert json.loads(d.ctl("tokenize", "--json", stdin=text)) == {"ids": c["ids"]}, c["text"]
            assert json.loads(d.ctl("tokenize", "--no-special", "--json", stdin=text)) == {"ids": off}, c["text"]
            back = json.loads(d.ctl("detokenize", "--json", stdin=json.dumps(c["ids"]).encode()))
            assert back == {"text": c.get("decoded", c["text"])}, c["text"]
            n += 1
        assert n > 20


def render_agrees_with_the_reference():
    with Daemon("air") as d:
        for c in cases("chat/cases.json")["cases"]:
            conversation = {"messages": c["messages"], **c["options"]}
            out = d.ctl("render", "--json", stdin=json.dumps(conversation).encode())
            assert json.loads(out) == {"text": c["text"]["glm46"]}, c["name"]


def another_template_version_can_be_set():
    with Daemon("air", "ChatTemplate=glm47") as d:
        for c in cases("chat/cases.json")["cases"][:20]:
            conversation = {"messages": c["messages"], **c["options"]}
            out = d.ctl("render", "--json", stdin=json.dumps(conversation).encode())
            assert json.loads(out) == {"text": c["text"]["glm47"]}, c["name"]
    with Daemon("air", "ChatTemplate=none") as d:
        d.ctl("ask", "hello", code=65)
        assert "complete" in d.last_stderr
        assert d.complete([5, 6], 2)["finish"] == "length"


def score_agrees_with_the_truth():
    for checkpoint in ("air", "glm46", "odd", "bf16", "w4all", "w4g128"):
        t = truth(checkpoint)
        bound = 2 * 1.5 * t["noise_floor_bf16"]["same_experts_max_abs"]
        p = prompt(checkpoint, "r7")
        with Daemon(checkpoint) as d:
            rows = d.lines("score", "--ids", "--json", "--top", 10, stdin=json.dumps(p["ids"]).encode())
        assert [r["id"] for r in rows] == p["ids"]
        assert rows[0]["logprob"] is None
        for want in p["logprobs"]:
            row = rows[want["pos"]]
            margin = p["router_min_margin"][want["pos"] - 1]
            assert margin < 0.01 or abs(row["logprob"] - want["logprob"]) <= bound, (checkpoint, want, row)
            assert len(row["top"]) == 10
            assert all(i < t["real_vocab_size"] for i, _ in row["top"])


def greedy_completion_agrees_with_the_truth():
    for checkpoint in ("air", "glm46", "odd", "bf16", "w4all", "w4g128", "long"):
        t = truth(checkpoint)
        bound = 2 * 1.5 * t["noise_floor_bf16"]["same_experts_max_abs"]
        with Daemon(checkpoint) as d:
            for p in t["prompts"]:
                steps = p.get("greedy", {}).get("steps")
                if not steps:
                    continue
                out = d.complete(p["ids"], len(steps))
                assert out["usage"]["prompt_tokens"] == len(p["ids"])
                assert out["usage"]["completion_tokens"] == len(steps) == len(out["ids"])
                assert out["finish"] == "length"
                for i, step in enumerate(steps):
                    if step["margin"] < bound:
                        break
                    assert out["ids"][i] == step["id"], (checkpoint, p["name"], i)


def usage_says_where_the_kv_was():
    with Daemon("air") as d:
        cold = d.complete([5] * 100, 4)["usage"]
        warm = d.complete([5] * 100, 4)["usage"]
        assert cold["cached_tokens"] == cold["cached_arena"] == 0, cold
        assert warm["cached_tokens"] == warm["cached_arena"] == 99, warm
        for u in cold, warm:
            assert u["prompt_tokens"] == 100 and u["completion_tokens"] == 4, u
            assert u["cached_device"] == u["cached_disk"] == u["recomputed_tokens"] == 0, u


def isa_ref_says_what_the_truth_says():
    with Daemon("air", "Isa=ref") as d:
        for p in truth("air")["prompts"]:
            if "greedy" in p:
                out = d.complete(p["ids"], 24)
                for i, step in enumerate(p["greedy"]["steps"]):
                    if step["margin"] < 2e-3:
                        break
                    assert out["ids"][i] == step["id"], (p["name"], i)


def ask_streams_an_answer_and_ends_with_one_json_line():
    with Daemon("air") as d:
        out = d.ctl("ask", "--max-tokens", 20, "--seed", 7, "Hello", "there")
        assert out
        last = d.lines("ask", "--json", "--max-tokens", 20, "--seed", 7, "Hello", "there")[-1]
        assert last["finish"] in ("length", "stop", "tool_calls")
        assert last["usage"]["completion_tokens"] == len(last["ids"]) <= 20
        again = d.lines("ask", "--json", "--max-tokens", 20, "--seed", 7, "Hello", "there")[-1]
        assert again["ids"] == last["ids"], "the same seed gave other tokens"
        other = d.lines("ask", "--json", "--max-tokens", 20, "--seed", 8, "Hello", "there")[-1]
        assert other["ids"] != last["ids"], "another seed gave the same tokens"
        piped = d.lines("ask", "--json", "--max-tokens", 3, "-", stdin=b"Hello there")[-1]
        words = d.lines("ask", "--json", "--max-tokens", 3, "Hello there")[-1]
        assert piped["usage"]["prompt_tokens"] == words["usage"]["prompt_tokens"]


def every_flag_of_ask_and_complete_is_taken():
    with Daemon("air", "ModelAliases=glm default") as d:
        tools = [{"type": "function", "function": {"name": "f", "parameters": {
            "type": "object", "properties": {"a": {"type": "string"}, "n": {"type": "integer"}}}}}]
        path = d.dir / "tools.json"
        path.write_text(json.dumps(tools))
        for _ in range(3):  # what one request leaves behind must not hurt the next
            with_tools = d.lines("ask", "--json", "--tools", path, "--max-tokens", 2, "hi")[-1]
            assert with_tools["usage"]["prompt_tokens"] > 100
        out = d.lines("complete", "--json", "--top", 2, "--max-tokens", 3, "--seed", 5, "Hello")
        assert all(len(line["logprobs"]) == len(line["ids"]) for line in out[:-1] if line["ids"])
        assert all(len(top) == 2 for line in out[:-1] if line["ids"] for top in line["top"])
        last = d.lines("ask", "--json", "--system", "Be brief.", "--no-think", "--temperature", 0.7, "--top-p", 0.9,
                       "--min-p", 0.05, "--top-k", 40, "--repetition-penalty", 1.1, "--frequency-penalty", 0.2,
                       "--presence-penalty", -0.1, "--min-tokens", 2, "--max-tokens", 4, "--logit-bias", "70=-3",
                       "--logit-bias", "71=2.5", "--deadline", 20000, "--model", "glm", "--label", "x", "hi")[-1]
        assert 2 <= len(last["ids"]) <= 4
        d.ctl("ask", "--model", "nope", "hi", code=66)
        assert "nope" in d.last_stderr
        for _ in range(2):
            d.lines("complete", "--json", "--logit-bias", "70=100", "--temperature", 0, "--max-tokens", 2, "x")
            d.lines("complete", "--json", "--stop", "zzz", "--stop", "yyy", "--max-tokens", 2, "x")
        assert d.lines("complete", "--json", "--logit-bias", "70=100", "--temperature", 0, "--max-tokens", 2,
                       "--ignore-eos", "x")[-1]["ids"] == [70, 70]


def bench_relates_speed_to_the_machine():
    with Daemon("air") as d:
        shown = json.loads(d.ctl("bench", "--json", "--prompt-tokens", 40, "--tokens", 8, "--rounds", 2))
        assert list(shown) == [
            "model", "device", "isa", "threads", "prompt_tokens", "completion_tokens", "rounds",
            "prefill_tokens_per_second", "prefill_gflops", "decode_tokens_per_second", "bytes_per_token",
            "read_bytes_per_second", "limit_tokens_per_second", "decode_share"], shown
        status = d.status()
        executor, kv = status["executor"], status["kv"]
        assert (shown["prompt_tokens"], shown["completion_tokens"], shown["rounds"]) == (40, 8, 2)
        assert shown["model"] == status["model"]["name"] and shown["threads"] == executor["threads"]
        kv_bytes = kv["page_bytes"] / kv["page_tokens"]
        assert shown["bytes_per_token"] == int(executor["decode_bytes"] + 44 * kv_bytes), (shown, status)
        assert 1e8 < shown["read_bytes_per_second"] == executor["read_bytes_per_second"] < 1e13, shown
        assert 1 < shown["decode_tokens_per_second"] < 1e6 and 1 < shown["prefill_tokens_per_second"] < 1e7, shown
        limit = shown["read_bytes_per_second"] / shown["bytes_per_token"]
        assert abs(shown["limit_tokens_per_second"] / limit - 1) < 1e-3, shown
        assert abs(shown["decode_share"] / (shown["decode_tokens_per_second"] / limit) - 1) < 1e-3, shown
        assert d.status()["requests_served"] >= 3, "a request to warm up and one a round"

        text = d.ctl("bench", "--prompt-tokens", 64, "--rounds", 1).decode()
        assert "64 tokens" in text and "tokens/s" in text and "% of the limit" in text, text
        d.ctl("bench", "--prompt-tokens", 1 << 20, code=65)
        assert "1048576" in d.last_stderr, d.last_stderr
        d.ctl("bench", "--tokens", 1, code=64)
        d.ctl("bench", "--prompt-tokens", "many", code=64)
    p = subprocess.run([str(STEAMCTL), "--socket", "/nonexistent/s.sock", "bench"], env=ENV, capture_output=True)
    assert p.returncode == 69 and b"/nonexistent/s.sock" in p.stderr, p


def stop_strings_and_stop_ids_end_an_answer():
    p = prompt("air", "t33")
    with Daemon("air") as d:
        free = d.complete(p["ids"], 24)
        text = json.loads(d.ctl("detokenize", "--json", stdin=json.dumps(free["ids"]).encode()))["text"]
        stop = text[8:11]
        out = d.lines("complete", "--ids", "--json", "--temperature", "0", "--max-tokens", 24, "--ignore-eos",
                      "--stop", stop, stdin=json.dumps(p["ids"]).encode())
        assert out[-1]["finish"] == "stop"
        said = d.ctl("complete", "--ids", "--temperature", "0", "--max-tokens", 24, "--ignore-eos",
                     "--stop", stop, stdin=json.dumps(p["ids"]).encode()).decode()
        assert said.rstrip("\n") == text[:text.index(stop)].rstrip("\n"), (said, text, stop)


def prompt_and_answer_that_do_not_fit_are_refused_with_numbers():
    with Daemon("air", "Context=128") as d:
        out = d.ctl("complete", "--ids", "--json", "--max-tokens", 4, stdin=json.dumps([5] * 128).encode(), code=65)
        assert "128" in d.last_stderr, d.last_stderr
        d.ctl("complete", "--ids", "--json", "--max-tokens", 29, stdin=json.dumps([5] * 100).encode(), code=65)
        assert "100" in d.last_stderr and "29" in d.last_stderr, d.last_stderr
        assert d.complete([5] * 100, 28)["usage"]["completion_tokens"] == 28
        free = d.lines("complete", "--ids", "--json", "--ignore-eos", stdin=json.dumps([5] * 100).encode())[-1]
        assert free["usage"]["completion_tokens"] == 28, "the context that is left is the default"


def what_a_user_gets_wrong_has_an_exit_code_and_a_sentence():
    with Daemon("air") as d:
        d.ctl("nonsense", code=64)
        d.ctl("complete", "--ids", "--json", stdin=b"[999999]", code=64)
        assert "999999" in d.last_stderr
        d.ctl("complete", "--ids", "--json", stdin=b"[-1]", code=64)
        d.ctl("render", "--json", stdin=b"{}", code=64)
        assert "messages" in d.last_stderr
        d.ctl("ask", "--temperature", "-3", "x", code=64)
        d.ctl("ask", "--top-p", "7", "x", code=64)
        d.ctl("cancel", "12345", code=66)
        d.ctl("detokenize", "--json", stdin=b"[1, 9999999]", code=64)
        assert "9999999" in d.last_stderr
        d.ctl("ask", code=64)
        assert "nothing was asked" in d.last_stderr


def without_a_daemon_the_message_names_socket_and_remedy():
    p = subprocess.run([str(STEAMCTL), "--socket", "/nonexistent/s.sock", "ask", "x"], env=ENV,
                       capture_output=True)
    assert p.returncode == 69, p.returncode
    err = p.stderr.decode()
    assert "/nonexistent/s.sock" in err and "systemctl start steamd.socket" in err and err.count("\n") == 1, err


def a_refused_model_ends_a_foreground_start_with_65():
    with tempfile.TemporaryDirectory() as dir:
        shutil.copytree(GOLDEN / "bf16", dir + "/m")
        shard = pathlib.Path(dir, "m", "model-00002-of-00002.safetensors")
        os.truncate(shard, shard.stat().st_size - 4)
        p = subprocess.run([str(STEAMD), "--model", dir + "/m", "--socket", dir + "/s", "--state", dir + "/st"],
                           capture_output=True, timeout=60)
        assert p.returncode == 65, (p.returncode, p.stderr)
        assert b"model-00002-of-00002.safetensors" in p.stderr and b"ready" not in p.stderr, p.stderr


def inspect_describes_every_checkpoint():
    for checkpoint in ("air", "glm46", "odd", "bf16", "w4all", "w4g128", "long"):
        p = subprocess.run([str(STEAMD), "--inspect", str(GOLDEN / checkpoint)], capture_output=True, timeout=60)
        assert p.returncode == 0, p.stderr
        assert b"glm4_moe" in p.stdout, p.stdout


def a_plan_says_what_fits_on_gpus_that_are_not_there():
    def plan(*args):
        p = subprocess.run([str(STEAMD), "--plan", *args], capture_output=True, text=True, timeout=60)
        return p.returncode, p.stdout, p.stderr

    for args in ("--vram", "96GB"), ("--vram=48GB", "--gpus=2"), ("--vram", "24GB", "--gpus", "4"):
        code, out, err = plan("--model", "air", *args)
        assert code == 0 and "131072 tokens" in out and not err, (code, out, err)
    code, out, err = plan("--model", "air", "--vram", "80GB", "--set", "Context=131072")
    assert code == 69 and "to spare" in out, (code, out)
    fits = int(err.split("; ")[1].split()[0])
    code, out, err = plan("--model", "air", "--vram", "80GB", "--set", f"Context={fits}")
    assert code == 0, (code, out, err)
    code, out, err = plan("--model", str(GOLDEN / "air"), "--vram", "2GiB")
    assert code == 0, (code, err)
    for args, sentence in (
        (("--model", "air", "--vram", "96"), "'96' is no size of a GPU's memory; 96GB (as it is sold) or 94.5GiB would be"),
        (("--model", "air", "--vram", "96GB", "--gpus", "0"), "--gpus is '0'; from 1 to 8 is possible"),
    ):
        code, out, err = plan(*args)
        assert code == 64 and err == f"steamd: {sentence}\n", (code, err)
    code, out, err = plan("--model", "/nowhere", "--vram", "96GB")
    assert code == 65 and "/nowhere" in err, (code, err)


def configuration_mistakes_are_named_with_file_and_line():
    with tempfile.TemporaryDirectory() as dir:
        path = pathlib.Path(dir, "steamd.conf")
        path.write_text("[steamd]\nModel=/x\nMaxBatch=900\n")
        p = subprocess.run([str(STEAMD), "--config", str(path), "--check-config"], capture_output=True)
        assert p.returncode == 78, p.returncode
        assert f"{path}:3: MaxBatch is '900'; from 1 to 64 is allowed".encode() in p.stderr, p.stderr
        path.write_text("[steamd]\nMaxBatch=9\n")
        p = subprocess.run([str(STEAMD), "--config", str(path), "--print-config"], capture_output=True)
        assert p.returncode == 0 and b"MaxBatch=9\n" in p.stdout, p.stdout


def a_users_files_come_over_the_model_that_comes_with_steamd():
    with tempfile.TemporaryDirectory() as dir:
        def printed(**environment):
            p = subprocess.run([str(STEAMD), "--user", "--print-config"], capture_output=True,
                               env={"PATH": os.environ["PATH"], **environment})
            return p.returncode, p.stdout.decode(), p.stderr.decode()

        code, out, err = printed(XDG_CONFIG_HOME=dir)
        assert code == 0, err
        assert re.search(r"^Model=/.*/steamd/models/steamd-tiny\n", out, re.M), out
        files = pathlib.Path(dir, ".config", "steamd")
        (files / "conf.d").mkdir(parents=True)
        (files / "steamd.conf").write_text("[steamd]\nModel=/mine\nMaxBatch=9\n")
        (files / "conf.d" / "a.conf").write_text("[steamd]\nMaxBatch=7\n")
        code, out, err = printed(HOME=dir)
        assert code == 0 and "Model=/mine\n" in out and "MaxBatch=7\n" in out, (out, err)
        code, out, err = printed()
        assert code == 78 and "--user wants $XDG_CONFIG_HOME or $HOME, an absolute path" in err, (code, err)


def chat_is_a_conversation_and_ctrl_c_stops_only_the_answer():
    import pty
    import select
    with Daemon("air") as d:
        pid, fd = pty.fork()
        if pid == 0:
            os.environ.update(ENV, TERM="dumb", XDG_STATE_HOME=str(d.dir / "xdg"))
            os.execv(STEAMCTL, [str(STEAMCTL), "--socket", str(d.socket), "chat", "--max-tokens", "30000",
                                "--ignore-eos", "--no-think"])
        seen = b""

        def read_until(condition, seconds=20):
            nonlocal seen
            end = time.monotonic() + seconds
            while not condition():
                assert time.monotonic() < end, seen[-500:]
                if select.select([fd], [], [], 0.1)[0]:
                    seen += os.read(fd, 65536)

        read_until(lambda: b"> " in seen)
        os.write(fd, b"hello there\n")
        read_until(lambda: json.loads(d.ctl("ps", "--json"))["turns"])
        os.write(fd, b"\x03")
        read_until(lambda: b"(stopped)" in seen)
        wait_for(lambda: not json.loads(d.ctl("ps", "--json"))["turns"], 10, "the turn's end")
        os.write(fd, b"/help\n")
        read_until(lambda: b"Ctrl-D" in seen and seen.endswith(b"> "))

        def has_left():
            if os.waitpid(pid, os.WNOHANG)[0] == pid:
                return True
            with contextlib.suppress(OSError):
                # one that comes before the line editor listens is lost, or a NUL in its line: that is emptied first
                os.write(fd, b"\x15\x04")
            return False

        wait_for(has_left, 20, "the chat's end")
        assert "hello there" in (d.dir / "xdg" / "steamctl" / "history").read_text().replace("\\040", " ")


def mem_shows_what_is_held_and_draws_the_pages():
    with Daemon("air", "KVCacheSize=64M") as d:
        d.ctl("complete", "--max-tokens", "4", "some words to be kept")
        kv = d.status()["kv"]
        shown = d.ctl("mem").decode()
        assert 0 < len(kv["map"]) <= 256 and set(kv["map"]) <= set(".o+#"), kv
        assert 0 < kv["largest_free_run"] <= kv["free_pages"] and 0 <= kv["fragmentation"] < 1, kv
        assert 0 < kv["resident_bytes"] <= kv["bytes"], kv
        assert f"{kv['pages']} pages" in shown and f"{kv['largest_free_run']} pages" in shown, shown
        assert re.search(r"^weights +[0-9.]+ MiB$", shown, re.M), shown
        assert "".join(line.split()[-1] for line in shown.splitlines() if re.search(r"^(map)? +[.o+#]+$", line)) == kv["map"], shown
        assert json.loads(d.ctl("mem", "--json"))["kv"]["pages"] == kv["pages"]


def status_shows_the_model_and_where_defaults_come_from():
    with Daemon("air", "MinP=0.02") as d:
        s = json.dumps(d.status())
        assert "air" in s and "0.02" in s and "command line" in s and "generation_config" in s, s
        assert d.ctl("status").decode().strip()
        assert "air" in d.ctl("models").decode()


if __name__ == "__main__":
    run([v for k, v in list(globals().items()) if callable(v) and getattr(v, "__module__", "") == "__main__"
         and k not in ("cases",)])
