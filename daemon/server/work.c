/*
 * The text work of a request: from what came to token ids, and back. Runs on
 * the worker for long inputs, so it touches its request, the immutable model
 * and the spans, which are locked.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/server/request.h"
#include "daemon/text/pyjson.h"
#include "daemon/text/spans.h"

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

static bool wants_each(const struct request *q)
{
	return q->msg.type == MSG_DETOKENIZE && q->msg.detokenize.has_each &&
	       q->msg.detokenize.each;
}

/* What DONE can carry is known beforehand. */
static int check_answer(struct request *q, size_t bytes)
{
	const size_t most = wants_each(q) ? 128u << 20 : 64u << 20;

	if (bytes <= most)
		return 0;
	return err_set(&q->err, -E2BIG, "the answer to %s would have %zu bytes; %zu can be sent",
		       msg_name(q->msg.type), bytes, most);
}

/* A conversation to be answered ends in the assistant's marker unless it says otherwise. */
static int render_conversation(struct request *q, json_t *conversation, struct chat_rendering *ret)
{
	if (q->msg.type == MSG_GENERATE && json_is_object(conversation) &&
	    !json_object_get(conversation, "add_generation_prompt") &&
	    json_object_set_new(conversation, "add_generation_prompt", json_true()) < 0)
		return -ENOMEM;
	return chat_render(q->layout, conversation, ret, &q->err);
}

/* Answers become the ids that they were sampled as. */
static int encode(struct request *q, const struct chat_rendering *rendering)
{
	const struct spans_who who = { q->user->uid, q->label };
	struct spans *spans = q->server->spans;
	int r = 0;

	/* a session's may be from before this life, or crowded out */
	if (q->begun.n_ids > 0)
		r = spans_learn(spans, &who, q->model->tokenizer, q->begun.ids, q->begun.n_prompt,
				q->begun.n_ids);
	return r < 0 ? r : spans_encode(spans, &who, rendering, q->model->tokenizer, &q->ids);
}

static int render(struct request *q, struct span json)
{
	_cleanup_(chat_rendering_deinit) struct chat_rendering rendering = { 0 };
	json_t *conversation;
	int r;

	if (q->layout == CHAT_NONE)
		return err_set(&q->err, -ENOTSUP,
			       "the model has no chat template that steamd knows; raw completion "
			       "(steamctl "
			       "complete) works, and ChatTemplate= chooses one");
	r = pyjson_load(json, &conversation, &q->err);
	if (r < 0)
		return r == -ENOMEM ? r : err_wrap(&q->err, r, "the conversation");
	r = render_conversation(q, conversation, &rendering);
	json_decref(conversation);
	if (r < 0)
		return r;
	if (q->msg.type == MSG_RENDER) {
		q->text = steal(rendering.text);
		q->text_len = rendering.len;
		return check_answer(q, q->text_len);
	}
	q->thinking = rendering.thinking;
	q->in_reasoning = rendering.in_reasoning;
	q->string_args = steal(rendering.string_args);
	q->string_args_len = rendering.string_args_len;
	return encode(q, &rendering);
}

/* Each id's bytes as they are, part of a character or not, behind their number. */
static void decode_each(struct request *q)
{
	const struct tokenizer *t = q->model->tokenizer;

	for (size_t i = 0; i < q->ids.n; i++) {
		const struct span bytes = tokenizer_bytes(t, q->ids.at[i]);
		const uint32_t len = (uint32_t)bytes.len;

		memcpy(q->text + q->text_len, &len, sizeof(len));
		q->text_len += sizeof(len);
		if (len > 0)
			memcpy(q->text + q->text_len, bytes.data, len);
		q->text_len += len;
	}
}

static int decode(struct request *q)
{
	const struct msg_detokenize *m = &q->msg.detokenize;
	const struct tokenizer *t = q->model->tokenizer;
	size_t n = wants_each(q) ? q->ids.n * sizeof(uint32_t) : 0;
	int r;

	for (size_t i = 0; i < q->ids.n; i++)
		n += tokenizer_bytes(t, q->ids.at[i]).len;
	r = check_answer(q, n);
	if (r < 0)
		return r;
	if (!wants_each(q))
		return tokenizer_decode(t, q->ids.at, q->ids.n,
					m->has_skip_special && m->skip_special, &q->text,
					&q->text_len);
	q->text = malloc(n + 1);
	if (!q->text)
		return -ENOMEM;
	decode_each(q);
	return 0;
}

static int work(struct request *q, enum source source, struct span input)
{
	const struct textmodel *m = q->model;
	int r;

	if (source == SOURCE_MESSAGES)
		return render(q, input);

	q->layout = CHAT_NONE;
	if (q->msg.type == MSG_DETOKENIZE) {
		/* rows of the model that are no token are empty text */
		r = take_ids(q, input, MAX(m->config.vocab, tokenizer_size(m->tokenizer)));
		if (r < 0)
			return r;
		return decode(q);
	}
	if (source == SOURCE_IDS)
		return take_ids(q, input, m->vocab_real);
	r = tokenizer_encode(m->tokenizer, input,
			     q->msg.type == MSG_TOKENIZE && q->msg.tokenize.has_plain &&
					     q->msg.tokenize.plain
				     ? TOKENIZER_ADDED_NONE
				     : TOKENIZER_ADDED_ALL,
			     &q->ids);
	if (r >= 0 && q->msg.type == MSG_TOKENIZE)
		r = check_answer(q, q->ids.n * sizeof(*q->ids.at));
	return r;
}

void request_work(struct request *q)
{
	struct span input = { 0 }, name;
	enum source source;
	int r = 0;

	source = find_source(&q->msg, &input, &name);
	if (q->begun.session) {
		source = SOURCE_MESSAGES;
		input = (struct span){ q->begun.conversation, q->begun.conversation_len };
	} else if (q->attached_fd >= 0) {
		const bool is_turn = q->msg.type == MSG_GENERATE || q->msg.type == MSG_SCORE;
		const enum source said = source_of_name(name, source, &r);

		if (r < 0 || (!is_turn && said != source) ||
		    (q->msg.type == MSG_SCORE && said == SOURCE_MESSAGES)) {
			q->result = err_set(&q->err, -EINVAL, "%s.attached is '%.*s'",
					    msg_name(q->msg.type), SPAN_ARG(name));
			return;
		}
		source = said;
		r = attached_read(q->attached_fd, q->attached_bytes, &q->attached_text, &q->err);
		if (r >= 0)
			input = (struct span){ q->attached_text, q->attached_bytes };
	}
	if (!input.data)
		input = SPAN("");
	if (r >= 0)
		r = work(q, source, input);
	if (r == -ENOMEM && !q->err.text[0])
		err_set(&q->err, r, "out of memory");
	q->result = r;
}
