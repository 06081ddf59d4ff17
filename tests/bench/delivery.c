/* Rounds of tokens and of echoes between them. */
#include "tests/bench/delivery.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "client/steamd.h"
#include "tests/bench/broker.h"
#include "tests/bench/stepper.h"

#define WARM 20 /* steps at the beginning of a round that are not counted */
#define SAMPLES_MAX (2 * DELIVERY_STEPS)
#define THREADS_MAX (2 * DELIVERY_CLIENTS_MAX)

struct echo_message {
	uint64_t sent_ns; /* 0: the last of a round */
	char pad[DELIVERY_ECHO_BYTES - sizeof(uint64_t)];
};

struct samples {
	double us[SAMPLES_MAX];
	uint32_t n;
};

/* Who asks for an answer, and who reads what comes out of the echo. */
struct client {
	struct delivery *d;
	struct steamd *s; /* NULL: shares the first one's */
	int echo_fd;
	bool ended;
	struct samples tokens, echoes;
	struct err err;
};

struct delivery {
	struct broker *broker;
	struct stepper stepper;
	bool stepping; /* the stepper is open */
	pid_t relay;
	clockid_t relay_cpu;
	int relay_fd; /* what is written here comes out of each client's echo_fd */
	uint32_t n_clients, n_echoes;
	bool one_connection;
	struct client clients[DELIVERY_CLIENTS_MAX];
	double all[DELIVERY_CLIENTS_MAX * SAMPLES_MAX];
};

static void relay(int in_fd, const int *out_fds, uint32_t n)
{
	struct echo_message e;

	while (recv(in_fd, &e, sizeof(e), MSG_WAITALL) == (ssize_t)sizeof(e)) {
		for (uint32_t i = 0; i < n; i++) {
			if (send(out_fds[i], &e, sizeof(e), MSG_NOSIGNAL) < 0)
				_exit(1);
		}
	}
	_exit(0);
}

static int start_relay(struct delivery *d)
{
	int in[2], out[2], out_fds[DELIVERY_CLIENTS_MAX], r = 0;
	uint32_t n = 0;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, in) < 0)
		return -errno;
	d->relay_fd = in[0];
	while (n < d->n_clients && r == 0) {
		r = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, out) < 0 ? -errno : 0;
		if (r < 0)
			break;
		d->clients[n].echo_fd = out[0];
		out_fds[n++] = out[1];
	}
	if (r == 0) {
		d->relay = fork();
		if (d->relay == 0) {
			close(in[0]);
			relay(in[1], out_fds, n);
		}
		r = d->relay < 0 ? -errno : 0;
	}
	close(in[1]);
	while (n > 0)
		close(out_fds[--n]);
	if (r < 0)
		return r;
	return -clock_getcpuclockid(d->relay, &d->relay_cpu);
}

static void add_sample(struct samples *s, uint64_t from_ns, uint64_t to_ns)
{
	if (s->n < SAMPLES_MAX)
		s->us[s->n++] = (double)(to_ns - from_ns) / 1e3;
}

static void *receive_echoes(void *userdata)
{
	struct client *c = userdata;
	struct echo_message e;
	uint32_t n = 0;

	while (recv(c->echo_fd, &e, sizeof(e), MSG_WAITALL) == (ssize_t)sizeof(e) && e.sent_ns) {
		if (n++ >= WARM)
			add_sample(&c->echoes, e.sent_ns, stepper_now_ns());
	}
	return NULL;
}

