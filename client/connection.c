/* The connection of a handle: made, lost, made again; bytes in and out. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "client/handle.h"
#include "client/wire/ownership.h"

#define SYSTEM_SOCKET "/run/steamd.sock"
#define USER_SOCKET "steamd.sock"
#define READS_MAX 64 /* in one steamd_process(), so that a fast daemon cannot hold the caller */

int handle_error(struct steamd_error *err, int r, const char *code, const char *text)
{
	if (!err)
		return r;
	memset(err, 0, sizeof(*err));
	err->error = r;
	snprintf(err->code, sizeof(err->code), "%s", code);
	snprintf(err->text, sizeof(err->text), "%s", text);
	return r;
}

int handle_error_of(struct steamd_error *err, int r, const char *code, const struct err *from)
{
	return handle_error(err, r, code, from->text[0] ? from->text : strerror(-r));
}

/* How often this process was forked since the library was loaded; asking for its id is a system call a token. */
static unsigned generation;

static void on_fork(void)
{
	generation++;
}

__attribute__((constructor)) static void watch_forks(void)
{
	pthread_atfork(NULL, NULL, on_fork);
}

int handle_check(const struct steamd *s, struct steamd_error *err)
{
	if (s->owner == generation)
		return 0;
	return handle_error(err, -ECHILD, STEAMD_CODE_LOCAL,
			    "this handle belongs to the parent process; open one of one's own");
}

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* 0 disarms. */
static void set_timer(struct steamd *s, uint64_t ms)
{
	const struct itimerspec at = {
		.it_value = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 },
	};

	timerfd_settime(s->timer_fd, 0, &at, NULL);
}

void handle_wake(struct steamd *s)
{
	const struct itimerspec soon = { .it_value = { .tv_nsec = 1 } };

	timerfd_settime(s->timer_fd, 0, &soon, NULL);
}

static int choose_path(struct steamd *s, const char *given)
{
	const char *runtime = getenv("XDG_RUNTIME_DIR"), *set = getenv("STEAMD_SOCKET");

	if (!given && set && *set)
		given = set;
	s->default_path = !given;
	if (given)
		s->path = strdup(given);
	/* a socket that is there but not for us is an answer too, not a reason to look elsewhere */
	else if (!runtime || !*runtime ||
		 faccessat(AT_FDCWD, SYSTEM_SOCKET, F_OK, AT_EACCESS) == 0 || errno != ENOENT)
		s->path = strdup(SYSTEM_SOCKET);
	else if (asprintf(&s->path, "%s/" USER_SOCKET, runtime) < 0)
		s->path = NULL;
	return s->path ? 0 : -ENOMEM;
}

static int watch(struct steamd *s, int op, int fd, uint32_t events)
{
	struct epoll_event e = { .events = events, .data.fd = fd };

	return epoll_ctl(s->epoll_fd, op, fd, &e) < 0 ? -errno : 0;
}

static void init_frames(struct steamd *s)
{
	frame_in_init(&s->in, FRAME_BYTES_MAX_DOWN);
	s->in.no_fds = true;
	frame_out_init(&s->out);
}

static void disconnect(struct steamd *s)
{
	closep(&s->socket_fd);
	s->socket_fd = -1;
	s->writing = false;
	frame_in_deinit(&s->in);
	frame_out_deinit(&s->out);
	init_frames(s);
	s->state = HANDLE_DOWN;
}

static int connect_socket(struct steamd *s)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	_cleanup_(closep) int fd = -1;
	int r;

	if (strlen(s->path) >= sizeof(address.sun_path))
		return -ENAMETOOLONG;
	memcpy(address.sun_path, s->path, strlen(s->path) + 1);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		return -errno;
	r = watch(s, EPOLL_CTL_ADD, fd, EPOLLIN);
	if (r < 0)
		return r;
	s->socket_fd = steal_fd(&fd);
	return 0;
}

