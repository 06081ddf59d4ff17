/* A session's file from its client: the text goes to the store, then each page into the cache. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/server/peer.h"
#include "daemon/server/sessions.h"
#include "daemon/server/transfer-parts.h"
#include "daemon/text/pyjson.h"

#define KVHD_BYTES_MAX 4096

static int want(struct transfer *t)
{
	struct msg m = { .type = MSG_SESSION_WANT, .id = t->q->id };

	t->n_wanted = (uint32_t)MIN(t->n_to, (uint64_t)TRANSFER_WANT_BYTES);
	MSG_SET(&m.session_want, bytes, t->n_wanted);
	peer_send(t->q->peer, &m);
	return 0;
}

/* The next @n bytes go to @to. */
static int read_into(struct transfer *t, int phase, char *to, uint64_t n)
{
	t->phase = phase;
	t->to = to;
	t->n_to = n;
	return want(t);
}

static int finish(struct transfer *t)
{
	struct request *q = t->q;
	struct msg m = { .type = MSG_DONE };
	struct bytes text = { 0 };

	json_object_set(t->json, "not_taken", t->not_taken);
	json_object_set_new(t->json, "kv",
			    json_pack("{s:i, s:i, s:i, s:i}", "pages", (int)t->n_pages, "taken",
				      (int)t->n_taken, "there", (int)t->n_there, "damaged",
				      (int)t->n_damaged));
	pyjson_dump(t->json, &text);
	if (text.failed) {
		bytes_deinit(&text);
		return -ENOMEM;
	}
	MSG_SET(&m.done, json, bytes_span(&text));
	request_done(q, &m);
	bytes_deinit(&text);
	return 0;
}

/* What is left of the file is of no use: the answer does not wait for it. */
static int stop(struct transfer *t, const char *why)
{
	const uint32_t n = (t->n_taken + t->n_there) * t->page_tokens;

	transfer_note(t->not_taken, why, n > 0 ? "KV from token %u on" : "KV", n);
	return finish(t);
}

/* The store gets the text as the file of a session without KV. */
static int store(struct transfer *t, uint32_t n_sections, struct err *err)
{
	const struct export_head head = export_head_of(n_sections);

	if (t->text.failed)
		return err_set(err, -ENOMEM, "out of memory");
	memcpy(t->text.at, &head, sizeof(head));
	t->phase = IN_STORE;
	return sessions_import(t->q, &t->text, err);
}

static int next_section(struct transfer *t, struct err *err)
{
	if (t->n_sections > 0)
		return read_into(t, IN_SECTION, (char *)&t->section, sizeof(t->section));
	return t->stored ? finish(t) : store(t, t->n_text, err);
}

static bool is_kv(const struct transfer *t)
{
	return t->section.version == 1 &&
	       (t->section.kind == EXPORT_KVHD || t->section.kind == EXPORT_KVPG);
}

static int begin_text(struct transfer *t, struct err *err)
{
	bytes_append(&t->text, (const char *)&t->section, sizeof(t->section));
	t->n_text++;
	/* a length that cannot be is damage, and the store says where */
	if (t->section.bytes > SESSIONS_FILE_MAX - MIN(t->text.n, SESSIONS_FILE_MAX))
		return store(t, t->n_text + t->n_sections, err);
	if (t->section.bytes == 0)
		return next_section(t, err);
	return read_into(t, IN_TEXT, NULL, t->section.bytes);
}

static int begin_kvhd(struct transfer *t)
{
	if (t->n_pages > 0 || t->section.bytes == 0 || t->section.bytes > KVHD_BYTES_MAX) {
		t->n_damaged++;
		return stop(t, "a section is not where it belongs");
	}
	t->n_front = t->section.bytes;
	return read_into(t, IN_KVHD, t->front, t->n_front);
}

static int begin_page(struct transfer *t)
{
	const size_t front = sizeof(struct export_page) + t->page_tokens * sizeof(*t->ids);
	const bool empty = t->section.bytes == 0;

	if (empty && export_section_sum(&t->section, (struct span){ 0 }, (struct span){ 0 }) ==
			     t->section.sum)
		return stop(t, "it was given up while the file was written");
	if (t->n_pages == 0 || t->section.bytes != front + t->page_bytes) {
		t->n_damaged++;
		return stop(t, t->n_pages == 0 ? "a section is not where it belongs"
					       : "a page does not have a page's bytes");
	}
	t->n_front = front;
	return read_into(t, IN_FRONT, t->front, front);
}

static int begin_kv(struct transfer *t)
{
	if (!t->ids)
		return stop(t, "no ids of the session's last turn were taken, and KV is of ids");
	if (!t->server->engine || !executor_known(t->server->engine->executor))
		return stop(t, "the model has not been loaded yet");
	if (t->section.kind == EXPORT_KVHD)
		return begin_kvhd(t);
	if (t->section.kind == EXPORT_KVPG && is_kv(t))
		return begin_page(t);
	t->n_damaged++;
	return stop(t, "a section is not where it belongs");
}

