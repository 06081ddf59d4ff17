/*
 * Fingerprints of checkpoints: the same for the same contents however they are
 * read and wherever they are, another after any change that counts.
 */
#include "daemon/exec/weights/weights.h"
#include "tests/unit/edited.h"

#define ODD "model.safetensors"
#define EXPERT "model.layers.1.mlp.experts.3.up_proj"

static struct fingerprint *load(const struct edited *e, uint32_t n_threads)
{
	_cleanup_(checkpoint_freep) struct checkpoint *c = NULL;
	struct weights *w = NULL;
	struct fingerprint *f;
	struct dev *dev = NULL;
	struct err err = { 0 };

	if (checkpoint_open(e->dir, &c, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(dev_open(ISA_PORTABLE, n_threads, &dev), 0);
	if (weights_load(c, dev, NULL, NULL, &w, &err) < 0)
		fail_msg("%s", err.text);
	f = steal(w->fingerprint);
	weights_free(w);
	dev_close(dev);
	return f;
}

/* Of the checkpoint as it is, nothing read but headers. */
static struct fingerprint *head(const struct edited *e)
{
	_cleanup_(checkpoint_freep) struct checkpoint *c = NULL;
	struct fingerprint *f = NULL;

	assert_int_equal(checkpoint_open(e->dir, &c, NULL), 0);
	assert_int_equal(fingerprint_new(c, &f), 0);
	return f;
}

static void are_the_same(const struct fingerprint *a, const struct fingerprint *b)
{
	assert_memory_equal(fingerprint_whole(a), fingerprint_whole(b), FINGERPRINT_BYTES);
	assert_int_equal(fingerprint_compare(a, b, NULL), 0);
}

static void a_copy_has_the_fingerprint_of_the_original(void **state)
{
	static const char *const names[] = { "odd", "bf16", "w4all" };
	static const uint8_t none[FINGERPRINT_BYTES];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		_cleanup_(fingerprint_freep) struct fingerprint *one = NULL, *other = NULL;
		struct edited e, copy;

		edited_open(&e, names[i]);
		edited_open(&copy, names[i]);
		one = load(&e, 1);
		other = load(&copy, 3); /* threads read in an order of their own */
		are_the_same(one, other);
		assert_memory_not_equal(fingerprint_whole(one), none, FINGERPRINT_BYTES);
		edited_close(&e);
		edited_close(&copy);
	}
}

/* Loads the edited one and says what differs from the original, by the heads alone if they tell. */
static void differs(struct edited *e, bool by_head, const char *sentence)
{
	_cleanup_(fingerprint_freep) struct fingerprint *then = NULL, *now = NULL, *early = NULL;
	struct edited original;
	struct edited_shard s;
	struct err err = { 0 };

	edited_open(&original, "odd");
	s = edited_shard_read(&original, ODD);
	edited_shard_write(&original, ODD, &s); /* tensors in the order of an edited one */
	then = load(&original, 2);
	edited_close(&original);
	early = head(e);
	assert_int_equal(fingerprint_compare(then, early, &err), by_head ? -ESTALE : 0);
	now = load(e, 2);
	edited_close(e);
	assert_memory_not_equal(fingerprint_whole(then), fingerprint_whole(now), FINGERPRINT_BYTES);
	assert_int_equal(fingerprint_compare(then, now, &err), -ESTALE);
	assert_string_equal(err.text, sentence);
}

static void one_changed_byte_of_a_tensor_is_found(void **state)
{
	const uint8_t byte = 0x5a;
	const uint16_t half = 0x3f80;
	struct edited e;

	(void)state;
	edited_open(&e, "odd");
	edited_poke(&e, ODD, EXPERT ".weight_packed", 7, &byte, 1);
	differs(&e, false, "'model.safetensors' is another between 0 and 64 MiB");
	edited_open(&e, "odd");
	edited_poke(&e, ODD, EXPERT ".weight_scale", 0, &half, 2);
	differs(&e, false, "'model.safetensors' is another between 0 and 64 MiB");
	edited_open(&e, "odd");
	edited_poke(&e, ODD, "model.norm.weight", 2 * 17, &half, 2);
	differs(&e, false, "'model.safetensors' is another between 0 and 64 MiB");
}

static void two_rows_that_changed_places_are_found(void **state)
{
	struct edited_shard s;
	char kept[16];
	struct edited e;
	char *at;

	(void)state;
	edited_open(&e, "odd");
	s = edited_shard_read(&e, ODD);
	at = s.data + json_integer_value(json_array_get(
			      json_object_get(json_object_get(s.header, EXPERT ".weight_packed"),
					      "data_offsets"),
			      0));
	memcpy(kept, at, sizeof(kept));
	memmove(at, at + 16 * 80, sizeof(kept)); /* 160 columns of 4 bits, 16 rows further down */
	memcpy(at + 16 * 80, kept, sizeof(kept));
	edited_shard_write(&e, ODD, &s);
	differs(&e, false, "'model.safetensors' is another between 0 and 64 MiB");
}

static void another_config_or_header_is_found_before_anything_is_read(void **state)
{
	const char zero[4] = { 0 };
	struct edited e;

	(void)state;
	edited_open(&e, "odd");
	edited_json(&e, "config.json", "rms_norm_eps", "1e-4");
	differs(&e, true, "'config.json' is another");
	edited_open(&e, "odd");
	edited_put(&e, ODD, "nobody.wants.this", "F32", "[1]", zero, 4);
	differs(&e, true, "the header of 'model.safetensors' is another");
}

static void how_a_tensor_is_cut_into_pieces_does_not_matter(void **state)
{
	_cleanup_(fingerprint_freep) struct fingerprint *one = NULL, *other = NULL, *swapped = NULL;
	_cleanup_(checkpoint_freep) struct checkpoint *c = NULL;
	static const char data[80] = "four units of sixteen bytes, and a fifth that is shorter";
	struct edited e;

	(void)state;
	edited_open(&e, "odd");
	assert_int_equal(checkpoint_open(e.dir, &c, NULL), 0);
	assert_int_equal(fingerprint_new(c, &one), 0);
	assert_int_equal(fingerprint_new(c, &other), 0);
	assert_int_equal(fingerprint_new(c, &swapped), 0);
	fingerprint_add(one, c->files[0], 1000, data, 70, 16);
	fingerprint_add(other, c->files[0], 1032, data + 32, 38, 16);
	fingerprint_add(other, c->files[0], 1000, data, 32, 16);
	fingerprint_add(swapped, c->files[0], 1032, data, 32, 16);
	fingerprint_add(swapped, c->files[0], 1000, data + 32, 38, 16);
	fingerprint_finish(one);
	fingerprint_finish(other);
	fingerprint_finish(swapped);
	are_the_same(one, other);
	assert_int_equal(fingerprint_compare(one, swapped, NULL), -ESTALE);
	edited_close(&e);
}

static void what_generation_config_says_is_left_out(void **state)
{
	_cleanup_(fingerprint_freep) struct fingerprint *one = NULL, *other = NULL;
	static const char text[] = "{\"temperature\": 0.25}";
	struct edited e;

	(void)state;
	edited_open(&e, "odd");
	one = load(&e, 2);
	edited_write(&e, "generation_config.json", text, sizeof(text) - 1);
	other = load(&e, 2);
	are_the_same(one, other);
	edited_close(&e);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_copy_has_the_fingerprint_of_the_original),
		cmocka_unit_test(one_changed_byte_of_a_tensor_is_found),
		cmocka_unit_test(two_rows_that_changed_places_are_found),
		cmocka_unit_test(another_config_or_header_is_found_before_anything_is_read),
		cmocka_unit_test(how_a_tensor_is_cut_into_pieces_does_not_matter),
		cmocka_unit_test(what_generation_config_says_is_left_out),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
