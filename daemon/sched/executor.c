/* The executor's life: start, control packets, sleep, death, back-off and parking. */
#include "daemon/sched/executor-parts.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>

#include "client/wire/ownership.h"
#include "daemon/base/clock.h"
#include "daemon/base/fdstore.h"
#include "daemon/sched/child.h"
#include "daemon/sched/contact.h"
#include "daemon/sched/execrecord.h"

static const char *const state_names[] = {
	[EXECUTOR_OFF] = "off",
	[EXECUTOR_LOADING] = "loading",
	[EXECUTOR_READY] = "ready",
	[EXECUTOR_BACKOFF] = "waiting",
	[EXECUTOR_REFUSED] = "model-refused",
	[EXECUTOR_PARKING] = "parking",
	[EXECUTOR_PARKED] = "parked",
	[EXECUTOR_LEAVING] = "leaving",
	[EXECUTOR_GONE] = "gone",
};

#define GPU_AGAIN_S 10 /* where there is no GPU, seconds until it is looked for again */

/* Seconds before the start that follows so many deaths in a row; the last is for all more. */
static const uint32_t backoff_s[] = { 0, 0, 0, 1, 5, 60 };

/* What is parked with the service manager besides the arena and the turns. */
static const char *const parked_names[] = { "exec-ctl", "ring", "ring-down", "ring-up",
					    "exec-ready" };

const char *executor_state_name(enum executor_state state)
{
	return (size_t)state < ARRAY_SIZE(state_names) ? state_names[state] : "off";
}

uint32_t executor_backoff_s(uint32_t n_failures)
{
	return backoff_s[MIN(n_failures, ARRAY_SIZE(backoff_s) - 1)];
}

static void unpark(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(parked_names); i++)
		fdstore_remove(parked_names[i]);
}

static void set_record(struct executor *e, enum execrecord_state state)
{
	e->record.state = state;
	e->record.pid = e->pid;
	execrecord_write(e->record_fd, &e->record);
}

static void park(struct executor *e)
{
	unpark();
	fdstore_put("ring", e->ring.memfd, 0);
	fdstore_put("ring-down", e->ring.down_fd, 0);
	fdstore_put("ring-up", e->ring.up_fd, 0);
	e->record.state = EXECRECORD_LOADING;
	e->record.pid = e->pid;
	closep(&e->record_fd);
	e->record_fd = execrecord_new(&e->record);
	fdstore_put("exec-ctl", e->control_fd, 1); /* last: without it the others are no executor */
}

static bool takes_results(const struct executor *e)
{
	return e->state == EXECUTOR_READY || e->state == EXECUTOR_PARKING ||
	       e->state == EXECUTOR_LEAVING;
}

static void take_results(struct executor *e)
{
	if (takes_results(e) && e->options.on_results)
		e->options.on_results(e, e->options.userdata);
}

static int on_tell(sd_event_source *source, void *userdata)
{
	struct executor *e = userdata;

	(void)source;
	if (e->options.on_state)
		e->options.on_state(e, e->options.userdata);
	take_results(e);
	return 0;
}

void executor_tell(struct executor *e)
{
	sd_event_source_set_enabled(e->tell, SD_EVENT_ONESHOT);
}

int executor_new(sd_event *loop, const struct executor_options *options, struct executor **ret,
		 struct err *err)
{
	_cleanup_(executor_freep) struct executor *e = calloc(1, sizeof(*e));
	int r;

	if (!e)
		return err_set(err, -ENOMEM, "out of memory");
	e->loop = sd_event_ref(loop);
	e->options = *options;
	e->control_fd = e->record_fd = -1;
	e->ring = (struct ring){ .memfd = -1, .down_fd = -1, .up_fd = -1 };
	r = sd_event_add_defer(loop, &e->tell, on_tell, e);
	if (r < 0)
		return err_wrap(err, r, "cannot watch the executor");
	sd_event_source_set_enabled(e->tell, SD_EVENT_OFF);
	/* before any other start: who used the old ring hears of its end while it is the newest one */
	sd_event_source_set_priority(e->tell, SD_EVENT_PRIORITY_IMPORTANT);
	*ret = steal(e);
	return 0;
}

