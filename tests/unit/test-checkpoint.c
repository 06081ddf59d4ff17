/*
 * Opening checkpoint directories: what of the golden ones is found, each
 * refusal's sentence, and the accounting of the real model to the byte.
 */
#include <time.h>

#include "daemon/exec/weights/checkpoint.h"
#include "tests/unit/edited.h"

#define ODD "model.safetensors"
#define INDEX "model.safetensors.index.json"
#define FIRST "model-00001-of-00002.safetensors"
#define SECOND "model-00002-of-00002.safetensors"
#define EXPERT "model.layers.1.mlp.experts.3.up_proj"

static void refused(struct edited *e, int code, const char *sentence)
{
	struct checkpoint *c = NULL;
	struct err err = { 0 };

	assert_int_equal(checkpoint_open(e->dir, &c, &err), code);
	assert_null(c);
	assert_string_equal(err.text, edited_sentence(e, sentence));
	assert_int_equal(err.code, code);
	edited_close(e);
}

static struct checkpoint *accepted(struct edited *e)
{
	struct checkpoint *c = NULL;
	struct err err = { 0 };

	if (checkpoint_open(e->dir, &c, &err) < 0)
		fail_msg("%s", err.text);
	return c;
}

static void every_golden_checkpoint_opens(void **state)
{
	static const struct {
		const char *name;
		uint32_t layers, files, mtp;
		bool qk_norm, biased;
	} golden[] = {
		{ "air", 4, 2, 0, false, true },   { "glm46", 6, 3, 164, true, true },
		{ "odd", 3, 1, 0, false, true },   { "bf16", 3, 2, 0, false, true },
		{ "w4all", 4, 1, 0, false, true }, { "w4g128", 3, 1, 0, false, true },
		{ "long", 2, 1, 0, false, true },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(golden); i++) {
		_cleanup_(checkpoint_freep) struct checkpoint *c = NULL;
		struct edited e;

		edited_open(&e, golden[i].name);
		c = accepted(&e);
		assert_int_equal(c->config.layers, golden[i].layers);
		assert_int_equal(c->n_files, golden[i].files);
		assert_int_equal(c->n_ignored_mtp, golden[i].mtp);
		assert_int_equal(c->n_unknown, 0);
		assert_int_equal(c->config.qk_norm, golden[i].qk_norm);
		assert_int_equal(c->config.attention_bias, golden[i].biased);
		edited_close(&e);
	}
}

static void a_wrong_shape_is_named(void **state)
{
	struct edited e;

	(void)state;
	edited_open(&e, "odd");
	edited_put(&e, ODD, "model.norm.weight", "BF16", "[161]", NULL, 322);
	refused(&e, -EBADMSG,
		"'@/model.safetensors': tensor 'model.norm.weight' is BF16 [161], "
		"wanted BF16, F16 or F32 [160]");
	edited_open(&e, "odd");
	edited_put(&e, ODD, "model.layers.0.mlp.up_proj.weight", "BF16", "[160, 200]", NULL, 64000);
	refused(&e, -EBADMSG,
		"'@/model.safetensors': tensor 'model.layers.0.mlp.up_proj.weight' is BF16 [160, "
		"200], "
		"wanted BF16, F16 or F32 [200, 160]");
	edited_open(&e, "odd");
	edited_put(&e, ODD, "model.layers.1.mlp.gate.weight", "F32", "[1600]", NULL, 6400);
	refused(&e, -EBADMSG,
		"'@/model.safetensors': tensor 'model.layers.1.mlp.gate.weight' is F32 [1600], "
		"wanted BF16, F16 or F32 [10, 160]");
	edited_open(&e, "odd");
	edited_put(&e, ODD, EXPERT ".weight_packed", "I32", "[96, 24]", NULL, 9216);
	refused(&e, -EBADMSG,
		"'@/model.safetensors': tensor '" EXPERT
		".weight_packed' is I32 [96, 24], wanted I32 [96, 20]");
	edited_open(&e, "odd");
	edited_put(&e, ODD, EXPERT ".weight_scale", "F16", "[96, 1]", NULL, 192);
	refused(&e, -EBADMSG,
		"'@/model.safetensors': tensor '" EXPERT
		".weight_scale' is F16 [96, 1], wanted BF16, F16 or F32 [96, 5]");
}

