/* A model on several ranks is the model on one: its logits, its pages, its files. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/exec/weights/memplan.h"
#include "tests/fidelity/rig.h"
#include "tests/unit/edited.h"

/* Sums of F32 in another order, values of order 1; with REF nothing else differs. */
#define TOL_SUMS 2e-5
/* How much further from exact arithmetic than one rank is, as a share of that. */
#define TOL_FURTHER 0.1

#define N 70
#define PAGES 16

/* A model of random weights that can be divided among eight: no golden one can among more than two. */
static char made[] = "/tmp/test-ranks-XXXXXX";

static const struct {
	const char *name;
	uint32_t n_ranks;
} cases[] = {
	{ "air", 2 }, { "bf16", 2 }, { "w4g128", 2 }, { made, 2 }, { made, 4 }, { made, 8 },
};

static int make_model(void **state)
{
	char command[256];

	(void)state;
	if (!mkdtemp(made))
		return -1;
	snprintf(command, sizeof(command),
		 "tests/bench/make-model --heads 16 --kv-heads 8 --head-dim 16 --moe-ffn 256 "
		 "--ffn 384 --vocab 1600 tiny %s",
		 made);
	return system(command);
}

static int remove_model(void **state)
{
	char command[64];

	(void)state;
	snprintf(command, sizeof(command), "rm -r '%s'", made);
	return system(command);
}

static uint32_t id_at(uint32_t i)
{
	return (i * 7919 + 13) % 487;
}

/* Logits of N tokens in pieces of @chunk. */
static float *compute(struct rig *rig, uint32_t chunk)
{
	float *logits = calloc((size_t)N * rig->vocab, sizeof(float));
	uint32_t ids[N];

	for (uint32_t i = 0; i < N; i++)
		ids[i] = id_at(i);
	assert_non_null(logits);
	assert_int_equal(rig_feed(rig, 0, ids, 0, N, chunk, false, logits), 0);
	return logits;
}

static float *compute_on(const char *name, enum isa isa, uint32_t n_threads, uint32_t n_ranks,
			 uint32_t chunk, size_t *ret_n)
{
	struct rig rig;
	float *logits;

	assert_int_equal(rig_open_ranks(name, isa, n_threads, n_ranks, N, PAGES, &rig), 0);
	logits = compute(&rig, chunk);
	*ret_n = (size_t)N * rig.vocab;
	rig_close(&rig);
	return logits;
}

static double furthest(const float *a, const float *b, size_t n)
{
	double most = 0;

	for (size_t i = 0; i < n; i++)
		most = fmax(most, isfinite(a[i]) ? fabs((double)a[i] - b[i]) : INFINITY);
	return most;
}

static double rms(const float *a, const float *b, size_t n)
{
	double sum = 0;

	for (size_t i = 0; i < n; i++)
		sum += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
	return sqrt(sum / n);
}

static void logits_are_those_of_one_rank_but_for_rounding(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		const char *name = cases[i].name;
		const uint32_t n_ranks = cases[i].n_ranks;
		size_t n;
		float *exact = compute_on(name, ISA_REF, 1, 1, N, &n);
		float *divided = compute_on(name, ISA_REF, 1, n_ranks, N, &n);
		float *fast = compute_on(name, isa_best(), 1, 1, N, &n);
		float *both = compute_on(name, isa_best(), 1, n_ranks, N, &n);

		print_message("%s, %u ranks: exact %.2g apart, %s off by %.4g instead of %.4g\n",
			      name, n_ranks, furthest(divided, exact, n), isa_name(isa_best()),
			      rms(both, exact, n), rms(fast, exact, n));
		assert_true(furthest(divided, exact, n) <= TOL_SUMS);
		assert_true(rms(fast, exact, n) > 0);
		assert_true(rms(both, exact, n) <= (1 + TOL_FURTHER) * rms(fast, exact, n));
		free(exact);
		free(divided);
		free(fast);
		free(both);
	}
}

static void a_rows_bits_depend_on_neither_pieces_nor_threads(void **state)
{
	static const uint32_t chunks[] = { 1, 7, 64 };
	size_t n;
	float *whole = compute_on(made, isa_best(), 1, 4, N, &n);

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(chunks); i++) {
		float *pieces = compute_on(made, isa_best(), i == 1 ? 8 : 1, 4, chunks[i], &n);

		assert_memory_equal(pieces, whole, n * sizeof(*whole));
		free(pieces);
	}
	free(whole);
}

