/* Choices on their way: begun, streamed, collected, ended, given up. */
#include "client/gateway/reply.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "client/gateway/vocab.h"

#define BEGIN_US (1000 * 1000)	      /* a stream that waits for longer begins without an answer */
#define COMMENT_US (15 * 1000 * 1000) /* it says that it is alive */
#define LOADING_RETRY_MS 5000

void reply_random(char *to, size_t n)
{
	uint8_t bytes[64] = { 0 };

	if (getrandom(bytes, MIN(n, sizeof(bytes)), 0) < 0)
		bytes[0] = (uint8_t)gateway_now_us();
	for (size_t i = 0; i < n; i++)
		to[i] = "0123456789abcdef"[bytes[i % sizeof(bytes)] & 15];
	to[n] = '\0';
}

/* Its life. */

static void choice_deinit(struct choice *c)
{
	jsontext_deinit(&c->content);
	jsontext_deinit(&c->reasoning);
	for (size_t i = 0; i < ARRAY_SIZE(c->logprobs); i++)
		jsontext_deinit(&c->logprobs[i]);
	json_decref(c->calls);
	free(c->session);
}

static void free_prompts(struct reply *r)
{
	for (size_t i = 0; i < r->n_prompts; i++) {
		free(r->prompts[i].messages);
		free(r->prompts[i].ids);
	}
	free(r->prompts);
	r->prompts = NULL;
	r->n_prompts = 0;
}

void reply_rewind(struct reply *r)
{
	for (uint32_t i = 0; i < r->n_choices; i++)
		choice_deinit(&r->choices[i]);
	free(r->choices);
	r->choices = NULL;
	r->n_choices = 0;
	free_prompts(r);
}

/* Bodies are let go when they are read; what became of them counts in their place. */
static void hold_bytes(struct reply *r, size_t bytes)
{
	r->g->body_bytes += bytes - r->held_bytes;
	r->held_bytes = bytes;
}

static void reply_free(struct reply *r)
{
	hold_bytes(r, 0);
	if (r->format->free)
		r->format->free(r);
	sd_event_source_disable_unref(r->timer);
	reply_rewind(r);
	fields_deinit(&r->fields);
	jsontext_deinit(&r->head);
	free(r->model);
	free(r);
}

static bool is_running(const struct reply *r)
{
	for (uint32_t i = 0; i < r->n_choices; i++)
		if (r->choices[i].state == CHOICE_RUNNING)
			return true;
	return false;
}

/* The exchange has nothing to do with it any more. */
static struct exchange *detach(struct reply *r)
{
	struct exchange *x = r->x;

	x->work = NULL;
	x->on_left = NULL;
	x->on_room = NULL;
	x->on_late = NULL;
	r->x = NULL;
	r->timer = sd_event_source_disable_unref(r->timer);
	return x;
}

static void stop_choices(struct reply *r)
{
	for (uint32_t i = 0; i < r->n_choices; i++) {
		struct choice *c = &r->choices[i];

		if (c->state == CHOICE_RUNNING)
			steamd_cancel(r->link->s, c->request);
		if (c->state == CHOICE_QUEUED)
			link_leave(r->link, &c->place);
		if (c->state != CHOICE_RUNNING)
			c->state = CHOICE_ENDED;
	}
}

void reply_let_go(struct reply *r)
{
	if (!r->x && !r->in_use && !is_running(r))
		reply_free(r);
}

static void on_left(struct exchange *x)
{
	struct reply *r = x->work;

	detach(r);
	stop_choices(r);
	reply_let_go(r);
}

/* A stream's reader has room again. */
static void on_room(struct exchange *x)
{
	struct reply *r = x->work;

	r->held = false;
	for (uint32_t i = 0; i < r->n_choices; i++)
		if (r->choices[i].state == CHOICE_RUNNING)
			steamd_hold(r->link->s, r->choices[i].request, 0);
}

static void hold_if_full(struct reply *r)
{
	if (r->held || !exchange_is_full(r->x))
		return;
	r->held = true;
	for (uint32_t i = 0; i < r->n_choices; i++)
		if (r->choices[i].state == CHOICE_RUNNING)
			steamd_hold(r->link->s, r->choices[i].request, 1);
}

