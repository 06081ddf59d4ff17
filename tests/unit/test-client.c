/*
 * libsteamd against a peer: what the library sends, what it delivers, and how it
 * comes back.
 */
#include "tests/unit/client-peer.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "client/wire/codes.h"

/* What a generation delivered. */
struct heard {
	char content[256];
	uint32_t n_ids, next, stop_at;
	int n_ends, n_progress;
	char finish[32];
	struct steamd_error err;
	uint64_t turn;
};

static int on_delta(void *userdata, const struct steamd_delta *d)
{
	struct heard *h = userdata;

	assert_int_equal(d->index, h->next);
	for (uint32_t i = 0; i < d->n_ids; i++)
		assert_int_equal(d->ids[i], 100 + d->index + i);
	assert_int_equal(strlen(d->content), d->content_len);
	strcat(h->content, d->content);
	h->n_ids += d->n_ids;
	h->next += d->n_ids;
	return h->stop_at && h->next >= h->stop_at;
}

static void on_progress(void *userdata, const struct steamd_progress *p)
{
	struct heard *h = userdata;

	assert_non_null(p->state);
	h->n_progress++;
}

static void on_end(void *userdata, const struct steamd_result *result,
		   const struct steamd_error *err)
{
	struct heard *h = userdata;

	h->n_ends++;
	h->turn = result->turn;
	if (err)
		h->err = *err;
	else
		strcpy(h->finish, result->finish);
}

static int generate(struct steamd *s, struct heard *h, struct steamd_error *err)
{
	const struct steamd_handler handler = { on_progress, on_delta, on_end, h };
	struct steamd_generate g;

	steamd_generate_init(&g);
	g.prompt = "once";
	g.prompt_len = 4;
	g.temperature = 0;
	g.max_tokens = 8;
	return steamd_generate(s, &g, &handler, err);
}

static void detokenize_script(struct peer *p)
{
	peer_accept(p);
	peer_expect(p, MSG_DETOKENIZE);
	assert(p->got.detokenize.ids.len == 8 && p->got.detokenize.skip_special);
	peer_done(p, p->got.id, "two words");
}

static void a_call_returns_what_the_daemon_said(void **state)
{
	_cleanup_(freep) char *text = NULL;
	struct steamd_info info;
	struct steamd *s;
	struct peer p;
	size_t len;

	(void)state;
	peer_start(&p, detokenize_script);
	s = connect_to(&p);
	assert_int_equal(steamd_info(s, &info), 0);
	assert_string_equal(info.model, "tiny");
	assert_int_equal(info.max_frame_bytes, 1 << 20);
	assert_int_equal(steamd_detokenize(s, (const uint32_t[]){ 1, 2 }, 2, STEAMD_SKIP_SPECIAL,
					   &text, &len, NULL),
			 0);
	assert_string_equal(text, "two words");
	assert_int_equal(len, 9);
	steamd_close(s);
	peer_stop(&p);
}

static void paid_script(struct peer *p)
{
	const struct msg_generate *g = &p->got.generate;
	uint64_t id;

	peer_accept(p);
	peer_expect(p, MSG_GENERATE);
	id = p->got.id;
	assert(span_is(g->prompt, "once") && g->has_temperature && g->temperature == 0);
	assert(g->max_tokens == 8 && g->credit == 4 && !g->has_top_p && !g->has_seed);
	peer_accepted(p, id, 77);
	peer_tokens(p, id, 0, 1, "a");
	peer_tokens(p, id, 1, 1, "b");
	peer_expect(p, MSG_CREDIT); /* half of the window */
	assert(p->got.id == id && p->got.credit.n_tokens == 2);
	peer_tokens(p, id, 2, 4, "cdef");
	peer_expect(p, MSG_CREDIT);
	assert(p->got.credit.n_tokens == 4);
	peer_tokens(p, id, 6, 0, "!");
	peer_done(p, id, "");
}

