/* Products by cuBLASLt or by kernels of ours: against a library that computes on the host. */
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <unistd.h>

#include "tests/cuemu/matrices.h"

#include "kernels/cuda/choice.h"

extern "C" {
#include "kernels/linear.h"
}

#define FAKE "tests/cuemu/.libs/fake-cublaslt.so"
#define PATH "tests/cuemu/test-choice.kept"
#define COLS 96
#define JOBS 3
#define LAYERS 2
#define MOST 40 /* tokens: buckets of 8, 16, 32 and 40 */

#define TOL_SPLIT (1.0 / 131072) /* as in test-linear.cu */
#define TOL_SUM 2e-6

static void (*behave)(const char *how);
static const char *(*fake_log)(void);
static void (*forget)(void);

static int setup(void **state)
{
	void *library = dlopen(FAKE, RTLD_NOW);

	(void)state;
	if (!library) {
		print_error("%s\n", dlerror());
		return -1;
	}
	behave = (void (*)(const char *))dlsym(library, "fake_blaslt_behave");
	fake_log = (const char *(*)(void))dlsym(library, "fake_blaslt_log");
	forget = (void (*)(void))dlsym(library, "fake_blaslt_forget");
	return behave && fake_log && forget ? 0 : -1;
}

/* Before each test: a library that behaves, and nothing kept. */
static int begin(void **state)
{
	(void)state;
	behave("");
	forget();
	blaslt_library = FAKE;
	choice_budget_us = 600000000;
	unlink(PATH);
	calls_fail(0, cudaSuccess, false);
	return 0;
}

/* Matrices of two layers, three that have x in common, with biases, and one that is added. */
struct layers {
	static constexpr uint32_t rows[JOBS + 1] = { 48, 16, 20, 32 };
	struct rig rig;
	struct matrix m[LAYERS][JOBS + 1];
	std::vector<float> biases, x;
	device_memory dbias, dx, dy[JOBS + 1];
	struct linear_job jobs[LAYERS * JOBS], added[LAYERS];
	struct linear_set sets[2];
	char text[512];

	layers(size_t scratch_bytes = 1 << 20)
	    : rig(2, 227 << 10, scratch_bytes), biases(random_floats(64)),
	      x(random_floats(MOST * COLS)), dbias(64 * 4, biases.data()),
	      dx(x.size() * 4, x.data()), dy{ device_memory(MOST * rows[0] * 4),
					      device_memory(MOST * rows[1] * 4),
					      device_memory(MOST * rows[2] * 4),
					      device_memory(MOST * rows[3] * 4) },
	      text()
	{
		for (uint32_t l = 0; l < LAYERS; l++)
			for (uint32_t i = 0; i <= JOBS; i++) {
				struct linear_job *job = i < JOBS ? &jobs[l * JOBS + i] : &added[l];

				matrix_make(rig.dev, &m[l][i], { DT_BF16, DT_NONE, 0 }, rows[i],
					    COLS);
				*job = {};
				job->w = &m[l][i].packed;
				job->y = batch(dy[i].at, MOST, rows[i]);
				if (i < 2)
					job->bias = batch(dbias.at, 1, rows[i]);
				job->add = i == JOBS;
			}
		sets[0] = { jobs, JOBS, LAYERS, batch(dx.at, MOST, COLS) };
		sets[1] = { added, 1, LAYERS, batch(dx.at, MOST, COLS) };
	}
	int choose(const char *path = NULL, uint32_t n_sets = 2)
	{
		const int r = op_linears_choose(rig.st, sets, n_sets, path, text, sizeof(text));

		dx.write(x.data()); /* which was scratch */
		forget();
		return r;
	}
	int compute(uint32_t layer, uint32_t tokens, bool is_added = false)
	{
		const struct tensor tx = batch(dx.at, tokens, COLS);
		struct linear_job own[JOBS];

		for (uint32_t i = 0; i < JOBS; i++) {
			own[i] = is_added ? added[layer] : jobs[layer * JOBS + i];
			own[i].y.shape[1] = tokens;
		}
		return op_linears(rig.st, own, is_added ? 1 : JOBS, &tx);
	}
	void compare(uint32_t layer, uint32_t i, uint32_t tokens, float was)
	{
		const std::vector<float> y = dy[i].read<float>(rig.st);

		for (uint32_t t = 0; t < tokens; t++)
			for (uint32_t r = 0; r < rows[i]; r++) {
				double want = i < 2 ? biases[r] : was, most = 1e-6 * fabs(want);

				for (uint32_t c = 0; c < COLS; c++) {
					const double v = m[layer][i].values[(size_t)r * COLS + c] *
							 x[t * COLS + c];

					want += v;
					most += fabs(v) * (TOL_SPLIT + TOL_SUM);
				}
				if (!(fabs(y[t * rows[i] + r] - want) <= most))
					fail_msg("matrix %u, %u tokens: y[%u, %u] is %g, not %g", i,
						 tokens, t, r, y[t * rows[i] + r], want);
			}
	}
	/* Of so many tokens at most. */
	void limit(uint32_t tokens)
	{
		for (struct linear_set &set : sets)
			set.x.shape[1] = tokens;
		for (struct linear_job &job : jobs)
			job.y.shape[1] = tokens;
		for (struct linear_job &job : added)
			job.y.shape[1] = tokens;
	}
	void check(uint32_t layer, uint32_t tokens)
	{
		const std::vector<float> was(MOST * rows[JOBS], 2.5f);

		dy[JOBS].write(was.data());
		assert_int_equal(compute(layer, tokens), 0);
		assert_int_equal(compute(layer, tokens, true), 0);
		for (uint32_t i = 0; i <= JOBS; i++)
			compare(layer, i, tokens, i == JOBS ? 2.5f : 0);
	}
	uint32_t way(uint32_t set, uint32_t bucket)
	{
		return rig.st->choice->sets[set].buckets[bucket].entry.way;
	}
};
constexpr uint32_t layers::rows[];

