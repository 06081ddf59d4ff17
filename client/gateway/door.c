/* Accepting, who may, and when it has been long enough. */
#include "client/gateway/door.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>

#include "client/gateway/entry.h"
#include "client/gateway/exchange.h"
#include "client/gateway/head.h"
#include "client/gateway/ident.h"
#include "client/gateway/keys.h"

#define ACCEPTS_A_TURN 64
#define BACKLOG 512
#define SEND_BYTES (64 << 10)
#define DISCARD_BYTES_MAX (256u << 10) /* of one that is refused; sent on, it is cut off */
#define KEEP_ALIVE_S 5		       /* between probes of a peer that sends no more */

struct door {
	struct gateway *g;
	int fd;
	bool is_unix;
	char *path; /* to be removed; NULL: it is systemd's, or TCP */
	sd_event_source *source;
};

/* Peers. */

static struct peer *peer_take(struct gateway *g, const char *name)
{
	struct peer *p;

	LIST_FOREACH(p, &g->peers, link)
	if (strcmp(p->name, name) == 0)
		break;
	if (!p) {
		p = calloc(1, sizeof(*p));
		if (!p)
			return NULL;
		snprintf(p->name, sizeof(p->name), "%s", name);
		LIST_INSERT_HEAD(&g->peers, p, link);
	}
	p->n++;
	return p;
}

static void peer_drop(struct peer *p)
{
	if (!p || --p->n > 0)
		return;
	LIST_REMOVE(p, link);
	free(p);
}

/* Visitors. */

static void visitor_free(struct visitor *v)
{
	LIST_REMOVE(v, link);
	v->g->n_visitors--;
	v->g->n_unwelcome -= v->no != NULL;
	v->g->last_visit_us = gateway_now_us();
	sd_event_source_disable_unref(v->io);
	if (v->stage != VISITOR_SERVED)
		close(v->fd);
	peer_drop(v->peer);
	free(v->no);
	free(v);
}

/* Arriving. */

/* From here on libmicrohttpd has the descriptor; it tells door_notify() of its end. */
static void serve(struct visitor *v)
{
	struct gateway *g = v->g;
	struct sockaddr_storage address = { 0 };
	socklen_t len = sizeof(address);

	getpeername(v->fd, (struct sockaddr *)&address, &len);
	v->stage = VISITOR_SERVED;
	sd_event_source_set_io_events(v->io, EPOLLRDHUP);
	sd_event_source_set_enabled(v->io, SD_EVENT_ONESHOT);
	g->arriving = v;
	MHD_add_connection(g->http, v->fd, (const struct sockaddr *)&address, len);
	/* it was closed without a word */
	if (g->arriving)
		visitor_free(steal(g->arriving));
	gateway_kick(g);
}

/* All that it is told from here on. */
static void tell(struct visitor *v, const struct refusal *no)
{
	struct jsontext answer = { 0 };

	v->g->counts.n_status[MIN(no->status / 100, 5u)]++;
	head_write_refusal(no, &answer);
	if (!answer.failed)
		send(v->fd, answer.at, answer.n, MSG_DONTWAIT | MSG_NOSIGNAL);
	jsontext_deinit(&answer);
	shutdown(v->fd, SHUT_WR);
}

static void refuse(struct visitor *v, const struct refusal *no)
{
	v->g->counts.n_requests++;
	tell(v, no);
	v->stage = VISITOR_REFUSED;
}

/*
 * Closed with something unread it might not get our answer; it does not stay for
 * long either way. Returns whether more may come.
 */
static bool drain(struct visitor *v)
{
	static char nowhere[DISCARD_BYTES_MAX / 4];
	ssize_t n;

	do {
		n = recv(v->fd, nowhere, sizeof(nowhere), MSG_DONTWAIT);
		v->n_discarded += n > 0 ? (size_t)n : 0;
	} while (n > 0 && v->n_discarded < DISCARD_BYTES_MAX);
	return n < 0 && errno == EAGAIN;
}

static void discard(struct visitor *v)
{
	if (!drain(v))
		visitor_free(v);
}

/* Its headers are there and nobody was asked about them: libmicrohttpd is at them, and at no others. */
static bool is_being_parsed(const struct visitor *v)
{
	return v->stage == VISITOR_SERVED && !v->exchange &&
	       MHD_get_connection_info(v->http, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);
}