static void a_wrong_type_is_named(void **state)
{
	struct edited e;

	(void)state;
	edited_open(&e, "odd");
	edited_put(&e, ODD, "model.norm.weight", "I32", "[160]", NULL, 640);
	refused(&e, -EBADMSG,
		"'@/model.safetensors': tensor 'model.norm.weight' is I32 [160], "
		"wanted BF16, F16 or F32 [160]");
	edited_open(&e, "odd");
	edited_put(&e, ODD, "model.layers.2.self_attn.q_proj.weight", "F8_E4M3", "[320, 160]", NULL,
		   51200);
	refused(&e, -EBADMSG,
		"'@/model.safetensors': tensor 'model.layers.2.self_attn.q_proj.weight' is "
		"F8_E4M3 [320, 160], wanted BF16, F16 or F32 [320, 160]");
	edited_open(&e, "odd");
	edited_put(&e, ODD, EXPERT ".weight_packed", "U32", "[96, 20]", NULL, 7680);
	refused(&e, -EBADMSG,
		"'@/model.safetensors': tensor '" EXPERT
		".weight_packed' is U32 [96, 20], wanted I32 [96, 20]");
	edited_open(&e, "odd");
	edited_put(&e, ODD, EXPERT ".weight_shape", "F32", "[2]", NULL, 8);
	refused(&e, -EBADMSG,
		"'@/model.safetensors': tensor '" EXPERT
		".weight_shape' is F32 [2], wanted I64 or I32 [2]");
}

static void a_missing_tensor_is_named(void **state)
{
	static const struct {
		const char *tensor, *wanted;
	} needed[] = {
		{ "model.embed_tokens.weight", "[1009, 160]" },
		{ "model.norm.weight", "[160]" },
		{ "model.layers.2.post_attention_layernorm.weight", "[160]" },
		{ "model.layers.1.mlp.gate.weight", "[10, 160]" },
		{ "model.layers.1.mlp.gate.e_score_correction_bias", "[10]" },
		{ EXPERT ".weight_scale", "[96, 5]" },
		{ EXPERT ".weight_shape", "I64 or I32 [2]" },
	};
	char sentence[256];
	struct edited e;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(needed); i++) {
		edited_open(&e, "odd");
		edited_drop(&e, ODD, needed[i].tensor);
		snprintf(sentence, sizeof(sentence),
			 "'@/model.safetensors': tensor '%s' is missing, wanted %s",
			 needed[i].tensor, needed[i].wanted);
		refused(&e, -EBADMSG, sentence);
	}
	edited_open(&e, "bf16");
	edited_drop(&e, SECOND, "model.norm.weight");
	edited_json(&e, INDEX, "weight_map/model.norm.weight", NULL);
	refused(&e, -EBADMSG,
		"'@/model.safetensors.index.json': tensor 'model.norm.weight' is "
		"missing, wanted [128]");
}

static void a_matrix_is_plain_or_packed_and_never_both(void **state)
{
	struct edited e;

	(void)state;
	edited_open(&e, "odd");
	edited_put(&e, ODD, EXPERT ".weight", "BF16", "[96, 160]", NULL, 30720);
	refused(&e, -EBADMSG,
		"'@/model.safetensors': tensors '" EXPERT ".weight' and '" EXPERT
		".weight_packed' are both there, wanted one");
	edited_open(&e, "odd");
	edited_drop(&e, ODD, EXPERT ".weight_packed");
	refused(&e, -EBADMSG,
		"'@/model.safetensors': neither tensor '" EXPERT ".weight' nor '" EXPERT
		".weight_packed' is there, wanted [96, 160]");
	edited_open(&e, "odd");
	edited_drop(&e, ODD, "lm_head.weight");
	refused(&e, -EBADMSG,
		"'@/model.safetensors': neither tensor 'lm_head.weight' nor "
		"'lm_head.weight_packed' is there, wanted [1009, 160]");
	edited_open(&e, "odd");
	edited_json(&e, "config.json", "quantization_config", NULL);
	refused(&e, -EBADMSG,
		"'@/model.safetensors': tensor 'model.layers.1.mlp.experts.0.gate_proj"
		".weight_packed' is packed, but config.json has no quantization_config");
	edited_open(&e, "odd");
	edited_json(&e, "config.json",
		    "quantization_config/config_groups/group_0/weights/group_size", "64");
	refused(&e, -ENOTSUP,
		"'@/model.safetensors': tensor 'model.layers.1.mlp.experts.0.gate_proj"
		".weight_packed' has 160 columns, wanted a multiple of the group size 64");
}

