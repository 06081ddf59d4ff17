/*
 * Puts allocators through traces of what a card holds, and prints how much
 * memory each needs for what is live, what it has reserved and how often it
 * calls the driver. With --bars it says only whether ours keeps its bars;
 * with --stats, whether the model of PyTorch's allocator does what PyTorch did
 * on a GPU (torch-stats.py).
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "tests/bench/replay.h"

#define GIB (1024.0 * 1024 * 1024)
#define ROOM_PERCENT 105 /* of what is live at most: where calls are counted */
#define UTILISATION_BAR 0.99
#define FITS_BAR 1.10
#define STATS_WITHIN 0.02
#define TRACES_MAX 32

static const struct rival *const rivals[] = { &rival_ours, &rival_torch_expandable, &rival_torch,
					      &rival_best_fit, &rival_buddy };
enum { OURS, EXPANDABLE, N_RIVALS = sizeof(rivals) / sizeof(rivals[0]) };

/* Where it fits, a card a little larger than what is live; else as large as it must be. */
static void replay_with_room(const struct rival *rival, const struct trace *t, uint64_t needs,
			     struct outcome *ret)
{
	const uint64_t room = t->peak_live_bytes / 100 * ROOM_PERCENT;

	replay(rival, t, needs > room ? needs : room, ret);
}

static void print_trace(const struct trace *t, uint64_t needs[N_RIVALS])
{
	printf("\n%s: %u objects, at most %.2f GiB live\n\n", t->name, t->n_objects,
	       t->peak_live_bytes / GIB);
	printf("| allocator | needs, GiB | scale that fits | against expandable | live / reserved "
	       "| "
	       "driver calls | with 5 %% room | copied, GiB |\n"
	       "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n");
	for (int i = 0; i < N_RIVALS; i++)
		needs[i] = replay_needs(rivals[i], t);
	for (int i = 0; i < N_RIVALS; i++) {
		struct outcome tight, roomy;

		replay(rivals[i], t, needs[i], &tight);
		replay_with_room(rivals[i], t, needs[i], &roomy);
		printf("| %s | %.2f | %.3f | %.3f | %.4f | %llu | %llu | %.2f |\n", rivals[i]->name,
		       needs[i] / GIB, (double)t->peak_live_bytes / needs[i],
		       (double)needs[EXPANDABLE] / needs[i],
		       (double)t->peak_live_bytes / tight.peak_reserved_bytes,
		       (unsigned long long)tight.end.calls, (unsigned long long)roomy.end.calls,
		       tight.end.copied_bytes / GIB);
	}
	fflush(stdout);
}

/* Returns how many bars are missed. */
static int print_all(struct trace *const *traces, int n)
{
	double product[N_RIVALS], utilisation = 1, worst = INFINITY, mean;

	for (int i = 0; i < N_RIVALS; i++)
		product[i] = 1;
	for (int k = 0; k < n; k++) {
		uint64_t needs[N_RIVALS];

		print_trace(traces[k], needs);
		for (int i = 0; i < N_RIVALS; i++)
			product[i] *= (double)needs[EXPANDABLE] / needs[i];
		utilisation = fmin(utilisation, (double)traces[k]->peak_live_bytes / needs[OURS]);
		worst = fmin(worst, (double)needs[EXPANDABLE] / needs[OURS]);
	}
	printf("\nGeometric mean of the scale that fits, against expandable segments:\n\n");
	for (int i = 0; i < N_RIVALS; i++)
		printf("- %s: %.3f\n", rivals[i]->name, pow(product[i], 1.0 / n));
	mean = pow(product[OURS], 1.0 / n);
	printf("\nBars of %s: utilisation at least %.2f on every trace: %s (%.4f); never below "
	       "expandable "
	       "segments: %s (%.3f); %.2f of them in the mean: %s (%.3f).\n",
	       rivals[OURS]->name, UTILISATION_BAR,
	       utilisation >= UTILISATION_BAR ? "kept" : "missed", utilisation,
	       worst >= 1 ? "kept" : "missed", worst, FITS_BAR,
	       mean >= FITS_BAR ? "kept" : "missed", mean);
	return (utilisation < UTILISATION_BAR) + (worst < 1) + (mean < FITS_BAR);
}

/* For make check: the bar for which nothing has to be searched. */
static int check_bars(struct trace *const *traces, int n)
{
	int bad = 0;

	for (int k = 0; k < n; k++) {
		const struct trace *t = traces[k];
		struct outcome o;

		replay(rivals[OURS], t, t->peak_live_bytes / UTILISATION_BAR, &o);
		printf("%s %s fits in %.4f of what is live, with %.4f reserved\n",
		       o.fits ? "ok" : "not ok", t->name, 1 / UTILISATION_BAR,
		       (double)o.peak_reserved_bytes / t->peak_live_bytes);
		bad += !o.fits;
	}
	return bad;
}