static void open_stream(struct reply *r)
{
	if (r->opened)
		return;
	r->opened = true;
	exchange_stream(r->x);
}

static void begin_stream(struct reply *r)
{
	if (r->begun)
		return;
	open_stream(r);
	r->begun = true;
	if (r->format->begin)
		r->format->begin(r);
	exchange_flush(r->x);
}

/* Tells the exchange; what runs goes on to its end. */
static void tell(struct reply *r, const struct refusal *no)
{
	struct exchange *x;

	if (!r->x)
		return;
	if (r->opened) {
		begin_stream(r);
		r->format->fail(r, no);
	}
	x = detach(r);
	if (r->opened)
		exchange_end(x);
	else
		exchange_refuse(x, no);
}

void reply_refuse(struct reply *r, const struct refusal *no)
{
	tell(r, no);
	reply_free(r);
}

void reply_fail(struct reply *r, const struct refusal *no)
{
	tell(r, no);
	stop_choices(r);
	reply_let_go(r);
}

static void on_late(struct exchange *x)
{
	struct reply *r = x->work;
	struct refusal no;

	if (!link_is_silent(r->link)) {
		link_look_soon(x, on_late);
		return;
	}
	link_set_silent(r->link, &no);
	reply_fail(r, &no);
}

/* Waiting. */

static void refuse_loading(struct reply *r)
{
	struct refusal no;

	refusal_set(&no, 503, "unavailable", NULL, "the model is not ready: %s", r->loading_text);
	no.retry_after_ms = LOADING_RETRY_MS;
	reply_fail(r, &no);
}

static void set_timer(struct reply *r, uint64_t us);

static int on_timer(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct reply *r = userdata;
	const uint64_t waited_us = gateway_now_us() - r->loading_since_us;

	(void)source, (void)usec;
	if (r->loading && waited_us >= r->g->setup->wait_for_model * 1000000) {
		refuse_loading(r);
		return 0;
	}
	if (r->opened && exchange_is_drained(r->x)) {
		jsontext_put(exchange_out(r->x), ": waiting\n\n");
		exchange_flush(r->x);
	}
	/* one that may yet be refused for the model's sake does not begin */
	if (r->fields.stream && !r->loading && !r->unsettled)
		begin_stream(r);
	else if (r->fields.stream && !r->loading)
		open_stream(r);
	set_timer(r, r->loading ? BEGIN_US : COMMENT_US);
	return 0;
}

static void set_timer(struct reply *r, uint64_t us)
{
	/* the loop's own idea of now is that of its last turn */
	const uint64_t at_us = gateway_now_us() + us;

	r->g->loop_changed = true;
	if (r->timer) {
		sd_event_source_set_time(r->timer, at_us);
		sd_event_source_set_enabled(r->timer, SD_EVENT_ONESHOT);
	} else {
		sd_event_add_time(r->g->loop, &r->timer, CLOCK_MONOTONIC, at_us, 100000, on_timer,
				  r);
	}
}

static void on_progress(void *userdata, const struct steamd_progress *p)
{
	struct choice *c = userdata;
	struct reply *r = c->reply;
	const bool loading = strcmp(p->state, "loading") == 0 || strcmp(p->state, "asleep") == 0;

	if (!r->x)
		return;
	if (loading && !r->loading)
		r->loading_since_us = gateway_now_us();
	r->loading = loading;
	if (!loading)
		return;
	if (p->text[0])
		snprintf(r->loading_text, sizeof(r->loading_text), "%s", p->text);
	else
		snprintf(r->loading_text, sizeof(r->loading_text), "%s, %u of %u", p->state,
			 p->done, p->total);
	if (r->opened || r->g->setup->wait_for_model > 0)
		set_timer(r, BEGIN_US);
	else
		refuse_loading(r);
}

/* What comes. */

