/*
 * What the parts of the speed bench share. A figure is what can be asked for
 * by name; measuring it prints one row or a few. Each family of figures is a
 * file with one table of them, listed in bench.c.
 */
#pragma once

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#include "client/wire/err.h"
#include "kernels/backend.h"

#define BENCH_ROUNDS_MAX 1024

/* The same thing measured again and again. */
struct bench_series {
	double values[BENCH_ROUNDS_MAX];
	uint32_t n; /* beyond BENCH_ROUNDS_MAX values are dropped */
};

void bench_add(struct bench_series *s, double value);
/* The value below which @part (0 to 1) of the values lie, or NAN if there are none. */
double bench_quantile(const struct bench_series *s, double part);
/* The middle value, or NAN if there is none. */
double bench_median(const struct bench_series *s);
/* The width of the middle half of the values, over the median; 0 for a single value. */
double bench_spread(const struct bench_series *s);

struct bench_row;
bool bench_is_short(const struct bench_row *row); /* of its bar */

/* Monotonic. */
double bench_now_s(void);

/* What a limit means for the ratio, which is value / limit. */
enum bench_limit {
	LIMIT_NONE,	/* limit and ratio are not looked at */
	LIMIT_CEILING,	/* physical, nothing goes beyond: a ratio over BENCH_RATIO_MAX is the bench's error */
	LIMIT_FLOOR,	/* physical, nothing goes below: a ratio under 1 / BENCH_RATIO_MAX is the bench's error */
	LIMIT_WANTED,	/* no limit of physics: what is wanted, or another figure; any ratio may be */
};
#define BENCH_RATIO_MAX 1.02

/*
 * A line of the table. @ratio is the median of the rounds' own ratios where
 * figure and limit are taken side by side in each round, so that it means
 * more than value / limit on a machine that does other things as well.
 */
struct bench_row {
	const char *name, *unit;
	double value, spread; /* spread: of the value over the rounds, see bench_spread() */
	enum bench_limit kind;
	const char *limit_name;
	double limit, ratio;
	double at_most, at_least; /* a bar for the ratio, and the row says whether it is held; 0: none */
	double gbs, gflops, tokens; /* the same in GB/s, GFLOP/s and tokens/s; 0: means nothing here */
};

struct bandwidth;
struct peaks;
struct subject;
struct checkpoint;

struct bench {
	/* as asked for */
	bool json;
	const char *model;	       /* NULL: one is made, see bench_model_dir() */
	const char *socket, *steamctl; /* socket: of a running daemon, or NULL */
	enum isa isa;
	uint32_t n_threads;	       /* 0: one per core */
	uint32_t rounds;

	uint32_t n_rows, n_errors; /* printed; of them, those whose ratio cannot be */

	/* made when first asked for, see below; figures do not touch them */
	struct dev *dev;
	struct bandwidth *memory;
	struct peaks *peaks;
	struct checkpoint *checkpoint;
	struct subject *subject;
	char *made_dir;
	bool told_machine;
};

/*
 * What can be asked for.
 *
 * measure	prints its rows with bench_print(), or says with bench_skip()
 *		why there are none. Returns 0, or a negative errno that ends
 *		the bench
 * n		what the figures of one function differ in
 * outside	measures processes of its own: the bench has given its device,
 *		model and buffers back, and its thread is not pinned
 */
struct bench_figure {
	const char *name, *help;
	int (*measure)(struct bench *b, const struct bench_figure *figure, struct err *err);
	uint32_t n;
	bool outside;
};

/* The tables; the name of the last entry is NULL. */
extern const struct bench_figure figures_bandwidth[], figures_peaks[], figures_disk[],
	figures_load[], figures_segments[], figures_gemv[], figures_gemm[], figures_attention[],
	figures_router[],
	figures_decode[], figures_prefill[], figures_tokenizer[], figures_memory[],
	figures_delivery[], figures_again[], figures_restart[], figures_echo[], figures_overhead[],
	figures_gateway[];

/*
 * Measures a value and its limit side by side, in the same unit, and adds
 * nothing up itself. Returns 0 or a negative errno.
 */
typedef int (*bench_once_fn)(void *userdata, double *ret_value, double *ret_limit);

/*
 * Calls @once @times in each of the rounds asked for, at least once, and no
 * more when the figure has taken too long; sets value, spread, limit and ratio
 * of @row to the medians. Returns 0 or what @once failed with.
 */
int bench_rounds(const struct bench *b, uint32_t times, bench_once_fn once, void *userdata,
		 struct bench_row *row);

/* Prints the row, and counts it as an error if its ratio cannot be. */
void bench_print(struct bench *b, const struct bench_row *row);
/* Says on stderr why @name has no row. Returns 0, to return it. */
int bench_skip(const char *name, const char *format, ...) _printf_(2, 3);

/* The device, opened with the instruction set and threads asked for; and what it is measured against. */
int bench_dev(struct bench *b, struct dev **ret, struct err *err);
int bench_memory(struct bench *b, struct bandwidth **ret, struct err *err);
int bench_peaks(struct bench *b, struct peaks **ret, struct err *err);

/* The checkpoint: that of --model, or bench-5b, made if it is not there yet. */
int bench_model_dir(struct bench *b, const char **ret, struct err *err);
int bench_checkpoint(struct bench *b, const struct checkpoint **ret, struct err *err);
/* The model, loaded once; and giving it back, for who loads it for himself. */
int bench_subject(struct bench *b, struct subject **ret, struct err *err);
void bench_drop_subject(struct bench *b);

/* The path of a file of the build, @name as from the top of the build directory; free() it. NULL: -ENOMEM. */
char *bench_built(const char *name);
/* Likewise of the sources: $srcdir, or the directory that we are in; into @path of PATH_MAX bytes. */
void bench_source(const char *name, char *path);