void executor_detach(struct executor *e)
{
	e->control = sd_event_source_disable_unref(e->control);
	e->bell = sd_event_source_disable_unref(e->bell);
	e->retry = sd_event_source_disable_unref(e->retry);
	e->retry_at_us = 0;
	closep(&e->control_fd);
	e->control_fd = -1;
	ring_deinit(&e->ring);
	e->child = child_leave(e->child);
	e->pid = 0;
}

void executor_end(struct executor *e)
{
	if (e->control_fd >= 0) {
		shutdown(e->control_fd, SHUT_RDWR);
		unpark();
	}
	executor_detach(e);
	e->adopted = e->wake_wanted = e->leave_wanted = e->resizing = e->looking = false;
	e->n_seen = 0;
	e->state = EXECUTOR_OFF;
}

struct executor *executor_free(struct executor *e)
{
	if (!e)
		return NULL;
	executor_detach(e);
	closep(&e->record_fd);
	sd_event_source_disable_unref(e->tell);
	sd_event_unref(e->loop);
	free(e);
	return NULL;
}

static int on_child_end(void *userdata);

static int fork_child(struct executor *e, struct err *err)
{
	int pair[2], r;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return err_wrap(err, -errno, "cannot make the executor's socket");
	r = child_start(e->loop, e->options.program, pair[1], on_child_end, e, &e->child, err);
	close(pair[1]);
	if (r < 0) {
		close(pair[0]);
		return r;
	}
	e->pid = child_pid(e->child);
	fcntl(pair[0], F_SETFL, O_NONBLOCK);
	return pair[0];
}

static int send_configure(struct executor *e, struct err *err)
{
	const int fds[CONTACT_FDS] = { e->options.arena_fd, e->ring.memfd, e->ring.down_fd,
				       e->ring.up_fd };
	struct control_configure configure = e->options.configure;
	const struct control_ready *before = executor_known(e);
	int r;

	configure.pool_bytes = e->pool_told = e->record.pool_bytes = e->pool_wanted;
	/* what is stored and cached belongs to the model that was served until now */
	if (before)
		memcpy(configure.fingerprint, before->fingerprint, sizeof(configure.fingerprint));
	r = contact_configure(e->control_fd, &configure, fds);
	/* a child that is gone already is told of by its end, which says more */
	if (r == 0 || (e->child && (r == -EPIPE || r == -ECONNRESET)))
		return 0;
	return err_wrap(err, r, "cannot configure the executor");
}

static int on_control(sd_event_source *source, int fd, uint32_t revents, void *userdata);
static int on_bell(sd_event_source *source, int fd, uint32_t revents, void *userdata);
static void on_death(struct executor *e, const char *why);

int executor_watch(struct executor *e)
{
	const int on = 1;
	int r;

	/* a unit's process is known only by what it sends */
	setsockopt(e->control_fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on));
	r = sd_event_add_io(e->loop, &e->control, e->control_fd, EPOLLIN, on_control, e);
	if (r < 0)
		return r;
	/* each ring is an edge, so that its count need not be read */
	return sd_event_add_io(e->loop, &e->bell, e->ring.up_fd, EPOLLIN | EPOLLET, on_bell, e);
}

static void begin_loading(struct executor *e)
{
	e->state = EXECUTOR_LOADING;
	e->progress = (struct control_progress){ .kind = CONTROL_PROGRESS };
	e->began_us = clock_us();
}

static int start(struct executor *e, struct err *err)
{
	int r;

	r = ring_new(&e->ring, err);
	if (r < 0)
		return r;
	e->control_fd = e->options.unit_socket ? contact_unit(e->options.unit_socket, err)
					       : fork_child(e, err);
	if (e->control_fd < 0) {
		r = e->control_fd;
		e->control_fd = -1;
		return r;
	}
	r = executor_watch(e);
	if (r < 0)
		return err_wrap(err, r, "cannot watch the executor");
	r = send_configure(e, err);
	if (r < 0)
		return r;
	e->generation++;
	e->adopted = e->lacks_gpu = false;
	begin_loading(e);
	park(e);
	executor_tell(e);
	return 0;
}

/* A start that fails is a death like any other: the back-off decides when to try again. */
static void start_or_die(struct executor *e)
{
	struct err err = { 0 };

	if (start(e, &err) < 0)
		on_death(e, err.text);
}

static int on_retry(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct executor *e = userdata;

	(void)source, (void)usec;
	e->retry = sd_event_source_disable_unref(e->retry);
	e->retry_at_us = 0;
	start_or_die(e);
	return 0;
}

