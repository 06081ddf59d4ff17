/* The server's life: users, connections, loading the model, reload, the end. */
#include "daemon/server/server.h"

#include <assert.h>
#include <errno.h>
#include <grp.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <systemd/sd-id128.h>

#include "client/wire/codes.h"
#include "daemon/base/clock.h"
#include "daemon/base/fdstore.h"
#include "daemon/base/log.h"
#include "daemon/power/power.h"
#include "daemon/server/explain.h"
#include "daemon/server/health.h"
#include "daemon/server/looking.h"
#include "daemon/server/opening.h"
#include "daemon/server/sharedprompts.h"
#include "daemon/server/sleep.h"
#include "daemon/server/sessions.h"
#include "daemon/server/stream.h"
#include "daemon/server/taking.h"
#include "daemon/server/tidy.h"
#include "daemon/server/warm.h"
#include "daemon/text/spans.h"

struct user *server_user(struct server *s, uid_t uid)
{
	struct user *user;

	LIST_FOREACH(user, &s->users, link)
	{
		if (user->uid == uid)
			return user;
	}
	user = calloc(1, sizeof(*user));
	if (!user)
		return NULL;
	user->uid = uid;
	TAILQ_INIT(&user->takers);
	LIST_INSERT_HEAD(&s->users, user, link);
	return user;
}

void server_user_drop(struct user *user)
{
	if (user->n_peers || user->n_requests || user->n_left || user->held_bytes)
		return;
	LIST_REMOVE(user, link);
	free(user);
}

void server_reap_later(struct server *s)
{
	sd_event_source_set_enabled(s->reaper, SD_EVENT_ONESHOT);
}

static int on_reap(sd_event_source *source, void *userdata)
{
	struct server *s = userdata;
	struct peer *p, *next_peer;
	struct stream *st, *next;

	(void)source;
	for (p = TAILQ_FIRST(&s->peers); p; p = next_peer) {
		next_peer = TAILQ_NEXT(p, link);
		if (p->dead)
			peer_free(p);
	}
	for (st = TAILQ_FIRST(&s->streams); st; st = next) {
		next = TAILQ_NEXT(st, link);
		if (st->dropped)
			stream_free(st);
	}
	return 0;
}

/* At the end there are no workers. */
bool server_has_jobs(const struct server *s)
{
	return (s->worker && worker_waiting(s->worker) > 0) ||
	       (s->long_worker && worker_waiting(s->long_worker) > 0);
}

bool server_is_busy(const struct server *s)
{
	if (opening_is_under_way(s->opening) || server_has_jobs(s))
		return true;
	if (!s->engine)
		return false;
	switch (executor_state(s->engine->executor)) {
	case EXECUTOR_LOADING:
	case EXECUTOR_PARKING:
	case EXECUTOR_LEAVING:
		return true;
	default:
		return !sched_is_idle(s->engine->sched);
	}
}

void server_busy_changed(struct server *s)
{
	if (s->power)
		power_look(s->power);
	tidy_look(s->tidy);
	warm_look(s->warm);
	if (s->health && server_is_busy(s))
		health_busy(s->health);
}

/* It was busy as long as jobs waited. */
static void on_worker_idle(void *userdata)
{
	server_busy_changed(userdata);
}

enum server_state server_state(const struct server *s)
{
	if (s->refusal.code)
		return SERVER_REFUSED;
	if (!s->engine)
		return opening_is_waiting(s->opening) ? SERVER_WAITING : SERVER_LOADING;
	switch (executor_state(s->engine->executor)) {
	case EXECUTOR_READY:
		return SERVER_READY;
	case EXECUTOR_LOADING:
		return SERVER_LOADING;
	case EXECUTOR_REFUSED:
		return SERVER_REFUSED;
	case EXECUTOR_PARKING:
	case EXECUTOR_PARKED:
	case EXECUTOR_LEAVING:
	case EXECUTOR_GONE:
		return SERVER_ASLEEP;
	default:
		return executor_lacks_gpu(s->engine->executor) ? SERVER_NO_GPU : SERVER_WAITING;
	}
}

