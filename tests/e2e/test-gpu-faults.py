#!/usr/bin/env python3
"""A GPU that fails while it is served: the executor for GPUs runs on the emulator, whose device gets into trouble."""
from ongpu import *

def an_emulated_gpu_answers_as_the_processor_does():
    with OnGpu() as d, Daemon("odd", "Context=64") as cpu:
        assert d.status()["executor"]["isa"].startswith("cuda"), d.status()["executor"]
        assert d.ask(6) == cpu.complete(PROMPT, 6)["ids"]


def two_emulated_gpus_answer_as_the_processor_does():
    with OnGpu("Ranks=2", model="bf16", n_gpus=2) as d, Daemon("bf16", "Context=64") as cpu:
        status = d.status()
        assert status["executor"]["ranks"] == 2, status["executor"]
        assert cpu.status()["executor"]["ranks"] == 1
        assert d.ask(6) == cpu.complete(PROMPT, 6)["ids"]
        os.kill(d.executor(), signal.SIGKILL)  # what both had of a page is in the arena
        assert d.ask(6) == cpu.complete(PROMPT, 6)["ids"]


def more_ranks_than_gpus_are_no_gpu():
    class Wanting(OnGpu):
        def is_ready(self):
            return "fewer GPUs are visible than Ranks= asks for" in self.log()

    with Wanting("Ranks=2", model="bf16") as d:
        assert d.status()["state"] == "no-gpu", d.status()["state"]


def a_rank_that_is_lost_takes_the_executor_with_it():
    with OnGpu("Ranks=2", model="bf16", n_gpus=2) as d:
        before = d.ask()
        d.befalls("lost")
        d.ctl("complete", "--ids", "--json", "--max-tokens", 3, stdin=b"[1,2,3]", code=75)
        d.befalls("")
        wait_for(lambda: d.status()["state"] == "ready", 30, "the GPUs again")
        assert d.ask() == before


def a_kernel_that_hangs_is_found_and_the_request_ends():
    with OnGpu("StepTimeout=8") as d:
        before = d.ask()
        d.befalls("hang")
        p = d.popen("complete", "--ids", "--json", "--temperature", "0", "--max-tokens", 3, "--ignore-eos",
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        p.stdin.write(json.dumps(PROMPT + [9]).encode())
        p.stdin.close()
        wait_for(lambda: "has not ended after 8 s (StepTimeout=)" in d.log(), 60, "the deadline")
        d.befalls("")
        assert p.wait(60) == 0, p.stderr.read()
        p.stdout.close()
        p.stderr.close()
        assert d.ask() == before
        assert d.status()["executor"]["starts"] == 2, d.status()["executor"]


def a_lost_gpu_is_a_state_that_ends_by_itself():
    with OnGpu() as d:
        before = d.ask()
        d.befalls("lost")
        d.ctl("complete", "--ids", "--json", "--max-tokens", 3, stdin=b"[1,2,3]", code=75)
        assert "there is no GPU that can be used" in d.last_stderr, d.last_stderr
        assert "looked for again in" in d.last_stderr, d.last_stderr
        status = d.status()
        assert status["state"] == "no-gpu", status["state"]
        d.befalls("")
        wait_for(lambda: d.status()["state"] == "ready", 30, "the GPU again")
        assert d.ask() == before


def what_only_the_gpu_had_is_computed_again():
    with OnGpu() as d:
        before = d.ask()
        for _ in range(6):
            os.kill(d.executor(), signal.SIGKILL)  # what was computed is on its way to the arena, or not yet
            assert d.ask() == before


def a_gpu_that_cannot_be_opened_refuses_no_model():
    with OnGpu() as d:
        before = d.ask()
        d.befalls("ecc")
        os.kill(d.executor(), signal.SIGKILL)
        wait_for(lambda: d.status()["state"] == "no-gpu", 30, "the state no-gpu")
        d.befalls("")
        wait_for(lambda: d.status()["state"] == "ready", 30, "the GPU again")
        assert d.ask() == before


def a_gpu_that_fails_during_the_load_refuses_no_model():
    with OnGpu() as d:
        before = d.ask()
        d.befalls("fail")
        os.kill(d.executor(), signal.SIGKILL)
        wait_for(lambda: d.status()["state"] == "no-gpu", 30, "the state no-gpu")
        assert "the GPU failed" in d.log(), d.log()
        d.befalls("")
        wait_for(lambda: d.status()["state"] == "ready", 30, "the GPU again")
        assert d.ask() == before


if __name__ == "__main__":
    run([an_emulated_gpu_answers_as_the_processor_does, two_emulated_gpus_answer_as_the_processor_does,
         more_ranks_than_gpus_are_no_gpu, a_rank_that_is_lost_takes_the_executor_with_it, a_kernel_that_hangs_is_found_and_the_request_ends,
         a_lost_gpu_is_a_state_that_ends_by_itself, what_only_the_gpu_had_is_computed_again, a_gpu_that_cannot_be_opened_refuses_no_model,
         a_gpu_that_fails_during_the_load_refuses_no_model])