/* steamd's {"name":…,"arguments":{…}} as OpenAI has it. */
static json_t *calls_of(const struct steamd_delta *d)
{
	json_t *from = d->tool_calls
			       ? json_loadb(d->tool_calls, d->tool_calls_len, JSON_ALLOW_NUL, NULL)
			       : NULL;
	json_t *to = from ? json_array() : NULL, *call;
	size_t i;

	json_array_foreach(from, i, call) {
		struct jsontext arguments = { 0 };
		char id[30] = "call_";

		reply_random(id + 5, 24);
		jsontext_value(&arguments, json_object_get(call, "arguments"));
		json_array_append_new(to, json_pack("{s:s, s:s, s:{s:O, s:s#}}", "id", id, "type",
						    "function", "function", "name",
						    json_object_get(call, "name"), "arguments",
						    arguments.at ? arguments.at : "{}",
						    arguments.at ? (int)arguments.n : 2));
		jsontext_deinit(&arguments);
	}
	json_decref(from);
	return to;
}

/* Of several calls at once only the first, where no more were wanted. */
static void keep_one_call(struct choice *c, json_t *calls)
{
	while (json_array_size(calls) > (c->n_calls == 0 ? 1u : 0u))
		json_array_remove(calls, json_array_size(calls) - 1);
	c->enough = true;
	steamd_cancel(c->reply->link->s, c->request);
}

static void start_others(struct choice *first);

static int on_delta(void *userdata, const struct steamd_delta *raw)
{
	struct choice *c = userdata;
	struct reply *r = c->reply;
	struct reply_delta d = { raw->reasoning,   raw->content, raw->reasoning_len,
				 raw->content_len, NULL,	 raw };
	json_t *calls;

	if (!r->x)
		return 1;
	r->loading = r->unsettled = false;
	r->g->counts.n_tokens += raw->n_ids;
	if (raw->reasoning_len && !raw->content_len)
		c->n_reasoning += raw->n_ids;
	d.calls = calls = calls_of(raw);
	if (calls && r->fields.one_call)
		keep_one_call(c, calls);
	if (r->fields.stream)
		begin_stream(r);
	if (!r->fields.stream || r->keeps) {
		jsontext_add(&c->content, d.content, d.content_len);
		jsontext_add(&c->reasoning, d.reasoning, d.reasoning_len);
		if (calls && !c->calls)
			c->calls = json_incref(calls);
		else if (calls)
			json_array_extend(c->calls, calls);
	}
	r->format->delta(c, &d);
	c->n_calls += (uint32_t)json_array_size(calls);
	json_decref(calls);
	if (r->fields.stream) {
		exchange_flush(r->x);
		hold_if_full(r);
	}
	if (c->is_first)
		start_others(c);
	return 0;
}

static const char *finish_of(const struct steamd_result *result)
{
	static const char *const known[] = { "stop", "length", "tool_calls" };

	for (size_t i = 0; result->finish && i < ARRAY_SIZE(known); i++)
		if (strcmp(result->finish, known[i]) == 0)
			return known[i];
	return "stop";
}

static void end_if_all_ended(struct reply *r)
{
	struct exchange *x;

	for (uint32_t i = 0; i < r->n_choices; i++)
		if (r->choices[i].state != CHOICE_ENDED)
			return;
	if (r->fields.stream)
		begin_stream(r);
	r->format->whole(r);
	if (!r->x)
		return;
	x = detach(r);
	if (r->fields.stream)
		exchange_end(x);
}

static void on_end(void *userdata, const struct steamd_result *result,
		   const struct steamd_error *err)
{
	struct choice *c = userdata;
	struct reply *r = c->reply;
	struct refusal no;

	c->state = CHOICE_ENDED;
	c->ended = *result;
	c->n_prompt = result->n_prompt;
	c->n_cached = result->n_cached;
	c->n_completion = result->n_completion;
	c->session = strdup(result->session);
	r->g->counts.n_prompt_tokens += c->is_first ? result->n_prompt : 0;
	r->g->counts.n_cached_tokens += c->is_first ? result->n_cached : 0;
	/* the room it leaves may go to one of its own, which may fail */
	r->in_use = true;
	link_leave(r->link, &c->place);
	if (err && !c->enough) {
		if (r->format->refused && r->format->refused(r, err))
			return;
		refusal_of(&no, err);
		reply_fail(r, &no);
	}
	r->unsettled = false;
	if (!c->finish)
		c->finish = err ? "tool_calls" : finish_of(result);
	if (r->x) {
		if (r->fields.stream) {
			begin_stream(r);
			r->format->end(c);
			exchange_flush(r->x);
		}
		if (c->is_first)
			start_others(c);
	}
	if (r->x)
		end_if_all_ended(r);
	r->in_use = false;
	reply_let_go(r);
}

