/* Connecting, and one packet with descriptors. */
#include "daemon/sched/contact.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "client/wire/ownership.h"

int contact_unit(const char *path, struct err *err)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	_cleanup_(closep) int fd = -1;

	if (strlen(path) >= sizeof(to.sun_path))
		return err_set(err, -ENAMETOOLONG, "the executor's socket '%s' has a path too long",
			       path);
	memcpy(to.sun_path, path, strlen(path));
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof(to)) < 0)
		return err_wrap(err, -errno, "cannot reach the executor at '%s'", path);
	return steal_fd(&fd);
}

int contact_configure(int control_fd, const struct control_configure *configure,
		      const int fds[CONTACT_FDS])
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(CONTACT_FDS * sizeof(int))];
	} control = { 0 };
	struct iovec iov = { (void *)configure, sizeof(*configure) };
	struct msghdr m = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof(control.bytes),
	};
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(CONTACT_FDS * sizeof(int));
	memcpy(CMSG_DATA(c), fds, CONTACT_FDS * sizeof(int));
	return sendmsg(control_fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)sizeof(*configure)
		       ? 0
		       : -errno;
}
