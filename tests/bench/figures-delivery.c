/* What the broker adds: a token's way to its client, processor time a token, and wake-ups at rest. */
#include <errno.h>

#include "tests/bench/bench.h"
#include "tests/bench/delivery.h"
#include "tests/bench/wakeups.h"

#define WAKEUPS_SECONDS 60	/* of the rung that is promised to be silent for that long */
#define WAKEUPS_OTHER_SECONDS 5 /* the rungs below: whoever is silent stays so */
#define CPU_WANTED_US 3

struct rounds {
	struct bench_series p50, p99, echo_p50, echo_p99, p50_ratio, p99_ratio;
	struct bench_series cpu, echo_cpu, cpu_ratio;
};

static void add_round(struct rounds *s, const struct delivery_round *r)
{
	bench_add(&s->p50, r->p50_us);
	bench_add(&s->p99, r->p99_us);
	bench_add(&s->echo_p50, r->echo_p50_us);
	bench_add(&s->echo_p99, r->echo_p99_us);
	bench_add(&s->p50_ratio, r->p50_us / r->echo_p50_us);
	bench_add(&s->p99_ratio, r->p99_us / r->echo_p99_us);
	bench_add(&s->cpu, r->cpu_us);
	bench_add(&s->echo_cpu, r->echo_cpu_us);
	bench_add(&s->cpu_ratio, r->cpu_us / r->echo_cpu_us);
}

static int measure_rounds(struct bench *b, uint32_t n_clients, bool one_connection,
			  struct rounds *ret, struct err *err)
{
	_cleanup_(delivery_closep) struct delivery *d = NULL;
	_cleanup_(freep) char *program = bench_built("steamd");
	struct delivery_options options = {
		.program = program,
		.n_clients = n_clients,
		.one_connection = one_connection,
	};
	struct delivery_round round;
	int r;

	if (!program)
		return -ENOMEM;
	r = bench_model_dir(b, &options.model, err);
	if (r == 0)
		r = delivery_open(&options, &d, err);
	for (uint32_t i = 0; i < b->rounds && r == 0; i++) {
		r = delivery_round(d, &round, err);
		if (r == 0)
			add_round(ret, &round);
	}
	return r;
}

static void fill(struct bench_row *row, const struct bench_series *values,
		 const struct bench_series *limits, const struct bench_series *ratios)
{
	row->value = bench_median(values);
	row->spread = bench_spread(values);
	row->limit = bench_median(limits);
	row->ratio = bench_median(ratios);
}

static int measure_delivery(struct bench *b, const struct bench_figure *f, struct err *err)
{
	_cleanup_(freep) struct rounds *s = calloc(1, sizeof(*s));
	struct bench_row row = { .name = f->name, .unit = "us", .limit_name = "bare echo" };
	char p99[64];
	int r;

	if (!s)
		return -ENOMEM;
	r = measure_rounds(b, f->n, false, s, err);
	if (r < 0)
		return r;
	row.kind = LIMIT_FLOOR;
	fill(&row, &s->p50, &s->echo_p50, &s->p50_ratio);
	bench_print(b, &row);

	snprintf(p99, sizeof(p99), "%s-p99", f->name);
	row.name = p99;
	row.kind = LIMIT_WANTED; /* of so few of either, the one may be luckier */
	row.limit_name = "bare echo p99";
	fill(&row, &s->p99, &s->echo_p99, &s->p99_ratio);
	bench_print(b, &row);
	return 0;
}

static int measure_cpu(struct bench *b, const struct bench_figure *f, struct err *err)
{
	_cleanup_(freep) struct rounds *s = calloc(1, sizeof(*s));
	struct bench_row row = {
		.name = f->name,
		.unit = "us",
		.kind = LIMIT_FLOOR,
		.limit_name = "bare relay",
	};
	int r;

	if (!s)
		return -ENOMEM;
	r = measure_rounds(b, f->n, false, s, err);
	if (r < 0)
		return r;
	fill(&row, &s->cpu, &s->echo_cpu, &s->cpu_ratio);
	bench_print(b, &row);
	return 0;
}

static int measure_cpu_together(struct bench *b, const struct bench_figure *f, struct err *err)
{
	_cleanup_(freep) struct rounds *s = calloc(1, sizeof(*s));
	struct bench_row row = {
		.name = f->name,
		.unit = "us",
		.kind = LIMIT_WANTED,
		.limit_name = "wanted",
		.limit = CPU_WANTED_US,
	};
	int r;

	if (!s)
		return -ENOMEM;
	r = measure_rounds(b, f->n, true, s, err);
	if (r < 0)
		return r;
	row.value = bench_median(&s->cpu);
	row.spread = bench_spread(&s->cpu);
	row.ratio = row.value / row.limit;
	bench_print(b, &row);
	return 0;
}

static int measure_wakeups_on(const char *rung, struct bench *b, const struct bench_figure *f,
			      struct err *err)
{
	_cleanup_(freep) char *program = bench_built("steamd");
	const char *model;
	struct wakeups w;
	int r;

	if (!program)
		return -ENOMEM;
	r = bench_model_dir(b, &model, err);
	if (r == 0)
		r = wakeups_count(program, model, rung, f->n, &w, err);
	if (r < 0)
		return r;
	bench_print(b, &(struct bench_row){
			       .name = f->name,
			       .unit = "1/s",
			       .value = (double)(w.broker + w.executor) / f->n,
			       .kind = LIMIT_NONE,
		       });
	return 0;
}

static int measure_wakeups(struct bench *b, const struct bench_figure *f, struct err *err)
{
	return measure_wakeups_on("quiet", b, f, err);
}

static int measure_wakeups_parked(struct bench *b, const struct bench_figure *f, struct err *err)
{
	return measure_wakeups_on("parked", b, f, err);
}

static int measure_wakeups_gone(struct bench *b, const struct bench_figure *f, struct err *err)
{
	return measure_wakeups_on("gone", b, f, err);
}

const struct bench_figure figures_delivery[] = {
	{ "delivery", "a token from the executor to its client, beside an echo", measure_delivery,
	  1, true },
	{ "delivery-b16", "the same for 16 clients at once", measure_delivery, 16, true },
	{ "broker-cpu", "of the broker, a token, 16 clients", measure_cpu, 16, true },
	{ "broker-cpu-together", "the same, 16 requests of one client", measure_cpu_together, 16,
	  true },
	{ "broker-cpu-b1", "the same, one client: mostly its wake-up", measure_cpu, 1, true },
	{ "wakeups", "of broker and executor, a second, while nobody asks", measure_wakeups,
	  WAKEUPS_SECONDS, true },
	{ "wakeups-parked", "the same, with the weights given back", measure_wakeups_parked,
	  WAKEUPS_OTHER_SECONDS, true },
	{ "wakeups-gone", "the same of the broker alone, when the executor has left",
	  measure_wakeups_gone, WAKEUPS_OTHER_SECONDS, true },
	{ 0 },
};
