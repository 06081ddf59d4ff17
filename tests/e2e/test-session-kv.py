#!/usr/bin/env python3
"""A session's file with its KV, from one daemon to another: taken, refused, damaged."""
import struct

from steamd_e2e import *

SETS = ("ChatTemplate=glm47", "PageTokens=16", "KVCacheSize=4M")
WORDS = "The quick brown fox jumps over the lazy dog and runs away from here. " * 12


def ask(d, name, text, n, *args, **kwargs):
    return d.lines("ask", "--json", "--no-think", "--session", name, "--ignore-eos", "-n", n, "--temperature", "0",
                   *args, text, **kwargs)[-1]


def sections(data):
    """(kind, where its head is, where its payload is, bytes of it) of each."""
    found, at = [], 24
    while at < len(data):
        kind, _, size, _ = struct.unpack_from("<4sIQQ", data, at)
        found.append((kind.decode(), at, at + 24, size))
        at += 24 + size
    assert struct.unpack_from("<I", data, 12)[0] == len(found)
    return found


def exported(model="air", *sets):
    """The file of a session with KV, its next answer, and the daemon's log of it."""
    with Daemon(model, *SETS, *sets) as d:
        first = ask(d, "talk", WORDS, 30)
        path = d.dir / "talk.session"
        d.ctl("session", "export", "--kv", "talk", path)
        said = d.last_stderr
        assert not (d.dir / "talk.session.partial").exists()
        return path.read_bytes(), first, ask(d, "talk", "And now?", 12), said


def take(d, data, name="it"):
    path = d.dir / "file"
    path.write_bytes(data)
    return json.loads(d.ctl("session", "import", "--json", path, name))


def why(said):
    return [(n["what"], n["why"]) for n in said["not_taken"]]


def whole_pages(first, page_tokens=16):
    # the last token was sampled, and never fed
    return (first["usage"]["prompt_tokens"] + 30 - 1) // page_tokens


def goes_on_as_if_at_home(*sets):
    data, first, second, said = exported()
    n = whole_pages(first)
    assert said == f"KV of {16 * n} tokens\n", said
    kinds = [s[0] for s in sections(data)]
    assert kinds == ["sess", "turn", "toks", "kvhd"] + n * ["kvpg"], kinds
    with Daemon("air", *SETS, *sets) as d:
        said = take(d, data)
        assert said["kv"] == {"pages": n, "taken": n, "there": 0, "damaged": 0}, said
        assert why(said) == [], said
        again = ask(d, "it", "And now?", 12)
        cached = again["usage"]["cached_tokens"]
        assert cached == 16 * n, (again["usage"], n)
        # computed again is what filled no page, the token that was sampled last, and nothing else of the session's
        assert 0 <= first["usage"]["prompt_tokens"] + 30 - 1 - cached < 16, (first["usage"], cached)
        assert again["ids"] == second["ids"] and again["content"] == second["content"]
        # the same session again: what is there is not taken twice
        said = take(d, data, "twice")
        assert said["kv"]["there"] == n and said["kv"]["taken"] == 0, said
        usage = again["usage"]
    with Daemon("air", *SETS, "DiskCache=no") as d:  # and without any KV
        plain = d.dir / "plain"
        plain.write_bytes(data)
        d.ctl("session", "import", plain, "it")
        d.process.send_signal(signal.SIGTERM)
        d.process.wait(20)
        d.log_path.write_text("")
        d.__enter__()
        cold = ask(d, "it", "And now?", 12)
        assert cold["usage"]["cached_tokens"] == 0, cold["usage"]
        assert cold["ids"] == second["ids"]
    return usage


def kv_goes_to_the_disk_of_another_daemon():
    usage = goes_on_as_if_at_home()
    assert usage["cached_disk"] == usage["cached_tokens"], usage


def kv_goes_to_memory_where_there_is_no_disk():
    usage = goes_on_as_if_at_home("DiskCache=no")
    assert usage["cached_arena"] == usage["cached_tokens"], usage


