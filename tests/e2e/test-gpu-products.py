#!/usr/bin/env python3
"""By what an executor on a GPU multiplies: chosen when it starts, kept for the next one, and told."""
import re

from ongpu import *

LONG = [(7 * i + 3) % 200 for i in range(14)]


def products(d):
    return d.status()["executor"]["products"]


def kept(d):
    return sorted(p.name for p in (d.dir / "cache").iterdir())


def restart(d):
    starts = d.status()["executor"]["starts"]
    os.kill(d.executor(), signal.SIGKILL)
    wait_for(lambda: d.status()["executor"]["starts"] > starts and d.status()["state"] == "ready", 30, "the next one")


def settle(d):
    """The emulator is slow: what there was no time for is timed by the next one."""
    for _ in range(6):
        if "no time was left" not in products(d):
            return
        restart(d)
    raise AssertionError(products(d))


def the_library_multiplies_and_what_was_timed_is_kept():
    with OnGpu(model="bf16", blaslt="") as d, Daemon("bf16", "Context=64") as cpu:
        said = re.match(r"cuBLASLt 13\.2\.3 for \d+ of 6 products, (\d+) of them timed in \d+\.\d\d s", products(d))
        assert said and int(said[1]) > 0, products(d)
        assert f"products of many tokens: {products(d)}" in d.log(), d.log()
        assert kept(d) == ["products-0-of-1"], kept(d)
        for prompt in (LONG, LONG[:7], LONG[:3]):
            assert d.complete(prompt, 5)["ids"] == cpu.complete(prompt, 5)["ids"], prompt
        settle(d)
        restart(d)
        said = re.match(r"cuBLASLt 13\.2\.3 for (\d+) of 6 products, 0 of them timed in \d+\.\d\d s$", products(d))
        assert said and int(said[1]) > 0, products(d)
        assert d.complete(LONG, 5)["ids"] == cpu.complete(LONG, 5)["ids"]


def what_was_kept_and_is_damaged_is_timed_anew():
    with OnGpu(model="bf16", blaslt="") as d:
        path = d.dir / "cache" / "products-0-of-1"
        good = path.read_bytes()
        path.write_bytes(good[:-1])
        restart(d)
        assert "; what was kept is damaged" in products(d), products(d)
        restart(d)
        assert "; what was kept" not in products(d), products(d)


def each_rank_keeps_its_own():
    with OnGpu("Ranks=2", model="bf16", n_gpus=2, blaslt="") as d, Daemon("bf16", "Context=64") as cpu:
        assert products(d).startswith("cuBLASLt 13.2.3 for "), products(d)
        assert kept(d) == ["products-0-of-2", "products-1-of-2"], kept(d)
        assert d.complete(LONG, 5)["ids"] == cpu.complete(LONG, 5)["ids"]


def a_library_that_does_not_start_is_done_without():
    with OnGpu(model="bf16", blaslt="starts not") as d, Daemon("bf16", "Context=64") as cpu:
        assert products(d) == "own kernels alone: cuBLASLt's create: CUBLAS_STATUS_NOT_INITIALIZED", products(d)
        assert kept(d) == [], kept(d)
        assert d.complete(LONG, 5)["ids"] == cpu.complete(LONG, 5)["ids"]


def the_processor_has_nothing_to_choose():
    with Daemon("bf16", "Context=64") as d:
        assert "products" not in d.status()["executor"]


if __name__ == "__main__":
    run([the_library_multiplies_and_what_was_timed_is_kept, what_was_kept_and_is_damaged_is_timed_anew,
         each_rank_keeps_its_own, a_library_that_does_not_start_is_done_without,
         the_processor_has_nothing_to_choose])
