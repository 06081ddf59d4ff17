/*
 * What HTTP costs: answers over steamd-gateway and over the library in turns,
 * the processor time that a streamed token takes, of it and of a relay that does
 * nothing else, and the memory of streams that have begun and wait.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

#include "client/steamd.h"
#include "tests/bench/bench.h"
#include "tests/bench/broker.h"
#include "tests/bench/relay.h"

#define PAIRS 200
#define WARM_PAIRS 10
#define TOKENS                                                                                     \
	300 /* of a stream: rounds are short, so that what else the machine does spoils few of them */
#define CPU_ROUNDS 40
#define STREAMS_AT_ONCE 16
#define STREAMS 1000
#define SMALL_MODEL "tests/golden/air"

extern char **environ;

/* A daemon with a small model and a gateway before it, both of the build. */
struct rig {
	struct broker *broker;
	pid_t pid;
	int log_fd;
	uint16_t port;
};

static void rig_deinit(struct rig *g)
{
	if (g->pid > 0) {
		kill(g->pid, SIGTERM);
		waitpid(g->pid, NULL, 0);
	}
	closep(&g->log_fd);
	broker_stop(g->broker);
}

/* Reads what it says until it is ready, and where it listens. */
static int read_port(struct rig *g, struct err *err)
{
	char said[4096];
	size_t n = 0;
	const char *at;

	do {
		const ssize_t more = read(g->log_fd, said + n, sizeof(said) - 1 - n);

		if (more <= 0)
			return err_set(err, -EIO, "steamd-gateway ended before it was ready");
		n += (size_t)more;
		said[n] = '\0';
	} while (!strstr(said, "ready\n"));
	at = strstr(said, "http://127.0.0.1:");
	if (!at)
		return err_set(err, -EIO, "steamd-gateway does not say where it listens");
	g->port = (uint16_t)strtoul(at + strlen("http://127.0.0.1:"), NULL, 10);
	return 0;
}

static int start_gateway(struct rig *g, struct err *err)
{
	_cleanup_(freep) char *program = bench_built("steamd-gateway");
	const char *const argv[] = { program,
				     "--listen",
				     "127.0.0.1:0",
				     "--socket",
				     broker_socket(g->broker),
				     "--set",
				     "MaxConnectionsPerPeer=2000",
				     NULL };
	posix_spawn_file_actions_t actions;
	int pipe_fds[2], r;

	if (!program || pipe2(pipe_fds, O_CLOEXEC) < 0)
		return err_set(err, -ENOMEM, "out of memory or descriptors");
	g->log_fd = pipe_fds[0];
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, pipe_fds[1], 2);
	r = posix_spawn(&g->pid, program, &actions, NULL, (char **)argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	close(pipe_fds[1]);
	if (r)
		return err_wrap(err, -r, "cannot start '%s'", program);
	return read_port(g, err);
}

/* @set: of the daemon; NULL: none. */
static int rig_init(struct rig *g, const char *set, struct err *err)
{
	_cleanup_(freep) char *program = bench_built("steamd");
	char model[PATH_MAX];
	struct broker_options options = { .program = program, .model = model, .set = set };
	int r;

	*g = (struct rig){ .log_fd = -1 };
	if (!program)
		return -ENOMEM;
	bench_source(SMALL_MODEL, model);
	r = broker_start(&options, &g->broker, err);
	return r < 0 ? r : start_gateway(g, err);
}

static int http_connect(const struct rig *g, struct err *err)
{
	const struct sockaddr_in to = { .sin_family = AF_INET,
					.sin_port = htons(g->port),
					.sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	_cleanup_(closep) int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || connect(fd, (const struct sockaddr *)&to, sizeof(to)) < 0)
		return err_set(err, -errno, "cannot connect to the gateway: %s", strerror(errno));
	return steal_fd(&fd);
}

