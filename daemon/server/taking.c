/* A ring of users, each with a ring of connections, and a bell that rings while there are any. */
#include "daemon/server/taking.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

static bool can_take(const struct peer *p)
{
	return !p->closing && !p->dead && !peer_is_full(p) && frame_in_is_whole(&p->in);
}

/* At the end of both rings. */
static void join(struct peer *p)
{
	struct server *s = p->server;
	const uint64_t one = 1;

	if (!s->is_ringing)
		(void)!write(s->taking_fd, &one, sizeof(one)); /* it was 0 */
	s->is_ringing = true;
	if (TAILQ_EMPTY(&p->user->takers))
		TAILQ_INSERT_TAIL(&s->takers, p->user, take);
	TAILQ_INSERT_TAIL(&p->user->takers, p, take);
	p->is_taking = true;
}

static void leave(struct peer *p)
{
	struct user *user = p->user;

	if (!p->is_taking)
		return;
	p->is_taking = false;
	TAILQ_REMOVE(&user->takers, p, take);
	if (TAILQ_EMPTY(&user->takers))
		TAILQ_REMOVE(&p->server->takers, user, take);
}

void taking_forget(struct peer *p)
{
	leave(p);
}

void taking_goes_on(struct peer *p)
{
	if (!p->is_taking && can_take(p))
		join(p);
}

/* One frame; then it is another's turn. */
static void take(struct peer *p)
{
	leave(p);
	peer_take_frame(p);
	taking_goes_on(p);
	peer_taken(p);
}

/* A hello has its own time, which no other connection's frames use up. */
void taking_began(struct peer *p)
{
	if (TAILQ_EMPTY(&p->server->takers) || !p->greeted || !can_take(p))
		take(p);
	else
		join(p);
}

/* The bell is level-triggered: it takes its turn with the connections and the executor. */
static int on_bell(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	struct server *s = userdata;
	struct user *user = TAILQ_FIRST(&s->takers);
	uint64_t n;

	(void)source, (void)revents;
	if (user) {
		TAILQ_REMOVE(&s->takers, user, take);
		TAILQ_INSERT_TAIL(&s->takers, user, take);
		take(TAILQ_FIRST(&user->takers));
	}
	if (TAILQ_EMPTY(&s->takers)) {
		(void)!read(fd, &n, sizeof(n));
		s->is_ringing = false;
	}
	return 0;
}

int taking_open(struct server *s)
{
	s->taking_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (s->taking_fd < 0)
		return -errno;
	return sd_event_add_io(s->loop, &s->taker, s->taking_fd, EPOLLIN, on_bell, s);
}

void taking_close(struct server *s)
{
	s->taker = sd_event_source_disable_unref(s->taker);
	if (s->taking_fd >= 0)
		close(s->taking_fd);
	s->taking_fd = -1;
}
