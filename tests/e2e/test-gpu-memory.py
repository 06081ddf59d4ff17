#!/usr/bin/env python3
"""The memory of a GPU: drawn, leased, given back and had again; the executor runs on the emulator."""
from ongpu import *

MIB = 1 << 20
GROUP = 36 * MIB  # 3072 pages of 12 KiB
POOL = ("KVCacheSize=144M",)  # four groups


def devices(d):
    return d.status()["executor"]["devices"]


def pool(d):
    return devices(d)[0]["kv"]["bytes"]


def the_map_and_the_card_are_told_when_asked():
    with OnGpu(*POOL) as d:
        d.ask()
        first, second = devices(d)[0], devices(d)[0]
        assert first["kv"]["bytes"] == 4 * GROUP and first["kv"]["group_bytes"] == GROUP, first["kv"]
        assert first["kv"]["map"][0] == "o" and set(first["kv"]["map"][1:]) == {"."}, first["kv"]
        assert first["kv"]["largest_free_run"] == first["kv"]["pages"] - first["kv"]["live_pages"], first["kv"]
        assert first["kv"]["live_pages"] > 0 and 0 < first["kv"]["fragmentation"] < 1, first["kv"]
        names = {r["name"]: r["backed_bytes"] for r in first["regions"]}
        assert names["KV cache"] == 4 * GROUP and names["weights"] > 0, names
        assert sum(r["backed_bytes"] for r in first["regions"]) == first["taken_bytes"], first
        assert first["card"]["temperature_c"] == 54 and first["card"]["power_mw"] == 123456, first["card"]
        # the library that makes it up counts how often it is asked: once for each status
        assert second["card"]["free_bytes"] == first["card"]["free_bytes"] + 1, (first["card"], second["card"])
        out = d.ctl("mem").decode()
        for words in ("GPU 0", "KV cache         144.00 MiB", "groups of 36.00 MiB", "largest free run",
                      "fragmentation", "map", "20.00 GiB of 80.00 GiB free, 123 W of 700 W, 54 C"):
            assert words in out, (words, out)


def a_card_that_is_not_asked_says_why():
    with OnGpu(*POOL) as d:
        (d.dir / "bin" / "libnvidia-ml.so.1").unlink()
        card = devices(d)[0]["card"]
        assert "libnvidia-ml.so.1" in card["text"] and "free_bytes" not in card, card


def an_executor_that_does_not_answer_does_not_keep_the_status():
    with OnGpu(*POOL) as d:
        devices(d)
        pid = d.executor()
        os.kill(pid, signal.SIGSTOP)
        try:
            assert "devices" not in d.status()["executor"]
        finally:
            os.kill(pid, signal.SIGCONT)
        assert devices(d)


def the_processor_has_no_devices():
    with Daemon("odd", "Context=64") as d:
        assert "devices" not in d.status()["executor"]
        assert "GPU" not in d.ctl("mem").decode()


def a_lease_takes_groups_of_the_cache_and_its_end_gives_them_back():
    with OnGpu(*POOL) as d:
        before = d.ask()
        holder = subprocess.Popen(["sleep", "300"])
        try:
            answer = json.loads(d.ctl("yield", "50M", "--for-pid", holder.pid, "--json"))
            assert answer["freed_bytes"] == 2 * GROUP and answer["rung"] == "quiet", answer
            assert pool(d) == 2 * GROUP
            assert d.ask() == before  # it serves, and has not taken them back
            assert pool(d) == 2 * GROUP
            os.kill(d.executor(), signal.SIGKILL)  # nor does the next executor
            wait_for(lambda: d.status()["state"] == "ready", 30, "the next executor")
            assert pool(d) == 2 * GROUP
            assert d.ask() == before
        finally:
            holder.kill()
            holder.wait()
        wait_for(lambda: pool(d) == 4 * GROUP, 30, "the end of the lease")
        assert d.ask() == before


def a_lease_of_more_than_the_cache_parks_the_weights_too():
    with OnGpu(*POOL) as d:
        before = d.ask()
        holder = subprocess.Popen(["sleep", "300"])
        try:
            answer = json.loads(d.ctl("yield", "130M", "--for-pid", holder.pid, "--json"))
            assert answer["rung"] in ("parked", "gone") and answer["freed_bytes"] >= 130 * MIB, answer
            assert d.ask() == before
        finally:
            holder.kill()
            holder.wait()


def a_parked_executor_has_neither_weights_nor_cache():
    with OnGpu(*POOL) as d:
        before = d.ask(6)
        d.ctl("sleep")
        names = {r["name"]: r["backed_bytes"] for r in devices(d)[0]["regions"]}
        assert names["KV cache"] == 0 and names["weights"] == 0, names
        assert d.status()["power"]["rung"] == "parked", d.status()["power"]
        d.ctl("wake")
        names = {r["name"]: r["backed_bytes"] for r in devices(d)[0]["regions"]}
        assert names["KV cache"] == 4 * GROUP and names["weights"] > 0, names
        assert d.ask(6) == before


if __name__ == "__main__":
    run([the_map_and_the_card_are_told_when_asked, a_card_that_is_not_asked_says_why, an_executor_that_does_not_answer_does_not_keep_the_status, the_processor_has_no_devices, a_lease_takes_groups_of_the_cache_and_its_end_gives_them_back, a_lease_of_more_than_the_cache_parks_the_weights_too, a_parked_executor_has_neither_weights_nor_cache])
