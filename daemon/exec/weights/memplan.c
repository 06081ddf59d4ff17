/* The plan of a GPU's memory; see memplan.h. */
#include "daemon/exec/weights/memplan.h"

#include <errno.h>
#include <string.h>

#include "kernels/cuda/lifetimes.h"
#include "kernels/cuda/pagepool.h"
#include "kernels/linear.h"

#define GIB (1024.0 * 1024 * 1024)
#define TENSOR_ALIGN 256u
#define STRIP_ROWS 16u
#define GROUP_COLS 32u
#define LIST_GRANULE 8u /* rows of one expert are computed by so many */
#define SPLITS 768u	/* pieces that attention is cut into at most, beyond one a row and head */
#define BLAS_BYTES ((size_t)32 << 20)
#define GRAPH_ROWS_MAX 64u /* steps of up to so many rows are recorded */
#define SPOKEN_ROWS 128u   /* rows whose logits are on the device at once */
#define SM_MOST 192u	   /* multiprocessors of the largest card that is reckoned with */
#define MOE_OUT_BYTES (64u << 20)
#define MOE_TILE_ROWS 128u
#define MOE_TABLE_BYTES 52u /* of an expert: where its matrices are, and how many rows it has */
#define MOE_TILE_TOKENS 48u /* of an expert that blocks compute together */
#define MOE_ITEM_BYTES 16u
#define MOE_ROUNDING 4096u
#define COUNTERS_BYTES (64u << 10)
#define BATCH_ROWS_MAX 128u
#define BATCH_ARRAYS 5u
#define BIASES 1024u
#define STOP_IDS 32u
#define SAMPLE_ROW_BYTES 136u
#define KV_ELEMENT_BYTES 2u

void memplan_air(struct memplan_model *ret)
{
	*ret = (struct memplan_model){
		.name = "GLM-4.5-Air",
		.config = {
			.dim = 4096,
			.ffn_dim = 10944,
			.moe_ffn_dim = 1408,
			.shared_experts = 1,
			.layers = 46,
			.dense_layers = 1,
			.heads = 96,
			.kv_heads = 8,
			.head_dim = 128,
			.rotary = 64,
			.experts = 128,
			.top_k = 8,
			.groups = 1,
			.top_groups = 1,
			.attention_bias = true,
			.vocab = 151552,
			.max_positions = 131072,
			.quantised = true,
			.group = 32,
		},
	};
}

const char *memplan_part_name(enum memplan_part part)
{
	static const char *const names[MEMPLAN_PARTS] = {
		[MEMPLAN_EXPERTS] = "routed experts",
		[MEMPLAN_ATTENTION] = "attention",
		[MEMPLAN_SHARED] = "shared experts",
		[MEMPLAN_DENSE] = "dense MLP",
		[MEMPLAN_SMALL] = "routers, norms, biases",
		[MEMPLAN_EMBEDDING] = "embedding",
		[MEMPLAN_HEAD] = "head",
		[MEMPLAN_KV] = "KV cache",
		[MEMPLAN_WORKSPACE] = "workspace",
		[MEMPLAN_SLOTS] = "samplers, step inputs",
		[MEMPLAN_GRAPHS] = "recorded graphs",
		[MEMPLAN_RANKS] = "NCCL",
		[MEMPLAN_DRIVER] = "context and code",
	};

	return names[part];
}

static uint64_t round_up(uint64_t n, uint64_t to)
{
	return (n + to - 1) / to * to;
}

/* Weights of one rank are counted tensor by tensor. */
struct count {
	const struct memplan_model *m;
	uint32_t n_gpus;
	struct memplan *p;
	struct err *err;
	int error; /* of the first tensor that cannot be divided or packed */
};

static enum weight_kind kind_of(const struct ck_linear *w)
{
	struct weight_source src = { .rows = w->rows, .cols = w->cols, .group = w->group };

	src.type = w->plain.t ? w->plain.t->type : w->packed.t->type;
	src.scale_type = w->plain.t ? DT_NONE : w->scales.t->type;
	return weight_kind_of(&src);
}

