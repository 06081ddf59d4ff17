/* A session to a file and back: see export.h. */
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/session/export.h"
#include "daemon/session/store-parts.h"
#include "daemon/text/pyjson.h"

#define NAMES_TRIED_MAX 1000

static void put_section(struct bytes *out, uint32_t kind, struct span payload)
{
	struct export_section head = { .kind = kind, .version = 1, .bytes = payload.len };

	head.sum = export_section_sum(&head, payload, (struct span){ 0 });
	bytes_append(out, (const char *)&head, sizeof(head));
	bytes_append_span(out, payload);
}

static int put_json(struct bytes *out, uint32_t kind, json_t *object, struct err *err)
{
	struct bytes text = { 0 };
	int r;

	r = session_print(object, &text, err);
	if (r == 0)
		put_section(out, kind, bytes_span(&text));
	bytes_deinit(&text);
	return r;
}

struct exporting {
	struct bytes *out;
	uint32_t n_sections;
};

static json_t *text_of(struct span s)
{
	return json_stringn(s.data ? s.data : "", s.len);
}

static int put_turn(const struct turn_row *row, void *userdata, struct err *err)
{
	struct exporting *e = userdata;
	char vocab[17];
	int r;

	if (row->state != TURN_ROW_COMPLETE)
		return 0;
	session_id_text(row->vocab, vocab);
	r = put_json(e->out, EXPORT_TURN,
		     json_pack("{s:i, s:o, s:o, s:o, s:I, s:I, s:s, s:I, s:I, s:I, s:I}", "n",
			       (int)row->n, "request", text_of(row->request), "answer",
			       text_of(row->answer), "finish", text_of(row->finish), "n_prompt",
			       (json_int_t)row->n_prompt, "kept", (json_int_t)row->kept, "vocab",
			       vocab, "begun", (json_int_t)row->begun, "ended",
			       (json_int_t)row->ended, "n_cached", (json_int_t)row->n_cached,
			       "n_reasoning", (json_int_t)row->n_reasoning),
		     err);
	if (r < 0)
		return r;
	put_section(e->out, EXPORT_TOKS, row->ids);
	e->n_sections += 2;
	return 0;
}

int store_export(struct store *s, const struct store_who *who, struct span name, struct bytes *ret,
		 struct err *err)
{
	struct export_head head = { 0 };
	struct exporting e = { .out = ret, .n_sections = 1 };
	_cleanup_(finalizep) sqlite3_stmt *stmt = NULL;
	json_t *defaults = NULL;
	struct session_row row;
	int r;

	r = session_find(s, who, name, &stmt, &row, err);
	if (r == 0)
		r = pyjson_load(row.defaults, &defaults, err);
	if (r < 0)
		return r;
	bytes_append(ret, (const char *)&head, sizeof(head));
	r = put_json(ret, EXPORT_SESS,
		     json_pack("{s:o, s:I, s:o}", "name", text_of(row.name), "created",
			       (json_int_t)row.created, "defaults", defaults),
		     err);
	if (r == 0)
		r = store_each_turn(s, &row, UINT32_MAX, false, put_turn, &e, err);
	if (r == 0 && ret->failed)
		r = err_set(err, -ENOMEM, "out of memory");
	if (r < 0)
		return r;
	head = export_head_of(e.n_sections);
	memcpy(ret->at, &head, sizeof(head));
	return 0;
}

/* Reading: nothing is believed but what the sums cover and the bounds allow. */

struct importing {
	struct store *store;
	sqlite3_stmt *put; /* of turns */
	const struct store_who *who;
	struct span left; /* of the file */
	uint32_t n_left;  /* sections */
	uint64_t vocab;
	uint32_t vocab_size;
	json_t *not_taken;
	uint64_t session;
	uint32_t n_turns;
	/* of the turns' JSON, which is one conversation when the next one begins */
	size_t n_values, n_bytes;
	size_t n_ids;
	struct turn_ids ids;
	bool no_ids; /* those of the turn in hand and of all later ones stay behind */
};

static void leave(struct importing *in, const char *why, const char *format, ...) _printf_(3, 4);
static void leave(struct importing *in, const char *why, const char *format, ...)
{
	char what[64];
	va_list ap;

	va_start(ap, format);
	vsnprintf(what, sizeof(what), format, ap);
	va_end(ap);
	json_array_append_new(in->not_taken, json_pack("{s:s, s:s}", "what", what, "why", why));
}

static int open_file(struct importing *in, struct span file, struct err *err)
{
	struct export_head head;
	int r;

	if (file.len < sizeof(head))
		return err_set(err, -EINVAL, "the file is no exported session");
	memcpy(&head, file.data, sizeof(head));
	r = export_head_check(&head, err);
	if (r < 0)
		return r;
	in->left = (struct span){ file.data + sizeof(head), file.len - sizeof(head) };
	in->n_left = head.n_sections;
	return 0;
}

