/* One answer: streamed as it comes, with everything but the answer on stderr. */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "client/steamctl/steamctl.h"

struct run {
	struct ctl *c;
	json_t *ids; /* of the whole answer, for the last JSON line */
	struct answer_text text;
	bool dim; /* stderr is a terminal */
	bool in_reasoning, in_progress;
	char last; /* the last byte of content printed */
	bool pipe_closed, failed;
	bool ended;
	int exit_code;
	uint64_t request;
};

void answer_text_deinit(struct answer_text *a)
{
	free(a->content);
	free(a->reasoning);
	json_decref(a->tool_calls);
	memset(a, 0, sizeof(*a));
}

static bool collect(char **text, size_t *len, const char *more, size_t n)
{
	char *longer;

	if (n == 0)
		return true;
	longer = realloc(*text, *len + n + 1);
	if (!longer)
		return false;
	memcpy(longer + *len, more, n);
	*len += n;
	longer[*len] = '\0';
	*text = longer;
	return true;
}

static void end_progress(struct run *run)
{
	if (run->in_progress)
		fputs("\r\033[K", stderr);
	run->in_progress = false;
}

static void on_progress(void *userdata, const struct steamd_progress *p)
{
	struct run *run = userdata;

	if (!run->dim)
		return; /* a log file needs no moving picture */
	run->in_progress = true;
	if (p->text[0])
		fprintf(stderr, "\r\033[K\033[2m%s\033[0m", p->text);
	else if (p->total)
		fprintf(stderr, "\r\033[K\033[2m%s %u of %u\033[0m", p->state, p->done, p->total);
	else
		fprintf(stderr, "\r\033[K\033[2m%s\033[0m", p->state);
	fflush(stderr);
}

static json_t *top_of(const struct steamd_delta *d, uint32_t i)
{
	json_t *list = json_array();

	for (uint32_t k = 0; k < d->n_top; k++)
		json_array_append_new(list,
				      json_pack("[I, f]", (json_int_t)d->top_ids[i * d->n_top + k],
						(double)d->top_logprobs[i * d->n_top + k]));
	return list;
}

static json_t *number_or_null(float value)
{
	return isnan(value) ? json_null() : json_real(value);
}

static json_t *delta_json(const struct steamd_delta *d)
{
	json_t *line = json_object(), *ids = json_array(), *logprobs = json_array(),
	       *tops = json_array();

	for (uint32_t i = 0; i < d->n_ids; i++) {
		json_array_append_new(ids, json_integer(d->ids[i]));
		if (d->logprobs)
			json_array_append_new(logprobs, number_or_null(d->logprobs[i]));
		if (d->top_ids)
			json_array_append_new(tops, top_of(d, i));
	}
	json_object_set_new(line, "index", json_integer(d->index));
	json_object_set_new(line, "ids", ids);
	if (d->reasoning_len)
		json_object_set_new(line, "reasoning",
				    json_stringn(d->reasoning, d->reasoning_len));
	if (d->content_len)
		json_object_set_new(line, "content", json_stringn(d->content, d->content_len));
	if (d->logprobs)
		json_object_set(line, "logprobs", logprobs);
	if (d->top_ids)
		json_object_set(line, "top", tops);
	json_decref(logprobs);
	json_decref(tops);
	return line;
}

static void print_reasoning(struct run *run, const struct steamd_delta *d)
{
	if (d->reasoning_len == 0)
		return;
	if (run->dim && !run->in_reasoning)
		fputs("\033[2m", stderr);
	run->in_reasoning = true;
	fwrite(d->reasoning, 1, d->reasoning_len, stderr);
	fflush(stderr);
}

static void end_reasoning(struct run *run)
{
	if (run->in_reasoning)
		fputs(run->dim ? "\033[0m\n\n" : "\n", stderr);
	run->in_reasoning = false;
}

static bool print_calls(json_t *calls)
{
	json_t *call;
	size_t i;

	json_array_foreach(calls, i, call)
		if (!print_json(json_incref(call)))
			return false;
	return true;
}

static bool print_text(struct run *run, const struct steamd_delta *d, json_t *calls)
{
	print_reasoning(run, d);
	if (d->content_len == 0 && !calls)
		return true;
	end_reasoning(run);
	if (d->content_len) {
		run->last = d->content[d->content_len - 1];
		if (fwrite(d->content, 1, d->content_len, stdout) != d->content_len)
			return false;
	}
	if (calls && run->last && run->last != '\n' && fputc('\n', stdout) == EOF)
		return false;
	if (calls) {
		run->last = '\n';
		return print_calls(calls);
	}
	return true;
}

static int on_delta(void *userdata, const struct steamd_delta *d)
{
	struct run *run = userdata;
	json_t *calls = d->tool_calls ? json_loadb(d->tool_calls, d->tool_calls_len, 0, NULL)
				      : NULL;
	bool ok;

	end_progress(run);
	for (uint32_t i = 0; i < d->n_ids; i++)
		json_array_append_new(run->ids, json_integer(d->ids[i]));
	ok = collect(&run->text.content, &run->text.content_len, d->content, d->content_len) &&
	     collect(&run->text.reasoning, &run->text.reasoning_len, d->reasoning,
		     d->reasoning_len);
	if (calls) {
		if (!run->text.tool_calls)
			run->text.tool_calls = json_array();
		json_array_extend(run->text.tool_calls, calls);
	}
	if (!ok)
		run->failed = true;
	else if (!(run->c->json ? print_json(delta_json(d)) : print_text(run, d, calls)) ||
		 fflush(stdout) != 0)
		run->pipe_closed = true;
	json_decref(calls);
	return run->failed || run->pipe_closed;
}

