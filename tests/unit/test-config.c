/* config.json and generation_config.json: variants, bounds, and each refusal's sentence. */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>

#include "daemon/exec/weights/config.h"

static json_t *golden(const char *name)
{
	const char *srcdir = getenv("srcdir");
	_cleanup_(freep) char *path = NULL;
	json_error_t e;
	json_t *j;

	assert_true(asprintf(&path, "%s/tests/golden/%s", srcdir ? srcdir : ".", name) > 0);
	j = json_load_file(path, 0, &e);
	assert_non_null(j);
	return j;
}

static int parse(const json_t *j, struct config *c, struct err *err)
{
	_cleanup_(freep) char *text = json_dumps(j, 0);

	return config_parse(text, strlen(text), c, err);
}

/* Air's config with one key set to the JSON text @value; NULL removes it. */
static int parse_with(const char *key, const char *value, struct config *c, struct err *err)
{
	json_t *j = golden("air/config.json"), *at = j, *v;
	_cleanup_(freep) char *path = strdup(key);
	char *name = path, *dot;
	int r;

	while ((dot = strchr(name, '.'))) {
		*dot = '\0';
		at = json_object_get(at, name);
		assert_non_null(at);
		name = dot + 1;
	}
	if (value) {
		v = json_loads(value, JSON_DECODE_ANY, NULL);
		assert_non_null(v);
		json_object_set_new(at, name, v);
	} else {
		json_object_del(at, name);
	}
	memset(err, 0, sizeof(*err));
	r = parse(j, c, err);
	json_decref(j);
	return r;
}

static void refused(const char *key, const char *value, int code, const char *sentence)
{
	struct config c = { .dim = 77 };
	struct err err;

	assert_int_equal(parse_with(key, value, &c, &err), code);
	assert_string_equal(err.text, sentence);
	assert_int_equal(c.dim, 77);
}

static void air_is_read_whole(void **state)
{
	json_t *j = golden("air/config.json");
	struct config c;
	struct err err = { 0 };

	(void)state;
	assert_int_equal(parse(j, &c, &err), 0);
	json_decref(j);
	assert_int_equal(c.dim, 128);
	assert_int_equal(c.layers, 4);
	assert_int_equal(c.dense_layers, 1);
	assert_int_equal(c.heads, 12);
	assert_int_equal(c.kv_heads, 2);
	assert_int_equal(c.head_dim, 32);
	assert_int_equal(c.rotary, 16);
	assert_int_equal(c.experts, 16);
	assert_int_equal(c.top_k, 4);
	assert_int_equal(c.ffn_dim, 160);
	assert_int_equal(c.moe_ffn_dim, 64);
	assert_int_equal(c.vocab, 6064);
	assert_int_equal(c.n_eos, 3);
	assert_int_equal(c.eos[2], 6009);
	assert_true(c.quantised);
	assert_int_equal(c.group, 32);
	assert_int_equal(c.n_warnings, 0);
	assert_int_equal(config_kv_bytes(&c, 2), 4 * 2 * 2 * 32 * 2);
}

static void check_library(const char *name, const json_t *l, const struct config *c)
{
	const json_t *eos = json_object_get(l, "eos_token_id");

	if (strcmp(name, "no_theta") !=
	    0) /* the library falls back to 1e4, the published value is 1e6 */
		assert_true(c->rope_theta == json_number_value(json_object_get(l, "rope_theta")));
	assert_true(c->partial_rotary ==
		    json_number_value(json_object_get(l, "partial_rotary_factor")));
	assert_true(c->norm_eps == json_number_value(json_object_get(l, "rms_norm_eps")));
	assert_true(c->routed_scale ==
		    json_number_value(json_object_get(l, "routed_scaling_factor")));
	assert_int_equal(c->head_dim, json_integer_value(json_object_get(l, "head_dim")));
	assert_int_equal(c->normalise_top_k, json_is_true(json_object_get(l, "norm_topk_prob")));
	assert_int_equal(c->qk_norm, json_is_true(json_object_get(l, "use_qk_norm")));
	assert_int_equal(c->attention_bias, json_is_true(json_object_get(l, "attention_bias")));
	assert_int_equal(c->tied_head, json_is_true(json_object_get(l, "tie_word_embeddings")));
	assert_int_equal(c->groups, json_integer_value(json_object_get(l, "n_group")));
	assert_int_equal(c->top_groups, json_integer_value(json_object_get(l, "topk_group")));
	assert_int_equal(c->dense_layers,
			 json_integer_value(json_object_get(l, "first_k_dense_replace")));
	assert_int_equal(c->shared_experts,
			 json_integer_value(json_object_get(l, "n_shared_experts")));
	assert_int_equal(c->n_eos, json_is_null(eos)	? 0
				   : json_is_array(eos) ? json_array_size(eos)
							: 1);
}