/* As kernels/linear.h says: strips of 16 rows, columns in groups of 32. */
static uint64_t packed_bytes(enum weight_kind kind, uint64_t rows, uint64_t cols)
{
	const uint64_t n = round_up(rows, STRIP_ROWS) * round_up(cols, GROUP_COLS);

	switch (kind) {
	case WEIGHT_BF16:
		return n * 2;
	case WEIGHT_F32:
		return n * 4;
	case WEIGHT_INT4:
		return n / 2 + n / GROUP_COLS * 2;
	case WEIGHT_INT4_F32:
		return n / 2 + n / GROUP_COLS * 4;
	case WEIGHT_NONE:
		break;
	}
	return 0;
}

static void add(struct count *c, enum memplan_part part, uint64_t bytes, uint64_t times)
{
	c->p->part_bytes[part] += round_up(bytes, TENSOR_ALIGN) * times;
}

static void refuse(struct count *c, enum memplan_part part, uint32_t n, const char *what,
		   uint32_t unit)
{
	if (c->error == 0)
		c->error = err_set(c->err, -ENOTSUP,
				   "%u %s of the %s cannot be divided among %u GPUs "
				   "in multiples of %u",
				   n, what, memplan_part_name(part), c->n_gpus, unit);
}

/* @times matrices of a part; @w of the checkpoint, or NULL: of @assumed kind. */
static void matrix(struct count *c, enum memplan_part part, const struct ck_linear *w,
		   enum weight_kind assumed, uint32_t rows, uint32_t cols, enum split split,
		   uint32_t times)
{
	const enum weight_kind kind = w ? kind_of(w) : assumed;
	const bool by_cols = split == SPLIT_COLS;
	struct share_part share;
	uint32_t unit;

	if (kind == WEIGHT_NONE && c->error == 0)
		c->error = err_set(c->err, -ENOTSUP, "a matrix of the %s cannot be packed",
				   memplan_part_name(part));
	/* the last rank's part is the largest */
	if (share_matrix(rows, cols, kind, split, c->n_gpus - 1, c->n_gpus, &share, &unit) < 0)
		refuse(c, part, by_cols ? cols : rows, by_cols ? "columns" : "rows", unit);
	else
		add(c, part, packed_bytes(kind, share.rows, share.cols), times);
}

/* F32, on every rank. */
static void vector(struct count *c, uint64_t n)
{
	add(c, MEMPLAN_SMALL, n * sizeof(float), 1);
}

static void count_experts(struct count *c, const struct ck_layer *l)
{
	const struct config *k = &c->m->config;
	/* those of which nothing is known are all alike */
	const uint32_t n = l ? k->experts : 1, times = l ? 1 : k->experts;

	for (uint32_t e = 0; e < n; e++) {
		matrix(c, MEMPLAN_EXPERTS, l ? &l->expert_gate[e] : NULL, WEIGHT_INT4,
		       k->moe_ffn_dim, k->dim, SPLIT_ROWS, times);
		matrix(c, MEMPLAN_EXPERTS, l ? &l->expert_up[e] : NULL, WEIGHT_INT4, k->moe_ffn_dim,
		       k->dim, SPLIT_ROWS, times);
		matrix(c, MEMPLAN_EXPERTS, l ? &l->expert_down[e] : NULL, WEIGHT_INT4, k->dim,
		       k->moe_ffn_dim, SPLIT_COLS, times);
	}
}

static void count_mlp(struct count *c, enum memplan_part part, const struct ck_linear *gate,
		      const struct ck_linear *up, const struct ck_linear *down, uint32_t ffn_dim)
{
	const uint32_t dim = c->m->config.dim;

	matrix(c, part, gate, WEIGHT_BF16, ffn_dim, dim, SPLIT_ROWS, 1);
	matrix(c, part, up, WEIGHT_BF16, ffn_dim, dim, SPLIT_ROWS, 1);
	matrix(c, part, down, WEIGHT_BF16, dim, ffn_dim, SPLIT_COLS, 1);
}

