/*
 * The text work of a request: from what came to token ids, and back. Runs on
 * the worker for long inputs, so it touches its request and the immutable
 * model only.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/server/request.h"

enum source { SOURCE_TEXT, SOURCE_IDS, SOURCE_MESSAGES };

static enum source source_of_name(struct span name, enum source otherwise, int *ret_r)
{
	*ret_r = 0;
	if (span_is(name, "messages"))
		return SOURCE_MESSAGES;
	if (span_is(name, "prompt") || span_is(name, "text"))
		return SOURCE_TEXT;
	if (span_is(name, "ids"))
		return SOURCE_IDS;
	*ret_r = -EINVAL;
	return otherwise;
}

/* Which field the input is in, or what the descriptor holds; *@ret_name: of the latter. */
static enum source find_source(const struct msg *m, struct span *ret, struct span *ret_name)
{
	*ret_name = (struct span){ 0 };
	switch (m->type) {
	case MSG_GENERATE:
		if (m->generate.has_attached)
			*ret_name = m->generate.attached;
		if (m->generate.has_messages) {
			*ret = m->generate.messages;
			return SOURCE_MESSAGES;
		}
		*ret = m->generate.has_ids ? m->generate.ids : m->generate.prompt;
		return m->generate.has_ids ? SOURCE_IDS : SOURCE_TEXT;
	case MSG_SCORE:
		if (m->score.has_attached)
			*ret_name = m->score.attached;
		*ret = m->score.has_ids ? m->score.ids : m->score.prompt;
		return m->score.has_ids ? SOURCE_IDS : SOURCE_TEXT;
	case MSG_TOKENIZE:
		if (m->tokenize.has_attached)
			*ret_name = m->tokenize.attached;
		*ret = m->tokenize.text;
		return SOURCE_TEXT;
	case MSG_DETOKENIZE:
		if (m->detokenize.has_attached)
			*ret_name = m->detokenize.attached;
		*ret = m->detokenize.ids;
		return SOURCE_IDS;
	default:
		if (m->render.has_attached)
			*ret_name = m->render.attached;
		*ret = m->render.messages;
		return SOURCE_MESSAGES;
	}
}

static int take_ids(struct request *q, struct span bytes, uint32_t limit)
{
	if (bytes.len % 4 != 0)
		return err_set(&q->err, -EINVAL, "%s.ids has %zu bytes; 4 an id are wanted",
			       msg_name(q->msg.type), bytes.len);
	for (size_t i = 0; i < bytes.len; i += 4) {
		uint32_t id;

		memcpy(&id, bytes.data + i, sizeof(id));
		if (id >= limit)
			return err_set(&q->err, -EINVAL, "%s.ids[%zu] is %u; the vocabulary has %u",
				       msg_name(q->msg.type), i / 4, id, limit);
		if (ids_append(&q->ids, &id, 1) < 0)
			return -ENOMEM;
	}
	return 0;
}

/*
 * Whether the outermost object of @json has @key. The text may still be no
 * JSON at all: the renderer says so.
 */
static bool has_key(struct span json, const char *key)
{
	const size_t key_len = strlen(key);
	uint32_t depth = 0;

	for (size_t i = 0; i < json.len; i++) {
		const char c = json.data[i];
		size_t begin;

		if (c == '{' || c == '[')
			depth++;
		else if ((c == '}' || c == ']') && depth > 0)
			depth--;
		if (c != '"')
			continue;
		begin = ++i;
		while (i < json.len && json.data[i] != '"')
			i += json.data[i] == '\\' ? 2 : 1;
		if (depth != 1 || i >= json.len || i - begin != key_len ||
		    memcmp(json.data + begin, key, key_len) != 0)
			continue;
		begin = i + 1;
		while (begin < json.len && strchr(" \t\r\n", json.data[begin]))
			begin++;
		if (begin < json.len && json.data[begin] == ':')
			return true;
	}
	return false;
}