/* Ended on purpose, or while it was not needed. What it was is remembered. */
static void go(struct executor *e)
{
	const bool wake = e->wake_wanted;

	executor_end(e);
	e->state = EXECUTOR_GONE;
	set_record(e, EXECRECORD_GONE);
	execrecord_park(e->record_fd);
	if (wake)
		start_or_die(e);
	else
		executor_tell(e);
}

static bool is_going_to_sleep(const struct executor *e)
{
	return e->state == EXECUTOR_PARKING || e->state == EXECUTOR_PARKED ||
	       e->state == EXECUTOR_LEAVING;
}

/* Starts again so many seconds from now. */
static void back_off(struct executor *e, uint32_t wait_s)
{
	e->state = EXECUTOR_BACKOFF;
	e->retry_at_us = clock_us() + wait_s * US_PER_S;
	/* through the loop even at once, so that a start that fails at once is no recursion */
	if (sd_event_add_time_relative(e->loop, &e->retry, CLOCK_BOOTTIME, wait_s * US_PER_S, 0,
				       on_retry, e) < 0)
		e->state = EXECUTOR_OFF;
	executor_tell(e);
}

static void on_death(struct executor *e, const char *why)
{

	/* what it finished is good: results are taken before the ring goes */
	e->dying = true;
	take_results(e);
	e->dying = false;
	if (is_going_to_sleep(e)) {
		go(e); /* it had little to lose, and nobody waits for it */
		return;
	}
	if (why != e->text)
		snprintf(e->text, sizeof(e->text), "%s", why);
	executor_end(e);
	e->deaths++;
	back_off(e, executor_backoff_s(e->deaths));
}

static void on_refused(struct executor *e, const struct control_refused *refused)
{
	snprintf(e->text, sizeof(e->text), "%.*s",
		 (int)strnlen(refused->text, sizeof(refused->text)), refused->text);
	if (err_may_pass(refused->error)) {
		on_death(e, e->text);
		return;
	}
	executor_end(e);
	/* a GPU may come: drivers are loaded late, and lost cards are reset */
	if (refused->error == -ENODEV) {
		e->lacks_gpu = true;
		back_off(e, GPU_AGAIN_S);
		return;
	}
	e->refusal = refused->error < 0 ? refused->error : -EBADMSG;
	e->state = EXECUTOR_REFUSED;
	executor_tell(e);
}

/* Before it is taken off the socket: a broker that dies in between finds both. */
static void note_ready(struct executor *e, const struct control_ready *ready)
{
	const bool woke = e->record.state == EXECRECORD_WAKING;
	struct execrecord_price *price = woke ? &e->record.parked : &e->record.gone;

	if (e->state != EXECUTOR_LOADING)
		return;
	e->record.ready = *ready;
	e->record.ready.isa[sizeof(ready->isa) - 1] = '\0';
	e->record.ready.device[sizeof(ready->device) - 1] = '\0';
	e->record.ready.products[sizeof(ready->products) - 1] = '\0';
	e->record.gone.freed_bytes = ready->resident_bytes;
	if (e->began_us)
		price->return_us = MAX(clock_us() - e->began_us, 1);
	set_record(e, EXECRECORD_READY);
}

static void on_ready(struct executor *e)
{
	if (e->state != EXECUTOR_LOADING)
		return; /* told twice: it was noted and then read again by the next broker */
	e->text[0] = '\0';
	e->began_us = 0;
	e->state = EXECUTOR_READY;
	executor_tell_pool(e);
	executor_tell(e);
}

void executor_order(struct executor *e, enum control_kind kind)
{
	const struct control_order order = { .kind = kind,
					     .bytes = kind == CONTROL_POOL ? e->pool_wanted : 0 };

	if (send(e->control_fd, &order, sizeof(order), MSG_NOSIGNAL | MSG_DONTWAIT) ==
	    (ssize_t)sizeof(order))
		return;
	/* one that is gone is told of by its end, which says more */
	if (errno != EPIPE && errno != ECONNRESET)
		executor_fail(e, "the executor takes no order");
}

void executor_order_wake(struct executor *e)
{
	e->wake_wanted = false;
	set_record(e, EXECRECORD_WAKING);
	begin_loading(e);
	executor_tell(e);
	executor_order(e, CONTROL_WAKE);
}

