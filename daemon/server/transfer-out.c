/* A session's file to its client: the text, then page by page. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/server/peer.h"
#include "daemon/server/transfer-parts.h"

static void go_on(struct transfer *t);

static void send_end(struct transfer *t)
{
	json_t *o = json_pack("{s:I, s:{s:I, s:I}, s:[]}", "bytes", (json_int_t)t->n_sent, "kv",
			      "pages", (json_int_t)t->n_carried, "tokens",
			      (json_int_t)((uint64_t)t->n_carried * t->page_tokens), "left_out");
	struct msg m = { .type = MSG_DONE };
	struct request *q = t->q;
	char *text;

	if (t->why)
		transfer_note(json_object_get(o, "left_out"), t->why,
			      t->n_carried > 0 ? "KV from token %llu on" : "KV",
			      (unsigned long long)t->n_carried * t->page_tokens);
	text = o ? json_dumps(o, JSON_COMPACT) : NULL;
	json_decref(o);
	if (!text) {
		request_error(q, -ENOMEM, NULL);
		return;
	}
	MSG_SET(&m.done, json, span_of(text));
	request_done(q, &m);
	free(text);
}

/* Of the first that is not empty. */
static bool send_piece(struct transfer *t)
{
	struct msg m = { .type = MSG_SESSION_DATA, .id = t->q->id };

	for (size_t i = 0; i < ARRAY_SIZE(t->left); i++) {
		struct span *left = &t->left[i];
		const size_t n = MIN(left->len, (size_t)TRANSFER_PIECE_BYTES);

		if (n == 0)
			continue;
		MSG_SET(&m.session_data, data, ((struct span){ left->data, n }));
		left->data += n;
		left->len -= n;
		t->n_sent += n;
		peer_send(t->q->peer, &m);
		return true;
	}
	return false;
}

/* The section of the page that was carried, or of one that is left out. */
static void put_section(struct transfer *t, bool whole)
{
	const struct export_page page = { .n = t->n_told, .n_tokens = t->page_tokens };

	t->section = (struct export_section){ .kind = EXPORT_KVPG, .version = 1 };
	t->n_front = 0;
	t->n_told++;
	if (!whole) {
		t->section.sum = export_section_sum(&t->section, (struct span){ 0 },
						    (struct span){ 0 });
		t->left[0] = (struct span){ (const char *)&t->section, sizeof(t->section) };
		return;
	}
	memcpy(t->front, &page, sizeof(page)); /* its sum follows */
	memcpy(t->front + sizeof(page), t->walk.ids + (size_t)page.n * t->page_tokens,
	       t->page_tokens * sizeof(*t->ids));
	t->n_front = sizeof(page) + t->page_tokens * sizeof(*t->ids);
	t->section.bytes = t->n_front + t->page_bytes;
}

static void run_sum(void *userdata)
{
	struct transfer *t = userdata;

	t->section.sum = export_section_sum(&t->section, (struct span){ t->front, t->n_front },
					    (struct span){ t->room, t->page_bytes });
}

static void summed(void *userdata)
{
	struct transfer *t = userdata;

	if (!transfer_is_home(t))
		return;
	t->left[0] = (struct span){ (const char *)&t->section, sizeof(t->section) };
	t->left[1] = (struct span){ t->front, t->n_front };
	t->left[2] = (struct span){ t->room, t->page_bytes };
	t->n_carried++;
	go_on(t);
}

static void leave_out(struct transfer *t, int r)
{
	t->why = r == -EBADMSG ? "a page was found to be damaged" : "it was given up meanwhile";
	put_section(t, false);
}

static void carried(int r, const uint64_t sum[2], void *userdata)
{
	struct transfer *t = userdata;

	if (!transfer_is_home(t))
		return;
	if (r >= 0) {
		kvcache_walk_on(t->server->engine->kv, &t->walk);
		put_section(t, true);
		memcpy(t->front + offsetof(struct export_page, sum), sum, 2 * sizeof(*sum));
		t->under_way = true;
		r = worker_push_for(t->server->worker, t->user->uid, run_sum, summed, t);
		if (r >= 0)
			return;
		t->under_way = false;
		t->n_told--;
	}
	leave_out(t, r);
	go_on(t);
}

