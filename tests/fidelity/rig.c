/* Loads golden checkpoints for tests. */
#include "tests/fidelity/rig.h"

#include <errno.h>
#include <string.h>

char *rig_path(const char *name, const char *file)
{
	const char *top = getenv("srcdir");
	char *path;

	if (name[0] == '/') {
		if (asprintf(&path, "%s/%s", name, file) < 0)
			abort();
		return path;
	}
	if (asprintf(&path, "%s/tests/golden/%s/%s", top ? top : ".", name, file) < 0)
		abort();
	return path;
}

/* @n_ranks	0: no team */
static int load(struct rig *rig, enum isa isa, uint32_t n_threads, uint32_t n_ranks,
		struct err *err)
{
	_cleanup_(freep) char *dir = rig_path(rig->name, "");
	int r;

	r = checkpoint_open(dir, &rig->checkpoint, err);
	if (r < 0)
		return r;
	r = n_ranks > 0 ? team_open(isa, n_threads, n_ranks, &rig->team)
			: dev_open(isa, n_threads, &rig->dev);
	if (r < 0)
		return err_set(err, r, "cannot open the device for %s: %s", isa_name(isa),
			       r == -ENODEV ? dev_why() : strerror(-r));
	if (rig->team) {
		r = team_load(rig->team, rig->checkpoint, NULL, NULL, err);
		rig->dev = team_dev(rig->team, 0);
		rig->weights = team_weights(rig->team, 0);
		return r;
	}
	return weights_load(rig->checkpoint, rig->dev, NULL, NULL, &rig->weights, err);
}

static int make_cache(struct rig *rig, uint32_t n_pages)
{
	const struct config *c = &rig->weights->config;
	_cleanup_(freep) char *noise = NULL;
	size_t bytes;
	int r;

	rig->kv = (struct kv_cache){
		.type = dev_kv_type(rig->dev),
		.n_pages = n_pages,
		.page_tokens = RIG_PAGE_TOKENS,
		.layers = c->layers,
		.kv_heads = c->kv_heads,
		.head_dim = c->head_dim,
	};
	bytes = n_pages * kv_page_bytes(&rig->kv);
	rig->pages = calloc(n_pages, sizeof(*rig->pages));
	noise = malloc(bytes);
	/* what a team's devices mirror is in the host's memory */
	if (rig->team && !dev_is_host(rig->dev))
		rig->kv.base = rig->arena = malloc(bytes);
	else
		rig->kv.base = dev_reserve(rig->dev, bytes);
	if (!rig->pages || !noise || !rig->kv.base)
		return -ENOMEM;
	/* what the pages hold must not matter before it is written: NaN in F32 and BF16 */
	memset(noise, 0xff, bytes);
	r = rig->arena ? 0 : dev_back(rig->dev, rig->kv.base, bytes);
	if (rig->arena)
		memset(rig->arena, 0xff, bytes);
	else if (r == 0)
		r = dev_write(rig->dev, rig->kv.base, noise, bytes);
	for (uint32_t i = 0; i < n_pages; i++)
		rig->pages[i] = n_pages - 1 - i;
	return r;
}

static int make_models(struct rig *rig, uint32_t context, struct err *err)
{
	int r;

	if (!rig->team)
		return model_new(rig->dev, rig->weights, &rig->kv, rig->max_tokens, context,
				 &rig->model, err);
	r = team_make_models(rig->team, &rig->kv, rig->max_tokens, context, err);
	if (r == 0)
		r = team_resize(rig->team, UINT64_MAX, err);
	rig->model = team_model(rig->team, 0);
	return r;
}

int rig_open(const char *name, enum isa isa, uint32_t n_threads, uint32_t max_tokens,
	     uint32_t n_pages, struct rig *ret)
{
	return rig_open_team(name, isa, n_threads, 0, max_tokens, n_pages, ret);
}

int rig_open_ranks(const char *name, enum isa isa, uint32_t n_threads, uint32_t n_ranks,
		   uint32_t max_tokens, uint32_t n_pages, struct rig *ret)
{
	return rig_open_team(name, isa, n_threads, n_ranks > 1 ? n_ranks : 0, max_tokens, n_pages,
			     ret);
}

