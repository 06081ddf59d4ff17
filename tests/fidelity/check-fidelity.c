/*
 * How close every instruction set comes to exact arithmetic, on every golden
 * checkpoint, and so do several ranks with exact arithmetic and with the best
 * set where a checkpoint can be divided among them, measured in the error of the reference implementation in BF16.
 * Prints a table, each row led by its verdict in the form that tests/driver.sh
 * counts, and what broke the rules of tests/golden/README.md.
 *
 * Usage: check-fidelity [CHECKPOINT…] [isa=NAME…] [write=DIR | read=DIR]
 *	write=DIR	keeps there which experts exact arithmetic chose
 *	read=DIR	takes that from there: for a GPU, which has no such arithmetic
 */
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <string.h>

#include "tests/fidelity/rig.h"

#define TOL_MEDIAN 0.6	   /* of the reference's median: what steamd promises */
#define TOL_KL 1.5	   /* rule 2 */
#define TOL_EXPERTS 0.02   /* rule 2 */
#define TOL_SAME 1.5	   /* rule 3 */
#define TOL_EXACT 1e-3	   /* rule 1; twice that for 'long' */
#define EXPERT_MARGIN 1e-5 /* rule 1 */
#define NEAR_TIE 0.01	   /* rule 4: below this margin another choice of experts is excusable */
#define GREEDY_STEPS 24
#define RANKS_MAX 4
#define PROMPTS_MAX 8
#define EXPERTS_MAX (1u << 24) /* numbers in a file of experts */

static const char *const checkpoints[] = {
	"air", "glm46", "odd", "bf16", "w4all", "w4g128", "long"
};
static const uint32_t chunks[] = { 7, 64 };

/* The expert sets that a prompt chose: [moe layer][token][top_k], each set rising. */
struct experts {
	uint32_t *ids;
	size_t n;
};

/* One checkpoint: its truth, and the sets that exact arithmetic chose. */
struct subject {
	const char *name;
	json_t *truth;
	struct experts exact[PROMPTS_MAX];
	double hf_median, kl_mean, same_fraction, same_rms, same_max;
	double tol_exact;
};

/* What one instruction set did with it. */
struct tally {
	enum isa isa;
	uint32_t n_ranks;
	double *rms; /* of each position with known logits */
	size_t n_rms;
	double kl_sum, max_abs;
	uint32_t n_positions, n_same; /* with the exact expert sets, of all positions */
	uint32_t n_greedy, n_greedy_equal;
	uint32_t n_broken, n_excused;
};

/* Errors over some of a prompt's positions. */
struct errors {
	double sum, max; /* of mean squares; of |e| */
	size_t n;
};

/* One prompt on one instruction set. */
struct trial {
	struct subject *s;
	struct tally *t;
	struct rig *rig;
	json_t *prompt;
	const char *name;
	uint32_t *ids, n;
	uint32_t *out, n_out; /* positions whose logits are computed */
	float *logits;	      /* [n_out][vocab] */
	struct experts experts;
	uint32_t real; /* ids from here on are no tokens */
};

static void _printf_(2, 3) broken(struct trial *t, const char *format, ...)
{
	va_list ap;

	t->t->n_broken++;
	printf("  %s, %s, prompt %s: ", t->s->name, isa_name(t->t->isa), t->name);
	va_start(ap, format);
	vprintf(format, ap);
	va_end(ap);
	printf("\n");
}

static void *allocate(size_t n, size_t bytes)
{
	void *p = calloc(n + 1, bytes);

	if (!p)
		abort();
	return p;
}

/* Where the experts that exact arithmetic chose for a checkpoint are kept: malloc'd. */
static char *experts_path(const char *dir, const char *name)
{
	char *path;

	if (asprintf(&path, "%s/%s.experts", dir, name) < 0)
		abort();
	return path;
}

static bool write_experts(const struct subject *s, const char *dir)
{
	_cleanup_(freep) char *path = experts_path(dir, s->name);
	_cleanup_(fclosep) FILE *f = fopen(path, "we");
	bool good = f;

	for (size_t i = 0; good && i < PROMPTS_MAX; i++) {
		const uint32_t n = s->exact[i].n;

		good = fwrite(&n, sizeof(n), 1, f) == 1 &&
		       fwrite(s->exact[i].ids, sizeof(uint32_t), n, f) == n;
	}
	return good && fflush(f) == 0;
}