static int http_ask(int fd, unsigned n_tokens, struct err *err)
{
	char body[256], all[512];
	int n;

	n = snprintf(body, sizeof(body),
		     "{\"prompt\":[1,2,3,4],\"max_tokens\":%u,\"temperature\":0,"
		     "\"ignore_eos\":true,\"stream\":true}",
		     n_tokens);
	n = snprintf(all, sizeof(all),
		     "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
		     "Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		     n, body);
	return send(fd, all, (size_t)n, MSG_NOSIGNAL) == n
		       ? 0
		       : err_set(err, -errno, "the gateway closed the connection");
}

/* A connection, and what came and was not looked at yet. */
struct reader {
	int fd;
	char buffer[65536];
	size_t n;
};

/* Takes all up to the end of @word; its beginning is kept as long as it may be cut in two. */
static int http_await(struct reader *r, const char *word, struct err *err)
{
	const size_t len = strlen(word);

	for (;;) {
		const char *at = memmem(r->buffer, r->n, word, len);
		const size_t taken = at ? (size_t)(at - r->buffer) + len
					: r->n - MIN(r->n, len - 1);
		ssize_t more;

		r->n -= taken;
		memmove(r->buffer, r->buffer + taken, r->n);
		if (at)
			return 0;
		more = recv(r->fd, r->buffer + r->n, sizeof(r->buffer) - r->n, 0);
		if (more <= 0)
			return err_set(err, -EIO, "the gateway's answer ended early");
		r->n += (size_t)more;
	}
}

static int first_over_http(struct reader *http, double *ret_s, struct err *err)
{
	const double from = bench_now_s();
	int r;

	r = http_ask(http->fd, 1, err);
	if (r == 0)
		r = http_await(http, "data: ", err);
	*ret_s = bench_now_s() - from;
	return r < 0 ? r : http_await(http, "\r\n0\r\n\r\n", err);
}

static int on_first(void *userdata, const struct steamd_delta *delta)
{
	double *at_s = userdata;

	(void)delta;
	if (*at_s == 0)
		*at_s = bench_now_s();
	return 0;
}

static int first_over_library(struct steamd *s, double *ret_s, struct err *err)
{
	static const uint32_t ids[] = { 1, 2, 3, 4 };
	const double from = bench_now_s();
	double at_s = 0;
	const struct steamd_handler handler = { .on_delta = on_first, .userdata = &at_s };
	struct steamd_error error = { 0 };
	struct steamd_generate g;

	steamd_generate_init(&g);
	g.ids = ids;
	g.n_ids = ARRAY_SIZE(ids);
	g.temperature = 0;
	g.max_tokens = 1;
	g.ignore_eos = 1;
	if (steamd_generate(s, &g, &handler, &error) < 0)
		return err_set(err, error.error, "%s", error.text);
	*ret_s = at_s - from;
	return 0;
}

static int measure_first(struct rig *g, struct bench_row *row, struct err *err)
{
	struct bench_series added = { .n = 0 };
	struct steamd_error error = { 0 };
	_cleanup_(closep) int fd = http_connect(g, err);
	struct reader reader = { .fd = fd };
	struct steamd *s = NULL;
	int r = fd < 0 ? fd : 0;

	if (r == 0 && steamd_open(broker_socket(g->broker), "bench", NULL, &s, &error) < 0)
		r = err_set(err, error.error, "%s", error.text);
	for (int i = 0; i < WARM_PAIRS + PAIRS && r == 0; i++) {
		double http = 0, library = 0;

		r = i % 2 ? first_over_http(&reader, &http, err)
			  : first_over_library(s, &library, err);
		if (r == 0)
			r = i % 2 ? first_over_library(s, &library, err)
				  : first_over_http(&reader, &http, err);
		if (i >= WARM_PAIRS)
			bench_add(&added, 1000 * (http - library));
	}
	steamd_close(s);
	row->value = bench_median(&added);
	row->spread = bench_spread(&added);
	return r;
}

static double cpu_s(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int stream_over_http(struct reader *reader, struct err *err)
{
	const int r = http_ask(reader->fd, TOKENS, err);

	return r < 0 ? r : http_await(reader, "\r\n0\r\n\r\n", err);
}

/* A client of its own: it blocks until something comes, and is woken for it. */
struct client {
	struct reader reader;
	pthread_t thread;
	int r;
	struct err err;
};

static void *run_client(void *userdata)
{
	struct client *c = userdata;

	c->r = stream_over_http(&c->reader, &c->err);
	return NULL;
}

static int stream_at_once(struct client *clients, int n, struct err *err)
{
	int started = 0, r = 0;

	for (; started < n && r == 0; started++)
		r = -pthread_create(&clients[started].thread, NULL, run_client, &clients[started]);
	if (r < 0)
		started--;
	for (int i = 0; i < started; i++) {
		pthread_join(clients[i].thread, NULL);
		if (r == 0 && clients[i].r < 0)
			r = err_set(err, clients[i].r, "%s", clients[i].err.text);
	}
	return r;
}

static int measure_cpu_of(struct rig *g, int n, struct bench_row *row, struct err *err)
{
	struct bench_series costs = { .n = 0 };
	struct client *clients = calloc((size_t)n, sizeof(*clients));
	clockid_t clock;
	int r = clients ? 0 : -ENOMEM;

	if (r == 0 && clock_getcpuclockid(g->pid, &clock) != 0)
		r = err_set(err, -EIO, "the gateway's processor time cannot be read");
	for (int i = 0; clients && i < n; i++) {
		clients[i].reader.fd = r < 0 ? -1 : http_connect(g, err);
		if (r == 0 && clients[i].reader.fd < 0)
			r = clients[i].reader.fd;
	}
	for (int i = 0; i < CPU_ROUNDS + 1 && r == 0; i++) {
		const double from = cpu_s(clock);

		r = stream_at_once(clients, n, err);
		if (i > 0)
			bench_add(&costs, 1e6 * (cpu_s(clock) - from) / (n * TOKENS));
	}
	for (int i = 0; clients && i < n; i++)
		closep(&clients[i].reader.fd);
	free(clients);
	row->value = bench_median(&costs);
	row->spread = bench_spread(&costs);
	return r;
}

static int measure_cpu(struct rig *g, struct bench_row *row, struct err *err)
{
	return measure_cpu_of(g, 1, row, err);
}

static int measure_cpu_at_once(struct rig *g, struct bench_row *row, struct err *err)
{
	return measure_cpu_of(g, STREAMS_AT_ONCE, row, err);
}

/* Both in each round: how the machine is just now is the same for both. */
static int measure_relay(struct rig *g, struct bench_row *row, struct err *err)
{
	struct bench_series ours = { .n = 0 }, least = { .n = 0 }, ratios = { .n = 0 };
	_cleanup_(relay_closep) struct relay *relay = NULL;
	_cleanup_(closep) int fd = http_connect(g, err);
	struct reader reader = { .fd = fd };
	clockid_t clock;
	int r = fd < 0 ? fd : relay_open(broker_socket(g->broker), &relay, err);

	if (r == 0 && clock_getcpuclockid(g->pid, &clock) != 0)
		return err_set(err, -EIO, "the gateway's processor time cannot be read");
	for (int i = 0; i < CPU_ROUNDS + 1 && r == 0; i++) {
		const double from = cpu_s(clock), relay_from = cpu_s(relay_clock(relay));
		double http, relayed;

		r = stream_over_http(&reader, err);
		if (r == 0)
			r = relay_stream(relay, TOKENS, err);
		http = 1e6 * (cpu_s(clock) - from) / TOKENS;
		relayed = 1e6 * (cpu_s(relay_clock(relay)) - relay_from) / TOKENS;
		if (i == 0)
			continue;
		bench_add(&ours, http);
		bench_add(&least, relayed);
		bench_add(&ratios, http / relayed);
	}
	row->value = bench_median(&ours);
	row->spread = bench_spread(&ours);
	row->limit = bench_median(&least);
	row->ratio = bench_median(&ratios);
	return r;
}

/* Pages that it wrote, in MiB. */
static double memory_mib(pid_t pid)
{
	char path[64], line[128];
	double kib = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "RssAnon: %lf", &kib) == 1)
			break;
	if (f)
		fclose(f);
	return kib / 1024;
}