static void the_library_computes_where_it_is_quicker(void **state)
{
	struct layers l;

	(void)state;
	assert_int_equal(l.choose(), 0);
	assert_non_null(strstr(l.text, "cuBLASLt 13.2.3 for 8 of 8 products, 8 of them timed in "));
	for (uint32_t tokens : { 5, 8, 9, 16, 33, 40 }) {
		forget();
		l.check(tokens % 2, tokens);
		assert_true(strlen(fake_log()) > 0);
		assert_null(strstr(fake_log(), "algorithm 0")); /* a slow one */
	}
}

static void few_tokens_and_more_than_were_timed_are_ours(void **state)
{
	struct layers l;

	(void)state;
	l.limit(16);
	assert_int_equal(l.choose(), 0);
	for (uint32_t tokens : { 1, 4, 17, 40 }) {
		l.check(0, tokens);
		assert_string_equal(fake_log(), "");
	}
	l.check(0, 16);
	assert_string_not_equal(fake_log(), "");
}

/* Each way, by what a file says of it. */
static void rewrite(struct layers *l, uint32_t way, uint64_t algorithm)
{
	static struct choicefile_entry entries[CHOICEFILE_ENTRIES_MAX];
	struct choicefile_of of = {};
	uint32_t n = 0;
	FILE *f = fopen(PATH, "r");

	/* of what it is stands behind the magic and two numbers */
	assert_non_null(f);
	assert_int_equal(fseek(f, 16, SEEK_SET), 0);
	assert_int_equal(fread(&of, sizeof(of), 1, f), 1);
	fclose(f);
	n = (uint32_t)choicefile_read(PATH, &of, entries);
	assert_int_equal(n, 8);
	for (uint32_t i = 0; i < n; i++) {
		entries[i].way = way;
		for (uint32_t k = 0; k < entries[i].n_jobs; k++) {
			entries[i].algorithms[k][0] = 0x636c6177;
			entries[i].algorithms[k][1] = algorithm;
			entries[i].algorithms[k][2] = entries[i].rows[k];
			entries[i].algorithms[k][3] = COLS;
		}
	}
	assert_int_equal(choicefile_write(PATH, &of, entries, n), 0);
	st_close(l->rig.st);
	assert_int_equal(st_open(l->rig.dev, 1 << 20, &l->rig.st), 0);
	assert_int_equal(l->choose(PATH), 0);
	assert_non_null(strstr(l->text, ", 0 of them timed in "));
}

