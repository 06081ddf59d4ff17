/* The blocking calls: start, wait, hand over. */
#include <errno.h>
#include <stdlib.h>

#include "client/handle.h"
#include "client/wire/ownership.h"

/* What a blocking call waits for, and what it keeps of the result. */
struct call {
	const struct steamd_handler *owner; /* of the stream; NULL if there is none */
	bool ended;
	int r;
	struct steamd_error err;
	char *text, *json, *data;
	size_t text_len, data_len;
	uint32_t *ids;
	size_t n_ids;
};

static void call_deinit(struct call *c)
{
	free(c->text);
	free(c->json);
	free(c->data);
	free(c->ids);
}

static void on_progress(void *userdata, const struct steamd_progress *progress)
{
	const struct call *c = userdata;

	if (c->owner && c->owner->on_progress)
		c->owner->on_progress(c->owner->userdata, progress);
}

static int on_delta(void *userdata, const struct steamd_delta *delta)
{
	const struct call *c = userdata;

	return c->owner && c->owner->on_delta ? c->owner->on_delta(c->owner->userdata, delta) : 0;
}

/* A terminated copy; NULL also for NULL. */
static void *copy(const void *from, size_t bytes, bool *ok)
{
	char *to = from ? malloc(bytes + 1) : NULL;

	if (to) {
		memcpy(to, from, bytes);
		to[bytes] = '\0';
	} else if (from) {
		*ok = false;
	}
	return to;
}

static void on_end(void *userdata, const struct steamd_result *result,
		   const struct steamd_error *err)
{
	struct call *c = userdata;
	bool ok = true;

	if (c->owner && c->owner->on_end)
		c->owner->on_end(c->owner->userdata, result, err);
	c->ended = true;
	if (err) {
		c->r = err->error;
		c->err = *err;
		return;
	}
	c->text = copy(result->text, result->text_len, &ok);
	c->text_len = result->text_len;
	c->json = copy(result->json, result->json_len, &ok);
	c->data = copy(result->data, result->data_len, &ok);
	c->data_len = result->data_len;
	c->ids = copy(result->ids, result->n_ids * sizeof(*result->ids), &ok);
	c->n_ids = result->n_ids;
	if (!ok)
		c->r = handle_error(&c->err, -ENOMEM, STEAMD_CODE_LOCAL, "out of memory");
}

static struct steamd_handler handler_of(struct call *c)
{
	return (struct steamd_handler){ on_progress, on_delta, on_end, c };
}

/* Waits for the end of a request that was started with @started. */
static int finish(struct steamd *s, struct call *c, int started, uint64_t request,
		  struct steamd_error *err)
{
	struct handle_request *q;
	int r = started;

	while (r >= 0 && !c->ended) {
		r = steamd_wait(s, -1, err);
		if (r == -EINTR)
			r = 0;
	}
	if (c->ended) {
		if (c->r < 0 && err)
			*err = c->err;
		return c->r;
	}
	/* @c goes out of scope: nobody may call it any more */
	for (q = s->requests; started >= 0 && q; q = q->next)
		if (q->id == request)
			q->handler = (struct steamd_handler){ 0 };
	return r;
}

/* From inside a callback nobody could wait: refused before anything is started. */
static int check_may_block(const struct steamd *s, struct steamd_error *err)
{
	if (!s->processing)
		return 0;
	return handle_error(err, -EBUSY, STEAMD_CODE_LOCAL,
			    "a callback may not wait on its own handle");
}

/*
 * Starts a request by one of steamd_start_…(), which is given what comes behind
 * it here, and waits for its end: what finish() returns.
 */
