/*
 * Loading: every value of the golden checkpoints as it stands in memory
 * against the bytes of their files, progress, and what is found only when
 * weights are read.
 */
#include <math.h>

#include "daemon/exec/weights/weights.h"
#include "tests/unit/edited.h"
#include "tests/unit/nodes-made-up.h"

#define ODD "model.safetensors"
#define EXPERT "model.layers.1.mlp.experts.3.up_proj"
#define FIRST_READ                                                                                 \
	"model.layers.1.mlp.experts.0.down_proj.weight_packed" /* stands first in the file */
#define THREADS 2

struct watch {
	uint64_t done, total;
	uint32_t calls;
	bool backwards;
	void (*at_start)(const struct edited *e);
	const struct edited *e;
};

static void on_progress(uint64_t done, uint64_t total, void *userdata)
{
	struct watch *w = userdata;

	if (w->calls++ == 0 && w->at_start)
		w->at_start(w->e);
	w->backwards |= done < w->done || done > total || (w->total && total != w->total);
	w->done = done;
	w->total = total;
}

static float widened(const void *data, enum dtype type, size_t i)
{
	const uint16_t half = type == DT_F32 ? 0 : ((const uint16_t *)data)[i];
	const uint32_t bits = (uint32_t)half << 16;
	float f;

	if (type == DT_F32)
		return ((const float *)data)[i];
	memcpy(&f, &bits, 4);
	if (type == DT_BF16)
		return f;
	if (half & 0x7c00)
		f = ldexpf((float)(1024 + (half & 1023)), (half >> 10 & 31) - 25);
	else
		f = ldexpf((float)(half & 1023), -24);
	return half & 0x8000 ? -f : f;
}

static void *bytes_of(struct ck_tensor at)
{
	struct err err = { 0 };
	void *data;

	if (!at.t)
		return NULL;
	data = malloc(at.t->bytes);
	assert_non_null(data);
	assert_int_equal(st_file_read(at.file, at.t, data, &err), 0);
	return data;
}

/* The matrix as its files say: (code - 8) * scale, or the plain value. */
static float value_in_file(const struct ck_linear *w, const void *codes, const void *scales,
			   uint32_t r, uint32_t c)
{
	const uint32_t words = (w->cols + 7) / 8, groups = w->group ? w->cols / w->group : 0;
	uint32_t code;

	if (w->plain.t)
		return widened(codes, w->plain.t->type, (size_t)r * w->cols + c);
	code = ((const uint32_t *)codes)[(size_t)r * words + c / 8] >> 4 * (c % 8) & 15;
	return (float)((int)code - 8) *
	       widened(scales, w->scales.t->type, (size_t)r * groups + c / w->group);
}

static void same_matrix(struct stream *st, const struct weight *m, const struct ck_linear *w)
{
	_cleanup_(freep) void *codes = bytes_of(w->plain.t ? w->plain : w->packed);
	_cleanup_(freep) void *scales = bytes_of(w->scales);
	_cleanup_(freep) float *row = malloc(w->cols * sizeof(float));
	const struct tensor y = { row, DT_F32, { 1, 1, w->cols } };

	assert_int_equal(m->rows, w->rows);
	assert_int_equal(m->cols, w->cols);
	for (uint32_t r = 0; r < w->rows; r++) {
		assert_int_equal(op_embed(st, &y, m, &r), 0);
		for (uint32_t c = 0; c < w->cols; c++)
			if (row[c] != value_in_file(w, codes, scales, r, c))
				fail_msg("%s: row %u, column %u is %g, wanted %g",
					 (w->plain.t ? w->plain.t : w->packed.t)->name, r, c,
					 row[c], value_in_file(w, codes, scales, r, c));
	}
}

static void same_vector(const struct tensor *t, struct ck_tensor at)
{
	_cleanup_(freep) void *data = bytes_of(at);

	assert_int_equal(!t->data, !data);
	for (size_t i = 0; data && i < tensor_elements(t); i++)
		assert_true(((float *)t->data)[i] == widened(data, at.t->type, i));
}

