/*
 * The speed of this machine as ratios: how much of the bandwidth of memory
 * decoding uses, how much faster a prompt is read than an answer is written,
 * what the command adds to a request. All is measured in one process with the
 * same threads, round by round, so that a ratio holds on a busy machine too.
 */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <math.h>
#include <spawn.h>
#include <stdbool.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

#include "tests/bench/bandwidth.h"
#include "tests/bench/floor.h"
#include "tests/bench/overhead.h"

#define ROUNDS 5
#define STEPS 12 /* of decoding, in a round */
#define THREADS_MAX 1024
#define OVERHEAD_LIMIT_MS 2.0
#define MODEL_SHAPE "bench-5b"
#define MODEL_DIR "bench-model"
#define STEAMCTL_BUILT "client/steamctl/.libs/steamctl" /* from the build directory */

extern char **environ;

enum figure { READ = 1, DECODE = 2, PREFILL = 4, ASK = 8 };

/* Names that can be asked for, and what has to be measured for each. */
static const struct {
	const char *name;
	enum figure figure;
	unsigned needs;
	const char *help;
} figures[] = {
	{ "read-bandwidth", READ, READ, "memory that all threads read together" },
	{ "decode-b1", DECODE, READ | DECODE, "an answer's tokens, one at a time" },
	{ "prefill-512", PREFILL, READ | DECODE | PREFILL, "a prompt's tokens, 512 at once" },
	{ "ask-overhead", ASK, ASK, "steamctl over libsteamd; needs --socket" },
};

struct bench {
	bool json;
	const char *model, *socket, *steamctl;
	enum isa isa;
	uint32_t n_threads, rounds;
	unsigned wanted, measured;
	double decode_bytes;
	struct bench_series read, decode, decode_of_read, prefill, prefill_of_decode, ask;
};

void bench_add(struct bench_series *s, double value)
{
	if (s->n < BENCH_ROUNDS_MAX)
		s->values[s->n++] = value;
}