/* Of those that libmicrohttpd may be reading just now. */
static bool may_be_broken(const struct visitor *v, bool in_chunks)
{
	const struct exchange *x = v->exchange;

	if (v->stage != VISITOR_SERVED || (x && x->state != EXCHANGE_BODY))
		return false;
	return !in_chunks || (x && entry_header(x, "Transfer-Encoding"));
}

void door_refuse_broken(struct gateway *g, unsigned status, bool in_chunks)
{
	struct visitor *v, *found = NULL;
	struct refusal no;
	unsigned n = 0;

	LIST_FOREACH(v, &g->visitors, link)
	{
		if (!may_be_broken(v, in_chunks))
			continue;
		n++;
		found = found && is_being_parsed(found) ? found : v;
	}
	if (n != 1 && !(found && is_being_parsed(found)))
		return;
	refusal_set(&no, status, REFUSAL_BAD, NULL,
		    in_chunks
			    ? "the body's chunks are broken"
			    : "the request line or the headers are none of HTTP/1.1, or too long");
	/* it closes what it cannot write to */
	tell(found, &no);
	drain(found);
}

static void look_at_head(struct visitor *v, bool is_all)
{
	static char bytes[HEAD_BYTES_MAX];
	const ssize_t n = recv(v->fd, bytes, sizeof(bytes), MSG_PEEK | MSG_DONTWAIT);
	struct refusal no;
	int r;

	if (n < 0 && errno == EAGAIN && !is_all)
		return;
	if (n <= 0) {
		visitor_free(v);
		return;
	}
	r = head_check(bytes, (size_t)n, &no);
	if (r > 0) {
		serve(v);
	} else if (r < 0) {
		refuse(v, &no);
		discard(v);
	} else if (is_all) {
		visitor_free(v);
	}
}

/* Leaving. */

static uint32_t wanted_events(const struct visitor *v)
{
	return (v->sends_no_more ? 0 : EPOLLRDHUP) | (v->wants_room ? EPOLLOUT : 0);
}

static void has_left(struct visitor *v)
{
	v->gone = true;
	if (v->exchange)
		exchange_reader_left(v->exchange);
}

/*
 * Whether somebody still holds the other end: one that closed its side alone may
 * wait for an answer, and one that closed both sends nothing else. Of a peer on
 * another machine nobody can say; what is sent to it, or keep-alive, will find out.
 */
static bool is_there(const struct visitor *v)
{
	uid_t uid;

	return v->is_unix || !v->is_local || ident_of_tcp(v->fd, &uid) == 0;
}

static void on_half_closed(struct visitor *v)
{
	const int s = KEEP_ALIVE_S;

	v->sends_no_more = true;
	if (!is_there(v)) {
		has_left(v);
		return;
	}
	if (!v->is_unix && !v->is_local) {
		setsockopt(v->fd, IPPROTO_TCP, TCP_KEEPIDLE, &s, sizeof(s));
		setsockopt(v->fd, IPPROTO_TCP, TCP_KEEPINTVL, &s, sizeof(s));
	}
	sd_event_source_set_io_events(v->io, wanted_events(v));
	sd_event_source_set_enabled(v->io, SD_EVENT_ONESHOT);
}

static int on_visitor(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	struct visitor *v = userdata;

	(void)fd;
	if (v->stage == VISITOR_ARRIVING) {
		look_at_head(v, revents & (EPOLLRDHUP | EPOLLHUP | EPOLLERR));
	} else if (v->stage == VISITOR_REFUSED) {
		discard(v);
	} else if (revents & (EPOLLHUP | EPOLLERR)) {
		has_left(v);
	} else if (revents & EPOLLRDHUP) {
		on_half_closed(v);
	} else {
		sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
		if (v->exchange)
			exchange_send_more(v->exchange);
	}
	return 0;
}

void door_want_room(struct visitor *v, bool wanted)
{
	if (v->wants_room == wanted)
		return;
	v->wants_room = wanted;
	sd_event_source_set_io_events(v->io, wanted_events(v));
}

void door_notify(void *userdata, struct MHD_Connection *http, void **context,
		 enum MHD_ConnectionNotificationCode code)
{
	struct gateway *g = userdata;
	struct visitor *v = *context;

	if (code == MHD_CONNECTION_NOTIFY_CLOSED) {
		if (v)
			visitor_free(v);
		*context = NULL;
		return;
	}
	v = steal(g->arriving);
	if (!v)
		return;
	v->http = http;
	*context = v;
}

