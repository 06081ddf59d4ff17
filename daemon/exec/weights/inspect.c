/*
 * What a checkpoint is, for a person: dimensions, parameters, bytes by part and
 * type, memory for the context, sampler defaults, warnings and problems.
 */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "daemon/exec/weights/checkpoint.h"

#define GIB (1024.0 * 1024 * 1024)
#define KV_ELEMENT_BYTES 2 /* bf16 */

enum part {
	PART_CODES,
	PART_SCALES,
	PART_SHAPES,
	PART_EXPERTS,
	PART_ATTENTION,
	PART_SHARED,
	PART_DENSE,
	PART_ROUTER,
	PART_ROUTER_BIAS,
	PART_NORMS,
	PART_EMBEDDING,
	PART_HEAD,
	PART_N,
};

static const char *const part_names[PART_N] = {
	"routed experts, int4 codes",
	"routed experts, scales",
	"weight_shape",
	"routed experts, plain",
	"attention",
	"shared experts",
	"dense MLP",
	"router",
	"router's selection bias",
	"norms",
	"embedding",
	"head",
};

struct sums {
	uint64_t part[PART_N];
	uint64_t type[8]; /* by enum dtype */
};

static void add(struct sums *s, enum part part, struct ck_tensor at)
{
	if (!at.t)
		return;
	s->part[part] += at.t->bytes;
	s->type[at.t->type] += at.t->bytes;
}

/* Of experts the codes, scales and shapes stand apart; elsewhere they belong to the part. */
static void add_linear(struct sums *s, enum part part, const struct ck_linear *w)
{
	const bool apart = part == PART_EXPERTS;

	add(s, part, w->plain);
	add(s, part, w->bias);
	add(s, apart ? PART_CODES : part, w->packed);
	add(s, apart ? PART_SCALES : part, w->scales);
	add(s, apart ? PART_SHAPES : part, w->shape);
}

static void add_layer(struct sums *s, const struct config *c, const struct ck_layer *l)
{
	add(s, PART_NORMS, l->input_norm);
	add(s, PART_NORMS, l->post_norm);
	add(s, PART_NORMS, l->q_norm);
	add(s, PART_NORMS, l->k_norm);
	add_linear(s, PART_ATTENTION, &l->q);
	add_linear(s, PART_ATTENTION, &l->k);
	add_linear(s, PART_ATTENTION, &l->v);
	add_linear(s, PART_ATTENTION, &l->o);
	add_linear(s, PART_DENSE, &l->gate);
	add_linear(s, PART_DENSE, &l->up);
	add_linear(s, PART_DENSE, &l->down);
	if (l->dense)
		return;
	add(s, PART_ROUTER, l->router);
	add(s, PART_ROUTER_BIAS, l->router_bias);
	add_linear(s, PART_SHARED, &l->shared_gate);
	add_linear(s, PART_SHARED, &l->shared_up);
	add_linear(s, PART_SHARED, &l->shared_down);
	for (uint32_t e = 0; e < c->experts; e++) {
		add_linear(s, PART_EXPERTS, &l->expert_gate[e]);
		add_linear(s, PART_EXPERTS, &l->expert_up[e]);
		add_linear(s, PART_EXPERTS, &l->expert_down[e]);
	}
}

static void print_bytes(FILE *f, const char *what, uint64_t bytes)
{
	if (bytes)
		fprintf(f, "  %-28s %18llu  %9.4f GiB\n", what, (unsigned long long)bytes,
			(double)bytes / GIB);
}

static void print_weights(FILE *f, const struct checkpoint *ck)
{
	static const char *const types[8] = { [DT_F32] = "F32", [DT_BF16] = "BF16",
					      [DT_F16] = "F16", [DT_I32] = "I32 (int4 codes)",
					      [DT_I64] = "I64", [DT_U32] = "U32" };
	struct sums s = { 0 };

	add(&s, PART_EMBEDDING, ck->embed);
	add(&s, PART_NORMS, ck->norm);
	if (!ck->config.tied_head)
		add_linear(&s, PART_HEAD, &ck->head);
	for (uint32_t i = 0; i < ck->config.layers; i++)
		add_layer(&s, &ck->config, &ck->layers[i]);

	fprintf(f, "weights by part\n");
	for (int i = 0; i < PART_N; i++)
		print_bytes(f, part_names[i], s.part[i]);
	print_bytes(f, "total", ck->bytes);
	fprintf(f, "weights by type\n");
	for (size_t i = 0; i < ARRAY_SIZE(types); i++)
		if (types[i])
			print_bytes(f, types[i], s.type[i]);
}