static void foreign_forms_are_refused_by_name(void **state)
{
	static const struct {
		const char *tensor, *what;
	} foreign[] = {
		{ EXPERT ".weight_g_idx", "columns in the order of activations (actorder group)" },
		{ EXPERT ".weight_zero_point", "asymmetric quantisation" },
		{ EXPERT ".qweight", "AutoAWQ or GPTQ packing" },
		{ EXPERT ".weight_scale_inv", "FP8 weights" },
	};
	char sentence[300];
	struct edited e;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(foreign); i++) {
		edited_open(&e, "odd");
		edited_put(&e, ODD, foreign[i].tensor, "I32", "[160]", NULL, 640);
		snprintf(sentence, sizeof(sentence),
			 "'@/model.safetensors': tensor '%s' is of %s, wanted symmetric int4 "
			 "'weight_packed' or a plain 'weight'",
			 foreign[i].tensor, foreign[i].what);
		refused(&e, -ENOTSUP, sentence);
	}
	edited_open(&e, "odd");
	edited_put(&e, ODD, "model.layers.1.mlp.experts.gate_up_proj", "BF16", "[10, 192, 160]",
		   NULL, 614400);
	refused(&e, -ENOTSUP,
		"'@/model.safetensors': tensor 'model.layers.1.mlp.experts.gate_up_proj' "
		"has all experts in one, wanted 'experts.0.gate_proj' and so on");
	edited_open(&e, "odd");
	edited_put(&e, ODD, EXPERT ".bias", "BF16", "[96]", NULL, 192);
	refused(&e, -ENOTSUP,
		"'@/model.safetensors': tensor '" EXPERT ".bias' is there, wanted no bias");
}

#define QUANT "quantization_config"
#define SCHEME QUANT "/config_groups/group_0/weights"

static void what_config_says_is_refused_with_the_file(void **state)
{
	static const struct {
		const char *key, *value, *sentence;
		int code;
	} keys[] = {
		{ QUANT "/quant_method", "\"awq\"",
		  "'quantization_config.quant_method' is \"awq\", wanted \"compressed-tensors\"",
		  -ENOTSUP },
		{ QUANT "/quant_method", "\"gptq\"",
		  "'quantization_config.quant_method' is \"gptq\", wanted \"compressed-tensors\"",
		  -ENOTSUP },
		{ QUANT "/kv_cache_scheme", "{\"num_bits\": 8}",
		  "'quantization_config.kv_cache_scheme' is {\"num_bits\":8}, wanted null",
		  -ENOTSUP },
		{ SCHEME "/num_bits", "8",
		  "quantization_config.config_groups.group_0: 'num_bits' is 8, wanted 4",
		  -ENOTSUP },
		{ SCHEME "/symmetric", "false",
		  "quantization_config.config_groups.group_0: 'symmetric' is false, wanted true",
		  -ENOTSUP },
		{ SCHEME "/actorder", "\"group\"",
		  "quantization_config.config_groups.group_0: 'actorder' is \"group\", wanted "
		  "null, "
		  "\"weight\" or \"static\"",
		  -ENOTSUP },
		{ "model_type", "\"glm4v_moe\"",
		  "'model_type' is \"glm4v_moe\", wanted \"glm4_moe\"", -ENOTSUP },
		{ "hidden_act", "\"gelu\"", "'hidden_act' is \"gelu\", wanted \"silu\"", -ENOTSUP },
		{ "rope_scaling", "{\"type\": \"yarn\"}",
		  "'rope_scaling' is {\"type\":\"yarn\"}, wanted null", -ENOTSUP },
		{ "head_dim", "40",
		  "'head_dim' is 40, wanted a multiple of 16: matrices are packed in strips of 16 "
		  "rows",
		  -ENOTSUP },
		{ "n_group", "3",
		  "'n_group' is 3, wanted a divisor of 'n_routed_experts' 10 that leaves 2 or more "
		  "a group",
		  -EBADMSG },
		{ "hidden_size", "\"big\"",
		  "'hidden_size' is \"big\", wanted an integer from 16 to 65536", -EBADMSG },
	};
	char sentence[300];
	struct edited e;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
		edited_open(&e, "odd");
		edited_json(&e, "config.json", keys[i].key, keys[i].value);
		snprintf(sentence, sizeof(sentence), "'@/config.json': %s", keys[i].sentence);
		refused(&e, keys[i].code, sentence);
	}
	edited_open(&e, "odd");
	edited_json(&e, "generation_config.json", "temperature", "-1");
	refused(&e, -EBADMSG,
		"'@/generation_config.json': 'temperature' is -1, wanted a number from 0 to 100");
	edited_open(&e, "odd");
	assert_int_equal(unlink(edited_path(&e, "config.json")), 0);
	refused(&e, -ENOENT, "cannot open '@/config.json': No such file or directory");
	edited_open(&e, "odd");
	assert_int_equal(truncate(edited_path(&e, "config.json"), 30), 0);
	refused(&e, -EBADMSG,
		"'@/config.json': not JSON: premature end of input near '\"Gl' in line 3");
}

