/*
 * Opening a checkpoint directory: its texts, its files, and which of their
 * tensors is which part of the model.
 */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>

#include "daemon/exec/weights/checkpoint.h"

#define INDEX_TEXT_MAX (100u << 20)
#define NAME_MAX_BYTES 160
#define PLAIN_TYPES "BF16, F16 or F32"

/* A tensor by name, over all files. */
struct entry {
	const char *name;
	struct ck_tensor where;
	bool used;
};

struct reader {
	struct checkpoint *c;
	struct entry *entries; /* sorted by name */
	uint32_t n_entries;
	char *listing; /* path of what lists the tensors: the index, or the only file */
	checkpoint_problem_fn on_problem; /* NULL: the first one ends it */
	void *userdata;
	uint32_t n_problems;
	struct err first;
};

/* Notes a problem. Reading goes on where there is somebody to hear of the next. */
static void _printf_(3, 4) complain(struct reader *x, int code, const char *format, ...)
{
	struct err e = { 0 };
	char text[ERR_TEXT_MAX];
	va_list ap;

	va_start(ap, format);
	vsnprintf(text, sizeof(text), format, ap);
	va_end(ap);
	err_set(&e, code, "%s", text);
	if (x->n_problems++ == 0)
		x->first = e;
	if (x->on_problem && x->n_problems <= CHECKPOINT_PROBLEMS_MAX)
		x->on_problem(e.text, x->userdata);
}

static bool gave_up(const struct reader *x)
{
	return x->n_problems && (!x->on_problem || x->n_problems > CHECKPOINT_PROBLEMS_MAX);
}

int checkpoint_read_text(const char *dir, const char *name, size_t bytes_max, char **ret,
			 size_t *ret_len, struct err *err)
{
	_cleanup_(freep) char *path = NULL, *text = NULL;
	_cleanup_(closep) int fd = -1;
	struct stat st;
	size_t n = 0;

	if (asprintf(&path, "%s/%s", dir, name) < 0)
		return path = NULL, -ENOMEM;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0 || fstat(fd, &st) < 0)
		return err_set(err, -errno, "cannot open '%s': %s", path, strerror(errno));
	if (!S_ISREG(st.st_mode))
		return err_set(err, -EBADMSG, "'%s': not a regular file", path);
	if ((uint64_t)st.st_size > bytes_max)
		return err_set(err, -EBADMSG, "'%s': %lld bytes, wanted at most %zu", path,
			       (long long)st.st_size, bytes_max);
	text = malloc((size_t)st.st_size + 1);
	if (!text)
		return -ENOMEM;
	while (n < (size_t)st.st_size) {
		ssize_t k = pread(fd, text + n, (size_t)st.st_size - n, (off_t)n);

		if (k < 0 && errno == EINTR)
			continue;
		if (k <= 0)
			return err_set(err, -EIO, "'%s': cannot read byte %zu", path, n);
		n += (size_t)k;
	}
	text[n] = '\0';
	*ret = steal(text);
	*ret_len = n;
	return 0;
}

static int read_config(struct checkpoint *c, struct err *err)
{
	int r;

	r = checkpoint_read_text(c->dir, "config.json", CONFIG_TEXT_MAX, &c->config_text,
				 &c->config_len, err);
	if (r < 0)
		return r;
	r = config_parse(c->config_text, c->config_len, &c->config, err);
	return r < 0 ? err_wrap(err, r, "'%s/config.json'", c->dir) : 0;
}

static int read_generation(struct checkpoint *c, struct err *err)
{
	_cleanup_(freep) char *text = NULL;
	size_t len;
	int r;

	c->generation = (struct generation_config){
		.temperature = NAN,
		.top_p = NAN,
		.min_p = NAN,
		.repetition_penalty = NAN,
		.top_k = UINT32_MAX,
	};
	r = checkpoint_read_text(c->dir, "generation_config.json", CONFIG_TEXT_MAX, &text, &len,
				 err);
	if (r == -ENOENT)
		return 0;
	if (r < 0)
		return r;
	r = generation_config_parse(text, len, &c->generation, err);
	return r < 0 ? err_wrap(err, r, "'%s/generation_config.json'", c->dir) : 0;
}

