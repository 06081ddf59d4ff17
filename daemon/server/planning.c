/* The plan of a model's memory on GPUs, from options and settings. */
#include "daemon/server/planning.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/exec/weights/memplan.h"
#include "daemon/sched/sched.h"
#include "daemon/server/broker.h"

static int gpus_of(const char *text, uint32_t *ret, struct err *err)
{
	char *end;
	const unsigned long n = text ? strtoul(text, &end, 10) : 1;

	if (text && (*end || end == text || n == 0 || n > MEMPLAN_GPUS_MAX))
		return err_set(err, -EINVAL, "--gpus is '%.40s'; from 1 to %u is possible", text,
			       MEMPLAN_GPUS_MAX);
	*ret = n;
	return 0;
}

/* Tokens of KV cache: what the settings say, else the longest context up to a usual one. */
static uint32_t context_of(const struct settings *s, const struct config *c)
{
	if (s->kv_cache_size)
		return MIN(MAX(s->kv_cache_size / config_kv_bytes(c, 2), 1), UINT32_MAX / 2);
	return s->context ? s->context : MIN(MEMPLAN_CONTEXT, c->max_positions);
}

static int plan(const struct options *o, const struct settings *s, const struct memplan_model *m)
{
	struct memplan_limits limits = {
		.context_tokens = context_of(s, &m->config),
		.page_tokens = s->page_tokens,
		.max_rows = sched_slots(s),
		.batch_tokens = s->batch_tokens,
	};
	struct err err = { 0 };
	struct memplan p;
	int r;

	r = gpus_of(o->gpus, &limits.n_gpus, &err);
	if (r == 0)
		r = memplan_card_bytes(o->vram, &limits.card_bytes, &err);
	if (r == 0)
		r = memplan_make(m, &limits, &p, &err);
	if (r == 0) {
		memplan_print(&p, m, stdout);
		r = memplan_fits(&p, &err);
	}
	if (r == 0)
		return BROKER_OK;
	fflush(stdout);
	fprintf(stderr, "steamd: %s\n", err.text);
	return r == -EINVAL ? BROKER_USAGE : BROKER_NO_ROOM;
}

int planning_run(const struct options *o, const struct settings *s)
{
	_cleanup_(checkpoint_freep) struct checkpoint *ck = NULL;
	struct memplan_model m;
	struct err err = { 0 };

	if (strcmp(s->model, "air") == 0) {
		memplan_air(&m);
		return plan(o, s, &m);
	}
	if (checkpoint_open(s->model, &ck, &err) < 0) {
		fprintf(stderr, "steamd: %s\n", err.text);
		return BROKER_REFUSED;
	}
	m = (struct memplan_model){ .name = s->model, .config = ck->config, .checkpoint = ck };
	return plan(o, s, &m);
}