static void count_layer(struct count *c, uint32_t i)
{
	const struct ck_layer *l = c->m->checkpoint ? &c->m->checkpoint->layers[i] : NULL;
	const struct config *k = &c->m->config;
	const uint32_t q = k->heads * k->head_dim, kv = k->kv_heads * k->head_dim;

	matrix(c, MEMPLAN_ATTENTION, l ? &l->q : NULL, WEIGHT_BF16, q, k->dim, SPLIT_ROWS, 1);
	matrix(c, MEMPLAN_ATTENTION, l ? &l->k : NULL, WEIGHT_BF16, kv, k->dim, SPLIT_ROWS, 1);
	matrix(c, MEMPLAN_ATTENTION, l ? &l->v : NULL, WEIGHT_BF16, kv, k->dim, SPLIT_ROWS, 1);
	matrix(c, MEMPLAN_ATTENTION, l ? &l->o : NULL, WEIGHT_BF16, k->dim, q, SPLIT_COLS, 1);
	vector(c, k->dim);
	vector(c, k->dim);
	if (k->attention_bias)
		vector(c, (q + 2 * kv) / c->n_gpus);
	if (k->qk_norm)
		vector(c, 2 * k->head_dim);
	if (i < k->dense_layers) {
		count_mlp(c, MEMPLAN_DENSE, l ? &l->gate : NULL, l ? &l->up : NULL,
			  l ? &l->down : NULL, k->ffn_dim);
		return;
	}
	vector(c, (uint64_t)k->experts * k->dim);
	vector(c, k->experts);
	if (k->shared_experts)
		count_mlp(c, MEMPLAN_SHARED, l ? &l->shared_gate : NULL, l ? &l->shared_up : NULL,
			  l ? &l->shared_down : NULL, k->moe_ffn_dim * k->shared_experts);
	count_experts(c, l);
}

static int count_weights(const struct memplan_model *m, struct memplan *p, struct share *ret_share,
			 struct err *err)
{
	struct count c = { .m = m, .n_gpus = p->limits.n_gpus, .p = p, .err = err };
	const struct config *k = &m->config;
	const struct ck_linear embed = { .rows = k->vocab,
					 .cols = k->dim,
					 .plain = m->checkpoint ? m->checkpoint->embed
								: (struct ck_tensor){ 0 } };
	int r;

	/* the last rank's is the largest */
	r = share_make(k, 0, c.n_gpus, "GPUs", ret_share, err);
	if (r == 0)
		r = share_make(k, c.n_gpus - 1, c.n_gpus, "GPUs", ret_share, err);
	if (r < 0)
		return r;
	matrix(&c, MEMPLAN_EMBEDDING, m->checkpoint ? &embed : NULL, WEIGHT_BF16, k->vocab, k->dim,
	       SPLIT_VOCAB, 1);
	/* routed experts, which are the pickiest, before dense layers */
	for (uint32_t i = k->layers; i-- > 0;)
		count_layer(&c, i);
	vector(&c, k->dim);
	if (!k->tied_head)
		matrix(&c, MEMPLAN_HEAD, m->checkpoint ? &m->checkpoint->head : NULL, WEIGHT_BF16,
		       k->vocab, k->dim, SPLIT_VOCAB, 1);
	if (c.error < 0)
		return c.error;
	for (int i = 0; i < MEMPLAN_WEIGHTS_END; i++)
		p->weights_bytes += p->part_bytes[i];
	p->weights_bytes = vram_round(p->weights_bytes);
	return 0;
}

/* Points of a layer, in their order; what is alive at one is there together. */
enum point { BEGIN, QKV, ATTEND, PROJECT, ROUTE, GATE_UP, DOWN, FINISH };

