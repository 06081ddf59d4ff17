/*
 * The sampler of one slot: its parameters, how often each token has occurred,
 * and the list of candidates that the cuts and the draw work on.
 *
 * Nothing is ever sorted whole: a cut or a draw only has to know where a rank
 * or a mass is reached in falling order, which partitioning finds in linear
 * time (see reach_rank() and reach_mass()).
 */
#include "daemon/exec/sample/sampler.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <string.h>

#define GREEDY_BELOW 1e-5
#define HISTORY_FIRST 256
#define NEGLIGIBLE (-60.0) /* e^-60 is lost beside 1, even a million times */

/* @value: a logit while cutting by rank, then a probability that is not yet normalised. */
struct candidate {
	double value;
	uint32_t id;
};

struct count {
	uint32_t prompt, output;
};

struct sampler {
	struct step_sampler params;
	uint32_t *bias_ids;
	float *bias_values;
	uint32_t vocab;

	uint32_t length;   /* tokens pushed */
	uint32_t *history; /* with penalties only: the tokens themselves, */
	size_t history_cap;
	struct count *counts; /* and how often each id is among them, [vocab] */

	struct candidate *candidates; /* [vocab_real]; memory is touched as far as it is needed */
};

static bool is_penalised(const struct sampler *s)
{
	return s->params.repetition != 1 || s->params.frequency != 0 || s->params.presence != 0;
}

static bool is_valid(const struct step_sampler *p, const uint32_t *bias_ids,
		     const float *bias_values, uint32_t vocab)
{
	if (!isfinite(p->temperature) || p->temperature < 0)
		return false;
	if (!(p->top_p >= 0 && p->top_p <= 1) || !(p->min_p >= 0 && p->min_p <= 1))
		return false;
	if (!isfinite(p->repetition) || p->repetition <= 0)
		return false;
	if (!isfinite(p->frequency) || !isfinite(p->presence))
		return false;
	if (p->vocab_real == 0 || p->vocab_real > vocab)
		return false;
	if (p->n_stop_ids > STEP_STOP_IDS_MAX || p->n_bias > STEP_BIAS_MAX)
		return false;
	if (p->n_bias > 0 && (!bias_ids || !bias_values))
		return false;
	for (uint32_t i = 0; i < p->n_bias; i++)
		if (isnan(bias_values[i]) || bias_values[i] == INFINITY)
			return false;
	return true;
}

int sampler_new(const struct step_sampler *params, const uint32_t *bias_ids,
		const float *bias_values, uint32_t vocab, struct sampler **ret)
{
	_cleanup_(sampler_freep) struct sampler *s = NULL;
	const size_t n_bias = params->n_bias;

	if (!is_valid(params, bias_ids, bias_values, vocab))
		return -EINVAL;

	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->params = *params;
	s->vocab = vocab;

	if (n_bias > 0) {
		s->bias_ids = malloc(n_bias * sizeof(*s->bias_ids));
		s->bias_values = malloc(n_bias * sizeof(*s->bias_values));
		if (!s->bias_ids || !s->bias_values)
			return -ENOMEM;
		memcpy(s->bias_ids, bias_ids, n_bias * sizeof(*s->bias_ids));
		memcpy(s->bias_values, bias_values, n_bias * sizeof(*s->bias_values));
	}

	if (is_penalised(s)) {
		s->counts = calloc(vocab, sizeof(*s->counts));
		if (!s->counts)
			return -ENOMEM;
	}

	s->candidates = malloc(params->vocab_real * sizeof(*s->candidates));
	if (!s->candidates)
		return -ENOMEM;

	*ret = steal(s);
	return 0;
}

struct sampler *sampler_free(struct sampler *s)
{
	if (!s)
		return NULL;
	free(s->bias_ids);
	free(s->bias_values);
	free(s->history);
	free(s->counts);
	free(s->candidates);
	free(s);
	return NULL;
}

static int reserve_history(struct sampler *s, size_t n)
{
	size_t cap = MAX(s->history_cap, HISTORY_FIRST);
	uint32_t *history;

	if (n <= s->history_cap)
		return 0;
	while (cap < n)
		cap *= 2;
	history = realloc(s->history, cap * sizeof(*history));
	if (!history)
		return -ENOMEM;
	s->history = history;
	s->history_cap = cap;
	return 0;
}

