/* Where clients connect: systemd's socket or our own, and accepting. */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "daemon/base/clock.h"
#include "daemon/base/fdstore.h"
#include "daemon/base/log.h"
#include "daemon/server/server.h"

/*
 * In a turn of the loop, so that others' work comes between. Who only connects
 * and leaves, as fast as it can, spends on it what it costs here; it takes a
 * millisecond of others' answers, and the wait for the backlog of who connects
 * next, which no limit of a user could spare: it is the kernel's, and whose a
 * connection is, is known only when it was accepted.
 */
#define ACCEPTS_A_TURN 16
#define BACKLOG 512

/* No descriptors are left: the queue waits a second, rather than spin. */
static int on_accept_again(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct server *s = userdata;

	(void)source, (void)usec;
	sd_event_source_set_enabled(s->listener, SD_EVENT_ON);
	return 0;
}

static void stop_accepting(struct server *s)
{
	static struct log_limit limit;

	if (log_allowed(&limit, 1))
		log_warning("no connection can be accepted: %s", strerror(errno));
	sd_event_source_set_enabled(s->listener, SD_EVENT_OFF);
	sd_event_source_set_time_relative(s->accept_again, US_PER_S);
	sd_event_source_set_enabled(s->accept_again, SD_EVENT_ONESHOT);
}

static int on_connection(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	struct server *s = userdata;

	(void)source, (void)revents;
	for (int i = 0; i < ACCEPTS_A_TURN; i++) {
		const int peer_fd = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (peer_fd < 0) {
			if (errno == EMFILE || errno == ENFILE || errno == ENOMEM ||
			    errno == ENOBUFS)
				stop_accepting(s);
			return 0;
		}
		server_add(s, peer_fd);
	}
	return 0;
}

static int choose_path(const struct server *s, char *path, size_t size, struct err *err)
{
	const char *runtime = getenv("XDG_RUNTIME_DIR");
	int n;

	if (s->settings->socket[0])
		n = snprintf(path, size, "%s", s->settings->socket);
	else if (geteuid() == 0)
		n = snprintf(path, size, "/run/steamd.sock");
	else if (runtime && runtime[0])
		n = snprintf(path, size, "%s/steamd.sock", runtime);
	else
		return err_set(err, -EINVAL,
			       "no socket is named: neither --socket nor Socket= nor "
			       "$XDG_RUNTIME_DIR is set");
	if (n <= 0 || (size_t)n >= size)
		return err_set(err, -ENAMETOOLONG, "the socket's path is longer than %zu bytes",
			       size - 1);
	return 0;
}

/* Whether @addr is the file of a socket that nobody listens at any more. */
static bool is_stale(const struct sockaddr_un *addr)
{
	_cleanup_(closep) int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct stat st;

	return fd >= 0 && lstat(addr->sun_path, &st) == 0 && S_ISSOCK(st.st_mode) &&
	       connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) < 0 &&
	       errno == ECONNREFUSED;
}

static int bind_path(int fd, const struct sockaddr_un *addr, uint32_t mode, struct err *err)
{
	const mode_t before = umask(0777 & ~mode);
	int r;

	r = bind(fd, (const struct sockaddr *)addr, sizeof(*addr)) < 0 ? -errno : 0;
	if (r == -EADDRINUSE && is_stale(addr) && unlink(addr->sun_path) == 0)
		r = bind(fd, (const struct sockaddr *)addr, sizeof(*addr)) < 0 ? -errno : 0;
	umask(before);
	if (r == -EADDRINUSE)
		return err_set(err, r, "cannot listen at '%s': something is there already",
			       addr->sun_path);
	if (r < 0)
		return err_set(err, r, "cannot listen at '%s': %s", addr->sun_path, strerror(-r));
	return 0;
}

static int listen_at_path(struct server *s, struct err *err)
{
	_cleanup_(closep) int fd = -1;
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int r;

	r = choose_path(s, addr.sun_path, sizeof(addr.sun_path), err);
	if (r < 0)
		return r;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return err_set(err, -errno, "cannot make a socket: %s", strerror(errno));
	r = bind_path(fd, &addr, s->settings->socket_mode, err);
	if (r < 0)
		return r;
	s->socket_path = strdup(addr.sun_path);
	if (!s->socket_path) {
		unlink(addr.sun_path);
		return err_set(err, -ENOMEM, "out of memory");
	}
	if (listen(fd, BACKLOG) < 0)
		return err_set(err, -errno, "cannot listen at '%s': %s", addr.sun_path,
			       strerror(errno));
	s->listen_fd = steal_fd(&fd);
	log_info("listening at '%s'", s->socket_path);
	return 0;
}

int server_listen(struct server *s, struct err *err)
{
	int r;

	s->listen_fd = fdstore_take("api");
	/* the manager hands it over blocking; all are accepted until none is left */
	if (s->listen_fd >= 0)
		fcntl(s->listen_fd, F_SETFL, O_NONBLOCK);
	if (s->listen_fd < 0) {
		r = listen_at_path(s, err);
		if (r < 0)
			return r;
	}
	r = sd_event_add_io(s->loop, &s->listener, s->listen_fd, EPOLLIN, on_connection, s);
	if (r >= 0)
		r = sd_event_add_time_relative(s->loop, &s->accept_again, CLOCK_MONOTONIC, 0, 0,
					       on_accept_again, s);
	if (r >= 0)
		r = sd_event_source_set_enabled(s->accept_again, SD_EVENT_OFF);
	return r < 0 ? err_set(err, r, "cannot watch the socket: %s", strerror(-r)) : 0;
}