static void on_parked(struct executor *e, const struct control_parked *parked)
{
	if (e->state != EXECUTOR_PARKING)
		return;	 /* the answer to an order that an earlier broker gave, too */
	take_results(e); /* the last ones came before the answer */
	if (e->state != EXECUTOR_PARKING)
		return;
	if (parked->freed_bytes > 0)
		e->record.parked.freed_bytes = parked->freed_bytes;
	e->state = EXECUTOR_PARKED;
	set_record(e, EXECRECORD_PARKED);
	if (e->leave_wanted)
		go(e);
	else if (e->wake_wanted)
		executor_order_wake(e);
	else
		executor_tell_pool(e);
	executor_tell(e);
}

int executor_park(struct executor *e)
{
	if (e->state != EXECUTOR_READY || e->resizing)
		return -EAGAIN;
	e->state = EXECUTOR_PARKING;
	set_record(e, EXECRECORD_PARKING);
	executor_tell(e);
	executor_order(e, CONTROL_PARK);
	return 0;
}

/* The steps in flight are over. */
static void leave_when_drained(struct executor *e)
{
	if (e->state == EXECUTOR_LEAVING && ring_in_flight(&e->ring) == 0)
		go(e);
}

int executor_leave(struct executor *e)
{
	switch (e->state) {
	case EXECUTOR_READY:
		e->state = EXECUTOR_LEAVING;
		executor_tell(e);
		leave_when_drained(e);
		return 0;
	case EXECUTOR_PARKING:
		e->leave_wanted = true;
		e->wake_wanted = false;
		return 0;
	case EXECUTOR_LEAVING:
		e->wake_wanted = false;
		return 0;
	case EXECUTOR_LOADING:
	case EXECUTOR_PARKED:
	case EXECUTOR_BACKOFF:
		e->wake_wanted = false;
		go(e);
		return 0;
	case EXECUTOR_GONE:
		return 0;
	default:
		return -EAGAIN;
	}
}

void executor_wake(struct executor *e)
{
	switch (e->state) {
	case EXECUTOR_PARKED:
		if (e->resizing)
			e->wake_wanted = true; /* after its answer */
		else
			executor_order_wake(e);
		return;
	case EXECUTOR_PARKING:
	case EXECUTOR_LEAVING:
		e->wake_wanted = true;
		e->leave_wanted = false;
		return;
	case EXECUTOR_GONE:
		start_or_die(e);
		return;
	default:
		return;
	}
}

union packet {
	uint32_t kind;
	struct control_progress progress;
	struct control_ready ready;
	struct control_refused refused;
	struct control_parked parked;
	struct control_pooled pooled;
	struct control_seen seen;
};

static ssize_t receive(struct executor *e, union packet *packet, int flags)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(struct ucred))];
	} control;
	struct iovec iov = { packet, sizeof(*packet) };
	struct msghdr m = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof(control.bytes),
	};
	const ssize_t n = recvmsg(e->control_fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC | flags);
	struct ucred cred;

	for (struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&m) : NULL; c; c = CMSG_NXTHDR(&m, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_CREDENTIALS)
			continue;
		memcpy(&cred, CMSG_DATA(c), sizeof(cred));
		e->pid = cred.pid;
	}
	return n < 0 ? -errno : n;
}

/* Returns whether there may be more. */
static bool handle_packet(struct executor *e)
{
	union packet packet = { 0 };
	ssize_t n = receive(e, &packet, MSG_PEEK);

	if (n == -EAGAIN || n == -EINTR)
		return false;
	if (n <= 0) {
		/* a child's end says more: how it ended; it is told when the child is reaped */
		if (e->child) {
			child_kill(e->child);
			e->control = sd_event_source_disable_unref(e->control);
			return false;
		}
		on_death(e, "the executor closed its socket");
		return false;
	}
	if ((size_t)n == sizeof(packet.ready) && packet.kind == CONTROL_READY)
		note_ready(e, &packet.ready);
	n = receive(e, &packet, 0);

	if ((size_t)n == sizeof(packet.progress) && packet.kind == CONTROL_PROGRESS) {
		e->progress = packet.progress;
		e->progress.percent = MIN(packet.progress.percent, 100u);
		executor_tell(e);
		return true;
	}
	if ((size_t)n == sizeof(packet.ready) && packet.kind == CONTROL_READY) {
		on_ready(e);
		return true;
	}
	if ((size_t)n == sizeof(packet.parked) && packet.kind == CONTROL_PARKED) {
		on_parked(e, &packet.parked);
		return true;
	}
	if ((size_t)n == sizeof(packet.pooled) && packet.kind == CONTROL_POOLED) {
		executor_pooled(e, &packet.pooled);
		return true;
	}
	if ((size_t)n == sizeof(packet.seen) && packet.kind == CONTROL_SEEN) {
		executor_was_seen(e, &packet.seen);
		return true;
	}
	if ((size_t)n == sizeof(packet.refused) && packet.kind == CONTROL_REFUSED) {
		on_refused(e, &packet.refused);
		return false;
	}
	on_death(e, "the executor sent a packet that is not of this version of steamd");
	return false;
}