static void print_dimensions(FILE *f, const struct checkpoint *ck)
{
	const struct config *c = &ck->config;

	fprintf(f, "architecture       glm4_moe, %u layers (%u dense), hidden size %u\n", c->layers,
		c->dense_layers, c->dim);
	fprintf(f,
		"attention          %u query heads, %u key/value heads of %u, %u rotated, theta "
		"%g%s%s\n",
		c->heads, c->kv_heads, c->head_dim, c->rotary, c->rope_theta,
		c->attention_bias ? ", biased" : "", c->qk_norm ? ", q/k norm" : "");
	fprintf(f, "experts            %u of width %u, %u chosen, %u shared; dense width %u\n",
		c->experts, c->moe_ffn_dim, c->top_k, c->shared_experts, c->ffn_dim);
	if (c->groups > 1)
		fprintf(f, "expert groups      %u, %u chosen\n", c->groups, c->top_groups);
	fprintf(f, "vocabulary         %u rows%s\n", c->vocab, c->tied_head ? ", tied head" : "");
	if (c->quantised && c->group)
		fprintf(f, "quantisation       compressed-tensors int4, groups of %u\n", c->group);
	else
		fprintf(f, "quantisation       %s\n",
			c->quantised ? "compressed-tensors int4, a scale a row" : "none");
	fprintf(f, "parameters         %.3f billion, %.3f billion active per token\n",
		(double)ck->parameters / 1e9, (double)ck->active_parameters / 1e9);
	fprintf(f, "tensors            %u in %u files", ck->n_tensors, ck->n_files);
	if (ck->n_ignored_mtp)
		fprintf(f, "; %u of a draft layer left out", ck->n_ignored_mtp);
	fprintf(f, "\n");
}

static uint64_t context_that_fits(const struct checkpoint *ck, uint64_t memory_bytes)
{
	const uint64_t kv = config_kv_bytes(&ck->config, KV_ELEMENT_BYTES);

	if (memory_bytes <= ck->bytes)
		return 0;
	return MIN((memory_bytes - ck->bytes) / kv, ck->config.max_positions);
}

static void print_context(FILE *f, const struct checkpoint *ck, uint64_t memory_bytes)
{
	static const uint32_t usual_gib[] = { 16, 32, 64, 96, 128, 192, 256, 512 };
	uint64_t tokens;

	fprintf(f, "KV cache           %llu bytes per token (bf16), at most %u tokens\n",
		(unsigned long long)config_kv_bytes(&ck->config, KV_ELEMENT_BYTES),
		ck->config.max_positions);
	for (size_t i = 0; i < (memory_bytes ? 1 : ARRAY_SIZE(usual_gib)); i++) {
		const uint64_t memory = memory_bytes ? memory_bytes : (uint64_t)usual_gib[i] << 30;

		tokens = context_that_fits(ck, memory);
		fprintf(f, "  in %8.2f GiB    ", (double)memory / GIB);
		if (tokens)
			fprintf(f, "%llu tokens of context\n", (unsigned long long)tokens);
		else
			fprintf(f, "the weights alone do not fit\n");
		if (tokens == ck->config.max_positions)
			break;
	}
}

static void print_setting(FILE *f, const char *name, double value)
{
	if (!isnan(value))
		fprintf(f, "  %-16s %g\n", name, value);
}

static void print_ids(FILE *f, const char *name, const uint32_t *ids, uint32_t n)
{
	if (!n)
		return;
	fprintf(f, "  %-16s", name);
	for (uint32_t i = 0; i < n; i++)
		fprintf(f, " %u", ids[i]);
	fprintf(f, "\n");
}

static void print_sampling(FILE *f, const struct checkpoint *ck)
{
	const struct generation_config *g = &ck->generation;

	fprintf(f, "sampler defaults found\n");
	if (g->greedy)
		fprintf(f, "  do_sample        false\n");
	print_setting(f, "temperature", g->temperature);
	print_setting(f, "top_p", g->top_p);
	print_setting(f, "min_p", g->min_p);
	print_setting(f, "top_k", g->top_k == UINT32_MAX ? NAN : g->top_k);
	print_setting(f, "repetition", g->repetition_penalty);
	print_ids(f, "stop ids", g->n_eos ? g->eos : ck->config.eos,
		  g->n_eos ? g->n_eos : ck->config.n_eos);
}

static void on_problem(const char *sentence, void *userdata)
{
	fprintf(userdata, "problem: %s\n", sentence);
}

int checkpoint_inspect(const char *dir, uint64_t memory_bytes, FILE *f, struct err *err)
{
	_cleanup_(checkpoint_freep) struct checkpoint *ck = NULL;
	int r;

	fprintf(f, "model              %s\n", dir);
	r = checkpoint_examine(dir, on_problem, f, &ck, err);
	if (r < 0)
		return r;
	print_dimensions(f, ck);
	print_weights(f, ck);
	print_context(f, ck, memory_bytes);
	print_sampling(f, ck);
	for (uint32_t i = 0; i < ck->config.n_warnings; i++)
		fprintf(f, "warning: %s\n", ck->config.warnings[i]);
	if (ck->n_unknown)
		fprintf(f, "warning: %u tensors are not part of the model\n", ck->n_unknown);
	fprintf(f, "no problems\n");
	return 0;
}
