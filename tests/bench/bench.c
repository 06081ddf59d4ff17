/*
 * The speed of this machine and of steamd on it: each figure with what limits
 * it, measured just before in the same process with the same threads, round by
 * round, so that the ratio of the two holds on a busy machine as well.
 */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>

#include "daemon/exec/weights/checkpoint.h"
#include "tests/bench/bandwidth.h"
#include "tests/bench/bench.h"
#include "tests/bench/peak.h"
#include "tests/bench/subject.h"

#define ROUNDS 5
#define ROUNDS_MAX 100
#define THREADS_MAX 1024
#define MODEL_SHAPE "bench-5b"
#define MODEL_DIR "bench-model"
#define MAKE_MODEL "tests/bench/make-model"

extern char **environ;

/* In the order in which they are measured: what is outside comes last. */
static const struct bench_figure *const families[] = {
	figures_bandwidth, figures_peaks,   figures_disk,      figures_tokenizer, figures_gemv,
	figures_gemm,	   figures_router,  figures_attention, figures_load,	  figures_segments,
	figures_decode,	   figures_prefill, figures_echo,      figures_delivery,  figures_again,
	figures_restart,   figures_memory,  figures_overhead,  figures_gateway,
};

/* What the figures are of goes to stderr, where it disturbs no table. */
static void tell_machine(const struct dev *dev)
{
	_cleanup_(fclosep) FILE *f = fopen("/proc/cpuinfo", "re");
	char line[256], cpu[256] = "unknown processor";

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "model name : %255[^\n]", cpu) == 1)
			break;
	fprintf(stderr, "bench: %s, %u threads, %s\n", cpu, dev_threads(dev),
		isa_name(dev_isa(dev)));
}

int bench_dev(struct bench *b, struct dev **ret, struct err *err)
{
	if (!b->dev) {
		const int r = dev_open(b->isa, b->n_threads, &b->dev);

		if (r < 0)
			return err_wrap(err, r, "cannot open a device for %s", isa_name(b->isa));
		if (!b->told_machine)
			tell_machine(b->dev);
		b->told_machine = true;
	}
	*ret = b->dev;
	return 0;
}

int bench_memory(struct bench *b, struct bandwidth **ret, struct err *err)
{
	struct dev *dev;
	int r = 0;

	if (!b->memory) {
		r = bench_dev(b, &dev, err);
		if (r == 0)
			r = bandwidth_new(dev, &b->memory, err);
	}
	*ret = b->memory;
	return r;
}

int bench_peaks(struct bench *b, struct peaks **ret, struct err *err)
{
	struct dev *dev;
	int r = 0;

	if (!b->peaks) {
		r = bench_dev(b, &dev, err);
		if (r == 0)
			r = peaks_new(dev, &b->peaks, err);
	}
	*ret = b->peaks;
	return r;
}

/* This program lies in tests/bench of the build, or libtool has put it into .libs there. */
char *bench_built(const char *name)
{
	char self[PATH_MAX], *path = NULL;
	const ssize_t len = readlink("/proc/self/exe", self, sizeof(self) - 1);
	char *slash;

	if (len < 0)
		return NULL;
	self[len] = '\0';
	slash = strrchr(self, '/');
	*slash = '\0';
	slash = strrchr(self, '/');
	if (slash && strcmp(slash, "/.libs") == 0)
		*slash = '\0';
	return asprintf(&path, "%s/../../%s", self, name) < 0 ? NULL : path;
}

void bench_source(const char *name, char *path)
{
	const char *top = getenv("srcdir");

	snprintf(path, PATH_MAX, "%s/%s", top ? top : ".", name);
}

