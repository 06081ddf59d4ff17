/*
 * The service manager's end of the notification socket: receives states, keeps
 * what is stored. A thread takes them in, for the kernel lets only so many wait
 * (net.unix.max_dgram_qlen), and then whoever sends one more.
 */
#pragma once

#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MANAGER_FDS_MAX 32

struct manager {
	int fd;
	char path[64], log[4096]; /* log: all states received, one after the other */
	char names[MANAGER_FDS_MAX][32];
	int fds[MANAGER_FDS_MAX];
	int n;
	pthread_t thread; /* until end_fd is readable */
	int end_fd;
	pthread_mutex_t mutex; /* guards log, names, fds and n while messages are taken in */
};

static inline void manager_forget(struct manager *m, const char *name)
{
	for (int i = 0; i < m->n;) {
		if (strcmp(m->names[i], name) != 0) {
			i++;
			continue;
		}
		close(m->fds[i]);
		m->n--;
		m->fds[i] = m->fds[m->n];
		memcpy(m->names[i], m->names[m->n], sizeof(m->names[i]));
	}
}

/* Takes in what was sent. */
static inline void manager_take_in(struct manager *m)
{
	for (;;) {
		char state[1024] = "", name[32] = "";
		union {
			struct cmsghdr align;
			char bytes[256];
		} control;
		struct iovec iov = { state, sizeof(state) - 1 };
		struct msghdr h = { .msg_iov = &iov, .msg_iovlen = 1,
				    .msg_control = control.bytes, .msg_controllen = sizeof(control) };
		const ssize_t n = recvmsg(m->fd, &h, MSG_CMSG_CLOEXEC);
		const char *at;

		if (n < 0)
			return;
		state[n] = '\0';
		at = strstr(state, "FDNAME=");
		if (at)
			sscanf(at, "FDNAME=%31s", name);
		if (strstr(state, "FDSTOREREMOVE=1"))
			manager_forget(m, name);
		for (struct cmsghdr *c = CMSG_FIRSTHDR(&h); c; c = CMSG_NXTHDR(&h, c)) {
			int fd;

			if (c->cmsg_type != SCM_RIGHTS || m->n == MANAGER_FDS_MAX)
				continue;
			memcpy(&fd, CMSG_DATA(c), sizeof(fd));
			if (strstr(state, "FDSTORE=1")) {
				snprintf(m->names[m->n], sizeof(m->names[0]), "%s", name);
				m->fds[m->n++] = fd;
			} else {
				close(fd); /* a barrier */
			}
		}
		if (strlen(m->log) + strlen(state) + 2 < sizeof(m->log))
			strcat(strcat(m->log, state), "\n");
	}
}

/* Takes in all that was sent. */
static inline void manager_read(struct manager *m)
{
	pthread_mutex_lock(&m->mutex);
	manager_take_in(m);
	pthread_mutex_unlock(&m->mutex);
}

static inline void *manager_run(void *userdata)
{
	struct manager *m = userdata;
	struct pollfd p[2] = { { .fd = m->fd, .events = POLLIN },
			       { .fd = m->end_fd, .events = POLLIN } };

	while (poll(p, 2, -1) < 0 || p[1].revents == 0)
		manager_read(m);
	return NULL;
}

static inline void manager_open(struct manager *m)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };

	memset(m, 0, sizeof(*m));
	snprintf(m->path, sizeof(m->path), "/tmp/steamd-manager-%d", (int)getpid());
	memcpy(at.sun_path, m->path, strlen(m->path));
	unlink(m->path);
	m->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	m->end_fd = eventfd(0, EFD_CLOEXEC);
	if (m->fd < 0 || m->end_fd < 0 || bind(m->fd, (struct sockaddr *)&at, sizeof(at)) < 0 ||
	    pthread_mutex_init(&m->mutex, NULL) != 0 ||
	    pthread_create(&m->thread, NULL, manager_run, m) != 0)
		abort();
	setenv("NOTIFY_SOCKET", m->path, 1);
}

/* A duplicate of what is stored under @name, or -1. */
static inline int manager_get(const struct manager *m, const char *name)
{
	for (int i = 0; i < m->n; i++) {
		if (strcmp(m->names[i], name) == 0)
			return dup(m->fds[i]);
	}
	return -1;
}

static inline void manager_close(struct manager *m)
{
	eventfd_write(m->end_fd, 1);
	pthread_join(m->thread, NULL);
	pthread_mutex_destroy(&m->mutex);
	while (m->n > 0)
		manager_forget(m, m->names[0]);
	close(m->fd);
	close(m->end_fd);
	unlink(m->path);
	unsetenv("NOTIFY_SOCKET");
}