static void flush(struct steamd *s)
{
	const int r = frame_out_flush(&s->out, s->socket_fd, SIZE_MAX);
	const bool writing = r == 0;

	if (r < 0) {
		/* the daemon's last words may still be there to read; its end comes after them */
		frame_out_deinit(&s->out);
		frame_out_init(&s->out);
	}
	if (writing == s->writing)
		return;
	s->writing = writing;
	watch(s, EPOLL_CTL_MOD, s->socket_fd, EPOLLIN | (writing ? EPOLLOUT : 0));
}

int handle_send(struct steamd *s, const struct msg *m, struct err *err)
{
	const int r = msg_queue(m, &s->out, err);

	if (r < 0)
		return r;
	flush(s);
	return 0;
}

static int say_hello(struct steamd *s, struct err *err)
{
	struct msg m = { .type = MSG_HELLO };
	uint64_t ms = HANDLE_HELLO_MS;

	MSG_SET(&m.hello, proto, MSG_PROTO);
	MSG_SET(&m.hello, name, span_of(s->name));
	if (s->label)
		MSG_SET(&m.hello, label, span_of(s->label));
	s->state = HANDLE_HELLO;
	/* the first one's wait began before it was in the queue */
	if (!s->met)
		ms -= MIN(now_ms() - s->lost_ms, ms - 1);
	s->hello_end_ms = now_ms() + ms;
	set_timer(s, ms);
	return handle_send(s, &m, err);
}

static void back_off(struct steamd *s)
{
	struct timespec t;

	/* up to half of it at random: not all clients of a restarted daemon at once */
	clock_gettime(CLOCK_MONOTONIC, &t);
	set_timer(s, s->backoff_ms + (uint64_t)t.tv_nsec / 1000 % (s->backoff_ms / 2 + 1));
	s->backoff_ms = MIN(2 * s->backoff_ms, (uint32_t)HANDLE_BACKOFF_MAX_MS);
	s->state = HANDLE_BACKOFF;
}

static int no_daemon(const struct steamd *s, int r, struct steamd_error *err)
{
	struct err text = { 0 };

	if (r == -EACCES || r == -EPERM)
		err_set(&text, r, "the socket '%s' of steamd is not for this user (%s)", s->path,
			strerror(-r));
	else if (r == -ENAMETOOLONG)
		err_set(&text, r, "the socket path '%s' is longer than a socket's can be", s->path);
	else
		err_set(&text, r,
			"no steamd answers at '%s' (%s); start it with "
			"'systemctl start steamd.socket'%s",
			s->path, strerror(-r),
			s->default_path && strcmp(s->path, SYSTEM_SOCKET) != 0
				? " or, for yourself, 'systemctl --user start steamd.socket'"
				: "");
	handle_error_of(err, r, STEAMD_CODE_NO_DAEMON, &text);
	if (err)
		err->retryable = r != -ENAMETOOLONG;
	return r;
}

static void give_up(struct steamd *s, int r)
{
	struct steamd_error err;
	char text[sizeof(err.text)];

	set_timer(s, 0);
	s->state = HANDLE_DOWN;
	if (!s->met) {
		no_daemon(s, r, &err);
		handle_end_all(s, &err);
		return;
	}
	snprintf(text, sizeof(text),
		 "the connection to steamd at '%.512s' was lost and did not come back: %s", s->path,
		 strerror(-r));
	handle_error(&err, -ECONNRESET, STEAMD_CODE_LOST, text);
	err.retryable = 1;
	handle_end_all(s, &err);
}

/* A connection that was there may come back; where there was none yet, only a queue is waited in. */
static bool is_hopeless(const struct steamd *s, int r)
{
	const uint64_t missed_ms = now_ms() - s->lost_ms;

	if (!s->met)
		return r != -EAGAIN || missed_ms >= HANDLE_HELLO_MS;
	return r == -EACCES || r == -EPERM || r == -ENAMETOOLONG || missed_ms >= HANDLE_LOST_MS;
}

static void try_again(struct steamd *s)
{
	int r;

	r = connect_socket(s);
	if (r == 0)
		r = say_hello(s, NULL);
	if (r == 0)
		return;
	disconnect(s);
	if (is_hopeless(s, r))
		give_up(s, r);
	else
		back_off(s);
}