static void open_file(struct reader *x, const char *name)
{
	struct checkpoint *c = x->c;
	_cleanup_(freep) char *path = NULL;
	struct err e = { 0 };
	int r;

	r = asprintf(&path, "%s/%s", c->dir, name);
	if (r < 0) {
		path = NULL;
		return complain(x, -ENOMEM, "no memory for a path");
	}
	r = st_file_open(path, &c->files[c->n_files], &e);
	if (r < 0)
		return complain(x, r, "%s", e.code ? e.text : strerror(-r));
	c->n_files++;
}

static struct entry *find_entry(const struct reader *x, const char *name)
{
	uint32_t low = 0, high = x->n_entries;

	while (low < high) {
		const uint32_t middle = low + (high - low) / 2;
		const int order = strcmp(x->entries[middle].name, name);

		if (order == 0)
			return &x->entries[middle];
		if (order < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return NULL;
}

static int by_name(const void *a, const void *b)
{
	const struct entry *x = a, *y = b;
	const int order = strcmp(x->name, y->name);

	return order ? order : strcmp(st_file_path(x->where.file), st_file_path(y->where.file));
}

/* All tensors of all files in one table; a name may be in one file only. */
static void collect(struct reader *x)
{
	struct checkpoint *c = x->c;
	size_t n = 0;

	for (uint32_t i = 0; i < c->n_files; i++)
		n += st_file_count(c->files[i]);
	x->entries = calloc(n + 1, sizeof(*x->entries));
	if (!x->entries)
		return complain(x, -ENOMEM, "no memory for the names of %zu tensors", n);
	for (uint32_t i = 0; i < c->n_files; i++)
		for (uint32_t k = 0; k < st_file_count(c->files[i]); k++) {
			const struct st_tensor *t = st_file_at(c->files[i], k);

			x->entries[x->n_entries++] = (struct entry){ .name = t->name,
								     .where = { c->files[i], t } };
		}
	qsort(x->entries, x->n_entries, sizeof(*x->entries), by_name);
	for (uint32_t i = 1; i < x->n_entries && !gave_up(x); i++)
		if (strcmp(x->entries[i - 1].name, x->entries[i].name) == 0)
			complain(x, -EBADMSG, "tensor '%.*s' is in both '%s' and '%s'",
				 NAME_MAX_BYTES, x->entries[i].name,
				 st_file_path(x->entries[i - 1].where.file),
				 st_file_path(x->entries[i].where.file));
}

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

/* What the index says has to be so. */
static void check_index(struct reader *x, const struct st_index *index)
{
	for (uint32_t i = 0; i < index->n_tensors && !gave_up(x); i++) {
		const struct entry *e = find_entry(x, index->tensors[i]);
		const char *file = index->files[index->in[i]];

		if (!e)
			complain(x, -EBADMSG,
				 "'%s' has tensor '%.*s' in '%s', which does not have it",
				 x->listing, NAME_MAX_BYTES, index->tensors[i], file);
		else if (strcmp(base_name(st_file_path(e->where.file)), file) != 0)
			complain(x, -EBADMSG, "'%s' has tensor '%.*s' in '%s', but it is in '%s'",
				 x->listing, NAME_MAX_BYTES, index->tensors[i], file,
				 base_name(st_file_path(e->where.file)));
	}
}

static void open_files(struct reader *x)
{
	struct checkpoint *c = x->c;
	_cleanup_(st_index_freep) struct st_index *index = NULL;
	_cleanup_(freep) char *text = NULL;
	struct err e = { 0 };
	size_t len;
	int r;

	r = checkpoint_read_text(c->dir, "model.safetensors.index.json", INDEX_TEXT_MAX, &text,
				 &len, &e);
	if (r == 0) {
		r = st_index_parse(text, len, &index, &e);
		if (r < 0)
			err_wrap(&e, r, "'%s/model.safetensors.index.json'", c->dir);
	}
	if (r < 0 && r != -ENOENT)
		return complain(x, r, "%s", e.code ? e.text : strerror(-r));
	if (asprintf(&x->listing, "%s/%s", c->dir,
		     index ? "model.safetensors.index.json" : "model.safetensors") < 0) {
		x->listing = NULL;
		return complain(x, -ENOMEM, "no memory for a path");
	}

	c->files = calloc(index ? index->n_files : 1, sizeof(struct st_file *));
	if (!c->files)
		return complain(x, -ENOMEM, "no memory for the list of files");
	if (!index)
		open_file(x, "model.safetensors");
	for (uint32_t i = 0; index && i < index->n_files && !gave_up(x); i++)
		open_file(x, index->files[i]);
	if (x->n_problems) /* what a lost file had would only repeat that it is lost */
		return;
	collect(x);
	if (index && !gave_up(x))
		check_index(x, index);
}

static struct ck_tensor take(struct reader *x, const char *name)
{
	struct entry *e = find_entry(x, name);

	if (!e)
		return (struct ck_tensor){ 0 };
	if (!e->used)
		x->c->bytes += e->where.t->bytes;
	e->used = true;
	return e->where;
}

static bool is_plain(enum dtype type)
{
	return type == DT_BF16 || type == DT_F16 || type == DT_F32;
}

/* @cols 0: a vector. */
static bool is_shape(const struct st_tensor *t, uint32_t rows, uint32_t cols)
{
	return t->rank == (cols ? 2 : 1) && t->shape[0] == rows && (!cols || t->shape[1] == cols);
}

static void check_tensor(struct reader *x, struct ck_tensor at, uint32_t rows, uint32_t cols,
			 bool type_fits, const char *types)
{
	char found[128], wanted[40];

	if (is_shape(at.t, rows, cols) && type_fits)
		return;
	snprintf(wanted, sizeof(wanted), cols ? "[%u, %u]" : "[%u]", rows, cols);
	complain(x, -EBADMSG, "'%s': tensor '%.*s' is %s, wanted %s %s", st_file_path(at.file),
		 NAME_MAX_BYTES, at.t->name, st_tensor_describe(at.t, found, sizeof(found)), types,
		 wanted);
}

static void missing(struct reader *x, const char *name, const char *wanted)
{
	complain(x, -EBADMSG, "'%s': tensor '%s' is missing, wanted %s", x->listing, name, wanted);
}

/* A tensor of BF16, F16 or F32 that has to be there unless @optional. */
static struct ck_tensor plain(struct reader *x, uint32_t rows, uint32_t cols, bool optional,
			      const char *name)
{
	struct ck_tensor at = take(x, name);
	char wanted[60];

	if (at.t) {
		check_tensor(x, at, rows, cols, is_plain(at.t->type), PLAIN_TYPES);
	} else if (!optional) {
		snprintf(wanted, sizeof(wanted), cols ? "[%u, %u]" : "[%u]", rows, cols);
		missing(x, name, wanted);
	}
	return at;
}

static const struct {
	const char *suffix, *what;
} foreign[] = {
	{ "weight_g_idx", "columns in the order of activations (actorder group)" },
	{ "weight_zero_point", "asymmetric quantisation" },
	{ "qweight", "AutoAWQ or GPTQ packing" },
	{ "weight_scale_inv", "FP8 weights" },
};

/* Packed int4: codes, scales, and the shape they stand for. */
static void read_packed(struct reader *x, const char *prefix, struct ck_linear *w)
{
	char name[NAME_MAX_BYTES], scales[NAME_MAX_BYTES], shape[NAME_MAX_BYTES];
	const struct config *c = &x->c->config;

	snprintf(name, sizeof(name), "%s.weight_packed", prefix);
	snprintf(scales, sizeof(scales), "%s.weight_scale", prefix);
	snprintf(shape, sizeof(shape), "%s.weight_shape", prefix);
	if (!c->quantised)
		return complain(
			x, -EBADMSG,
			"'%s': tensor '%s' is packed, but config.json has no quantization_config",
			st_file_path(w->packed.file), name);
	w->group = c->group ? c->group : w->cols;
	if (w->cols % w->group)
		return complain(
			x, -ENOTSUP,
			"'%s': tensor '%s' has %u columns, wanted a multiple of the group size %u",
			st_file_path(w->packed.file), name, w->cols, w->group);

	check_tensor(x, w->packed, w->rows, (w->cols + 7) / 8, w->packed.t->type == DT_I32, "I32");
	w->scales = plain(x, w->rows, w->cols / w->group, false, scales);
	w->shape = take(x, shape);
	if (!w->shape.t)
		return missing(x, shape, "I64 or I32 [2]");
	check_tensor(x, w->shape, 2, 0, w->shape.t->type == DT_I64 || w->shape.t->type == DT_I32,
		     "I64 or I32");
}

static void linear(struct reader *x, const char *prefix, uint32_t rows, uint32_t cols, bool biased,
		   struct ck_linear *w)
{
	char name[NAME_MAX_BYTES], packed[NAME_MAX_BYTES];

	if (gave_up(x))
		return;
	w->rows = rows;
	w->cols = cols;
	for (size_t i = 0; i < ARRAY_SIZE(foreign); i++) {
		snprintf(name, sizeof(name), "%s.%s", prefix, foreign[i].suffix);
		if (find_entry(x, name))
			return complain(x, -ENOTSUP,
					"'%s': tensor '%s' is of %s, wanted symmetric int4 "
					"'weight_packed' or a plain 'weight'",
					st_file_path(find_entry(x, name)->where.file), name,
					foreign[i].what);
	}
	snprintf(name, sizeof(name), "%s.bias", prefix);
	if (biased)
		w->bias = plain(x, rows, 0, true, name);
	else if (find_entry(x, name))
		complain(x, -ENOTSUP, "'%s': tensor '%s' is there, wanted no bias",
			 st_file_path(find_entry(x, name)->where.file), name);

	snprintf(name, sizeof(name), "%s.weight", prefix);
	snprintf(packed, sizeof(packed), "%s.weight_packed", prefix);
	w->plain = take(x, name);
	w->packed = take(x, packed);
	if (w->plain.t && w->packed.t)
		return complain(x, -EBADMSG,
				"'%s': tensors '%s' and '%s' are both there, wanted one",
				st_file_path(w->packed.file), name, packed);
	if (!w->plain.t && !w->packed.t)
		return complain(x, -EBADMSG,
				"'%s': neither tensor '%s' nor '%s' is there, wanted [%u, %u]",
				x->listing, name, packed, rows, cols);
	if (w->plain.t)
		check_tensor(x, w->plain, rows, cols, is_plain(w->plain.t->type), PLAIN_TYPES);
	else
		read_packed(x, prefix, w);
}

static void _printf_(6, 7) linear_at(struct reader *x, uint32_t rows, uint32_t cols, bool biased,
				     struct ck_linear *w, const char *format, ...)
{
	char prefix[NAME_MAX_BYTES - 20];
	va_list ap;

	va_start(ap, format);
	vsnprintf(prefix, sizeof(prefix), format, ap);
	va_end(ap);
	linear(x, prefix, rows, cols, biased, w);
}

static struct ck_tensor _printf_(5, 6) plain_at(struct reader *x, uint32_t rows, uint32_t cols,
						bool optional, const char *format, ...)
{
	char name[NAME_MAX_BYTES];
	va_list ap;

	va_start(ap, format);
	vsnprintf(name, sizeof(name), format, ap);
	va_end(ap);
	return plain(x, rows, cols, optional, name);
}

/* Presence in layer 0 decides; the other layers have to agree with it. */
static void check_presence(struct reader *x, uint32_t i, const char *what, struct ck_tensor at,
			   struct ck_tensor first)
{
	if (!at.t == !first.t)
		return;
	complain(x, -EBADMSG,
		 "'%s': tensor 'model.layers.%u.self_attn.%s' is %s, wanted as in layer 0",
		 at.t ? st_file_path(at.file) : x->listing, i, what, at.t ? "there" : "missing");
}

static void read_attention(struct reader *x, uint32_t i, struct ck_layer *l)
{
	const struct config *c = &x->c->config;
	const uint32_t q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
	const struct ck_layer *first = &x->c->layers[0];

	linear_at(x, q, c->dim, true, &l->q, "model.layers.%u.self_attn.q_proj", i);
	linear_at(x, kv, c->dim, true, &l->k, "model.layers.%u.self_attn.k_proj", i);
	linear_at(x, kv, c->dim, true, &l->v, "model.layers.%u.self_attn.v_proj", i);
	linear_at(x, c->dim, q, true, &l->o, "model.layers.%u.self_attn.o_proj", i);
	l->q_norm = plain_at(x, c->head_dim, 0, true, "model.layers.%u.self_attn.q_norm.weight", i);
	l->k_norm = plain_at(x, c->head_dim, 0, true, "model.layers.%u.self_attn.k_norm.weight", i);
	check_presence(x, i, "q_proj.bias", l->q.bias, first->q.bias);
	check_presence(x, i, "k_proj.bias", l->k.bias, first->q.bias);
	check_presence(x, i, "v_proj.bias", l->v.bias, first->q.bias);
	check_presence(x, i, "o_proj.bias", l->o.bias, first->o.bias);
	check_presence(x, i, "q_norm.weight", l->q_norm, first->q_norm);
	check_presence(x, i, "k_norm.weight", l->k_norm, first->q_norm);
}

static void read_mlp(struct reader *x, const char *prefix, uint32_t width, struct ck_linear *gate,
		     struct ck_linear *up, struct ck_linear *down)
{
	const uint32_t dim = x->c->config.dim;

	linear_at(x, width, dim, false, gate, "%s.gate_proj", prefix);
	linear_at(x, width, dim, false, up, "%s.up_proj", prefix);
	linear_at(x, dim, width, false, down, "%s.down_proj", prefix);
}

static bool read_moe(struct reader *x, uint32_t i, struct ck_layer *l)
{
	const struct config *c = &x->c->config;
	char prefix[80];

	snprintf(prefix, sizeof(prefix), "model.layers.%u.mlp.experts.gate_up_proj", i);
	if (find_entry(x, prefix)) {
		complain(x, -ENOTSUP,
			 "'%s': tensor '%s' has all experts in one, wanted 'experts.0.gate_proj' "
			 "and so on",
			 st_file_path(find_entry(x, prefix)->where.file), prefix);
		return false;
	}
	l->expert_gate = calloc(c->experts, sizeof(struct ck_linear));
	l->expert_up = calloc(c->experts, sizeof(struct ck_linear));
	l->expert_down = calloc(c->experts, sizeof(struct ck_linear));
	if (!l->expert_gate || !l->expert_up || !l->expert_down) {
		complain(x, -ENOMEM, "no memory for the experts of layer %u", i);
		return false;
	}
	l->router = plain_at(x, c->experts, c->dim, false, "model.layers.%u.mlp.gate.weight", i);
	l->router_bias = plain_at(x, c->experts, 0, false,
				  "model.layers.%u.mlp.gate.e_score_correction_bias", i);
	for (uint32_t e = 0; e < c->experts && !gave_up(x); e++) {
		snprintf(prefix, sizeof(prefix), "model.layers.%u.mlp.experts.%u", i, e);
		read_mlp(x, prefix, c->moe_ffn_dim, &l->expert_gate[e], &l->expert_up[e],
			 &l->expert_down[e]);
	}
	snprintf(prefix, sizeof(prefix), "model.layers.%u.mlp.shared_experts", i);
	if (c->shared_experts)
		read_mlp(x, prefix, c->moe_ffn_dim * c->shared_experts, &l->shared_gate,
			 &l->shared_up, &l->shared_down);
	return true;
}

static void read_layer(struct reader *x, uint32_t i)
{
	const struct config *c = &x->c->config;
	struct ck_layer *l = &x->c->layers[i];
	char prefix[60];

	l->input_norm = plain_at(x, c->dim, 0, false, "model.layers.%u.input_layernorm.weight", i);
	l->post_norm = plain_at(x, c->dim, 0, false,
				"model.layers.%u.post_attention_layernorm.weight", i);
	read_attention(x, i, l);
	l->dense = i < c->dense_layers;
	if (!l->dense) {
		read_moe(x, i, l);
		return;
	}
	snprintf(prefix, sizeof(prefix), "model.layers.%u.mlp", i);
	read_mlp(x, prefix, c->ffn_dim, &l->gate, &l->up, &l->down);
}

/* A file without head_dim: the query projection of layer 0 has heads * head_dim rows. */
static bool settle_head_dim(struct reader *x)
{
	struct config *c = &x->c->config;
	const struct entry *e;
	struct err err = { 0 };
	int r;

	if (c->head_dim)
		return true;
	e = find_entry(x, "model.layers.0.self_attn.q_proj.weight");
	if (!e)
		e = find_entry(x, "model.layers.0.self_attn.q_proj.weight_packed");
	if (!e || e->where.t->rank != 2 || e->where.t->shape[0] % c->heads) {
		complain(x, -EBADMSG,
			 "'%s/config.json': 'head_dim' is missing, and the query projection of "
			 "layer 0 has no multiple of %u rows",
			 x->c->dir, c->heads);
		return false;
	}
	r = config_set_head_dim(c, e->where.t->shape[0] / c->heads, &err);
	if (r < 0)
		complain(x, r, "'%s/config.json': %s", x->c->dir, err.text);
	return r == 0;
}

static void read_model(struct reader *x)
{
	struct checkpoint *ck = x->c;
	struct config *c = &ck->config;
	struct ck_tensor none = { 0 };

	if (!settle_head_dim(x))
		return;
	ck->layers = calloc(c->layers, sizeof(*ck->layers));
	if (!ck->layers)
		return complain(x, -ENOMEM, "no memory for %u layers", c->layers);

	ck->embed = plain(x, c->vocab, c->dim, false, "model.embed_tokens.weight");
	ck->norm = plain(x, c->dim, 0, false, "model.norm.weight");
	if (c->tied_head) {
		take(x, "lm_head.weight"); /* some writers repeat it */
		ck->head = (struct ck_linear){ c->vocab, c->dim, ck->embed, none,
					       none,	 none,	 0,	    none };
	} else {
		linear(x, "lm_head", c->vocab, c->dim, false, &ck->head);
	}
	for (uint32_t i = 0; i < c->layers && !gave_up(x); i++)
		read_layer(x, i);
	if (x->n_problems)
		return;

	if (!ck->layers[0].q.bias.t != !c->attention_bias)
		config_warn(c, "'attention_bias' is %s, but the biases are %s",
			    c->attention_bias ? "true" : "false",
			    ck->layers[0].q.bias.t ? "there" : "missing");
	if (!ck->layers[0].q_norm.t != !c->qk_norm)
		config_warn(c, "'use_qk_norm' is %s, but the norms are %s",
			    c->qk_norm ? "true" : "false",
			    ck->layers[0].q_norm.t ? "there" : "missing");
	c->attention_bias = ck->layers[0].q.bias.t;
	c->qk_norm = ck->layers[0].q_norm.t;
}

/* Sorts what was not asked for: layers of the draft model behind the last one, and the rest. */
static void count_rest(struct reader *x)
{
	struct checkpoint *c = x->c;
	unsigned int layer;
	int end;

	for (uint32_t i = 0; i < x->n_entries; i++) {
		const struct entry *e = &x->entries[i];

		if (e->used) {
			c->n_tensors++;
			continue;
		}
		end = 0;
		if (sscanf(e->name, "model.layers.%6u.%n", &layer, &end) == 1 && end > 0 &&
		    layer >= c->config.layers) {
			c->n_ignored_mtp++;
			continue;
		}
		if (c->n_unknown++ == 0)
			config_warn(&c->config, "tensor '%.80s' is not part of the model", e->name);
	}
}

static uint64_t parameters_of(const struct ck_linear *w)
{
	return (uint64_t)w->rows * w->cols + (w->bias.t ? w->rows : 0);
}

static void count_parameters(struct checkpoint *ck)
{
	const struct config *c = &ck->config;
	const uint64_t table = (uint64_t)c->vocab * c->dim;
	uint64_t all = c->dim, active = c->dim, expert;

	for (uint32_t i = 0; i < c->layers; i++) {
		const struct ck_layer *l = &ck->layers[i];
		uint64_t fixed = 2 * (uint64_t)c->dim + (l->q_norm.t ? 2 * c->head_dim : 0);

		fixed += parameters_of(&l->q) + parameters_of(&l->k) + parameters_of(&l->v) +
			 parameters_of(&l->o);
		if (l->dense) {
			fixed += 3 * (uint64_t)c->ffn_dim * c->dim;
			expert = 0;
		} else {
			fixed += (uint64_t)c->experts * c->dim + c->experts;
			fixed += 3 * (uint64_t)c->moe_ffn_dim * c->shared_experts * c->dim;
			expert = 3 * (uint64_t)c->moe_ffn_dim * c->dim;
		}
		all += fixed + expert * c->experts;
		active += fixed + expert * c->top_k;
	}
	ck->parameters = all + table + (c->tied_head ? 0 : table);
	ck->active_parameters = active + table;
}

int checkpoint_examine(const char *dir, checkpoint_problem_fn on_problem, void *userdata,
		       struct checkpoint **ret, struct err *err)
{
	_cleanup_(checkpoint_freep) struct checkpoint *c = calloc(1, sizeof(*c));
	struct reader x = { .c = c, .on_problem = on_problem, .userdata = userdata };
	struct err e = { 0 };
	int r;

	if (!c)
		return -ENOMEM;
	c->dir = strdup(dir);
	if (!c->dir)
		return -ENOMEM;
	r = read_config(c, &e);
	if (r < 0)
		complain(&x, r, "%s", e.code ? e.text : strerror(-r));
	r = gave_up(&x) ? 0 : read_generation(c, &e);
	if (r < 0)
		complain(&x, r, "%s", e.code ? e.text : strerror(-r));
	if (!gave_up(&x))
		open_files(&x);
	if (!x.n_problems)
		read_model(&x);
	if (!x.n_problems) {
		count_rest(&x);
		count_parameters(c);
	}
	free(x.entries);
	free(x.listing);
	if (x.n_problems)
		return err_set(err, x.first.code, "%s", x.first.text);
	*ret = steal(c);
	return 0;
}

int checkpoint_open(const char *dir, struct checkpoint **ret, struct err *err)
{
	return checkpoint_examine(dir, NULL, NULL, ret, err);
}

struct checkpoint *checkpoint_free(struct checkpoint *c)
{
	if (!c)
		return NULL;
	for (uint32_t i = 0; c->layers && i < c->config.layers; i++) {
		free(c->layers[i].expert_gate);
		free(c->layers[i].expert_up);
		free(c->layers[i].expert_down);
	}
	free(c->layers);
	for (uint32_t i = 0; i < c->n_files; i++)
		st_file_close(c->files[i]);
	free(c->files);
	free(c->config_text);
	free(c->dir);
	free(c);
	return NULL;
}
