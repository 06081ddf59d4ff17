/* The loop, libmicrohttpd in it, and the end of it all. */
#include "client/gateway/gateway.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <systemd/sd-daemon.h>
#include <time.h>

#include "client/gateway/door.h"
#include "client/gateway/exchange.h"
#include "client/gateway/keys.h"
#include "client/gateway/link.h"
#include "client/gateway/responses.h"

#define SWEEP_US (1000 * 1000)
#define EVENTS_MAX 16
#define AGAINS_US (10 * 1000)	     /* in so long libmicrohttpd is run again at its wish … */
#define AGAINS_MAX 200		     /* … so often */
#define CONNECTION_BYTES (16u << 10) /* libmicrohttpd's, for headers and what is under way */

uint64_t gateway_now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

void gateway_kick(struct gateway *g)
{
	if (g->in_turn) {
		g->kicked = true;
		return;
	}
	sd_event_source_set_enabled(g->http_again, SD_EVENT_ONESHOT);
	g->loop_changed = true;
}

static void run_http(struct gateway *g)
{
	MHD_UNSIGNED_LONG_LONG ms;

	MHD_run(g->http);
	/* it has no timeouts of its own here: a wish to run again is for now */
	if (MHD_get_timeout(g->http, &ms) == MHD_YES && ms == 0)
		gateway_kick(g);
}

void gateway_begin_turn(struct gateway *g)
{
	g->in_turn = true;
}

void gateway_end_turn(struct gateway *g)
{
	exchange_send_all(g);
	g->in_turn = false;
	if (!g->kicked)
		return;
	g->kicked = false;
	run_http(g);
}

static int on_http(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	(void)source, (void)fd, (void)revents;
	run_http(userdata);
	return 0;
}

static int on_http_again(sd_event_source *source, void *userdata)
{
	(void)source;
	run_http(userdata);
	return 0;
}