#define CALL(s, c, err, start, ...)                                                                \
	({                                                                                         \
		const struct steamd_handler handler_ = handler_of(c);                              \
		uint64_t request_ = 0;                                                             \
		int r_ = check_may_block(s, err);                                                  \
                                                                                                   \
		if (r_ == 0)                                                                       \
			r_ = start(s, ##__VA_ARGS__, &handler_, &request_, err);                   \
		finish(s, c, r_, request_, err);                                                   \
	})

int steamd_generate(struct steamd *s, const struct steamd_generate *g,
		    const struct steamd_handler *handler, struct steamd_error *err)
{
	_cleanup_(call_deinit) struct call c = { .owner = handler };

	return CALL(s, &c, err, steamd_start_generate, g);
}

int steamd_score(struct steamd *s, const struct steamd_score *q,
		 const struct steamd_handler *handler, struct steamd_error *err)
{
	_cleanup_(call_deinit) struct call c = { .owner = handler };

	return CALL(s, &c, err, steamd_start_score, q);
}

static int no_result(struct steamd_error *err, const char *what)
{
	char text[64];

	snprintf(text, sizeof(text), "steamd answered without %s", what);
	return handle_error(err, -EPROTO, STEAMD_CODE_PROTOCOL, text);
}

int steamd_tokenize(struct steamd *s, const char *text, size_t len, unsigned flags, uint32_t **ret,
		    size_t *ret_n, struct steamd_error *err)
{
	_cleanup_(call_deinit) struct call c = { 0 };
	const int r = CALL(s, &c, err, steamd_start_tokenize, text, len, flags);

	if (r < 0)
		return r;
	if (!c.ids)
		return no_result(err, "ids");
	*ret = steal(c.ids);
	*ret_n = c.n_ids;
	return 0;
}

/* For the calls that give text. */
static int take_text(struct call *c, int ended, char **ret, size_t *ret_len,
		     struct steamd_error *err)
{
	if (ended < 0)
		return ended;
	if (!c->text)
		return no_result(err, "a text");
	*ret = steal(c->text);
	*ret_len = c->text_len;
	return 0;
}

int steamd_detokenize(struct steamd *s, const uint32_t *ids, size_t n_ids, unsigned flags,
		      char **ret, size_t *ret_len, struct steamd_error *err)
{
	_cleanup_(call_deinit) struct call c = { 0 };
	const int r = CALL(s, &c, err, steamd_start_detokenize, ids, n_ids, flags);

	return take_text(&c, r, ret, ret_len, err);
}

int steamd_render(struct steamd *s, const char *json, size_t len, char **ret, size_t *ret_len,
		  struct steamd_error *err)
{
	_cleanup_(call_deinit) struct call c = { 0 };
	const int r = CALL(s, &c, err, steamd_start_render, json, len);

	return take_text(&c, r, ret, ret_len, err);
}

/* For the calls that give JSON to whom wants it. */
static int take_json(struct call *c, int ended, char **ret, struct steamd_error *err)
{
	if (ended < 0)
		return ended;
	if (!c->json)
		return no_result(err, "JSON");
	if (ret)
		*ret = steal(c->json);
	return 0;
}

int steamd_query(struct steamd *s, enum steamd_query what, char **ret, struct steamd_error *err)
{
	_cleanup_(call_deinit) struct call c = { 0 };
	const int r = CALL(s, &c, err, steamd_start_query, what);

	return take_json(&c, r, ret, err);
}

int steamd_cancel_turn(struct steamd *s, uint64_t turn, struct steamd_error *err)
{
	_cleanup_(call_deinit) struct call c = { 0 };

	return CALL(s, &c, err, steamd_start_cancel_turn, turn);
}

int steamd_sleep(struct steamd *s, const char *rung, int now, const struct steamd_handler *handler,
		 char **ret, struct steamd_error *err)
{
	_cleanup_(call_deinit) struct call c = { .owner = handler };
	const int r = CALL(s, &c, err, steamd_start_sleep, rung, now);

	return take_json(&c, r, ret, err);
}

int steamd_wake(struct steamd *s, const struct steamd_handler *handler, char **ret,
		struct steamd_error *err)
{
	_cleanup_(call_deinit) struct call c = { .owner = handler };
	const int r = CALL(s, &c, err, steamd_start_wake);

	return take_json(&c, r, ret, err);
}

int steamd_yield(struct steamd *s, uint64_t bytes, uint32_t pid,
		 const struct steamd_handler *handler, char **ret, struct steamd_error *err)
{
	_cleanup_(call_deinit) struct call c = { .owner = handler };
	const int r = CALL(s, &c, err, steamd_start_yield, bytes, pid);

	return take_json(&c, r, ret, err);
}

int steamd_cache_explain(struct steamd *s, uint64_t turn, const char *session, char **ret,
			 struct steamd_error *err)
{
	_cleanup_(call_deinit) struct call c = { 0 };
	const int r = CALL(s, &c, err, steamd_start_cache_explain, turn, session);

	return take_json(&c, r, ret, err);
}

int steamd_session(struct steamd *s, enum steamd_session_verb verb, const struct steamd_session *q,
		   char **ret, size_t *ret_len, struct steamd_error *err)
{
	_cleanup_(call_deinit) struct call c = { 0 };
	const int r = CALL(s, &c, err, steamd_start_session, verb, q);

	if (r < 0)
		return r;
	if (!c.json && !c.data)
		return no_result(err, "an object");
	*ret_len = c.json ? strlen(c.json) : c.data_len;
	*ret = c.json ? steal(c.json) : steal(c.data);
	return 0;
}