static void tokens_are_delivered_and_paid_for(void **state)
{
	struct heard h = { 0 };
	struct steamd *s;
	struct peer p;

	(void)state;
	peer_start(&p, paid_script);
	p.credit = 4;
	s = connect_to(&p);
	assert_int_equal(generate(s, &h, NULL), 0);
	assert_string_equal(h.content, "abcdef!");
	assert_string_equal(h.finish, "stop");
	assert_int_equal(h.n_ids, 6);
	assert_int_equal(h.n_ends, 1);
	assert_int_equal(h.turn, 77);
	steamd_close(s);
	peer_stop(&p);
}

static void held_script(struct peer *p)
{
	uint64_t id;

	peer_accept(p);
	peer_expect(p, MSG_GENERATE);
	id = p->got.id;
	peer_accepted(p, id, 77);
	peer_tokens(p, id, 0, 2, "ab"); /* half of the window, but held */
	peer_tokens(p, id, 2, 2, "cd");
	peer_expect(p, MSG_CREDIT);
	assert(p->got.id == id && p->got.credit.n_tokens == 4);
	peer_done(p, id, "");
}

struct slow {
	struct steamd *s;
	uint64_t request;
	uint32_t n_ids;
	bool ended;
};

static int on_slow_delta(void *userdata, const struct steamd_delta *d)
{
	struct slow *slow = userdata;

	slow->n_ids += d->n_ids;
	assert_int_equal(steamd_hold(slow->s, slow->request, slow->n_ids < 4), 0);
	return 0;
}

static void on_slow_end(void *userdata, const struct steamd_result *result,
			const struct steamd_error *err)
{
	struct slow *slow = userdata;

	(void)result;
	assert_null(err);
	slow->ended = true;
}

static void a_held_request_is_paid_for_when_it_goes_on(void **state)
{
	struct slow slow = { 0 };
	const struct steamd_handler handler = { NULL, on_slow_delta, on_slow_end, &slow };
	struct steamd_generate g;
	struct peer p;

	(void)state;
	peer_start(&p, held_script);
	p.credit = 4;
	slow.s = connect_to(&p);
	steamd_generate_init(&g);
	g.prompt = "once";
	g.prompt_len = 4;
	assert_int_equal(steamd_start_generate(slow.s, &g, &handler, &slow.request, NULL), 0);
	while (!slow.ended)
		assert_true(steamd_wait(slow.s, -1, NULL) >= 0);
	assert_int_equal(slow.n_ids, 4);
	assert_int_equal(steamd_hold(slow.s, slow.request, 1), 0); /* it ended already */
	steamd_close(slow.s);
	peer_stop(&p);
}

static void restart_script(struct peer *p)
{
	peer_accept(p);
	peer_expect(p, MSG_GENERATE);
	peer_accepted(p, p->got.id, 77);
	peer_tokens(p, p->got.id, 0, 2, "ab");
	peer_hang_up(p);
	peer_accept(p);
	peer_hang_up(p); /* once more, right after hello */
	peer_accept(p);
	peer_expect(p, MSG_RESUME);
	assert(p->got.resume.turn == 77 && p->got.resume.index == 2);
	peer_accepted(p, p->got.id, 77);
	peer_tokens(p, p->got.id, 2, 2, "cd");
	peer_tokens(p, p->got.id, 4, 0, "e"); /* held back until the end */
	peer_hang_up(p);
	peer_accept(p);
	peer_expect(p, MSG_RESUME);
	assert(p->got.resume.turn == 77 && p->got.resume.index == 4);
	peer_accepted(p, p->got.id, 77);
	peer_tokens(p, p->got.id, 4, 0, "e");
	peer_done(p, p->got.id, "");
}

static void a_lost_answer_goes_on_and_nothing_comes_twice(void **state)
{
	struct heard h = { 0 };
	struct steamd *s;
	struct peer p;

	(void)state;
	peer_start(&p, restart_script);
	s = connect_to(&p);
	assert_int_equal(generate(s, &h, NULL), 0);
	assert_string_equal(h.content, "abcde");
	assert_int_equal(h.n_ends, 1);
	assert_true(h.n_progress >= 2);
	steamd_close(s);
	peer_stop(&p);
}