/* The list is in the order of ids; callbacks change it, ids stay. */
static struct handle_request *request_after(struct steamd *s, uint64_t id)
{
	struct handle_request *q = s->requests;

	while (q && q->id <= id)
		q = q->next;
	return q;
}

static void end_what_was_cancelled(struct steamd *s)
{
	struct handle_request *q;
	struct steamd_error err;
	uint64_t id = 0;

	handle_error(&err, -ECANCELED, STEAMD_CODE_CANCELLED, "the request was cancelled");
	while ((q = request_after(s, id))) {
		id = q->id;
		if (q->cancelling)
			handle_end(s, q, NULL, &err);
	}
}

static void on_lost(struct steamd *s, int r)
{
	static const struct steamd_progress progress = {
		.state = "reconnecting",
		.text = "the connection was lost; trying again",
	};

	/* while it only ever answers hello, it is still the same loss */
	if (s->state == HANDLE_UP) {
		s->lost_ms = now_ms();
		s->backoff_ms = HANDLE_BACKOFF_MS;
	}
	disconnect(s);
	set_timer(s, 0);
	end_what_was_cancelled(s);
	if (!s->requests)
		return;
	if (!s->met) {
		give_up(s, r);
		return;
	}
	for (struct handle_request *q = s->requests; q; q = q->next)
		if (q->handler.on_progress)
			q->handler.on_progress(q->handler.userdata, &progress);
	if (is_hopeless(s, r))
		give_up(s, r);
	else
		back_off(s);
}

/* The peer makes no sense: asking it again would not help. */
static void on_nonsense(struct steamd *s, const struct err *from)
{
	struct steamd_error err;

	disconnect(s);
	set_timer(s, 0);
	handle_error_of(&err, -EPROTO, STEAMD_CODE_PROTOCOL, from);
	handle_end_all(s, &err);
}

static void resume(struct steamd *s, struct handle_request *q)
{
	struct msg m = { .type = MSG_RESUME, .id = q->id };

	MSG_SET(&m.resume, turn, q->turn);
	MSG_SET(&m.resume, index, q->next_index);
	MSG_SET(&m.resume, credit, s->window);
	q->unpaid = 0;
	handle_send(s, &m, NULL);
}

void handle_send_request(struct steamd *s, struct handle_request *q)
{
	char *copy;

	if (s->state == HANDLE_DOWN) {
		s->lost_ms = now_ms();
		s->backoff_ms = HANDLE_BACKOFF_MS;
		s->state = HANDLE_BACKOFF;
		handle_wake(s);
	}
	if (s->state != HANDLE_UP)
		return;
	if (q->accepted) {
		resume(s, q);
		return;
	}
	/* without memory the request is not sent; the next connection tries again */
	copy = malloc(q->frame_bytes);
	if (!copy)
		return;
	memcpy(copy, q->frame, q->frame_bytes);
	if (frame_out_push(&s->out, copy, q->frame_bytes, q->attached_fd) == 0)
		flush(s);
}

void handle_up(struct steamd *s)
{
	const uint64_t last = s->last_id; /* what callbacks start from here on is sent at once */
	struct handle_request *q;
	struct steamd_error err;
	uint64_t id = 0;

	s->state = HANDLE_UP;
	set_timer(s, 0);
	end_what_was_cancelled(s);
	handle_error(&err, -ECONNRESET, STEAMD_CODE_LOST,
		     "steamd closed the connection each time this request was sent, or while a "
		     "file was under way");
	while ((q = request_after(s, id)) && q->id <= last) {
		id = q->id;
		if (q->n_resends++ < HANDLE_RESENDS_MAX && !q->moved)
			handle_send_request(s, q);
		else
			handle_end(s, q, NULL, &err);
	}
}

