/*
 * Memory, threads and ordering of one rank, and the instruction set of its
 * operations. Implemented by kernels/cpu; a CUDA backend fits behind the same
 * calls. An operation op_x(st, …) queues on a stream; on CPUs it is complete
 * when it returns, computed by all threads of the device.
 *
 * Every operation that is declared in kernels/ writes a row of its output
 * from the same row of its input and the weights alone, in one order of
 * additions: for one instruction set and build the bits of a row do not
 * depend on how many rows the batch has, where in it the row stands, how
 * many threads compute it, or how a prompt was cut into chunks.
 */
#pragma once

#include "kernels/tensor.h"

enum isa {
	ISA_REF,		 /* double, straight from the formulas */
	ISA_PORTABLE,
	ISA_AVX2,		 /* AVX2, FMA, F16C */
	ISA_AVX512,		 /* F, BW, VL, DQ, VNNI */
	ISA_AVX512BF16,
	ISA_AVX512BF16_EMULATED, /* the same kernels over an exact C vdpbf16ps; needs what AVX512 needs */
	ISA_N,
};

const char *isa_name(enum isa isa);	/* "ref", "portable", "avx2", "avx512", "avx512bf16", "avx512bf16-emulated" */
int isa_parse(const char *name, enum isa *ret); /* those and "auto": isa_best(). 0 or -EINVAL */
bool isa_supported(enum isa isa);	/* by this processor */
enum isa isa_best(void);		/* never REF nor EMULATED */

struct dev;
struct stream;

/*
 * Opens the device: starts @n_threads - 1 workers (0: one per physical core
 * that this process may use, less one if those are more than two), each kept
 * on the processors of one NUMA node, with denormals flushed; the calling
 * thread is the first worker and is set up likewise. Workers spin at most 20 us
 * for the next operation, then sleep on a futex.
 *
 * Returns 0, -ENOTSUP if the processor lacks @isa, -ENOMEM, -EAGAIN.
 */
int dev_open(enum isa isa, uint32_t n_threads, struct dev **ret);
struct dev *dev_close(struct dev *dev);
enum isa dev_isa(const struct dev *dev);
uint32_t dev_threads(const struct dev *dev);
/* Type that the KV cache has with this instruction set: F32 for REF, else BF16. */
enum dtype dev_kv_type(const struct dev *dev);

/* Reserves addresses for the life of the device, with nothing behind them. NULL: -ENOMEM. */
void *dev_reserve(struct dev *dev, size_t bytes);
/* Puts zeroed memory (huge pages asked for) behind part of a reservation. 0 or -ENOMEM. */
int dev_back(struct dev *dev, void *at, size_t bytes);
/* Gives it back; the contents are lost. */
int dev_unback(struct dev *dev, void *at, size_t bytes);
/* Read-only from here on. */
int dev_seal(struct dev *dev, void *at, size_t bytes);

/*
 * One stream a device is enough today. @scratch_bytes: the most that any
 * operation queued on it will need, see op_scratch(). 0 or -ENOMEM.
 */
int st_open(struct dev *dev, size_t scratch_bytes, struct stream **ret);
struct stream *st_close(struct stream *st);
struct dev *st_dev(struct stream *st);

/*
 * Announces the batch of the operations to come: they are called with these
 * very @ids and @seqs, whose contents stay as they are until the last of them.
 * For devices that keep a copy; on CPUs nothing is done. 0, -ENOMEM or -EIO.
 */
struct seq;
int st_batch(struct stream *st, const uint32_t *ids, uint32_t n_tokens, const struct seq *seqs,
	     uint32_t n_seqs);

/*
 * Calls @run(userdata, thread, n_threads) once for each thread number, on all
 * threads, and waits. A thread that the kernel keeps from beginning in time
 * loses its number to the calling one.
 */
void dev_run(struct dev *dev, void (*run)(void *userdata, uint32_t thread, uint32_t n_threads),
	     void *userdata);
/* For a thread that works beside those: moves it to where number @index, modulo threads, is at home. */
void dev_settle(const struct dev *dev, uint32_t index);

/* Upper bound of the scratch needed by any operation of a model of these sizes at @tokens rows a batch. */
struct op_limits {
	uint32_t tokens, dim, heads, kv_heads, head_dim, ffn_dim, experts, top_k, vocab, max_context;
	/* ffn_dim: the widest of dense, routed and shared MLP */
};
size_t op_scratch(const struct dev *dev, const struct op_limits *limits);

static inline void dev_closep(struct dev **dev)
{
	*dev = dev_close(*dev);
}