static void turn_away(struct visitor *v, unsigned status, const char *code, const char *format, ...)
	_printf_(4, 5);

static void turn_away(struct visitor *v, unsigned status, const char *code, const char *format, ...)
{
	char text[256];
	va_list ap;

	va_start(ap, format);
	vsnprintf(text, sizeof(text), format, ap);
	va_end(ap);
	v->g->counts.n_turned_away++;
	if (!v->no && (v->no = calloc(1, sizeof(*v->no))))
		refusal_set(v->no, status, code, NULL, "%s", text);
}

/* Writes who is at the other end; *ret_uid: (uid_t)-1 if it is no user of this machine. */
static void name_peer(const struct visitor *v, const struct sockaddr_storage *address, char *name,
		      size_t size, uid_t *ret_uid)
{
	const int r = v->is_unix ? ident_of_unix(v->fd, ret_uid) : ident_of_tcp(v->fd, ret_uid);

	if (r == 0) {
		snprintf(name, size, "uid %u", *ret_uid);
		return;
	}
	*ret_uid = (uid_t)-1;
	if (v->is_unix || getnameinfo((const struct sockaddr *)address, sizeof(*address), name,
				      (socklen_t)size, NULL, 0, NI_NUMERICHOST) != 0)
		snprintf(name, size, "an unknown peer");
}

static int check_visitor(struct visitor *v, const struct sockaddr_storage *address)
{
	struct gateway *g = v->g;
	char name[64];
	uid_t uid;

	name_peer(v, address, name, sizeof(name), &uid);
	v->is_local = uid != (uid_t)-1;
	v->peer = peer_take(g, name);
	if (!v->peer)
		return -ENOMEM;
	if (!g->keys && uid != geteuid())
		turn_away(v, 403, REFUSAL_DENIED,
			  "this gateway serves user %u of this machine alone, and the connection "
			  "is of %s",
			  geteuid(), name);
	else if (g->n_visitors - g->n_unwelcome >= g->setup->max_connections)
		turn_away(v, 429, REFUSAL_BUSY, "%llu connections are open; no more can be",
			  (unsigned long long)(g->n_visitors - g->n_unwelcome));
	else if (v->peer->n > g->setup->max_peer_connections)
		turn_away(v, 429, REFUSAL_BUSY, "%s has %u connections open; no more can be", name,
			  v->peer->n - 1);
	return 0;
}

static void set_options(int fd)
{
	const int on = 1, send_bytes = SEND_BYTES;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
	/* the kernel's own would grow to megabytes of tokens that a stalled reader never takes */
	setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &send_bytes, sizeof(send_bytes));
}

/* Takes @fd over. */
static void admit(struct door *d, int fd, const struct sockaddr_storage *address)
{
	struct gateway *g = d->g;
	struct visitor *v = g->n_visitors < g->setup->max_connections + GATEWAY_SPARE_CONNECTIONS
				    ? calloc(1, sizeof(*v))
				    : NULL;

	if (!v) {
		close(fd);
		return;
	}
	*v = (struct visitor){
		.g = g, .fd = fd, .is_unix = d->is_unix, .since_us = gateway_now_us()
	};
	if (!d->is_unix)
		set_options(fd);
	if (check_visitor(v, address) < 0 ||
	    /* those that are not served take no place of those that are */
	    (v->no && g->n_unwelcome >= GATEWAY_SPARE_CONNECTIONS) ||
	    /* what has come and is not whole stays in the socket: only what is new is of interest */
	    sd_event_add_io(g->loop, &v->io, fd, EPOLLIN | EPOLLRDHUP | EPOLLET, on_visitor, v) <
		    0) {
		sd_event_source_disable_unref(v->io);
		peer_drop(v->peer);
		free(v->no);
		free(v);
		close(fd);
		return;
	}
	LIST_INSERT_HEAD(&g->visitors, v, link);
	g->n_visitors++;
	g->n_unwelcome += v->no != NULL;
	g->counts.n_visitors++;
	gateway_sweep_on(g);
}

