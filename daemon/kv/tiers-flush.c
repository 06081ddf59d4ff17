/*
 * Flushes end together: when nothing is on its way to the disk and what was
 * written has been synced. There is one sync under way at most, asked for when
 * the last write is done; what is written during it needs another.
 */
#include <errno.h>

#include "daemon/kv/kvcache-parts.h"

static uint32_t count_left(const struct kvcache *c)
{
	uint32_t n = 0;

	for (kv_page page = 0; page < c->options.n_pages; page++) {
		const struct prefix_node *node = c->by_page[page];

		n += node && !node->loading && !node->passing && !tiers_has_written(c, node);
	}
	return n;
}

/* Its timer remains, to call from the loop. */
static void end(struct tiers_flush *f)
{
	f->n_left = count_left(f->cache);
	TAILQ_REMOVE(&f->cache->flushes, f, link);
	f->cache = NULL;
}

static void end_all(struct kvcache *c)
{
	struct tiers_flush *f;

	while ((f = TAILQ_FIRST(&c->flushes))) {
		end(f);
		sd_event_source_set_time_relative(f->timer, 0);
	}
}

static int on_time(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct tiers_flush *f = userdata;

	(void)source, (void)usec;
	f->timer = sd_event_source_disable_unref(f->timer);
	if (f->cache) {
		f->late = true;
		end(f);
	}
	f->on_flushed(f);
	return 0;
}

static void on_synced(int r, const uint64_t sum[2], void *userdata)
{
	struct kvcache *c = userdata;

	/* pages of a file that could not be synced are not on the disk any more */
	(void)r, (void)sum;
	c->syncing = false;
	tiers_moved(c);
}

static bool has_failed(const struct kvcache *c)
{
	return !c->disk || (kvdisk_is_ready(c->disk) && kvdisk_text(c->disk)[0]);
}

void tiers_moved(struct kvcache *c)
{
	if (TAILQ_EMPTY(&c->flushes))
		return;
	if (has_failed(c)) {
		end_all(c);
		return;
	}
	if (!kvdisk_is_ready(c->disk) || kvcache_is_moving(c) || c->disk_is_behind || c->syncing)
		return;
	if (c->n_unsynced > 0 && kvdisk_flush(c->disk, on_synced, c) >= 0) {
		c->n_unsynced = 0;
		c->syncing = true;
		return;
	}
	end_all(c);
}

int tiers_flush(struct kvcache *c, sd_event *loop, uint64_t timeout_us, struct tiers_flush *f)
{
	int r;

	f->n_left = 0;
	f->late = false;
	r = sd_event_add_time_relative(loop, &f->timer, CLOCK_BOOTTIME, timeout_us, 1, on_time, f);
	if (r < 0)
		return r;
	f->cache = c;
	TAILQ_INSERT_TAIL(&c->flushes, f, link);
	kvcache_disk_ready(c); /* what failed is tried again, once */
	return 0;
}

void tiers_flush_withdraw(struct tiers_flush *f)
{
	f->timer = sd_event_source_disable_unref(f->timer);
	if (f->cache)
		TAILQ_REMOVE(&f->cache->flushes, f, link);
	f->cache = NULL;
}