/* Every head's K and V of every token in the cache, one after the other. */
static double pages_apart(const struct rig *a, const struct rig *b)
{
	const struct kv_cache *kv = &a->kv;
	const size_t strips = (size_t)kv->layers * 2 * kv->kv_heads;
	double most = 0;

	for (uint32_t i = 0; i < N; i++) {
		const size_t page = a->pages[i / RIG_PAGE_TOKENS] * kv_page_bytes(kv);

		for (size_t s = 0; s < strips; s++) {
			const size_t at = (s * kv->page_tokens + i % kv->page_tokens) *
					  kv->head_dim;

			most = fmax(most, furthest((const float *)((char *)a->kv.base + page) + at,
						   (const float *)((char *)b->kv.base + page) + at,
						   kv->head_dim));
		}
	}
	return most;
}

static void pages_are_the_same_whoever_filled_them(void **state)
{
	const uint32_t next = id_at(N);
	struct rig one, four;
	float *logits, *after[2];

	(void)state;
	assert_int_equal(rig_open_ranks(made, ISA_REF, 1, 1, N, PAGES, &one), 0);
	assert_int_equal(rig_open_ranks(made, ISA_REF, 1, 4, N, PAGES, &four), 0);
	free(compute(&one, N));
	logits = compute(&four, N);
	assert_true(pages_apart(&four, &one) <= TOL_SUMS);

	/* what four ranks computed goes on with one, and the other way round */
	for (int i = 0; i < 2; i++)
		after[i] = calloc(one.vocab, sizeof(float));
	assert_int_equal(rig_feed(&one, 0, &next, N, 1, 1, true, after[0]), 0);
	memcpy(one.kv.base, four.kv.base, PAGES * kv_page_bytes(&one.kv));
	assert_int_equal(rig_feed(&one, 0, &next, N, 1, 1, true, after[1]), 0);
	assert_true(furthest(after[1], after[0], one.vocab) <= TOL_SUMS);
	memcpy(four.kv.base, one.kv.base, PAGES * kv_page_bytes(&one.kv));
	assert_int_equal(rig_feed(&four, 0, &next, N, 1, 1, true, after[1]), 0);
	assert_true(furthest(after[1], after[0], one.vocab) <= TOL_SUMS);
	/* and depends on them */
	memset(four.kv.base, 0, PAGES * kv_page_bytes(&one.kv));
	assert_int_equal(rig_feed(&four, 0, &next, N, 1, 1, true, after[1]), 0);
	assert_true(furthest(after[1], after[0], one.vocab) > 0.01);

	free(logits);
	free(after[0]);
	free(after[1]);
	rig_close(&one);
	rig_close(&four);
}

static uint64_t matrix_bytes(const struct weights *w)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < w->config.layers; i++) {
		const struct layer_weights *l = &w->layers[i];
		const struct weight *m[] = { &l->q,
					     &l->k,
					     &l->v,
					     &l->o,
					     &l->gate,
					     &l->up,
					     &l->down,
					     &l->moe.shared_gate,
					     &l->moe.shared_down };

		for (size_t k = 0; k < ARRAY_SIZE(m); k++)
			n += m[k]->kind ? weight_bytes(w->dev, m[k]->kind, m[k]->rows, m[k]->cols)
					: 0;
		for (uint32_t e = 0; e < l->moe.experts; e++)
			n += weight_bytes(w->dev, l->moe.down[e].kind, l->moe.down[e].rows,
					  l->moe.down[e].cols) +
			     weight_bytes(w->dev, l->moe.gate[e].kind, l->moe.gate[e].rows,
					  l->moe.gate[e].cols);
	}
	return n + weight_bytes(w->dev, w->embed.kind, w->embed.rows, w->embed.cols) +
	       weight_bytes(w->dev, w->head.kind, w->head.rows, w->head.cols);
}

struct progress {
	uint64_t done_bytes, total_bytes;
};

static void on_progress(uint64_t done_bytes, uint64_t total_bytes, void *userdata)
{
	struct progress *p = userdata;

	p->done_bytes = done_bytes;
	p->total_bytes = total_bytes;
}

