/* Opening the text side of a model, and the layers that its defaults come from. */
#include "daemon/server/textmodel.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "daemon/base/digest.h"
#include "daemon/exec/weights/checkpoint.h"

static void add_stop_id(struct textmodel *m, uint32_t id)
{
	for (uint32_t i = 0; i < m->n_chat_stop_ids; i++) {
		if (m->stop_ids[i] == id)
			return;
	}
	if (m->n_chat_stop_ids < STEP_STOP_IDS_MAX)
		m->stop_ids[m->n_chat_stop_ids++] = id;
}

static int add_eos(struct textmodel *m, const char *file, const uint32_t *ids, uint32_t n,
		   struct err *err)
{
	for (uint32_t i = 0; i < n; i++) {
		if (ids[i] >= m->vocab_real || tokenizer_bytes(m->tokenizer, ids[i]).len == 0)
			return err_set(
				err, -EBADMSG,
				"%s/tokenizer.json: no token has the id %u, which %s names as "
				"eos_token_id; the tokenizer has %u ids",
				m->dir, ids[i], file, m->vocab_real);
		add_stop_id(m, ids[i]);
	}
	return 0;
}

/* The end of an answer in a chat, whatever the config says: the markers that open the next turn. */
static const char *const chat_ends[] = { "<|endoftext|>", "<|user|>", "<|observation|>" };

static int gather_stop_ids(struct textmodel *m, struct err *err)
{
	int r;

	r = add_eos(m, "config.json", m->config.eos, m->config.n_eos, err);
	if (r < 0)
		return r;
	r = add_eos(m, "generation_config.json", m->generation.eos, m->generation.n_eos, err);
	if (r < 0)
		return r;

	m->n_stop_ids = m->n_chat_stop_ids;
	for (size_t i = 0; i < ARRAY_SIZE(chat_ends); i++) {
		const uint32_t id = tokenizer_added_id(m->tokenizer, chat_ends[i]);

		if (id != UINT32_MAX)
			add_stop_id(m, id);
	}
	return 0;
}

static uint64_t sum_vocabulary(const struct tokenizer *t)
{
	uint64_t sum = tokenizer_size(t);

	for (uint32_t id = 0; id < tokenizer_size(t); id++) {
		const struct span bytes = tokenizer_bytes(t, id);

		sum = XXH3_64bits_withSeed(bytes.data ? bytes.data : "", bytes.len,
					   sum + tokenizer_is_added(t, id));
	}
	return sum ? sum : 1;
}

static int read_tokenizer(struct textmodel *m, struct err *err)
{
	_cleanup_(freep) char *path = NULL;
	int r;

	if (asprintf(&path, "%s/tokenizer.json", m->dir) < 0) {
		path = NULL;
		return -ENOMEM;
	}
	r = tokenizer_open(path, &m->tokenizer, err);
	if (r < 0)
		return r;

	m->vocab_real = tokenizer_size(m->tokenizer);
	if (m->vocab_real == 0 || m->vocab_real > m->config.vocab)
		return err_set(err, -EBADMSG, "%s: has %u ids; config.json says vocab_size %u",
			       path, m->vocab_real, m->config.vocab);
	m->vocab_sum = sum_vocabulary(m->tokenizer);
	return 0;
}

static int copy_names(struct textmodel *m, const char *dir)
{
	const char *last;

	m->dir = strdup(dir);
	if (!m->dir)
		return -ENOMEM;
	for (size_t n = strlen(m->dir); n > 1 && m->dir[n - 1] == '/'; n--)
		m->dir[n - 1] = '\0';
	last = strrchr(m->dir, '/');
	m->base = strdup(last && last[1] ? last + 1 : m->dir);
	return m->base ? 0 : -ENOMEM;
}

int textmodel_open(const char *dir, struct textmodel **ret, struct err *err)
{
	_cleanup_(textmodel_freep) struct textmodel *m = NULL;
	_cleanup_(checkpoint_freep) struct checkpoint *c = NULL;
	_cleanup_(freep) char *template = NULL;
	int r;

	if (!dir[0])
		return err_set(err, -ENOENT, "no model is set: Model= wants a directory");

	m = calloc(1, sizeof(*m));
	if (!m)
		return err_set(err, -ENOMEM, "out of memory");
	r = copy_names(m, dir);
	if (r < 0)
		return err_set(err, r, "out of memory");

	m->stamp = textmodel_stamp(m->dir); /* before anything is read */
	r = checkpoint_open(m->dir, &c, err);
	if (r < 0)
		return r;
	m->config = c->config;
	m->generation = c->generation;
	m->file_bytes = c->bytes;
	m->parameters = c->parameters;
	m->active_parameters = c->active_parameters;

	r = read_tokenizer(m, err);
	if (r < 0)
		return r;
	r = gather_stop_ids(m, err);
	if (r < 0)
		return r;
	r = chat_template_read(m->dir, &template, err);
	if (r < 0)
		return r;
	m->detected = chat_detect(template, &m->template_warning);

	*ret = steal(m);
	return 0;
}

