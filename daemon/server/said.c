/* Ids to messages and to spans: what is kept of a turn besides its frames. */
#include "daemon/server/said.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/server/stream.h"
#include "daemon/text/pyjson.h"
#include "daemon/text/spans.h"

static struct turns *turns_of(const struct stream *st)
{
	return st->server->engine->turns;
}

bool said_is_stop_id(const struct stream *st, uint32_t id)
{
	const struct step_sampler *p = &st->turn.rec->sampler;

	for (uint32_t i = 0; i < p->n_stop_ids && i < STEP_STOP_IDS_MAX; i++) {
		if (p->stop_ids[i] == id)
			return true;
	}
	return false;
}

int said_parser(const struct stream *st, struct answer **ret)
{
	const struct turn_record *rec = st->turn.rec;
	struct answer_options options = {
		.tokenizer = st->server->model->tokenizer,
		.layout = (enum chat_layout)rec->chat_layout,
		.thinking = rec->thinking,
		.in_reasoning = rec->in_reasoning,
		.trim = rec->chat_layout != CHAT_NONE,
		.string_args = { rec->string_args,
				 MIN(rec->string_args_len, (uint32_t)TURN_STRING_ARGS_BYTES) },
	};
	uint32_t at = 0;

	while (options.n_stops < MIN(rec->n_stops, (uint32_t)ANSWER_STOPS_MAX) &&
	       at < MIN(rec->stops_len, (uint32_t)TURN_STOP_BYTES)) {
		const size_t len = strnlen(rec->stops + at, TURN_STOP_BYTES - at);

		options.stops[options.n_stops++] = (struct span){ rec->stops + at, len };
		at += (uint32_t)len + 1;
	}
	return answer_new(&options, ret);
}

static int push_all(const struct stream *st, struct answer *a, uint32_t *ret_n_ids,
		    uint32_t *ret_n_reasoning)
{
	size_t reasoning = 0, content = 0;
	struct turn_record *rec = st->turn.rec;
	const uint32_t *ids = turn_ids(turns_of(st), rec);
	uint32_t i = rec->n_prompt;
	int r = 0;

	*ret_n_reasoning = 0;
	for (; i < rec->n_ids && r == 0; i++) {
		const size_t thought = reasoning, said = content;

		if (said_is_stop_id(st, ids[i]))
			continue;
		r = answer_push(a, ids[i]);
		answer_count(a, &reasoning, &content);
		*ret_n_reasoning += reasoning > thought && content == said;
	}
	*ret_n_ids = i;
	return r < 0 ? r : answer_finish(a);
}

/* The message as the renderer wants it again, numbers as they were written. */
static int print_message(const struct answer *a, char **ret)
{
	struct answer_delta said;
	struct err ignored = { 0 };
	struct bytes text = { 0 };
	json_t *o, *calls;

	answer_delta(a, &said);
	o = json_pack("{s:s, s:o}", "role", "assistant", "content",
		      json_stringn(said.content.data ? said.content.data : "", said.content.len));
	if (said.reasoning.len)
		json_object_set_new(o, "reasoning_content",
				    json_stringn(said.reasoning.data, said.reasoning.len));
	if (said.tool_calls.len && pyjson_load(said.tool_calls, &calls, &ignored) == 0)
		json_object_set_new(o, "tool_calls", calls);
	if (o)
		pyjson_dump(o, &text);
	json_decref(o);
	if (!o || text.failed) {
		bytes_deinit(&text);
		return -ENOMEM;
	}
	*ret = text.at;
	return 0;
}

int said_whole(const struct stream *st, char **ret_json, const char **ret_finish,
	       uint32_t *ret_n_ids, uint32_t *ret_n_reasoning)
{
	const enum turn_finish finish = (enum turn_finish)st->turn.rec->finish;
	_cleanup_(answer_freep) struct answer *a = NULL;
	int r;

	r = said_parser(st, &a);
	if (r >= 0)
		r = push_all(st, a, ret_n_ids, ret_n_reasoning);
	if (r >= 0)
		r = print_message(a, ret_json);
	if (r < 0)
		return r;
	if (answer_stop_string(a).len > 0)
		*ret_finish = "stop";
	else if (finish == FINISH_STOP && answer_n_tool_calls(a) > 0)
		*ret_finish = "tool_calls";
	else
		*ret_finish = turn_finish_name(finish);
	return 0;
}

/* A copy of a long turn's ids for the worker. */
struct lesson {
	struct spans *spans;
	const struct tokenizer *tokenizer;
	char label[64];
	uint32_t uid, n_prompt, n_ids, ids[];
};

static void run_lesson(void *userdata)
{
	const struct lesson *l = userdata;
	const struct spans_who who = { l->uid, l->label };

	/* what does not fit into memory is tokenised when it comes again */
	(void)!spans_learn(l->spans, &who, l->tokenizer, l->ids, l->n_prompt, l->n_ids);
}

void said_remember(const struct stream *st)
{
	const struct turn_record *rec = st->turn.rec;
	const uint32_t n_ids = st->stopped ? rec->n_prompt + st->n_read : rec->n_ids;
	struct lesson *l;

	if (rec->score || rec->chat_layout == CHAT_NONE || !st->server->model)
		return;
	l = malloc(sizeof(*l) + n_ids * sizeof(*l->ids));
	if (!l)
		return;
	*l = (struct lesson){ .spans = st->server->spans,
			      .tokenizer = st->server->model->tokenizer,
			      .uid = rec->uid,
			      .n_prompt = rec->n_prompt,
			      .n_ids = n_ids };
	memcpy(l->label, rec->label, sizeof(l->label));
	memcpy(l->ids, turn_ids(turns_of(st), st->turn.rec), n_ids * sizeof(*l->ids));
	if (n_ids < REQUEST_INLINE_BYTES ||
	    worker_push_for(st->server->worker, rec->uid, run_lesson, free, l) < 0) {
		run_lesson(l);
		free(l);
	}
}