static void layers_agree_on_biases_and_norms(void **state)
{
	struct edited e;

	(void)state;
	edited_open(&e, "odd");
	edited_drop(&e, ODD, "model.layers.1.self_attn.q_proj.bias");
	refused(&e, -EBADMSG,
		"'@/model.safetensors': tensor 'model.layers.1.self_attn.q_proj.bias' "
		"is missing, wanted as in layer 0");
	edited_open(&e, "odd");
	edited_put(&e, ODD, "model.layers.2.self_attn.o_proj.bias", "BF16", "[160]", NULL, 320);
	refused(&e, -EBADMSG,
		"'@/model.safetensors': tensor 'model.layers.2.self_attn.o_proj.bias' "
		"is there, wanted as in layer 0");
	edited_open(&e, "odd");
	edited_put(&e, ODD, "model.layers.0.self_attn.q_norm.weight", "BF16", "[64]", NULL, 128);
	refused(&e, -EBADMSG,
		"'@/model.safetensors': tensor 'model.layers.0.self_attn.k_norm.weight' "
		"is missing, wanted as in layer 0");
}

static void shards_and_their_index_agree(void **state)
{
	struct edited e;

	(void)state;
	edited_open(&e, "bf16");
	edited_put(&e, FIRST, "model.norm.weight", "BF16", "[128]", NULL, 256);
	refused(&e, -EBADMSG,
		"tensor 'model.norm.weight' is in both '@/" FIRST "' and '@/" SECOND "'");
	edited_open(&e, "bf16");
	edited_json(&e, INDEX, "weight_map/model.norm.weight", "\"" FIRST "\"");
	refused(&e, -EBADMSG,
		"'@/" INDEX "' has tensor 'model.norm.weight' in '" FIRST "', but it is in '" SECOND
		"'");
	edited_open(&e, "bf16");
	edited_json(&e, INDEX, "weight_map/model.extra", "\"" FIRST "\"");
	refused(&e, -EBADMSG,
		"'@/" INDEX "' has tensor 'model.extra' in '" FIRST "', which does not have it");
	edited_open(&e, "bf16");
	assert_int_equal(unlink(edited_path(&e, SECOND)), 0);
	refused(&e, -ENOENT, "cannot open '@/" SECOND "': No such file or directory");
	edited_open(&e, "bf16");
	assert_int_equal(unlink(edited_path(&e, INDEX)), 0);
	refused(&e, -ENOENT, "cannot open '@/model.safetensors': No such file or directory");
	edited_open(&e, "bf16");
	edited_json(&e, INDEX, "weight_map", "[]");
	refused(&e, -EBADMSG, "'@/" INDEX "': no object 'weight_map'");
}

static void shard_names_stay_in_the_directory(void **state)
{
	static const char *const names[] = { "sub/model.safetensors", "..", "../m.safetensors",
					     "/etc/passwd" };
	char value[64], sentence[300];
	struct edited e;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		edited_open(&e, "bf16");
		snprintf(value, sizeof(value), "\"%s\"", names[i]);
		edited_json(&e, INDEX, "weight_map/model.norm.weight", value);
		snprintf(sentence, sizeof(sentence),
			 "'@/" INDEX "': weight_map names the file '%s', wanted a plain name "
			 "without '/' and '..'",
			 names[i]);
		refused(&e, -EBADMSG, sentence);
	}
}