static void every_rank_has_its_part_and_all_are_read_once(void **state)
{
	_cleanup_(team_closep) struct team *one = NULL, *four = NULL;
	_cleanup_(checkpoint_freep) struct checkpoint *c = NULL;
	struct progress of_one = { 0 }, of_four = { 0 };
	uint64_t sum = 0;

	(void)state;
	assert_int_equal(checkpoint_open(made, &c, NULL), 0);
	assert_int_equal(team_open(ISA_PORTABLE, 1, 1, &one), 0);
	assert_int_equal(team_load(one, c, on_progress, &of_one, NULL), 0);
	assert_int_equal(team_open(ISA_PORTABLE, 8, 4, &four), 0);
	assert_int_equal(team_load(four, c, on_progress, &of_four, NULL), 0);

	assert_int_equal(team_ranks(four), 4);
	for (uint32_t i = 0; i < 4; i++) {
		assert_int_equal(dev_threads(team_dev(four, i)), 2);
		assert_int_equal(team_weights(four, i)->share.rank, i);
		sum += matrix_bytes(team_weights(four, i));
		assert_true(team_weights(four, i)->bytes < team_weights(one, 0)->bytes * 3 / 10);
	}
	assert_int_equal(sum, matrix_bytes(team_weights(one, 0)));
	assert_int_equal(of_four.total_bytes, of_one.total_bytes);
	assert_int_equal(of_four.done_bytes, of_four.total_bytes);
	assert_memory_equal(fingerprint_whole(team_weights(four, 0)->fingerprint),
			    fingerprint_whole(team_weights(one, 0)->fingerprint),
			    FINGERPRINT_BYTES);
}

static void weights_that_were_dropped_come_back_to_all_ranks(void **state)
{
	_cleanup_(checkpoint_freep) struct checkpoint *c = NULL;
	struct rig rig;
	float *before, *after;

	(void)state;
	assert_int_equal(checkpoint_open(made, &c, NULL), 0);
	assert_int_equal(rig_open_ranks(made, isa_best(), 4, 4, N, PAGES, &rig), 0);
	before = compute(&rig, N);
	team_drop(rig.team);
	assert_int_equal(team_reload(rig.team, c, NULL, NULL, NULL), 0);
	after = compute(&rig, N);
	assert_memory_equal(after, before, (size_t)N * rig.vocab * sizeof(*after));
	free(before);
	free(after);
	rig_close(&rig);
}

static void what_cannot_be_divided_is_refused_with_the_numbers(void **state)
{
	static const struct {
		const char *name;
		uint32_t n_ranks;
		const char *wanted;
	} refusals[] = {
		{ "air", 4,
		  "12 heads with 2 heads of keys and values cannot be divided among 4 ranks" },
		{ "glm46", 2,
		  "32 columns of tensor 'model.layers.3.mlp.experts.0.down_proj.weight_packed' "
		  "cannot be divided among 2 ranks in multiples of 32" },
		{ "w4all", 2,
		  "160 columns of tensor 'model.layers.0.mlp.down_proj.weight_packed' cannot be "
		  "divided among 2 ranks in multiples of 32" },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(refusals); i++) {
		_cleanup_(team_closep) struct team *team = NULL;
		_cleanup_(checkpoint_freep) struct checkpoint *c = NULL;
		_cleanup_(freep) char *dir = rig_path(refusals[i].name, "");
		struct err err = { 0 };

		assert_int_equal(checkpoint_open(dir, &c, NULL), 0);
		assert_int_equal(team_open(ISA_PORTABLE, 1, refusals[i].n_ranks, &team), 0);
		assert_int_equal(team_load(team, c, NULL, NULL, &err), -ENOTSUP);
		if (!strstr(err.text, refusals[i].wanted))
			fail_msg("'%s' instead of '%s'", err.text, refusals[i].wanted);
	}
	assert_int_equal(rig_divides("air", 2), 0);
	assert_int_equal(rig_divides("bf16", 2), 0);
	assert_int_equal(rig_divides("w4g128", 2), 0);
}

/* Among the columns of rank 1, in the second of two groups of row 7. */
static void a_bad_scale_of_a_part_has_its_own_index(void **state)
{
	static const uint16_t zero;
	_cleanup_(team_closep) struct team *team = NULL;
	_cleanup_(checkpoint_freep) struct checkpoint *c = NULL;
	struct err err = { 0 };
	struct edited e;

	(void)state;
	edited_open(&e, "air");
	edited_poke(&e, "model-00001-of-00002.safetensors",
		    "model.layers.1.mlp.experts.3.down_proj.weight_scale", 2 * 15, &zero, 2);
	assert_int_equal(checkpoint_open(e.dir, &c, NULL), 0);
	assert_int_equal(team_open(ISA_PORTABLE, 1, 2, &team), 0);
	assert_int_equal(team_load(team, c, NULL, NULL, &err), -EBADMSG);
	if (!strstr(err.text, "weight_scale' has zero at index 15, wanted a positive scale"))
		fail_msg("%s", err.text);
	edited_close(&e);
}

