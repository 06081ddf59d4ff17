/* Connections: hello, order, hostile frames, descriptors, limits. */
#include "tests/unit/server-client.h"

#include <fcntl.h>
#include <sys/mman.h>

static int set_up(void **state)
{
	*state = world_new();
	return 0;
}

static int tear_down(void **state)
{
	world_free(*state);
	return 0;
}

static void hello_tells_version_limits_and_boot_id(void **state)
{
	struct world *w = *state;
	struct client c;

	connect_client(w, &c);
	say_hello(w, &c);
	assert_int_equal(c.got.id, 0);
	assert_int_equal(c.got.hello.proto, 1);
	assert_int_equal(c.got.hello.boot_id.len, 32);
	assert_int_equal(c.got.hello.max_frame, 1 << 20);
	assert_int_equal(c.got.hello.max_requests, 64);
	assert_int_equal(c.got.hello.credit, 1024);
	close_client(&c);
}

static void names_are_whole_characters_that_a_terminal_can_be_given(void **state)
{
	static const struct {
		const char *said, *known;
	} names[] = {
		{ "steamctl", "steamctl" },
		{ "a\033[31m\x7f", "a?[31m?" },
		{ "\xc2\x9b"
		  "31m \xc2\xa9\xc3\x9b",
		  "??31m \xc2\xa9\xc3\x9b" },
	};
	struct world *w = *state;
	struct msg hello = { .type = MSG_HELLO };
	char longest[65], cut[63];
	struct client c;

	MSG_SET(&hello.hello, proto, MSG_PROTO);
	for (size_t i = 0; i <= ARRAY_SIZE(names); i++) {
		const bool is_last = i == ARRAY_SIZE(names);

		for (size_t k = 0; k < 64; k++)
			longest[k] = "\xc3\xa9"[k % 2];
		snprintf(cut, sizeof(cut), "%.62s", longest);
		MSG_SET(&hello.hello, name,
			is_last ? ((struct span){ longest, 64 }) : span_of(names[i].said));
		connect_client(w, &c);
		send_msg(&c, &hello);
		assert_true(receive(w, &c));
		assert_string_equal(TAILQ_FIRST(&w->server->peers)->name,
				    is_last ? cut : names[i].known);
		close_client(&c);
		settle(w);
	}
	/* a label is a namespace: none is cut */
	MSG_SET(&hello.hello, label,
		SPAN("123456789012345678901234567890123456789012345678901234567890abc"));
	connect_client(w, &c);
	send_msg(&c, &hello);
	assert_true(receive(w, &c));
	assert_string_equal(TAILQ_FIRST(&w->server->peers)->label, hello.hello.label.data);
	close_client(&c);
}

static void a_request_before_hello_is_refused_and_closed(void **state)
{
	struct world *w = *state;
	struct msg m = { .type = MSG_STATUS, .id = 5 };
	struct client c;

	connect_client(w, &c);
	send_msg(&c, &m);
	assert_error(w, &c, 5, "bad-state", "status came before hello");
	assert_closed(w, &c);
	close_client(&c);
}

static void a_second_hello_is_refused(void **state)
{
	struct world *w = *state;
	struct msg hello = { .type = MSG_HELLO };
	struct client c;

	MSG_SET(&hello.hello, proto, 1);
	connect_client(w, &c);
	say_hello(w, &c);
	send_msg(&c, &hello);
	assert_error(w, &c, 0, "bad-state", "hello came twice");
	assert_closed(w, &c);
	close_client(&c);
}

static void a_protocol_older_than_the_first_is_refused(void **state)
{
	struct world *w = *state;
	struct msg hello = { .type = MSG_HELLO };
	struct client c;

	MSG_SET(&hello.hello, proto, 0);
	connect_client(w, &c);
	send_msg(&c, &hello);
	assert_error(w, &c, 0, "bad-state",
		     "the client speaks protocol 0; 1 is the oldest known here");
	close_client(&c);
}

static void without_a_hello_the_connection_ends_after_two_seconds(void **state)
{
	struct world *w = *state;
	struct client c;
	struct peer *p;

	connect_client(w, &c);
	settle(w);
	p = TAILQ_FIRST(&w->server->peers);
	assert_non_null(p);
	assert_true(p->deadline_us > 0);
	sd_event_source_set_time_relative(p->deadline, 0);
	sd_event_run(w->loop, 500000);
	assert_error(w, &c, 0, "bad-frame", "no hello came within 2 seconds");
	assert_closed(w, &c);
	close_client(&c);
}