/* By tier: an executor on CPUs computes in the arena itself and has no KV of its own. */
static json_t *usage_json(const struct steamd_result *r)
{
	const uint32_t n_disk = MIN(r->n_cached_disk, r->n_cached);
	json_t *o = json_object();

#define ONE(key, n) json_object_set_new(o, key, json_integer((json_int_t)(n)))
	ONE("prompt_tokens", r->n_prompt);
	ONE("cached_tokens", r->n_cached);
	ONE("cached_device", 0);
	ONE("cached_arena", r->n_cached - n_disk);
	ONE("cached_disk", n_disk);
	ONE("recomputed_tokens", r->n_recomputed);
	ONE("completion_tokens", r->n_completion);
#undef ONE
	json_object_set_new(o, "prefill_ms", json_real(r->prefill_us / 1000.0));
	json_object_set_new(o, "decode_ms", json_real(r->decode_us / 1000.0));
	return o;
}

/* For cancel and cache explain; beyond 2^53, so that readers of JSON would round it as a number. */
static json_t *turn_json(const struct steamd_result *r)
{
	char id[24];

	snprintf(id, sizeof(id), "%llu", (unsigned long long)r->turn);
	return json_string(id);
}

/* The last line says everything about the answer, so that a script may read it alone. */
static bool print_last(struct run *run, const struct steamd_result *r, const char *finish,
		       const struct steamd_error *err)
{
	json_t *line = json_object();

	json_object_set(line, "ids", run->ids);
	json_object_set_new(
		line, "content",
		json_stringn(run->text.content ? run->text.content : "", run->text.content_len));
	if (run->text.reasoning_len)
		json_object_set_new(line, "reasoning",
				    json_stringn(run->text.reasoning, run->text.reasoning_len));
	if (run->text.tool_calls)
		json_object_set(line, "tool_calls", run->text.tool_calls);
	json_object_set_new(line, "finish", json_string(finish));
	if (err)
		json_object_set_new(line, "error",
				    json_pack("{s:s, s:s}", "code", err->code, "text", err->text));
	if (r->stop_string)
		json_object_set_new(line, "stop_string", json_string(r->stop_string));
	json_object_set_new(line, "usage", usage_json(r));
	json_object_set_new(line, "turn", turn_json(r));
	if (r->session[0])
		json_object_set_new(line, "session",
				    json_pack("{s:s, s:i, s:b}", "id", r->session, "turn",
					      (int)r->session_turn, "saved", r->saved));
	/* a seed of the user's own may not fit JSON's integers */
	if (r->seed <= INT64_MAX)
		json_object_set_new(line, "seed", json_integer((json_int_t)r->seed));
	return print_json(line);
}

/*
 * An answer that was accepted and then cancelled, or ended by an error, has a last
 * line too: what there is of it was computed, and was paid for.
 */
static bool print_end(struct run *run, const struct steamd_result *r,
		      const struct steamd_error *err)
{
	const bool cancelled = err && err->error == -ECANCELED;
	const char *finish = cancelled	 ? "cancelled"
			     : err	 ? "error"
			     : r->finish ? r->finish
					 : "stop";

	if (!run->c->json || (err && !cancelled && r->n_prompt == 0))
		return true;
	return print_last(run, r, finish, cancelled ? NULL : err) && fflush(stdout) == 0;
}

static void on_end(void *userdata, const struct steamd_result *r, const struct steamd_error *err)
{
	struct run *run = userdata;

	run->ended = true;
	end_progress(run);
	end_reasoning(run);
	if (run->pipe_closed)
		run->exit_code = EXIT_PIPE;
	else if (run->failed)
		run->exit_code = fail(EXIT_LOCAL, "out of memory");
	else if (!print_end(run, r, err))
		run->exit_code = EXIT_PIPE;
	else if (err && interrupt_pending())
		run->exit_code = EXIT_INTERRUPTED;
	else if (err)
		run->exit_code = fail_with(err);
	if (!err && r->session[0] && !r->saved)
		fprintf(stderr, "steamctl: the turn is not saved: %s\n", r->not_saved);
	/* an answer ends its line: a shell's prompt comes next */
	if (!run->c->json && !run->pipe_closed && run->last && run->last != '\n') {
		fputc('\n', stdout);
		fflush(stdout);
	}
	if (!err && !run->c->json && r->finish && strcmp(r->finish, "length") == 0 && run->dim)
		fprintf(stderr, "\033[2m(cut off after %u tokens)\033[0m\n", r->n_completion);
}

int generate(struct ctl *c, struct answer_text *ret)
{
	struct run run = { .c = c, .ids = json_array(), .dim = isatty(STDERR_FILENO) };
	const struct steamd_handler handler = { on_progress, on_delta, on_end, &run };
	struct steamd_error err = { 0 };
	bool cancelled = false;
	int r;

	r = steamd_start_generate(c->s, &c->g, &handler, &run.request, &err);
	if (r < 0) {
		json_decref(run.ids);
		return fail_with(&err);
	}
	while (!run.ended) {
		r = steamd_wait(c->s, -1, &err);
		if (r < 0 && r != -EINTR && !run.ended) {
			run.exit_code = fail_with(&err);
			break;
		}
		if (interrupt_pending() && !cancelled) {
			steamd_cancel(c->s, run.request);
			cancelled = true;
		}
	}
	json_decref(run.ids);
	if (ret)
		*ret = run.text;
	else
		answer_text_deinit(&run.text);
	return run.exit_code;
}