static void each_way_is_right_and_is_what_it_says(void **state)
{
	struct layers l;

	(void)state;
	assert_int_equal(l.choose(PATH), 0);
	rewrite(&l, CHOICEFILE_TWICE, 1);
	l.check(0, 9);
	assert_string_equal(fake_log(), "48 x 96, 9 tokens, algorithm 1, bias\n"
					"48 x 96, 9 tokens, algorithm 1, added\n"
					"16 x 96, 9 tokens, algorithm 1, bias\n"
					"16 x 96, 9 tokens, algorithm 1, added\n"
					"20 x 96, 9 tokens, algorithm 1\n"
					"20 x 96, 9 tokens, algorithm 1, added\n"
					"32 x 96, 9 tokens, algorithm 1, added\n"
					"32 x 96, 9 tokens, algorithm 1, added\n");
	rewrite(&l, CHOICEFILE_BESIDE, 1);
	l.check(1, 9);
	assert_string_equal(fake_log(), "48 x 96, 18 tokens, algorithm 1\n"
					"16 x 96, 18 tokens, algorithm 1\n"
					"20 x 96, 18 tokens, algorithm 1\n"
					"32 x 96, 18 tokens, algorithm 1\n");
	rewrite(&l, CHOICEFILE_OWN, 1);
	l.check(0, 9);
	assert_string_equal(fake_log(), "");
}

static void what_the_library_refuses_is_ours(void **state)
{
	struct layers l;

	(void)state;
	assert_int_equal(l.choose(PATH), 0);
	rewrite(&l, CHOICEFILE_TWICE, 2); /* no odd number of tokens */
	for (int i = 0; i < 2; i++) {
		forget();
		l.check(0, 9);
		assert_string_equal(fake_log(), "");
		l.check(0, 10);
		assert_non_null(strstr(fake_log(), "48 x 96, 10 tokens, algorithm 2, bias\n"));
	}
	/* addresses that are aligned less than those that were timed */
	l.jobs[0].y.data = l.dy[0].at + 16;
	forget();
	assert_int_equal(l.compute(0, 10), 0);
	assert_string_equal(fake_log(), "");
}

static int body(struct stream *, void *layers)
{
	return ((struct layers *)layers)->compute(0, 12);
}

static void products_are_recorded_and_replayed(void **state)
{
	struct layers l;
	struct replay *replay;

	(void)state;
	assert_int_equal(l.choose(), 0);
	l.dx.write(std::vector<float>(MOST * COLS, 0).data());
	assert_int_equal(st_record(l.rig.st, body, &l, &replay), 0);
	assert_string_not_equal(fake_log(), "");
	for (int i = 0; i < 2; i++) {
		l.x = random_floats(MOST * COLS);
		l.dx.write(l.x.data());
		assert_int_equal(st_replay(l.rig.st, replay), 0);
		for (uint32_t k = 0; k < JOBS; k++)
			l.compare(0, k, 12, 0);
	}
	replay_free(replay);
}

static size_t taken(void)
{
	size_t available, all;

	assert_int_equal(cudaMemGetInfo(&available, &all), cudaSuccess);
	return all - available;
}

/* What the library works in is scratch that is planned for other operations. */
static void nothing_is_taken_for_the_library(void **state)
{
	struct layers l;
	const size_t before = taken();

	(void)state;
	assert_int_equal(l.choose(), 0);
	assert_int_equal(l.compute(0, 40), 0);
	assert_int_equal(taken(), before);
}

/* All that it can make use of, with GLM-4.5-Air on 1, 2 and 4 GPUs. */
static void a_large_model_leaves_the_library_room(void **state)
{
	struct rig rig(132);

	(void)state;
	for (uint32_t tokens : { 512, 2048 })
		for (uint32_t ranks : { 1, 2, 4 }) {
			const struct op_limits limits = { .tokens = tokens,
							  .dim = 4096,
							  .heads = 96 / ranks,
							  .kv_heads = 8 / ranks,
							  .head_dim = 128,
							  .ffn_dim = 10944 / ranks,
							  .experts = 128,
							  .top_k = 8,
							  .vocab = 151552 / ranks,
							  .max_context = 131072,
							  .moe_ffn_dim = 1408 / ranks };
			const size_t split = split_bytes(tokens, ranks == 4 ? 4096 : 12288 / ranks);

			assert_true(op_scratch(rig.dev, &limits) >= split + CHOICE_ROOM_MAX);
		}
}