static void half_a_frame_gets_ten_seconds_and_no_more(void **state)
{
	struct world *w = *state;
	struct client c;
	struct peer *p;

	connect_client(w, &c);
	say_hello(w, &c);
	p = TAILQ_FIRST(&w->server->peers);
	assert_int_equal(p->deadline_us, 0);
	send_bytes(&c, "\x20\0\0\0\x93", 5);
	settle(w);
	assert_true(p->deadline_us > 0);
	sd_event_source_set_time_relative(p->deadline, 0);
	sd_event_run(w->loop, 500000);
	assert_error(w, &c, 0, "bad-frame",
		     "a frame was begun and not completed within 10 seconds");
	assert_closed(w, &c);
	close_client(&c);
}

static void a_frame_in_single_bytes_is_understood_and_its_timer_goes(void **state)
{
	struct world *w = *state;
	struct msg m = { .type = MSG_STATUS, .id = 1 };
	_cleanup_(freep) char *data = NULL;
	struct client c;
	size_t len;

	connect_client(w, &c);
	say_hello(w, &c);
	assert_int_equal(msg_encode(&m, &data, &len, NULL), 0);
	for (size_t i = 0; i < len; i++) {
		send_bytes(&c, data + i, 1);
		settle(w);
	}
	assert_int_equal(TAILQ_FIRST(&w->server->peers)->deadline_us, 0);
	assert_true(receive(w, &c));
	assert_int_equal(c.got.type, MSG_DONE);
	close_client(&c);
}

static void hostile_frames_get_one_error_and_are_closed(void **state)
{
	static const struct {
		const char *bytes;
		size_t len;
	} frames[] = {
		{ "\0\0\0\0", 4 },			       /* empty */
		{ "\x05\0\0\0\xdd\xff\xff\xff\xff", 9 },       /* an array of 2^32 - 1 */
		{ "\x01\0\0\0\xc1", 5 },		       /* no msgpack at all */
		{ "\x04\0\0\0\x93\x63\x01\x80", 8 },	       /* type 99 */
		{ "\x04\0\0\0\x93\x02\x01\x80", 8 },	       /* a message of ours to them */
		{ "\x05\0\0\0\x93\x16\x01\x80\xc0", 9 },       /* something behind it */
		{ "\x07\0\0\0\x93\x16\x01\x81\xa1x\x01", 11 }, /* an unknown field */
		{ "\xff\xff\xff\xff", 4 },		       /* 4 GiB */
	};
	struct world *w = *state;

	for (size_t i = 0; i < ARRAY_SIZE(frames); i++) {
		struct client c;

		connect_client(w, &c);
		say_hello(w, &c);
		send_bytes(&c, frames[i].bytes, frames[i].len);
		assert_true(receive(w, &c));
		assert_int_equal(c.got.type, MSG_ERROR);
		assert_span(c.got.error.code, "bad-frame");
		assert_true(c.got.error.text.len > 0);
		assert_closed(w, &c);
		close_client(&c);
	}
}

static void a_frame_beyond_the_limit_is_named_with_the_limit(void **state)
{
	struct world *w = *state;
	struct client c;

	connect_client(w, &c);
	say_hello(w, &c);
	send_bytes(&c, "\x01\x00\x10\x00", 4);
	assert_error(w, &c, 0, "bad-frame",
		     "a frame of 1048577 bytes; at most 1048576 are accepted");
	close_client(&c);
}

static void request_id_zero_is_refused(void **state)
{
	struct world *w = *state;
	struct msg m = { .type = MSG_PS };
	struct client c;

	connect_client(w, &c);
	say_hello(w, &c);
	send_msg(&c, &m);
	assert_true(receive(w, &c));
	assert_span(c.got.error.code, "bad-frame");
	assert_closed(w, &c);
	close_client(&c);
}

static void send_with_fd(struct client *c, const struct msg *m, int fd)
{
	struct frame_out out;
	char *data;
	size_t len;

	frame_out_init(&out);
	assert_int_equal(msg_encode(m, &data, &len, NULL), 0);
	assert_int_equal(frame_out_push(&out, data, len, fd), 0);
	assert_int_equal(frame_out_flush(&out, c->fd, 1 << 20), 1);
	frame_out_deinit(&out);
}