int sampler_push(struct sampler *s, const uint32_t *ids, uint32_t n)
{
	int r;

	if (n > UINT32_MAX - s->length)
		return -EINVAL;
	for (uint32_t i = 0; i < n; i++)
		if (ids[i] >= s->vocab)
			return -EINVAL;

	if (s->counts) {
		r = reserve_history(s, (size_t)s->length + n);
		if (r < 0)
			return r;
		for (uint32_t i = 0; i < n; i++) {
			struct count *count = &s->counts[ids[i]];

			s->history[s->length + i] = ids[i];
			if (s->length + i < s->params.n_prompt)
				count->prompt++;
			else
				count->output++;
		}
	}
	s->length += n;
	return 0;
}

void sampler_truncate(struct sampler *s, uint32_t length)
{
	if (length >= s->length)
		return;
	if (s->counts) {
		for (uint32_t i = length; i < s->length; i++) {
			struct count *count = &s->counts[s->history[i]];

			if (i < s->params.n_prompt)
				count->prompt--;
			else
				count->output--;
		}
	}
	s->length = length;
}

/* Infinities above would turn differences into NaN; NaN itself is never chosen. */
static inline double logit_value(float logit)
{
	if (isnan(logit))
		return -INFINITY;
	return MIN(logit, FLT_MAX);
}

static bool stops_are_masked(const struct sampler *s)
{
	const uint32_t n_prompt = s->params.n_prompt;
	const uint32_t n_output = s->length > n_prompt ? s->length - n_prompt : 0;

	return s->params.n_stop_ids > 0 && n_output < s->params.min_tokens;
}

static double penalise(const struct step_sampler *p, const struct count *count, double z)
{
	if (count->prompt || count->output)
		z = z > 0 ? z / p->repetition : z * p->repetition;
	if (count->output)
		z = z - p->frequency * count->output - p->presence;
	return z;
}

/* Makes a candidate of every id below vocab_real, in order of id, dropped ones at -inf. */
static void list_all(struct sampler *s, const float *logits)
{
	const struct step_sampler *p = &s->params;
	struct candidate *c = s->candidates;

	for (uint32_t i = 0; i < p->vocab_real; i++)
		c[i] = (struct candidate){ .value = logit_value(logits[i]), .id = i };

	for (uint32_t i = 0; i < p->n_bias; i++)
		if (s->bias_ids[i] < p->vocab_real)
			c[s->bias_ids[i]].value += s->bias_values[i];

	if (s->counts)
		for (uint32_t i = 0; i < p->vocab_real; i++)
			c[i].value = penalise(p, &s->counts[i], c[i].value);

	if (stops_are_masked(s))
		for (uint32_t i = 0; i < p->n_stop_ids; i++)
			if (p->stop_ids[i] < p->vocab_real)
				c[p->stop_ids[i]].value = -INFINITY;
}

/* Whether logits reach the temperature as they are. */
static bool is_plain(const struct sampler *s)
{
	return s->params.n_bias == 0 && !s->counts && !stops_are_masked(s);
}

/* The lowest id that may be sampled at all: the choice when no logit says anything. */
static uint32_t first_allowed(const struct sampler *s)
{
	const struct step_sampler *p = &s->params;

	if (!stops_are_masked(s))
		return 0;
	for (uint32_t id = 0; id < p->vocab_real; id++) {
		bool stop = false;

		for (uint32_t i = 0; i < p->n_stop_ids; i++)
			stop |= p->stop_ids[i] == id;
		if (!stop)
			return id;
	}
	return 0;
}

static uint32_t best_logit(const float *logits, uint32_t n)
{
	uint32_t best = UINT32_MAX;
	float most = -INFINITY;

	for (uint32_t i = 0; i < n; i++) {
		if (logits[i] > most) {
			most = logits[i];
			best = i;
		}
	}
	return best;
}

static uint32_t best_candidate(const struct candidate *c, uint32_t n)
{
	uint32_t best = UINT32_MAX;
	double most = -INFINITY;

	for (uint32_t i = 0; i < n; i++) {
		if (c[i].value > most) {
			most = c[i].value;
			best = i;
		}
	}
	return best;
}

