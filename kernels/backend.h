/*
 * Memory, threads and ordering of one rank, and the instruction set of its
 * operations. Implemented by kernels/cpu and by kernels/cuda; a program links
 * one of them. An operation op_x(st, …) queues on a stream; on CPUs it is
 * complete when it returns, computed by all threads of the device.
 *
 * Every operation that is declared in kernels/ writes a row of its output
 * from the same row of its input and the weights alone. On CPUs in one order
 * of additions: for one instruction set and build the bits of a row do not
 * depend on how many rows the batch has, where in it the row stands, how
 * many threads compute it, or how a prompt was cut into chunks. On a GPU the
 * bits of a row are the same again for the same batch.
 *
 * A CUDA call that fails with anything but a lack of memory leaves the device
 * lost to the process: that operation and all later ones return -EIO.
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
	ISA_AMX,		 /* tiles of BF16 and int8, beside AVX512BF16 */
	ISA_CUDA,		 /* an NVIDIA GPU of compute capability 8.0 or later */
	ISA_N,
};

const char *isa_name(enum isa isa);	/* "ref", "portable", "avx2", "avx512", "avx512bf16", "avx512bf16-emulated", "amx", "cuda" */
int isa_parse(const char *name, enum isa *ret); /* those and "auto": isa_best(). 0 or -EINVAL */
bool isa_supported(enum isa isa);	/* by this program on this machine */
enum isa isa_best(void);		/* never REF nor EMULATED; with kernels/cuda CUDA, whether there is a GPU or not */

struct dev;
struct stream;

/*
 * Opens the device: starts @n_threads - 1 workers (0: one per physical core
 * that this process may use, less one if those are more than two), each kept
 * on the processors of one NUMA node, with denormals flushed; the calling
 * thread is the first worker and is set up likewise. Workers spin at most 20 us
 * for the next operation, then sleep on a futex.
 * With ISA_CUDA it is the first GPU that the process may see, or the one of its
 * rank's number, and the threads are those of dev_run() alone.
 *
 * Returns 0, -ENOTSUP if the processor lacks @isa, -ENODEV if there is no GPU
 * that can be used, -ENOMEM, -EAGAIN; dev_why() says it in words.
 */
int dev_open(enum isa isa, uint32_t n_threads, struct dev **ret);
/*
 * The same for rank @rank of @n_ranks, which share this machine: with threads
 * of its own on its part of the NUMA nodes, or on one node beside other ranks
 * where there are fewer. @n_threads are its own; 0: its share, at least one.
 * Each rank is opened and used by a thread of its own; they are closed when none
 * computes, rank 0 last and by its own thread. -ENOTSUP also if several ranks
 * cannot compute with @isa.
 */
int dev_open_rank(enum isa isa, uint32_t n_threads, uint32_t rank, uint32_t n_ranks,
		  struct dev **ret);
struct dev *dev_close(struct dev *dev);
enum isa dev_isa(const struct dev *dev);
/* Why the last dev_open() of this thread failed: "this processor cannot", "no CUDA-capable device is detected". */
const char *dev_why(void);
/*
 * Why no device of this process can be used any more: what the driver said first
 * that cannot be mended. NULL: they can; always so on CPUs. From any thread.
 */
const char *dev_lost(void);
/* What computes, for people: "avx512", "cuda sm_90"; and the name of the GPU, NULL on CPUs. Both live as long as it. */
const char *dev_name(const struct dev *dev);
const char *dev_product(const struct dev *dev);
/* Whether operations work on the host's memory: what dev_reserve() gives can be read and written like any other. */
bool dev_is_host(const struct dev *dev);
uint32_t dev_threads(const struct dev *dev);
/* Type that the KV cache has with this instruction set: F32 for REF, else BF16. */
enum dtype dev_kv_type(const struct dev *dev);

/*
 * Reserves addresses for the life of the device, with nothing behind them.
 *
 * name		for people; cut to DEV_NAME_MAX - 1
 * chunk_bytes	on a GPU the unit in which memory comes and goes, a multiple of 2 MiB;
 *		0: 2 MiB. Fewer chunks are quicker to have
 *
 * NULL: -ENOMEM.
 */
#define DEV_NAME_MAX 24
#define DEV_CHUNK_MAX ((size_t)256 << 20) /* of what comes and goes as one */
void *dev_reserve_named(struct dev *dev, const char *name, size_t bytes, size_t chunk_bytes);
static inline void *dev_reserve(struct dev *dev, size_t bytes)
{
	return dev_reserve_named(dev, "", bytes, 0);
}
/*
 * Puts zeroed memory (huge pages asked for) behind part of a reservation. On a
 * GPU @at is a whole number of chunks into it, @bytes are rounded up to chunks,
 * and nothing is behind it yet. 0, -ENOMEM: as before; or -EINVAL.
 */
int dev_back(struct dev *dev, void *at, size_t bytes);
/*
 * Gives it back; the contents are lost. On a GPU: whole chunks, backed or not;
 * what the driver does not take back stays counted as taken.
 */
int dev_unback(struct dev *dev, void *at, size_t bytes);
/*
 * From here on, until told otherwise, no memory of the device is asked for or
 * given back: who does so has made a mistake (assert). For the time of a step.
 * On CPUs nothing is done.
 */