const char *server_state_name(enum server_state state)
{
	static const char *const names[] = { "loading",	      "ready",	"waiting",
					     "model-refused", "asleep", "no-gpu" };

	return names[state];
}

uint64_t server_retry_us(const struct server *s)
{
	if (s->engine)
		return executor_retry_us(s->engine->executor);
	return opening_retry_us(s->opening);
}

int server_refuses(const struct server *s, struct err *err)
{
	const struct executor *e = s->engine ? s->engine->executor : NULL;

	if (s->refusal.code == -ESTALE)
		return err_set(
			err, -ESTALE,
			"the model changed on disk while it slept: %s; 'steamctl reload' takes "
			"it as it is now",
			s->refusal.text);
	if (s->refusal.code)
		return err_set(err, -ENOEXEC, "the model is refused: %s", s->refusal.text);
	if (!e && server_retry_us(s) > 0)
		return err_set(err, -EHOSTDOWN,
			       "the model cannot be opened: %s; it is tried again in %llu s",
			       opening_hindrance(s->opening),
			       (unsigned long long)(server_retry_us(s) / US_PER_S));
	if (e && executor_lacks_gpu(e))
		return err_set(err, -EHOSTDOWN, "%s; it is looked for again in %llu s",
			       executor_text(e),
			       (unsigned long long)(executor_retry_us(e) / US_PER_S));
	/* one that starts again at once is worth waiting for */
	if (e && (executor_state(e) == EXECUTOR_OFF ||
		  (executor_state(e) == EXECUTOR_BACKOFF && executor_retry_us(e) > 0)))
		return err_set(err, -EHOSTDOWN,
			       "the executor died %u times; it starts again in %llu s: %s",
			       executor_deaths(e),
			       (unsigned long long)(executor_retry_us(e) / US_PER_S),
			       executor_text(e));
	return 0;
}

/* The model is not served until a reload; whoever waits is told. */
void server_refuse(struct server *s, int code, const char *text)
{
	struct stream *st, *next;
	struct err err = { 0 };
	int r;

	err_set(&s->refusal, code, "%s", text);
	log_error("model '%s' is refused: %s", s->settings->model, text);
	health_status(s->health, "Model refused: %s", text);
	r = server_refuses(s, &err);
	for (st = TAILQ_FIRST(&s->streams); st; st = next) {
		next = TAILQ_NEXT(st, link);
		stream_fail(st, r, &err);
	}
	power_refuse(s->power, r, &err);
	request_resume_waiting(s);
	power_look(s->power);
	if (s->options.foreground && !s->was_ready)
		sd_event_exit(s->loop, SERVER_EXIT_REFUSED);
}

static void became_ready(struct server *s)
{
	const struct control_ready *ready = executor_ready(s->engine->executor);

	health_status(s->health, "Serving %s", textmodel_name(s->model, s->settings));
	log_info("model '%s' is served: %llu MiB of weights, %s, %u threads, context %u",
		 textmodel_name(s->model, s->settings),
		 (unsigned long long)(ready ? ready->weight_bytes >> 20 : 0),
		 ready ? ready->isa : "?", ready ? ready->n_threads : 0,
		 s->engine->plan.max_context);
	if (ready && ready->products[0])
		log_info("products of many tokens: %s", ready->products);
	if (!s->was_ready && s->options.on_ready)
		s->options.on_ready(s->options.userdata);
	s->was_ready = true;
	s->waking = s->without_gpu = false;
	opening_proved(s->opening);
}

static void show_loading(struct server *s)
{
	const struct control_progress *p = executor_progress(s->engine->executor);

	if (p)
		health_status(s->health, "Loading %s: %u %% (%.1f GB/s)",
			      textmodel_name(s->model, s->settings), p->percent,
			      (double)p->bytes_per_second / 1e9);
}

/* Whoever waits is told; the log has it once, however often there is still none. */
static void tell_no_gpu(struct server *s)
{
	const char *text = executor_text(s->engine->executor);
	struct stream *st, *next;
	struct err err = { 0 };
	const int r = server_refuses(s, &err);

	s->waking = false;
	if (!s->without_gpu)
		log_error("%s", text);
	s->without_gpu = true;
	health_status(s->health, "No GPU: %s", text);
	for (st = TAILQ_FIRST(&s->streams); st; st = next) {
		next = TAILQ_NEXT(st, link);
		stream_fail(st, r, &err);
	}
	request_resume_waiting(s);
}