void reply_cut(struct reply *r, const char *finish)
{
	for (uint32_t i = 0; i < r->n_choices; i++) {
		struct choice *c = &r->choices[i];

		c->finish = finish;
		c->enough = true;
		if (c->state == CHOICE_RUNNING)
			steamd_cancel(r->link->s, c->request);
	}
}

/* Beginning. */

/* Once all have begun, what they began with is steamd's; Responses may begin again, and an echo is to come. */
static void shed_input(struct reply *r)
{
	if (r->keeps || r->fields.echo)
		return;
	for (uint32_t i = 0; i < r->n_choices; i++)
		if (r->choices[i].state == CHOICE_NEW || r->choices[i].state == CHOICE_QUEUED)
			return;
	for (size_t i = 0; i < r->n_prompts; i++) {
		free(steal(r->prompts[i].messages));
		free(steal(r->prompts[i].ids));
		r->prompts[i].text = NULL;
	}
	fields_drop_prompt(&r->fields);
	hold_bytes(r, 0);
}

static void start_choice(struct link_place *place)
{
	struct choice *c = (struct choice *)((char *)place - offsetof(struct choice, place));
	struct reply *r = c->reply;
	const struct steamd_handler handler = { on_progress, on_delta, on_end, c };
	struct steamd_generate g = r->fields.g;
	struct steamd_error err = { 0 };
	struct refusal no;

	if (c->prompt->messages) {
		g.messages = c->prompt->messages;
		g.messages_len = c->prompt->messages_len;
	} else if (c->prompt->text) {
		g.prompt = json_string_value(c->prompt->text);
		g.prompt_len = json_string_length(c->prompt->text);
	} else {
		g.ids = c->prompt->ids;
		g.n_ids = c->prompt->n_ids;
	}
	/* several with one seed would be one */
	g.seed += c->index;
	c->state = CHOICE_RUNNING;
	if (steamd_start_generate(r->link->s, &g, &handler, &c->request, &err) == 0) {
		shed_input(r);
		return;
	}
	c->state = CHOICE_ENDED;
	link_leave(r->link, place);
	refusal_of(&no, &err);
	reply_fail(r, &no);
}

/* Returns whether the reply still goes on. */
static bool enter(struct choice *c)
{
	struct reply *r = c->reply;
	struct exchange *x = r->x;
	struct refusal no;

	c->state = CHOICE_QUEUED;
	c->place.start = start_choice;
	if (link_enter(r->link, &c->place, &no) < 0) {
		c->state = CHOICE_NEW;
		reply_fail(r, &no);
		return false;
	}
	/* one that could not be started has taken the whole reply with it */
	return x->work == r;
}

static void start_others(struct choice *first)
{
	struct reply *r = first->reply;

	for (uint32_t i = first->index + 1; i < r->n_choices; i++) {
		if (r->choices[i].prompt != first->prompt)
			break;
		if (r->choices[i].state == CHOICE_NEW && !enter(&r->choices[i]))
			break;
	}
}

static void start_firsts(struct reply *r)
{
	struct exchange *x = r->x;

	if (r->fields.stream)
		set_timer(r, BEGIN_US);
	for (uint32_t i = 0; i < r->n_choices; i += r->fields.n)
		if (!enter(&r->choices[i]) || x->work != r)
			return;
}

static void then_vocab(void *userdata, const struct vocab *vocab, const struct steamd_error *err)
{
	struct reply *r = userdata;
	struct refusal no;

	r->in_use = false;
	if (!r->x) {
		reply_let_go(r);
		return;
	}
	if (vocab) {
		r->vocab = vocab;
		start_firsts(r);
		return;
	}
	refusal_of(&no, err);
	reply_fail(r, &no);
}