/* Index of the largest after the penalties, the lowest on ties; lists the candidates unless plain. */
static uint32_t best_of_all(struct sampler *s, const float *logits)
{
	if (is_plain(s))
		return best_logit(logits, s->params.vocab_real);
	list_all(s, logits);
	return best_candidate(s->candidates, s->params.vocab_real);
}

/*
 * Fills the list with what min_p leaves, values divided by the temperature
 * and counted from the largest. Returns how many; 0: every logit is -inf.
 */
static uint32_t list_likely(struct sampler *s, const float *logits)
{
	const struct step_sampler *p = &s->params;
	const uint32_t best = best_of_all(s, logits);
	const double least = p->min_p > 0 ? log(p->min_p) : -DBL_MAX;
	struct candidate *c = s->candidates;
	uint32_t n = 0;
	double most;

	if (best == UINT32_MAX)
		return 0;

	if (is_plain(s)) {
		most = logit_value(logits[best]) / p->temperature;
		for (uint32_t i = 0; i < p->vocab_real; i++) {
			const double value = logit_value(logits[i]) / p->temperature - most;

			if (value >= least)
				c[n++] = (struct candidate){ .value = value, .id = i };
		}
		return n;
	}

	most = c[best].value / p->temperature;
	for (uint32_t i = 0; i < p->vocab_real; i++) {
		const double value = c[i].value / p->temperature - most;

		if (value >= least)
			c[n++] = (struct candidate){ .value = value, .id = i };
	}
	return n;
}

static inline bool is_before(const struct candidate *a, const struct candidate *b)
{
	return a->value > b->value || (a->value == b->value && a->id < b->id);
}

static inline void swap(struct candidate *a, struct candidate *b)
{
	const struct candidate t = *a;

	*a = *b;
	*b = t;
}

/* Moves to the front of @c what comes before one of its members, then that one. Returns its index. */
static uint32_t partition(struct candidate *c, uint32_t n)
{
	struct candidate *a = &c[n / 4], *b = &c[n / 2], *d = &c[n - 1 - n / 4], *pivot;
	uint32_t at = 0;

	if (is_before(a, b))
		pivot = is_before(b, d) ? b : is_before(a, d) ? d : a;
	else
		pivot = is_before(a, d) ? a : is_before(b, d) ? d : b;

	swap(pivot, &c[n - 1]);
	for (uint32_t i = 0; i < n - 1; i++)
		if (is_before(&c[i], &c[n - 1]))
			swap(&c[i], &c[at++]);
	swap(&c[at], &c[n - 1]);
	return at;
}

/* Reorders so that c[rank] is the one that stands there in falling order, larger ones before it. */
static void reach_rank(struct candidate *c, uint32_t n, uint32_t rank)
{
	uint32_t from = 0;

	while (n - from > 1) {
		const uint32_t at = from + partition(c + from, n - from);

		if (at == rank)
			return;
		if (at > rank)
			n = at;
		else
			from = at + 1;
	}
}

/*
 * Reorders so that c[result] is the first, in falling order, up to and with
 * which the values add up to @mass (or to more than it, if @beyond), larger
 * ones before it. The last, if rounding hides the mass. *ret_sum is that sum.
 */
static uint32_t reach_mass(struct candidate *c, uint32_t n, double mass, bool beyond,
			   double *ret_sum)
{
	uint32_t from = 0, end = n;
	double before = 0;

	while (end - from > 1) {
		const uint32_t at = from + partition(c + from, end - from);
		double sum = before;

		for (uint32_t i = from; i < at; i++)
			sum += c[i].value;
		if (beyond ? sum > mass : sum >= mass) {
			if (at > from) {
				end = at;
				continue;
			}
		}
		if (beyond ? sum + c[at].value > mass : sum + c[at].value >= mass) {
			*ret_sum = sum + c[at].value;
			return at;
		}
		if (at + 1 == end) {
			*ret_sum = sum + c[at].value;
			return at;
		}
		before = sum + c[at].value;
		from = at + 1;
	}
	*ret_sum = before + c[from].value;
	return from;
}

static uint32_t cut_by_rank(struct candidate *c, uint32_t n, uint32_t top_k)
{
	uint32_t kept = top_k;
	double least;

	if (top_k == 0 || top_k >= n)
		return n;
	reach_rank(c, n, top_k - 1);
	least = c[top_k - 1].value;
	for (uint32_t i = top_k; i < n; i++)
		if (c[i].value == least)
			swap(&c[i], &c[kept++]);
	return kept;
}

