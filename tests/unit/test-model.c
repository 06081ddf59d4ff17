/* The graph against the golden taps, and one row's bits in every company. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "tests/fidelity/rig.h"

#define TOL_TAP 1e-4	/* REF in F32 between operations, values of order 1 */
#define TOL_WEIGHT 1e-5 /* a router's weight */

static const char *const checkpoints[] = { "air", "glm46", "odd", "bf16", "w4all", "w4g128" };

static void must_open(const char *name, enum isa isa, uint32_t n_threads, struct rig *rig)
{
	assert_int_equal(rig_open(name, isa, n_threads, 256, 64, rig), 0);
}

/* What passes by is compared at once. */
struct watch {
	struct rig *rig;
	json_t *prompt;
	float *hidden, *final_norm;
	uint32_t n_hidden, n_taps, n_routers;
};

static void assert_close(const float *got, const float *want, size_t n, const char *what)
{
	for (size_t i = 0; i < n; i++)
		if (!(fabs((double)got[i] - want[i]) <= TOL_TAP * fmax(1, fabs(want[i]))))
			fail_msg("%s[%zu] is %.9g; %.9g is wanted", what, i, got[i], want[i]);
}

static void check_layer0(struct watch *w, const struct model_tap_data *d, const char *key)
{
	json_t *tap = json_object_get(json_object_get(w->prompt, "layer0_taps"), key);
	const size_t n = (size_t)d->n_tokens * d->width;
	_cleanup_(freep) float *want = NULL;

	if (d->layer != 0)
		return;
	want = rig_floats(w->rig->name, json_string_value(json_object_get(tap, "file")), n);
	assert_non_null(want);
	assert_close(d->values, want, n, key);
	w->n_taps++;
}

/* A set in another order is excusable only by equal scores, which no golden case has. */
static void check_router(struct watch *w, const struct model_tap_data *d)
{
	json_t *layer = json_array_get(json_object_get(w->prompt, "router"), w->n_routers++);
	json_t *experts = json_object_get(layer, "experts");
	json_t *weights = json_object_get(layer, "weights");

	assert_int_equal(json_integer_value(json_object_get(layer, "layer")), d->layer);
	for (uint32_t t = 0; t < d->n_tokens; t++) {
		for (uint32_t i = 0; i < d->width; i++) {
			json_t *id = json_array_get(json_array_get(experts, t), i);
			json_t *weight = json_array_get(json_array_get(weights, t), i);

			assert_int_equal(d->experts[t * d->width + i], json_integer_value(id));
			assert_true(fabs(d->values[t * d->width + i] - json_number_value(weight)) <=
				    TOL_WEIGHT);
		}
	}
}

static void on_tap(const struct model_tap_data *d, void *userdata)
{
	struct watch *w = userdata;
	const size_t n = (size_t)d->n_tokens * d->width;

	switch (d->tap) {
	case TAP_HIDDEN:
		assert_close(d->values, w->hidden + d->layer * n, n, "hidden");
		w->n_hidden++;
		break;
	case TAP_Q:
		check_layer0(w, d, "q");
		break;
	case TAP_K:
		check_layer0(w, d, "k");
		break;
	case TAP_V:
		check_layer0(w, d, "v");
		break;
	case TAP_ATTENTION:
		check_layer0(w, d, "attn");
		break;
	case TAP_FINAL_NORM:
		assert_close(d->values, w->final_norm, n, "final norm");
		break;
	case TAP_ROUTER:
		check_router(w, d);
		break;
	}
}

static void every_tap_of_a_short_prompt_is_as_in_float64(void **state)
{
	(void)state;

	for (size_t i = 0; i < ARRAY_SIZE(checkpoints); i++) {
		json_t *truth = rig_truth(checkpoints[i]);
		struct watch w = { .prompt = rig_prompt(truth, "r7") };
		_cleanup_(freep) uint32_t *ids = NULL;
		_cleanup_(freep) float *logits = NULL;
		struct rig rig;
		uint32_t n;

		assert_non_null(w.prompt);
		must_open(checkpoints[i], ISA_REF, 1, &rig);
		const struct config *c = &rig.weights->config;

		ids = rig_ids(w.prompt, &n);
		logits = calloc((size_t)n * rig.vocab, sizeof(float));
		w.rig = &rig;
		w.hidden = rig_floats(rig.name, "hidden_r7.f32",
				      (size_t)(c->layers + 1) * n * c->dim);
		w.final_norm = rig_floats(rig.name, "final_r7.f32", (size_t)n * c->dim);
		assert_non_null(w.hidden);
		assert_non_null(w.final_norm);

		model_set_tap(rig.model, on_tap, &w);
		assert_int_equal(rig_feed(&rig, 0, ids, 0, n, n, false, logits), 0);
		assert_int_equal(w.n_hidden, c->layers + 1);
		assert_int_equal(w.n_taps, 4);
		assert_int_equal(w.n_routers, c->layers - c->dense_layers);
		free(w.hidden);
		free(w.final_norm);
		rig_close(&rig);
		json_decref(truth);
	}
}

