/* What both directions need: memory, its count, and an end that may come at any time. */
#include "daemon/server/transfer-parts.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

int transfer_new(struct request *q, struct transfer **ret, struct err *err)
{
	struct transfer *t = calloc(1, sizeof(*t));

	if (!t)
		return err_set(err, -ENOMEM, "out of memory");
	t->q = q;
	t->server = q->server;
	t->user = q->user;
	q->transfer = t;
	*ret = t;
	return 0;
}

static void transfer_free(struct transfer *t)
{
	t->user->held_bytes -= t->held_bytes;
	if (!t->q)
		server_user_drop(t->user);
	bytes_deinit(&t->text);
	json_decref(t->json);
	json_decref(t->not_taken);
	free(t->ids);
	free(t->room);
	free(t);
}

void transfer_forget(struct request *q)
{
	struct transfer *t = q->transfer;

	if (!t)
		return;
	q->transfer = NULL;
	if (!t->under_way) {
		transfer_free(t);
		return;
	}
	t->q = NULL;
}

bool transfer_is_home(struct transfer *t)
{
	t->under_way = false;
	if (t->q)
		return true;
	transfer_free(t);
	return false;
}

int transfer_hold(struct transfer *t, size_t bytes, struct err *err)
{
	const uint64_t others = t->user->held_bytes - t->held_bytes;

	if (others + bytes > SERVER_USER_HELD_BYTES_MAX)
		return err_set(err, -EAGAIN,
			       "uid %u has %llu bytes of requests waiting, and this one wants %zu "
			       "more; %u may be",
			       t->user->uid, (unsigned long long)others, bytes,
			       SERVER_USER_HELD_BYTES_MAX);
	t->user->held_bytes = others + bytes;
	t->held_bytes = bytes;
	return 0;
}

int transfer_walk(struct transfer *t, struct err *err)
{
	const struct engine *e = t->server->engine;
	const size_t align = 4096;
	int r;

	if (!e || t->n_ids < e->plan.page_tokens)
		return 0;
	t->page_bytes = e->plan.page_bytes;
	t->page_tokens = e->plan.page_tokens;
	t->element_bytes = e->plan.element_bytes;
	r = transfer_hold(t, t->held_bytes + t->n_ids * sizeof(*t->ids) + t->page_bytes, err);
	if (r < 0)
		return r;
	t->room = aligned_alloc(align, (t->page_bytes + align - 1) / align * align);
	if (!t->room)
		return err_set(err, -ENOMEM, "no memory for a page of %llu bytes",
			       (unsigned long long)t->page_bytes);
	kvcache_walk(e->kv, kvcache_root(e->kv, t->user->uid, t->q->label), t->user->uid, t->ids,
		     (uint32_t)t->n_ids, &t->walk);
	return 0;
}

bool transfer_has_cache(const struct transfer *t)
{
	const struct engine *e = t->server->engine;

	return e && e->plan.page_bytes == t->page_bytes && e->plan.page_tokens == t->page_tokens &&
	       chain_equal(kvcache_root(e->kv, t->user->uid, t->q->label), t->walk.whose.root);
}

void transfer_note(json_t *list, const char *why, const char *format, ...)
{
	char what[64];
	va_list ap;

	va_start(ap, format);
	vsnprintf(what, sizeof(what), format, ap);
	va_end(ap);
	json_array_append_new(list, json_pack("{s:s, s:s}", "what", what, "why", why));
}