static void nothing_is_allocated_while_it_multiplies(void **state)
{
	struct layers l;
	uint64_t launches, before, after;

	(void)state;
	assert_int_equal(l.choose(), 0);
	cuemu_calls(&launches, &before);
	assert_int_equal(l.compute(0, 40), 0);
	assert_int_equal(l.compute(0, 39), 0);
	cuemu_calls(&launches, &after);
	assert_int_equal(after, before);
}

static void a_slow_library_is_left_alone_and_time_is_bounded(void **state)
{
	struct layers l;

	(void)state;
	behave("slow");
	choice_budget_us = 1000000;
	std::swap(l.sets[0], l.sets[1]);
	assert_int_equal(l.choose(PATH, 1), 0);
	assert_non_null(strstr(l.text, "cuBLASLt 13.2.3 for 0 of 4 products, 1 of them timed in "));
	assert_non_null(strstr(l.text, "; no time was left for 3"));
	l.check(0, 40);
	l.check(0, 8);
	assert_string_equal(fake_log(), "");

	/* the next process goes on with what was not timed */
	behave("");
	choice_budget_us = 600000000;
	st_close(l.rig.st);
	assert_int_equal(st_open(l.rig.dev, 1 << 20, &l.rig.st), 0);
	assert_int_equal(l.choose(PATH, 1), 0);
	assert_non_null(strstr(l.text, "cuBLASLt 13.2.3 for 3 of 4 products, 3 of them timed in "));
	assert_int_equal(l.way(0, 3), CHOICEFILE_OWN);
	assert_int_not_equal(l.way(0, 0), CHOICEFILE_OWN);
}

static void a_library_that_is_wrong_is_refused(void **state)
{
	struct layers l;

	(void)state;
	behave("wrong");
	assert_int_equal(l.choose(), 0);
	assert_non_null(strstr(l.text, "cuBLASLt 13.2.3 for 0 of 8 products"));
	assert_non_null(strstr(l.text, " refused, for they differ from ours"));
	l.check(0, 16);
	assert_string_equal(fake_log(), "");
}

static void a_library_without_a_way_is_left_alone(void **state)
{
	struct layers l;

	(void)state;
	behave("none");
	assert_int_equal(l.choose(), 0);
	assert_non_null(strstr(l.text, "cuBLASLt 13.2.3 for 0 of 8 products"));
	l.check(0, 16);
}

static void without_room_there_is_no_library(void **state)
{
	/* what a bucket of 40 leaves of the scratch is less than algorithms want */
	struct layers l(40 * 2 * 128 * 2 + 2 * 2 * 128 * 64 * 4);

	(void)state;
	assert_int_equal(l.choose(), 0);
	l.check(0, 40);
	l.check(0, 8);
}

static void without_the_library_ours_compute_and_it_is_said_why(void **state)
{
	static const struct {
		const char *library, *how, *text;
	} cases[] = {
		{ "libnowhere.so.1", "",
		  "own kernels alone: libnowhere.so.1: cannot open shared object "
		  "file: No such file or directory" },
		{ "libm.so.6", "", "own kernels alone: the library has no cublasLtCreate" },
		{ FAKE, "starts not",
		  "own kernels alone: cuBLASLt's create: CUBLAS_STATUS_NOT_INITIALIZED" },
	};

	(void)state;
	for (const auto &c : cases) {
		struct layers l;

		blaslt_library = c.library;
		behave(c.how);
		assert_int_equal(l.choose(), 0);
		assert_string_equal(l.text, c.text);
		l.check(0, 16);
		assert_string_equal(fake_log(), "");
	}
}

static void what_was_measured_is_kept(void **state)
{
	struct layers l;

	(void)state;
	assert_int_equal(l.choose(PATH), 0);
	assert_non_null(strstr(l.text, ", 8 of them timed in "));
	assert_null(strstr(l.text, "kept"));
	for (int i = 0; i < 2; i++) {
		struct layers again;

		assert_int_equal(again.choose(PATH), 0);
		assert_non_null(strstr(again.text,
				       "cuBLASLt 13.2.3 for 8 of 8 products, 0 of them timed in "));
		again.check(1, 40);
		assert_string_not_equal(fake_log(), "");
	}
}