/* Returns whether there was something. */
static bool read_socket(struct steamd *s)
{
	for (int i = 0; i < READS_MAX && s->socket_fd >= 0; i++) {
		const ssize_t n = frame_in_read(&s->in, s->socket_fd);
		struct err err = { 0 };
		struct span payload;
		int r;

		if (n == -EAGAIN)
			return i > 0;
		if (n <= 0) {
			on_lost(s, n < 0 ? (int)n : -ECONNRESET);
			return true;
		}
		while ((r = frame_in_next(&s->in, &payload, &err)) > 0) {
			r = handle_take(s, payload, &err);
			if (r < 0)
				break;
		}
		if (r < 0) {
			on_nonsense(s, &err);
			return true;
		}
		/* that was all; what came since then makes the descriptor readable again */
		if ((size_t)n < FRAME_READ_BYTES)
			return true;
	}
	/* that was not: who goes by changes of the descriptor is told once more */
	if (s->socket_fd >= 0)
		handle_wake(s);
	return true;
}

static void on_timer(struct steamd *s)
{
	uint64_t n;

	if (read(s->timer_fd, &n, sizeof(n)) < 0)
		return;
	if (s->state == HANDLE_HELLO && now_ms() >= s->hello_end_ms) {
		on_lost(s, -ETIMEDOUT);
		return;
	}
	if (s->state == HANDLE_UP)
		return;
	end_what_was_cancelled(s);
	if (s->state == HANDLE_HELLO) {
		set_timer(s, MAX(s->hello_end_ms, now_ms() + 1) - now_ms());
		return;
	}
	if (s->requests)
		try_again(s);
	else
		s->state = HANDLE_DOWN;
}

static int process(struct steamd *s, int timeout_ms)
{
	struct epoll_event events[4];
	int n, n_requests = 0;

	/* whoever does not wait was told by the descriptor: mostly it is tokens, and no need to ask again */
	if (timeout_ms == 0 && s->state == HANDLE_UP && !s->writing && read_socket(s))
		n = 0;
	else
		n = epoll_wait(s->epoll_fd, events, ARRAY_SIZE(events), timeout_ms);
	if (n < 0)
		return -errno;
	for (int i = 0; i < n; i++) {
		if (events[i].data.fd == s->timer_fd) {
			on_timer(s);
		} else if (events[i].data.fd == s->socket_fd) {
			if (events[i].events & EPOLLOUT)
				flush(s);
			if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
				read_socket(s);
		}
	}
	for (const struct handle_request *q = s->requests; q; q = q->next)
		n_requests++;
	return n_requests;
}

int steamd_wait(struct steamd *s, int timeout_ms, struct steamd_error *err)
{
	int r;

	r = handle_check(s, err);
	if (r < 0)
		return r;
	if (s->processing)
		return handle_error(err, -EBUSY, STEAMD_CODE_LOCAL,
				    "a callback may not wait on its own handle");
	s->processing = true;
	r = process(s, timeout_ms);
	s->processing = false;
	return r < 0 ? handle_error(err, r, STEAMD_CODE_LOCAL, strerror(-r)) : r;
}

int steamd_process(struct steamd *s, struct steamd_error *err)
{
	const int r = steamd_wait(s, 0, err);

	return r == -EINTR ? 0 : r;
}

int steamd_fd(const struct steamd *s)
{
	return s->epoll_fd;
}

int steamd_info(struct steamd *s, struct steamd_info *ret)
{
	const int r = handle_check(s, NULL);

	if (r < 0)
		return r;
	*ret = (struct steamd_info){
		.socket_path = s->path,
		.version = s->version ? s->version : "",
		.boot_id = s->boot_id ? s->boot_id : "",
		.features = s->features ? s->features : "",
		.model = s->model ? s->model : "",
		.max_frame_bytes = s->max_frame,
		.max_requests = s->max_requests,
		.max_context_tokens = s->max_context,
	};
	return 0;
}

struct steamd *steamd_close(struct steamd *s)
{
	struct handle_request *next;