/* Once each; those that wait see it in their progress, or are told by server_refuses(). */
static void tell_death(struct server *s)
{
	const struct executor *e = s->engine->executor;

	if (executor_deaths(e) != s->deaths_told)
		log_warning("%s; it is started again in %llu s", executor_text(e),
			    (unsigned long long)(executor_retry_us(e) / US_PER_S));
	s->deaths_told = executor_deaths(e);
}

/* May come while the executor is being made; then there is no engine to look at yet. */
void server_engine_changed(void *userdata)
{
	struct server *s = userdata;
	const enum server_state state = server_state(s);
	struct stream *st;

	if (!s->engine || s->refusal.code)
		return;
	switch (state) {
	case SERVER_READY:
		became_ready(s);
		break;
	case SERVER_LOADING:
		show_loading(s);
		break;
	case SERVER_WAITING:
		s->waking = false;
		tell_death(s);
		health_status(s->health, "Waiting to start the executor again: %s",
			      executor_text(s->engine->executor));
		break;
	case SERVER_NO_GPU:
		tell_no_gpu(s);
		break;
	case SERVER_ASLEEP:
		s->waking = true;
		break;
	case SERVER_REFUSED:
		server_refuse(s, executor_refusal(s->engine->executor),
			      executor_text(s->engine->executor));
		return;
	}
	TAILQ_FOREACH(st, &s->streams, link)
		stream_progress(st);
	server_busy_changed(s);
}

void server_steps_applied(void *userdata)
{
	struct server *s = userdata;

	peer_release(s);
	power_look(s->power);
}

static void unload(struct server *s)
{
	struct err err = { 0 };
	struct stream *st;

	tidy_stop(s->tidy);
	warm_stop(s->warm);
	err_set(&err, -EHOSTDOWN, "the model is being loaded again");
	TAILQ_FOREACH(st, &s->streams, link)
		stream_abandon(st, -EHOSTDOWN, &err);
	sleep_set_engine(s, NULL);
	s->engine = engine_free(s->engine, true);
	while ((st = TAILQ_FIRST(&s->streams)))
		stream_free(st);
	opening_drop_model(s);
}

int server_load(struct server *s, struct err *err)
{
	unload(s);
	s->refusal = (struct err){ 0 };
	return opening_begin(s->opening, err);
}

static void find_admin_group(struct server *s)
{
	struct group entry, *found = NULL;
	char buffer[16384];

	s->admin_gid = (gid_t)-1;
	if (s->settings->admin_group[0] &&
	    getgrnam_r(s->settings->admin_group, &entry, buffer, sizeof(buffer), &found) == 0 &&
	    found)
		s->admin_gid = found->gr_gid;
}

static void on_kept(const char *key, enum setting_reload needs, void *userdata)
{
	const char *what = needs == SETTING_MODEL ? "the model loaded again" : "a restart";

	log_info("%s changed; that needs %s", key, what);
	json_array_append_new(userdata, json_pack("{s:s, s:s}", "key", key, "needs", what));
}

/* What changed in its sleep would be refused at the next wake-up: a reload takes it as it is. */
static bool changed_asleep(const struct server *s)
{
	return server_state(s) == SERVER_ASLEEP && s->model &&
	       textmodel_stamp(s->model->dir) != s->model->stamp;
}

