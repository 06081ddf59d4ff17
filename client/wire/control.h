/*
 * The control socket between the broker and its executor: SOCK_SEQPACKET, one
 * struct a packet, fixed widths, host byte order (both run on one machine and
 * are of one build: CONTROL_VERSION). The executor has it as descriptor 3.
 *
 *	broker -> executor	CONTROL_CONFIGURE once, with the descriptors arena,
 *				rings, bell down, bell up (SCM_RIGHTS, in this order)
 *	executor -> broker	CONTROL_PROGRESS while it loads, then CONTROL_READY
 *				or CONTROL_REFUSED (then it exits)
 *	broker -> executor	CONTROL_PARK: finish the steps pushed before it, then
 *				give the memory of the weights, and of the KV cache on
 *				devices that are not the host, back. Process, threads,
 *				slots and the mapped arena stay
 *	executor -> broker	CONTROL_PARKED
 *	broker -> executor	CONTROL_WAKE: load the weights again, from the checkpoint
 *				that they were loaded from
 *	executor -> broker	CONTROL_PROGRESS, then CONTROL_READY or CONTROL_REFUSED
 *	broker -> executor	CONTROL_POOL: finish the steps pushed before it, then let the
 *				KV cache on devices have so many bytes, from now on, over
 *				parks too
 *	executor -> broker	CONTROL_POOLED
 *	broker -> executor	CONTROL_LOOK, at any time, for what is to be said of the devices
 *	executor -> broker	CONTROL_SEEN for each rank, in order, at once
 *
 * Any order may come twice, and is answered by what is the case then: a
 * broker that takes over repeats the last one. No order but CONTROL_LOOK is sent
 * before the answer to the one before it.
 *
 * End of file is the death signal, both ways: an executor that reads it leaves
 * with _exit(70).
 */
#pragma once

#include <stdint.h>

#define CONTROL_VERSION 7
#define CONTROL_FD 3
#define CONTROL_PATH_MAX 4096

#define CONTROL_FINGERPRINT_BYTES 16 /* see daemon/exec/weights/fingerprint.h */

enum control_kind {
	CONTROL_CONFIGURE = 1,
	CONTROL_PROGRESS,
	CONTROL_READY,
	CONTROL_REFUSED,
	CONTROL_PARK,
	CONTROL_PARKED,
	CONTROL_WAKE,
	CONTROL_POOL,
	CONTROL_POOLED,
	CONTROL_LOOK,
	CONTROL_SEEN,
};

struct control_configure {
	uint32_t kind, version;
	uint64_t arena_bytes;
	uint32_t n_pages, page_tokens;
	uint32_t page_bytes_lo, page_bytes_hi;	/* what the broker reckons; must equal the executor's */
	uint32_t n_slots, max_context;		/* slots are numbered from 0; tokens in one slot */
	uint32_t max_batch_tokens;		/* of one step, at most STEP_TOKENS_MAX */
	uint32_t n_threads;			/* of all ranks together; 0: see dev_open() */
	uint32_t n_ranks, pad;			/* 1 or more; see daemon/exec/team.h */
	uint64_t pool_bytes;			/* as CONTROL_POOL says */
	uint8_t fingerprint[CONTROL_FINGERPRINT_BYTES]; /* that the checkpoint must have; all 0: any */
	char isa[32];				/* auto, ref, portable, avx2, avx512, avx512bf16 */
	char model[CONTROL_PATH_MAX];		/* directory of the checkpoint */
};

struct control_progress {
	uint32_t kind, percent;
	uint64_t done_bytes, total_bytes, bytes_per_second;
};

/* The KV cache on devices that are not the host, of all ranks together; else 0. */
struct control_pool {
	uint64_t bytes;
	uint64_t least_bytes, most_bytes; /* of one context; for every page of the arena */
	uint64_t group_bytes;		  /* it is a multiple of that */
};

struct control_ready {
	uint32_t kind, n_threads;
	uint64_t weight_bytes;	   /* resident, as repacked */
	uint64_t decode_bytes;	   /* read per decoded token at batch 1, context 0 */
	uint64_t read_bytes_per_second; /* by its threads, of its weights, just after the load */
	uint64_t load_us;
	uint64_t huge_bytes;	   /* of the executor that are in huge pages */
	uint64_t resident_bytes;   /* of the executor's own memory, weights included; not the arena. In devices' memory, if it computes there */
	struct control_pool pool;  /* within resident_bytes */
	/* 1: KV is computed in the arena. 0: elsewhere, and the arena has of a page what was summed, no more */
	uint32_t in_arena;
	uint32_t n_ranks;
	uint8_t fingerprint[CONTROL_FINGERPRINT_BYTES]; /* of the checkpoint as it was loaded */
	char isa[32];		   /* the one in use */
	char device[64];	   /* processor's name */
	char products[256];	   /* how products of many tokens are computed, where that was chosen; "" */
};

struct control_order { /* CONTROL_PARK, CONTROL_WAKE, CONTROL_POOL, CONTROL_LOOK */
	uint32_t kind, pad;
	uint64_t bytes;	   /* POOL: at most; 0: all. It is never less than pool.least_bytes */
};

struct control_pooled {
	uint32_t kind, pad;
	uint64_t resident_bytes; /* as READY says */
	struct control_pool pool;
};

#define CONTROL_RANKS_MAX 8
#define CONTROL_REGIONS_MAX 16
#define CONTROL_MAP_MAX 256

/* A device and what the executor has of its memory. Bits of known: 1 memory, 2 power, 4 its limit, 8 temperature. */
struct control_seen {
	uint32_t kind, rank, n_ranks, known;
	uint64_t card_bytes, card_free_bytes;
	uint32_t power_mw, power_limit_mw, temperature_c;
	uint32_t n_regions; /* there may be more than fit */
	uint64_t taken_bytes, peak_bytes, reserved_bytes, stuck_bytes, refused_bytes, n_calls;
	struct control_region {
		char name[24];
		uint64_t bytes, chunk_bytes, backed_bytes;
	} regions[CONTROL_REGIONS_MAX];
	/* the KV cache: frames for pages */
	uint64_t page_bytes, group_bytes, pool_bytes;
	uint32_t frames, live_frames, largest_free_run;
	uint32_t fragmentation_ppm; /* of the free frames, those that stand in groups with live ones */
	uint64_t n_up, n_down, n_moved;
	char map[CONTROL_MAP_MAX + 1]; /* see mirror_look() */
	char text[167];			/* why known is 0; "" */
};

struct control_parked {
	uint32_t kind, pad;
	uint64_t freed_bytes, resident_bytes; /* of the executor's own memory */
};

struct control_refused {
	uint32_t kind;
	int32_t error;		   /* negative errno; -EBADMSG, -ENOTSUP: the model's fault; -ESTALE: another model */
	char text[1024];
};