/* All but one wait: the daemon of this figure takes one at a time. */
static int measure_waiting(struct rig *g, struct bench_row *row, struct err *err)
{
	const double before = memory_mib(g->pid);
	int fds[STREAMS], r = 0, n = 0;

	for (; n < STREAMS && r == 0; n++) {
		fds[n] = http_connect(g, err);
		r = fds[n] < 0 ? fds[n] : http_ask(fds[n], 60000, err);
	}
	for (int i = 0; i < n && r == 0; i++)
		r = http_await(&(struct reader){ .fd = fds[i] }, "text/event-stream", err);
	row->value = memory_mib(g->pid) - before;
	while (n > 0)
		closep(&fds[--n]);
	return r;
}

enum { FIRST, CPU, CPU_AT_ONCE, RELAY, WAITING };

static int measure(struct bench *b, const struct bench_figure *figure, struct err *err)
{
	static const struct {
		const char *unit, *limit_name;
		double limit;
		int (*measure)(struct rig *g, struct bench_row *row, struct err *err);
		const char *set;
	} rows[] = {
		[FIRST] = { "ms", "most it may add", 1, measure_first, NULL },
		[CPU] = { "us", "most it may take", 15, measure_cpu, NULL },
		[CPU_AT_ONCE] = { "us", "most it may take", 15, measure_cpu_at_once, NULL },
		[RELAY] = { "us", "a bare relay", 0, measure_relay, NULL },
		[WAITING] = { "MiB", "most it may take", 20, measure_waiting,
			      "MaxRequestsPerConnection=9" },
	};
	struct bench_row row = { .name = figure->name,
				 .unit = rows[figure->n].unit,
				 .kind = LIMIT_WANTED,
				 .limit_name = rows[figure->n].limit_name,
				 .limit = rows[figure->n].limit };
	_cleanup_(rig_deinit) struct rig g = { .log_fd = -1 };
	struct rlimit files;
	int r;

	if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	r = rig_init(&g, rows[figure->n].set, err);
	if (r == 0)
		r = rows[figure->n].measure(&g, &row, err);
	if (r < 0)
		return r;
	if (row.ratio == 0)
		row.ratio = row.value / row.limit;
	bench_print(b, &row);
	return 0;
}

const struct bench_figure figures_gateway[] = {
	{ "http-first-token", "the gateway over libsteamd, to the first token", measure, FIRST,
	  true },
	{ "http-token-cpu", "processor time of the gateway for a streamed token", measure, CPU,
	  true },
	{ "http-token-cpu-16",
	  "the same with sixteen streams at once, each read by a client of its own", measure,
	  CPU_AT_ONCE, true },
	{ "http-token-relay", "the same beside a relay that copies and does nothing else", measure,
	  RELAY, true },
	{ "http-waiting", "memory of 1000 streams that have begun and wait", measure, WAITING,
	  true },
	{ 0 },
};