static int begin_section(struct transfer *t, struct err *err)
{
	t->n_sections--;
	if (t->stored)
		return begin_kv(t);
	return is_kv(t) ? store(t, t->n_text, err) : begin_text(t, err);
}

/* What the file's KV is of, beside what is served here. */
static const char *find_difference(const struct transfer *t, const json_t *o, char *text,
				   size_t size)
{
	const struct control_ready *known = executor_known(t->server->engine->executor);
	const char *model = json_string_value(json_object_get(o, "model"));
	const char *isa = json_string_value(json_object_get(o, "isa"));
	char served[2 * sizeof(known->fingerprint) + 1];
	const struct {
		const char *key, *what;
		uint64_t wanted;
	} numbers[] = {
		{ "layout", "has layout", CHAIN_LAYOUT },
		{ "element_bytes", "has numbers in bytes of", t->element_bytes },
		{ "page_tokens", "has pages in tokens of", t->page_tokens },
		{ "page_bytes", "has pages in bytes of", t->page_bytes },
	};

	for (size_t i = 0; i < sizeof(known->fingerprint); i++)
		snprintf(served + 2 * i, 3, "%02x", known->fingerprint[i]);
	if (!model || !isa)
		return "its head names no model";
	if (strcmp(model, served) != 0) {
		snprintf(text, size, "it is of another model: fingerprint %.32s; %s is served",
			 model, served);
		return text;
	}
	if (strcmp(isa, known->isa) != 0) {
		snprintf(text, size, "it was computed with %.31s; %s computes here", isa,
			 known->isa);
		return text;
	}
	for (size_t i = 0; i < ARRAY_SIZE(numbers); i++) {
		const uint64_t is =
			(uint64_t)json_integer_value(json_object_get(o, numbers[i].key));

		if (is != numbers[i].wanted) {
			snprintf(text, size, "it %s %llu; here it is %llu", numbers[i].what,
				 (unsigned long long)is, (unsigned long long)numbers[i].wanted);
			return text;
		}
	}
	return NULL;
}

static int take_kvhd(struct transfer *t, struct err *err)
{
	const struct span payload = { t->front, t->n_front };
	struct err ignored = { 0 };
	const char *difference;
	char text[256];
	json_t *o = NULL;

	if (export_section_sum(&t->section, payload, (struct span){ 0 }) != t->section.sum ||
	    pyjson_load(payload, &o, &ignored) < 0) {
		t->n_damaged++;
		return stop(t, "a section does not match its sum");
	}
	t->n_pages = (uint32_t)json_integer_value(json_object_get(o, "pages"));
	difference = t->room ? find_difference(t, o, text, sizeof(text)) : "it fills no page here";
	json_decref(o);
	if (difference)
		return stop(t, difference);
	if (t->n_pages == 0 || t->n_pages > t->walk.n_pages) {
		t->n_damaged++;
		return stop(t, "it has more pages than the session's last turn");
	}
	return next_section(t, err);
}

static int next_page(struct transfer *t)
{
	struct err err = { 0 };

	kvcache_walk_on(t->server->engine->kv, &t->walk);
	return next_section(t, &err);
}

/* A page's way ended, on the loop: what goes wrong from here on is told to the client. */
static void tell(struct transfer *t, int r)
{
	if (r < 0)
		request_error(t->q, r, NULL);
}

static const char *refusal(int r)
{
	switch (r) {
	case -EDQUOT:
		return "the user's part of the KV cache is full (steamctl status --limits)";
	case -ENOSPC:
		return "there is no room for it in the KV cache";
	case -EAGAIN:
		return "the disk is not ready to take it";
	case -ECANCELED:
	case -EHOSTDOWN:
		return "the model was loaded again meanwhile";
	default:
		return "it could not be written";
	}
}

static void brought(int r, const uint64_t sum[2], void *userdata)
{
	struct transfer *t = userdata;

	(void)sum;
	if (!transfer_is_home(t))
		return;
	t->n_taken += r >= 0;
	tell(t, r < 0 ? stop(t, refusal(r)) : next_page(t));
}

static void bring(struct transfer *t)
{
	const struct engine *e = t->server->engine;
	struct export_page page;
	int r = -EHOSTDOWN;

	memcpy(&page, t->front, sizeof(page));
	if (transfer_has_cache(t)) {
		t->under_way = true;
		r = kvcache_carry_in(e->kv, &t->walk, t->server->worker, t->room, page.sum,
				     sched_shares(e->sched).max_pages, brought, t);
		if (r >= 0)
			return;
		t->under_way = false;
	}
	/* what is here already is as good; marked prompts are computed for all */
	if (r == -EALREADY || r == -EPERM) {
		t->n_there++;
		tell(t, next_page(t));
		return;
	}
	tell(t, stop(t, refusal(r)));
}