void dev_set_serving(struct dev *dev, bool serving);

/* What this process has of a device's memory. */
struct dev_memory {
	uint64_t taken_bytes, peak_bytes, reserved_bytes;
	uint64_t stuck_bytes;	/* that the driver did not take back */
	uint64_t refused_bytes;	/* wanted when the driver said last that there is no more; 0: it never did */
	uint64_t n_calls;	/* of the driver, for memory */
};
struct dev_region {
	char name[DEV_NAME_MAX];
	uint64_t bytes, chunk_bytes, backed_bytes;
};
/* Fills up to @room regions in the order of their making; returns how many. From any thread. */
uint32_t dev_look(struct dev *dev, struct dev_memory *ret, struct dev_region *ret_regions,
		  uint32_t room);
/* Read-only from here on, where the device can protect memory. */
int dev_seal(struct dev *dev, void *at, size_t bytes);

/* What a card's management library says now. Nothing of it is kept: reading takes milliseconds. */
enum { DEV_SENSES_MEMORY = 1, DEV_SENSES_POWER = 2, DEV_SENSES_LIMIT = 4, DEV_SENSES_TEMPERATURE = 8 };
struct dev_sensors {
	uint32_t known; /* DEV_SENSES_… */
	uint32_t power_mw, power_limit_mw, temperature_c;
	uint64_t total_bytes, free_bytes; /* of the card; free: for any process */
};
/* From any thread. 0; -ENOTSUP on CPUs; or a negative errno with a sentence in @ret_why. */
int dev_sense(struct dev *dev, struct dev_sensors *ret, char *ret_why, size_t why_bytes);

/* Copies from the host's memory to the device's at once, from any thread. 0 or -EIO. */
int dev_write(struct dev *dev, void *to, const void *from, size_t bytes);
/*
 * Lets the device reach memory of the host directly, which makes copies quick:
 * st_read() and moves. A wish: 0 or a negative errno, and copies work without.
 */
int dev_pin(struct dev *dev, void *host, size_t bytes);
void dev_unpin(struct dev *dev, void *host);

/*
 * One stream a device is enough today. @scratch_bytes: the most that any
 * operation queued on it will need, see op_scratch(). 0 or -ENOMEM.
 */
int st_open(struct dev *dev, size_t scratch_bytes, struct stream **ret);
struct stream *st_close(struct stream *st);
struct dev *st_dev(struct stream *st);

/*
 * Announces the batch of the operations to come: they are called with these
 * very @ids, @seqs and @rows (of op_gather()), whose contents stay as they are
 * until the last of them. For devices that keep a copy; on CPUs nothing is
 * done. 0, -ENOMEM or -EIO.
 */
struct seq;
int st_batch(struct stream *st, const uint32_t *ids, uint32_t n_tokens, const struct seq *seqs,
	     uint32_t n_seqs, const uint32_t *rows, uint32_t n_rows);

/* Takes the memory that batches of up to so many need, so that st_batch() takes none. 0, -ENOMEM or -EIO. */
int st_batch_room(struct stream *st, uint32_t n_tokens, uint32_t n_seqs, uint32_t n_pages);

/* Waits for all that is queued, and copies the device's memory to the host's. 0 or -EIO. */
int st_read(struct stream *st, void *to, const void *from, size_t bytes);
/*
 * @rows pieces of @width bytes, either end in the host's or the device's memory,
 * in stream order. The host's memory is left alone until st_wait().
 */
int st_copy2d(struct stream *st, void *to, size_t to_pitch, const void *from, size_t from_pitch,
	      size_t width, size_t rows);
int st_wait(struct stream *st);

/*
 * Records what @body queues, to be queued again at little cost by st_replay().
 * Recording runs nothing. What the operations took from the host counts for all
 * replays, but for the batch: that is what st_batch() last said, of as many
 * tokens, seqs and rows, and no seq longer than it was while recording.
 *
 * On CPUs a replay calls @body, so @userdata outlives it.
 * st_record() returns 0, -ENOMEM, -EIO or what @body returned; st_replay() 0,
 * -EIO or what @body returned.
 */
struct replay;
int st_record(struct stream *st, int (*body)(struct stream *st, void *userdata), void *userdata,
	      struct replay **ret);
int st_replay(struct stream *st, const struct replay *replay);
struct replay *replay_free(struct replay *replay);

/* y[i,:] = x[rows[i],:];  x, y F32 [1, …, dim], must not overlap; rows rising. 0 or -EINVAL. */
int op_gather(struct stream *st, const struct tensor *y, const struct tensor *x,
	      const uint32_t *rows);
/* y = 0;  y F32. 0 or -EINVAL. */
int op_clear(struct stream *st, const struct tensor *y);

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
	/* ffn_dim: the widest of dense, routed and shared MLP; moe_ffn_dim: of routed and shared experts, 0: as wide */
	uint32_t moe_ffn_dim;
};
size_t op_scratch(const struct dev *dev, const struct op_limits *limits);

static inline void dev_closep(struct dev **dev)
{
	*dev = dev_close(*dev);
}