static void every_variant_is_read_as_the_library_reads_it(void **state)
{
	json_t *all = golden("config/variants.json"), *v;
	uint32_t n_lenient = 0;
	size_t i;

	(void)state;
	assert_int_equal(json_array_size(all), 26);
	json_array_foreach(all, i, v) {
		const char *name = json_string_value(json_object_get(v, "name"));
		const json_t *config = json_object_get(v, "config");
		const json_t *library = json_object_get(v, "library");
		struct config c;
		struct err err = { 0 };
		int r;

		r = json_is_string(config) ? config_parse(json_string_value(config),
							  json_string_length(config), &c, &err)
					   : parse(config, &c, &err);
		if (r < 0)
			fail_msg("%s: %s", name, err.text);
		if (json_is_true(json_object_get(library, "accepted")))
			check_library(name, library, &c);
		else
			n_lenient++; /* integers written as floats and the reverse */
	}
	assert_int_equal(n_lenient, 3);
	json_decref(all);
}

static void a_missing_rope_theta_is_one_million_with_a_warning(void **state)
{
	struct config c;
	struct err err;

	(void)state;
	assert_int_equal(parse_with("rope_theta", NULL, &c, &err), 0);
	assert_true(c.rope_theta == 1e6);
	assert_int_equal(c.n_warnings, 1);
	assert_string_equal(c.warnings[0], "'rope_theta' is missing; 1000000 is assumed");
}

static void a_missing_head_dim_is_left_to_the_query_projection(void **state)
{
	struct config c;
	struct err err = { 0 };

	(void)state;
	assert_int_equal(parse_with("head_dim", NULL, &c, &err), 0);
	assert_int_equal(c.head_dim, 0);
	assert_int_equal(config_set_head_dim(&c, 64, &err), 0);
	assert_int_equal(c.rotary, 32);
	assert_int_equal(config_set_head_dim(&c, 2048, &err), -EBADMSG);
	assert_string_equal(err.text, "'head_dim' is 2048, wanted at most 1024");
}

static void groups_of_columns_are_32_64_128_or_a_row(void **state)
{
	const char *const w = "quantization_config.config_groups.group_0.weights";
	char key[100];
	struct config c;
	struct err err;

	(void)state;
	snprintf(key, sizeof(key), "%s.group_size", w);
	assert_int_equal(parse_with(key, "64", &c, &err), 0);
	assert_int_equal(c.group, 64);
	assert_int_equal(parse_with(key, "128.0", &c, &err), 0);
	assert_int_equal(c.group, 128);
	snprintf(key, sizeof(key), "%s.strategy", w);
	assert_int_equal(parse_with(key, "\"channel\"", &c, &err), 0);
	assert_int_equal(c.group, 0);
	snprintf(key, sizeof(key), "%s.actorder", w);
	assert_int_equal(parse_with(key, "\"static\"", &c, &err), 0);
	assert_int_equal(parse_with("quantization_config", NULL, &c, &err), 0);
	assert_false(c.quantised);
}

