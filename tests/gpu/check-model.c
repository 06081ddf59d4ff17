/*
 * The whole model on the linked backend, for a short prompt: what check-fidelity
 * does at length, short enough for the emulator. The prompt at once and in
 * pieces, then token by token, so that a recorded step is replayed as the
 * sequence grows; two sequences of unlike lengths in one step.
 *
 * Usage: check-model [CHECKPOINT…]
 */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "tests/fidelity/rig.h"

#define STEPS 3
#define TOL 0.6 /* of the reference's median error in BF16 */

static int n_passed, n_failed;

static double number(json_t *object, const char *key)
{
	return json_number_value(json_object_get(object, key));
}

static double distance(const float *a, const float *b, uint32_t n)
{
	double sum = 0;

	for (uint32_t i = 0; i < n; i++)
		sum += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
	return sqrt(sum / n);
}

static void judge(const char *name, const char *what, double error, double allowed)
{
	const bool good = error <= allowed;

	printf("%s %s, %s: %.3g of %.3g\n", good ? "ok" : "not ok", name, what, error, allowed);
	fflush(stdout);
	good ? n_passed++ : n_failed++;
}

/* Greedy steps behind the prompt: their margins say which id it has to be. */
static int follow(struct rig *rig, const char *name, json_t *prompt, uint32_t n, float *logits,
		  float *last, uint32_t real, double tol)
{
	json_t *steps = json_object_get(json_object_get(prompt, "greedy"), "steps");
	uint32_t wrong = 0;

	for (uint32_t i = 0; i < STEPS; i++) {
		json_t *step = json_array_get(steps, i);
		const uint32_t want = json_integer_value(json_object_get(step, "id"));
		uint32_t best = 0;
		int r;

		for (uint32_t id = 1; id < real; id++)
			if (last[id] > last[best])
				best = id;
		wrong += best != want && number(step, "margin") >= 4 * tol;
		r = rig_feed(rig, 0, &want, n + i, 1, 1, true, logits);
		if (r < 0)
			return r;
		last = logits;
	}
	judge(name, "steps that went elsewhere", wrong, 0);
	return 0;
}

/* The prompt's last token again, beside the first of another sequence. */
static int beside(struct rig *rig, const char *name, const uint32_t *ids, uint32_t n,
		  const float *whole, uint32_t real, double tol)
{
	const uint32_t two[] = { ids[n - 1], ids[0] }, out[] = { 0, 1 };
	const uint32_t n_pages = (n + RIG_PAGE_TOKENS - 1) / RIG_PAGE_TOKENS;
	const struct seq seqs[] = { { 0, 1, n - 1, n_pages, rig->pages },
				    { 1, 1, 0, 1, rig->pages + n_pages } };
	float *logits = calloc(2 * (size_t)rig->vocab, sizeof(*logits));
	int r;

	r = model_forward(rig->model, two, 2, seqs, 2, out, 2, logits);
	if (r == 0) {
		judge(name, "two sequences, the first",
		      distance(logits, whole + (size_t)(n - 1) * rig->vocab, real), tol);
		judge(name, "two sequences, the second", distance(logits + rig->vocab, whole, real),
		      tol);
	}
	free(logits);
	return r;
}

static int check(struct rig *rig, const char *name, json_t *truth)
{
	json_t *prompt = rig_prompt(truth, "r7");
	const double tol = TOL * number(json_object_get(truth, "noise_floor_bf16"),
					"median_position_rms");
	const uint32_t real = number(truth, "real_vocab_size"), vocab = rig->vocab;
	uint32_t n, *ids = rig_ids(prompt, &n);
	float *want = rig_floats(name, json_string_value(json_object_get(prompt, "logits_file")),
				 (size_t)n * vocab);
	float *whole = calloc((size_t)n * vocab, sizeof(*whole));
	float *pieces = calloc((size_t)n * vocab, sizeof(*pieces));
	int r;

	r = want ? rig_feed(rig, 0, ids, 0, n, n, false, whole) : -ENOENT;
	if (r == 0) {
		judge(name, "at once",
		      distance(whole + (size_t)(n - 1) * vocab, want + (size_t)(n - 1) * vocab,
			       real),
		      tol);
		judge(name, "its first token", distance(whole, want, real), tol);
		r = rig_feed(rig, 0, ids, 0, n, 1, false, pieces);
	}
	for (uint32_t i = 0; r == 0 && i < n; i += n - 1)
		judge(name, "token by token",
		      distance(pieces + (size_t)i * vocab, want + (size_t)i * vocab, real), tol);
	if (r == 0)
		r = beside(rig, name, ids, n, want, real, tol);
	if (r == 0)
		r = follow(rig, name, prompt, n, pieces, whole + (size_t)(n - 1) * vocab, real,
			   tol);
	free(ids);
	free(want);
	free(whole);
	free(pieces);
	return r;
}

int main(int argc, char **argv)
{
	static char *all[] = { NULL, "odd", "glm46" };
	char **names = argc > 1 ? argv : all;
	const int n_names = argc > 1 ? argc : 3;

	for (int i = 1; i < n_names; i++) {
		json_t *truth = rig_truth(names[i]);
		struct rig rig;
		int r;

		r = truth ? rig_open(names[i], isa_best(), 0, 16, 4, &rig) : -ENOENT;
		if (r == 0) {
			r = check(&rig, names[i], truth);
			rig_close(&rig);
		}
		if (r < 0) {
			printf("not ok %s: %s\n", names[i], strerror(-r));
			n_failed++;
		}
		json_decref(truth);
	}
	printf("%d passed, %d failed, 0 skipped\n", n_passed, n_failed);
	return n_failed > 0;
}
