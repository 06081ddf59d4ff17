/*
 * The next turn of a long session: as it is, after the broker was killed and
 * started again, and after the executor was killed. Its time is from the
 * request to the first token; the restarted broker is in service by then, and
 * how long that took, from the kill, is a row of its own.
 */
#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <string.h>

#include "client/steamd.h"
#include "tests/bench/bench.h"
#include "tests/bench/broker.h"

#define RESTART_WANTED 1.3 /* of the time as it is */
#define LOSS_WANTED 1.3	   /* of the first load */
#define PAGE 64u	   /* tokens: what is not sealed is less */
#define RESTARTS 7u
#define TURN 128u /* tokens that a turn here adds, at most */

struct conversation {
	struct broker *broker;
	const char *text; /* of the first turn */
	uint32_t n;	  /* tokens, of it at least */
	struct bench_series ready;
	struct err *err;
};

/* One request: from its start to its first token. */
struct asked {
	double from, first_s;
	uint32_t n_prompt, n_cached;
};

static int on_delta(void *userdata, const struct steamd_delta *delta)
{
	struct asked *a = userdata;

	(void)delta;
	if (a->first_s == 0)
		a->first_s = bench_now_s() - a->from;
	return 0;
}

static void on_end(void *userdata, const struct steamd_result *result,
		   const struct steamd_error *err)
{
	struct asked *a = userdata;

	if (err)
		return;
	a->n_prompt = result->n_prompt;
	a->n_cached = result->n_cached;
}

/* As another program does: a connection of its own. */
static int ask(const struct conversation *c, const char *text, bool waits, struct asked *ret)
{
	const struct steamd_handler handler = { .on_delta = on_delta,
						.on_end = on_end,
						.userdata = ret };
	struct steamd_error error = { 0 };
	struct steamd_generate g;
	_cleanup_(freep) char *messages = NULL;
	struct steamd *s = NULL;
	int r;

	if (asprintf(&messages,
		     "{\"messages\": [{\"role\": \"user\", \"content\": \"%s\"}], "
		     "\"enable_thinking\": false}",
		     text) < 0)
		return messages = NULL, -ENOMEM;
	steamd_generate_init(&g);
	g.messages = messages;
	g.messages_len = strlen(messages);
	g.session = "talk";
	g.session_create = 1;
	g.max_tokens = 1;
	g.ignore_eos = 1;
	*ret = (struct asked){ 0 };
	r = steamd_open(broker_socket(c->broker), "bench", NULL, &s, &error);
	if (r >= 0 && waits) /* till all is in service again */
		r = steamd_wake(s, NULL, NULL, &error);
	ret->from = bench_now_s();
	if (r >= 0)
		r = steamd_generate(s, &g, &handler, &error);
	steamd_close(s);
	if (r < 0)
		return err_set(c->err, r, "%s", error.text);
	return 0;
}

/* All but what the turn before and this one added, and @more. */
static int expect_cached(const struct conversation *c, const struct asked *a, uint32_t more)
{
	if (a->n_prompt >= c->n && a->n_cached + 2 * TURN + more >= a->n_prompt)
		return 0;
	return err_set(c->err, -EPROTO, "%u of %u tokens were found; all but %u should be",
		       a->n_cached, a->n_prompt, 2 * TURN + more);
}

static int wait_in_service(const struct conversation *c)
{
	struct steamd_error error = { 0 };
	struct steamd *s = NULL;
	int r;

	r = steamd_open(broker_socket(c->broker), "bench", NULL, &s, &error);
	if (r >= 0)
		r = steamd_wake(s, NULL, NULL, &error);
	steamd_close(s);
	return r < 0 ? err_set(c->err, r, "%s", error.text) : 0;
}

static int once(void *userdata, double *ret_value, double *ret_limit)
{
	struct conversation *c = userdata;
	struct asked warm, restarted;
	double killed;
	int r;

	r = ask(c, "go on", true, &warm);
	if (r >= 0)
		r = expect_cached(c, &warm, 0);
	killed = bench_now_s();
	if (r >= 0)
		r = broker_restart(c->broker, c->err);
	if (r >= 0)
		r = wait_in_service(c);
	bench_add(&c->ready, (bench_now_s() - killed) * 1e3);
	if (r >= 0)
		r = ask(c, "go on", true, &restarted);
	if (r >= 0)
		r = expect_cached(c, &restarted, 0);
	*ret_value = restarted.first_s * 1e3;
	*ret_limit = RESTART_WANTED * warm.first_s * 1e3;
	return r;
}