static void other_models_are_refused_by_name(void **state)
{
	(void)state;
	refused("model_type", "\"glm4\"", -ENOTSUP,
		"'model_type' is \"glm4\", wanted \"glm4_moe\"");
	refused("model_type", NULL, -ENOTSUP, "'model_type' is missing, wanted \"glm4_moe\"");
	refused("architectures", "[\"Glm4vMoe\"]", -ENOTSUP,
		"'architectures' is [\"Glm4vMoe\"], wanted [\"Glm4MoeForCausalLM\"]");
	refused("hidden_act", "\"gelu\"", -ENOTSUP, "'hidden_act' is \"gelu\", wanted \"silu\"");
	refused("rope_scaling", "{\"type\": \"yarn\"}", -ENOTSUP,
		"'rope_scaling' is {\"type\":\"yarn\"}, wanted null");
}

static void other_quantisations_are_refused_by_name(void **state)
{
	(void)state;
#define GROUP_0 "quantization_config.config_groups.group_0"
	refused("quantization_config.quant_method", "\"awq\"", -ENOTSUP,
		"'quantization_config.quant_method' is \"awq\", wanted \"compressed-tensors\"");
	refused("quantization_config.quant_method", "\"gptq\"", -ENOTSUP,
		"'quantization_config.quant_method' is \"gptq\", wanted \"compressed-tensors\"");
	refused("quantization_config.format", "\"float-quantized\"", -ENOTSUP,
		"'quantization_config.format' is \"float-quantized\", wanted \"pack-quantized\" or "
		"\"mixed-precision\"");
	refused("quantization_config.kv_cache_scheme", "{\"num_bits\": 8}", -ENOTSUP,
		"'quantization_config.kv_cache_scheme' is {\"num_bits\":8}, wanted null");
	refused(GROUP_0 ".weights.num_bits", "8", -ENOTSUP,
		"quantization_config.config_groups.group_0: 'num_bits' is 8, wanted 4");
	refused(GROUP_0 ".weights.symmetric", "false", -ENOTSUP,
		"quantization_config.config_groups.group_0: 'symmetric' is false, wanted true");
	refused(GROUP_0 ".weights.actorder", "\"group\"", -ENOTSUP,
		"quantization_config.config_groups.group_0: 'actorder' is \"group\", wanted null, "
		"\"weight\" or \"static\"");
	refused(GROUP_0 ".weights.actorder", "true", -ENOTSUP,
		"quantization_config.config_groups.group_0: 'actorder' is true, wanted null, "
		"\"weight\" or \"static\"");
	refused(GROUP_0 ".weights.group_size", "16", -ENOTSUP,
		"quantization_config.config_groups.group_0: 'group_size' is 16, wanted 32, 64 or "
		"128");
	refused(GROUP_0 ".weights.type", "\"float\"", -ENOTSUP,
		"quantization_config.config_groups.group_0: 'type' is \"float\", wanted \"int\"");
	refused(GROUP_0 ".input_activations", "{}", -ENOTSUP,
		"quantization_config.config_groups.group_0: 'input_activations' is {}, wanted "
		"null");
}

static void numbers_out_of_bounds_are_named_with_the_bounds(void **state)
{
	(void)state;
	refused("hidden_size", NULL, -EBADMSG,
		"'hidden_size' is missing, wanted an integer from 16 to 65536");
	refused("hidden_size", "65537", -EBADMSG,
		"'hidden_size' is 65537, wanted an integer from 16 to 65536");
	refused("hidden_size", "128.5", -EBADMSG,
		"'hidden_size' is 128.5, wanted an integer from 16 to 65536");
	refused("head_dim", "24", -ENOTSUP,
		"'head_dim' is 24, wanted a multiple of 16: matrices are packed in strips of 16 "
		"rows");
	refused("num_key_value_heads", "5", -EBADMSG,
		"'num_attention_heads' is 12, wanted a multiple of 'num_key_value_heads' 5");
	refused("num_experts_per_tok", "17", -EBADMSG,
		"'num_experts_per_tok' is 17, wanted at most 'n_routed_experts' 16");
	refused("n_group", "3", -EBADMSG,
		"'n_group' is 3, wanted a divisor of 'n_routed_experts' 16 that leaves 2 or more a "
		"group");
	refused("n_group", "16", -EBADMSG,
		"'n_group' is 16, wanted a divisor of 'n_routed_experts' 16 that leaves 2 or more "
		"a group");
	refused("n_group", "8", -EBADMSG,
		"'num_experts_per_tok' is 4, wanted at most the 2 experts of 'topk_group' groups");
	refused("topk_group", "2", -EBADMSG, "'topk_group' is 2, wanted at most 'n_group' 1");
	refused("partial_rotary_factor", "0.3", -EBADMSG,
		"'partial_rotary_factor' 0.3 of 'head_dim' 32 is 9.6 dimensions, wanted an even "
		"number");
	refused("eos_token_id", "[6064]", -EBADMSG,
		"'eos_token_id' has 6064, wanted ids below 'vocab_size' 6064");
	refused("norm_topk_prob", "1", -EBADMSG, "'norm_topk_prob' is 1, wanted true or false");
}