static bool read_experts(struct subject *s, const char *dir)
{
	_cleanup_(freep) char *path = experts_path(dir, s->name);
	_cleanup_(fclosep) FILE *f = fopen(path, "re");

	for (size_t i = 0; i < PROMPTS_MAX; i++) {
		uint32_t n;

		if (!f || fread(&n, sizeof(n), 1, f) != 1 || n > EXPERTS_MAX)
			return false;
		s->exact[i] = (struct experts){ n ? allocate(n, sizeof(uint32_t)) : NULL, n };
		if (fread(s->exact[i].ids, sizeof(uint32_t), n, f) != n)
			return false;
	}
	return true;
}

static double number(json_t *object, const char *key)
{
	return json_number_value(json_object_get(object, key));
}

static int by_value(const void *a, const void *b)
{
	const double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static int by_id(const void *a, const void *b)
{
	const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static double median(double *values, size_t n)
{
	if (n == 0)
		return NAN;
	qsort(values, n, sizeof(*values), by_value);
	return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

static double tolerated(const struct trial *t)
{
	return t->t->isa == ISA_REF ? t->s->tol_exact : TOL_SAME * t->s->same_max;
}

/* Where a position's logits are, or NULL. */
static const float *logits_at(const struct trial *t, uint32_t position)
{
	for (uint32_t i = 0; i < t->n_out; i++)
		if (t->out[i] == position)
			return t->logits + (size_t)i * t->rig->vocab;
	return NULL;
}

static double log_sum_exp(const float *logits, uint32_t n)
{
	double top = logits[0], sum = 0;

	for (uint32_t i = 1; i < n; i++)
		top = fmax(top, logits[i]);
	for (uint32_t i = 0; i < n; i++)
		sum += exp(logits[i] - top);
	return top + log(sum);
}

static double divergence(const float *truth, const float *got, uint32_t n)
{
	const double a = log_sum_exp(truth, n), b = log_sum_exp(got, n);
	double sum = 0;

	for (uint32_t i = 0; i < n; i++)
		sum += exp(truth[i] - a) * ((truth[i] - a) - (got[i] - b));
	return sum;
}

static void on_tap(const struct model_tap_data *d, void *userdata)
{
	struct trial *t = userdata;
	const size_t n = (size_t)d->n_tokens * d->width;

	if (d->tap != TAP_ROUTER)
		return;
	t->experts.ids = realloc(t->experts.ids, (t->experts.n + n) * sizeof(uint32_t));
	if (!t->experts.ids)
		abort();
	memcpy(t->experts.ids + t->experts.n, d->experts, n * sizeof(uint32_t));
	for (uint32_t i = 0; i < d->n_tokens; i++)
		qsort(t->experts.ids + t->experts.n + i * d->width, d->width, sizeof(uint32_t),
		      by_id);
	t->experts.n += n;
}

/* Whether @token chose the exact sets in all layers. */
static bool same_experts(const struct trial *t, const struct experts *exact, uint32_t token)
{
	const uint32_t k = t->rig->weights->config.top_k;

	for (size_t at = (size_t)token * k; at < exact->n; at += (size_t)t->n * k)
		if (memcmp(exact->ids + at, t->experts.ids + at, k * sizeof(uint32_t)) != 0)
			return false;
	return true;
}

/* Rule 1: exact arithmetic chooses what the truth says. */
static void check_router(struct trial *t)
{
	json_t *layers = json_object_get(t->prompt, "router"), *layer, *sets, *set, *id;
	json_t *margins = json_object_get(t->prompt, "router_min_margin");
	const uint32_t k = t->rig->weights->config.top_k;
	size_t l, p, i;

	json_array_foreach(layers, l, layer) {
		sets = json_object_get(layer, "experts");
		json_array_foreach(sets, p, set) {
			const uint32_t *got = t->experts.ids + (l * t->n + p) * k;
			uint32_t want[MOE_TOP_K_MAX];

			json_array_foreach(set, i, id)
				want[i] = json_integer_value(id);
			qsort(want, k, sizeof(*want), by_id);
			if (memcmp(want, got, k * sizeof(*want)) != 0 &&
			    json_number_value(json_array_get(margins, p)) >= EXPERT_MARGIN)
				broken(t, "position %zu chose other experts in MoE layer %zu", p,
				       l);
		}
	}
}

static void note(struct errors *e, double mean_square, double max)
{
	e->sum += mean_square;
	e->max = fmax(e->max, max);
	e->n++;
}

/* The first position that chose other experts; the prompt's length if none did. */
static uint32_t first_flip(const struct trial *t, const struct experts *exact)
{
	uint32_t at = 0;

	while (at < t->n && same_experts(t, exact, at))
		at++;
	return at;
}

static bool within(const struct trial *t, const struct errors *e)
{
	return e->n == 0 || (sqrt(e->sum / e->n) <= TOL_SAME * t->s->same_rms &&
			     e->max <= TOL_SAME * t->s->same_max);
}

/*
 * Rule 3. A near-tie that fell the other way reaches the positions behind it
 * through attention, in a short prompt with a large share. If that alone breaks
 * the rule, rule 4 excuses it, and the table counts it.
 */
static void check_same(struct trial *t, const struct errors *same, const struct errors *before,
		       uint32_t flip)
{
	json_t *margin = json_array_get(json_object_get(t->prompt, "router_min_margin"), flip);

	if (within(t, same))
		return;
	if (json_is_number(margin) && json_number_value(margin) < NEAR_TIE && within(t, before)) {
		t->t->n_excused++;
		return;
	}
	broken(t,
	       "rms(e) and max |e| with the same experts are %.3g and %.3g; %.3g and %.3g are "
	       "allowed",
	       sqrt(same->sum / same->n), same->max, TOL_SAME * t->s->same_rms,
	       TOL_SAME * t->s->same_max);
}

static void check_logits(struct trial *t, const struct experts *exact)
{
	json_t *positions = json_object_get(t->prompt, "positions"), *position;
	const uint32_t vocab = t->rig->vocab;
	_cleanup_(freep) float *truth =
		rig_floats(t->s->name, json_string_value(json_object_get(t->prompt, "logits_file")),
			   json_array_size(positions) * vocab);
	const uint32_t flip = first_flip(t, exact);
	struct errors same = { 0 }, before = { 0 };
	size_t i;

	if (!truth) {
		broken(t, "its logits cannot be read");
		return;
	}
	json_array_foreach(positions, i, position) {
		const uint32_t at = json_integer_value(position);
		const float *want = truth + i * vocab, *got = logits_at(t, at);
		double sum = 0, max = 0;

		for (uint32_t j = 0; j < t->real; j++) {
			const double e = (double)got[j] - want[j];

			sum += e * e;
			max = isfinite(e) ? fmax(max, fabs(e)) : INFINITY;
		}
		t->t->rms[t->t->n_rms++] = sqrt(sum / t->real);
		t->t->kl_sum += divergence(want, got, t->real);
		t->t->max_abs = fmax(t->t->max_abs, max);
		if (same_experts(t, exact, at))
			note(&same, sum / t->real, max);
		if (at < flip)
			note(&before, sum / t->real, max);
	}

	if (t->t->isa == ISA_REF) {
		if (!(t->t->max_abs <= t->s->tol_exact))
			broken(t, "max |e| is %.3g; %.3g is allowed", t->t->max_abs,
			       t->s->tol_exact);
		return;
	}
	check_same(t, &same, &before, flip);
}

/* Rule 6, where no near-tie fell the other way (rule 4). */
static void check_logprobs(struct trial *t, const struct experts *exact)
{
	json_t *all = json_object_get(t->prompt, "logprobs"), *one, *pair;
	const double tol = 2 * tolerated(t);
	size_t i, j;

	json_array_foreach(all, i, one) {
		const uint32_t before = json_integer_value(json_object_get(one, "pos")) - 1;
		const float *logits = logits_at(t, before);
		double sum, e;

		if (!logits || !same_experts(t, exact, before))
			continue;
		sum = log_sum_exp(logits, t->real);
		e = logits[json_integer_value(json_object_get(one, "id"))] - sum -
		    number(one, "logprob");
		if (!(fabs(e) <= tol))
			broken(t, "log-probability at %u is off by %.3g; %.3g is allowed",
			       before + 1, e, tol);
		json_array_foreach(json_object_get(one, "top"), j, pair) {
			e = logits[json_integer_value(json_array_get(pair, 0))] - sum -
			    json_number_value(json_array_get(pair, 1));
			if (!(fabs(e) <= tol))
				broken(t,
				       "log-probability %zu of the best at %u is off by %.3g; %.3g "
				       "is "
				       "allowed",
				       j, before + 1, e, tol);
		}
	}
}

/* Rule 5, with the true prefix fed at every step: one miss does not hide the next. */
static int check_greedy(struct trial *t)
{
	json_t *steps = json_object_get(json_object_get(t->prompt, "greedy"), "steps"), *step;
	_cleanup_(freep) float *own = allocate(t->rig->vocab, sizeof(float));
	const float *logits = logits_at(t, t->n - 1);
	size_t i;
	int r;

	json_array_foreach(steps, i, step) {
		const uint32_t want = json_integer_value(json_object_get(step, "id"));
		uint32_t best = 0;

		for (uint32_t id = 1; id < t->real; id++)
			if (logits[id] > logits[best])
				best = id;
		t->t->n_greedy++;
		t->t->n_greedy_equal += best == want;
		if (best != want && number(step, "margin") >= 2 * tolerated(t))
			broken(t, "greedy step %zu is %u instead of %u with a margin of %.3g", i,
			       best, want, number(step, "margin"));
		r = rig_feed(t->rig, 0, &want, t->n + i, 1, 1, true, own);
		if (r < 0)
			return r;
		logits = own;
	}
	return 0;
}

/* The median over positions of how far two runs' logits are apart. */
static double apart(const struct trial *t, const float *a, const float *b)
{
	_cleanup_(freep) double *rms = allocate(t->n, sizeof(*rms));

	for (uint32_t p = 0; p < t->n; p++) {
		double sum = 0;

		for (uint32_t j = 0; j < t->real; j++) {
			const size_t at = (size_t)p * t->rig->vocab + j;

			sum += ((double)a[at] - b[at]) * ((double)a[at] - b[at]);
		}
		rms[p] = sqrt(sum / t->real);
	}
	return median(rms, t->n);
}

/*
 * Rule 7: a prompt in pieces gives the same bits; on a GPU, which adds up in
 * another order for another batch, as good a result, and the same bits again.
 */
static int check_chunks(struct trial *t)
{
	const size_t n = (size_t)t->n * t->rig->vocab;
	_cleanup_(freep) float *pieces = NULL, *again = NULL;
	int r;

	if (t->n_out != t->n) /* 'long': all logits would not fit */
		return 0;
	pieces = allocate(n, sizeof(float));
	again = allocate(n, sizeof(float));
	for (size_t i = 0; i < ARRAY_SIZE(chunks); i++) {
		r = rig_feed(t->rig, 0, t->ids, 0, t->n, chunks[i], false, pieces);
		if (r == 0 && t->t->isa == ISA_CUDA)
			r = rig_feed(t->rig, 0, t->ids, 0, t->n, chunks[i], false, again);
		if (r < 0)
			return r;
		if (t->t->isa != ISA_CUDA) {
			if (memcmp(pieces, t->logits, n * sizeof(float)) != 0)
				broken(t, "in pieces of %u the logits differ", chunks[i]);
			continue;
		}
		if (memcmp(pieces, again, n * sizeof(float)) != 0)
			broken(t, "in pieces of %u the logits differ the second time", chunks[i]);
		if (!(apart(t, pieces, t->logits) <= TOL_MEDIAN * t->s->hf_median))
			broken(t, "in pieces of %u the median difference is %.3g", chunks[i],
			       apart(t, pieces, t->logits));
	}
	return 0;
}

/* The whole prompt in one batch, the experts noted. */
static int prefill(struct trial *t)
{
	const struct seq seq = {
		.n_tokens = t->n,
		.n_pages = (t->n + RIG_PAGE_TOKENS - 1) / RIG_PAGE_TOKENS,
		.pages = t->rig->pages,
	};
	int r;

	model_set_tap(t->rig->model, on_tap, t);
	r = rig_forward(t->rig, t->ids, t->n, &seq, 1, t->out, t->n_out, t->logits);
	model_set_tap(t->rig->model, NULL, NULL);
	return r;
}

static void choose_positions(struct trial *t)
{
	json_t *positions = json_object_get(t->prompt, "positions"), *position;
	const bool all = t->n <= 130;
	size_t i;

	t->n_out = all ? t->n : json_array_size(positions);
	t->out = allocate(t->n_out, sizeof(*t->out));
	for (i = 0; i < t->n_out; i++)
		t->out[i] = i;
	if (!all)
		json_array_foreach(positions, i, position)
			t->out[i] = json_integer_value(position);
	t->logits = allocate((size_t)t->n_out * t->rig->vocab, sizeof(float));
}

static int try_prompt(struct trial *t, struct experts *exact)
{
	int r;

	t->name = json_string_value(json_object_get(t->prompt, "name"));
	t->real = number(t->s->truth, "real_vocab_size");
	t->ids = rig_ids(t->prompt, &t->n);
	choose_positions(t);

	r = prefill(t);
	if (r < 0)
		return r;
	if (t->t->isa == ISA_REF)
		check_router(t);
	if (!exact->ids) { /* the first instruction set is REF: from here on the truth */
		*exact = t->experts;
		t->experts.ids = allocate(exact->n, sizeof(uint32_t));
		memcpy(t->experts.ids, exact->ids, exact->n * sizeof(uint32_t));
	}
	for (uint32_t i = 0; i < t->n; i++)
		t->t->n_same += same_experts(t, exact, i);
	t->t->n_positions += t->n;

	check_logits(t, exact);
	check_logprobs(t, exact);
	r = check_greedy(t);
	return r < 0 ? r : check_chunks(t);
}

/* Rule 2, and the bar that steamd sets itself. */
static void judge(struct subject *s, struct tally *t)
{
	const double ratio = median(t->rms, t->n_rms) / s->hf_median;
	const double kl = t->kl_sum / t->n_rms, same = (double)t->n_same / t->n_positions;
	struct trial whole = { .s = s, .t = t, .name = "all" };
	char label[32];

	if (!(ratio <= TOL_MEDIAN))
		broken(&whole, "the median error is %.3g of the reference's; %.3g is allowed",
		       ratio, TOL_MEDIAN);
	if (!(kl <= TOL_KL * s->kl_mean))
		broken(&whole, "the mean divergence is %.3g; %.3g is allowed", kl,
		       TOL_KL * s->kl_mean);
	if (!(1 - same <= 1 - s->same_fraction + TOL_EXPERTS))
		broken(&whole, "expert sets differ at %.3f of the positions; %.3f is allowed",
		       1 - same, 1 - s->same_fraction + TOL_EXPERTS);
	if (t->n_ranks > 1)
		snprintf(label, sizeof(label), "%s, %u ranks", isa_name(t->isa), t->n_ranks);
	printf("%-6s %-8s %-20s %9.5f %10.2e %11.4f %9u/%-4u %7u\n", t->n_broken ? "not ok" : "ok",
	       s->name, t->n_ranks > 1 ? label : isa_name(t->isa), ratio, t->max_abs, same,
	       t->n_greedy_equal, t->n_greedy, t->n_excused);
	fflush(stdout);
}

static int try_isa(struct subject *s, enum isa isa, uint32_t n_ranks, uint32_t *ret_broken)
{
	json_t *prompts = json_object_get(s->truth, "prompts"), *prompt;
	uint32_t longest = 0, n_positions = 0;
	struct tally t = { .isa = isa, .n_ranks = n_ranks };
	struct rig rig;
	size_t i;
	int r;

	json_array_foreach(prompts, i, prompt) {
		longest = MAX(longest, json_array_size(json_object_get(prompt, "ids")));
		n_positions += json_array_size(json_object_get(prompt, "positions"));
	}
	r = rig_open_ranks(s->name, isa, 0, n_ranks, longest,
			   (longest + GREEDY_STEPS) / RIG_PAGE_TOKENS + 1, &rig);
	if (r < 0)
		return r;
	t.rms = allocate(n_positions, sizeof(double));
	json_array_foreach(prompts, i, prompt) {
		struct trial trial = { .s = s, .t = &t, .rig = &rig, .prompt = prompt };

		if (r == 0)
			r = try_prompt(&trial, &s->exact[i]);
		free(trial.ids);
		free(trial.out);
		free(trial.logits);
		free(trial.experts.ids);
	}
	if (r < 0)
		printf("not ok %s %s: %s\n", s->name, isa_name(isa), strerror(-r));
	else
		judge(s, &t);
	*ret_broken += t.n_broken;
	free(t.rms);
	rig_close(&rig);
	return r;
}

/* What stands behind @key in an argument, or NULL. */
static const char *folder_of(const char *argument, const char *key)
{
	const size_t len = strlen(key);

	return strncmp(argument, key, len) == 0 ? argument + len : NULL;
}

static const char *find_folder(const char *key, int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		if (folder_of(argv[i], key))
			return folder_of(argv[i], key);
	return NULL;
}

static bool is_chosen(const char *name, const char *prefix, int argc, char **argv)
{
	const size_t len = strlen(prefix);
	bool any = false;

	for (int i = 1; i < argc; i++) {
		const bool is_isa = strncmp(argv[i], "isa=", 4) == 0;

		if (is_isa != (len > 0) || folder_of(argv[i], "write=") ||
		    folder_of(argv[i], "read="))
			continue;
		any = true;
		if (strcmp(argv[i] + len, name) == 0)
			return true;
	}
	return !any;
}

/* With the instruction sets that matter; exact arithmetic shows that nothing is left out or there twice. */
static bool try_ranks(struct subject *s, int argc, char **argv, uint32_t *ret_broken)
{
	const enum isa isas[] = { ISA_REF, isa_best() };
	bool failed = false;

	for (uint32_t n_ranks = 2; n_ranks <= RANKS_MAX; n_ranks *= 2) {
		if (rig_divides(s->name, n_ranks) == -ENOTSUP)
			continue;
		for (size_t i = 0; i < ARRAY_SIZE(isas); i++)
			failed |= is_chosen(isa_name(isas[i]), "isa=", argc, argv) &&
				  try_isa(s, isas[i], n_ranks, ret_broken) < 0;
	}
	return !failed;
}

static bool try_checkpoint(const char *name, int argc, char **argv)
{
	struct subject s = { .name = name, .truth = rig_truth(name) };
	json_t *floor = json_object_get(s.truth, "noise_floor_bf16");
	const char *from = find_folder("read=", argc, argv);
	const char *to = find_folder("write=", argc, argv);
	uint32_t n_broken = 0;
	bool failed = false;

	if (!floor || json_array_size(json_object_get(s.truth, "prompts")) > PROMPTS_MAX) {
		printf("not ok %s: truth.json cannot be read\n", name);
		json_decref(s.truth);
		return false;
	}
	s.hf_median = number(floor, "median_position_rms");
	s.kl_mean = number(floor, "kl_mean");
	s.same_fraction = number(floor, "same_experts_fraction");
	s.same_rms = number(floor, "same_experts_rms_worst_prompt");
	s.same_max = number(floor, "same_experts_max_abs");
	s.tol_exact = strcmp(name, "long") == 0 ? 2 * TOL_EXACT : TOL_EXACT;

	if (from && !read_experts(&s, from)) {
		printf("not ok %s: its experts cannot be read in '%s'\n", name, from);
		json_decref(s.truth);
		return false;
	}
	/* REF runs whatever was chosen: it says which experts are the exact ones */
	for (enum isa isa = from ? ISA_REF + 1 : ISA_REF; isa < ISA_N; isa++) {
		if (isa != ISA_REF && !is_chosen(isa_name(isa), "isa=", argc, argv))
			continue;
		if (from && !isa_supported(isa)) /* one program for one backend */
			continue;
		if (!isa_supported(isa)) {
			printf("%-6s %-8s %s: this processor cannot\n", "skip", name,
			       isa_name(isa));
			continue;
		}
		failed |= try_isa(&s, isa, 1, &n_broken) < 0;
	}
	failed |= !from && !try_ranks(&s, argc, argv, &n_broken);
	if (to && !failed && !write_experts(&s, to)) {
		printf("not ok %s: its experts cannot be written in '%s'\n", name, to);
		failed = true;
	}
	for (size_t i = 0; i < PROMPTS_MAX; i++)
		free(s.exact[i].ids);
	json_decref(s.truth);
	return !failed && n_broken == 0;
}

int main(int argc, char **argv)
{
	bool good = true;

	printf("%-6s %-8s %-20s %9s %10s %11s %14s %7s\n", "", "model", "isa", "error/ref",
	       "max |e|", "experts eq", "greedy eq", "excused");
	for (size_t i = 0; i < ARRAY_SIZE(checkpoints); i++)
		if (is_chosen(checkpoints[i], "", argc, argv))
			good &= try_checkpoint(checkpoints[i], argc, argv);
	return good ? 0 : 1;
}
