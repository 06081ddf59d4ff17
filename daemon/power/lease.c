/* A pidfd, which becomes readable at its process' end and never means another one. */
#include "daemon/power/lease.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/pidfd.h>

#include "client/wire/ownership.h"

struct lease {
	int fd;
	sd_event_source *source;
	void (*on_end)(struct lease *l, void *userdata);
	void *userdata;
};

static int on_exit_of(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	struct lease *l = userdata;

	(void)fd, (void)revents;
	sd_event_source_set_enabled(source, SD_EVENT_OFF);
	l->on_end(l, l->userdata);
	return 0;
}

int lease_new(sd_event *loop, pid_t pid, void (*on_end)(struct lease *l, void *userdata),
	      void *userdata, struct lease **ret)
{
	struct lease *l = calloc(1, sizeof(*l));
	int r;

	if (!l)
		return -ENOMEM;
	l->on_end = on_end;
	l->userdata = userdata;
	l->fd = pidfd_open(pid, 0);
	r = l->fd < 0 ? -errno : sd_event_add_io(loop, &l->source, l->fd, EPOLLIN, on_exit_of, l);
	if (r < 0) {
		lease_free(l);
		return r;
	}
	*ret = l;
	return 0;
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
