/* config.json and generation_config.json: whatever is accepted keeps the bounds that others rely on. */
#include <assert.h>
#include <math.h>

#include "daemon/exec/weights/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_config(const struct config *c)
{
	assert(c->dim >= 16 && c->layers >= 1 && c->dense_layers <= c->layers);
	assert(c->heads % c->kv_heads == 0);
	assert(c->top_k >= 1 && c->top_k <= c->experts / c->groups * c->top_groups);
	assert(c->head_dim % 16 == 0 && c->rotary % 2 == 0 && c->rotary <= c->head_dim);
	assert(c->n_eos <= CONFIG_EOS_MAX && c->n_warnings <= CONFIG_WARNINGS_MAX);
	assert(isfinite(c->rope_theta) && isfinite(c->norm_eps) && isfinite(c->routed_scale));
	assert(!c->quantised || c->group == 0 || c->group == 32 || c->group == 64 ||
	       c->group == 128);
	assert(config_kv_bytes(c, 2) <= (uint64_t)1024 * 2 * 1024 * 1024 * 2);
}

static void check_generation(const struct generation_config *g)
{
	assert(isnan(g->temperature) || (g->temperature >= 0 && g->temperature <= 100));
	assert(isnan(g->top_p) || (g->top_p >= 0 && g->top_p <= 1));
	assert(isnan(g->min_p) || (g->min_p >= 0 && g->min_p <= 1));
	assert(g->n_eos <= CONFIG_EOS_MAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct generation_config g;
	struct err err = { 0 };
	struct config c;
	int r;

	r = config_parse((const char *)data, size, &c, &err);
	assert(r == 0 || (r < 0 && err.text[0]));
	if (r == 0)
		check_config(&c);

	err = (struct err){ 0 };
	r = generation_config_parse((const char *)data, size, &g, &err);
	assert(r == 0 || (r < 0 && err.text[0]));
	if (r == 0)
		check_generation(&g);
	return 0;
}
