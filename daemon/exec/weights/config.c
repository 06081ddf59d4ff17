/*
 * Reading config.json and generation_config.json: a table of the integer keys
 * and their bounds, the fallbacks, and what of a quantisation is understood.
 */
#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include "daemon/exec/weights/config.h"

#define ROPE_THETA_FALLBACK 1e6
#define PARTIAL_ROTARY_FALLBACK 0.5
#define NORM_EPS_FALLBACK 1e-5
#define HEAD_DIM_MAX 1024
#define STRIP_ROWS 16

static void json_freep(json_t **j)
{
	json_decref(*j);
}

struct int_key {
	const char *name;
	size_t offset;
	uint32_t min, max;
	int64_t fallback; /* below 0: the key has to be there */
};

#define INT_KEY(name, member, min, max, fallback)                                                  \
	{                                                                                          \
		name, offsetof(struct config, member), min, max, fallback                          \
	}

static const struct int_key int_keys[] = {
	INT_KEY("hidden_size", dim, 16, 1 << 16, -1),
	INT_KEY("num_hidden_layers", layers, 1, 1024, -1),
	INT_KEY("first_k_dense_replace", dense_layers, 0, 1024, 1),
	INT_KEY("intermediate_size", ffn_dim, 1, 1 << 20, -1),
	INT_KEY("moe_intermediate_size", moe_ffn_dim, 1, 1 << 18, -1),
	INT_KEY("n_shared_experts", shared_experts, 0, 64, 1),
	INT_KEY("n_routed_experts", experts, 1, 1024, -1),
	INT_KEY("num_experts_per_tok", top_k, 1, 64, -1),
	INT_KEY("n_group", groups, 1, 64, 1),
	INT_KEY("topk_group", top_groups, 1, 64, 1),
	INT_KEY("num_attention_heads", heads, 1, 1024, -1),
	INT_KEY("num_key_value_heads", kv_heads, 1, 1024, -1),
	INT_KEY("vocab_size", vocab, 1, 1 << 24, -1),
	INT_KEY("max_position_embeddings", max_positions, 1, 1 << 24, 131072),
	INT_KEY("num_nextn_predict_layers", mtp_layers, 0, 16, 0),
};

void config_warn(struct config *c, const char *format, ...)
{
	va_list ap;

	if (c->n_warnings == CONFIG_WARNINGS_MAX)
		return;
	va_start(ap, format);
	vsnprintf(c->warnings[c->n_warnings++], sizeof(c->warnings[0]), format, ap);
	va_end(ap);
}