/* The text prompt of a checkpoint, and its logits in one go on one thread. */
struct whole {
	uint32_t *ids, n;
	float *logits;
	size_t row_bytes;
};

static struct whole compute_whole(const char *name, enum isa isa)
{
	json_t *truth = rig_truth(name);
	struct whole w = { 0 };
	struct rig rig;

	must_open(name, isa, 1, &rig);
	w.ids = rig_ids(rig_prompt(truth, "r130"), &w.n);
	w.row_bytes = rig.vocab * sizeof(float);
	w.logits = malloc(w.n * w.row_bytes);
	assert_int_equal(rig_feed(&rig, 0, w.ids, 0, w.n, w.n, false, w.logits), 0);
	rig_close(&rig);
	json_decref(truth);
	return w;
}

static void free_whole(struct whole *w)
{
	free(w->ids);
	free(w->logits);
}

static void expect_same(const struct whole *w, const float *got, uint32_t first, uint32_t n,
			const char *how)
{
	const char *want = (const char *)w->logits + first * w->row_bytes;

	for (uint32_t i = 0; i < n; i++)
		if (memcmp((const char *)got + i * w->row_bytes, want + i * w->row_bytes,
			   w->row_bytes) != 0)
			fail_msg("%s: the logits at %u differ", how, first + i);
}

/* Three slots at different lengths in one batch: two decode, one is fed a piece of the prompt. */
static void expect_same_in_company(struct rig *rig, const struct whole *w, float *logits)
{
	const uint32_t at[] = { 40, 3, 17 }, n[] = { 1, 1, 30 }, first_page[] = { 0, 16, 32 };
	uint32_t ids[32], out[32], n_ids = 0;
	struct seq seqs[3];

	for (uint32_t i = 0; i < 3; i++) {
		assert_int_equal(rig_feed(rig, first_page[i], w->ids, 0, at[i], 64, true, logits),
				 0);
		seqs[i] = (struct seq){ .first = n_ids,
					.n_tokens = n[i],
					.at = at[i],
					.n_pages = 16,
					.pages = rig->pages + first_page[i] };
		memcpy(ids + n_ids, w->ids + at[i], n[i] * sizeof(*ids));
		n_ids += n[i];
	}
	for (uint32_t i = 0; i < n_ids; i++)
		out[i] = i;
	assert_int_equal(model_forward(rig->model, ids, n_ids, seqs, 3, out, n_ids, logits), 0);
	for (uint32_t i = 0; i < 3; i++)
		expect_same(w, logits + (size_t)seqs[i].first * rig->vocab, at[i], n[i],
			    "three slots in a batch");
}

/* The sanitizers look for other faults than wrong bits, and at a tenth of the speed. */
#ifdef __SANITIZE_ADDRESS__
static const uint32_t chunks[] = { 7 };
#define THREADS_MIN 2
#else
static const uint32_t chunks[] = { 1, 3, 7, 64, 130 };
#define THREADS_MIN 1
#endif

static void expect_same_bits(const char *name, enum isa isa)
{
	struct whole w = compute_whole(name, isa);
	_cleanup_(freep) float *logits = malloc(w.n * w.row_bytes);

	for (uint32_t n_threads = THREADS_MIN; n_threads <= 2; n_threads++) {
		struct rig rig;

		must_open(name, isa, n_threads, &rig);
		for (size_t i = 0; i < ARRAY_SIZE(chunks); i++) {
			char how[64];

			snprintf(how, sizeof(how), "%s, %s, %u threads, pieces of %u", name,
				 isa_name(isa), n_threads, chunks[i]);
			assert_int_equal(rig_feed(&rig, 8, w.ids, 0, w.n, chunks[i], false, logits),
					 0);
			expect_same(&w, logits, 0, w.n, how);
		}
		expect_same_in_company(&rig, &w, logits);
		rig_close(&rig);
	}
	free_whole(&w);
}