int rig_open_team(const char *name, enum isa isa, uint32_t n_threads, uint32_t n_ranks,
		  uint32_t max_tokens, uint32_t n_pages, struct rig *ret)
{
	struct rig rig = { .name = strdup(name), .max_tokens = max_tokens };
	struct err err = { 0 };
	int r;

	r = load(&rig, isa, n_threads, n_ranks, &err);
	if (r == 0) {
		rig.vocab = rig.weights->config.vocab;
		r = make_cache(&rig, n_pages);
	}
	if (r == 0)
		r = make_models(&rig, n_pages * RIG_PAGE_TOKENS, &err);
	if (r < 0) {
		fprintf(stderr, "%s: %s\n", name, err.text[0] ? err.text : strerror(-r));
		rig_close(&rig);
		return r;
	}
	*ret = rig;
	return 0;
}

void rig_close(struct rig *rig)
{
	if (!rig->team) {
		model_free(rig->model);
		weights_free(rig->weights);
		dev_close(rig->dev);
	}
	team_close(rig->team);
	free(rig->arena);
	free(rig->pages);
	checkpoint_free(rig->checkpoint);
	free(rig->name);
	*rig = (struct rig){ 0 };
}

int rig_divides(const char *name, uint32_t n_ranks)
{
	struct rig rig = { .name = strdup(name) };
	struct err err = { 0 };
	const int r = load(&rig, ISA_PORTABLE, 1, n_ranks, &err);

	rig_close(&rig);
	return r;
}

int rig_forward(struct rig *rig, const uint32_t *ids, uint32_t n_tokens, const struct seq *seqs,
		uint32_t n_seqs, const uint32_t *out, uint32_t n_out, float *logits)
{
	return rig->team
		       ? team_forward(rig->team, ids, n_tokens, seqs, n_seqs, out, n_out, logits)
		       : model_forward(rig->model, ids, n_tokens, seqs, n_seqs, out, n_out, logits);
}

json_t *rig_truth(const char *name)
{
	_cleanup_(freep) char *path = rig_path(name, "expect/truth.json");

	return json_load_file(path, JSON_ALLOW_NUL,
			      NULL); /* answers of random models are any text */
}

json_t *rig_prompt(json_t *truth, const char *name)
{
	json_t *prompt;
	size_t i;

	json_array_foreach(json_object_get(truth, "prompts"), i, prompt)
		if (strcmp(json_string_value(json_object_get(prompt, "name")), name) == 0)
			return prompt;
	return NULL;
}

uint32_t *rig_ids(json_t *prompt, uint32_t *ret_n)
{
	json_t *ids = json_object_get(prompt, "ids"), *id;
	uint32_t *ret = calloc(json_array_size(ids) + 1, sizeof(*ret));
	size_t i;

	if (!ret)
		abort();
	json_array_foreach(ids, i, id)
		ret[i] = json_integer_value(id);
	*ret_n = json_array_size(ids);
	return ret;
}

float *rig_floats(const char *name, const char *file, size_t n)
{
	_cleanup_(freep) char *sub = NULL, *path = NULL;
	_cleanup_(fclosep) FILE *f = NULL;
	_cleanup_(freep) float *values = calloc(n + 1, sizeof(float));

	if (asprintf(&sub, "expect/%s", file) < 0)
		abort();
	path = rig_path(name, sub);
	f = fopen(path, "re");
	if (!f || !values || fread(values, sizeof(float), n + 1, f) != n)
		return NULL;
	return steal(values);
}

int rig_feed(struct rig *rig, uint32_t first_page, const uint32_t *ids, uint32_t at, uint32_t n,
	     uint32_t chunk, bool last, float *logits)
{
	_cleanup_(freep) uint32_t *out = calloc(MIN(chunk, n) + 1, sizeof(*out));

	for (uint32_t done = 0, some; done < n; done += some) {
		const bool wanted = !last || done + chunk >= n;
		struct seq seq = { .at = at + done };
		uint32_t n_out = 0;
		int r;

		some = MIN(chunk, n - done);
		seq.n_tokens = some;
		seq.n_pages = (at + done + some + RIG_PAGE_TOKENS - 1) / RIG_PAGE_TOKENS;
		seq.pages = rig->pages + first_page;
		for (uint32_t i = last ? some - 1 : 0; wanted && i < some; i++)
			out[n_out++] = i;
		r = rig_forward(rig, ids + done, some, &seq, 1, out, n_out,
				logits + (last ? 0 : (size_t)done * rig->vocab));
		if (r < 0)
			return r;
	}
	return 0;
}
