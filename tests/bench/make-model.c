/*
 * make-model: writes a glm4_moe checkpoint of random weights whose activations
 * are of order 1: experts int4 in groups of 32 (compressed-tensors), the rest
 * bf16. Streams: nothing larger than a buffer is ever in memory.
 */
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>

#include "client/wire/ownership.h"
#include "tests/bench/model-text.h"

#define GROUP 32
#define SHARD_BYTES (1ull << 30)
#define BUFFER_WORDS (1u << 17)
#define QUANTILES 4096

struct shape {
	const char *name;
	uint32_t dim, layers, dense, ffn, moe_ffn, heads, kv_heads, head_dim, experts, top_k,
		shared, vocab, context;
};

static const struct shape shapes[] = {
	{ "tiny", 128, 3, 1, 256, 64, 8, 2, 32, 8, 2, 1, 1536, 8192 },
	{ "bench-5b", 2048, 16, 1, 6144, 768, 32, 4, 128, 64, 8, 1, 65536, 32768 },
	/* GLM-4.5-Air, of which "air-Nlayer" has the first N layers */
	{ "air", 4096, 46, 1, 10944, 1408, 96, 8, 128, 128, 8, 1, 151552, 131072 },
};

enum fill { FILL_NORMAL, FILL_NORM, FILL_BIAS32, FILL_CODES, FILL_SCALES, FILL_SHAPE };

struct part {
	char name[96];
	enum fill fill;
	uint32_t rows, cols; /* cols 0: a vector */
	uint32_t of_cols;    /* of the matrix that scales and shape belong to */
	double sd;
	uint64_t bytes;
	uint32_t shard;
};

struct model {
	struct shape shape;
	const char *dir;
	uint64_t seed;
	struct part *parts;
	size_t n_parts, room;
	uint32_t n_shards;
	uint64_t total_bytes;
};