int server_reload(struct server *s, char **ret, struct err *err)
{
	_cleanup_(settings_deinit) struct settings next = { 0 };
	json_t *kept = json_array(), *answer;
	int n = 0, r = 0;

	if (!kept)
		return err_set(err, -ENOMEM, "out of memory");
	if (s->options.reread)
		r = s->options.reread(&next, s->options.userdata, err);
	if (r < 0) {
		json_decref(kept);
		return err_wrap(err, -EINVAL, "nothing was changed");
	}
	if (s->options.reread && (s->refusal.code || opening_is_waiting(s->opening))) {
		/* nothing is in service that the old values belong to */
		settings_deinit(s->settings);
		*s->settings = next;
		next = (struct settings){ 0 };
	} else if (s->options.reread) {
		n = settings_apply(s->settings, &next, on_kept, kept);
	}
	find_admin_group(s);
	log_set_level(log_level_of(s->settings->log_level));
	if (s->engine)
		engine_reload(s->engine);
	power_look(s->power);
	if (s->refusal.code || opening_is_waiting(s->opening) || changed_asleep(s))
		r = server_load(s, err);
	else if (s->engine)
		r = opening_reread_prompts(s, err);
	log_info("settings reloaded: %d changed, %zu kept", n, json_array_size(kept));
	answer = json_pack("{s:i, s:o, s:s}", "applied", n, "kept", kept, "state",
			   server_state_name(server_state(s)));
	*ret = answer ? json_dumps(answer, JSON_COMPACT) : NULL;
	json_decref(answer);
	return r < 0 ? r : *ret ? 0 : err_set(err, -ENOMEM, "out of memory");
}

/* Tells a peer that is one too many, as far as its socket takes it. */
static void turn_away(int fd, const struct err *err)
{
	struct msg m = { .type = MSG_ERROR };
	_cleanup_(freep) char *data = NULL;
	size_t len;

	MSG_SET(&m.error, code, span_of(CODE_BUSY));
	MSG_SET(&m.error, text, span_of(err->text));
	MSG_SET(&m.error, retryable, true);
	MSG_SET(&m.error, retry_after_ms, 1000);
	if (msg_encode(&m, &data, &len, NULL) >= 0)
		(void)!send(fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);
}

int server_add(struct server *s, int fd)
{
	static struct log_limit limit;
	_cleanup_(closep) int owned = fd;
	struct ucred cred;
	socklen_t len = sizeof(cred);
	struct user *user;
	struct err err = { 0 };
	struct peer *peer;
	int r;

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
		return -errno;
	if (cred.uid >= CHAIN_SHARED_UID) /* what users share is under it */
		return -EACCES;
	user = server_user(s, cred.uid);
	if (!user)
		return -ENOMEM;
	if (s->n_peers >= s->settings->max_connections)
		r = err_set(&err, -EAGAIN, "%u connections are open; %u may be", s->n_peers,
			    s->settings->max_connections);
	else if (user->n_peers >= s->settings->max_user_connections)
		r = err_set(&err, -EAGAIN, "uid %u has %u connections open; %u may be", cred.uid,
			    user->n_peers, s->settings->max_user_connections);
	else if (user->n_peers > 0 && user->n_peers >= s->settings->max_connections - s->n_peers)
		r = err_set(&err, -EAGAIN,
			    "uid %u has %u connections open; %u of %u are left, and nobody has "
			    "more than that",
			    cred.uid, user->n_peers, s->settings->max_connections - s->n_peers,
			    s->settings->max_connections);
	else
		r = peer_new(s, fd, user, &peer);
	if (r < 0) {
		if (r == -EAGAIN) {
			turn_away(fd, &err);
			if (log_allowed(&limit, 5))
				log_info("connection refused: %s", err.text);
		}
		server_user_drop(user);
		return r;
	}
	steal_fd(&owned);
	return 0;
}

int server_new(sd_event *loop, const struct server_options *options, struct server **ret,
	       struct err *err)
{
	_cleanup_(server_freep) struct server *s = calloc(1, sizeof(*s));
	sd_id128_t id;
	int r;