/* Ticks while there are visitors; without any, once, when it may leave. */
static int on_sweep(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct gateway *g = userdata;
	const uint64_t idle_us = g->setup->idle_exit * 1000000;
	const uint64_t gone_us = gateway_now_us() - g->last_visit_us;

	(void)usec;
	door_sweep(g);
	if (g->n_visitors > 0) {
		sd_event_source_set_time_relative(source, SWEEP_US);
		return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
	}
	if (!g->activated || idle_us == 0)
		return 0;
	if (gone_us >= idle_us)
		return sd_event_exit(g->loop, 0);
	sd_event_source_set_time_relative(source, idle_us - gone_us);
	return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

void gateway_sweep_on(struct gateway *g)
{
	if (g->n_visitors > 1)
		return; /* it ticks */
	sd_event_source_set_time_relative(g->sweep, SWEEP_US);
	sd_event_source_set_enabled(g->sweep, SD_EVENT_ONESHOT);
}

/* It says so before it sends a page of its own; without this, that page is all there is. */
static void on_http_log(void *userdata, const char *format, va_list ap)
{
	static const char wanted[] = "Error processing request (HTTP response code is %u ('%s'))";
	unsigned status;

	if (strncmp(format, wanted, strlen(wanted)) != 0)
		return;
	status = va_arg(ap, unsigned);
	door_refuse_broken(userdata, status, strstr(va_arg(ap, const char *), "chunked encod"));
}

/* A NUL would end the path or argument, and hide what is behind it: such a byte is in no name. */
static size_t unescape(void *userdata, struct MHD_Connection *http, char *text)
{
	(void)userdata, (void)http;
	for (char *at = text; (at = strstr(at, "%00")); at += 3)
		at[2] = '1';
	return MHD_http_unescape(text);
}

/*
 * No thread, no listening socket, no timeouts: libmicrohttpd parses and writes,
 * and everything else is the loop's.
 */
static int start_http(struct gateway *g, struct err *err)
{
	const union MHD_DaemonInfo *info;
	int r;

	g->http = MHD_start_daemon(
		MHD_USE_EPOLL | MHD_USE_NO_LISTEN_SOCKET | MHD_ALLOW_SUSPEND_RESUME |
			MHD_USE_ERROR_LOG,
		0, NULL, NULL, exchange_on_request, g, MHD_OPTION_EXTERNAL_LOGGER, on_http_log, g,
		MHD_OPTION_NOTIFY_COMPLETED, exchange_on_completed, g, MHD_OPTION_NOTIFY_CONNECTION,
		door_notify, g, MHD_OPTION_CONNECTION_LIMIT,
		(unsigned)MIN(g->setup->max_connections + GATEWAY_SPARE_CONNECTIONS, 100000u),
		MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_BYTES,
		MHD_OPTION_CONNECTION_TIMEOUT, 0u, MHD_OPTION_UNESCAPE_CALLBACK, unescape, NULL,
		MHD_OPTION_END);
	if (!g->http)
		return err_set(err, -EIO, "libmicrohttpd does not start: %s", strerror(errno));
	info = MHD_get_daemon_info(g->http, MHD_DAEMON_INFO_EPOLL_FD);
	if (!info)
		return err_set(err, -ENOTSUP, "libmicrohttpd was built without epoll");
	r = sd_event_add_io(g->loop, &g->http_io, info->epoll_fd, EPOLLIN, on_http, g);
	if (r >= 0)
		r = sd_event_add_defer(g->loop, &g->http_again, on_http_again, g);
	/* with a chunk whose size fills its buffer it wishes for ever: all else goes first, and on */
	if (r >= 0)
		r = sd_event_source_set_priority(g->http_again, SD_EVENT_PRIORITY_NORMAL + 1);
	if (r >= 0)
		r = sd_event_source_set_ratelimit(g->http_again, AGAINS_US, AGAINS_MAX);
	if (r >= 0)
		r = sd_event_add_time_relative(g->loop, &g->sweep, CLOCK_MONOTONIC, SWEEP_US,
					       100000, on_sweep, g);
	return r < 0 ? err_set(err, r, "the event loop: %s", strerror(-r)) : 0;
}

/* The setting, or the credential that systemd passes. */
static int read_keys(struct gateway *g, struct err *err)
{
	const char *credentials = getenv("CREDENTIALS_DIRECTORY");
	_cleanup_(freep) char *path = NULL;

	if (g->setup->keys[0])
		return keys_read(g->setup->keys, &g->keys, err);
	if (!credentials)
		return 0;
	if (asprintf(&path, "%s/keys", credentials) < 0) {
		path = NULL;
		return err_set(err, -ENOMEM, "out of memory");
	}
	/* one that is there and cannot be read is no reason to do without */
	return access(path, F_OK) < 0 && errno == ENOENT ? 0 : keys_read(path, &g->keys, err);
}

/* Two a connection at most; what is not allowed is made do with. */
static void raise_descriptors(const struct setup *s)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return;
	limit.rlim_cur = MIN((rlim_t)s->max_connections + 2 * GATEWAY_SPARE_CONNECTIONS,
			     limit.rlim_max);
	setrlimit(RLIMIT_NOFILE, &limit);
}

static int watch(struct gateway *g, int op, int fd, uint32_t events, void *whose)
{
	struct epoll_event e = { .events = events, .data.ptr = whose };

	return epoll_ctl(g->wait_fd, op, fd, &e) < 0 ? -errno : 0;
}

int gateway_watch(struct gateway *g, struct link *l, bool wanted)
{
	/* else the kernel would look once more, after each token, whether there is another */
	return watch(g, wanted ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, steamd_fd(l->s), EPOLLIN | EPOLLET,
		     l);
}