static void again_script(struct peer *p)
{
	peer_accept(p);
	peer_expect(p, MSG_DETOKENIZE);
	peer_hang_up(p);
	peer_accept(p);
	peer_expect(p, MSG_DETOKENIZE);
	assert(p->got.detokenize.ids.len == 4);
	peer_done(p, p->got.id, "later");
}

static void a_question_without_an_answer_is_asked_again(void **state)
{
	_cleanup_(freep) char *text = NULL;
	struct steamd *s;
	struct peer p;
	size_t len;

	(void)state;
	peer_start(&p, again_script);
	s = connect_to(&p);
	assert_int_equal(steamd_detokenize(s, (const uint32_t[]){ 1 }, 1, 0, &text, &len, NULL), 0);
	assert_string_equal(text, "later");
	steamd_close(s);
	peer_stop(&p);
}

static void drop_script(struct peer *p)
{
	for (int i = 0; i < 6; i++) { /* once, and five times again */
		peer_accept(p);
		peer_expect(p, MSG_STATUS);
		peer_hang_up(p);
	}
	peer_accept(p);
}

static void a_question_that_kills_the_daemon_is_not_asked_for_ever(void **state)
{
	struct steamd_error err = { 0 };
	_cleanup_(freep) char *json = NULL;
	struct steamd *s;
	struct peer p;

	(void)state;
	peer_start(&p, drop_script);
	s = connect_to(&p);
	assert_int_equal(steamd_query(s, STEAMD_STATUS, &json, &err), -ECONNRESET);
	assert_string_equal(err.code, STEAMD_CODE_LOST);
	steamd_close(s);
	peer_stop(&p);
}

static void attached_script(struct peer *p)
{
	struct stat st;
	char last;
	int fd;

	peer_accept(p);
	peer_expect(p, MSG_TOKENIZE);
	assert(span_is(p->got.tokenize.attached, "text") && !p->got.tokenize.has_text);
	fd = frame_in_take_fd(&p->in);
	assert(fd >= 0 && fstat(fd, &st) == 0 && st.st_size == 100000);
	assert((st.st_mode & 0777) == 0600);
	assert((fcntl(fd, F_GET_SEALS) & (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)) ==
	       (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE));
	assert(pread(fd, &last, 1, 99999) == 1 && last == 'x');
	close(fd);
	{
		struct msg m = { .type = MSG_DONE, .id = p->got.id };

		MSG_SET(&m.done, ids, SPAN("\x01\0\0\0\x02\0\0\0"));
		peer_send(p, &m);
	}
}

static void a_large_text_travels_in_sealed_memory(void **state)
{
	_cleanup_(freep) char *text = malloc(100000);
	_cleanup_(freep) uint32_t *ids = NULL;
	struct steamd *s;
	struct peer p;
	size_t n;

	(void)state;
	memset(text, 'x', 100000);
	peer_start(&p, attached_script);
	p.max_frame = 65536;
	s = connect_to(&p);
	assert_int_equal(steamd_tokenize(s, text, 100000, 0, &ids, &n, NULL), 0);
	assert_int_equal(n, 2);
	assert_int_equal(ids[0], 1);
	assert_int_equal(ids[1], 2);
	steamd_close(s);
	peer_stop(&p);
}

static void cancel_script(struct peer *p)
{
	struct msg m = { .type = MSG_CANCELLED };

	peer_accept(p);
	peer_expect(p, MSG_GENERATE);
	peer_accepted(p, p->got.id, 77);
	peer_tokens(p, p->got.id, 0, 1, "a");
	peer_tokens(p, p->got.id, 1, 1, "b");
	peer_tokens(p, p->got.id, 2, 1, "c"); /* was under way already */
	peer_expect(p, MSG_CANCEL);
	m.id = p->got.id;
	peer_send(p, &m);
}