static int send_echo(void *userdata)
{
	struct delivery *d = userdata;
	struct echo_message e = { .sent_ns = stepper_now_ns() };

	d->n_echoes++;
	return send(d->relay_fd, &e, sizeof(e), MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* Counted only where the step was for all clients: at the ends of a round it is not. */
static int on_delta(void *userdata, const struct steamd_delta *delta)
{
	const uint64_t now_ns = stepper_now_ns();
	struct client *c = userdata;

	for (uint32_t i = 0; i < delta->n_ids; i++) {
		const struct stepper_step *step = &c->d->stepper.steps[delta->ids[i] % STEPPER_IDS];

		if (delta->index + i >= WARM && step->n_rows == c->d->n_clients)
			add_sample(&c->tokens, atomic_load(&step->done_ns), now_ns);
	}
	return 0;
}

static void on_end(void *userdata, const struct steamd_result *result,
		   const struct steamd_error *error)
{
	struct client *c = userdata;

	(void)result;
	c->ended = true;
	if (error)
		err_set(&c->err, error->error, "%s", error->text);
}

static void ask(struct client *c, struct steamd *s)
{
	static const uint32_t prompt[] = { 1, 2, 3, 4 };
	const struct steamd_handler handler = { NULL, on_delta, on_end, c };
	struct steamd_error error = { 0 };
	struct steamd_generate g;

	steamd_generate_init(&g);
	g.ids = prompt;
	g.n_ids = ARRAY_SIZE(prompt);
	g.max_tokens = WARM + DELIVERY_STEPS;
	g.ignore_eos = 1;
	if (steamd_start_generate(s, &g, &handler, NULL, &error) < 0)
		on_end(c, NULL, &error);
}

/* For the client itself, and the first one asks for those without a connection too. */
static void *receive_tokens(void *userdata)
{
	struct client *c = userdata;
	struct delivery *d = c->d;
	const uint32_t n = d->one_connection ? d->n_clients : 1;
	struct steamd_error error = { 0 };

	for (uint32_t i = 0; i < n; i++)
		ask(&c[i], c->s);
	for (uint32_t i = 0; i < n; i++) {
		while (!c[i].ended) {
			if (steamd_wait(c->s, -1, &error) < 0)
				on_end(&c[i], NULL, &error);
		}
	}
	return NULL;
}

static uint32_t start_threads(struct delivery *d, pthread_t *threads)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < d->n_clients; i++) {
		struct client *c = &d->clients[i];

		c->tokens.n = c->echoes.n = 0;
		c->ended = false;
		c->err.code = 0;
	}
	for (uint32_t i = 0; i < d->n_clients; i++) {
		struct client *c = &d->clients[i];

		if (pthread_create(&threads[n], NULL, receive_echoes, c))
			break;
		n++;
		if (!c->s)
			continue;
		if (pthread_create(&threads[n], NULL, receive_tokens, c))
			break;
		n++;
	}
	return n;
}

static int run(struct delivery *d, struct err *err)
{
	const uint32_t n_wanted = d->n_clients + (d->one_connection ? 1 : d->n_clients);
	const struct echo_message last = { .sent_ns = 0 };
	pthread_t threads[THREADS_MAX];
	const uint32_t n = start_threads(d, threads);
	int r;

	/* those that did start wait for what will not come: only the process's end is left */
	if (n < n_wanted)
		return err_set(err, -EAGAIN, "cannot start %u threads", n_wanted);
	d->n_echoes = 0;
	r = stepper_run(&d->stepper, d->n_clients * (WARM + DELIVERY_STEPS), DELIVERY_STEP_NS,
			send_echo, d, err);
	if (r < 0)
		return r;
	if (send(d->relay_fd, &last, sizeof(last), MSG_NOSIGNAL) < 0)
		return err_wrap(err, -errno, "cannot send an echo");
	for (uint32_t i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	for (uint32_t i = 0; i < d->n_clients && r == 0; i++) {
		if (d->clients[i].err.code)
			r = err_set(err, d->clients[i].err.code, "%s", d->clients[i].err.text);
	}
	return r;
}

static int compare(const void *a, const void *b)
{
	const double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* Of the samples of all clients: those at @at in struct client. */
static void percentiles(struct delivery *d, size_t at, double *ret_p50, double *ret_p99)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < d->n_clients; i++) {
		const struct samples *s =
			(const struct samples *)((const char *)&d->clients[i] + at);

		memcpy(d->all + n, s->us, s->n * sizeof(*s->us));
		n += s->n;
	}
	qsort(d->all, n, sizeof(*d->all), compare);
	*ret_p50 = n ? d->all[n / 2] : NAN;
	*ret_p99 = n ? d->all[(uint64_t)n * 99 / 100] : NAN;
}