	if (!s)
		return NULL;
	closep(&s->socket_fd);
	closep(&s->epoll_fd);
	closep(&s->timer_fd);
	frame_in_deinit(&s->in);
	frame_out_deinit(&s->out);
	for (struct handle_request *q = s->requests; q; q = next) {
		next = q->next;
		handle_request_free(q);
	}
	free(s->path);
	free(s->name);
	free(s->label);
	free(s->version);
	free(s->boot_id);
	free(s->features);
	free(s->model);
	free(s->scratch);
	free(s);
	return NULL;
}

static void steamd_closep(struct steamd **s)
{
	*s = steamd_close(*s);
}

/* Waits for hello, or for what comes in its place. */
static int shake_hands(struct steamd *s, uint64_t end_ms, struct steamd_error *err)
{
	while (s->state == HANDLE_HELLO) {
		struct pollfd p = { .fd = s->socket_fd, .events = POLLIN };
		struct err why = { 0 };
		struct span payload;
		const uint64_t now = now_ms();
		ssize_t n;
		int r;

		if (now >= end_ms)
			return no_daemon(s, -ETIMEDOUT, err);
		if (s->writing)
			p.events |= POLLOUT;
		poll(&p, 1, end_ms - now);
		if (s->writing)
			flush(s);
		n = frame_in_read(&s->in, s->socket_fd);
		if (n == -EAGAIN)
			continue;
		if (n <= 0)
			return no_daemon(s, n < 0 ? (int)n : -ECONNRESET, err);
		r = frame_in_next(&s->in, &payload, &why);
		if (r > 0)
			r = handle_take(s, payload, &why);
		if (r < 0 && s->refused.error) {
			if (err)
				*err = s->refused;
			return r;
		}
		if (r < 0)
			return handle_error_of(err, r, STEAMD_CODE_PROTOCOL, &why);
	}
	return 0;
}

static int open_descriptors(struct steamd *s)
{
	s->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (s->epoll_fd < 0)
		return -errno;
	s->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (s->timer_fd < 0)
		return -errno;
	return watch(s, EPOLL_CTL_ADD, s->timer_fd, EPOLLIN);
}

int steamd_start_open(const char *socket_path, const char *name, const char *label,
		      struct steamd **ret, struct steamd_error *err)
{
	_cleanup_(steamd_closep) struct steamd *s = NULL;
	int r;

	s = calloc(1, sizeof(*s));
	if (!s)
		return handle_error(err, -ENOMEM, STEAMD_CODE_LOCAL, "out of memory");
	s->owner = generation;
	s->lost_ms = now_ms();
	s->epoll_fd = s->timer_fd = s->socket_fd = -1;
	s->window = HANDLE_WINDOW_TOKENS;
	init_frames(s);
	s->name = strdup(name ? name : "");
	s->label = label ? strdup(label) : NULL;
	r = choose_path(s, socket_path);
	if (r == 0)
		r = !s->name || (label && !s->label) ? -ENOMEM : open_descriptors(s);
	if (r < 0)
		return handle_error(err, r, STEAMD_CODE_LOCAL, strerror(-r));
	*ret = steal(s);
	return 0;
}

int steamd_open(const char *socket_path, const char *name, const char *label, struct steamd **ret,
		struct steamd_error *err)
{
	_cleanup_(steamd_closep) struct steamd *s = NULL;
	const uint64_t end_ms = now_ms() + HANDLE_HELLO_MS;
	struct err why = { 0 };
	int r;

	r = steamd_start_open(socket_path, name, label, &s, err);
	if (r < 0)
		return r;
	/* -EAGAIN: more clients are waiting to be accepted than the daemon's backlog holds */
	while ((r = connect_socket(s)) == -EAGAIN && now_ms() < end_ms)
		poll(NULL, 0, HANDLE_BACKOFF_MS);
	if (r < 0)
		return no_daemon(s, r, err);
	r = say_hello(s, &why);
	if (r < 0)
		return handle_error_of(err, r, STEAMD_CODE_BAD_REQUEST, &why);
	r = shake_hands(s, end_ms, err);
	if (r < 0)
		return r;
	*ret = steal(s);
	return 0;
}