static void a_callback_that_has_enough_cancels(void **state)
{
	struct heard h = { .stop_at = 2 };
	struct steamd_error err = { 0 };
	struct steamd *s;
	struct peer p;

	(void)state;
	peer_start(&p, cancel_script);
	s = connect_to(&p);
	assert_int_equal(generate(s, &h, &err), -ECANCELED);
	assert_string_equal(err.code, "cancelled");
	assert_string_equal(h.content, "ab");
	assert_int_equal(h.n_ends, 1);
	steamd_close(s);
	peer_stop(&p);
}

static void busy_script(struct peer *p)
{
	struct msg m = { .type = MSG_ERROR };

	peer_accept(p);
	peer_expect(p, MSG_GENERATE);
	m.id = p->got.id;
	MSG_SET(&m.error, code, span_of(CODE_BUSY));
	MSG_SET(&m.error, text, SPAN("the queue is full\nreally"));
	MSG_SET(&m.error, retryable, true);
	MSG_SET(&m.error, retry_after_ms, 250);
	peer_send(p, &m);
}

static void a_refusal_keeps_its_code_and_its_hints(void **state)
{
	struct steamd_error err = { 0 };
	struct heard h = { 0 };
	struct steamd *s;
	struct peer p;

	(void)state;
	peer_start(&p, busy_script);
	s = connect_to(&p);
	assert_int_equal(generate(s, &h, &err), -EAGAIN);
	assert_string_equal(err.code, "busy");
	assert_string_equal(err.text, "the queue is full?really");
	assert_int_equal(err.retryable, 1);
	assert_int_equal(err.retry_after_ms, 250);
	steamd_close(s);
	peer_stop(&p);
}

static void full_script(struct peer *p)
{
	struct msg m = { .type = MSG_ERROR };

	peer_accept_silently(p);
	MSG_SET(&m.error, code, span_of(CODE_BUSY));
	MSG_SET(&m.error, text, SPAN("too many connections"));
	peer_send(p, &m);
}

static void a_refusal_in_place_of_hello_is_told(void **state)
{
	struct steamd_error err = { 0 };
	struct steamd *s = NULL;
	struct peer p;

	(void)state;
	peer_start(&p, full_script);
	assert_int_equal(pthread_create(&p.thread, NULL, run_script, &p), 0);
	assert_true(steamd_open(p.path, "test", NULL, &s, &err) < 0);
	assert_string_equal(err.code, "busy");
	assert_string_equal(err.text, "too many connections");
	assert_null(s);
	peer_stop(&p);
}

static void skipping_script(struct peer *p)
{
	peer_accept(p);
	peer_expect(p, MSG_GENERATE);
	peer_accepted(p, p->got.id, 77);
	peer_tokens(p, p->got.id, 1, 1, "b");
}

static void a_daemon_that_skips_a_token_is_not_believed(void **state)
{
	struct steamd_error err = { 0 };
	struct heard h = { 0 };
	struct steamd *s;
	struct peer p;

	(void)state;
	peer_start(&p, skipping_script);
	s = connect_to(&p);
	assert_int_equal(generate(s, &h, &err), -EPROTO);
	assert_string_equal(err.text, "tokens begin at 1; 0 was to come next");
	assert_string_equal(h.content, "");
	steamd_close(s);
	peer_stop(&p);
}

static void hello_script(struct peer *p)
{
	peer_accept(p);
}

static void what_makes_no_sense_is_refused_before_it_is_sent(void **state)
{
	struct steamd_error err = { 0 };
	struct steamd_generate g;
	struct steamd *s;
	struct peer p;
	uint64_t id;

	(void)state;
	peer_start(&p, hello_script);
	s = connect_to(&p);
	steamd_generate_init(&g);
	assert_int_equal(steamd_start_generate(s, &g, NULL, &id, &err), -EINVAL);
	assert_string_equal(err.text, "exactly one of messages, prompt and ids is wanted");
	g.prompt = "\xff";
	g.prompt_len = 1;
	assert_int_equal(steamd_start_generate(s, &g, NULL, &id, &err), -EINVAL);
	assert_string_equal(err.text, "prompt is not UTF-8 at byte 0");
	g.prompt = "x";
	g.top_p = 7;
	assert_int_equal(steamd_start_generate(s, &g, NULL, &id, &err), -EINVAL);
	assert_string_equal(err.text, "generate.top_p is 7; at most 1 is allowed");
	assert_string_equal(err.code, "bad-request");
	assert_int_equal(steamd_process(s, NULL), 0);
	steamd_close(s);
	peer_stop(&p);
}