static void same_layer(struct stream *st, const struct layer_weights *l, const struct ck_layer *c,
		       const struct config *config)
{
	same_vector(&l->input_norm, c->input_norm);
	same_vector(&l->post_norm, c->post_norm);
	same_vector(&l->q_norm, c->q_norm);
	same_vector(&l->k_norm, c->k_norm);
	same_vector(&l->q_bias, c->q.bias);
	same_vector(&l->k_bias, c->k.bias);
	same_vector(&l->v_bias, c->v.bias);
	same_vector(&l->o_bias, c->o.bias);
	same_matrix(st, &l->q, &c->q);
	same_matrix(st, &l->k, &c->k);
	same_matrix(st, &l->v, &c->v);
	same_matrix(st, &l->o, &c->o);
	assert_int_equal(l->dense, c->dense);
	if (l->dense) {
		same_matrix(st, &l->gate, &c->gate);
		same_matrix(st, &l->up, &c->up);
		same_matrix(st, &l->down, &c->down);
		return;
	}
	same_vector(&l->router, c->router);
	same_vector(&l->router_bias, c->router_bias);
	same_matrix(st, &l->moe.shared_gate, &c->shared_gate);
	same_matrix(st, &l->moe.shared_up, &c->shared_up);
	same_matrix(st, &l->moe.shared_down, &c->shared_down);
	assert_int_equal(l->moe.experts, config->experts);
	for (uint32_t e = 0; e < config->experts; e++) {
		same_matrix(st, &l->moe.gate[e], &c->expert_gate[e]);
		same_matrix(st, &l->moe.up[e], &c->expert_up[e]);
		same_matrix(st, &l->moe.down[e], &c->expert_down[e]);
	}
}

static struct checkpoint *opened(const struct edited *e)
{
	struct checkpoint *c = NULL;
	struct err err = { 0 };

	if (checkpoint_open(e->dir, &c, &err) < 0)
		fail_msg("%s", err.text);
	return c;
}

/* Loads and compares everything. */
static void loads_exactly(const struct edited *e, enum isa isa)
{
	_cleanup_(checkpoint_freep) struct checkpoint *c = opened(e);
	const struct ck_linear embed = { .rows = c->config.vocab,
					 .cols = c->config.dim,
					 .plain = c->embed };
	struct watch watch = { 0 };
	struct weights *w = NULL;
	struct err err = { 0 };
	struct stream *st;
	struct dev *dev;

	assert_int_equal(dev_open(isa, THREADS, &dev), 0);
	assert_int_equal(st_open(dev, 1 << 20, &st), 0);
	if (weights_load(c, dev, on_progress, &watch, &w, &err) < 0)
		fail_msg("%s", err.text);
	assert_false(watch.backwards);
	assert_int_equal(watch.done, watch.total);
	same_matrix(st, &w->embed, &embed);
	same_matrix(st, &w->head, &c->head);
	same_vector(&w->norm, c->norm);
	for (uint32_t i = 0; i < c->config.layers; i++)
		same_layer(st, &w->layers[i], &c->layers[i], &c->config);
	weights_free(w);
	st_close(st);
	dev_close(dev);
}

static void every_value_of_the_golden_checkpoints_arrives(void **state)
{
	static const char *const golden[] = { "air",   "glm46",	 "odd", "bf16",
					      "w4all", "w4g128", "long" };
	struct edited e;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(golden); i++) {
		edited_open(&e, golden[i]);
		loads_exactly(&e, ISA_PORTABLE);
		if (isa_best() != ISA_PORTABLE)
			loads_exactly(&e, isa_best());
		edited_close(&e);
	}
}

#define WIDE_VOCAB 60005 /* no multiple of 16; both tables are longer than what is read at once */

/* The odd checkpoint with long tables, the head in int4. */
static void make_wide(struct edited *e)
{
	const size_t packed = WIDE_VOCAB * 20ul * 4, scales = WIDE_VOCAB * 5ul * 4;
	_cleanup_(freep) uint32_t *codes = malloc(packed);
	_cleanup_(freep) uint16_t *embed = malloc(WIDE_VOCAB * 160ul * 2);
	_cleanup_(freep) float *scale = malloc(scales);
	const int64_t shape[2] = { WIDE_VOCAB, 160 };
	uint32_t x = 1;

	for (size_t i = 0; i < packed / 4; i++)
		codes[i] = x = x * 1664525u + 1013904223u;
	for (size_t i = 0; i < WIDE_VOCAB * 160ul; i++)
		embed[i] = (uint16_t)(0x3c00 + (x = x * 1664525u + 1013904223u) / (1u << 23));
	for (size_t i = 0; i < scales / 4; i++)
		scale[i] = 1e-3f + (float)((x = x * 1664525u + 1013904223u) >> 8) * 1e-9f;

	edited_open(e, "odd");
	edited_json(e, "config.json", "vocab_size", "60005");
	edited_drop(e, ODD, "lm_head.weight");
	edited_put(e, ODD, "model.embed_tokens.weight", "BF16", "[60005, 160]", embed,
		   WIDE_VOCAB * 160ul * 2);
	edited_put(e, ODD, "lm_head.weight_packed", "I32", "[60005, 20]", codes, packed);
	edited_put(e, ODD, "lm_head.weight_scale", "F32", "[60005, 5]", scale, scales);
	edited_put(e, ODD, "lm_head.weight_shape", "I64", "[2]", shape, sizeof(shape));
}

