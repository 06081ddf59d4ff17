#!/usr/bin/env python3
"""Executor=cuda where there is no GPU: said in one sentence, asked again, never computed by something else."""
from steamd_e2e import *

CUDA = BUILD / "steamd-exec-cuda"
SENTENCE = "there is no GPU that can be used: no NVIDIA driver is loaded"


class WithoutGpu(Daemon):
    def is_ready(self):
        return self.socket.exists() and "no GPU" in self.log()


def here():
    if not CUDA.exists():
        raise Skip("built without CUDA")
    if os.path.exists("/proc/driver/nvidia/version"):
        raise Skip("this machine has a driver")


def no_gpu_is_a_state_with_its_cause():
    here()
    with WithoutGpu("odd", "Executor=cuda") as d:
        wait_for(lambda: d.status()["state"] == "no-gpu", 20, "the state no-gpu")
        d.ctl("complete", "--ids", "--json", stdin=b"[1,2,3]", code=75)
        assert SENTENCE in d.last_stderr and "looked for again in" in d.last_stderr, d.last_stderr
        assert d.log().count("steamd: " + SENTENCE) == 1, d.log()


def it_is_looked_for_again_and_nothing_else_steps_in():
    here()
    with WithoutGpu("odd", "Executor=cuda") as d:
        starts = d.status()["executor"]["starts"]
        wait_for(lambda: d.status()["executor"]["starts"] > starts, 25, "a second look")
        wait_for(lambda: d.status()["state"] == "no-gpu", 20, "the state no-gpu again")
        assert "steamd-exec-cpu" not in d.log(), d.log()


def auto_takes_the_processor_where_no_driver_is_loaded():
    here()
    with Daemon("odd", "Executor=auto") as d:
        assert d.status()["state"] == "ready"


if __name__ == "__main__":
    run([no_gpu_is_a_state_with_its_cause, it_is_looked_for_again_and_nothing_else_steps_in,
         auto_takes_the_processor_where_no_driver_is_loaded])