static int on_door(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	struct door *d = userdata;

	(void)source, (void)revents;
	for (int i = 0; i < ACCEPTS_A_TURN; i++) {
		struct sockaddr_storage address = { 0 };
		socklen_t len = sizeof(address);
		const int peer_fd = accept4(fd, (struct sockaddr *)&address, &len,
					    SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (peer_fd < 0)
			break;
		admit(d, peer_fd, &address);
	}
	return 0;
}

void door_sweep(struct gateway *g)
{
	const struct setup *s = g->setup;
	const uint64_t now = gateway_now_us();
	struct visitor *v;

	LIST_FOREACH(v, &g->visitors, link)
	{
		const uint64_t allowed_s = v->exchange	       ? exchange_allowed_s(v->exchange)
					   : v->n_requests > 0 ? s->keep_alive
							       : s->header_timeout;
		const uint64_t since = v->exchange ? exchange_since_us(v->exchange) : v->since_us;

		if (v->sends_no_more && v->exchange && !is_there(v))
			has_left(v);
		if (v->exchange)
			exchange_look(v->exchange, now);
		/* who owns the descriptor sees the end of it, and cleans up */
		if (allowed_s > 0 && now - since > allowed_s * 1000000) {
			shutdown(v->fd, SHUT_RDWR);
			if (v->exchange)
				exchange_reader_left(v->exchange);
		}
	}
}

/* Doors. */

static int add_door(struct gateway *g, int fd, bool is_unix, const char *path, struct err *err)
{
	struct door *d;
	int r;

	if (g->n_doors == GATEWAY_DOORS_MAX) {
		close(fd);
		return err_set(err, -EINVAL, "there are more than %d sockets", GATEWAY_DOORS_MAX);
	}
	d = calloc(1, sizeof(*d));
	if (!d) {
		close(fd);
		return err_set(err, -ENOMEM, "out of memory");
	}
	*d = (struct door){ .g = g, .fd = fd, .is_unix = is_unix };
	g->doors[g->n_doors++] = d;
	if (path && !(d->path = strdup(path)))
		return err_set(err, -ENOMEM, "out of memory");
	r = sd_event_add_io(g->loop, &d->source, fd, EPOLLIN, on_door, d);
	return r < 0 ? err_set(err, r, "cannot watch a socket: %s", strerror(-r)) : 0;
}

static bool is_loopback(const struct sockaddr_storage *a)
{
	const struct sockaddr_in *v4 = (const struct sockaddr_in *)a;
	const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)a;

	return (a->ss_family == AF_INET && ntohl(v4->sin_addr.s_addr) >> 24 == 127) ||
	       (a->ss_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr));
}

/* Without keys nobody but a process of this machine could be told from another. */
static int check_place(const struct gateway *g, const struct sockaddr_storage *a, const char *where,
		       struct err *err)
{
	if (g->keys || a->ss_family == AF_UNIX || is_loopback(a))
		return 0;
	return err_set(err, -EINVAL,
		       "'%s' is open to other machines, which goes with keys only; 127.0.0.1 and "
		       "[::1] are not",
		       where);
}

static int take_passed(struct gateway *g, struct err *err)
{
	const int n = sd_listen_fds(1);

	for (int fd = SD_LISTEN_FDS_START; fd < SD_LISTEN_FDS_START + n; fd++) {
		struct sockaddr_storage a = { 0 };
		socklen_t len = sizeof(a);
		int r;

		if (sd_is_socket(fd, AF_UNSPEC, SOCK_STREAM, 1) <= 0 ||
		    getsockname(fd, (struct sockaddr *)&a, &len) < 0)
			return err_set(err, -EINVAL, "descriptor %d is no listening stream socket",
				       fd);
		r = check_place(g, &a, "a socket of systemd's", err);
		if (r == 0)
			r = add_door(g, fd, a.ss_family == AF_UNIX, NULL, err);
		if (r < 0)
			return r;
		/* all are accepted until none is left */
		if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
			return err_set(err, -errno, "descriptor %d: %s", fd, strerror(errno));
	}
	g->activated = n > 0;
	return n < 0 ? err_set(err, n, "systemd's sockets: %s", strerror(-n)) : 0;
}

static int listen_unix(struct gateway *g, const char *path, struct err *err)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	_cleanup_(closep) int fd = -1;
	struct stat st;
	mode_t before;
	int r;

	if (strlen(path) >= sizeof(a.sun_path))
		return err_set(err, -EINVAL, "'%s' is longer than a socket's path can be", path);
	memcpy(a.sun_path, path, strlen(path) + 1);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return err_set(err, -errno, "cannot make a socket: %s", strerror(errno));
	/* what was left by one that was killed */
	if (lstat(path, &st) == 0 && S_ISSOCK(st.st_mode) &&
	    connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0 && errno == ECONNREFUSED)
		unlink(path);
	before = umask(g->keys ? 0111 : 0177);
	r = bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0 ? -errno : 0;
	umask(before);
	if (r < 0 || listen(fd, BACKLOG) < 0)
		return err_set(err, r < 0 ? r : -errno, "cannot listen at '%s': %s", path,
			       strerror(r < 0 ? -r : errno));
	fprintf(stderr, "steamd-gateway: listening at '%s'\n", path);
	return add_door(g, steal_fd(&fd), true, path, err);
}