int reply_add_prompts(struct reply *r, size_t n)
{
	r->prompts = calloc(n, sizeof(*r->prompts));
	r->n_prompts = r->prompts ? n : 0;
	return r->prompts ? 0 : -ENOMEM;
}

void reply_start(struct reply *r)
{
	struct refusal no;

	r->n_choices = (uint32_t)r->n_prompts * r->fields.n;
	r->choices = calloc(r->n_choices, sizeof(*r->choices));
	if (!r->choices) {
		r->n_choices = 0;
		refusal_set(&no, 503, "no-memory", NULL, "out of memory");
		reply_refuse(r, &no);
		return;
	}
	for (uint32_t i = 0; i < r->n_choices; i++)
		r->choices[i] = (struct choice){ .reply = r,
						 .index = i,
						 .prompt = &r->prompts[i / r->fields.n],
						 .is_first = i % r->fields.n == 0 };
	if (!r->fields.logprobs) {
		start_firsts(r);
		return;
	}
	r->in_use = true;
	vocab_get(r->link, then_vocab, r);
}

struct reply *reply_new(struct exchange *x, enum fields_api api, const char *id_prefix,
			const struct reply_format *format)
{
	struct reply *r = calloc(1, sizeof(*r));
	struct steamd_info info;
	struct refusal no;

	if (!r) {
		refusal_set(&no, 503, "no-memory", NULL, "out of memory");
		exchange_refuse(x, &no);
		return NULL;
	}
	r->x = x;
	r->g = x->g;
	r->format = format;
	r->created_s = (uint64_t)time(NULL);
	snprintf(r->id, sizeof(r->id), "%s", id_prefix);
	reply_random(r->id + strlen(r->id), 24);
	x->work = r;
	x->on_left = on_left;
	x->on_room = on_room;
	if (fields_read(&r->fields, api, x->body, x->body_bytes, x->g->setup->ignore_unknown, &no) <
		    0 ||
	    !(r->link = link_get(x->g, x->label, &no))) {
		reply_refuse(r, &no);
		return NULL;
	}
	hold_bytes(r, r->fields.held_bytes);
	link_look_soon(x, on_late);
	r->model = strdup(r->fields.g.model			? r->fields.g.model
			  : steamd_info(r->link->s, &info) == 0 ? info.model
								: "");
	if (!r->model) {
		refusal_set(&no, 503, "no-memory", NULL, "out of memory");
		reply_refuse(r, &no);
		return NULL;
	}
	return r;
}

struct reply_usage reply_usage(const struct reply *r)
{
	struct reply_usage u = { 0 };

	for (uint32_t i = 0; i < r->n_choices; i++) {
		const struct choice *c = &r->choices[i];

		u.n_prompt += c->is_first ? c->n_prompt : 0;
		u.n_cached += c->is_first ? c->n_cached : 0;
		u.n_completion += c->n_completion;
		u.n_reasoning += c->n_reasoning;
	}
	return u;
}

static void write_token(struct jsontext *t, const struct vocab *v, uint32_t id, float logprob)
{
	jsontext_put(t, "{\"token\":");
	vocab_write_text(v, id, t);
	jsontext_put(t, ",\"logprob\":");
	jsontext_logprob(t, logprob);
	jsontext_put(t, ",\"bytes\":");
	vocab_write_bytes(v, id, t);
}

void reply_write_logprobs(const struct reply *r, const struct steamd_delta *d, bool is_first,
			  struct jsontext *t)
{
	const struct vocab *v = r->vocab;

	for (uint32_t i = 0; d->logprobs && i < d->n_ids; i++) {
		if (!is_first)
			jsontext_put(t, ",");
		is_first = false;
		write_token(t, v, d->ids[i], d->logprobs[i]);
		jsontext_put(t, ",\"top_logprobs\":[");
		for (uint32_t k = 0; k < d->n_top; k++) {
			const size_t at = (size_t)i * d->n_top + k;

			jsontext_put(t, k ? "," : "");
			write_token(t, v, d->top_ids[at], d->top_logprobs[at]);
			jsontext_put(t, "}");
		}
		jsontext_put(t, "]}");
	}
}