void memplan_buffers(const struct config *c, const struct memplan_limits *limits, uint32_t tokens,
		     struct lifetime *ret)
{
	const size_t n = limits->n_gpus, t = tokens, f32 = sizeof(float);
	const size_t rows = MIN(tokens, limits->max_rows);
	const size_t stream = t * c->dim * f32;
	const size_t heads = c->heads / n * c->head_dim, kv = c->kv_heads / n * c->head_dim;
	const size_t vocab = round_up((c->vocab - 1) / n + 1, STRIP_ROWS);
	const size_t pieces = rows * (c->kv_heads / n) + SPLITS;
	/* of layers with experts, if there are any */
	const size_t moe = c->layers > c->dense_layers;
	const size_t moe_ffn = moe * c->moe_ffn_dim / n;
	const size_t dense_ffn = c->dense_layers ? c->ffn_dim / n : 0;
	const size_t listed = t * c->top_k + (size_t)c->experts * LIST_GRANULE;
	const size_t plain = t > MEMPLAN_PLAIN_TOKENS ? 3 * c->dim * moe_ffn : 0;
	const struct lifetime buffers[MEMPLAN_BUFFERS] = {
		[MEMPLAN_HIDDEN] = { stream, BEGIN, FINISH, 0 },
		[MEMPLAN_NORM] = { stream, BEGIN, QKV, 0 },
		[MEMPLAN_Q] = { t * heads * f32, QKV, ATTEND, 0 },
		[MEMPLAN_K] = { t * kv * f32, QKV, ATTEND, 0 },
		[MEMPLAN_V] = { t * kv * f32, QKV, ATTEND, 0 },
		[MEMPLAN_PARTIALS] = { pieces * (c->heads / c->kv_heads) * (c->head_dim + 2) * f32,
				       ATTEND, ATTEND, 0 },
		[MEMPLAN_ATTENDED] = { t * heads * f32, ATTEND, PROJECT, 0 },
		[MEMPLAN_SUMMED] = { n > 1 ? stream : 0, PROJECT, PROJECT, 0 },
		[MEMPLAN_NORM2] = { stream, ROUTE, GATE_UP, 0 },
		[MEMPLAN_SCORES] = { moe * t * c->experts * f32, ROUTE, ROUTE, 0 },
		[MEMPLAN_CHOSEN] = { moe * t * c->top_k * 2 * f32, ROUTE, DOWN, 0 },
		[MEMPLAN_LISTS] = { moe * (listed + c->experts + 1) * sizeof(uint32_t), ROUTE, DOWN,
				    0 },
		[MEMPLAN_ACTIVATED] = { t * MAX(c->top_k * moe_ffn, dense_ffn) * f32, GATE_UP, DOWN,
					0 },
		[MEMPLAN_SHARED_ACTIVATED] = { t * c->shared_experts * moe_ffn * f32, GATE_UP, DOWN,
					       0 },
		[MEMPLAN_PLAIN] = { plain * sizeof(uint16_t), GATE_UP, DOWN, 0 },
		[MEMPLAN_ADDED] = { stream, DOWN, DOWN, 0 },
		[MEMPLAN_LAST] = { rows * c->dim * f32, FINISH, FINISH, 0 },
		[MEMPLAN_LOGITS] = { rows * vocab * f32, FINISH, FINISH, 0 },
		[MEMPLAN_BLAS] = { BLAS_BYTES, BEGIN, FINISH, 0 },
	};

	memcpy(ret, buffers, sizeof(buffers));
}

static void add_pass(const struct config *c, struct memplan *p, uint32_t tokens, bool decode)
{
	struct lifetime buffers[MEMPLAN_BUFFERS];
	struct memplan_pass *pass = &p->passes[p->n_passes++];

	memplan_buffers(c, &p->limits, tokens, buffers);
	pass->tokens = tokens;
	pass->decode = decode;
	pass->bytes = lifetimes_place(buffers, MEMPLAN_BUFFERS, MEMPLAN_BUFFER_ALIGN);
}

/* What daemon/exec/model carves out of one reservation. */
static uint64_t activation_bytes(const struct config *c, const struct share *s, uint64_t tokens)
{
	const uint64_t widths[] = { c->dim,
				    c->dim,
				    (uint64_t)s->heads * c->head_dim,
				    (uint64_t)s->kv_heads * c->head_dim,
				    (uint64_t)s->kv_heads * c->head_dim,
				    (uint64_t)s->heads * c->head_dim,
				    c->top_k,
				    c->top_k };
	const uint64_t spoken = s->n_ranks > 1 ? SPOKEN_ROWS / 2 : SPOKEN_ROWS;
	uint64_t bytes = 0;

	for (size_t i = 0; i < ARRAY_SIZE(widths); i++)
		bytes += round_up(tokens * widths[i] * sizeof(float), MEMPLAN_BUFFER_ALIGN);
	return vram_round(bytes + round_up(MIN(tokens, spoken) * (uint64_t)s->vocab * sizeof(float),
					   MEMPLAN_BUFFER_ALIGN));
}