static void damaged_files_are_refused(void **state)
{
	static const char pointer[] = "version https://git-lfs.github.com/spec/v1\n"
				      "oid sha256:0123456789abcdef\nsize 2400000\n";
	struct edited e;
	struct stat st;

	(void)state;
	edited_open(&e, "odd");
	assert_int_equal(stat(edited_path(&e, ODD), &st), 0);
	assert_int_equal(truncate(edited_path(&e, ODD), st.st_size - 1), 0);
	refused(&e, -EBADMSG,
		"'@/model.safetensors': tensor 'model.layers.2.mlp.experts.9.up_proj.weight_scale' "
		"ends at byte 2289608 of the data, but the file has only 2289607: it is truncated");
	edited_open(&e, "bf16");
	assert_int_equal(truncate(edited_path(&e, SECOND), 1000), 0);
	refused(&e, -EBADMSG,
		"'@/" SECOND "': a header of 7688 bytes, but the file has only 1000: "
		"it is truncated");
	edited_open(&e, "bf16");
	assert_int_equal(truncate(edited_path(&e, SECOND), 0), 0);
	refused(&e, -EBADMSG,
		"'@/" SECOND "': 0 bytes, wanted at least the 8 of the header's length: "
		"it is truncated");
	edited_open(&e, "bf16");
	edited_write(&e, SECOND, pointer, strlen(pointer));
	refused(&e, -EBADMSG,
		"'@/" SECOND "': a Git LFS pointer, wanted the file itself (git lfs pull)");
	edited_open(&e, "bf16");
	edited_write(&e, INDEX, pointer, strlen(pointer));
	refused(&e, -EBADMSG,
		"'@/" INDEX "': a Git LFS pointer, wanted the file itself (git lfs pull)");
	edited_open(&e, "bf16");
	edited_write(&e, "config.json", pointer, strlen(pointer));
	refused(&e, -EBADMSG,
		"'@/config.json': a Git LFS pointer, wanted the file itself (git lfs pull)");
	edited_open(&e, "odd");
	assert_int_equal(unlink(edited_path(&e, ODD)), 0);
	assert_int_equal(mkfifo(edited_path(&e, ODD), 0600), 0);
	refused(&e, -EBADMSG, "'@/model.safetensors': not a regular file");
}

/* snapshots/<revision>/X is a link to ../../blobs/<hash>, as downloaders leave it. */
static void links_into_a_cache_are_followed(void **state)
{
	static const char *const names[] = { "config.json", "generation_config.json", INDEX, FIRST,
					     SECOND };
	_cleanup_(checkpoint_freep) struct checkpoint *c = NULL;
	struct edited e, snapshot = { 0 };
	char blob[128], target[64];

	(void)state;
	edited_open(&e, "bf16");
	assert_int_equal(mkdir(edited_path(&e, "blobs"), 0700), 0);
	assert_int_equal(mkdir(edited_path(&e, "snapshots"), 0700), 0);
	assert_int_equal(mkdir(edited_path(&e, "snapshots/r"), 0700), 0);
	assert_in_range(snprintf(snapshot.dir, sizeof(snapshot.dir), "%s/snapshots/r", e.dir), 1,
			sizeof(snapshot.dir) - 1);
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		snprintf(blob, sizeof(blob), "%s/blobs/%zu", e.dir, i);
		snprintf(target, sizeof(target), "../../blobs/%zu", i);
		assert_int_equal(rename(edited_path(&e, names[i]), blob), 0);
		assert_int_equal(symlink(target, edited_path(&snapshot, names[i])), 0);
	}
	c = accepted(&snapshot);
	assert_int_equal(c->n_files, 2);
	edited_close(&e);
}

static void a_tied_head_needs_no_tensor(void **state)
{
	_cleanup_(checkpoint_freep) struct checkpoint *tied = NULL, *untied = NULL;
	struct edited e;

	(void)state;
	edited_open(&e, "odd");
	untied = accepted(&e);
	edited_json(&e, "config.json", "tie_word_embeddings", "true");
	edited_drop(&e, ODD, "lm_head.weight");
	tied = accepted(&e);
	assert_ptr_equal(tied->head.plain.t, tied->embed.t);
	assert_int_equal(untied->parameters - tied->parameters, 1009 * 160);
	assert_int_equal(untied->bytes - tied->bytes, 2 * 1009 * 160);
	edited_close(&e);
}

static void a_missing_head_dim_follows_from_the_query_projection(void **state)
{
	_cleanup_(checkpoint_freep) struct checkpoint *c = NULL;
	struct edited e;

	(void)state;
	edited_open(&e, "odd");
	edited_json(&e, "config.json", "head_dim", NULL);
	c = accepted(&e);
	assert_int_equal(c->config.head_dim, 64);
	assert_int_equal(c->config.rotary, 32);
	edited_close(&e);

	edited_open(&e, "odd");
	edited_json(&e, "config.json", "head_dim", NULL);
	edited_put(&e, ODD, "model.layers.0.self_attn.q_proj.weight", "BF16", "[200, 160]", NULL,
		   64000);
	refused(&e, -ENOTSUP,
		"'@/config.json': 'head_dim' is 40, wanted a multiple of 16: matrices "
		"are packed in strips of 16 rows");
}