static void a_rows_bits_depend_on_its_own_sequence_alone(void **state)
{
	(void)state;
	for (enum isa isa = ISA_REF; isa < ISA_N; isa++) {
		if (!isa_supported(isa)) {
			print_message("%s is left out: this processor cannot\n", isa_name(isa));
			continue;
		}
		expect_same_bits("glm46", isa);
		if (isa != ISA_REF)
			expect_same_bits("odd", isa);
	}
}

static void logits_in_pieces_are_those_of_the_whole(void **state)
{
	struct whole w = compute_whole("odd", isa_best());
	const struct seq seq = { .n_tokens = 20, .n_pages = 2, .pages = (uint32_t[]){ 9, 4 } };
	const uint32_t out[] = { 0, 5, 6, 18, 19 };
	_cleanup_(freep) float *logits = malloc(5 * w.row_bytes);
	struct rig rig;

	(void)state;
	must_open("odd", isa_best(), 1, &rig);
	assert_int_equal(model_forward(rig.model, w.ids, 20, &seq, 1, out, 5, NULL), 0);
	assert_int_equal(model_logits(rig.model, 3, 2, logits), 0);
	expect_same(&w, logits, 18, 2, "the last two");
	assert_int_equal(model_logits(rig.model, 0, 2, logits), 0);
	expect_same(&w, logits, 0, 1, "the first");
	expect_same(&w, logits + rig.vocab, 5, 1, "the second");
	assert_int_equal(model_logits(rig.model, 4, 2, logits), -EINVAL);
	assert_int_equal(model_logits(rig.model, 6, 0, logits), -EINVAL);
	rig_close(&rig);
	free_whole(&w);
}

static void what_does_not_fit_is_refused(void **state)
{
	uint32_t pages[] = { 0, 1 }, ids[] = { 1, 2, 3 }, out[] = { 0, 2 };
	struct seq seqs[] = { { .n_tokens = 2, .n_pages = 1, .pages = pages },
			      { .first = 2, .n_tokens = 1, .n_pages = 1, .pages = pages + 1 } };
	struct rig rig;
	float *logits;

	(void)state;
	must_open("odd", isa_best(), 1, &rig);
	logits = calloc(2, rig.vocab * sizeof(float));
	assert_int_equal(model_forward(rig.model, ids, 3, seqs, 2, out, 2, logits), 0);
	assert_int_equal(model_forward(rig.model, ids, 3, seqs, 1, out, 2, logits), -EINVAL);
	assert_int_equal(model_forward(rig.model, ids, 2, seqs, 2, out, 1, logits), -EINVAL);
	seqs[1].first = 1;
	assert_int_equal(model_forward(rig.model, ids, 3, seqs, 2, out, 2, logits), -EINVAL);
	seqs[1].first = 2;
	seqs[1].at = 16; /* beyond its page */
	assert_int_equal(model_forward(rig.model, ids, 3, seqs, 2, out, 2, logits), -EINVAL);
	seqs[1].at = 0;
	pages[1] = 64; /* beyond the arena */
	assert_int_equal(model_forward(rig.model, ids, 3, seqs, 2, out, 2, logits), -EINVAL);
	pages[1] = 1;
	ids[2] = rig.vocab;
	assert_int_equal(model_forward(rig.model, ids, 3, seqs, 2, out, 2, logits), -EINVAL);
	ids[2] = 3;
	out[1] = 3;
	assert_int_equal(model_forward(rig.model, ids, 3, seqs, 2, out, 2, logits), -EINVAL);
	out[1] = 0;
	assert_int_equal(model_forward(rig.model, ids, 3, seqs, 2, out, 2, logits), -EINVAL);
	free(logits);
	rig_close(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_tap_of_a_short_prompt_is_as_in_float64),
		cmocka_unit_test(a_rows_bits_depend_on_its_own_sequence_alone),
		cmocka_unit_test(logits_in_pieces_are_those_of_the_whole),
		cmocka_unit_test(what_does_not_fit_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