/* A batch as two BF16 halves. */
static uint64_t split_bytes(uint64_t rows, uint32_t cols)
{
	return rows * 2 * round_up(cols, 64) * sizeof(uint16_t);
}

/* An MLP of @n chosen experts in all and one that all tokens have. */
static uint64_t moe_bytes(const struct config *c, uint64_t tokens, uint64_t n, uint32_t ffn_dim,
			  uint32_t shared_dim)
{
	const uint64_t fit = MOE_OUT_BYTES / sizeof(float) / (n + tokens) / MOE_TILE_ROWS *
			     MOE_TILE_ROWS;
	const uint64_t rows = MIN((uint64_t)c->dim, MAX(fit, (uint64_t)MOE_TILE_ROWS));

	return split_bytes(tokens, c->dim) + split_bytes(n, ffn_dim) +
	       split_bytes(tokens, shared_dim) + (n + tokens) * rows * sizeof(float) +
	       (n ? (uint64_t)c->experts * (tokens * sizeof(uint32_t) + MOE_TABLE_BYTES) : 0) +
	       (c->experts + n / MOE_TILE_TOKENS) * MOE_ITEM_BYTES + MOE_ROUNDING;
}

/* What kernels/cuda asks for, op_scratch(): the most that an operation needs at a time. */
static uint64_t scratch_bytes(const struct config *c, const struct share *s, uint64_t tokens)
{
	const uint32_t wide = MAX(s->ffn_dim, MAX(s->moe_ffn_dim, s->shared_ffn_dim));
	const uint32_t expert = MAX(s->moe_ffn_dim, s->shared_ffn_dim);
	const uint32_t cols = MAX(c->dim, s->heads * c->head_dim);
	const uint64_t heads = (uint64_t)s->kv_heads *
			       ((s->heads / s->kv_heads - 1) / STRIP_ROWS + 1);
	const uint64_t needs[] = {
		moe_bytes(c, tokens, tokens * c->top_k, expert, expert),
		moe_bytes(c, tokens, 0, 0, wide),
		split_bytes(tokens, cols) + (uint64_t)2 * SM_MOST * MOE_TILE_ROWS * 64 * 4,
		(tokens + 2 * SM_MOST / heads) * heads * STRIP_ROWS * (c->head_dim + 2) * 4,
	};
	uint64_t most = 0;

	for (size_t i = 0; i < ARRAY_SIZE(needs); i++)
		most = MAX(most, needs[i]);
	return vram_round(most);
}

static uint64_t table_pages(const struct memplan_limits *l)
{
	return (l->context_tokens - 1) / l->page_tokens + 1;
}

/* Of a stream: what its operations share, and the batch on its way. */
static uint64_t stream_bytes(const struct memplan_limits *l, uint64_t tokens)
{
	const uint64_t words = MAX(2 * tokens, MIN(tokens, BATCH_ROWS_MAX) * table_pages(l));

	return vram_round(COUNTERS_BYTES) +
	       (BATCH_ARRAYS - 1) * vram_round(2 * tokens * sizeof(uint32_t)) +
	       vram_round(words * sizeof(uint32_t));
}

static void count_passes(const struct config *c, const struct share *s, struct memplan *p)
{
	const uint32_t tokens = MAX(p->limits.batch_tokens, p->limits.max_rows);
	uint32_t rows = 1;

	for (; rows < p->limits.max_rows; rows *= 2)
		add_pass(c, p, rows, true);
	add_pass(c, p, p->limits.max_rows, true);
	add_pass(c, p, tokens, false);
	p->part_bytes[MEMPLAN_WORKSPACE] = activation_bytes(c, s, tokens) +
					   scratch_bytes(c, s, tokens) +
					   stream_bytes(&p->limits, tokens);
	/* a step of each number of rows; of several ranks none is recorded */
	if (p->limits.n_gpus == 1)
		p->part_bytes[MEMPLAN_GRAPHS] = vram_round(
			(uint64_t)MIN(p->limits.max_rows, GRAPH_ROWS_MAX) *
			(c->layers * (MEMPLAN_KERNELS_PER_LAYER + MEMPLAN_KERNELS_OF_LIBRARY) +
			 MEMPLAN_KERNELS_AROUND) *
			MEMPLAN_NODE_BYTES);
}