static void die(const char *what)
{
	fprintf(stderr, "make-model: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* splitmix64: a counter and a finaliser. */
static inline uint64_t draw(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static uint16_t to_bf16(double v)
{
	float f = (float)v;
	uint32_t bits;

	memcpy(&bits, &f, 4);
	return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* The normal distribution's quantile by bisection of its integral. */
static double normal_quantile(double p)
{
	double low = -8, high = 8;

	for (int i = 0; i < 50; i++) {
		const double middle = (low + high) / 2;

		if (0.5 * erfc(-middle / sqrt(2)) < p)
			low = middle;
		else
			high = middle;
	}
	return (low + high) / 2;
}

static const double *quantiles(void)
{
	static double table[QUANTILES];

	if (table[0] == 0)
		for (int i = 0; i < QUANTILES; i++)
			table[i] = normal_quantile((i + 0.5) / QUANTILES);
	return table;
}

static uint32_t element_bytes(enum fill fill)
{
	return fill == FILL_SHAPE ? 8 : fill == FILL_CODES || fill == FILL_BIAS32 ? 4 : 2;
}

static const char *type_of(enum fill fill)
{
	return fill == FILL_SHAPE    ? "I64"
	       : fill == FILL_CODES  ? "I32"
	       : fill == FILL_BIAS32 ? "F32"
				     : "BF16";
}

static void _printf_(6, 7) add(struct model *m, enum fill fill, uint32_t rows, uint32_t cols,
			       double sd, const char *format, ...)
{
	struct part *p;
	va_list ap;

	if (m->n_parts == m->room) {
		m->room = m->room ? 2 * m->room : 1024;
		m->parts = reallocarray(m->parts, m->room, sizeof(*m->parts));
		if (!m->parts)
			die("memory");
	}
	p = &m->parts[m->n_parts++];
	*p = (struct part){ .fill = fill, .rows = rows, .cols = cols, .sd = sd };
	p->bytes = (uint64_t)rows * (cols ? cols : 1) * element_bytes(fill);
	va_start(ap, format);
	vsnprintf(p->name, sizeof(p->name), format, ap);
	va_end(ap);
}

/* The three tensors of a packed matrix; codes are uniform, so the scale sets the deviation. */
static void add_packed(struct model *m, const char *prefix, const char *what, uint32_t rows,
		       uint32_t cols, double sd)
{
	add(m, FILL_CODES, rows, cols / 8, 0, "%s.%s.weight_packed", prefix, what);
	add(m, FILL_SCALES, rows, cols / GROUP, sd / 4.64, "%s.%s.weight_scale", prefix, what);
	add(m, FILL_SHAPE, 2, 0, rows, "%s.%s.weight_shape", prefix, what);
	m->parts[m->n_parts - 1].of_cols = cols;
}

static void add_mlp(struct model *m, const char *prefix, uint32_t width, double gain, bool packed)
{
	const uint32_t dim = m->shape.dim;
	const double in = 1 / sqrt(dim), out = gain / sqrt(width);

	if (packed) {
		add_packed(m, prefix, "gate_proj", width, dim, in);
		add_packed(m, prefix, "up_proj", width, dim, in);
		add_packed(m, prefix, "down_proj", dim, width, out);
		return;
	}
	add(m, FILL_NORMAL, width, dim, in, "%s.gate_proj.weight", prefix);
	add(m, FILL_NORMAL, width, dim, in, "%s.up_proj.weight", prefix);
	add(m, FILL_NORMAL, dim, width, out, "%s.down_proj.weight", prefix);
}

static void add_layer(struct model *m, uint32_t i)
{
	const struct shape *s = &m->shape;
	const uint32_t q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim;
	const double in = 1 / sqrt(s->dim), share = 1 / sqrt(2.0 * s->layers);
	char at[32], prefix[80];

	snprintf(at, sizeof(at), "model.layers.%u", i);
	add(m, FILL_NORM, s->dim, 0, 0, "%s.input_layernorm.weight", at);
	add(m, FILL_NORMAL, q, s->dim, in, "%s.self_attn.q_proj.weight", at);
	add(m, FILL_NORMAL, q, 0, 0.1, "%s.self_attn.q_proj.bias", at);
	add(m, FILL_NORMAL, kv, s->dim, in, "%s.self_attn.k_proj.weight", at);
	add(m, FILL_NORMAL, kv, 0, 0.1, "%s.self_attn.k_proj.bias", at);
	add(m, FILL_NORMAL, kv, s->dim, in, "%s.self_attn.v_proj.weight", at);
	add(m, FILL_NORMAL, kv, 0, 0.1, "%s.self_attn.v_proj.bias", at);
	add(m, FILL_NORMAL, s->dim, q, 2 * share / sqrt(q), "%s.self_attn.o_proj.weight", at);
	add(m, FILL_NORM, s->dim, 0, 0, "%s.post_attention_layernorm.weight", at);

	snprintf(prefix, sizeof(prefix), "%s.mlp", at);
	if (i < s->dense) {
		add_mlp(m, prefix, s->ffn, 2 * share, false);
		return;
	}
	add(m, FILL_NORMAL, s->experts, s->dim, in, "%s.mlp.gate.weight", at);
	add(m, FILL_BIAS32, s->experts, 0, 0.05, "%s.mlp.gate.e_score_correction_bias", at);
	for (uint32_t e = 0; e < s->experts; e++) {
		snprintf(prefix, sizeof(prefix), "%s.mlp.experts.%u", at, e);
		add_mlp(m, prefix, s->moe_ffn, 2 * share * sqrt(s->top_k), true);
	}
	snprintf(prefix, sizeof(prefix), "%s.mlp.shared_experts", at);
	if (s->shared)
		add_mlp(m, prefix, s->moe_ffn * s->shared, 2 * share, false);
}

static void plan(struct model *m)
{
	const struct shape *s = &m->shape;
	uint64_t filled = 0;

	add(m, FILL_NORMAL, s->vocab, s->dim, 1, "model.embed_tokens.weight");
	for (uint32_t i = 0; i < s->layers; i++)
		add_layer(m, i);
	add(m, FILL_NORM, s->dim, 0, 0, "model.norm.weight");
	add(m, FILL_NORMAL, s->vocab, s->dim, 3 / sqrt(s->dim), "lm_head.weight");

	for (size_t i = 0; i < m->n_parts; i++) {
		if (filled && filled + m->parts[i].bytes > SHARD_BYTES) {
			m->n_shards++;
			filled = 0;
		}
		m->parts[i].shard = m->n_shards;
		filled += m->parts[i].bytes;
		m->total_bytes += m->parts[i].bytes;
	}
	m->n_shards++;
}

static uint64_t seed_of(const struct model *m, const char *name)
{
	uint64_t h = m->seed ^ 0xcbf29ce484222325;

	for (; *name; name++)
		h = (h ^ (unsigned char)*name) * 0x100000001b3;
	return h;
}

static void fill_normal(uint16_t *to, size_t n, double sd, uint64_t *state)
{
	uint16_t table[QUANTILES];
	size_t i = 0;

	for (int k = 0; k < QUANTILES; k++)
		table[k] = to_bf16(quantiles()[k] * sd);
	while (i < n)
		for (uint64_t z = draw(state), k = 0; k < 5 && i < n; k++, z >>= 12)
			to[i++] = table[z % QUANTILES];
}

static double uniform(uint64_t *state, double low, double high)
{
	return low + (double)(draw(state) >> 11) * 0x1p-53 * (high - low);
}

/* @n elements of the part into @buffer. */
static void fill(const struct part *p, uint64_t *buffer, size_t n, uint64_t *state)
{
	uint16_t *half = (uint16_t *)buffer;

	switch (p->fill) {
	case FILL_NORMAL:
		fill_normal(half, n, p->sd, state);
		break;
	case FILL_NORM:
		for (size_t i = 0; i < n; i++)
			half[i] = to_bf16(uniform(state, 0.9, 1.1));
		break;
	case FILL_SCALES:
		for (size_t i = 0; i < n; i++)
			half[i] = to_bf16(p->sd * uniform(state, 0.8, 1.2));
		break;
	case FILL_BIAS32:
		for (size_t i = 0; i < n; i++)
			((float *)buffer)[i] = (float)uniform(state, -p->sd, p->sd);
		break;
	case FILL_CODES:
		for (size_t i = 0; i < (n + 1) / 2; i++)
			buffer[i] = draw(state);
		break;
	case FILL_SHAPE:
		buffer[0] = (uint64_t)p->sd;
		buffer[1] = p->of_cols;
		break;
	}
}

static void write_part(const struct model *m, const struct part *p, FILE *f)
{
	static uint64_t buffer[BUFFER_WORDS];
	const uint32_t size = element_bytes(p->fill);
	uint64_t state = seed_of(m, p->name), left = p->bytes / size;

	while (left) {
		const size_t n = MIN(left, sizeof(buffer) / size);

		fill(p, buffer, n, &state);
		if (fwrite(buffer, size, n, f) != n)
			die("cannot write");
		left -= n;
	}
}

static void shard_name(const struct model *m, uint32_t shard, char name[64])
{
	if (m->n_shards == 1)
		snprintf(name, 64, "model.safetensors");
	else
		snprintf(name, 64, "model-%05u-of-%05u.safetensors", shard + 1, m->n_shards);
}

static FILE *create(const struct model *m, const char *name)
{
	_cleanup_(freep) char *path = NULL;
	FILE *f;

	if (asprintf(&path, "%s/%s", m->dir, name) < 0)
		die("memory");
	f = fopen(path, "we");
	if (!f)
		die(path);
	return f;
}

static void finish(FILE *f)
{
	if (ferror(f) || fclose(f) != 0)
		die("cannot write");
}

static void write_shard(const struct model *m, uint32_t shard)
{
	_cleanup_(freep) char *header = NULL;
	size_t len = 0;
	uint64_t at = 0;
	char name[64];
	FILE *h = open_memstream(&header, &len), *f;

	if (!h)
		die("memory");
	fprintf(h, "{\"__metadata__\": {\"format\": \"pt\"}");
	for (size_t i = 0; i < m->n_parts; i++) {
		const struct part *p = &m->parts[i];

		if (p->shard != shard)
			continue;
		fprintf(h, ",\n\"%s\": {\"dtype\": \"%s\", \"shape\": [%u", p->name,
			type_of(p->fill), p->rows);
		fprintf(h, p->cols ? ", %u]" : "]", p->cols);
		fprintf(h, ", \"data_offsets\": [%llu, %llu]}", (unsigned long long)at,
			(unsigned long long)(at + p->bytes));
		at += p->bytes;
	}
	fprintf(h, "}");
	while (ftell(h) % 8)
		fputc(' ', h);
	finish(h);

	shard_name(m, shard, name);
	f = create(m, name);
	at = len;
	fwrite(&at, 8, 1, f);
	fwrite(header, 1, len, f);
	for (size_t i = 0; i < m->n_parts; i++)
		if (m->parts[i].shard == shard)
			write_part(m, &m->parts[i], f);
	finish(f);
	fprintf(stderr, "make-model: %s/%s\n", m->dir, name);
}

static void write_index(const struct model *m)
{
	FILE *f = create(m, "model.safetensors.index.json");
	char name[64];

	fprintf(f, "{\"metadata\": {\"total_size\": %llu}, \"weight_map\": {",
		(unsigned long long)m->total_bytes);
	for (size_t i = 0; i < m->n_parts; i++) {
		shard_name(m, m->parts[i].shard, name);
		fprintf(f, "%s\n\"%s\": \"%s\"", i ? "," : "", m->parts[i].name, name);
	}
	fprintf(f, "}}\n");
	finish(f);
}

static void write_configs(const struct model *m)
{
	const struct shape *s = &m->shape;
	char eos[64];
	FILE *f;

	snprintf(eos, sizeof(eos), "[%u, %u, %u]", model_text_marker("<|endoftext|>"),
		 model_text_marker("<|user|>"), model_text_marker("<|observation|>"));
	f = create(m, "generation_config.json");
	fprintf(f, "{\"eos_token_id\": %s, \"pad_token_id\": %u, \"temperature\": 1.0}\n", eos,
		model_text_marker("<|endoftext|>"));
	finish(f);

	f = create(m, "config.json");
	fprintf(f,
		"{\n\"architectures\": [\"Glm4MoeForCausalLM\"], \"model_type\": \"glm4_moe\",\n"
		"\"hidden_size\": %u, \"num_hidden_layers\": %u, \"first_k_dense_replace\": %u,\n"
		"\"intermediate_size\": %u, \"moe_intermediate_size\": %u,\n"
		"\"num_attention_heads\": %u, \"num_key_value_heads\": %u, \"head_dim\": %u,\n"
		"\"n_routed_experts\": %u, \"num_experts_per_tok\": %u, \"n_shared_experts\": "
		"%u,\n",
		s->dim, s->layers, s->dense, s->ffn, s->moe_ffn, s->heads, s->kv_heads, s->head_dim,
		s->experts, s->top_k, s->shared);
	fprintf(f,
		"\"vocab_size\": %u, \"max_position_embeddings\": %u, \"eos_token_id\": %s,\n"
		"\"pad_token_id\": %u, \"attention_bias\": true, \"use_qk_norm\": false,\n"
		"\"n_group\": 1, \"topk_group\": 1, \"norm_topk_prob\": true,\n"
		"\"routed_scaling_factor\": 1.0, \"partial_rotary_factor\": 0.5,\n"
		"\"rms_norm_eps\": 1e-05, \"rope_scaling\": null, \"rope_theta\": 1000000,\n"
		"\"hidden_act\": \"silu\", \"tie_word_embeddings\": false, \"torch_dtype\": "
		"\"bfloat16\",\n",
		s->vocab, s->context, eos, model_text_marker("<|endoftext|>"));
	fprintf(f,
		"\"quantization_config\": {\"quant_method\": \"compressed-tensors\", "
		"\"format\": \"pack-quantized\", \"kv_cache_scheme\": null,\n"
		"\"quantization_status\": \"compressed\", \"ignore\": [\"lm_head\"],\n"
		"\"config_groups\": {\"group_0\": {\"format\": \"pack-quantized\", "
		"\"input_activations\": null, \"output_activations\": null,\n"
		"\"targets\": [\"re:.*mlp\\\\.experts\\\\.[0-9]+\\\\.(down|gate|up)_proj$\"],\n"
		"\"weights\": {\"num_bits\": 4, \"type\": \"int\", \"symmetric\": true, "
		"\"strategy\": \"group\", \"group_size\": %d, \"actorder\": null, "
		"\"dynamic\": false}}}}\n}\n",
		GROUP);
	finish(f);
}

enum { OPT_SEED = 1000 };

static const struct {
	const char *name;
	size_t offset;
} dimensions[] = {
	{ "dim", offsetof(struct shape, dim) },
	{ "layers", offsetof(struct shape, layers) },
	{ "dense-layers", offsetof(struct shape, dense) },
	{ "ffn", offsetof(struct shape, ffn) },
	{ "moe-ffn", offsetof(struct shape, moe_ffn) },
	{ "heads", offsetof(struct shape, heads) },
	{ "kv-heads", offsetof(struct shape, kv_heads) },
	{ "head-dim", offsetof(struct shape, head_dim) },
	{ "experts", offsetof(struct shape, experts) },
	{ "top-k", offsetof(struct shape, top_k) },
	{ "shared", offsetof(struct shape, shared) },
	{ "vocab", offsetof(struct shape, vocab) },
	{ "context", offsetof(struct shape, context) },
};

static void usage(int code)
{
	fprintf(code ? stderr : stdout,
		"make-model [--seed N] [--DIMENSION N]… [SHAPE] DIR\n\n"
		"Writes a checkpoint of random weights. SHAPE: tiny (default), bench-5b, or\n"
		"air-1layer to air-46layer, GLM-4.5-Air's first layers; DIMENSION overrides\n"
		"one of:");
	for (size_t i = 0; i < ARRAY_SIZE(dimensions); i++)
		fprintf(code ? stderr : stdout, " %s", dimensions[i].name);
	fputc('\n', code ? stderr : stdout);
	exit(code);
}

static void check(const struct shape *s)
{
	const char *wrong = NULL;

	if (!s->dim || s->dim % GROUP || !s->moe_ffn || s->moe_ffn % GROUP)
		wrong = "dim and moe-ffn have to be multiples of 32";
	else if (!s->head_dim || s->head_dim % 16 || !s->kv_heads || !s->heads ||
		 s->heads % s->kv_heads)
		wrong = "head-dim has to be a multiple of 16, heads one of kv-heads";
	else if (!s->top_k || s->top_k > s->experts || !s->layers || s->dense > s->layers)
		wrong = "top-k goes from 1 to experts, dense-layers to layers";
	else if (s->vocab < model_text_tokens())
		wrong = "vocab is less than the tokenizer's tokens";
	if (!wrong)
		return;
	fprintf(stderr, "make-model: %s\n", wrong);
	exit(2);
}

/* By its name, or by "air-Nlayer". */
static bool find_shape(const char *name, struct shape *ret)
{
	uint32_t layers = 0;
	int len = 0;

	if (sscanf(name, "air-%2ulayer%n", &layers, &len) == 1 && len && !name[len])
		name = "air";
	for (size_t i = 0; i < ARRAY_SIZE(shapes); i++) {
		if (strcmp(shapes[i].name, name) != 0)
			continue;
		*ret = shapes[i];
		if (len)
			ret->layers = layers;
		return layers <= shapes[i].layers && (layers > 0 || !len);
	}
	return false;
}

int main(int argc, char **argv)
{
	struct option options[ARRAY_SIZE(dimensions) + 3] = { 0 };
	const uint32_t unset = UINT32_MAX;
	struct model m = { .seed = 1 };
	uint32_t wanted[ARRAY_SIZE(dimensions)];
	int opt;

	for (size_t i = 0; i < ARRAY_SIZE(dimensions); i++) {
		options[i] = (struct option){ dimensions[i].name, required_argument, NULL, (int)i };
		wanted[i] = unset;
	}
	options[ARRAY_SIZE(dimensions)] = (struct option){ "seed", required_argument, NULL,
							   OPT_SEED };
	options[ARRAY_SIZE(dimensions) + 1] = (struct option){ "help", no_argument, NULL, 'h' };
	while ((opt = getopt_long(argc, argv, "h", options, NULL)) >= 0) {
		if (opt == 'h')
			usage(0);
		else if (opt == OPT_SEED)
			m.seed = strtoull(optarg, NULL, 0);
		else if (opt >= 0 && (size_t)opt < ARRAY_SIZE(dimensions))
			wanted[opt] = (uint32_t)strtoul(optarg, NULL, 0);
		else
			usage(2);
	}
	if (argc - optind < 1 || argc - optind > 2)
		usage(2);

	m.dir = argv[argc - 1];
	m.shape = shapes[0];
	if (argc - optind == 2 && !find_shape(argv[optind], &m.shape))
		usage(2);
	for (size_t i = 0; i < ARRAY_SIZE(dimensions); i++)
		if (wanted[i] != unset)
			*(uint32_t *)((char *)&m.shape + dimensions[i].offset) = wanted[i];
	check(&m.shape);

	if (mkdir(m.dir, 0777) < 0 && errno != EEXIST)
		die(m.dir);
	plan(&m);
	errno = 0;
	if (model_text_write(m.dir) < 0)
		die(m.dir);
	for (uint32_t i = 0; i < m.n_shards; i++)
		write_shard(&m, i);
	if (m.n_shards > 1)
		write_index(&m);
	write_configs(&m); /* last: a directory without it is not a model yet */
	free(m.parts);
	return 0;
}