/* What a value is, for the "found" half of a sentence. */
static const char *shown(const json_t *j, char buffer[80])
{
	_cleanup_(freep) char *text = j ? json_dumps(j, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;

	snprintf(buffer, 80, "%.60s%s",
		 text ? text
		 : j  ? "too deep"
		      : "missing",
		 text && strlen(text) > 60 ? "…" : "");
	return buffer;
}

static int wrong(struct err *err, int code, const char *key, const json_t *found,
		 const char *wanted)
{
	char buffer[80];

	return err_set(err, code, "'%s' is %s, wanted %s", key, shown(found, buffer), wanted);
}

/* The value of @key; an explicit null counts as missing. */
static const json_t *value_of(const json_t *object, const char *key)
{
	const json_t *j = json_object_get(object, key);

	return j && json_is_null(j) ? NULL : j;
}

/* Integral floats are integers: writers disagree. */
static bool to_integer(const json_t *j, int64_t *ret)
{
	double d;

	if (json_is_integer(j)) {
		*ret = json_integer_value(j);
		return true;
	}
	if (!json_is_real(j))
		return false;
	d = json_real_value(j);
	if (d != floor(d) || fabs(d) > 1e15)
		return false;
	*ret = (int64_t)d;
	return true;
}

static int read_integer(const json_t *object, const char *key, int64_t min, int64_t max,
			int64_t fallback, uint32_t *ret, struct err *err)
{
	const json_t *j = value_of(object, key);
	char wanted[80];
	int64_t n;

	if (!j && fallback >= 0) {
		*ret = (uint32_t)fallback;
		return 0;
	}
	snprintf(wanted, sizeof(wanted), "an integer from %lld to %lld", (long long)min,
		 (long long)max);
	if (!j || !to_integer(j, &n) || n < min || n > max)
		return wrong(err, -EBADMSG, key, j, wanted);
	*ret = (uint32_t)n;
	return 0;
}

static int read_bool(const json_t *object, const char *key, bool fallback, bool *ret,
		     struct err *err)
{
	const json_t *j = value_of(object, key);

	if (j && !json_is_boolean(j))
		return wrong(err, -EBADMSG, key, j, "true or false");
	*ret = j ? json_is_true(j) : fallback;
	return 0;
}

static int read_number(const json_t *object, const char *key, double min, double max,
		       double fallback, double *ret, struct err *err)
{
	const json_t *j = value_of(object, key);
	char wanted[80];

	if (!j) {
		*ret = fallback;
		return 0;
	}
	snprintf(wanted, sizeof(wanted), "a number from %g to %g", min, max);
	if (!json_is_number(j) || !(json_number_value(j) >= min && json_number_value(j) <= max))
		return wrong(err, -EBADMSG, key, j, wanted);
	*ret = json_number_value(j);
	return 0;
}

static bool is_string(const json_t *j, const char *wanted)
{
	return json_is_string(j) && strcmp(json_string_value(j), wanted) == 0;
}

static int read_eos(const json_t *object, uint32_t eos[CONFIG_EOS_MAX], uint32_t *ret_n,
		    struct err *err)
{
	const json_t *j = value_of(object, "eos_token_id");
	const size_t n = !j ? 0 : json_is_array(j) ? json_array_size(j) : 1;
	int64_t id;

	if (n > CONFIG_EOS_MAX)
		return err_set(err, -EBADMSG, "'eos_token_id' has %zu ids, wanted at most %d", n,
			       CONFIG_EOS_MAX);
	for (size_t i = 0; i < n; i++) {
		if (!to_integer(json_is_array(j) ? json_array_get(j, i) : j, &id) || id < 0 ||
		    id >= UINT32_MAX)
			return wrong(err, -EBADMSG, "eos_token_id", j, "token ids");
		eos[i] = (uint32_t)id;
	}
	*ret_n = (uint32_t)n;
	return 0;
}

int config_set_head_dim(struct config *c, uint64_t head_dim, struct err *err)
{
	double rotary;

	if (head_dim < 1 || head_dim > HEAD_DIM_MAX)
		return err_set(err, -EBADMSG, "'head_dim' is %llu, wanted at most %d",
			       (unsigned long long)head_dim, HEAD_DIM_MAX);
	if (head_dim % STRIP_ROWS)
		return err_set(err, -ENOTSUP,
			       "'head_dim' is %llu, wanted a multiple of %d: matrices are packed "
			       "in strips of %d rows",
			       (unsigned long long)head_dim, STRIP_ROWS, STRIP_ROWS);
	rotary = (double)head_dim * c->partial_rotary;
	if (rotary != floor(rotary) || rotary < 2 || (uint32_t)rotary % 2)
		return err_set(err, -EBADMSG,
			       "'partial_rotary_factor' %g of 'head_dim' %llu is %g dimensions, "
			       "wanted an even number",
			       c->partial_rotary, (unsigned long long)head_dim, rotary);
	c->head_dim = (uint32_t)head_dim;
	c->rotary = (uint32_t)rotary;
	return 0;
}

/* rope_parameters.X goes before a top-level X. */
static int read_rope(const json_t *root, struct config *c, struct err *err)
{
	const json_t *nested = value_of(root, "rope_parameters"), *type;
	const char *const keys[] = { "rope_theta", "partial_rotary_factor" };
	const json_t *from[2];
	int r;

	if (nested && !json_is_object(nested))
		return wrong(err, -EBADMSG, "rope_parameters", nested, "an object");
	if (value_of(root, "rope_scaling"))
		return wrong(err, -ENOTSUP, "rope_scaling", value_of(root, "rope_scaling"), "null");
	type = value_of(nested, "rope_type");
	if (type && !is_string(type, "default"))
		return wrong(err, -ENOTSUP, "rope_parameters.rope_type", type, "\"default\"");

	for (int i = 0; i < 2; i++)
		from[i] = value_of(nested, keys[i]) ? nested : root;
	if (!value_of(from[0], keys[0]))
		config_warn(c, "'rope_theta' is missing; %.0f is assumed", ROPE_THETA_FALLBACK);
	r = read_number(from[0], keys[0], 1, 1e12, ROPE_THETA_FALLBACK, &c->rope_theta, err);
	if (r < 0)
		return r;
	return read_number(from[1], keys[1], 0.001, 1, PARTIAL_ROTARY_FALLBACK, &c->partial_rotary,
			   err);
}

/* The weights of one config group: int4, symmetric, in groups of columns or a row. */
static int read_scheme(const json_t *w, uint32_t *ret_group, struct err *err)
{
	const json_t *strategy = value_of(w, "strategy"), *order = value_of(w, "actorder");
	const json_t *size = value_of(w, "group_size");
	int64_t n = 0;

	if (!json_is_object(w))
		return wrong(err, -ENOTSUP, "weights", w, "an object");
	if (!to_integer(value_of(w, "num_bits"), &n) || n != 4)
		return wrong(err, -ENOTSUP, "num_bits", value_of(w, "num_bits"), "4");
	if (value_of(w, "type") && !is_string(value_of(w, "type"), "int"))
		return wrong(err, -ENOTSUP, "type", value_of(w, "type"), "\"int\"");
	if (value_of(w, "symmetric") && !json_is_true(value_of(w, "symmetric")))
		return wrong(err, -ENOTSUP, "symmetric", value_of(w, "symmetric"), "true");
	if (value_of(w, "dynamic") && !json_is_false(value_of(w, "dynamic")))
		return wrong(err, -ENOTSUP, "dynamic", value_of(w, "dynamic"), "false");
	if (order && !json_is_false(order) && !is_string(order, "weight") &&
	    !is_string(order, "static"))
		return wrong(err, -ENOTSUP, "actorder", order, "null, \"weight\" or \"static\"");

	if (is_string(strategy, "channel")) {
		*ret_group = 0;
		return 0;
	}
	if (strategy && !is_string(strategy, "group"))
		return wrong(err, -ENOTSUP, "strategy", strategy, "\"group\" or \"channel\"");
	if (!to_integer(size, &n) || (n != 32 && n != 64 && n != 128))
		return wrong(err, -ENOTSUP, "group_size", size, "32, 64 or 128");
	*ret_group = (uint32_t)n;
	return 0;
}

static int read_group(const json_t *group, uint32_t *ret, struct err *err)
{
	const json_t *format = value_of(group, "format");

	if (!json_is_object(group))
		return wrong(err, -EBADMSG, "config_groups", group, "an object of objects");
	if (format && !is_string(format, "pack-quantized"))
		return wrong(err, -ENOTSUP, "format", format, "\"pack-quantized\"");
	if (value_of(group, "input_activations"))
		return wrong(err, -ENOTSUP, "input_activations",
			     value_of(group, "input_activations"), "null");
	if (value_of(group, "output_activations"))
		return wrong(err, -ENOTSUP, "output_activations",
			     value_of(group, "output_activations"), "null");
	return read_scheme(value_of(group, "weights"), ret, err);
}

static int read_quantisation(const json_t *q, struct config *c, struct err *err)
{
	const json_t *method = value_of(q, "quant_method"), *format = value_of(q, "format");
	const json_t *groups = value_of(q, "config_groups");
	const char *name;
	json_t *group;
	uint32_t n = 0, columns = 0;
	int r;

	if (!json_is_object(q))
		return wrong(err, -EBADMSG, "quantization_config", q, "an object");
	if (!is_string(method, "compressed-tensors"))
		return wrong(err, -ENOTSUP, "quantization_config.quant_method", method,
			     "\"compressed-tensors\"");
	if (value_of(q, "kv_cache_scheme"))
		return wrong(err, -ENOTSUP, "quantization_config.kv_cache_scheme",
			     value_of(q, "kv_cache_scheme"), "null");
	if (!is_string(format, "pack-quantized") && !is_string(format, "mixed-precision"))
		return wrong(err, -ENOTSUP, "quantization_config.format", format,
			     "\"pack-quantized\" or \"mixed-precision\"");
	if (!json_is_object(groups) || json_object_size(groups) == 0)
		return wrong(err, -EBADMSG, "quantization_config.config_groups", groups,
			     "an object with a group");

	json_object_foreach((json_t *)groups, name, group) {
		r = read_group(group, &columns, err);
		if (r < 0)
			return err_wrap(err, r, "quantization_config.config_groups.%.40s", name);
		if (n++ && columns != c->group)
			return err_set(err, -ENOTSUP,
				       "'group_size' is %u in one group of quantization_config and "
				       "%u in another, wanted one for all",
				       c->group, columns);
		c->group = columns;
	}
	c->quantised = true;
	return 0;
}

static int check_architecture(const json_t *root, struct err *err)
{
	const json_t *type = value_of(root, "model_type"), *list = value_of(root, "architectures");
	const json_t *act = value_of(root, "hidden_act");

	if (!is_string(type, "glm4_moe"))
		return wrong(err, -ENOTSUP, "model_type", type, "\"glm4_moe\"");
	if (list && !(json_is_array(list) && json_array_size(list) == 1 &&
		      is_string(json_array_get(list, 0), "Glm4MoeForCausalLM")))
		return wrong(err, -ENOTSUP, "architectures", list, "[\"Glm4MoeForCausalLM\"]");
	if (act && !is_string(act, "silu"))
		return wrong(err, -ENOTSUP, "hidden_act", act, "\"silu\"");
	return 0;
}

/* What no single key can get wrong. */
static int check_together(struct config *c, struct err *err)
{
	if (c->heads % c->kv_heads)
		return err_set(err, -EBADMSG,
			       "'num_attention_heads' is %u, wanted a multiple of "
			       "'num_key_value_heads' %u",
			       c->heads, c->kv_heads);
	if (c->top_k > c->experts)
		return err_set(err, -EBADMSG,
			       "'num_experts_per_tok' is %u, wanted at most 'n_routed_experts' %u",
			       c->top_k, c->experts);
	if (c->experts % c->groups || (c->groups > 1 && c->experts / c->groups < 2))
		return err_set(err, -EBADMSG,
			       "'n_group' is %u, wanted a divisor of 'n_routed_experts' %u that "
			       "leaves 2 or more a group",
			       c->groups, c->experts);
	if (c->top_groups > c->groups)
		return err_set(err, -EBADMSG, "'topk_group' is %u, wanted at most 'n_group' %u",
			       c->top_groups, c->groups);
	if (c->top_k > c->experts / c->groups * c->top_groups)
		return err_set(err, -EBADMSG,
			       "'num_experts_per_tok' is %u, wanted at most the %u experts of "
			       "'topk_group' groups",
			       c->top_k, c->experts / c->groups * c->top_groups);
	if (c->dense_layers > c->layers)
		c->dense_layers = c->layers;
	for (uint32_t i = 0; i < c->n_eos; i++)
		if (c->eos[i] >= c->vocab)
			return err_set(err, -EBADMSG,
				       "'eos_token_id' has %u, wanted ids below 'vocab_size' %u",
				       c->eos[i], c->vocab);
	if (c->n_eos == 0)
		config_warn(c, "'eos_token_id' is missing");
	return 0;
}

static int read_all(const json_t *root, struct config *c, struct err *err)
{
	const json_t *quantised = value_of(root, "quantization_config");
	int64_t head_dim;
	int r;

	r = check_architecture(root, err);
	for (size_t i = 0; r == 0 && i < ARRAY_SIZE(int_keys); i++)
		r = read_integer(root, int_keys[i].name, int_keys[i].min, int_keys[i].max,
				 int_keys[i].fallback, (uint32_t *)((char *)c + int_keys[i].offset),
				 err);
	if (r < 0 || (r = read_bool(root, "norm_topk_prob", true, &c->normalise_top_k, err)) < 0 ||
	    (r = read_bool(root, "use_qk_norm", false, &c->qk_norm, err)) < 0 ||
	    (r = read_bool(root, "attention_bias", false, &c->attention_bias, err)) < 0 ||
	    (r = read_bool(root, "tie_word_embeddings", false, &c->tied_head, err)) < 0 ||
	    (r = read_number(root, "routed_scaling_factor", 1e-6, 1e6, 1, &c->routed_scale, err)) <
		    0 ||
	    (r = read_number(root, "rms_norm_eps", 1e-12, 1, NORM_EPS_FALLBACK, &c->norm_eps,
			     err)) < 0 ||
	    (r = read_eos(root, c->eos, &c->n_eos, err)) < 0 || (r = read_rope(root, c, err)) < 0)
		return r;

	if (!quantised)
		quantised = value_of(root, "compression_config");
	if (quantised) {
		r = read_quantisation(quantised, c, err);
		if (r < 0)
			return r;
	}

	r = check_together(c, err);
	if (r < 0)
		return r;
	if (!value_of(root, "head_dim")) {
		config_warn(c, "'head_dim' is missing; it follows from the query projection");
		return 0;
	}
	if (!to_integer(value_of(root, "head_dim"), &head_dim) || head_dim < 1)
		return wrong(err, -EBADMSG, "head_dim", value_of(root, "head_dim"),
			     "a positive integer");
	return config_set_head_dim(c, (uint64_t)head_dim, err);
}

static int parse_object(const char *text, size_t len, json_t **ret, struct err *err)
{
	_cleanup_(json_freep) json_t *root = NULL;
	json_error_t e;

	if (len > CONFIG_TEXT_MAX)
		return err_set(err, -EBADMSG, "%zu bytes of JSON, wanted at most %u", len,
			       CONFIG_TEXT_MAX);
	if (len >= 23 && memcmp(text, "version https://git-lfs", 23) == 0)
		return err_set(err, -EBADMSG,
			       "a Git LFS pointer, wanted the file itself (git lfs pull)");
	root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &e);
	if (!root)
		return err_set(err, -EBADMSG, "not JSON: %s in line %d", e.text, e.line);
	if (!json_is_object(root))
		return err_set(err, -EBADMSG, "JSON, but not an object");
	*ret = steal(root);
	return 0;
}