/* Of each slot biases, stop ids, and of every token how often it was there; of several ranks the host samples. */
static uint64_t slots_bytes(const struct config *c, const struct memplan_limits *l)
{
	const uint64_t slot = (uint64_t)BIASES * 8 + round_up(STOP_IDS * 4, MEMPLAN_BUFFER_ALIGN) +
			      round_up((uint64_t)c->vocab * 8, MEMPLAN_BUFFER_ALIGN);

	return l->n_gpus > 1 ? 0
			     : vram_round(l->max_rows * slot + SPOKEN_ROWS * SAMPLE_ROW_BYTES +
					  l->context_tokens * sizeof(uint32_t));
}

static uint64_t pool_bytes(const struct memplan *p, uint32_t n_pages)
{
	const uint32_t group = n_pages ? pagepool_group_pages(p->page_bytes, n_pages) : 1;

	return round_up(n_pages, group) * p->page_bytes;
}

/* The most tokens whose pages fit into @room. */
static uint32_t most_tokens(const struct config *c, const struct memplan *p, uint64_t room)
{
	uint32_t low = 0, high = (c->max_positions - 1) / p->limits.page_tokens + 1;

	while (low < high) {
		const uint32_t n = low + (high - low + 1) / 2;

		if (pool_bytes(p, n) <= room)
			low = n;
		else
			high = n - 1;
	}
	return MIN(low * p->limits.page_tokens, c->max_positions);
}

static int check_limits(const struct memplan_limits *l, struct err *err)
{
	if (l->n_gpus == 0 || l->n_gpus > MEMPLAN_GPUS_MAX)
		return err_set(err, -EINVAL, "%u GPUs; from 1 to %u are possible", l->n_gpus,
			       MEMPLAN_GPUS_MAX);
	if (l->context_tokens == 0 || l->page_tokens == 0 || l->max_rows == 0 ||
	    l->batch_tokens == 0)
		return err_set(err, -EINVAL,
			       "a context of %u tokens in pages of %u, %u rows and %u tokens a "
			       "step make no plan",
			       l->context_tokens, l->page_tokens, l->max_rows, l->batch_tokens);
	return 0;
}

uint32_t memplan_group_pages(size_t page_bytes, uint32_t n_pages)
{
	return pagepool_group_pages(page_bytes, n_pages);
}

int memplan_make(const struct memplan_model *m, const struct memplan_limits *limits,
		 struct memplan *ret, struct err *err)
{
	const struct config *c = &m->config;
	struct memplan p = { .limits = *limits };
	struct share share;
	uint64_t others;
	int r;

	r = check_limits(limits, err);
	if (r == 0)
		r = count_weights(m, &p, &share, err);
	if (r < 0)
		return r;

	p.page_bytes = config_kv_bytes(c, KV_ELEMENT_BYTES) / limits->n_gpus * limits->page_tokens;
	if (p.page_bytes % PAGEPOOL_PAGE_ALIGN)
		return err_set(err, -ENOTSUP, "a KV page of %llu bytes is no multiple of %u",
			       (unsigned long long)p.page_bytes, PAGEPOOL_PAGE_ALIGN);
	p.n_pages = (limits->context_tokens - 1) / limits->page_tokens + 1;
	p.group_pages = pagepool_group_pages(p.page_bytes, p.n_pages);
	p.part_bytes[MEMPLAN_KV] = pool_bytes(&p, p.n_pages);
	count_passes(c, &share, &p);
	p.part_bytes[MEMPLAN_SLOTS] = slots_bytes(c, limits);
	if (limits->n_gpus > 1)
		p.part_bytes[MEMPLAN_RANKS] = MEMPLAN_RANKS_BYTES +
					      limits->n_gpus * MEMPLAN_RANK_BYTES;
	p.part_bytes[MEMPLAN_DRIVER] = MEMPLAN_CONTEXT_BYTES;

