/*
 * What a broker knows of its executor and a later one cannot ask again: what
 * it said when it was ready, which order it got last, what sleep costs. A
 * small memfd, parked with the service manager as "exec-ready" and written in
 * place: before an order is sent, and before an answer is taken off the socket.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "client/wire/control.h"

enum execrecord_state {
	EXECRECORD_LOADING = 1, /* for the first time */
	EXECRECORD_READY,
	EXECRECORD_PARKING,	/* the order was about to be sent, or was */
	EXECRECORD_PARKED,
	EXECRECORD_WAKING,	/* likewise */
	EXECRECORD_GONE,	/* there is none, and none is wanted before somebody asks */
};

/* Of one rung; 0: not measured yet. */
struct execrecord_price {
	uint64_t freed_bytes, return_us;
};

struct execrecord {
	uint32_t version, state; /* enum execrecord_state */
	struct control_ready ready; /* the last one; kind 0: there was none */
	struct execrecord_price parked, gone;
	int32_t pid; /* 0: not known yet */
	uint64_t pool_bytes; /* as it was ordered; 0: all */
	uint32_t halted, pad; /* 1: answers pause until somebody wakes it up, or asks */
};

/* A new memfd with @record, parked. A descriptor or a negative errno. */
int execrecord_new(const struct execrecord *record);
/* Reads what an earlier broker left in @fd. Returns 0; -EBADMSG: it makes no sense; or why it cannot be read. */
int execrecord_read(int fd, struct execrecord *ret);
void execrecord_write(int fd, const struct execrecord *record);
/* Parks it once more: unparking the executor removed it. */
void execrecord_park(int fd);