static double off(uint64_t model, uint64_t measured)
{
	return measured ? fabs((double)model - (double)measured) / (double)measured : model > 0;
}

static uint64_t number(const json_t *row, const char *key)
{
	const json_t *value = json_object_get(row, key);

	return json_is_integer(value) ? (uint64_t)json_integer_value(value) : 0;
}

/* One row of torch-stats.py. Returns by what share the model's bytes are off. */
static double compare_row(const json_t *row, const struct trace *t)
{
	const char *mode = json_string_value(json_object_get(row, "mode"));
	const bool is_expandable = mode && strcmp(mode, "expandable") == 0;
	const bool fitted = json_is_null(json_object_get(row, "out_of_memory_at"));
	struct outcome o;
	double reserved, allocated;

	replay(is_expandable ? &rival_torch_expandable_fraction : &rival_torch_fraction, t,
	       number(row, "limit_bytes"), &o);
	reserved = off(o.peak_reserved_bytes, number(row, "peak_reserved_bytes"));
	allocated = off(o.peak_allocated_bytes, number(row, "peak_allocated_bytes"));
	printf("| %s | %s | %.2f | %.3f | %.3f | %.2f %% | %llu | %llu | %s |\n", t->name,
	       mode ? mode : "?", number(row, "limit_bytes") / GIB,
	       number(row, "peak_reserved_bytes") / GIB, o.peak_reserved_bytes / GIB,
	       100 * reserved, (unsigned long long)number(row, "device_allocs"),
	       (unsigned long long)o.end.maps,
	       fitted == o.fits ? (fitted ? "fits" : "does not fit") : "DIFFERS");
	return fitted == o.fits ? fmax(reserved, allocated) : INFINITY;
}

static void compare_stats(const char *path, struct trace *const *traces, int n)
{
	json_t *stats = path ? json_load_file(path, 0, NULL) : NULL;
	const json_t *rows = json_object_get(stats, "rows"), *row;
	double worst = 0;
	uint32_t n_rows = 0;
	size_t i;

	if (json_is_array(rows))
		printf("\nThe model of PyTorch's allocator against memory_stats() of PyTorch %s on "
		       "one %s:\n\n"
		       "| trace | mode | limit, GiB | reserved at most | the model's | off by | "
		       "device_allocs | the model's | |\n"
		       "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n",
		       json_string_value(json_object_get(stats, "torch")),
		       json_string_value(json_object_get(stats, "device")));
	json_array_foreach(rows, i, row) {
		const char *name = json_string_value(json_object_get(row, "trace"));

		for (int k = 0; name && k < n; k++)
			if (strcmp(traces[k]->name, name) == 0) {
				worst = fmax(worst, compare_row(row, traces[k]));
				n_rows++;
			}
	}
	if (n_rows > 0 && worst <= STATS_WITHIN)
		printf("\nPyTorch's model is validated: %u runs, at most %.2f %% off.\n", n_rows,
		       100 * worst);
	else if (n_rows > 0 && isinf(worst))
		printf("\nPyTorch's model is unvalidated: in one of %u runs it differs in what "
		       "fits.\n",
		       n_rows);
	else if (n_rows > 0)
		printf("\nPyTorch's model is unvalidated: of %u runs one is %.2f %% off.\n", n_rows,
		       100 * worst);
	else
		printf("\nPyTorch's model is unvalidated: it was not compared with PyTorch on a "
		       "GPU.\n");
	json_decref(stats);
}

int main(int argc, char **argv)
{
	struct trace *traces[TRACES_MAX];
	const char *stats = NULL;
	bool bars = false;
	int n = 0, r = 0;

	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--bars") == 0)
			bars = true;
		else if (strcmp(argv[i], "--stats") == 0 && i + 1 < argc)
			stats = argv[++i];
		else if (argv[i][0] != '-' && n < TRACES_MAX)
			traces[n++] = trace_read(argv[i]);
		else
			n = -TRACES_MAX;
	}
	if (n <= 0) {
		fputs("usage: compare-allocators [--bars] [--stats FILE] TRACE…\n", stderr);
		return 64;
	}
	if (bars) {
		r = check_bars(traces, n);
	} else {
		print_all(traces, n);
		compare_stats(stats, traces, n);
	}
	while (n > 0)
		trace_free(traces[--n]);
	return r > 0;
}