static int compare(const void *a, const void *b)
{
	const double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* The value below which @part of the values lie. */
static double quantile(const struct bench_series *s, double part)
{
	struct bench_series sorted = *s;
	double at, under;

	if (s->n == 0)
		return NAN;
	qsort(sorted.values, sorted.n, sizeof(*sorted.values), compare);
	at = part * (sorted.n - 1);
	under = floor(at);
	if (under >= sorted.n - 1)
		return sorted.values[sorted.n - 1];
	return sorted.values[(int)under] +
	       (at - under) * (sorted.values[(int)under + 1] - sorted.values[(int)under]);
}

double bench_median(const struct bench_series *s)
{
	return quantile(s, 0.5);
}

double bench_spread(const struct bench_series *s)
{
	return (quantile(s, 0.75) - quantile(s, 0.25)) / fabs(bench_median(s));
}

double bench_now_s(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

static void print_number(const char *key, double value)
{
	if (isfinite(value))
		printf(",\"%s\":%.6g", key, value);
	else
		printf(",\"%s\":null", key);
}

static void print_json(const struct bench_row *row)
{
	printf("{\"name\":\"%s\"", row->name);
	print_number("value", row->value);
	printf(",\"unit\":\"%s\"", row->unit);
	print_number("limit", row->limit);
	if (row->limit_name)
		printf(",\"limit_name\":\"%s\"", row->limit_name);
	else
		printf(",\"limit_name\":null");
	print_number("ratio", row->ratio);
	print_number("spread", row->spread);
	printf("}\n");
}

static void print_line(const struct bench_row *row)
{
	printf("%-15s %10.2f %-9s %5.1f %%", row->name, row->value, row->unit, 100 * row->spread);
	if (row->limit_name)
		printf("  %5.2f of %.2f %s (%s)", row->ratio, row->limit, row->unit,
		       row->limit_name);
	if (row->floor)
		printf(", wanted: %s", row->floor);
	printf("\n");
}

static void print_row(const struct bench *b, const struct bench_row *row)
{
	if (b->json)
		print_json(row);
	else
		print_line(row);
	fflush(stdout);
}

static void print_read(const struct bench *b)
{
	print_row(b, &(struct bench_row){
			     .name = "read-bandwidth",
			     .value = bench_median(&b->read) / 1e9,
			     .unit = "GB/s",
			     .limit = NAN,
			     .ratio = NAN,
			     .spread = bench_spread(&b->read),
		     });
}

/* The same measurement twice: as a person counts, and as memory does. */
static void print_decode(const struct bench *b)
{
	struct bench_row row = {
		.name = "decode-b1",
		.value = bench_median(&b->decode),
		.unit = "tokens/s",
		.limit_name = "read-bandwidth",
		.limit = bench_median(&b->read) / b->decode_bytes,
		.ratio = bench_median(&b->decode_of_read),
		.spread = bench_spread(&b->decode),
		.floor = "at least 0.5",
	};

	print_row(b, &row);
	row.name = "decode-b1-read";
	row.unit = "GB/s";
	row.value *= b->decode_bytes / 1e9;
	row.limit *= b->decode_bytes / 1e9;
	print_row(b, &row);
}

static void print_prefill(const struct bench *b)
{
	print_row(b, &(struct bench_row){
			     .name = "prefill-512",
			     .value = bench_median(&b->prefill),
			     .unit = "tokens/s",
			     .limit_name = "decode-b1",
			     .limit = bench_median(&b->decode),
			     .ratio = bench_median(&b->prefill_of_decode),
			     .spread = bench_spread(&b->prefill),
			     .floor = "at least 4",
		     });
}

static void print_ask(const struct bench *b)
{
	print_row(b, &(struct bench_row){
			     .name = "ask-overhead",
			     .value = bench_median(&b->ask),
			     .unit = "ms",
			     .limit_name = "most it may add",
			     .limit = OVERHEAD_LIMIT_MS,
			     .ratio = bench_median(&b->ask) / OVERHEAD_LIMIT_MS,
			     .spread = bench_spread(&b->ask),
			     .floor = "below 1",
		     });
}

/* What the figures are of, on stderr, where it disturbs no table. */
static void print_machine(const struct dev *dev, const char *model, double decode_bytes)
{
	_cleanup_(fclosep) FILE *f = fopen("/proc/cpuinfo", "re");
	char line[256], cpu[256] = "unknown processor";

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "model name : %255[^\n]", cpu) == 1)
			break;
	fprintf(stderr, "%s, %u threads, %s", cpu, dev_threads(dev), isa_name(dev_isa(dev)));
	if (model)
		fprintf(stderr, "; '%s' reads %.3f GB a token", model, decode_bytes / 1e9);
	fprintf(stderr, "\n");
}

/*
 * Passes over memory and steps of decoding in turns: what else the machine
 * does hits both alike. The first step warms up.
 */
static int measure_decode(struct bench *b, struct bandwidth *memory, struct floor *f)
{
	struct bench_series read = { .n = 0 }, decode = { .n = 0 };
	double rate;
	int r = f ? floor_decode(f, &rate) : 0;

	for (int i = 0; i < STEPS && r == 0; i++) {
		bench_add(&read, bandwidth_pass(memory));
		if (!f)
			continue;
		r = floor_decode(f, &rate);
		bench_add(&decode, rate);
	}
	if (r < 0)
		return r;
	bench_add(&b->read, bench_median(&read));
	if (!f)
		return 0;
	bench_add(&b->decode, bench_median(&decode));
	bench_add(&b->decode_of_read,
		  bench_median(&decode) * b->decode_bytes / bench_median(&read));
	return 0;
}

static int measure_round(struct bench *b, struct bandwidth *memory, struct floor *f)
{
	double prefill;
	int r;

	r = measure_decode(b, memory, f);
	if (r < 0 || !(b->measured & PREFILL))
		return r;
	r = floor_prefill(f, &prefill);
	if (r < 0)
		return r;
	bench_add(&b->prefill, prefill);
	bench_add(&b->prefill_of_decode, prefill / b->decode.values[b->decode.n - 1]);
	return 0;
}

