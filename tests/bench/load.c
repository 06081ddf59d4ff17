/*
 * Loading the model with nothing of it in the page cache, against the slower
 * of reading its files and copying memory. What was loaded last stays, for the
 * figures that follow.
 */
#include <errno.h>

#include "daemon/exec/weights/checkpoint.h"
#include "tests/bench/bandwidth.h"
#include "tests/bench/bench.h"
#include "tests/bench/disk.h"
#include "tests/bench/subject.h"

struct load {
	struct bench *b;
	const struct checkpoint *checkpoint;
	struct bandwidth *memory;
	const char *limit_name;
	struct err *err;
};

/* What the disk gives, of before and after: a disk has moods, and this is the best of them. */
static int read_disk(struct load *l, double *best)
{
	double rate;
	int r = disk_forget(l->checkpoint, l->err);

	if (r == 0)
		r = disk_read(l->checkpoint, &rate, l->err);
	if (r == 0)
		*best = MAX(*best, rate);
	return r;
}

static int once(void *userdata, double *ret_value, double *ret_limit)
{
	struct load *l = userdata;
	const double copy = bandwidth_copy(l->memory);
	struct subject *subject;
	double disk = 0;
	int r;

	bench_drop_subject(l->b);
	r = read_disk(l, &disk);
	if (r == 0)
		r = bench_subject(l->b, &subject, l->err);
	if (r == 0)
		r = read_disk(l, &disk);
	if (r < 0)
		return r;
	*ret_value = (double)l->checkpoint->bytes / subject_load_s(subject) / 1e9;
	*ret_limit = MIN(disk, copy) / 1e9;
	l->limit_name = disk < copy ? "O_DIRECT read" : "copy";
	return 0;
}

static int measure(struct bench *b, const struct bench_figure *figure, struct err *err)
{
	struct bench_row row = { .name = figure->name, .unit = "GB/s", .kind = LIMIT_CEILING };
	struct load l = { .b = b, .err = err };
	int r;

	r = bench_checkpoint(b, &l.checkpoint, err);
	if (r == 0)
		r = bench_memory(b, &l.memory, err);
	if (r < 0)
		return r;
	r = bench_rounds(b, 1, once, &l, &row);
	if (r == -EINVAL || r == -ENOTSUP)
		return bench_skip(figure->name, "%s", err->text);
	if (r < 0)
		return r;
	row.limit_name = l.limit_name;
	row.gbs = row.value;
	bench_print(b, &row);
	return 0;
}

const struct bench_figure figures_load[] = {
	{ "load", "the model, from the disk to ready", measure, 0, false },
	{ 0 },
};