static int find_executor(const struct conversation *c, pid_t *ret_pid, double *ret_load_s)
{
	struct steamd_error error = { 0 };
	_cleanup_(freep) char *text = NULL;
	struct steamd *s = NULL;
	json_t *json, *executor;
	int r;

	r = steamd_open(broker_socket(c->broker), "bench", NULL, &s, &error);
	if (r >= 0)
		r = steamd_query(s, STEAMD_STATUS, &text, &error);
	steamd_close(s);
	if (r < 0)
		return err_set(c->err, r, "%s", error.text);
	json = json_loads(text, 0, NULL);
	executor = json_object_get(json, "executor");
	*ret_pid = (pid_t)json_integer_value(json_object_get(executor, "pid"));
	*ret_load_s = json_number_value(json_object_get(executor, "load_ms")) / 1e3;
	json_decref(json);
	if (*ret_pid <= 0 || *ret_load_s <= 0)
		return err_set(c->err, -EPROTO, "the status tells no executor: %s", text);
	return 0;
}

static int lose_executor(const struct conversation *c, struct asked *ret, double *ret_load_s)
{
	pid_t pid = 0;
	int r;

	r = find_executor(c, &pid, ret_load_s);
	if (r >= 0 && kill(pid, SIGKILL) < 0)
		r = err_set(c->err, -errno, "cannot kill the executor, process %d", (int)pid);
	if (r >= 0)
		r = ask(c, "go on", false, ret);
	if (r >= 0)
		r = expect_cached(c, ret, PAGE);
	return r;
}

/* @n words, each a token of every model here. */
static char *make_text(uint32_t n)
{
	static const char *const words[] = { "water", "people", "other", "there", "about",
					     "which", "their",	"first", "would", "could" };
	char *text = malloc(8 * (size_t)n + 1), *at = text;

	for (uint32_t i = 0; text && i < n; i++)
		at = stpcpy(stpcpy(at, i ? " " : ""),
			    words[(i * 2654435761u >> 7) % ARRAY_SIZE(words)]);
	return text;
}

static int measure(struct bench *b, const struct bench_figure *f, struct err *err)
{
	_cleanup_(broker_stopp) struct broker *broker = NULL;
	_cleanup_(freep) char *program = bench_built("steamd");
	_cleanup_(freep) char *text = make_text(f->n);
	struct broker_options options = { .program = program };
	struct conversation c = { .text = text, .n = f->n, .err = err };
	struct bench_row row = { .name = f->name,
				 .unit = "ms",
				 .kind = LIMIT_WANTED,
				 .limit_name = "1.3 of the time as it is",
				 .at_most = 1 };
	struct bench_row ready = { .name = "restart-ready", .unit = "ms", .kind = LIMIT_NONE };
	struct bench_row loss = { .name = "executor-loss",
				  .unit = "s",
				  .kind = LIMIT_WANTED,
				  .limit_name = "1.3 of the first load",
				  .at_most = 1 };
	struct asked asked;
	int r;

	if (!program || !text)
		return -ENOMEM;
	r = bench_model_dir(b, &options.model, err);
	if (r >= 0)
		r = broker_start(&options, &broker, err);
	c.broker = broker;
	if (r >= 0)
		r = ask(&c, c.text, true, &asked);
	if (r >= 0)
		r = bench_rounds(b, RESTARTS, once, &c, &row);
	if (r >= 0)
		r = lose_executor(&c, &asked, &loss.limit);
	if (r < 0)
		return r;
	loss.value = asked.first_s;
	loss.limit *= LOSS_WANTED;
	loss.ratio = loss.value / loss.limit;
	ready.value = bench_median(&c.ready);
	ready.spread = bench_spread(&c.ready);
	bench_print(b, &row);
	bench_print(b, &ready);
	bench_print(b, &loss);
	return 0;
}

const struct bench_figure figures_restart[] = {
	{ "restart", "a session of 4096 tokens, the broker killed before; then the executor",
	  measure, 4096, true },
	{ 0 },
};