static void a_tensor_that_nobody_asked_for_is_a_warning(void **state)
{
	_cleanup_(checkpoint_freep) struct checkpoint *c = NULL;
	struct edited e;

	(void)state;
	edited_open(&e, "odd");
	edited_put(&e, ODD, "model.vision.weight", "U8", "[3]", NULL, 3);
	c = accepted(&e);
	assert_int_equal(c->n_unknown, 1);
	assert_string_equal(c->config.warnings[c->config.n_warnings - 1],
			    "tensor 'model.vision.weight' is not part of the model");
	edited_close(&e);
}

static char *inspected(struct edited *e, uint64_t memory_bytes, int code)
{
	struct err err = { 0 };
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	assert_non_null(f);
	assert_int_equal(checkpoint_inspect(e->dir, memory_bytes, f, &err), code);
	fclose(f);
	return text;
}

static void inspection_lists_every_problem(void **state)
{
	_cleanup_(freep) char *text = NULL;
	struct edited e;

	(void)state;
	edited_open(&e, "odd");
	edited_drop(&e, ODD, "model.norm.weight");
	edited_drop(&e, ODD, EXPERT ".weight_shape");
	edited_put(&e, ODD, "model.layers.2.input_layernorm.weight", "BF16", "[16]", NULL, 32);
	text = inspected(&e, 0, -EBADMSG);
	assert_non_null(strstr(
		text, edited_sentence(&e, "problem: '@/model.safetensors': tensor "
					  "'model.norm.weight' is missing, wanted [160]\n")));
	assert_non_null(strstr(
		text, edited_sentence(&e, "problem: '@/model.safetensors': tensor '" EXPERT
					  ".weight_shape' is missing, wanted I64 or I32 [2]\n")));
	assert_non_null(strstr(
		text, edited_sentence(&e, "problem: '@/model.safetensors': tensor "
					  "'model.layers.2.input_layernorm.weight' is BF16 [16], "
					  "wanted BF16, F16 or F32 [160]\n")));
	assert_null(strstr(text, "no problems"));
	edited_close(&e);
}

static void inspection_stops_at_fifty_problems(void **state)
{
	_cleanup_(freep) char *text = NULL;
	struct edited e;
	int n = 0;

	(void)state;
	edited_open(&e, "odd");
	edited_json(&e, "config.json", "moe_intermediate_size", "64");
	text = inspected(&e, 0, -EBADMSG);
	for (const char *at = text; (at = strstr(at, "problem: ")); at++)
		n++;
	assert_int_equal(n, 50);
	edited_close(&e);
}

/* Headers alone: the files are as long as the real ones and hold nothing. */
struct air {
	struct edited *e;
	FILE *index, *header;
	char *text;
	size_t len;
	int number, n_tensors;
	uint64_t at;
};

static void finish_shard(struct air *a)
{
	uint64_t len;
	char name[64];
	FILE *f;

	fputc('}', a->header);
	fclose(a->header);
	len = a->len;
	snprintf(name, sizeof(name), "model-%05d-of-00015.safetensors", a->number);
	f = fopen(edited_path(a->e, name), "w");
	assert_non_null(f);
	assert_int_equal(fwrite(&len, 8, 1, f), 1);
	assert_int_equal(fwrite(a->text, 1, len, f), len);
	assert_int_equal(fflush(f), 0);
	assert_int_equal(ftruncate(fileno(f), (off_t)(8 + len + a->at)), 0);
	fclose(f);
	free(a->text);
	a->header = NULL;
	a->at = 0;
}

static void _printf_(6, 7) add(struct air *a, const char *type, int element_bytes, uint64_t rows,
			       uint64_t cols, const char *format, ...)
{
	const uint64_t bytes = rows * (cols ? cols : 1) * (uint64_t)element_bytes;
	char name[100], shape[50];
	va_list ap;

	va_start(ap, format);
	vsnprintf(name, sizeof(name), format, ap);
	va_end(ap);
	if (!a->header) {
		a->header = open_memstream(&a->text, &a->len);
		assert_non_null(a->header);
		a->number++;
	}
	snprintf(shape, sizeof(shape), cols ? "%lu,%lu" : "%lu", rows, cols);
	fprintf(a->header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%lu,%lu]}",
		a->at ? "," : "{", name, type, shape, a->at, a->at + bytes);
	fprintf(a->index, "%s\"%s\":\"model-%05d-of-00015.safetensors\"", a->n_tensors++ ? "," : "",
		name, a->number);
	a->at += bytes;
}

