/*
 * What the ladder gives up and gets back, of one model: the turns' places, the
 * pages of the KV cache, the executor's weights. It makes the answers to what
 * power_new() wants to know.
 */
#pragma once

#include "daemon/kv/tiers.h"
#include "daemon/power/power.h"

struct sched;
struct kvcache;

/* Embedded, and zeroed but for the first part; no call blocks. */
struct sleeper {
	sd_event *loop;
	struct power *power;
	/* NULL: there is no model; set and cleared together, with power_set_executor() */
	struct sched *sched;
	struct kvcache *kv;
	struct executor *executor;
	uint64_t page_bytes;
	uint32_t page_tokens;
	/* its own */
	struct tiers_flush flush;
	bool flushing, flushed;
};

/* All of *@ret that is about @s, which is its userdata and outlives the power it is for. */
void sleeper_options(struct sleeper *s, struct power_options *ret);
/* Whether a turn wants to be computed, or what ended ones left is under way. */
bool sleeper_has_work(const struct sleeper *s);
/* The model goes: what is being brought to the disk for its sleep is nobody's any more. */
void sleeper_leave(struct sleeper *s);
