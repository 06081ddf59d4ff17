/*
 * The memory of a card that the executor takes for GLM-4.5-Air at its true dimensions, against the
 * plan: on an emulated device whose memory is counted, and touched where it must be.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/exec/mirror.h"
#include "daemon/exec/model/model.h"
#include "daemon/exec/sample/devsampler.h"
#include "daemon/exec/weights/memplan.h"
#include "kernels/cuda/vram.h"
#include "tests/fidelity/rig.h"

int cudaMemGetInfo(size_t *ret_free, size_t *ret_total);

static uint64_t taken(void)
{
	size_t available, all;

	assert_int_equal(cudaMemGetInfo(&available, &all), 0);
	return all - available;
}

struct card {
	struct memplan plan;
	struct dev *dev;
	struct comm *comms[SHARE_RANKS_MAX];
	struct weights weights; /* dimensions alone */
	struct mirror *mirror;
	struct model *model;
	struct devsampler *samplers;
	uint64_t kv_bytes, rest_bytes;
};

/* The first of @n_gpus; its model, with all that steps need. */
static void open_card(struct card *c, uint32_t n_gpus, const char *size, uint32_t max_rows,
		      uint32_t batch_tokens)
{
	static char arena[1]; /* whose pages nobody looks at here */
	struct memplan_limits l = { .n_gpus = n_gpus,
				    .context_tokens = 131072,
				    .page_tokens = 64,
				    .max_rows = max_rows,
				    .batch_tokens = batch_tokens };
	struct memplan_model air;
	struct kv_cache kv, own, mirrored;
	struct mirror_size pool;
	uint64_t before;

	memset(c, 0, sizeof(*c));
	memplan_air(&air);
	assert_int_equal(memplan_card_bytes(size, &l.card_bytes, NULL), 0);
	assert_int_equal(memplan_make(&air, &l, &c->plan, NULL), 0);
	air.config.rope_theta = 1e6;
	air.config.norm_eps = 1e-5;
	c->weights.config = air.config;
	assert_int_equal(share_make(&air.config, 0, n_gpus, "GPUs", &c->weights.share, NULL), 0);
	assert_int_equal(dev_open_rank(ISA_CUDA, 1, 0, n_gpus, &c->dev), 0);
	assert_int_equal(comm_open(n_gpus, c->comms), 0);

	kv = (struct kv_cache){ .base = arena,
				.type = DT_BF16,
				.n_pages = c->plan.n_pages,
				.page_tokens = l.page_tokens,
				.layers = air.config.layers,
				.kv_heads = air.config.kv_heads,
				.head_dim = air.config.head_dim };
	own = kv_heads_of(&kv, 0, c->weights.share.kv_heads);
	pool = (struct mirror_size){ .group_pages = c->plan.group_pages };
	before = taken();
	assert_int_equal(mirror_new(c->dev, &own, &pool, &c->mirror, &mirrored, NULL), 0);
	assert_int_equal(mirror_resize(c->mirror, NULL, UINT64_MAX), 0); /* to grow needs no stream */
	c->kv_bytes = taken() - before;

	before = taken();
	assert_int_equal(model_new_rank(c->dev, &c->weights, c->comms[0], &mirrored, batch_tokens,
					131072, &c->model, NULL),
			 0);
	if (n_gpus == 1)
		assert_int_equal(devsampler_new(model_stream(c->model), max_rows, air.config.vocab,
						131072, &c->samplers),
				 0);
	c->rest_bytes = taken() - before;
}

static void close_card(struct card *c)
{
	devsampler_free(c->samplers);
	model_free(c->model);
	mirror_free(c->mirror);
	comm_close(c->comms[0]);
	dev_close(c->dev);
	assert_int_equal(taken(), 0);
}

static void what_is_taken_is_what_was_planned(void **state)
{
	static const struct {
		uint32_t n_gpus;
		const char *size;
		uint32_t max_rows, batch_tokens;
	} cases[] = { { 1, "96GB", 32, 512 },  { 2, "48GB", 32, 512 },	{ 4, "24GB", 32, 512 },
		      { 1, "96GB", 64, 2048 }, { 2, "48GB", 64, 2048 }, { 4, "24GB", 64, 2048 } };

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct card c;
		uint64_t planned;

		open_card(&c, cases[i].n_gpus, cases[i].size, cases[i].max_rows,
			  cases[i].batch_tokens);
		planned = c.plan.part_bytes[MEMPLAN_WORKSPACE] + c.plan.part_bytes[MEMPLAN_SLOTS];
		assert_int_equal(c.kv_bytes, c.plan.part_bytes[MEMPLAN_KV]);
		if (c.rest_bytes > planned || c.rest_bytes + planned / 100 < planned)
			fail_msg("%u x %s, %u rows, %u tokens: %llu bytes beside weights and KV, "
				 "not %llu",
				 cases[i].n_gpus, cases[i].size, cases[i].max_rows,
				 cases[i].batch_tokens, (unsigned long long)c.rest_bytes,
				 (unsigned long long)planned);
		close_card(&c);
	}
}

/* A small checkpoint: where it is padded is all that it can differ in. */
static void weights_take_what_was_planned(void **state)
{
	struct memplan_limits l = { .n_gpus = 1,
				    .card_bytes = (uint64_t)1 << 30,
				    .context_tokens = 1024,
				    .page_tokens = 64,
				    .max_rows = 4,
				    .batch_tokens = 16 };
	struct memplan_model m;
	struct memplan plan;
	struct rig rig;
	uint64_t loaded;

	(void)state;
	assert_int_equal(rig_open("air", ISA_CUDA, 1, 16, 4, &rig), 0);
	m = (struct memplan_model){ .name = "air",
				    .config = rig.weights->config,
				    .checkpoint = rig.checkpoint };
	assert_int_equal(memplan_make(&m, &l, &plan, NULL), 0);
	loaded = vram_round(rig.weights->bytes);
	assert_true(loaded <= plan.weights_bytes && plan.weights_bytes - loaded <= VRAM_GRANULE);
	rig_close(&rig);
	assert_int_equal(taken(), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_taken_is_what_was_planned),
		cmocka_unit_test(weights_take_what_was_planned),
	};

	setenv("CUEMU_DEVICES", "4", 1);
	setenv("CUEMU_GIB", "96", 1);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
