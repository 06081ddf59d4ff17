/*
 * Times pairs of requests, the command's and the library's. Which of the two
 * comes first changes from pair to pair, so that neither has the warmer
 * daemon.
 */
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdbool.h>
#include <sys/wait.h>

#include "client/steamd.h"
#include "tests/bench/bench.h"

#define PAIRS 50
#define WARM_PAIRS 2
#define WANTED_MS 2.0
#define STEAMCTL "client/steamctl/.libs/steamctl"

extern char **environ;

struct overhead {
	const char *socket, *steamctl;
	posix_spawn_file_actions_t quiet; /* stdin and stdout are /dev/null */
	struct steamd *connection;
};

/* Ids that every model has; the same to both. */
static const uint32_t ids[] = { 1, 2, 3, 4 };
#define IDS_TEXT "[1,2,3,4]"

static int ask_command(const struct overhead *o, double *ret_s, struct err *err)
{
	const char *const argv[] = { o->steamctl, "--socket",	   o->socket, "complete",
				     "--ids",	  "--temperature", "0",	      "--max-tokens",
				     "1",	  "--ignore-eos",  IDS_TEXT,  NULL };
	const double from = bench_now_s();
	int status, r;
	pid_t pid;

	r = posix_spawnp(&pid, o->steamctl, &o->quiet, NULL, (char **)argv, environ);
	if (r)
		return err_wrap(err, -r, "cannot start '%s'", o->steamctl);
	if (waitpid(pid, &status, 0) < 0)
		return err_wrap(err, -errno, "cannot wait for '%s'", o->steamctl);
	*ret_s = bench_now_s() - from;
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
		return err_set(err, -EIO, "'%s' ended with status %d", o->steamctl, status);
	return 0;
}

static int ask_library(const struct overhead *o, double *ret_s, struct err *err)
{
	const struct steamd_handler handler = { .on_delta = NULL };
	const double from = bench_now_s();
	struct steamd_error error = { 0 };
	struct steamd_generate g;
	int r;

	steamd_generate_init(&g);
	g.ids = ids;
	g.n_ids = ARRAY_SIZE(ids);
	g.temperature = 0;
	g.max_tokens = 1;
	g.ignore_eos = 1;
	r = steamd_generate(o->connection, &g, &handler, &error);
	if (r < 0)
		return err_set(err, r, "%s", error.text);
	*ret_s = bench_now_s() - from;
	return 0;
}

static int ask_pair(const struct overhead *o, bool command_first, double *ret_ms, struct err *err)
{
	double command = 0, library = 0;
	int r;

	r = command_first ? ask_command(o, &command, err) : ask_library(o, &library, err);
	if (r == 0)
		r = command_first ? ask_library(o, &library, err) : ask_command(o, &command, err);
	if (r < 0)
		return r;
	*ret_ms = 1000 * (command - library);
	return 0;
}

static int ask_pairs(const struct overhead *o, struct bench_series *ret, struct err *err)
{
	for (int i = 0; i < WARM_PAIRS + PAIRS; i++) {
		double ms;
		const int r = ask_pair(o, i % 2, &ms, err);

		if (r < 0)
			return r;
		if (i >= WARM_PAIRS)
			bench_add(ret, ms);
	}
	return 0;
}

/*
 * With `steamctl complete`, from its start to its end, and in turns with
 * steamd_generate() on an open connection: the differences of the pairs, in
 * milliseconds. A libtool wrapper would be measured as well: the program
 * itself is what --steamctl should name.
 */
static int ask(const char *socket, const char *steamctl, struct bench_series *ret, struct err *err)
{
	struct overhead o = { .socket = socket, .steamctl = steamctl };
	struct steamd_error error = { 0 };
	int r;

	r = steamd_open(socket, "bench", NULL, &o.connection, &error);
	if (r < 0)
		return err_set(err, r, "%s", error.text);
	r = posix_spawn_file_actions_init(&o.quiet);
	if (r == 0) {
		r = posix_spawn_file_actions_addopen(&o.quiet, 0, "/dev/null", O_RDONLY, 0);
		if (r == 0)
			r = posix_spawn_file_actions_addopen(&o.quiet, 1, "/dev/null", O_WRONLY, 0);
		r = r ? -r : ask_pairs(&o, ret, err);
		posix_spawn_file_actions_destroy(&o.quiet);
	}
	steamd_close(o.connection);
	return r;
}

static int measure(struct bench *b, const struct bench_figure *figure, struct err *err)
{
	_cleanup_(freep) char *built = bench_built(STEAMCTL);
	struct bench_row row = { .name = figure->name,
				 .unit = "ms",
				 .kind = LIMIT_WANTED,
				 .limit_name = "most it may add",
				 .limit = WANTED_MS };
	struct bench_series added = { .n = 0 };
	const char *steamctl = b->steamctl;
	int r;

	if (!b->socket)
		return bench_skip(figure->name, "it needs --socket of a running daemon");
	if (!steamctl)
		steamctl = built && access(built, X_OK) == 0 ? built : "steamctl";
	r = ask(b->socket, steamctl, &added, err);
	if (r < 0)
		return r;
	row.value = bench_median(&added);
	row.spread = bench_spread(&added);
	row.ratio = row.value / row.limit;
	bench_print(b, &row);
	return 0;
}

const struct bench_figure figures_overhead[] = {
	{ "ask-overhead", "steamctl over libsteamd; needs --socket", measure, 0, true },
	{ 0 },
};