static void matrices_read_in_several_pieces_are_whole(void **state)
{
	struct edited e;

	(void)state;
	make_wide(&e);
	loads_exactly(&e, isa_best());
	edited_close(&e);
}

static void weights_are_the_same_on_two_nodes(void **state)
{
	struct edited e;

	(void)state;
	nodes_make();
	make_wide(&e);
	loads_exactly(&e, isa_best());
	edited_close(&e);
	nodes_remove();
}

/* Odd, by hand: a group of 32 columns and 16 rows takes 1024 bytes in BF16, 320 in int4 with F32 scales. */
static void sizes_are_those_of_the_layout(void **state)
{
	_cleanup_(checkpoint_freep) struct checkpoint *c = NULL;
	const uint64_t table = 64 * 5 * 1024, attention = (20 + 4 + 4) * 5 * 1024 + 10 * 10 * 1024;
	const uint64_t dense = 2 * 13 * 5 * 1024 + 10 * 7 * 1024;
	const uint64_t shared = 2 * 6 * 5 * 1024 + 10 * 3 * 1024,
		       expert = 2 * 6 * 5 * 320 + 10 * 3 * 320;
	const uint64_t biases = (320 + 64 + 64) * 4, norms = 2 * 160 * 4,
		       router = (10 * 160 + 10) * 4;
	struct weights *w = NULL;
	struct watch watch = { 0 };
	struct edited e;
	struct dev *dev;

	(void)state;
	edited_open(&e, "odd");
	c = opened(&e);
	assert_int_equal(dev_open(ISA_PORTABLE, THREADS, &dev), 0);
	assert_int_equal(weights_load(c, dev, on_progress, &watch, &w, NULL), 0);
	assert_int_equal(watch.total, c->bytes - 60 * 8); /* all but weight_shape */
	assert_int_equal(w->decode_bytes, table + table / 1009 + 160 * 4 +
						  3 * (attention + biases + norms) + dense +
						  2 * (router + shared + 3 * expert));
	assert_in_range(w->bytes,
			2 * table + 160 * 4 + 3 * (attention + biases + norms) + dense +
				2 * (router + shared + 10 * expert),
			2 * table + 160 * 4 + 3 * (attention + biases + norms) + dense +
				2 * (router + shared + 10 * expert) + 100 * 64);
	weights_free(w);
	dev_close(dev);
	edited_close(&e);
}

static void loading_is_refused(struct edited *e, void (*at_start)(const struct edited *e), int code,
			       const char *sentence)
{
	_cleanup_(checkpoint_freep) struct checkpoint *c = opened(e);
	struct watch watch = { .at_start = at_start, .e = e };
	struct weights *w = NULL;
	struct err err = { 0 };
	struct dev *dev;

	assert_int_equal(dev_open(ISA_PORTABLE, 1, &dev), 0);
	assert_int_equal(weights_load(c, dev, on_progress, &watch, &w, &err), code);
	assert_null(w);
	assert_string_equal(err.text, edited_sentence(e, sentence));
	dev_close(dev);
	edited_close(e);
}

static void a_scale_that_is_no_positive_number_is_named(void **state)
{
	static const struct {
		uint16_t half;
		const char *found;
	} scales[] = {
		{ 0x7e00, "NaN" },	 { 0xfe00, "NaN" },	     { 0x0000, "zero" },
		{ 0x8000, "zero" },	 { 0xbc00, "-1" },	     { 0x7c00, "infinity" },
		{ 0xfc00, "-infinity" }, { 0x8001, "-5.96046e-08" },
	};
	char sentence[256];
	struct edited e;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(scales); i++) {
		edited_open(&e, "odd");
		edited_poke(&e, ODD, EXPERT ".weight_scale", 2 * 477, &scales[i].half, 2);
		snprintf(sentence, sizeof(sentence),
			 "'@/model.safetensors': tensor '" EXPERT
			 ".weight_scale' has %s at index 477, "
			 "wanted a positive scale",
			 scales[i].found);
		loading_is_refused(&e, NULL, -EBADMSG, sentence);
	}
}

static void a_bad_scale_far_into_a_tensor_has_its_own_index(void **state)
{
	const float nothing = 0;
	struct edited e;

	(void)state;
	make_wide(&e);
	edited_poke(&e, ODD, "lm_head.weight_scale", 4 * 300021, &nothing, 4);
	loading_is_refused(&e, NULL, -EBADMSG,
			   "'@/model.safetensors': tensor 'lm_head.weight_scale' has zero at index "
			   "300021, wanted a positive scale");
}

