/* A pidfd, which becomes readable at its process' end. */
#include "daemon/power/lease.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/pidfd.h>

#include "client/wire/ownership.h"
#include "daemon/base/fdstore.h"

#define NAME_PREFIX "lease-"

struct lease {
	int fd;
	pid_t pid;
	char name[96]; /* under which it is parked; "" if it is not */
	sd_event_source *source;
	void (*on_end)(void *userdata);
	void *userdata;
};

static int on_exit_of(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	struct lease *l = userdata;

	(void)fd, (void)revents;
	sd_event_source_set_enabled(source, SD_EVENT_OFF);
	l->on_end(l->userdata);
	return 0;
}

/* Takes @fd over, also on failure. */
static int watch(sd_event *loop, int fd, pid_t pid, void (*on_end)(void *userdata), void *userdata,
		 struct lease **ret)
{
	struct lease *l = calloc(1, sizeof(*l));
	int r;

	if (!l) {
		close(fd);
		return -ENOMEM;
	}
	*l = (struct lease){ .fd = fd, .pid = pid, .on_end = on_end, .userdata = userdata };
	r = sd_event_add_io(loop, &l->source, fd, EPOLLIN, on_exit_of, l);
	if (r < 0) {
		lease_free(l);
		return r;
	}
	*ret = l;
	return 0;
}

int lease_new(sd_event *loop, pid_t pid, void (*on_end)(void *userdata), void *userdata,
	      struct lease **ret)
{
	const int fd = pidfd_open(pid, 0);

	return fd < 0 ? -errno : watch(loop, fd, pid, on_end, userdata, ret);
}

void lease_keep(struct lease *l, uint32_t rung, uint64_t bytes, uint64_t pages_bytes)
{
	static uint32_t n; /* two of one process are two */

	snprintf(l->name, sizeof(l->name), NAME_PREFIX "%u-%u-%d-%u-%llu-%llu", (unsigned)getpid(),
		 n++, (int)l->pid, rung, (unsigned long long)bytes,
		 (unsigned long long)pages_bytes);
	fdstore_put(l->name, l->fd, 1);
}

int lease_take(sd_event *loop, void (*on_end)(void *userdata), void *userdata, struct lease **ret,
	       pid_t *ret_pid, uint32_t *ret_rung, uint64_t *ret_bytes, uint64_t *ret_pages_bytes)
{
	unsigned long long bytes, pages_bytes;
	unsigned rung;
	char name[sizeof((*ret)->name)];
	int fd, pid, r;

	while ((fd = fdstore_take_next(NAME_PREFIX, name, sizeof(name))) >= 0) {
		if (sscanf(name, NAME_PREFIX "%*u-%*u-%d-%u-%llu-%llu", &pid, &rung, &bytes,
			   &pages_bytes) != 4) {
			close(fd);
			fdstore_remove(name);
			continue;
		}
		r = watch(loop, fd, pid, on_end, userdata, ret);
		if (r < 0)
			return r;
		snprintf((*ret)->name, sizeof((*ret)->name), "%s", name);
		*ret_pid = pid;
		*ret_rung = rung;
		*ret_bytes = bytes;
		*ret_pages_bytes = pages_bytes;
		return 0;
	}
	return -ENOENT;
}

struct lease *lease_free(struct lease *l)
{
	if (!l)
		return NULL;
	sd_event_source_disable_unref(l->source);
	closep(&l->fd);
	free(l);
	return NULL;
}

void lease_forget(struct lease *l)
{
	if (l && l->name[0])
		fdstore_remove(l->name);
}