static void add_expert(struct air *a, int layer, int expert, const char *what, uint32_t rows,
		       uint32_t cols)
{
	add(a, "I32", 4, rows, cols / 8, "model.layers.%d.mlp.experts.%d.%s.weight_packed", layer,
	    expert, what);
	add(a, "BF16", 2, rows, cols / 32, "model.layers.%d.mlp.experts.%d.%s.weight_scale", layer,
	    expert, what);
	add(a, "I64", 8, 2, 0, "model.layers.%d.mlp.experts.%d.%s.weight_shape", layer, expert,
	    what);
}

static void add_mlp(struct air *a, int layer, const char *part, uint32_t width)
{
	add(a, "BF16", 2, width, 4096, "model.layers.%d.mlp.%sgate_proj.weight", layer, part);
	add(a, "BF16", 2, width, 4096, "model.layers.%d.mlp.%sup_proj.weight", layer, part);
	add(a, "BF16", 2, 4096, width, "model.layers.%d.mlp.%sdown_proj.weight", layer, part);
}

static void add_layer(struct air *a, int i)
{
	static const struct {
		const char *name;
		uint32_t rows, cols;
		bool biased;
	} linears[] = { { "q", 12288, 4096, true },
			{ "k", 1024, 4096, true },
			{ "v", 1024, 4096, true },
			{ "o", 4096, 12288, false } };

	for (size_t k = 0; k < ARRAY_SIZE(linears); k++) {
		add(a, "BF16", 2, linears[k].rows, linears[k].cols,
		    "model.layers.%d.self_attn.%s_proj.weight", i, linears[k].name);
		if (linears[k].biased)
			add(a, "BF16", 2, linears[k].rows, 0,
			    "model.layers.%d.self_attn.%s_proj.bias", i, linears[k].name);
	}
	add(a, "BF16", 2, 4096, 0, "model.layers.%d.input_layernorm.weight", i);
	add(a, "BF16", 2, 4096, 0, "model.layers.%d.post_attention_layernorm.weight", i);
	if (i == 0) {
		add_mlp(a, i, "", 10944);
		return;
	}
	add(a, "BF16", 2, 128, 4096, "model.layers.%d.mlp.gate.weight", i);
	add(a, "F32", 4, 128, 0, "model.layers.%d.mlp.gate.e_score_correction_bias", i);
	add_mlp(a, i, "shared_experts.", 1408);
	for (int k = 0; k < 128; k++) {
		add_expert(a, i, k, "gate_proj", 1408, 4096);
		add_expert(a, i, k, "up_proj", 1408, 4096);
		add_expert(a, i, k, "down_proj", 4096, 1408);
	}
}

static const char air_config[] =
	"{\"architectures\": [\"Glm4MoeForCausalLM\"], \"attention_bias\": true,"
	" \"eos_token_id\": [151329, 151336, 151338], \"first_k_dense_replace\": 1, \"head_dim\": "
	"128,"
	" \"hidden_act\": \"silu\", \"hidden_size\": 4096, \"intermediate_size\": 10944,"
	" \"max_position_embeddings\": 131072, \"model_type\": \"glm4_moe\","
	" \"moe_intermediate_size\": 1408, \"n_group\": 1, \"n_routed_experts\": 128,"
	" \"n_shared_experts\": 1, \"norm_topk_prob\": true, \"num_attention_heads\": 96,"
	" \"num_experts_per_tok\": 8, \"num_hidden_layers\": 46, \"num_key_value_heads\": 8,"
	" \"num_nextn_predict_layers\": 1, \"partial_rotary_factor\": 0.5, \"rms_norm_eps\": 1e-05,"
	" \"rope_scaling\": null, \"rope_theta\": 1000000, \"routed_scaling_factor\": 1.0,"
	" \"tie_word_embeddings\": false, \"topk_group\": 1, \"use_qk_norm\": false,"
	" \"vocab_size\": 151552, \"quantization_config\": {\"quant_method\": "
	"\"compressed-tensors\","
	" \"format\": \"pack-quantized\", \"kv_cache_scheme\": null, \"config_groups\": "
	"{\"group_0\":"
	" {\"targets\": [\"Linear\"], \"weights\": {\"num_bits\": 4, \"type\": \"int\","
	" \"symmetric\": true, \"strategy\": \"group\", \"group_size\": 32}}}}}";