/* 1 and a section whose sum holds; 0 at the end; -EUCLEAN with why. */
static int next_section(struct importing *in, struct export_section *ret, struct span *ret_payload,
			struct err *err)
{
	if (in->n_left == 0)
		return 0;
	if (in->left.len < sizeof(*ret))
		return err_set(err, -EUCLEAN, "the file ends before its last section");
	memcpy(ret, in->left.data, sizeof(*ret));
	in->left.data += sizeof(*ret);
	in->left.len -= sizeof(*ret);
	if (ret->bytes > in->left.len)
		return err_set(err, -EUCLEAN, "a section has %llu bytes; %zu are left",
			       (unsigned long long)ret->bytes, in->left.len);
	*ret_payload = (struct span){ in->left.data, ret->bytes };
	in->left.data += ret->bytes;
	in->left.len -= ret->bytes;
	in->n_left--;
	if (export_section_sum(ret, *ret_payload, (struct span){ 0 }) != ret->sum)
		return err_set(err, -EUCLEAN, "a section does not match its sum");
	return 1;
}

static struct span string_at(const json_t *o, const char *key)
{
	const json_t *value = json_object_get(o, key);

	return (struct span){ json_string_value(value), json_string_length(value) };
}

static int64_t integer_at(const json_t *o, const char *key)
{
	return json_integer_value(json_object_get(o, key));
}

static bool is_message_list(struct span text)
{
	struct err ignored = { 0 };
	json_t *o = NULL;
	bool is;

	if (!text.data || pyjson_load(text, &o, &ignored) < 0)
		return false;
	is = json_array_size(json_object_get(o, "messages")) > 0;
	json_decref(o);
	return is;
}

static bool is_object(struct span text)
{
	struct err ignored = { 0 };
	json_t *o = NULL;
	bool is;

	if (!text.data || pyjson_load(text, &o, &ignored) < 0)
		return false;
	is = json_is_object(o);
	json_decref(o);
	return is;
}

/* Why the ids of a turn mean nothing here; NULL: they do. */
static const char *ids_fault(struct importing *in, const struct turn_row *row)
{
	if (row->vocab != in->vocab)
		return "the ids are of another tokenizer; the text was taken";
	in->n_ids += row->ids.len / 4;
	if (in->n_ids > STORE_FILE_IDS_MAX)
		return "there are more ids than are taken; the text was taken";
	if (turn_ids_follow(&in->ids, row) < 0)
		return "the ids do not follow those of the turn before; the text was taken";
	if (row->n_prompt > in->ids.n)
		return "there are fewer ids than the prompt has; the text was taken";
	for (size_t i = row->kept; i < in->ids.n; i++)
		if (in->ids.at[i] >= in->vocab_size)
			return "an id is beyond the vocabulary; the text was taken";
	return NULL;
}

/* -1: the file is of a steamd that did not keep it. */
static int64_t count_at(const json_t *o, const char *key)
{
	const int64_t n = json_object_get(o, key) ? integer_at(o, key) : -1;

	return n >= 0 && n <= UINT32_MAX ? n : -1;
}

/* Returns 0, or 1 if the turn and all after it stay behind. */
static int take_turn(struct importing *in, const json_t *o, struct span ids, struct err *err)
{
	struct turn_row row = {
		.session = in->session,
		.n = in->n_turns + 1,
		.state = TURN_ROW_COMPLETE,
		.request = string_at(o, "request"),
		.answer = string_at(o, "answer"),
		.finish = string_at(o, "finish"),
		.n_prompt = (uint32_t)integer_at(o, "n_prompt"),
		.kept = (uint32_t)integer_at(o, "kept"),
		.ids = ids,
		.begun = integer_at(o, "begun"),
		.ended = integer_at(o, "ended"),
		.n_cached = count_at(o, "n_cached"),
		.n_reasoning = count_at(o, "n_reasoning"),
	};
	const char *vocab = json_string_value(json_object_get(o, "vocab")), *fault;

	row.vocab = vocab ? strtoull(vocab, NULL, 16) : 0;
	in->n_bytes += row.request.len + row.answer.len;
	if (in->n_bytes > STORE_TEXT_BYTES_MAX) {
		leave(in, "a conversation of so many bytes could not go on",
		      "turn %u and what follows", row.n);
		return 1;
	}
	in->n_values += pyjson_count(row.request) + pyjson_count(row.answer);
	if (in->n_values > PYJSON_VALUES_MAX) {
		leave(in, "a conversation of so many JSON values could not go on",
		      "turn %u and what follows", row.n);
		return 1;
	}
	if (integer_at(o, "n") != row.n || row.n > STORE_TURNS_MAX ||
	    !is_message_list(row.request) || !is_object(row.answer) || row.finish.len > 32) {
		leave(in, "it is no turn that could be here", "turn %u and what follows", row.n);
		return 1;
	}
	fault = in->no_ids ? NULL : ids_fault(in, &row);
	if (fault) {
		leave(in, fault, "ids from turn %u on", row.n);
		in->no_ids = true;
	}
	if (in->no_ids) {
		row.ids = (struct span){ 0 };
		row.vocab = 0;
		row.kept = row.n_prompt = 0;
	}
	in->n_turns++;
	return turn_row_put(in->store, &in->put, &row, err);
}