static void run_check(void *userdata)
{
	struct transfer *t = userdata;
	struct export_page page;

	memcpy(&page, t->front, sizeof(page));
	t->sum_fails = export_section_sum(&t->section, (struct span){ t->front, t->n_front },
					  (struct span){ t->room, t->page_bytes }) !=
		       t->section.sum;
	if (!t->sum_fails)
		t->fault = kvcache_room_fault(t->room, t->page_bytes, t->element_bytes, page.sum);
}

static void checked(void *userdata)
{
	struct transfer *t = userdata;

	if (!transfer_is_home(t))
		return;
	if (t->sum_fails)
		t->fault = "a section does not match its sum";
	if (t->fault) {
		t->n_damaged++;
		tell(t, stop(t, t->fault));
		return;
	}
	bring(t);
}

/* Its tokens are to be the session's own. */
static int take_front(struct transfer *t)
{
	const uint32_t at = t->n_taken + t->n_there;
	struct export_page page;

	memcpy(&page, t->front, sizeof(page));
	if (page.n != at || page.n_tokens != t->page_tokens || at >= t->walk.n_pages ||
	    memcmp(t->front + sizeof(page), t->ids + (size_t)at * t->page_tokens,
		   t->page_tokens * sizeof(*t->ids)) != 0) {
		t->n_damaged++;
		return stop(t, "a page's tokens are not the session's");
	}
	return read_into(t, IN_PAGE, t->room, t->page_bytes);
}

static int check_page(struct transfer *t)
{
	t->fault = NULL;
	t->under_way = true;
	if (worker_push_for(t->server->worker, t->user->uid, run_check, checked, t) >= 0)
		return 0;
	t->under_way = false;
	return -ENOMEM;
}

static int take_head(struct transfer *t, struct err *err)
{
	struct export_head head;
	int r;

	memcpy(&head, t->front, sizeof(head));
	r = export_head_check(&head, err);
	if (r < 0)
		return r;
	bytes_append(&t->text, t->front, sizeof(head));
	t->n_sections = head.n_sections;
	return next_section(t, err);
}

static int phase_ends(struct transfer *t, struct err *err)
{
	switch (t->phase) {
	case IN_HEAD:
		return take_head(t, err);
	case IN_SECTION:
		return begin_section(t, err);
	case IN_TEXT:
		return next_section(t, err);
	case IN_KVHD:
		return take_kvhd(t, err);
	case IN_FRONT:
		return take_front(t);
	case IN_PAGE:
		return check_page(t);
	default:
		return -EPROTO;
	}
}

/* The file is shorter than it says. */
static int ends_early(struct transfer *t, struct err *err)
{
	t->ended = true;
	if (t->stored) {
		t->n_damaged++;
		return stop(t, "the file ends before its last section");
	}
	if (t->phase == IN_HEAD)
		return err_set(err, -EINVAL, "the file is no exported session");
	if (t->phase == IN_SECTION)
		t->n_sections++; /* the one that it does not have */
	return store(t, t->n_text + t->n_sections, err);
}

int transfer_take(struct request *q, struct span data, struct err *err)
{
	struct transfer *t = q->transfer;
	int r = 0;

	/* no file ends but where more of it is wanted */
	if (!t || q->msg.type != MSG_SESSION_IMPORT || t->ended || t->n_wanted == 0 ||
	    data.len > t->n_wanted)
		return err_set(err, -EPROTO, "session_data came, and was not wanted");
	if (data.len == 0)
		return ends_early(t, err);
	t->n_wanted -= (uint32_t)data.len;
	if (t->to) {
		memcpy(t->to, data.data, data.len);
		t->to += data.len;
	} else {
		bytes_append_span(&t->text, data);
		r = transfer_hold(t, t->text.n, err);
	}
	t->n_to -= data.len;
	if (r < 0 || t->n_wanted > 0)
		return r;
	return t->n_to > 0 ? want(t) : phase_ends(t, err);
}

int transfer_receive(struct request *q, struct err *err)
{
	struct transfer *t;
	int r;

	r = transfer_new(q, &t, err);
	if (r < 0)
		return r;
	t->not_taken = json_array();
	return read_into(t, IN_HEAD, t->front, sizeof(struct export_head));
}

int transfer_stored(struct request *q, struct bytes *json, uint32_t *ids, size_t n_ids,
		    struct err *err)
{
	struct transfer *t = q->transfer;
	int r;

	t->ids = ids;
	t->n_ids = n_ids;
	t->stored = true;
	r = pyjson_load(bytes_span(json), &t->json, err);
	if (r < 0)
		return r;
	json_array_extend(t->not_taken, json_object_get(t->json, "not_taken"));
	r = transfer_hold(t, 0, err);
	if (r >= 0)
		r = transfer_walk(t, err);
	if (r < 0) /* the session is there */
		return stop(t, err->text);
	/* the head of the first section with KV was read before */
	return t->ended || (t->n_sections == 0 && !is_kv(t)) ? finish(t) : begin_kv(t);
}
