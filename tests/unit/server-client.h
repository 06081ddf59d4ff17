/* A client on a socketpair with a real server: what it sends, what it gets back. */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "client/wire/frame.h"
#include "client/wire/msg.h"
#include "daemon/base/log.h"
#include "daemon/server/peer.h"
#include "daemon/server/server.h"

struct world {
	sd_event *loop;
	struct settings settings;
	struct server *server;
};

struct client {
	int fd;
	struct frame_in in;
	struct msg got; /* spans point into in */
	bool closed;
};

/* @set: settings as "Key=value", NULL last. */
static struct world *world_of(struct server_options options, const char *const *set)
{
	struct world *w = calloc(1, sizeof(*w));
	struct err err = { 0 };

	assert_non_null(w);
	log_init("test", LOG_CRIT);
	/* the machine that tests is not watched */
	setenv("MEMORY_PRESSURE_WATCH", "/dev/null", 1);
	setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent", 1);
	assert_int_equal(settings_init(&w->settings), 0);
	for (; set && *set; set++)
		assert_int_equal(settings_set(&w->settings, *set, "test", NULL), 0);
	assert_int_equal(sd_event_new(&w->loop), 0);
	options.settings = &w->settings;
	assert_int_equal(server_new(w->loop, &options, &w->server, &err), 0);
	return w;
}

static _unused_ struct world *world_new(void)
{
	return world_of((struct server_options){ .program = "/bin/false" }, NULL);
}

static void world_free(struct world *w)
{
	w->server = server_free(w->server);
	sd_event_unref(w->loop);
	settings_deinit(&w->settings);
	free(w);
}

/* Lets the server do all that it can do now. */
static void settle(struct world *w)
{
	while (sd_event_run(w->loop, 0) > 0)
		;
}

static void connect_client(struct world *w, struct client *c)
{
	int pair[2];

	*c = (struct client){ 0 };
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair),
			 0);
	c->fd = pair[0];
	frame_in_init(&c->in, FRAME_BYTES_MAX_DOWN);
	server_add(w->server, pair[1]);
}

static _unused_ void close_client(struct client *c)
{
	close(c->fd);
	frame_in_deinit(&c->in);
}

static void send_bytes(struct client *c, const void *data, size_t len)
{
	assert_int_equal(send(c->fd, data, len, MSG_NOSIGNAL), (ssize_t)len);
}

static void send_msg(struct client *c, const struct msg *m)
{
	_cleanup_(freep) char *data = NULL;
	struct err err = { 0 };
	size_t len;

	assert_int_equal(msg_encode(m, &data, &len, &err), 0);
	send_bytes(c, data, len);
}

/* The next message that is there by itself after settling; false: none. */
static _unused_ bool receive(struct world *w, struct client *c)
{
	struct err err = { 0 };
	struct span payload;
	int r;

	for (;;) {
		settle(w);
		r = frame_in_next(&c->in, &payload, &err);
		assert_true(r >= 0);
		if (r == 1) {
			assert_int_equal(msg_decode(payload.data, payload.len, false, &c->got, &err),
					 0);
			return true;
		}
		r = (int)frame_in_read(&c->in, c->fd);
		if (r == 0 || r == -ECONNRESET)
			c->closed = true;
		if (r <= 0)
			return false;
	}
}

/* The next message, waiting for what the worker or an executor does. */
static _unused_ void await(struct world *w, struct client *c)
{
	for (int i = 0; i < 600; i++) {
		if (receive(w, c))
			return;
		assert_false(c->closed);
		sd_event_run(w->loop, 100000);
	}
	fail_msg("no message came in time");
}

static _unused_ void say_hello(struct world *w, struct client *c)
{
	struct msg hello = { .type = MSG_HELLO };

	MSG_SET(&hello.hello, proto, MSG_PROTO);
	MSG_SET(&hello.hello, name, SPAN("test"));
	send_msg(c, &hello);
	assert_true(receive(w, c));
	assert_int_equal(c->got.type, MSG_HELLO);
}

static _unused_ void assert_span(struct span s, const char *wanted)
{
	char text[4096];

	assert_true(s.len < sizeof(text));
	memcpy(text, s.data, s.len);
	text[s.len] = '\0';
	assert_string_equal(text, wanted);
}

static _unused_ void assert_error(struct world *w, struct client *c, uint64_t id, const char *code,
				  const char *text)
{
	assert_true(receive(w, c));
	assert_int_equal(c->got.type, MSG_ERROR);
	assert_int_equal(c->got.id, id);
	assert_span(c->got.error.code, code);
	assert_span(c->got.error.text, text);
}

static _unused_ void assert_closed(struct world *w, struct client *c)
{
	assert_false(receive(w, c));
	assert_true(c->closed);
}