def a_flipped_bit_is_found_in_every_section():
    data, first, _, _ = exported()
    with Daemon("air", *SETS) as d:
        n = whole_pages(first)
        for i, (kind, head, payload, size) in enumerate(sections(data)):
            if kind == "kvpg" and i not in (4, 4 + n // 2, 3 + n):
                continue
            for at in (head + 17, payload, payload + size // 2, payload + size - 1):
                bad = bytearray(data)
                bad[at] ^= 4
                if kind == "sess":
                    path = d.dir / "bad"
                    path.write_bytes(bad)
                    d.ctl("session", "import", path, "it", code=65)
                    continue
                said = take(d, bytes(bad))
                assert len(said["not_taken"]) == (1 if kind.startswith("kv") else 2), (kind, at - head, said)
                if kind.startswith("kv"):
                    assert said["kv"]["damaged"] == 1 and said["turns"] == 1, (kind, at - head, said)
                    done = max(i - 4, 0)
                    assert said["kv"]["taken"] + said["kv"]["there"] == done, (kind, at - head, said)
                d.ctl("session", "rm", said["id"])
        for cut in (10, 24 + 10, len(data) - 5, sections(data)[3][2] + 3, sections(data)[5][2] - 3):
            path = d.dir / "bad"
            path.write_bytes(data[:cut])
            if cut < 100:
                d.ctl("session", "import", path, "it", code=64 if cut == 10 else 65)
                continue
            said = take(d, data[:cut])
            assert said["turns"] == 1 and said["kv"]["damaged"] == 1, said
            d.ctl("session", "rm", said["id"])
        assert d.complete([5], 2)["finish"] == "length"


def what_is_of_another_model_is_left_out():
    data, first, _, _ = exported()
    with Daemon("air", "ChatTemplate=glm47", "PageTokens=32", "KVCacheSize=4M") as d:
        said = take(d, data)
        assert why(said) == [("KV", "it has pages in tokens of 16; here it is 32")], said
        assert said["turns"] == 1 and said["kv"]["taken"] == 0, said
    with Daemon("air", *SETS, "Isa=portable") as d:
        said = take(d, data)
        assert len(said["not_taken"]) == 1 and "portable computes here" in why(said)[0][1], said
        assert said["turns"] == 1, said
    with Daemon("bf16", *SETS) as d:
        said = take(d, data)
        assert why(said)[-1][0] == "KV" and said["turns"] == 1 and said["kv"]["taken"] == 0, said


def forged_numbers_are_refused():
    data, _, _, _ = exported()
    import ctypes
    lib = ctypes.CDLL("libxxhash.so.0")

    class H128(ctypes.Structure):
        _fields_ = [("low", ctypes.c_uint64), ("high", ctypes.c_uint64)]
    lib.XXH3_128bits.restype = H128
    lib.XXH3_64bits.restype = ctypes.c_uint64
    lib.XXH3_128bits.argtypes = lib.XXH3_64bits.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    forged = bytearray(data)
    _, head, at, size = sections(data)[5]
    front = 24 + 4 * 16
    page = bytearray(forged[at + front:at + size])
    page[40:42] = b"\xc0\x7f"  # a NaN
    sum128 = lib.XXH3_128bits(bytes(page), len(page))
    forged[at + front:at + size] = page
    forged[at + 8:at + 24] = struct.pack("<QQ", sum128.low, sum128.high)
    forged[head + 16:head + 24] = struct.pack(
        "<Q", lib.XXH3_64bits(bytes(forged[head:head + 16] + forged[at:at + size]), 16 + size))
    with Daemon("air", *SETS) as d:
        said = take(d, bytes(forged))
        assert said["kv"]["taken"] == 1 and said["kv"]["damaged"] == 1, said
        assert why(said) == [("KV from token 16 on",
                              "it holds what is no number, or one that no model computes")], said


def a_file_is_for_its_importer_alone():
    if os.geteuid() != 0:
        raise Skip("several uids need root")
    data, first, second, _ = exported()
    with Daemon("air", *SETS, socket_mode="0666") as d:
        path = d.dir / "file"
        path.write_bytes(data)
        path.chmod(0o644)
        d.ctl("session", "import", path, "it", uid=4001)
        d.ctl("session", "import", path, "it", "--label", "l", uid=4002)
        # the same text of others finds nothing of it: not another uid's, and not another label's
        assert ask(d, "mine", WORDS, 3, uid=4003)["usage"]["cached_tokens"] == 0
        assert ask(d, "mine", WORDS, 3, uid=4002)["usage"]["cached_tokens"] == 0
        assert ask(d, "it", "And now?", 12, uid=4001)["usage"]["cached_tokens"] == 16 * whole_pages(first)


def none_of_it_becomes_everybodys():
    if os.geteuid() != 0:
        raise Skip("several uids need root")
    system = "You are brief. " * 12
    with Daemon("air", *SETS) as d:
        ask(d, "talk", WORDS, 30, "--system", system)
        d.ctl("session", "export", "--kv", "talk", d.dir / "file")
        data = (d.dir / "file").read_bytes()
        n = sum(s[0] == "kvpg" for s in sections(data))
    marked = pathlib.Path(tempfile.mkdtemp(prefix="steamd-e2e-"))
    (marked / "brief.txt").write_text(system)
    with Daemon("air", *SETS, f"SharedPrompts={marked}", socket_mode="0666") as d:
        path = d.dir / "file"
        path.write_bytes(data)
        path.chmod(0o644)
        said = json.loads(d.ctl("session", "import", "--json", path, "it", uid=4001))
        n_shared = said["kv"]["there"]
        assert n_shared > 2 and said["kv"]["taken"] == n - n_shared, (said, n)
        # what is everybody's is computed here, for itself or for this; behind it comes what the file brought
        ask(d, "mine", "hi", 3, "--system", system, uid=4002)
        assert ask(d, "it", "And now?", 3, uid=4001)["usage"]["cached_tokens"] == 16 * n
    shutil.rmtree(marked)


def what_the_user_may_not_have_is_left_out():
    data, first, second, _ = exported()
    pages = [s for s in sections(data) if s[0] == "kvpg"]
    with Daemon("air", *SETS, "DiskCache=no", f"KVCacheSize={6 * (pages[0][3] - 88)}", "Context=96") as d:
        said = take(d, data)
        assert 0 < said["kv"]["taken"] <= 6 and len(said["not_taken"]) == 1, said
        assert "KV cache" in why(said)[0][1] and said["turns"] == 1, said
        assert d.complete([5], 2)["finish"] == "length"


def an_export_without_kv_says_why():
    with Daemon("air", *SETS) as d:
        ask(d, "talk", "hi", 1)
        d.ctl("session", "export", "--kv", "talk", d.dir / "a")
        n = len(sections((d.dir / "a").read_bytes()))
        assert d.last_stderr in ("KV of 0 tokens\nleft out: KV: it fills no page\n",
                                 "KV of 16 tokens\n"), (d.last_stderr, n)
        d.ctl("session", "new", "empty")
        out = d.ctl("session", "export", "--kv", "empty")
        assert "there is no turn" in d.last_stderr and len(sections(out)) == 1, d.last_stderr
        assert why(take(d, out)) == []
        d.ctl("session", "export", "--kv", "nothing", code=66)


if __name__ == "__main__":
    run([v for k, v in list(globals().items()) if callable(v) and getattr(v, "__module__", "") == "__main__"
         and k not in ("ask", "sections", "exported", "take", "why", "whole_pages", "goes_on_as_if_at_home")])