static void what_is_no_object_is_refused(void **state)
{
	static const struct {
		const char *text, *sentence;
	} cases[] = {
		{ "", "not JSON: '[' or '{' expected near end of file in line 1" },
		{ "[1]", "JSON, but not an object" },
		{ "{\"a\": 1, \"a\": 2}", "not JSON: duplicate object key near '\"a\"' in line 1" },
		{ "version https://git-lfs.github.com/spec/v1\n",
		  "a Git LFS pointer, wanted the file itself (git lfs pull)" },
	};
	struct config c;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct err err = { 0 };

		assert_int_equal(config_parse(cases[i].text, strlen(cases[i].text), &c, &err),
				 -EBADMSG);
		assert_string_equal(err.text, cases[i].sentence);
	}
}

static void every_truncation_of_a_config_is_refused(void **state)
{
	json_t *j = golden("air/config.json");
	_cleanup_(freep) char *text = json_dumps(j, JSON_COMPACT);
	struct config c;

	(void)state;
	json_decref(j);
	for (size_t n = 0; n < strlen(text); n++)
		assert_int_equal(config_parse(text, n, &c, NULL), -EBADMSG);
}

static void generation_defaults_are_found_or_marked_as_missing(void **state)
{
	static const char full[] =
		"{\"temperature\": 0.6, \"top_p\": 0.95, \"min_p\": 0, \"top_k\": -1, "
		"\"do_sample\": false, \"eos_token_id\": 7, \"repetition_penalty\": 1}";
	struct generation_config g;
	struct err err = { 0 };

	(void)state;
	assert_int_equal(generation_config_parse(full, strlen(full), &g, &err), 0);
	assert_true(g.temperature == 0.6 && g.top_p == 0.95 && g.min_p == 0);
	assert_int_equal(g.top_k, 0);
	assert_true(g.greedy);
	assert_int_equal(g.n_eos, 1);
	assert_int_equal(g.eos[0], 7);
	assert_int_equal(generation_config_parse("{}", 2, &g, &err), 0);
	assert_true(isnan(g.temperature) && isnan(g.top_p) && isnan(g.min_p));
	assert_int_equal(g.top_k, UINT32_MAX);
	assert_false(g.greedy);
	assert_int_equal(generation_config_parse("{\"top_p\": 2}", 12, &g, &err), -EBADMSG);
	assert_string_equal(err.text, "'top_p' is 2, wanted a number from 0 to 1");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(air_is_read_whole),
		cmocka_unit_test(every_variant_is_read_as_the_library_reads_it),
		cmocka_unit_test(a_missing_rope_theta_is_one_million_with_a_warning),
		cmocka_unit_test(a_missing_head_dim_is_left_to_the_query_projection),
		cmocka_unit_test(groups_of_columns_are_32_64_128_or_a_row),
		cmocka_unit_test(other_models_are_refused_by_name),
		cmocka_unit_test(other_quantisations_are_refused_by_name),
		cmocka_unit_test(numbers_out_of_bounds_are_named_with_the_bounds),
		cmocka_unit_test(what_is_no_object_is_refused),
		cmocka_unit_test(every_truncation_of_a_config_is_refused),
		cmocka_unit_test(generation_defaults_are_found_or_marked_as_missing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