/* Over the steps from @first on that were for all clients. */
static double cpu_of_token(const struct delivery *d, uint64_t first)
{
	const struct stepper_step *from = NULL, *to = NULL;
	const uint64_t last = d->stepper.last_id;
	uint32_t n_tokens = 0;
	uint64_t id = first + WARM;

	if (last - first >=
	    STEPPER_IDS) /* a busy machine took one by one: those before are forgotten */
		id = MAX(id, last - STEPPER_IDS + 1);
	for (; id <= last; id++) {
		const struct stepper_step *step = &d->stepper.steps[id % STEPPER_IDS];

		if (step->n_rows != d->n_clients)
			continue;
		n_tokens += from ? step->n_rows : 0;
		from = from ? from : step;
		to = step;
	}
	return n_tokens ? (double)(to->cpu_ns - from->cpu_ns) / 1e3 / n_tokens : NAN;
}

static double cpu_us(clockid_t clock)
{
	struct timespec ts = { 0 };

	clock_gettime(clock, &ts);
	return (double)ts.tv_sec * 1e6 + (double)ts.tv_nsec / 1e3;
}

int delivery_round(struct delivery *d, struct delivery_round *ret, struct err *err)
{
	const uint64_t first = d->stepper.last_id + 1;
	const double relay_us = cpu_us(d->relay_cpu);
	struct delivery_round round;
	int r;

	r = run(d, err);
	if (r < 0)
		return r;
	percentiles(d, offsetof(struct client, tokens), &round.p50_us, &round.p99_us);
	percentiles(d, offsetof(struct client, echoes), &round.echo_p50_us, &round.echo_p99_us);
	round.cpu_us = cpu_of_token(d, first);
	round.echo_cpu_us = (cpu_us(d->relay_cpu) - relay_us) / d->n_echoes / d->n_clients;
	*ret = round;
	return 0;
}

static int connect_clients(struct delivery *d, struct err *err)
{
	const uint32_t n = d->one_connection ? 1 : d->n_clients;

	for (uint32_t i = 0; i < n; i++) {
		struct steamd_error error = { 0 };
		const int r = steamd_open(broker_socket(d->broker), "bench", NULL, &d->clients[i].s,
					  &error);

		if (r < 0)
			return err_set(err, r, "%s", error.text);
	}
	return 0;
}

int delivery_open(const struct delivery_options *o, struct delivery **ret, struct err *err)
{
	const struct broker_options broker = {
		.program = o->program,
		.model = o->model,
		.computes_here = true,
	};
	_cleanup_(delivery_closep) struct delivery *d = calloc(1, sizeof(*d));
	int r;

	if (!d)
		return err_set(err, -ENOMEM, "out of memory");
	d->n_clients = MIN(o->n_clients, (uint32_t)DELIVERY_CLIENTS_MAX);
	d->one_connection = o->one_connection;
	d->relay_fd = -1;
	for (uint32_t i = 0; i < DELIVERY_CLIENTS_MAX; i++) {
		d->clients[i].d = d;
		d->clients[i].echo_fd = -1;
	}
	r = start_relay(d); /* before there are threads */
	if (r < 0)
		return err_wrap(err, r, "cannot start the echo");
	r = broker_start(&broker, &d->broker, err);
	if (r < 0)
		return r;
	r = stepper_open(broker_executor_fd(d->broker), broker_pid(d->broker), &d->stepper, err);
	if (r < 0)
		return r;
	d->stepping = true;
	r = connect_clients(d, err);
	if (r < 0)
		return r;
	*ret = steal(d);
	return 0;
}

struct delivery *delivery_close(struct delivery *d)
{
	if (!d)
		return NULL;
	for (uint32_t i = 0; i < DELIVERY_CLIENTS_MAX; i++) {
		steamd_close(d->clients[i].s);
		closep(&d->clients[i].echo_fd);
	}
	/* before its executor, whose end would be a crash to it */
	broker_stop(d->broker);
	if (d->stepping)
		stepper_close(&d->stepper);
	closep(&d->relay_fd);
	if (d->relay > 0)
		waitpid(d->relay, NULL, 0);
	free(d);
	return NULL;
}