/* Returns whether the loop has something to look at. */
static int wait_for_loop(struct gateway *g)
{
	struct epoll_event events[EVENTS_MAX];
	bool found = false;
	int n;

	n = epoll_wait(g->wait_fd, events, ARRAY_SIZE(events), -1);
	if (n < 0)
		return errno == EINTR ? 0 : -errno;
	for (int i = 0; i < n; i++) {
		if (events[i].data.ptr)
			link_read(events[i].data.ptr);
		else
			found = true;
	}
	return found || g->loop_changed;
}

/*
 * sd_event_loop(), but that tokens come and go past it: a turn of it costs a
 * microsecond, where all of what we do for a token is two or three.
 */
static int run_loop(struct gateway *g)
{
	int code, r;

	while (sd_event_get_state(g->loop) != SD_EVENT_FINISHED) {
		r = sd_event_prepare(g->loop);
		g->loop_changed = false;
		for (int found = 0; r == 0 && found == 0;) {
			found = wait_for_loop(g);
			if (found != 0)
				r = found < 0 ? found : sd_event_wait(g->loop, 0);
		}
		if (r > 0)
			r = sd_event_dispatch(g->loop);
		if (r < 0)
			return r;
	}
	return sd_event_get_exit_code(g->loop, &code) < 0 ? 0 : code;
}

static int start_loop(struct gateway *g, struct err *err)
{
	sigset_t ends;
	int r;

	sigemptyset(&ends);
	sigaddset(&ends, SIGTERM);
	sigaddset(&ends, SIGINT);
	sigprocmask(SIG_BLOCK, &ends, NULL);
	signal(SIGPIPE, SIG_IGN);
	r = sd_event_new(&g->loop);
	if (r >= 0)
		r = sd_event_add_signal(g->loop, NULL, SIGTERM, NULL, NULL);
	if (r >= 0)
		r = sd_event_add_signal(g->loop, NULL, SIGINT, NULL, NULL);
	g->wait_fd = epoll_create1(EPOLL_CLOEXEC);
	if (r >= 0)
		r = g->wait_fd < 0
			    ? -errno
			    : watch(g, EPOLL_CTL_ADD, sd_event_get_fd(g->loop), EPOLLIN, NULL);
	return r < 0 ? err_set(err, r, "the event loop: %s", strerror(-r)) : 0;
}

static void gateway_deinit(struct gateway *g)
{
	struct visitor *v;

	door_close_all(g);
	/* nobody may be suspended when libmicrohttpd stops */
	LIST_FOREACH(v, &g->visitors, link)
	if (v->exchange)
		exchange_reader_left(v->exchange);
	if (g->http)
		MHD_run(g->http);
	link_close_all(g);
	if (g->http)
		MHD_stop_daemon(g->http);
	sd_event_source_disable_unref(g->http_io);
	sd_event_source_disable_unref(g->http_again);
	sd_event_source_disable_unref(g->sweep);
	sd_event_unref(g->loop);
	closep(&g->wait_fd);
	keys_free(g->keys);
	responses_free(g->responses);
}

int gateway_run(const struct setup *setup, struct err *err)
{
	_cleanup_(gateway_deinit) struct gateway g = { .setup = setup, .wait_fd = -1 };
	struct timespec t;
	int r;

	clock_gettime(CLOCK_REALTIME, &t);
	g.started_s = (uint64_t)t.tv_sec;
	g.last_visit_us = gateway_now_us();
	LIST_INIT(&g.visitors);
	LIST_INIT(&g.unsent);
	LIST_INIT(&g.peers);
	LIST_INIT(&g.links);
	raise_descriptors(setup);
	r = start_loop(&g, err);
	if (r == 0)
		r = read_keys(&g, err);
	if (r == 0)
		r = start_http(&g, err);
	if (r == 0)
		r = door_open_all(&g, err);
	if (r < 0)
		return r;
	fputs("ready\n", stderr);
	sd_notify(0, "READY=1");
	r = run_loop(&g);
	sd_notify(0, "STOPPING=1");
	return r < 0 ? err_set(err, r, "the event loop: %s", strerror(-r)) : 0;
}