static void fetch(struct transfer *t)
{
	int r = -ENOENT;

	if (!t->why && transfer_has_cache(t)) {
		t->under_way = true;
		r = kvcache_carry_out(t->server->engine->kv, &t->walk, t->server->worker, t->room,
				      carried, t);
		if (r >= 0)
			return;
		t->under_way = false;
	}
	leave_out(t, r);
}

static void go_on(struct transfer *t)
{
	while (!t->under_way && !t->q->peer->dead &&
	       t->q->peer->out.queued_bytes < TRANSFER_PIECE_BYTES) {
		if (send_piece(t))
			continue;
		bytes_deinit(&t->text);
		if (t->n_told == t->n_pages) {
			send_end(t);
			return;
		}
		fetch(t);
	}
}

void transfer_pump(struct request *q)
{
	if (q->transfer && q->msg.type == MSG_SESSION_EXPORT)
		go_on(q->transfer);
}

/* How many pages there are now, or why none. */
static uint32_t count_pages(struct transfer *t)
{
	const struct engine *e = t->server->engine;
	struct kvcache_found found;

	if (!e || !executor_known(e->executor)) {
		t->why = "the model has not been loaded yet";
	} else if (t->n_ids == 0) {
		t->why = "there is no turn that this model's tokenizer knows";
	} else if (!t->room) {
		t->why = "it fills no page";
	} else {
		kvcache_look(e->kv, t->walk.whose.root, t->user->uid, t->ids, (uint32_t)t->n_ids,
			     &found);
		if (found.n_tokens < t->page_tokens)
			t->why = "it is not in the cache any more";
		else
			return found.n_tokens / t->page_tokens;
	}
	return 0;
}

static int put_kvhd(struct transfer *t)
{
	const struct control_ready *known = executor_known(t->server->engine->executor);
	struct export_section head = { .kind = EXPORT_KVHD, .version = 1 };
	char model[2 * sizeof(known->fingerprint) + 1];
	char *text;
	json_t *o;

	for (size_t i = 0; i < sizeof(known->fingerprint); i++)
		snprintf(model + 2 * i, 3, "%02x", known->fingerprint[i]);
	o = json_pack("{s:s, s:s, s:i, s:i, s:i, s:I, s:i}", "model", model, "isa", known->isa,
		      "layout", CHAIN_LAYOUT, "element_bytes", (int)t->element_bytes, "page_tokens",
		      (int)t->page_tokens, "page_bytes", (json_int_t)t->page_bytes, "pages",
		      (int)t->n_pages);
	text = o ? json_dumps(o, JSON_COMPACT) : NULL;
	json_decref(o);
	if (!text)
		return -ENOMEM;
	head.bytes = strlen(text);
	head.sum = export_section_sum(&head, span_of(text), (struct span){ 0 });
	bytes_append(&t->text, (const char *)&head, sizeof(head));
	bytes_append_string(&t->text, text);
	free(text);
	return t->text.failed ? -ENOMEM : 0;
}

int transfer_send(struct request *q, struct bytes *text, uint32_t *ids, size_t n_ids,
		  struct err *err)
{
	struct export_head head;
	struct transfer *t;
	int r;

	r = transfer_new(q, &t, err);
	if (r < 0) {
		free(ids);
		return r;
	}
	t->text = *text;
	*text = (struct bytes){ 0 };
	t->ids = ids;
	t->n_ids = n_ids;
	r = transfer_hold(t, t->text.n, err);
	if (r >= 0)
		r = transfer_walk(t, err);
	if (r < 0)
		return r;
	t->n_pages = count_pages(t);
	memcpy(&head, t->text.at, sizeof(head));
	if (head.n_sections + t->n_pages >= EXPORT_SECTIONS_MAX)
		return err_set(err, -E2BIG, "the file would have %u sections; %u may be",
			       head.n_sections + t->n_pages + 1, EXPORT_SECTIONS_MAX);
	if (t->n_pages > 0) {
		if (put_kvhd(t) < 0)
			return err_set(err, -ENOMEM, "out of memory");
		head = export_head_of(head.n_sections + 1 + t->n_pages);
		memcpy(t->text.at, &head, sizeof(head));
	}
	t->left[0] = bytes_span(&t->text);
	go_on(t);
	return 0;
}