	if (!s)
		return err_set(err, -ENOMEM, "out of memory");
	s->options = *options;
	s->settings = options->settings;
	s->listen_fd = s->taking_fd = -1;
	s->started_us = clock_us();
	LIST_INIT(&s->users);
	TAILQ_INIT(&s->peers);
	TAILQ_INIT(&s->held);
	TAILQ_INIT(&s->takers);
	TAILQ_INIT(&s->waiting);
	TAILQ_INIT(&s->looking);
	TAILQ_INIT(&s->streams);
	TAILQ_INIT(&s->explained);
	s->loop = sd_event_ref(loop);
	r = sd_id128_randomize(&id);
	if (r < 0)
		return err_set(err, r, "no random boot id could be had");
	sd_id128_to_string(id, s->boot_id);
	r = sd_event_add_defer(loop, &s->reaper, on_reap, s);
	if (r >= 0)
		r = sd_event_source_set_enabled(s->reaper, SD_EVENT_OFF);
	if (r >= 0)
		r = taking_open(s);
	if (r >= 0)
		r = worker_new(loop, &s->worker);
	if (r >= 0)
		r = worker_new(loop, &s->long_worker);
	if (r >= 0) {
		worker_on_idle(s->worker, on_worker_idle, s);
		worker_on_idle(s->long_worker, on_worker_idle, s);
	}
	if (r >= 0)
		r = spans_new(&s->spans);
	if (r >= 0)
		r = opening_new(s, &s->opening);
	if (r >= 0)
		r = tidy_new(s, &s->tidy);
	if (r >= 0)
		r = warm_new(s, &s->warm);
	if (r >= 0)
		r = sessions_new(s, &s->sessions);
	if (r >= 0)
		r = health_new(s, &s->health);
	if (r < 0)
		return err_set(err, r, "cannot set up the event loop: %s", strerror(-r));
	r = sleep_open(s, err);
	if (r < 0)
		return r;
	find_admin_group(s);
	*ret = steal(s);
	return 0;
}

static void on_last_flush(struct tiers_flush *f)
{
	struct server *s = f->userdata;

	if (f->n_left > 0)
		log_warning("%u pages of KV are not on disk%s; after a reboot they are computed "
			    "again",
			    f->n_left, f->late ? " in time" : "");
	sd_event_exit(s->loop, 0);
}

void server_stop(struct server *s)
{
	struct tiers_flush *f = &s->last_flush;

	fdstore_notify("STOPPING=1");
	if (!s->stopping && s->engine && s->engine->disk) {
		s->stopping = true;
		f->on_flushed = on_last_flush;
		f->userdata = s;
		if (tiers_flush(s->engine->kv, s->loop, SERVER_STOP_US, f) >= 0)
			return;
	}
	sd_event_exit(s->loop, 0);
}

/* Turns stay in their memory, as they are, for the next broker. */
static void let_streams_go(struct server *s)
{
	struct stream *st;

	TAILQ_FOREACH(st, &s->streams, link) {
		if (!st->request)
			continue;
		st->request->stream = NULL;
		st->request = NULL;
		st->left = true; /* its user goes with it, and not with the peer */
		st->user->n_left++;
	}
}

struct server *server_free(struct server *s)
{
	struct stream *st;
	struct peer *p;

	if (!s)
		return NULL;
	s->leaving = true;
	tiers_flush_withdraw(&s->last_flush);
	let_streams_go(s);
	while ((p = TAILQ_FIRST(&s->peers)))
		peer_free(p);
	taking_close(s);
	s->worker = worker_free(s->worker); /* the ends of its jobs come first */
	s->long_worker = worker_free(s->long_worker);
	s->tidy = tidy_free(s->tidy);
	s->warm = warm_free(s->warm);
	s->power = power_free(s->power);
	sleeper_leave(&s->sleeper);
	s->sessions = sessions_free(s->sessions);
	s->engine = engine_free(s->engine, false);
	while ((st = TAILQ_FIRST(&s->streams)))
		stream_free(st);
	explain_forget_all(s);
	s->opening = opening_free(s->opening);
	textmodel_free(s->model);
	sharedprompts_free(s->shared);
	s->spans = spans_free(s->spans);
	s->health = health_free(s->health);
	sd_event_source_disable_unref(s->reaper);
	looking_close(s);
	sd_event_source_disable_unref(s->listener);
	sd_event_source_disable_unref(s->accept_again);
	closep(&s->listen_fd);
	if (s->socket_path)
		unlink(s->socket_path);
	free(s->socket_path);
	sd_event_unref(s->loop);
	free(s);
	return NULL;
}