/* @model: its directory, or NULL if nothing is asked of one */
static int measure_rounds(struct bench *b, struct dev *dev, const char *model, struct err *err)
{
	_cleanup_(bandwidth_freep) struct bandwidth *memory = NULL;
	_cleanup_(floor_closep) struct floor *f = NULL;
	int r;

	r = bandwidth_new(dev, &memory, err);
	if (r < 0)
		return r;
	if (model) {
		r = floor_open(dev, model, &f, err);
		if (r < 0)
			return r;
		b->decode_bytes = floor_decode_bytes(f);
	}
	print_machine(dev, model, b->decode_bytes);
	for (uint32_t i = 0; i < b->rounds; i++) {
		r = measure_round(b, memory, f);
		if (r < 0)
			return err_wrap(err, r, "a forward pass failed");
	}
	return 0;
}

/* make-model lies beside this program; libtool may have put the program into .libs. */
static int make_model(const char *dir, struct err *err)
{
	char program[PATH_MAX + 16], *slash;
	const ssize_t len = readlink("/proc/self/exe", program, PATH_MAX - 1);
	int status, r;
	pid_t pid;

	if (len < 0)
		return err_wrap(err, -errno, "cannot read /proc/self/exe");
	program[len] = '\0';
	slash = strrchr(program, '/');
	*slash = '\0';
	if (strlen(program) > 6 && strcmp(slash - 6, "/.libs") == 0)
		slash -= 6;
	strcpy(slash, "/make-model");
	fprintf(stderr, "making %s in '%s' (4 GB)\n", MODEL_SHAPE, dir);
	r = posix_spawn(&pid, program, NULL, NULL,
			(char *[]){ program, (char *)MODEL_SHAPE, (char *)dir, NULL }, environ);
	if (r)
		return err_wrap(err, -r, "cannot start '%s'", program);
	if (waitpid(pid, &status, 0) < 0 || !WIFEXITED(status) || WEXITSTATUS(status) != 0)
		return err_set(err, -EIO, "'%s' could not make a model in '%s'", program, dir);
	return 0;
}

/* The directory with the model of an earlier run, or a new one; config.json is written last. */
static int find_model(char **ret, struct err *err)
{
	_cleanup_(freep) char *dir = NULL, *config = NULL;
	const char *top = getenv("TMPDIR");
	int r;

	if (asprintf(&dir, "%s/%s", top && *top ? top : ".", MODEL_DIR) < 0 ||
	    asprintf(&config, "%s/config.json", dir) < 0)
		return -ENOMEM;
	if (access(config, R_OK) < 0) {
		r = make_model(dir, err);
		if (r < 0)
			return r;
	}
	*ret = steal(dir);
	return 0;
}

static int measure_machine(struct bench *b, struct err *err)
{
	_cleanup_(dev_closep) struct dev *dev = NULL;
	_cleanup_(freep) char *made = NULL;
	const char *model = b->measured & DECODE ? b->model : NULL;
	int r;

	if ((b->measured & DECODE) && !model) {
		r = find_model(&made, err);
		if (r < 0)
			return r;
		model = made;
	}
	r = dev_open(b->isa, b->n_threads, &dev);
	if (r < 0)
		return err_wrap(err, r, "cannot open a device for %s", isa_name(b->isa));
	return measure_rounds(b, dev, model, err);
}

static int measure(struct bench *b, struct err *err)
{
	int r;

	/* before a device pins this thread, and with it the commands it starts */
	if (b->measured & ASK) {
		r = overhead_measure(b->socket, b->steamctl, &b->ask, err);
		if (r < 0)
			return r;
	}
	return b->measured & READ ? measure_machine(b, err) : 0;
}