	p.total_bytes = p.weights_bytes;
	for (int i = MEMPLAN_WEIGHTS_END; i < MEMPLAN_PARTS; i++)
		p.total_bytes += p.part_bytes[i];
	p.spare_bytes = (int64_t)(limits->card_bytes - p.total_bytes);
	others = p.total_bytes - p.part_bytes[MEMPLAN_KV];
	if (limits->card_bytes > others)
		p.context_fits = most_tokens(c, &p, limits->card_bytes - others);
	*ret = p;
	return 0;
}

int memplan_fits(const struct memplan *p, struct err *err)
{
	const double wanted = -(double)p->spare_bytes / GIB;

	if (p->spare_bytes >= 0)
		return 0;
	if (p->context_fits == 0)
		return err_set(err, -ENOSPC,
			       "no context fits: each GPU wants %.2f GiB more for %u tokens, %.2f "
			       "GiB for the "
			       "rest alone",
			       wanted, p->limits.context_tokens,
			       wanted - (double)p->part_bytes[MEMPLAN_KV] / GIB);
	return err_set(err, -ENOSPC,
		       "%u tokens of context do not fit: each GPU wants %.2f GiB more; %u tokens "
		       "would fit",
		       p->limits.context_tokens, wanted, p->context_fits);
}

static void print_bytes(FILE *f, const char *what, double bytes, const char *more)
{
	fprintf(f, "  %-24s %9.3f GiB%s\n", what, bytes / GIB, more);
}

void memplan_print(const struct memplan *p, const struct memplan_model *m, FILE *f)
{
	const struct memplan_limits *l = &p->limits;
	char more[160];

	fprintf(f, "model              %s: %u layers, %u experts\n", m->name, m->config.layers,
		m->config.experts);
	fprintf(f, "GPUs               %u, %.3f GiB each\n", l->n_gpus,
		(double)l->card_bytes / GIB);
	fprintf(f, "context            %u tokens, %u sequences at once, %u tokens a step\n",
		l->context_tokens, l->max_rows, l->batch_tokens);
	fprintf(f, "on each GPU\n");
	for (int i = 0; i < MEMPLAN_PARTS; i++) {
		more[0] = '\0';
		if (i == MEMPLAN_KV)
			snprintf(more, sizeof(more), "  %u pages of %.3f MiB, in groups of %u",
				 p->n_pages, (double)p->page_bytes / (1 << 20), p->group_pages);
		if (i == MEMPLAN_GRAPHS || i == MEMPLAN_RANKS || i == MEMPLAN_DRIVER)
			snprintf(more, sizeof(more), "  assumed");
		if (p->part_bytes[i])
			print_bytes(f, memplan_part_name(i), (double)p->part_bytes[i], more);
	}
	print_bytes(f, "total", (double)p->total_bytes, "");
	print_bytes(f, "to spare", (double)p->spare_bytes, "");
	fprintf(f, "longest context    %u tokens\n", p->context_fits);
	fprintf(f, "passes, which share the workspace\n");
	for (uint32_t i = 0; i < p->n_passes; i++) {
		snprintf(more, sizeof(more), "%u %s", p->passes[i].tokens,
			 p->passes[i].decode ? "decoding" : "tokens");
		print_bytes(f, more, (double)p->passes[i].bytes, "");
	}
}

int memplan_card_bytes(const char *text, uint64_t *ret, struct err *err)
{
	static const struct {
		const char *unit;
		double bytes;
	} units[] = { { "GB", GIB },
		      { "GiB", GIB },
		      { "G", GIB },
		      { "MiB", 1024.0 * 1024 },
		      { "M", 1024.0 * 1024 } };
	char *end = NULL;
	const double n = strtod(text, &end);

	for (size_t i = 0; i < ARRAY_SIZE(units) && end != text; i++) {
		double bytes = n * units[i].bytes;

		if (strcmp(end, units[i].unit) != 0)
			continue;
		if (i == 0)
			bytes -= bytes / 120 + GIB / 4;
		if (!(bytes >= 1 && bytes < 1e15))
			break;
		*ret = (uint64_t)bytes;
		return 0;
	}
	return err_set(
		err, -EINVAL,
		"'%.40s' is no size of a GPU's memory; 96GB (as it is sold) or 94.5GiB would be",
		text);
}
