/* Asks for the vocabulary's size, then for the bytes of every id. */
#include "client/gateway/vocab.h"

#include <errno.h>
#include <string.h>

#include "client/wire/utf8.h"

#define VOCAB_MAX (1u << 22)

struct vocab {
	struct vocab *older; /* of a model before; still read by its answers */
	char *boot_id, *model;
	uint32_t n;
	uint32_t *at; /* [n + 1], into bytes */
	char *bytes;
};

/* Those who wait are told one after the other, each with a fetch of its own. */
struct fetch {
	struct link *link;
	vocab_then_fn then;
	void *userdata;
	struct vocab *v;
	struct steamd_handler handler;
};

struct vocab *vocab_free_all(struct vocab *v)
{
	while (v) {
		struct vocab *older = v->older;

		free(v->boot_id);
		free(v->model);
		free(v->at);
		free(v->bytes);
		free(v);
		v = older;
	}
	return NULL;
}

static void finish(struct fetch *f, const struct steamd_error *err)
{
	static const struct steamd_error no_memory = { -ENOMEM, STEAMD_CODE_LOCAL, "out of memory",
						       1, 0 };

	if (f->v && !err) {
		f->v->older = f->link->vocab;
		f->link->vocab = f->v;
		f->then(f->userdata, f->v, NULL);
	} else {
		vocab_free_all(f->v);
		f->then(f->userdata, NULL, err ? err : &no_memory);
	}
	free(f);
}

/* Each id's length and bytes, one after the other. */
static int take_bytes(struct vocab *v, const char *data, size_t len)
{
	size_t from = 0, n_bytes = 0;

	v->at = calloc(v->n + 1, sizeof(*v->at));
	v->bytes = malloc(len + 1);
	if (!v->at || !v->bytes)
		return -ENOMEM;
	for (uint32_t i = 0; i < v->n; i++) {
		uint32_t n;

		if (len - from < sizeof(n))
			return -EPROTO;
		memcpy(&n, data + from, sizeof(n));
		from += sizeof(n);
		if (n > len - from)
			return -EPROTO;
		memcpy(v->bytes + n_bytes, data + from, n);
		from += n;
		n_bytes += n;
		v->at[i + 1] = (uint32_t)n_bytes;
	}
	return 0;
}

static void on_bytes(void *userdata, const struct steamd_result *result,
		     const struct steamd_error *err)
{
	static const struct steamd_error nonsense = { -EPROTO, STEAMD_CODE_PROTOCOL,
						      "steamd's vocabulary makes no sense", 0, 0 };
	struct fetch *f = userdata;

	if (!err && take_bytes(f->v, result->data, result->data_len) < 0)
		err = &nonsense;
	finish(f, err);
}

static uint32_t size_of(const char *json)
{
	json_t *status = json_loads(json, 0, NULL);
	const json_int_t n =
		json_integer_value(json_object_get(json_object_get(status, "model"), "vocab"));

	json_decref(status);
	return n > 0 && n <= VOCAB_MAX ? (uint32_t)n : 0;
}

static void on_status(void *userdata, const struct steamd_result *result,
		      const struct steamd_error *err)
{
	static const struct steamd_error no_model = { -EAGAIN, "unavailable",
						      "the model is not open yet", 1, 1000 };
	struct fetch *f = userdata;
	_cleanup_(freep) uint32_t *ids = NULL;
	struct steamd_error failed;

	if (!err && (f->v->n = size_of(result->json)) == 0)
		err = &no_model;
	if (!err)
		ids = calloc(f->v->n, sizeof(*ids));
	for (uint32_t i = 0; ids && i < f->v->n; i++)
		ids[i] = i;
	f->handler.on_end = on_bytes;
	if (ids && steamd_start_detokenize(f->link->s, ids, f->v->n, STEAMD_EACH, &f->handler, NULL,
					   &failed) == 0)
		return;
	if (!ids && !err) {
		free(steal(f->v));
		finish(f, NULL);
		return;
	}
	finish(f, err ? err : &failed);
}

/* The newest one is of the model that is served now, as far as hello said. */
static const struct vocab *find_current(const struct link *l)
{
	struct steamd_info info;
	const struct vocab *v = l->vocab;

	if (!v || steamd_info(l->s, &info) < 0 || strcmp(v->boot_id, info.boot_id) != 0 ||
	    strcmp(v->model, info.model) != 0)
		return NULL;
	return v;
}

void vocab_get(struct link *l, vocab_then_fn then, void *userdata)
{
	const struct vocab *v = find_current(l);
	struct steamd_info info = { .boot_id = "", .model = "" };
	struct steamd_error err = { -ENOMEM, STEAMD_CODE_LOCAL, "out of memory", 1, 0 };
	struct fetch *f;

	if (v) {
		then(userdata, v, NULL);
		return;
	}
	f = calloc(1, sizeof(*f));
	if (!f) {
		then(userdata, NULL, &err);
		return;
	}
	*f = (struct fetch){ .link = l,
			     .then = then,
			     .userdata = userdata,
			     .handler = { .on_end = on_status, .userdata = f } };
	f->v = calloc(1, sizeof(*f->v));
	steamd_info(l->s, &info);
	if (!f->v || !(f->v->boot_id = strdup(info.boot_id)) ||
	    !(f->v->model = strdup(info.model)) ||
	    steamd_start_query(l->s, STEAMD_STATUS, &f->handler, NULL, &err) < 0)
		finish(f, &err);
}

struct span vocab_bytes(const struct vocab *v, uint32_t id)
{
	if (id >= v->n)
		return (struct span){ 0 };
	return (struct span){ v->bytes + v->at[id], v->at[id + 1] - v->at[id] };
}

void vocab_write_text(const struct vocab *v, uint32_t id, struct jsontext *to)
{
	_cleanup_(freep) char *text = NULL;
	size_t n = 0;

	if (utf8_repair(vocab_bytes(v, id), &text, &n) < 0)
		to->failed = true;
	jsontext_quote(to, text ? text : "", n);
}

void vocab_write_bytes(const struct vocab *v, uint32_t id, struct jsontext *to)
{
	const struct span bytes = vocab_bytes(v, id);

	jsontext_put(to, "[");
	for (size_t i = 0; i < bytes.len; i++)
		jsontext_format(to, i ? ",%u" : "%u", (unsigned char)bytes.data[i]);
	jsontext_put(to, "]");
}