static void other_shapes_are_kept_beside(void **state)
{
	struct layers l;

	(void)state;
	assert_int_equal(l.choose(PATH, 1), 0);
	assert_non_null(strstr(l.text, "4 of 4 products, 4 of them timed"));
	for (int i = 0; i < 2; i++) {
		struct layers again;

		assert_int_equal(again.choose(PATH), 0);
		assert_non_null(strstr(again.text, i ? "8 of 8 products, 0 of them timed"
						     : "8 of 8 products, 4 of them timed"));
	}
}

static void of_another_device_is_nothing(void **state)
{
	(void)state;
	{
		struct layers l;

		assert_int_equal(l.choose(PATH), 0);
	}
	for (int i = 0; i < 2; i++) {
		struct layers l;

		snprintf(l.rig.dev->product, sizeof(l.rig.dev->product), "another one");
		assert_int_equal(l.choose(PATH), 0);
		if (i == 0)
			assert_non_null(strstr(l.text, "8 of them timed"));
		else
			assert_non_null(strstr(l.text, "0 of them timed"));
		assert_true((i == 0) ==
			    (strstr(l.text, "; what was kept is of another device, driver, "
					    "library or version") != NULL));
	}
}

static void a_damaged_file_is_nothing_and_is_replaced(void **state)
{
	std::vector<char> sound(1 << 16);
	FILE *f;

	(void)state;
	{
		struct layers l;

		assert_int_equal(l.choose(PATH, 1), 0);
	}
	f = fopen(PATH, "r");
	assert_non_null(f);
	sound.resize(fread(sound.data(), 1, sound.size(), f));
	fclose(f);
	assert_int_equal(sound.size(), 288 + 4 * 624);
	for (size_t at :
	     { (size_t)0, (size_t)13, (size_t)280, (size_t)300, sound.size() - 1, sound.size() }) {
		std::vector<char> damaged = sound;
		struct layers l;

		if (at < sound.size())
			damaged[at] ^= 1;
		else
			damaged.pop_back();
		f = fopen(PATH, "w");
		assert_int_equal(fwrite(damaged.data(), 1, damaged.size(), f), damaged.size());
		fclose(f);
		assert_int_equal(l.choose(PATH, 1), 0);
		assert_non_null(strstr(l.text, "4 of them timed"));
		assert_non_null(strstr(l.text, "; what was kept is damaged"));
		l.check(0, 16);
	}
}

/* Every bit of it, and every length. */
static void no_byte_of_the_file_can_be_another(void **state)
{
	struct choicefile_of of = {};
	struct choicefile_entry entries[2] = {}, got[CHOICEFILE_ENTRIES_MAX];
	std::vector<char> sound(288 + 2 * 624);
	FILE *f;

	(void)state;
	strcpy(of.device, "card");
	for (struct choicefile_entry &e : entries)
		e.n_jobs = 1;
	entries[1].tokens = 8;
	assert_int_equal(choicefile_write(PATH, &of, entries, 2), 0);
	assert_int_equal(choicefile_read(PATH, &of, got), 2);
	assert_memory_equal(got, entries, sizeof(entries));
	f = fopen(PATH, "r");
	assert_int_equal(fread(sound.data(), 1, sound.size(), f), sound.size());
	assert_int_equal(fgetc(f), EOF);
	fclose(f);
	for (size_t bit = 0; bit < sound.size() * 8; bit += bit < 288 * 8 ? 1 : 37) {
		std::vector<char> damaged = sound;

		damaged[bit / 8] ^= (char)(1 << bit % 8);
		f = fopen(PATH, "w");
		assert_int_equal(fwrite(damaged.data(), 1, damaged.size(), f), damaged.size());
		fclose(f);
		assert_true(choicefile_read(PATH, &of, got) < 0);
	}
	for (size_t n = 0; n < sound.size(); n += 61) {
		assert_int_equal(truncate(PATH, 0), 0);
		f = fopen(PATH, "w");
		assert_int_equal(fwrite(sound.data(), 1, n, f), n);
		fclose(f);
		assert_int_equal(choicefile_read(PATH, &of, got), -EBADMSG);
	}
	assert_int_equal(choicefile_read("tests/cuemu/nowhere/file", &of, got), -ENOENT);
	entries[0].n_jobs = CHOICEFILE_JOBS_MAX + 1;
	assert_int_equal(choicefile_write(PATH, &of, entries, 2), 0);
	assert_int_equal(choicefile_read(PATH, &of, got), -EBADMSG);
}