static void make_air(struct edited *e)
{
	struct air a = { .e = e };

	edited_make(e);
	edited_write(e, "config.json", air_config, strlen(air_config));
	a.index = fopen(edited_path(e, INDEX), "w");
	assert_non_null(a.index);
	fputs("{\"metadata\":{\"total_size\":70448337408},\"weight_map\":{", a.index);
	add(&a, "BF16", 2, 151552, 4096, "model.embed_tokens.weight");
	for (int i = 0; i < 46; i++) {
		add_layer(&a, i);
		if (i % 3 == 2 && i < 43)
			finish_shard(&a);
	}
	add(&a, "BF16", 2, 4096, 0, "model.norm.weight");
	add(&a, "BF16", 2, 151552, 4096, "lm_head.weight");
	finish_shard(&a);
	fputs("}}", a.index);
	fclose(a.index);
	assert_int_equal(a.n_tensors, 52485);
	assert_int_equal(a.number, 15);
}

/* Processor time: this machine may be busy with something else. */
static double seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void the_accounting_of_glm_4_5_air_is_exact(void **state)
{
	static const char *const lines[] = {
		"routed experts, int4 codes          49828331520    46.4062 GiB\n",
		"routed experts, scales               6228541440     5.8008 GiB\n",
		"weight_shape                             276480     0.0003 GiB\n",
		"attention                           10034094080     9.3450 GiB\n",
		"shared experts                       1557135360     1.4502 GiB\n",
		"dense MLP                             268959744     0.2505 GiB\n",
		"router                                 47185920     0.0439 GiB\n",
		"router's selection bias                   23040     0.0000 GiB\n",
		"norms                                    761856     0.0007 GiB\n",
		"embedding                            1241513984     1.1562 GiB\n",
		"head                                 1241513984     1.1562 GiB\n",
		"total                               70448337408    65.6101 GiB\n",
		"188416 bytes per token (bf16), at most 131072 tokens\n",
		"  in    75.00 GiB    53510 tokens of context\n",
		"parameters         106.852 billion, 12.",
		"tensors            52485 in 15 files\n",
	};
	_cleanup_(checkpoint_freep) struct checkpoint *c = NULL;
	_cleanup_(freep) char *text = NULL;
	struct edited e;
	double began;

	(void)state;
	make_air(&e);
	began = seconds();
	c = accepted(&e);
#ifndef __SANITIZE_ADDRESS__
	assert_true(seconds() - began < 2);
#else
	(void)began;
#endif
	assert_int_equal(c->bytes, 70448337408);
	assert_int_equal(c->parameters, 106852251264);
	assert_int_equal(c->n_tensors, 52485);
	assert_int_equal(config_kv_bytes(&c->config, 2), 188416);
	text = inspected(&e, 75ull << 30, 0);
	for (size_t i = 0; i < ARRAY_SIZE(lines); i++)
		if (!strstr(text, lines[i]))
			fail_msg("no '%s' in\n%s", lines[i], text);
	edited_close(&e);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_golden_checkpoint_opens),
		cmocka_unit_test(a_wrong_shape_is_named),
		cmocka_unit_test(a_wrong_type_is_named),
		cmocka_unit_test(a_missing_tensor_is_named),
		cmocka_unit_test(a_matrix_is_plain_or_packed_and_never_both),
		cmocka_unit_test(foreign_forms_are_refused_by_name),
		cmocka_unit_test(what_config_says_is_refused_with_the_file),
		cmocka_unit_test(layers_agree_on_biases_and_norms),
		cmocka_unit_test(shards_and_their_index_agree),
		cmocka_unit_test(shard_names_stay_in_the_directory),
		cmocka_unit_test(damaged_files_are_refused),
		cmocka_unit_test(links_into_a_cache_are_followed),
		cmocka_unit_test(a_tied_head_needs_no_tensor),
		cmocka_unit_test(a_missing_head_dim_follows_from_the_query_projection),
		cmocka_unit_test(a_tensor_that_nobody_asked_for_is_a_warning),
		cmocka_unit_test(inspection_lists_every_problem),
		cmocka_unit_test(inspection_stops_at_fifty_problems),
		cmocka_unit_test(the_accounting_of_glm_4_5_air_is_exact),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
