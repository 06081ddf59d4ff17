/* Socket diagnostics (NETLINK_SOCK_DIAG): one socket, by its four-tuple. */
#include "client/gateway/ident.h"

#include <errno.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <string.h>

#include "client/wire/ownership.h"

struct query {
	struct nlmsghdr header;
	struct inet_diag_req_v2 body;
};

/* An address as the query wants it; an IPv4 one that was mapped into IPv6 is what it was. */
static int take_address(const struct sockaddr_storage *from, __be32 to[4], __be16 *port,
			unsigned char *family)
{
	const struct sockaddr_in *v4 = (const struct sockaddr_in *)from;
	const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)from;

	if (from->ss_family == AF_INET) {
		memcpy(to, &v4->sin_addr, 4);
		*port = v4->sin_port;
		*family = AF_INET;
		return 0;
	}
	if (from->ss_family != AF_INET6)
		return -EAFNOSUPPORT;
	*port = v6->sin6_port;
	*family = AF_INET6;
	memcpy(to, &v6->sin6_addr, 16);
	if (IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr)) {
		memset(to, 0, 16);
		memcpy(to, v6->sin6_addr.s6_addr + 12, 4);
		*family = AF_INET;
	}
	return 0;
}

static int fill(int fd, struct query *q)
{
	struct sockaddr_storage ours, theirs;
	socklen_t n_ours = sizeof(ours), n_theirs = sizeof(theirs);
	struct inet_diag_sockid *id = &q->body.id;
	unsigned char family;
	int r;

	if (getsockname(fd, (struct sockaddr *)&ours, &n_ours) < 0)
		return -errno;
	if (getpeername(fd, (struct sockaddr *)&theirs, &n_theirs) < 0)
		return errno == ENOTCONN ? -ENOENT : -errno;
	q->header = (struct nlmsghdr){ .nlmsg_len = sizeof(*q),
				       .nlmsg_type = SOCK_DIAG_BY_FAMILY,
				       .nlmsg_flags = NLM_F_REQUEST };
	q->body.sdiag_protocol = IPPROTO_TCP;
	q->body.idiag_states = -1;
	id->idiag_cookie[0] = id->idiag_cookie[1] = INET_DIAG_NOCOOKIE;
	/* the other end's socket: its source is our destination */
	r = take_address(&theirs, id->idiag_src, &id->idiag_sport, &q->body.sdiag_family);
	return r < 0 ? r : take_address(&ours, id->idiag_dst, &id->idiag_dport, &family);
}

static int read_reply(const char *reply, size_t n, uid_t *ret)
{
	const struct nlmsghdr *h = (const struct nlmsghdr *)reply;
	const struct inet_diag_msg *found = NLMSG_DATA(h);
	const struct nlmsgerr *e = NLMSG_DATA(h);

	if (n < sizeof(*h) || h->nlmsg_len > n)
		return -EPROTO;
	if (h->nlmsg_type == NLMSG_ERROR)
		return h->nlmsg_len < NLMSG_LENGTH(sizeof(*e)) ? -EPROTO
		       : e->error			       ? e->error
							       : -EPROTO;
	if (h->nlmsg_type != SOCK_DIAG_BY_FAMILY || h->nlmsg_len < NLMSG_LENGTH(sizeof(*found)))
		return -EPROTO;
	/* of a socket without a process (TIME_WAIT) the kernel says user 0 */
	if (found->idiag_inode == 0)
		return -ENOENT;
	*ret = found->idiag_uid;
	return 0;
}

int ident_of_tcp(int fd, uid_t *ret)
{
	_cleanup_(closep) int diag = -1;
	char reply[1024] __attribute__((aligned(8)));
	struct query q = { 0 };
	ssize_t n;
	int r;

	r = fill(fd, &q);
	if (r < 0)
		return r;
	diag = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
	if (diag < 0 || send(diag, &q, sizeof(q), 0) < 0)
		return -errno;
	/* the kernel has answered before send() returned */
	n = recv(diag, reply, sizeof(reply), MSG_DONTWAIT);
	return n < 0 ? -errno : read_reply(reply, (size_t)n, ret);
}

int ident_of_unix(int fd, uid_t *ret)
{
	struct ucred who;
	socklen_t n = sizeof(who);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &n) < 0)
		return -errno;
	*ret = who.uid;
	return 0;
}
