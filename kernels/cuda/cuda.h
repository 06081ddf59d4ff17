/*
 * What the files of this folder share: the device and the stream behind
 * kernels/backend.h, and the one way to launch a kernel. Pointers in tensors,
 * weights and caches are device addresses, except where a header of kernels/
 * says that the host reads them at the call (ids, seqs, sources of weights).
 *
 * The same sources are compiled by nvcc, and for tests by the host compiler
 * against the emulated <cuda_runtime.h> of tests/cuemu.
 */
#pragma once

#include <cuda_runtime.h>

#include <errno.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/cuda/calls.h"

extern "C" {
#include "kernels/attention.h"
}

struct choice;
struct memory;
struct stage;

struct dev {
	int ordinal;		/* the rank's number */
	uint32_t n_ranks;	/* that this process has a device each for */
	int sm;			/* 80, 86, 89, 90, 100, 120: compute capability without the point */
	uint32_t n_sm;		/* multiprocessors */
	size_t shared_max;	/* bytes of shared memory that a block can opt in to */
	size_t l2_bytes;
	bool pdl;		/* programmatic dependent launch: sm 90 and later */
	uint32_t n_threads;	/* of dev_run() */
	struct memory *memory;	/* reservations and what is behind them */
	char name[16], product[256], bus_id[32];
};

/*
 * While it lives the calling thread's device is @dev: for what a thread does for
 * another rank than its own. A rank's thread has its device since dev_open_rank().
 */
struct on_device {
	int before;

	explicit on_device(const struct dev *dev) : before(-1)
	{
		int now;

		if (dev->n_ranks > 1 && cudaGetDevice(&now) == cudaSuccess && now != dev->ordinal &&
		    cudaSetDevice(dev->ordinal) == cudaSuccess)
			before = now;
	}
	~on_device()
	{
		if (before >= 0)
			(void)cudaSetDevice(before);
	}
	on_device(const on_device &) = delete;
	on_device &operator=(const on_device &) = delete;
};

#define STREAM_COUNTERS 16384

struct stream {
	struct dev *dev;
	cudaStream_t handle;
	char *scratch;		/* device memory, scratch_bytes: of the operation that is being queued */
	size_t scratch_bytes;
	uint32_t *counters;	/* [STREAM_COUNTERS] device memory: 0 between kernels, each leaves them so */
	struct stage *stage;	/* of stage_ids(), stage_seqs() and stage_rows() */
	struct choice *choice;	/* of op_linears_choose(); NULL: kernels of ours compute everything */
};

/*
 * What struct seq says of a batch, flat, in device memory at addresses that
 * stay. Kernels take positions, lengths and page ids from here alone, so that
 * a recorded step can be replayed for another batch of as many rows; launchers
 * size their grids and choose their splits by the host's seqs, which are as
 * long while a step is recorded as any that it will be replayed for.
 */
struct batch_seq {
	uint32_t first, n_tokens, at;	/* as in struct seq */
	uint32_t pages;			/* its page ids begin at batch.pages[pages] */
};
struct batch_row {
	uint32_t seq, position;
};
struct batch {
	const struct batch_seq *seqs;	/* [n_seqs] */
	const struct batch_row *rows;	/* [tokens]: of each token its seq and its position */
	const uint32_t *pages;
};

/*
 * Copies what the host says to the device, in stream order, unless it was
 * announced with st_batch() (the same pointers): then it is there already.
 * Not while a step is recorded. 0, -ENOMEM or -EIO.
 */
int stage_seqs(struct stream *st, const struct seq *seqs, uint32_t n_seqs, struct batch *ret);
int stage_ids(struct stream *st, const uint32_t *ids, uint32_t n, const uint32_t **ret);
int stage_rows(struct stream *st, const uint32_t *rows, uint32_t n, const uint32_t **ret);
int stage_open(struct stream *st);   /* for st_open() */
void stage_close(struct stream *st); /* for st_close(), when nothing is queued any more */

/* Scratch that op_attention() and op_sample() need, for op_scratch(). */
size_t attention_scratch(const struct dev *dev, const struct op_limits *limits);
size_t sample_scratch(const struct op_limits *limits);

enum { LAUNCH_PLAIN, LAUNCH_PDL };

/* Dynamic shared memory up to here, with a kernel's static arrays, is within the 48 KiB that every block has. */
#define SHARED_WITHOUT_ASKING (32 * 1024)

/*
 * Queues kernel @k. With LAUNCH_PDL, and where the device has it, the kernel may
 * begin before the one queued before it has ended: before pdl_wait() it writes
 * nothing, and reads nothing that an earlier kernel of the step wrote. If the one
 * before it waits before it releases, all that is older has ended, though.
 *
 * Returns 0, or -EIO: then the device is lost to this process.
 */
template <typename... P, typename... A>
int launch(struct stream *st, int attributes, void (*k)(P...), dim3 grid, dim3 block,
	   size_t shared_bytes, A... args)
{
	cudaLaunchAttribute pdl = {};
	cudaLaunchConfig_t config = {};
	cudaError_t due;

	if (calls_due(&due))
		return calls_result(due), -EIO;
	config.gridDim = grid;
	config.blockDim = block;
	config.dynamicSmemBytes = shared_bytes;
	config.stream = st->handle;
	if (attributes == LAUNCH_PDL && st->dev->pdl) {
		pdl.id = cudaLaunchAttributeProgrammaticStreamSerialization;
		pdl.val.programmaticStreamSerializationAllowed = 1;
		config.attrs = &pdl;
		config.numAttrs = 1;
	}
	if (shared_bytes > SHARED_WITHOUT_ASKING &&
	    calls_result(cudaFuncSetAttribute((const void *)k,
					      cudaFuncAttributeMaxDynamicSharedMemorySize,
					      (int)shared_bytes)) < 0)
		return -EIO;
	return calls_result(cudaLaunchKernelEx(&config, k, static_cast<P>(args)...)) < 0 ? -EIO : 0;
}
