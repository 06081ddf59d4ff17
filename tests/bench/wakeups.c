/* Context switches of the threads of two processes, before and after a pause. */
#include "tests/bench/wakeups.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <time.h>

#include "client/steamd.h"
#include "tests/bench/broker.h"

#define WATCHDOG_MS 1000

static void pause_ms(uint64_t ms)
{
	struct timespec left = { .tv_sec = (time_t)(ms / 1000),
				 .tv_nsec = (long)(ms % 1000) * 1000000 };

	while (nanosleep(&left, &left) < 0 && errno == EINTR)
		;
}

/* A thread that waits is switched away from once a wake-up, whether it meant to or not. */
static uint64_t read_switches(const char *path)
{
	_cleanup_(fclosep) FILE *f = fopen(path, "re");
	unsigned long long n, sum = 0;
	char line[256];

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "voluntary_ctxt_switches: %llu", &n) == 1 ||
		    sscanf(line, "nonvoluntary_ctxt_switches: %llu", &n) == 1)
			sum += n;
	}
	return sum;
}

static int count_switches(pid_t pid, uint64_t *ret, struct err *err)
{
	struct dirent *entry;
	char path[300];
	uint64_t sum = 0;
	DIR *tasks;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	tasks = opendir(path);
	if (!tasks)
		return err_wrap(err, -errno, "cannot list the threads of process %d", (int)pid);
	while ((entry = readdir(tasks))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/proc/%d/task/%.20s/status", (int)pid, entry->d_name);
		sum += read_switches(path);
	}
	closedir(tasks);
	*ret = sum;
	return 0;
}

/* @executor	0: it is gone */
static int count_both(pid_t broker, pid_t executor, struct wakeups *ret, struct err *err)
{
	const int r = count_switches(broker, &ret->broker, err);

	ret->executor = 0;
	return r < 0 || executor == 0 ? r : count_switches(executor, &ret->executor, err);
}

/* Returns when the model is there and one token came. */
static int ask_once(struct steamd *s, struct steamd_error *error)
{
	static const uint32_t prompt[] = { 1, 2, 3, 4 };
	const struct steamd_handler handler = { .on_delta = NULL };
	struct steamd_generate g;

	steamd_generate_init(&g);
	g.ids = prompt;
	g.n_ids = ARRAY_SIZE(prompt);
	g.max_tokens = 1;
	return steamd_generate(s, &g, &handler, error);
}

static int find_executor(struct steamd *s, pid_t *ret, struct steamd_error *error)
{
	_cleanup_(freep) char *status = NULL;
	const int r = steamd_query(s, STEAMD_STATUS, &status, error);
	json_t *json = r < 0 ? NULL : json_loads(status, 0, NULL);

	*ret = (pid_t)json_integer_value(json_object_get(json_object_get(json, "executor"), "pid"));
	json_decref(json);
	return r;
}

static int count(struct broker *b, struct steamd *s, const char *rung, uint32_t seconds,
		 struct wakeups *ret, struct err *err)
{
	struct steamd_error error = { 0 };
	struct wakeups before, after;
	pid_t executor = 0;
	int r;

	r = ask_once(s, &error);
	if (r >= 0)
		r = steamd_sleep(s, rung, 0, NULL, NULL, &error);
	if (r >= 0)
		r = find_executor(s, &executor, &error);
	if (r < 0)
		return err_set(err, r, "%s", error.text);
	pause_ms(WAKEUPS_SETTLE_MS);
	r = count_both(broker_pid(b), executor, &before, err);
	if (r < 0)
		return r;
	pause_ms(seconds * 1000ull);
	r = count_both(broker_pid(b), executor, &after, err);
	if (r < 0)
		return r;
	ret->broker = after.broker - before.broker;
	ret->executor = after.executor - before.executor;
	return 0;
}

int wakeups_count(const char *program, const char *model, const char *rung, uint32_t seconds,
		  struct wakeups *ret, struct err *err)
{
	const struct broker_options options = {
		.program = program,
		.model = model,
		.watchdog_ms = WATCHDOG_MS,
	};
	_cleanup_(broker_stopp) struct broker *b = NULL;
	struct steamd_error error = { 0 };
	struct steamd *s;
	int r;

	r = broker_start(&options, &b, err);
	if (r < 0)
		return r;
	r = steamd_open(broker_socket(b), "bench", NULL, &s, &error);
	if (r < 0)
		return err_set(err, r, "%s", error.text);
	r = count(b, s, rung, seconds, ret, err);
	steamd_close(s);
	return r;
}