static void the_smallest_scale_is_a_scale(void **state)
{
	const uint16_t smallest = 1;
	struct edited e;

	(void)state;
	edited_open(&e, "odd");
	edited_poke(&e, ODD, EXPERT ".weight_scale", 0, &smallest, 2);
	loads_exactly(&e, ISA_PORTABLE);
	edited_close(&e);
}

static void a_norm_or_bias_that_is_not_finite_is_named(void **state)
{
	const uint16_t nan16 = 0x7fc0, infinity16 = 0xff80;
	struct edited e;

	(void)state;
	edited_open(&e, "odd");
	edited_poke(&e, ODD, "model.norm.weight", 2 * 159, &nan16, 2);
	loading_is_refused(&e, NULL, -EBADMSG,
			   "'@/model.safetensors': tensor 'model.norm.weight' "
			   "has NaN at index 159, wanted a finite number");
	edited_open(&e, "odd");
	edited_poke(&e, ODD, "model.layers.1.self_attn.v_proj.bias", 6, &infinity16, 2);
	loading_is_refused(
		&e, NULL, -EBADMSG,
		"'@/model.safetensors': tensor 'model.layers.1.self_attn.v_proj.bias' has "
		"-infinity at index 3, wanted a finite number");
}

static void a_weight_shape_that_disagrees_is_named(void **state)
{
	const int32_t swapped[2] = { 160, 96 }, longer[2] = { 97, 160 };
	const int64_t wide[2] = { 96, 160 + (1ll << 32) };
	struct edited e;

	(void)state;
	edited_open(&e, "odd");
	edited_poke(&e, ODD, EXPERT ".weight_shape", 0, swapped, sizeof(swapped));
	loading_is_refused(&e, NULL, -EBADMSG,
			   "'@/model.safetensors': tensor '" EXPERT
			   ".weight_shape' says [160, 96], wanted [96, 160]");
	edited_open(&e, "odd");
	edited_poke(&e, ODD, EXPERT ".weight_shape", 0, longer, sizeof(longer));
	loading_is_refused(&e, NULL, -EBADMSG,
			   "'@/model.safetensors': tensor '" EXPERT
			   ".weight_shape' says [97, 160], wanted [96, 160]");
	edited_open(&e, "odd");
	edited_put(&e, ODD, EXPERT ".weight_shape", "I64", "[2]", wide, sizeof(wide));
	loading_is_refused(&e, NULL, -EBADMSG,
			   "'@/model.safetensors': tensor '" EXPERT
			   ".weight_shape' says [96, 4294967456], wanted [96, 160]");
}

static void empty_it(const struct edited *e)
{
	assert_int_equal(truncate(edited_path(e, ODD), 0), 0);
}

static void touch_it(const struct edited *e)
{
	const struct timespec times[2] = { { 1, 0 }, { 1, 0 } };

	assert_int_equal(utimensat(AT_FDCWD, edited_path(e, ODD), times, 0), 0);
}

static void a_file_that_changes_while_it_loads_is_refused(void **state)
{
	struct st_file *f = NULL;
	char sentence[256];
	struct edited e;
	uint64_t at, bytes;

	(void)state;
	edited_open(&e, "odd");
	assert_int_equal(st_file_open(edited_path(&e, ODD), &f, NULL), 0);
	at = st_file_at(f, 0)->offset;
	assert_string_equal(st_file_at(f, 0)->name, FIRST_READ);
	bytes = st_file_at(f, 0)->bytes;
	st_file_close(f);
	snprintf(sentence, sizeof(sentence),
		 "'@/model.safetensors': tensor '" FIRST_READ
		 "': the file has nothing at byte %lu, "
		 "wanted all up to %lu: it got shorter",
		 at, at + bytes);
	loading_is_refused(&e, empty_it, -EIO, sentence);

	edited_open(&e, "odd");
	loading_is_refused(&e, touch_it, -EBADMSG,
			   "'@/model.safetensors' was written to since it was opened");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_value_of_the_golden_checkpoints_arrives),
		cmocka_unit_test(matrices_read_in_several_pieces_are_whole),
		cmocka_unit_test(weights_are_the_same_on_two_nodes),
		cmocka_unit_test(sizes_are_those_of_the_layout),
		cmocka_unit_test(a_scale_that_is_no_positive_number_is_named),
		cmocka_unit_test(a_bad_scale_far_into_a_tensor_has_its_own_index),
		cmocka_unit_test(the_smallest_scale_is_a_scale),
		cmocka_unit_test(a_norm_or_bias_that_is_not_finite_is_named),
		cmocka_unit_test(a_weight_shape_that_disagrees_is_named),
		cmocka_unit_test(a_file_that_changes_while_it_loads_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