static void a_descriptor_that_no_message_takes_is_refused(void **state)
{
	struct world *w = *state;
	struct msg m = { .type = MSG_STATUS, .id = 1 };
	struct client c;

	connect_client(w, &c);
	say_hello(w, &c);
	send_with_fd(&c, &m, STDIN_FILENO);
	assert_true(receive(w, &c)); /* the status itself is answered */
	assert_int_equal(c.got.type, MSG_DONE);
	assert_error(w, &c, 0, "bad-frame", "a descriptor came with a message that takes none");
	assert_closed(w, &c);
	close_client(&c);
}

static void attached_without_a_descriptor_is_refused(void **state)
{
	struct world *w = *state;
	struct msg m = { .type = MSG_TOKENIZE, .id = 3 };
	struct client c;

	MSG_SET(&m.tokenize, attached, SPAN("text"));
	connect_client(w, &c);
	say_hello(w, &c);
	send_msg(&c, &m);
	assert_error(w, &c, 3, "bad-frame", "the message says that a memfd is attached; none came");
	assert_closed(w, &c);
	close_client(&c);
}

static void only_sealed_memfds_of_bounded_size_are_read(void **state)
{
	struct world *w = *state;
	struct msg m = { .type = MSG_TOKENIZE, .id = 4 };
	int unsealed = memfd_create("x", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int large = memfd_create("x", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int pipes[2];
	struct client c;

	MSG_SET(&m.tokenize, attached, SPAN("text"));
	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	assert_int_equal(write(unsealed, "hello", 5), 5);
	assert_int_equal(ftruncate(large, (64 << 20) + 1), 0);
	assert_int_equal(fcntl(large, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE), 0);

	connect_client(w, &c);
	say_hello(w, &c);
	send_with_fd(&c, &m, unsealed);
	assert_error(w, &c, 4, "bad-request",
		     "the memfd attached is not sealed against shrinking, growing and writing");
	send_with_fd(&c, &m, pipes[0]);
	assert_error(w, &c, 4, "bad-request", "the descriptor attached is not a memfd");
	send_with_fd(&c, &m, large);
	assert_error(w, &c, 4, "too-long",
		     "the memfd attached has 67108865 bytes; at most 67108864 are taken");
	close_client(&c);
	close(unsealed);
	close(large);
	close(pipes[0]);
	close(pipes[1]);
}

static void connections_of_one_user_are_limited(void **state)
{
	struct world *w = *state;
	struct client c[3];
	char text[128];

	w->settings.max_user_connections = 2;
	for (int i = 0; i < 3; i++)
		connect_client(w, &c[i]);
	say_hello(w, &c[0]);
	say_hello(w, &c[1]);
	snprintf(text, sizeof(text), "uid %u has 2 connections open; 2 may be", getuid());
	assert_error(w, &c[2], 0, "busy", text);
	assert_true(c[2].got.error.retryable);
	assert_closed(w, &c[2]);
	close_client(&c[0]);
	settle(w);
	close_client(&c[2]);
	connect_client(w, &c[2]);
	say_hello(w, &c[2]);
	close_client(&c[1]);
	close_client(&c[2]);
}

static void requests_on_a_connection_are_limited_and_wait_for_the_model(void **state)
{
	struct world *w = *state;
	struct msg m = { .type = MSG_TOKENIZE };
	struct client c;

	w->settings.max_requests = 2;
	MSG_SET(&m.tokenize, text, SPAN("x"));
	connect_client(w, &c);
	say_hello(w, &c);
	for (m.id = 1; m.id <= 3; m.id++)
		send_msg(&c, &m);
	for (int i = 0; i < 2; i++) {
		assert_true(receive(w, &c));
		assert_int_equal(c.got.type, MSG_PROGRESS);
		assert_span(c.got.progress.state, "loading");
	}
	assert_error(w, &c, 3, "busy", "2 requests are open on this connection; 2 may be");

	m = (struct msg){ .type = MSG_CANCEL, .id = 1 };
	send_msg(&c, &m);
	assert_true(receive(w, &c));
	assert_int_equal(c.got.type, MSG_CANCELLED);
	assert_int_equal(c.got.id, 1);
	send_msg(&c, &m); /* harmless: it has ended */
	assert_false(receive(w, &c));
	assert_false(c.closed);
	close_client(&c);
}

static void an_id_in_use_is_refused(void **state)
{
	struct world *w = *state;
	struct msg m = { .type = MSG_TOKENIZE, .id = 9 };
	struct client c;

	MSG_SET(&m.tokenize, text, SPAN("x"));
	connect_client(w, &c);
	say_hello(w, &c);
	send_msg(&c, &m);
	send_msg(&c, &m);
	assert_true(receive(w, &c)); /* loading */
	assert_error(w, &c, 9, "bad-state",
		     "tokenize uses the id 9 of a request that is still open");
	assert_closed(w, &c);
	close_client(&c);
}

static void exactly_one_source_is_wanted(void **state)
{
	struct world *w = *state;
	struct msg m = { .type = MSG_GENERATE, .id = 2 };
	struct client c;

	connect_client(w, &c);
	say_hello(w, &c);
	send_msg(&c, &m);
	assert_error(w, &c, 2, "bad-request",
		     "generate wants exactly one of messages, prompt, ids and attached; 0 came");
	MSG_SET(&m.generate, prompt, SPAN("x"));
	MSG_SET(&m.generate, messages, SPAN("{}"));
	send_msg(&c, &m);
	assert_error(w, &c, 2, "bad-request",
		     "generate wants exactly one of messages, prompt, ids and attached; 2 came");
	close_client(&c);
}

static void a_reader_that_stops_reading_is_not_read_from(void **state)
{
	struct world *w = *state;
	struct msg m = { .type = MSG_STATUS };
	struct client c;
	struct peer *p;
	uint32_t n_sent = 0, n_got = 0;

	connect_client(w, &c);
	say_hello(w, &c);
	p = TAILQ_FIRST(&w->server->peers);
	for (m.id = 1; m.id < 100000; m.id++, n_sent++) {
		_cleanup_(freep) char *data = NULL;
		size_t len;

		assert_int_equal(msg_encode(&m, &data, &len, NULL), 0);
		if (send(c.fd, data, len, MSG_NOSIGNAL) < 0)
			break; /* a frame is shorter than what a socket splits */
		settle(w);
	}
	assert_true(m.id < 100000);
	assert_true(peer_is_full(p));
	/* the answer to one question may go beyond the cap, no more */
	assert_true(p->out.queued_bytes < PEER_OUTPUT_MAX + (16 << 10));
	while (receive(w, &c))
		n_got++;
	assert_false(c.closed);
	assert_int_equal(n_got, n_sent);
	close_client(&c);
}

static uint32_t count_got(struct client *c)
{
	struct span payload;
	uint32_t n = 0;

	while (frame_in_read(&c->in, c->fd) > 0)
		while (frame_in_next(&c->in, &payload, NULL) == 1)
			n++;
	return n;
}

static void frames_of_all_who_wait_are_taken_in_turn(void **state)
{
	enum { N = 100 };
	struct world *w = *state;
	struct msg m = { .type = MSG_MODELS };
	_cleanup_(freep) char *many = NULL;
	struct client all[3];
	size_t n_bytes = 0;
	uint32_t n = 0;

	for (int i = 0; i < 3; i++) {
		connect_client(w, &all[i]);
		say_hello(w, &all[i]);
	}
	for (m.id = 1; m.id <= N; m.id++) {
		_cleanup_(freep) char *data = NULL;
		size_t len;

		assert_int_equal(msg_encode(&m, &data, &len, NULL), 0);
		many = realloc(many, n_bytes + len);
		assert_non_null(many);
		memcpy(many + n_bytes, data, len);
		n_bytes += len;
	}
	send_bytes(&all[0], many, n_bytes);
	send_bytes(&all[1], many, n_bytes);
	send_msg(&all[2], &(struct msg){ .type = MSG_MODELS, .id = 1 });
	while (count_got(&all[2]) == 0)
		assert_true(sd_event_run(w->loop, 100000) > 0);
	n = count_got(&all[0]);
	n += count_got(&all[1]);
	assert_in_range(n, 1, 8);

	settle(w);
	assert_int_equal(n + count_got(&all[0]) + count_got(&all[1]), 2 * N);
	for (int i = 0; i < 3; i++)
		close_client(&all[i]);
}

static void what_is_held_leaves_together(void **state)
{
	struct world *w = *state;
	struct msg m = { .type = MSG_PROGRESS };
	struct client c, other;
	struct peer *p, *second;
	struct span payload;

	connect_client(w, &c);
	say_hello(w, &c);
	p = TAILQ_FIRST(&w->server->peers);
	connect_client(w, &other);
	say_hello(w, &other);
	second = TAILQ_NEXT(p, link);

	MSG_SET(&m.progress, state, SPAN("queued"));
	peer_hold(w->server);
	for (m.id = 1; m.id <= 3; m.id++) {
		peer_hold(w->server);
		assert_int_equal(peer_send(p, &m), 0);
		assert_int_equal(peer_send(second, &m), 0);
	}
	assert_int_equal(frame_in_read(&c.in, c.fd), -EAGAIN);
	peer_flush(second); /* one that cannot wait */
	assert_true(frame_in_read(&other.in, other.fd) > 0);
	peer_release(w->server);
	assert_int_equal(p->out.queued_bytes, 0);
	assert_true(frame_in_read(&c.in, c.fd) > 0);
	for (uint32_t i = 0; i < 3; i++)
		assert_int_equal(frame_in_next(&c.in, &payload, NULL), 1);
	assert_int_equal(frame_in_read(&c.in, c.fd), -EAGAIN);

	/* afterwards each leaves at once */
	assert_int_equal(peer_send(p, &m), 0);
	assert_true(frame_in_read(&c.in, c.fd) > 0);

	/* who is gone by then is not sent to */
	peer_hold(w->server);
	assert_int_equal(peer_send(p, &m), 0);
	close_client(&c);
	settle(w);
	assert_int_equal(w->server->n_peers, 1);
	peer_release(w->server);
	close_client(&other);
}

static void a_model_that_is_refused_is_told_to_those_who_wait_and_to_later_ones(void **state)
{
	struct world *w = *state;
	struct msg m = { .type = MSG_GENERATE, .id = 1 };
	struct err err = { 0 };
	struct client c;

	assert_int_equal(settings_set(&w->settings, "Model=/nonexistent/model", "test", &err), 0);
	MSG_SET(&m.generate, prompt, SPAN("x"));
	connect_client(w, &c);
	say_hello(w, &c);
	send_msg(&c, &m);
	assert_true(receive(w, &c)); /* loading */
	assert_int_equal(server_load(w->server, &err), 0);
	await(w, &c);
	assert_int_equal(c.got.type, MSG_ERROR);
	assert_span(c.got.error.code, "model-refused");
	m.id = 2;
	send_msg(&c, &m);
	assert_true(receive(w, &c));
	assert_int_equal(c.got.id, 2);
	assert_span(c.got.error.code, "model-refused");
	assert_int_equal(server_state(w->server), SERVER_REFUSED);
	close_client(&c);
}

static void when_all_clients_are_gone_nothing_is_held_for_them(void **state)
{
	struct world *w = *state;
	struct msg m = { .type = MSG_TOKENIZE, .id = 1 };
	struct client c;

	MSG_SET(&m.tokenize, text, SPAN("x"));
	connect_client(w, &c);
	say_hello(w, &c);
	send_msg(&c, &m);
	assert_true(receive(w, &c));
	close_client(&c);
	settle(w);
	assert_int_equal(w->server->n_peers, 0);
	assert_true(LIST_EMPTY(&w->server->users));
	assert_true(TAILQ_EMPTY(&w->server->waiting));
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		T(hello_tells_version_limits_and_boot_id),
		T(names_are_whole_characters_that_a_terminal_can_be_given),
		T(a_request_before_hello_is_refused_and_closed),
		T(a_second_hello_is_refused),
		T(a_protocol_older_than_the_first_is_refused),
		T(without_a_hello_the_connection_ends_after_two_seconds),
		T(half_a_frame_gets_ten_seconds_and_no_more),
		T(a_frame_in_single_bytes_is_understood_and_its_timer_goes),
		T(hostile_frames_get_one_error_and_are_closed),
		T(a_frame_beyond_the_limit_is_named_with_the_limit),
		T(request_id_zero_is_refused),
		T(a_descriptor_that_no_message_takes_is_refused),
		T(attached_without_a_descriptor_is_refused),
		T(only_sealed_memfds_of_bounded_size_are_read),
		T(connections_of_one_user_are_limited),
		T(requests_on_a_connection_are_limited_and_wait_for_the_model),
		T(an_id_in_use_is_refused),
		T(exactly_one_source_is_wanted),
		T(a_reader_that_stops_reading_is_not_read_from),
		T(frames_of_all_who_wait_are_taken_in_turn),
		T(what_is_held_leaves_together),
		T(a_model_that_is_refused_is_told_to_those_who_wait_and_to_later_ones),
		T(when_all_clients_are_gone_nothing_is_held_for_them),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