static int make_model(const char *dir, struct err *err)
{
	_cleanup_(freep) char *program = bench_built(MAKE_MODEL);
	int status, r;
	pid_t pid;

	if (!program)
		return -ENOMEM;
	fprintf(stderr, "bench: making %s in '%s' (4 GB)\n", MODEL_SHAPE, dir);
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

int bench_model_dir(struct bench *b, const char **ret, struct err *err)
{
	if (!b->model) {
		const int r = find_model(&b->made_dir, err);

		if (r < 0)
			return r;
		b->model = b->made_dir;
	}
	*ret = b->model;
	return 0;
}

int bench_checkpoint(struct bench *b, const struct checkpoint **ret, struct err *err)
{
	const char *dir;
	int r = 0;

	if (!b->checkpoint) {
		r = bench_model_dir(b, &dir, err);
		if (r == 0)
			r = checkpoint_open(dir, &b->checkpoint, err);
	}
	*ret = b->checkpoint;
	return r;
}

int bench_subject(struct bench *b, struct subject **ret, struct err *err)
{
	const struct checkpoint *checkpoint;
	struct dev *dev;
	int r = 0;

	if (!b->subject) {
		r = bench_checkpoint(b, &checkpoint, err);
		if (r == 0)
			r = bench_dev(b, &dev, err);
		if (r == 0)
			r = subject_new(dev, checkpoint, &b->subject, err);
	}
	*ret = b->subject;
	return r;
}

void bench_drop_subject(struct bench *b)
{
	b->subject = subject_free(b->subject);
}

/* Gives all memory and threads back. */
static void close_dev(struct bench *b)
{
	bench_drop_subject(b);
	b->memory = bandwidth_free(b->memory);
	b->peaks = peaks_free(b->peaks);
	b->dev = dev_close(b->dev);
}

static bool is_wanted(const struct bench_figure *figure, int n_names, char **names)
{
	for (int i = 0; i < n_names; i++)
		if (strcmp(names[i], figure->name) == 0)
			return true;
	return n_names == 0;
}

static int measure(struct bench *b, int n_names, char **names, struct err *err)
{
	int r = 0;

	for (size_t i = 0; i < ARRAY_SIZE(families); i++) {
		for (const struct bench_figure *f = families[i]; f->name && r == 0; f++) {
			if (!is_wanted(f, n_names, names))
				continue;
			if (f->outside)
				close_dev(b);
			*err = (struct err){ 0 };
			r = f->measure(b, f, err);
		}
	}
	return r;
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

static int refuse(void)
{
	fprintf(stderr, "bench: --help lists options and names\n");
	return 2;
}

static int help(void)
{
	printf("Usage: bench [OPTION…] [NAME…]\n\n");
	for (size_t i = 0; i < ARRAY_SIZE(families); i++)
		for (const struct bench_figure *figure = families[i]; figure->name; figure++)
			printf("  %-20s %s\n", figure->name, figure->help);
	printf("\n"
	       "  --json           one JSON object a line\n"
	       "  --model DIR      a checkpoint; else " MODEL_SHAPE " is made, once, in\n"
	       "                   $TMPDIR/" MODEL_DIR " or ./" MODEL_DIR "\n"
	       "  --isa NAME       auto, amx, avx512bf16, avx512, avx2, portable, ref\n"
	       "  --threads N      one per core if not given\n"
	       "  --rounds N       of which the median is shown (5); fewer where one takes long\n"
	       "  --socket PATH    of a running daemon, for ask-overhead\n"
	       "  --steamctl PATH  the command to time (the one built here, or in PATH)\n"
	       "\n"
	       "Exit status: 0; 1 if something failed, or if a row is better than its limit\n"
	       "allows, and so wrong; 2 usage.\n");
	return ferror(stdout) ? 1 : 0;
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

/* Says what is wrong with the argument, if something is. */
static bool is_right(bool right, const char *wanted)
{
	if (!right)
		fprintf(stderr, "bench: '%s' is not %s\n", optarg, wanted);
	return right;
}

/* What getopt_long() does not know it has complained of itself. */
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
		return is_right(isa_parse(optarg, &b->isa) == 0, "an instruction set");
	case 't':
		return is_right(read_number(optarg, THREADS_MAX, &b->n_threads),
				"a number of threads from 1 to 1024");
	case 'r':
		return is_right(read_number(optarg, ROUNDS_MAX, &b->rounds),
				"a number of rounds from 1 to 100");
	case 's':
		b->socket = optarg;
		return true;
	case 'c':
		b->steamctl = optarg;
		return true;
	}
	return false;
}

static bool is_name(char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(families); i++)
		for (const struct bench_figure *f = families[i]; f->name; f++)
			if (is_wanted(f, 1, &name))
				return true;
	fprintf(stderr, "bench: there is no figure '%s'\n", name);
	return false;
}

int main(int argc, char **argv)
{
	struct bench b = { .isa = isa_best(), .rounds = ROUNDS };
	struct err err = { 0 };
	int opt, r;

	while ((opt = getopt_long(argc, argv, "h", options, NULL)) >= 0) {
		if (opt == 'h')
			return help();
		if (!read_option(&b, opt))
			return refuse();
	}
	for (int i = optind; i < argc; i++)
		if (!is_name(argv[i]))
			return refuse();

	r = measure(&b, argc - optind, argv + optind, &err);
	close_dev(&b);
	checkpoint_free(b.checkpoint);
	free(b.made_dir);
	if (r < 0)
		fprintf(stderr, "bench: %s\n", err.text[0] ? err.text : strerror(-r));
	return r < 0 || b.n_errors > 0;
}