/* A conversation to be answered ends in the assistant's marker unless it says otherwise. */
static int ask_for_answer(struct span *json, char **ret_owned)
{
	static const char field[] = "\"add_generation_prompt\":true,";
	const size_t blanks = json->len ? strspn(json->data, " \t\r\n") : 0;
	char *text;

	if (blanks >= json->len || json->data[blanks] != '{' ||
	    has_key(*json, "add_generation_prompt"))
		return 0;
	text = malloc(json->len + sizeof(field));
	if (!text)
		return -ENOMEM;
	memcpy(text, json->data, blanks + 1);
	memcpy(text + blanks + 1, field, sizeof(field) - 1);
	memcpy(text + blanks + sizeof(field), json->data + blanks + 1, json->len - blanks - 1);
	*ret_owned = text;
	*json = (struct span){ text, json->len + sizeof(field) - 1 };
	return 0;
}

static int render(struct request *q, struct span json)
{
	_cleanup_(chat_rendering_deinit) struct chat_rendering rendering = { 0 };
	_cleanup_(freep) char *owned = NULL, *copy = NULL;
	int r;

	if (q->layout == CHAT_NONE)
		return err_set(&q->err, -ENOTSUP,
			       "the model has no chat template that steamd knows; raw completion "
			       "works, and ChatTemplate= chooses one");
	copy = malloc(json.len + 1); /* strspn() wants an end */
	if (!copy)
		return -ENOMEM;
	memcpy(copy, json.data, json.len);
	copy[json.len] = '\0';
	json.data = copy;
	if (q->msg.type == MSG_GENERATE) {
		r = ask_for_answer(&json, &owned);
		if (r < 0)
			return r;
	}
	r = chat_render_text(q->layout, json, &rendering, &q->err);
	if (r < 0)
		return r;
	if (q->msg.type == MSG_RENDER) {
		q->text = steal(rendering.text);
		q->text_len = rendering.len;
		return 0;
	}
	q->thinking = rendering.thinking;
	q->in_reasoning = rendering.in_reasoning;
	return chat_encode(&rendering, q->model->tokenizer, &q->ids);
}

static int work(struct request *q, enum source source, struct span input)
{
	const struct textmodel *m = q->model;
	int r;

	if (source == SOURCE_MESSAGES)
		return render(q, input);

	q->layout = CHAT_NONE;
	if (q->msg.type == MSG_DETOKENIZE) {
		/* any id may be asked for; those without a token are empty */
		r = take_ids(q, input, UINT32_MAX);
		if (r < 0)
			return r;
		return tokenizer_decode(m->tokenizer, q->ids.at, q->ids.n,
					q->msg.detokenize.has_skip_special &&
						q->msg.detokenize.skip_special,
					&q->text, &q->text_len);
	}
	if (source == SOURCE_IDS)
		return take_ids(q, input, m->vocab_real);
	return tokenizer_encode(m->tokenizer, input,
				q->msg.type == MSG_TOKENIZE && q->msg.tokenize.has_plain &&
						q->msg.tokenize.plain ?
					TOKENIZER_ADDED_NONE :
					TOKENIZER_ADDED_ALL,
				&q->ids);
}

void request_work(struct request *q)
{
	_cleanup_(freep) char *attached = NULL;
	struct span input = { 0 }, name;
	enum source source;
	int r = 0;

	source = find_source(&q->msg, &input, &name);
	if (q->attached_fd >= 0) {
		const bool is_turn = q->msg.type == MSG_GENERATE || q->msg.type == MSG_SCORE;
		const enum source said = source_of_name(name, source, &r);

		if (r < 0 || (!is_turn && said != source) ||
		    (q->msg.type == MSG_SCORE && said == SOURCE_MESSAGES)) {
			q->result = err_set(&q->err, -EINVAL, "%s.attached is '%.*s'",
					    msg_name(q->msg.type), SPAN_ARG(name));
			return;
		}
		source = said;
		r = attached_read(q->attached_fd, q->attached_bytes, &attached, &q->err);
		if (r >= 0)
			input = (struct span){ attached, q->attached_bytes };
	}
	if (!input.data)
		input = SPAN("");
	if (r >= 0)
		r = work(q, source, input);
	if (r == -ENOMEM && !q->err.text[0])
		err_set(&q->err, r, "out of memory");
	q->result = r;
}