/* "127.0.0.1:8080", "[::1]:8080", "localhost:8080" */
static int resolve(const char *where, struct addrinfo **ret, struct err *err)
{
	const char *colon = strrchr(where, ':');
	const struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV };
	_cleanup_(freep) char *host = NULL;
	size_t n, digits;
	int r;

	if (!colon || colon == where || !colon[1])
		return err_set(err, -EINVAL,
			       "--listen is '%s'; ADDRESS:PORT or a path with a / is wanted",
			       where);
	/* getaddrinfo() would take what is left of a larger one */
	digits = strspn(colon + 1, "0123456789");
	if (colon[1 + digits] || digits > 5 || atoi(colon + 1) > UINT16_MAX)
		return err_set(err, -EINVAL, "--listen is '%s'; a port of 0 to %d is wanted", where,
			       UINT16_MAX);
	n = (size_t)(colon - where);
	if (where[0] == '[' && where[n - 1] == ']')
		host = strndup(where + 1, n - 2);
	else
		host = strndup(where, n);
	if (!host)
		return err_set(err, -ENOMEM, "out of memory");
	r = getaddrinfo(host, colon + 1, &hints, ret);
	return r ? err_set(err, -EINVAL, "--listen is '%s': %s", where, gai_strerror(r)) : 0;
}

static void say_address(int fd)
{
	struct sockaddr_storage a;
	socklen_t len = sizeof(a);
	char host[64], port[16];

	if (getsockname(fd, (struct sockaddr *)&a, &len) == 0 &&
	    getnameinfo((struct sockaddr *)&a, len, host, sizeof(host), port, sizeof(port),
			NI_NUMERICHOST | NI_NUMERICSERV) == 0)
		fprintf(stderr,
			a.ss_family == AF_INET6 ? "steamd-gateway: listening at http://[%s]:%s\n"
						: "steamd-gateway: listening at http://%s:%s\n",
			host, port);
}

static int listen_tcp(struct gateway *g, const char *where, struct err *err)
{
	struct addrinfo *found = NULL;
	const int on = 1;
	int r;

	r = resolve(where, &found, err);
	if (r < 0)
		return r;
	r = check_place(g, (const struct sockaddr_storage *)found->ai_addr, where, err);
	if (r == 0) {
		_cleanup_(closep) int fd = socket(found->ai_family,
						  SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

		if (fd >= 0)
			setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
		if (fd < 0 || bind(fd, found->ai_addr, found->ai_addrlen) < 0 ||
		    listen(fd, BACKLOG) < 0) {
			r = err_set(err, -errno, "cannot listen at '%s': %s", where,
				    strerror(errno));
		} else {
			say_address(fd);
			r = add_door(g, steal_fd(&fd), false, NULL, err);
		}
	}
	freeaddrinfo(found);
	return r;
}

int door_open_all(struct gateway *g, struct err *err)
{
	int r;

	r = take_passed(g, err);
	for (unsigned i = 0; i < g->setup->n_listen && r == 0; i++) {
		const char *where = g->setup->listen[i];

		r = strchr(where, '/') ? listen_unix(g, where, err) : listen_tcp(g, where, err);
	}
	if (r == 0 && g->n_doors == 0)
		return err_set(err, -EINVAL,
			       "there is nothing to listen at: name it with --listen "
			       "127.0.0.1:PORT");
	return r;
}

void door_close_all(struct gateway *g)
{
	struct visitor *v, *next;

	for (v = LIST_FIRST(&g->visitors); v; v = next) {
		next = LIST_NEXT(v, link);
		if (v->stage != VISITOR_SERVED)
			visitor_free(v);
	}
	for (unsigned i = 0; i < g->n_doors; i++) {
		struct door *d = g->doors[i];

		sd_event_source_disable_unref(d->source);
		closep(&d->fd);
		if (d->path)
			unlink(d->path);
		free(d->path);
		free(d);
	}
	g->n_doors = 0;
}