static void a_file_that_cannot_be_written_is_said(void **state)
{
	struct layers l;

	(void)state;
	assert_int_equal(l.choose("tests/cuemu/nowhere/file"), 0);
	assert_non_null(strstr(l.text, "; not kept: No such file or directory"));
	l.check(0, 16);
}

/* Whatever call fails, it ends in an error or in kernels of ours, and nothing is left behind. */
static void any_call_may_fail(void **state)
{
	uint64_t n_calls;

	(void)state;
	{
		struct layers l;

		l.limit(8);
		calls_fail(0, cudaSuccess, false);
		assert_int_equal(l.choose(NULL, 1), 0);
		assert_int_equal(l.compute(0, 8), 0);
		n_calls = calls_made();
	}
	assert_true(n_calls > 300);
	for (uint64_t nth = 1; nth <= n_calls; nth += nth < 30 || nth + 20 > n_calls ? 1 : 29)
		for (bool is_memory : { false, true }) {
			struct layers l;
			int r;

			l.limit(8);
			calls_fail(nth, is_memory ? cudaErrorMemoryAllocation : cudaErrorUnknown,
				   false);
			r = l.choose(NULL, 1);
			if (r == 0)
				r = l.compute(0, 8);
			if (is_memory)
				assert_true(r == 0 || r == -ENOMEM || r == -EIO);
			else /* but for what is timed one way or the other all is called each time */
				assert_int_equal(r, calls_lost() ? -EIO : 0);
			calls_fail(0, cudaSuccess, false);
			if (r == 0 && l.rig.st->choice == NULL)
				assert_string_equal(l.text,
						    "own kernels alone: cuBLASLt finds no memory");
			l.check(0, 8);
		}
}

static void a_product_that_fails_loses_the_device(void **state)
{
	struct layers l;

	(void)state;
	assert_int_equal(l.choose(), 0);
	behave("fails");
	assert_int_equal(l.compute(0, 16), -EIO);
	assert_true(calls_lost());
	behave("");
	assert_int_equal(l.compute(0, 16), -EIO);
	calls_fail(0, cudaSuccess, false);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(the_library_computes_where_it_is_quicker, begin),
		cmocka_unit_test_setup(few_tokens_and_more_than_were_timed_are_ours, begin),
		cmocka_unit_test_setup(each_way_is_right_and_is_what_it_says, begin),
		cmocka_unit_test_setup(what_the_library_refuses_is_ours, begin),
		cmocka_unit_test_setup(products_are_recorded_and_replayed, begin),
		cmocka_unit_test_setup(nothing_is_taken_for_the_library, begin),
		cmocka_unit_test_setup(a_large_model_leaves_the_library_room, begin),
		cmocka_unit_test_setup(nothing_is_allocated_while_it_multiplies, begin),
		cmocka_unit_test_setup(a_slow_library_is_left_alone_and_time_is_bounded, begin),
		cmocka_unit_test_setup(a_library_that_is_wrong_is_refused, begin),
		cmocka_unit_test_setup(a_library_without_a_way_is_left_alone, begin),
		cmocka_unit_test_setup(without_room_there_is_no_library, begin),
		cmocka_unit_test_setup(without_the_library_ours_compute_and_it_is_said_why, begin),
		cmocka_unit_test_setup(what_was_measured_is_kept, begin),
		cmocka_unit_test_setup(other_shapes_are_kept_beside, begin),
		cmocka_unit_test_setup(of_another_device_is_nothing, begin),
		cmocka_unit_test_setup(a_damaged_file_is_nothing_and_is_replaced, begin),
		cmocka_unit_test_setup(no_byte_of_the_file_can_be_another, begin),
		cmocka_unit_test_setup(a_file_that_cannot_be_written_is_said, begin),
		cmocka_unit_test_setup(any_call_may_fail, begin),
		cmocka_unit_test_setup(a_product_that_fails_loses_the_device, begin),
	};

	return cmocka_run_group_tests(tests, setup, NULL);
}