int config_parse(const char *text, size_t len, struct config *ret, struct err *err)
{
	_cleanup_(json_freep) json_t *root = NULL;
	struct config c = { 0 };
	int r;

	r = parse_object(text, len, &root, err);
	if (r == 0)
		r = read_all(root, &c, err);
	if (r == 0)
		*ret = c;
	return r;
}

uint64_t config_kv_bytes(const struct config *c, uint32_t element_bytes)
{
	return (uint64_t)c->layers * 2 * c->kv_heads * c->head_dim * element_bytes;
}

int generation_config_parse(const char *text, size_t len, struct generation_config *ret,
			    struct err *err)
{
	_cleanup_(json_freep) json_t *root = NULL;
	struct generation_config g = { 0 };
	int64_t top_k;
	bool sample;
	int r;

	r = parse_object(text, len, &root, err);
	if (r < 0 || (r = read_number(root, "temperature", 0, 100, NAN, &g.temperature, err)) < 0 ||
	    (r = read_number(root, "top_p", 0, 1, NAN, &g.top_p, err)) < 0 ||
	    (r = read_number(root, "min_p", 0, 1, NAN, &g.min_p, err)) < 0 ||
	    (r = read_number(root, "repetition_penalty", 0.01, 100, NAN, &g.repetition_penalty,
			     err)) < 0 ||
	    (r = read_bool(root, "do_sample", true, &sample, err)) < 0 ||
	    (r = read_eos(root, g.eos, &g.n_eos, err)) < 0)
		return r;
	g.greedy = !sample;
	g.top_k = UINT32_MAX;
	if (value_of(root, "top_k")) {
		/* -1 is how some writers say "off" */
		if (!to_integer(value_of(root, "top_k"), &top_k) || top_k < -1 || top_k > INT_MAX)
			return wrong(err, -EBADMSG, "top_k", value_of(root, "top_k"),
				     "an integer from -1");
		g.top_k = top_k < 0 ? 0 : (uint32_t)top_k;
	}
	*ret = g;
	return 0;
}