static void a_child_process_has_no_handle(void **state)
{
	struct steamd *s;
	struct peer p;
	int status;
	pid_t pid;

	(void)state;
	peer_start(&p, hello_script);
	s = connect_to(&p);
	pid = fork();
	if (pid == 0) {
		char *json;

		_exit(steamd_query(s, STEAMD_STATUS, &json, NULL) == -ECHILD ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	steamd_close(s);
	peer_stop(&p);
}

static void without_a_daemon_socket_and_remedy_are_named(void **state)
{
	struct steamd_error err = { 0 };
	struct steamd *s = NULL;

	(void)state;
	assert_int_equal(steamd_open("/nonexistent/s", "test", NULL, &s, &err), -ENOENT);
	assert_string_equal(err.code, "no-daemon");
	assert_string_equal(err.text, "no steamd answers at '/nonexistent/s' (No such file or "
				      "directory); start it with 'systemctl start steamd.socket'");
	assert_null(s);
}

static void the_environment_names_the_socket(void **state)
{
	struct steamd_error err = { 0 };
	struct steamd *s = NULL;

	(void)state;
	setenv("STEAMD_SOCKET", "/nonexistent/of-the-environment", 1);
	assert_int_equal(steamd_open(NULL, "test", NULL, &s, &err), -ENOENT);
	unsetenv("STEAMD_SOCKET");
	assert_non_null(strstr(err.text, "'/nonexistent/of-the-environment'"));
}

static void one_loop_script(struct peer *p)
{
	uint64_t first, second;

	peer_accept(p);
	peer_expect(p, MSG_GENERATE);
	first = p->got.id;
	peer_expect(p, MSG_GENERATE);
	second = p->got.id;
	assert(first != second);
	peer_accepted(p, second, 2);
	peer_accepted(p, first, 1);
	peer_tokens(p, second, 0, 1, "B");
	peer_tokens(p, first, 0, 1, "A");
	peer_done(p, second, "");
	peer_tokens(p, first, 1, 1, "a");
	peer_done(p, first, "");
}

static void requests_share_a_connection_in_somebody_elses_loop(void **state)
{
	struct heard one = { 0 }, two = { 0 };
	const struct steamd_handler h1 = { NULL, on_delta, on_end, &one };
	const struct steamd_handler h2 = { NULL, on_delta, on_end, &two };
	struct steamd_generate g;
	struct pollfd wait;
	struct steamd *s;
	struct peer p;

	(void)state;
	peer_start(&p, one_loop_script);
	s = connect_to(&p);
	steamd_generate_init(&g);
	g.prompt = "x";
	g.prompt_len = 1;
	assert_int_equal(steamd_start_generate(s, &g, &h1, NULL, NULL), 0);
	assert_int_equal(steamd_start_generate(s, &g, &h2, NULL, NULL), 0);
	wait = (struct pollfd){ .fd = steamd_fd(s), .events = POLLIN };
	do {
		assert_int_equal(poll(&wait, 1, PEER_MS), 1);
	} while (steamd_process(s, NULL) > 0);
	assert_string_equal(one.content, "Aa");
	assert_string_equal(two.content, "B");
	assert_int_equal(one.n_ends + two.n_ends, 2);
	steamd_close(s);
	peer_stop(&p);
}

#define FLOOD_BYTES ((64u * 64 + 100) << 10) /* more than one steamd_process() takes */

/* All at once, in a socket that holds it; false: it may not be that large. */
static bool pour(int fd, uint64_t id)
{
	const int room = 4 * FLOOD_BYTES;
	struct msg m = { .type = MSG_TOKENS, .id = id };
	static char content[32 << 10];
	uint32_t n = 0;

	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room)) < 0)
		return false;
	memset(content, 'x', sizeof(content));
	MSG_SET(&m.tokens, content, ((struct span){ content, sizeof(content) }));
	for (; n < FLOOD_BYTES / sizeof(content); n++) {
		MSG_SET(&m.tokens, index, n);
		MSG_SET(&m.tokens, ids, ((struct span){ "\1\0\0\0", 4 }));
		peer_send(&(struct peer){ .fd = fd }, &m);
	}
	m = (struct msg){ .type = MSG_DONE, .id = id };
	MSG_SET(&m.done, finish, SPAN("stop"));
	peer_send(&(struct peer){ .fd = fd }, &m);
	return true;
}