static int on_control(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	struct executor *e = userdata;

	(void)source, (void)fd, (void)revents;
	while (e->control_fd >= 0 && handle_packet(e))
		;
	return 0;
}

static int on_child_end(void *userdata)
{
	struct executor *e = userdata;
	char why[128];

	/* a refusal may still be in the socket; it explains the end better */
	child_describe(e->child, why, sizeof(why));
	while (e->control_fd >= 0 && e->control && handle_packet(e))
		;
	if (e->control_fd >= 0)
		on_death(e, why);
	return 0;
}

static int on_bell(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	struct executor *e = userdata;

	(void)source, (void)fd, (void)revents;
	take_results(e);
	leave_when_drained(e);
	return 0;
}

int executor_start(struct executor *e, const struct executor_options *options, struct err *err)
{
	(void)err;
	executor_end(e);
	if (options)
		e->options = *options;
	e->deaths = 0;
	e->text[0] = '\0';
	start_or_die(e);
	return 0;
}

void executor_stop(struct executor *e)
{
	executor_end(e);
	executor_tell(e);
}

void executor_fail(struct executor *e, const char *why)
{
	if (e->control_fd < 0)
		return;
	if (e->child)
		child_kill(e->child);
	snprintf(e->text, sizeof(e->text), "%s", why);
	e->state = EXECUTOR_LOADING; /* no results are asked for any more */
	on_death(e, e->text);
}

enum executor_state executor_state(const struct executor *e)
{
	return e->state;
}

struct ring *executor_ring(struct executor *e)
{
	return takes_results(e) ? &e->ring : NULL;
}

const struct control_ready *executor_ready(const struct executor *e)
{
	return e->state == EXECUTOR_READY ? &e->record.ready : NULL;
}

const struct control_ready *executor_known(const struct executor *e)
{
	return e->record.ready.kind == CONTROL_READY ? &e->record.ready : NULL;
}

bool executor_uses_arena(const struct executor *e)
{
	return e->record.ready.in_arena;
}

const struct execrecord *executor_record(const struct executor *e)
{
	return &e->record;
}

bool executor_lacks_gpu(const struct executor *e)
{
	return e->lacks_gpu && e->state == EXECUTOR_BACKOFF;
}

void executor_set_halted(struct executor *e, bool halted)
{
	if (e->record.halted == halted)
		return;
	e->record.halted = halted;
	execrecord_write(e->record_fd, &e->record);
}

int executor_refusal(const struct executor *e)
{
	return e->state == EXECUTOR_REFUSED ? e->refusal : 0;
}

const struct control_progress *executor_progress(const struct executor *e)
{
	return &e->progress;
}

const char *executor_text(const struct executor *e)
{
	return e->text;
}

uint64_t executor_retry_us(const struct executor *e)
{
	const uint64_t now = clock_us();

	return e->retry_at_us > now ? e->retry_at_us - now : 0;
}

uint32_t executor_generation(const struct executor *e)
{
	return e->generation;
}

bool executor_is_dying(const struct executor *e)
{
	return e->dying || e->state == EXECUTOR_PARKING || e->state == EXECUTOR_LEAVING;
}

bool executor_is_adopted(const struct executor *e)
{
	return e->adopted;
}

uint32_t executor_deaths(const struct executor *e)
{
	return e->deaths;
}

void executor_proved(struct executor *e)
{
	e->deaths = 0;
}

pid_t executor_pid(const struct executor *e)
{
	return e->pid;
}