/* Leaves in the list what may be drawn, with probabilities that add up to *ret_sum. Returns how many. */
static uint32_t list_survivors(struct sampler *s, const float *logits, double *ret_sum)
{
	const struct step_sampler *p = &s->params;
	struct candidate *c = s->candidates;
	uint32_t n = list_likely(s, logits);
	double sum = 0;

	n = cut_by_rank(c, n, p->top_k);
	for (uint32_t i = 0; i < n; i++) {
		c[i].value = exp(c[i].value);
		sum += c[i].value;
	}
	if (p->top_p < 1 && n > 0)
		n = reach_mass(c, n, p->top_p * sum, false, &sum) + 1;

	*ret_sum = sum;
	return n;
}

uint32_t sampler_sample(struct sampler *s, const float *logits, uint32_t position)
{
	uint32_t n, at;
	double sum;

	if (s->params.temperature < GREEDY_BELOW) {
		at = best_of_all(s, logits);
		return at == UINT32_MAX ? first_allowed(s) : at;
	}

	n = list_survivors(s, logits, &sum);
	if (n == 0)
		return first_allowed(s);
	at = reach_mass(s->candidates, n, sampler_uniform(s->params.seed, position) * sum, true,
			&sum);
	return s->candidates[at].id;
}

void sampler_probs(struct sampler *s, const float *logits, double *probs)
{
	uint32_t n, best;
	double sum;

	memset(probs, 0, s->vocab * sizeof(*probs));

	if (s->params.temperature < GREEDY_BELOW) {
		best = best_of_all(s, logits);
		probs[best == UINT32_MAX ? first_allowed(s) : best] = 1;
		return;
	}

	n = list_survivors(s, logits, &sum);
	if (n == 0)
		probs[first_allowed(s)] = 1;
	for (uint32_t i = 0; i < n; i++)
		probs[s->candidates[i].id] = s->candidates[i].value / sum;
}

/* Natural logarithm of the sum of e^logit; -inf if all of them are. */
static double log_sum(const float *logits, uint32_t n)
{
	const uint32_t best = best_logit(logits, n);
	double most, sum = 0;

	if (best == UINT32_MAX)
		return -INFINITY;
	most = logit_value(logits[best]);
	for (uint32_t i = 0; i < n; i++) {
		const double below = logit_value(logits[i]) - most;

		if (below > NEGLIGIBLE)
			sum += exp(below);
	}
	return most + log(sum);
}

static void list_top(const float *logits, uint32_t vocab_real, uint32_t n_top, double normaliser,
		     uint32_t *ret_ids, float *ret_logprobs)
{
	double top[STEP_TOP_MAX];
	uint32_t n = 0;

	for (uint32_t id = 0; id < vocab_real; id++) {
		const double value = logit_value(logits[id]);
		uint32_t at;

		if (n == n_top && value <= top[n - 1])
			continue;
		for (at = n < n_top ? n++ : n - 1; at > 0 && top[at - 1] < value; at--) {
			top[at] = top[at - 1];
			ret_ids[at] = ret_ids[at - 1];
		}
		top[at] = value;
		ret_ids[at] = id;
	}

	for (uint32_t i = 0; i < n; i++)
		ret_logprobs[i] = top[i] == -INFINITY ? -INFINITY : (float)(top[i] - normaliser);
	for (uint32_t i = n; i < n_top; i++) {
		ret_ids[i] = UINT32_MAX;
		ret_logprobs[i] = -INFINITY;
	}
}

void sampler_logprobs(const float *logits, uint32_t vocab_real, uint32_t id, uint32_t n_top,
		      float *ret_logprob, uint32_t *ret_ids, float *ret_logprobs)
{
	const double normaliser = log_sum(logits, vocab_real);

	*ret_logprob = NAN;
	if (id < vocab_real && logit_value(logits[id]) > -INFINITY)
		*ret_logprob = (float)(logit_value(logits[id]) - normaliser);
	else if (id != UINT32_MAX)
		*ret_logprob = -INFINITY;

	n_top = MIN(n_top, STEP_TOP_MAX);
	if (n_top > 0)
		list_top(logits, vocab_real, n_top, normaliser, ret_ids, ret_logprobs);
}