static void asked_script(struct peer *p)
{
	peer_accept(p);
	peer_expect(p, MSG_GENERATE);
}

static void changes_of_the_descriptor_are_enough_to_go_by(void **state)
{
	struct heard h = { 0 };
	const struct steamd_handler handler = { NULL, NULL, on_end, &h };
	struct epoll_event e = { .events = EPOLLIN | EPOLLET };
	_cleanup_(closep) int wait_fd = epoll_create1(EPOLL_CLOEXEC);
	struct steamd_generate g;
	struct steamd *s;
	struct peer p;
	uint64_t id;
	bool poured;

	(void)state;
	peer_start(&p, asked_script);
	s = connect_to(&p);
	steamd_generate_init(&g);
	g.prompt = "x";
	g.prompt_len = 1;
	assert_int_equal(steamd_start_generate(s, &g, &handler, &id, NULL), 0);
	assert_int_equal(epoll_ctl(wait_fd, EPOLL_CTL_ADD, steamd_fd(s), &e), 0);
	poured = pour(p.fd, id);
	while (poured && h.n_ends == 0) {
		assert_int_equal(epoll_wait(wait_fd, &e, 1, PEER_MS), 1);
		assert_true(steamd_process(s, NULL) >= 0);
	}
	steamd_close(s);
	peer_stop(&p);
	if (!poured)
		skip();
}

static void later_script(struct peer *p)
{
	struct stat st;
	char c;
	int fd;

	peer_accept_silently(p);
	assert(read(p->wait_fds[0], &c, 1) == 1);
	peer_say_hello(p);
	peer_expect(p, MSG_DETOKENIZE);
	/* how much a frame may hold was not known when it was made */
	assert(span_is(p->got.detokenize.attached, "ids"));
	fd = frame_in_take_fd(&p->in);
	assert(fd >= 0 && fstat(fd, &st) == 0 && st.st_size == 8);
	close(fd);
	peer_done(p, p->got.id, "later");
}

static void a_handle_need_not_wait_for_hello(void **state)
{
	struct heard cancelled = { 0 }, answered = { 0 };
	const struct steamd_handler h1 = { NULL, NULL, on_end, &cancelled },
				    h2 = { NULL, NULL, on_end, &answered };
	struct steamd_info info;
	struct steamd *s = NULL;
	struct peer p;
	uint64_t id;

	(void)state;
	peer_start(&p, later_script);
	assert_int_equal(pipe2(p.wait_fds, O_CLOEXEC), 0);
	assert_int_equal(steamd_start_open(p.path, "test", NULL, &s, NULL), 0);
	assert_int_equal(steamd_process(s, NULL), 0);
	assert_int_equal(steamd_start_detokenize(s, (const uint32_t[]){ 1 }, 1, 0, &h1, &id, NULL),
			 0);
	assert_int_equal(
		steamd_start_detokenize(s, (const uint32_t[]){ 1, 2 }, 2, 0, &h2, NULL, NULL), 0);
	assert_int_equal(pthread_create(&p.thread, NULL, run_script, &p), 0);
	assert_int_equal(steamd_wait(s, 100, NULL), 2);
	assert_int_equal(steamd_info(s, &info), 0);
	assert_string_equal(info.model, "");
	/* it ends although nobody has said hello, and the other one does not */
	assert_int_equal(steamd_cancel(s, id), 0);
	assert_int_equal(steamd_wait(s, 1000, NULL), 1);
	assert_string_equal(cancelled.err.code, "cancelled");
	assert_int_equal(steamd_wait(s, 100, NULL), 1);
	assert_int_equal(write(p.wait_fds[1], "", 1), 1);
	while (steamd_wait(s, -1, NULL) > 0)
		;
	assert_string_equal(answered.finish, "stop");
	assert_int_equal(answered.n_ends + cancelled.n_ends, 2);
	assert_int_equal(steamd_info(s, &info), 0);
	assert_string_equal(info.model, "tiny");
	steamd_close(s);
	peer_stop(&p);
	closep(&p.wait_fds[0]);
	closep(&p.wait_fds[1]);
}