static void print_figures(const struct bench *b)
{
	if (!b->json)
		printf("%-15s %10s %-9s %7s  %s\n", "name", "value", "unit", "spread",
		       "ratio to limit");
	if (b->wanted & READ)
		print_read(b);
	if (b->wanted & DECODE)
		print_decode(b);
	if (b->wanted & PREFILL)
		print_prefill(b);
	if (b->wanted & ASK)
		print_ask(b);
}

static const struct option options[] = {
	{ "json", no_argument, NULL, 'j' },
	{ "model", required_argument, NULL, 'm' },
	{ "isa", required_argument, NULL, 'i' },
	{ "threads", required_argument, NULL, 't' },
	{ "rounds", required_argument, NULL, 'r' },
	{ "socket", required_argument, NULL, 's' },
	{ "steamctl", required_argument, NULL, 'c' },
	{ "help", no_argument, NULL, 'h' },
	{ 0 },
};

static int usage(FILE *f)
{
	fprintf(f, "Usage: bench [OPTION…] [NAME…]\n\n");
	for (size_t i = 0; i < ARRAY_SIZE(figures); i++)
		fprintf(f, "  %-15s %s\n", figures[i].name, figures[i].help);
	fprintf(f, "\n"
		   "  --json           one JSON object a line\n"
		   "  --model DIR      a checkpoint; else " MODEL_SHAPE " is made, once, in\n"
		   "                   $TMPDIR/" MODEL_DIR " or ./" MODEL_DIR "\n"
		   "  --isa NAME       auto, avx512bf16, avx512, avx2, portable, ref\n"
		   "  --threads N      one per core if not given\n"
		   "  --rounds N       of which the median is shown (5)\n"
		   "  --socket PATH    of a running daemon, for ask-overhead\n"
		   "  --steamctl PATH  the command to time (the one built here, or in PATH)\n");
	return f == stdout ? 0 : 2;
}

static bool read_number(const char *text, uint32_t max, uint32_t *ret)
{
	char *end;
	const unsigned long value = strtoul(text, &end, 10);

	if (*text < '0' || *text > '9' || *end || value < 1 || value > max)
		return false;
	*ret = (uint32_t)value;
	return true;
}

static bool read_option(struct bench *b, int opt)
{
	switch (opt) {
	case 'j':
		b->json = true;
		return true;
	case 'm':
		b->model = optarg;
		return true;
	case 'i':
		return isa_parse(optarg, &b->isa) == 0;
	case 't':
		return read_number(optarg, THREADS_MAX, &b->n_threads);
	case 'r':
		return read_number(optarg, BENCH_ROUNDS_MAX, &b->rounds);
	case 's':
		b->socket = optarg;
		return true;
	case 'c':
		b->steamctl = optarg;
		return true;
	}
	return false;
}

static bool read_name(struct bench *b, const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(figures); i++) {
		if (strcmp(figures[i].name, name) != 0)
			continue;
		b->wanted |= figures[i].figure;
		b->measured |= figures[i].needs;
		return true;
	}
	return false;
}

int main(int argc, char **argv)
{
	struct bench b = { .isa = isa_best(), .rounds = ROUNDS };
	struct err err = { 0 };
	int opt, r;

	b.steamctl = access(STEAMCTL_BUILT, X_OK) == 0 ? STEAMCTL_BUILT : "steamctl";
	while ((opt = getopt_long(argc, argv, "h", options, NULL)) >= 0) {
		if (opt == 'h')
			return usage(stdout);
		if (!read_option(&b, opt))
			return usage(stderr);
	}
	for (int i = optind; i < argc; i++)
		if (!read_name(&b, argv[i]))
			return usage(stderr);
	for (size_t i = 0; optind == argc && i < ARRAY_SIZE(figures); i++)
		if (figures[i].figure != ASK || b.socket)
			read_name(&b, figures[i].name);
	if ((b.wanted & ASK) && !b.socket)
		return usage(stderr);

	r = measure(&b, &err);
	if (r < 0) {
		fprintf(stderr, "bench: %s\n", err.text[0] ? err.text : strerror(-r));
		return 1;
	}
	print_figures(&b);
	return 0;
}