/* To what the alignment of small tensors adds, which in a large model is nothing. */
static void memory_is_planned_as_it_is_taken(void **state)
{
	_cleanup_(checkpoint_freep) struct checkpoint *c = NULL;
	struct memplan_model m = { .name = "made" };

	(void)state;
	assert_int_equal(checkpoint_open(made, &c, NULL), 0);
	m.config = c->config;
	m.checkpoint = c;
	for (uint32_t n_ranks = 1; n_ranks <= 8; n_ranks *= 2) {
		const struct memplan_limits limits = {
			.n_gpus = n_ranks,
			.card_bytes = 1ull << 34,
			.context_tokens = 4096,
			.page_tokens = 4096,
			.max_rows = 1,
			.batch_tokens = 16,
		};
		_cleanup_(team_closep) struct team *team = NULL;
		uint64_t planned = 0;
		struct memplan p;

		assert_int_equal(memplan_make(&m, &limits, &p, NULL), 0);
		for (int i = 0; i < MEMPLAN_WEIGHTS_END; i++)
			planned += p.part_bytes[i];
		assert_int_equal(team_open(ISA_PORTABLE, 1, n_ranks, &team), 0);
		assert_int_equal(team_load(team, c, NULL, NULL, NULL), 0);
		for (uint32_t i = 0; i < n_ranks; i++)
			assert_in_range(team_weights(team, i)->bytes, planned * 97 / 100, planned);
	}
}

/* A matrix that is none fails on its rank alone, where the others wait for its part of a sum. */
static void a_rank_that_fails_lets_none_wait(void **state)
{
	(void)state;
	for (uint32_t failing = 0; failing < 4; failing += 3) {
		const uint32_t ids[] = { 1, 2, 3 }, out[] = { 2 };
		const struct seq seq = { .n_tokens = 3, .n_pages = 1, .pages = (uint32_t[]){ 0 } };
		struct rig rig;
		float *logits;

		assert_int_equal(rig_open_ranks(made, isa_best(), 1, 4, N, PAGES, &rig), 0);
		logits = calloc(rig.vocab, sizeof(float));
		assert_int_equal(rig_forward(&rig, ids, 3, &seq, 1, out, 1, logits), 0);
		team_weights(rig.team, failing)->layers[1].o.kind = WEIGHT_NONE;
		assert_true(rig_forward(&rig, ids, 3, &seq, 1, out, 1, logits) < 0);
		assert_int_equal(rig_forward(&rig, ids, 3, &seq, 1, out, 1, logits), -EIO);
		assert_int_equal(team_logits(rig.team, 0, 1, logits), -EIO);
		free(logits);
		rig_close(&rig);
	}
}

/* What all ranks refuse alike, before anything is computed, is no failure of theirs. */
static void a_batch_that_is_refused_leaves_the_ranks_whole(void **state)
{
	uint32_t ids[] = { 1, 2, 3 }, out[] = { 2 };
	const struct seq seq = { .n_tokens = 3, .n_pages = 1, .pages = (uint32_t[]){ 0 } };
	struct rig rig;
	float *logits;

	(void)state;
	assert_int_equal(rig_open_ranks(made, isa_best(), 1, 2, N, PAGES, &rig), 0);
	logits = calloc(rig.vocab, sizeof(float));
	ids[1] = rig.vocab;
	assert_int_equal(rig_forward(&rig, ids, 3, &seq, 1, out, 1, logits), -EINVAL);
	assert_int_equal(team_logits(rig.team, 0, 1, logits), -EINVAL);
	ids[1] = 2;
	assert_int_equal(rig_forward(&rig, ids, 3, &seq, 1, out, 1, logits), 0);
	free(logits);
	rig_close(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(logits_are_those_of_one_rank_but_for_rounding),
		cmocka_unit_test(a_rows_bits_depend_on_neither_pieces_nor_threads),
		cmocka_unit_test(pages_are_the_same_whoever_filled_them),
		cmocka_unit_test(every_rank_has_its_part_and_all_are_read_once),
		cmocka_unit_test(weights_that_were_dropped_come_back_to_all_ranks),
		cmocka_unit_test(what_cannot_be_divided_is_refused_with_the_numbers),
		cmocka_unit_test(a_bad_scale_of_a_part_has_its_own_index),
		cmocka_unit_test(memory_is_planned_as_it_is_taken),
		cmocka_unit_test(a_rank_that_fails_lets_none_wait),
		cmocka_unit_test(a_batch_that_is_refused_leaves_the_ranks_whole),
	};

	return cmocka_run_group_tests(tests, make_model, remove_model);
}