static void mute_script(struct peer *p)
{
	peer_accept_silently(p);
	peer_hang_up(p);
	peer_accept_silently(p); /* what is asked next tries again */
	peer_say_hello(p);
	peer_expect(p, MSG_DETOKENIZE);
	peer_done(p, p->got.id, "again");
}

static void without_hello_a_request_ends_as_opening_would(void **state)
{
	static const uint32_t ids[] = { 1 };
	struct steamd_error err = { 0 };
	_cleanup_(freep) char *text = NULL;
	struct steamd *s = NULL;
	struct peer p;
	size_t len;

	(void)state;
	assert_int_equal(steamd_start_open("/nonexistent/s", "test", NULL, &s, &err), 0);
	assert_int_equal(steamd_detokenize(s, ids, 1, 0, &text, &len, &err), -ENOENT);
	assert_string_equal(err.code, "no-daemon");
	assert_string_equal(err.text, "no steamd answers at '/nonexistent/s' (No such file or "
				      "directory); start it with 'systemctl start steamd.socket'");
	steamd_close(s);
	peer_start(&p, mute_script);
	assert_int_equal(pthread_create(&p.thread, NULL, run_script, &p), 0);
	assert_int_equal(steamd_start_open(p.path, "test", NULL, &s, &err), 0);
	assert_int_equal(steamd_detokenize(s, ids, 1, 0, &text, &len, &err), -ECONNRESET);
	assert_string_equal(err.code, "no-daemon");
	assert_int_equal(steamd_detokenize(s, ids, 1, 0, &text, &len, &err), 0);
	assert_string_equal(text, "again");
	steamd_close(s);
	peer_stop(&p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_call_returns_what_the_daemon_said),
		cmocka_unit_test(tokens_are_delivered_and_paid_for),
		cmocka_unit_test(a_held_request_is_paid_for_when_it_goes_on),
		cmocka_unit_test(a_lost_answer_goes_on_and_nothing_comes_twice),
		cmocka_unit_test(a_question_without_an_answer_is_asked_again),
		cmocka_unit_test(a_question_that_kills_the_daemon_is_not_asked_for_ever),
		cmocka_unit_test(a_large_text_travels_in_sealed_memory),
		cmocka_unit_test(a_callback_that_has_enough_cancels),
		cmocka_unit_test(a_refusal_keeps_its_code_and_its_hints),
		cmocka_unit_test(a_refusal_in_place_of_hello_is_told),
		cmocka_unit_test(a_daemon_that_skips_a_token_is_not_believed),
		cmocka_unit_test(what_makes_no_sense_is_refused_before_it_is_sent),
		cmocka_unit_test(a_child_process_has_no_handle),
		cmocka_unit_test(without_a_daemon_socket_and_remedy_are_named),
		cmocka_unit_test(the_environment_names_the_socket),
		cmocka_unit_test(requests_share_a_connection_in_somebody_elses_loop),
		cmocka_unit_test(changes_of_the_descriptor_are_enough_to_go_by),
		cmocka_unit_test(a_handle_need_not_wait_for_hello),
		cmocka_unit_test(without_hello_a_request_ends_as_opening_would),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
