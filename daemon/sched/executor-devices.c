/* The devices of an executor: how large the KV cache on them shall be, and what is seen of them. */
#include <errno.h>

#include "daemon/sched/executor-parts.h"

void executor_tell_pool(struct executor *e)
{
	if (e->resizing || e->pool_told == e->pool_wanted || executor_uses_arena(e) ||
	    (e->state != EXECUTOR_READY && e->state != EXECUTOR_PARKED))
		return;
	e->pool_told = e->pool_wanted;
	e->resizing = true;
	executor_order(e, CONTROL_POOL);
	/* a broker that dies in between is followed by one that orders it again */
	e->record.pool_bytes = e->pool_wanted;
	execrecord_write(e->record_fd, &e->record);
}

void executor_set_pool(struct executor *e, uint64_t bytes)
{
	e->pool_wanted = bytes;
	executor_tell_pool(e);
}

bool executor_is_resizing(const struct executor *e)
{
	return e->resizing;
}

int executor_look(struct executor *e)
{
	if (e->control_fd < 0 || !executor_known(e) || executor_uses_arena(e))
		return -EAGAIN;
	if (e->looking)
		return 0; /* a device that hangs is not asked until no order fits any more */
	e->n_seen = 0;
	e->looking = true;
	executor_order(e, CONTROL_LOOK);
	return e->control_fd < 0 ? -EAGAIN : 0;
}

const struct control_seen *executor_seen(const struct executor *e, uint32_t rank)
{
	return rank < e->n_seen ? &e->seen[rank] : NULL;
}

void executor_was_seen(struct executor *e, const struct control_seen *seen)
{
	if (seen->rank < MIN(seen->n_ranks, CONTROL_RANKS_MAX)) {
		struct control_seen *to = &e->seen[seen->rank];

		*to = *seen;
		to->n_regions = MIN(seen->n_regions, CONTROL_REGIONS_MAX);
		for (uint32_t i = 0; i < to->n_regions; i++)
			to->regions[i].name[sizeof(to->regions[i].name) - 1] = '\0';
		to->map[CONTROL_MAP_MAX] = '\0';
		to->text[sizeof(to->text) - 1] = '\0';
	}
	e->n_seen = MIN(seen->n_ranks, CONTROL_RANKS_MAX);
	if (seen->rank + 1 < seen->n_ranks)
		return;
	e->looking = false;
	if (e->options.on_seen)
		e->options.on_seen(e, e->options.userdata);
}

void executor_pooled(struct executor *e, const struct control_pooled *pooled)
{
	if (e->state == EXECUTOR_READY) { /* a parked one has none */
		e->record.ready.resident_bytes = pooled->resident_bytes;
		e->record.ready.pool = pooled->pool;
		execrecord_write(e->record_fd, &e->record);
	}
	e->resizing = false;
	executor_tell_pool(e);
	if (e->wake_wanted && e->state == EXECUTOR_PARKED && !e->resizing)
		executor_order_wake(e);
	executor_tell(e);
}
