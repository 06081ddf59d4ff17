"""The broker with an emulated GPU beside it."""
from steamd_e2e import *

EMULATED = BUILD / "tests" / "cuemu" / "steamd-exec-emu"
NCCL = BUILD / "tests" / "cuemu" / ".libs" / "fake-nccl.so"
BLASLT = BUILD / "tests" / "cuemu" / ".libs" / "fake-cublaslt.so"
NVML = BUILD / "tests" / "cuemu" / ".libs" / "fake-nvml.so"
PROMPT = [11, 42, 300, 8]


class OnGpu(Daemon):
    """The broker with an emulated GPU beside it."""

    def __init__(self, *sets, model="odd", n_gpus=1, blaslt="starts not"):
        # @blaslt: "" has a library that multiplies, and time spent on finding out where it is the quicker
        super().__init__(model, "Executor=cuda", "Context=64", "MaxBatch=2", "BatchTokens=16", "PageTokens=16",
                         *sets)
        beside = self.dir / "bin"
        beside.mkdir()
        shutil.copy(STEAMD, beside / "steamd")
        self.trouble = self.dir / "trouble"
        program = beside / "steamd-exec-cuda"
        (self.dir / "cache").mkdir()
        (beside / "libcublasLt.so.13").symlink_to(BLASLT)
        (beside / "libnccl.so.2").symlink_to(NCCL)
        (beside / "libnvidia-ml.so.1").symlink_to(NVML)
        program.write_text(f"#!/bin/sh\nexport CUEMU_DEVICES={n_gpus} CUEMU_TROUBLE='{self.trouble}'\n"
                           f"export LD_LIBRARY_PATH='{beside}' CACHE_DIRECTORY='{self.dir}/cache' FAKE_BLASLT='{blaslt}'\nexec '{EMULATED}'\n")
        program.chmod(0o755)

    def command(self):
        return [str(self.dir / "bin" / "steamd"), *super().command()[1:]]

    def befalls(self, what):
        new = self.dir / "trouble.new"
        new.write_text(what)
        new.rename(self.trouble)

    def ask(self, n=3):
        return self.complete(PROMPT, n)["ids"]