static void closedirp(DIR **d)
{
	if (*d)
		closedir(*d);
}

uint64_t textmodel_stamp(const char *dir)
{
	_cleanup_(closedirp) DIR *d = opendir(dir);
	struct dirent *entry;
	struct stat st;
	uint64_t sum = 0;

	while (d && (entry = readdir(d))) {
		if (entry->d_name[0] == '.' || fstatat(dirfd(d), entry->d_name, &st, 0) < 0)
			continue;
		const uint64_t facts[] = { st.st_dev,
					   st.st_ino,
					   (uint64_t)st.st_size,
					   (uint64_t)st.st_mtim.tv_sec,
					   (uint64_t)st.st_mtim.tv_nsec,
					   digest_of(entry->d_name, strlen(entry->d_name), 0).low };

		/* a sum, for directories have no order */
		sum += digest_of(facts, sizeof(facts), 0).low;
	}
	return sum;
}

struct textmodel *textmodel_free(struct textmodel *m)
{
	if (!m)
		return NULL;
	tokenizer_free(m->tokenizer);
	free(m->base);
	free(m->dir);
	free(m);
	return NULL;
}

enum chat_layout textmodel_layout(const struct textmodel *m, const struct settings *s,
				  const char **ret_warning)
{
	enum chat_layout layout;

	*ret_warning = NULL;
	if (strcmp(s->chat_template, "auto") != 0) {
		if (chat_layout_parse(s->chat_template, &layout) == 0)
			return layout;
		*ret_warning = "ChatTemplate= is none of auto, glm45, glm46, glm47 and none; "
			       "the model's template is used";
		return m->detected;
	}
	*ret_warning = m->template_warning;
	return m->detected;
}

static void overlay(struct textmodel_default *d, double value, bool is_set, const char *origin)
{
	if (is_set)
		*d = (struct textmodel_default){ value, origin };
}

void textmodel_defaults(const struct textmodel *m, const struct settings *s,
			struct textmodel_defaults *ret)
{
	const struct generation_config *g = &m->generation;
	static const char file[] = "generation_config.json";

#define BUILTIN(member, key, builtin) ret->member = (struct textmodel_default){ builtin, "steamd" };
	TEXTMODEL_SAMPLERS(BUILTIN)
#undef BUILTIN

	overlay(&ret->temperature, g->temperature, !isnan(g->temperature), file);
	overlay(&ret->temperature, 0, g->greedy, file);
	overlay(&ret->top_k, g->top_k, g->top_k != UNSET_UINT, file);
	overlay(&ret->top_p, g->top_p, !isnan(g->top_p), file);
	overlay(&ret->min_p, g->min_p, !isnan(g->min_p), file);
	overlay(&ret->repetition_penalty, g->repetition_penalty, !isnan(g->repetition_penalty),
		file);

	overlay(&ret->top_k, s->top_k, s->top_k != UNSET_UINT, settings_origin(s, "TopK"));
#define OVERLAY(member, key)                                                                       \
	overlay(&ret->member, s->member, !isnan(s->member), settings_origin(s, key))
	OVERLAY(temperature, "Temperature");
	OVERLAY(top_p, "TopP");
	OVERLAY(min_p, "MinP");
	OVERLAY(repetition_penalty, "RepetitionPenalty");
	OVERLAY(frequency_penalty, "FrequencyPenalty");
	OVERLAY(presence_penalty, "PresencePenalty");
#undef OVERLAY
}

const char *textmodel_name(const struct textmodel *m, const struct settings *s)
{
	return s->model_name[0] ? s->model_name : m->base;
}

bool textmodel_is_named(const struct textmodel *m, const struct settings *s, struct span name)
{
	const char *at = s->model_aliases;

	if (span_is(name, textmodel_name(m, s)))
		return true;
	while (*at) {
		const size_t len = strcspn(at, " ");

		if (len > 0 && len == name.len && memcmp(at, name.data, len) == 0)
			return true;
		at += len + strspn(at + len, " ");
	}
	return false;
}