static bool is_kv(const struct export_section *head)
{
	return head->kind == EXPORT_KVHD || head->kind == EXPORT_KVPG;
}

static int take_turns(struct importing *in, struct err *err)
{
	struct export_section head;
	struct err why = { 0 };
	struct span payload;
	json_t *turn = NULL;
	int r = 0, got = 0;

	while (r == 0 && (got = next_section(in, &head, &payload, &why)) > 0) {
		const bool known = head.version == 1;

		if (turn && known && head.kind == EXPORT_TOKS) {
			r = take_turn(in, turn, payload, err);
			json_decref(turn);
			turn = NULL;
		} else if (!turn && known && head.kind == EXPORT_TURN &&
			   payload.len > 2 * STORE_TEXT_BYTES_MAX) { /* twice: as it is escaped */
			leave(in, "a conversation of so many bytes could not go on",
			      "turn %u and what follows", in->n_turns + 1);
			r = 1;
		} else if (!turn && known && head.kind == EXPORT_TURN &&
			   pyjson_load(payload, &turn, &why) == 0) {
			continue; /* its ids follow */
		} else if (!turn && head.kind != EXPORT_TURN && head.kind != EXPORT_TOKS &&
			   head.kind != EXPORT_SESS) {
			leave(in,
			      is_kv(&head) ? "KV comes in only where the file comes in pieces"
					   : "this steamd does not know its kind",
			      "section '%.4s'", (const char *)&head.kind);
		} else {
			leave(in, "a section is not where it belongs", "turn %u and what follows",
			      in->n_turns + 1);
			r = 1;
		}
	}
	if (got < 0)
		leave(in, why.text, "turn %u and what follows", in->n_turns + 1);
	json_decref(turn);
	return MIN(r, 0);
}

/* The name wanted, or that with a number behind it, which is written into @other. */
static int make_session(struct importing *in, struct session_row *row,
			const struct store_limits *limits, char id_text[17],
			char other[STORE_NAME_MAX + 16], struct err *err)
{
	struct span wanted = row->name;
	int r;

	wanted.len = MIN(wanted.len, (size_t)STORE_NAME_MAX - 5);
	while (wanted.len < row->name.len && (wanted.data[wanted.len] & 0xc0) == 0x80)
		wanted.len--; /* not inside a character */
	for (int n = 2;; n++) {
		r = session_make(in->store, in->who, row, limits, id_text, err);
		if (r != -EEXIST || n > NAMES_TRIED_MAX)
			return r;
		row->name = (struct span){ other,
					   (size_t)snprintf(other, STORE_NAME_MAX + 16, "%.*s-%d",
							    SPAN_ARG(wanted), n) };
	}
}

static int take(struct importing *in, const json_t *sess, struct span name,
		const struct store_limits *limits, struct bytes *ret, struct err *err)
{
	const json_t *defaults = json_object_get(sess, "defaults");
	struct session_row row = { .name = name.len ? name : string_at(sess, "name") };
	struct bytes text = { 0 };
	json_t *o = NULL;
	char id_text[17], other[STORE_NAME_MAX + 16];
	int r;

	if (json_is_object(defaults))
		pyjson_dump(defaults, &text);
	if (text.n > STORE_DEFAULTS_MAX) {
		leave(in, "they are longer than sampler settings can be", "the defaults");
		bytes_deinit(&text);
		text = (struct bytes){ 0 };
	}
	if (text.n == 0)
		bytes_append_string(&text, "{}");
	row.defaults = bytes_span(&text);
	r = make_session(in, &row, limits, id_text, other, err);
	in->session = row.id;
	if (r == 0)
		r = take_turns(in, err);
	sqlite3_finalize(in->put);
	if (r == 0)
		r = store_check_bytes(in->store, in->who->uid, limits, err);
	if (r == 0)
		r = session_json(in->store, &row, &o, err);
	bytes_deinit(&text);
	if (r < 0)
		return r;
	json_object_set(o, "not_taken", in->not_taken);
	return session_print(o, ret, err);
}

int store_import(struct store *s, const struct store_who *who, struct span file, struct span name,
		 uint64_t vocab, uint32_t vocab_size, const struct store_limits *limits,
		 struct bytes *ret, struct err *err)
{
	struct importing in = { .store = s, .who = who, .vocab = vocab, .vocab_size = vocab_size };
	struct export_section head;
	struct span payload;
	json_t *sess = NULL;
	int r;

	r = open_file(&in, file, err);
	if (r == 0)
		r = next_section(&in, &head, &payload, err);
	if (r > 0 && (head.kind != EXPORT_SESS || head.version != 1))
		r = err_set(err, -EINVAL, "the file's first section is no session");
	if (r > 0)
		r = pyjson_load(payload, &sess, err);
	if (r < 0)
		return r == -EBADMSG ? err_wrap(err, -EINVAL, "the file's session") : r;
	in.not_taken = json_array();
	r = store_limited_transaction(s, who->uid, limits, true, err);
	if (r == 0)
		r = store_finish(s, take(&in, sess, name, limits, ret, err), err);
	json_decref(in.not_taken);
	json_decref(sess);
	turn_ids_deinit(&in.ids);
	return r;
}
