/*
 * What of the KV cache is only in the arena, brought to the disk: before the
 * machine is suspended, before the executor or the broker goes.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <systemd/sd-event.h>

struct kvcache;

/* Embedded in who asks, and zeroed but for the first part. */
struct tiers_flush {
	/*
	 * All is on the disk and made to last, or cannot be, or the time is over.
	 * Called once, from the loop, never from within a call; the flush is the
	 * asker's again.
	 */
	void (*on_flushed)(struct tiers_flush *f);
	void *userdata;

	/* the cache's own; n_left may be read once it has ended */
	uint32_t n_left; /* sealed pages that are not on the disk */
	bool late;	 /* the time was over */
	struct kvcache *cache; /* NULL: it has ended, or was not begun */
	sd_event_source *timer;
	TAILQ_ENTRY(tiers_flush) link;
};

/*
 * Begins to bring every sealed page to the disk that is not there yet, and
 * those that are being sealed; pages that turns seal meanwhile are waited for
 * as well. Never blocks. Without a disk, or with one that failed, it ends at
 * once. It also ends when the disk is taken away, or the cache freed. Any
 * number may be under way.
 *
 * timeout_us	from now; then it ends with what has been done
 *
 * Returns 0, or a negative errno of arming a timer: then on_flushed() is not called.
 */
int tiers_flush(struct kvcache *c, sd_event *loop, uint64_t timeout_us, struct tiers_flush *f);
/* Ends it without a call; of no effect on one that is not under way. The writes themselves go on. */
void tiers_flush_withdraw(struct tiers_flush *f);
