/*
 * A trace of what a card holds (see make-traces.py), and allocators that are
 * put through it. An allocator knows no more of an object than its kind says;
 * those that are models of others look at its bytes alone.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct kind {
	char class; /* w weights, k KV page, t buffer of a pass, l lease */
	uint32_t owner;
	uint64_t bytes; /* of one */
	uint32_t most;	/* t: at most so many times */
};

struct object {
	uint32_t kind;
	uint64_t bytes;
};

struct event {
	bool comes;
	uint32_t object;
};

#define OWNERS_MAX 16

struct trace {
	char name[32];
	struct kind *kinds;
	uint32_t n_kinds;
	struct object *objects;
	uint32_t n_objects;
	struct event *events;
	uint32_t n_events;
	uint64_t peak_live_bytes; /* the most that is there at a time, leases too */
};

/* Reads a trace; a line that is none ends the program with a sentence. */
struct trace *trace_read(const char *path);
struct trace *trace_free(struct trace *t);

struct rival_figures {
	uint64_t reserved_bytes, allocated_bytes; /* now */
	uint64_t calls;				  /* of the driver */
	uint64_t maps, unmaps;			  /* PyTorch's num_device_alloc, num_device_free */
	uint64_t copied_bytes;
};

struct rival {
	const char *name;
	/* @limit_bytes: of the card; aborts the program for want of host memory */
	void *(*open)(const struct trace *t, uint64_t limit_bytes);
	void (*close)(void *rival);
	/* 0 or -ENOMEM: then the trace does not fit */
	int (*add)(void *rival, uint32_t object);
	void (*drop)(void *rival, uint32_t object);
	/* Others have so much of the card from now on; what can be is given up first. 0 or -ENOMEM */
	int (*lease)(void *rival, uint64_t leased_bytes);
	void (*figures)(void *rival, struct rival_figures *ret);
};

extern const struct rival rival_ours, rival_torch, rival_torch_expandable;
extern const struct rival rival_buddy, rival_best_fit;
/* The same models where set_per_process_memory_fraction() is the limit and not the card. */
extern const struct rival rival_torch_fraction, rival_torch_expandable_fraction;

struct outcome {
	bool fits;
	uint32_t object;  /* that did not fit */
	uint64_t peak_reserved_bytes, peak_allocated_bytes; /* with leases */
	struct rival_figures end;
};
void replay(const struct rival *rival, const struct trace *t, uint64_t limit_bytes,
	    struct outcome *ret);

/* The least memory that the trace fits in, to a thousandth of what is live; 0: over four times it. */
uint64_t replay_needs(const struct rival *rival, const struct trace *t);
