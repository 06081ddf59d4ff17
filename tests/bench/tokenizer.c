/*
 * Text that a tokenizer makes into ids in a second, on one thread: prose, and
 * of what would be quadratic in a careless one, whichever is slowest.
 */
#include "daemon/text/tokenizer.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

#include "tests/bench/bench.h"
#include "tests/bench/random.h"

#define TEXT_BYTES (1u << 20)
#define TIMES 2 /* in a round */
#define TOKENIZER "tests/golden/tokenizer/tokenizer.json"
#define PROSE "README.md"

struct texts {
	struct tokenizer *tokenizer;
	char *text;   /* [TEXT_BYTES] */
	double prose; /* its bytes per second */
};

/* Fills the text by repeating the file. */
static int read_prose(char *text, struct err *err)
{
	char path[PATH_MAX];
	_cleanup_(fclosep) FILE *f = NULL;
	size_t n;

	bench_source(PROSE, path);
	f = fopen(path, "re");
	n = f ? fread(text, 1, TEXT_BYTES, f) : 0;
	if (n == 0)
		return err_set(err, -ENOENT, "cannot read '%s'", path);
	for (size_t i = n; i < TEXT_BYTES; i++)
		text[i] = text[i - n];
	return 0;
}

static int encode(const struct texts *t, double *ret_rate)
{
	const double from = bench_now_s();
	struct ids ids = { 0 };
	const int r = tokenizer_encode(t->tokenizer, (struct span){ t->text, TEXT_BYTES },
				       TOKENIZER_ADDED_ALL, &ids);

	*ret_rate = TEXT_BYTES / (bench_now_s() - from);
	ids_deinit(&ids);
	return r;
}

static int prose_once(void *texts, double *ret_value, double *ret_limit)
{
	const int r = encode(texts, ret_value);

	(void)ret_limit;
	*ret_value /= 1e6;
	return r;
}

/* The slowest of all; the text is filled afresh. */
static int worst_once(void *userdata, double *ret_value, double *ret_limit)
{
	static const char *const repeated[] = { "a", "7", " ", "\n", "!", "\xe4\xbd\xa0", "ab" };
	struct texts *t = userdata;
	uint64_t random = 1;
	double rate, worst;
	int r;

	for (size_t k = 0; k < TEXT_BYTES; k++)
		t->text[k] = (char)('a' + random_below(&random, 26));
	r = encode(t, &worst);
	for (size_t i = 0; i < ARRAY_SIZE(repeated) && r == 0; i++) {
		for (size_t k = 0; k < TEXT_BYTES; k++)
			t->text[k] = repeated[i][k % strlen(repeated[i])];
		r = encode(t, &rate);
		worst = MIN(worst, rate);
	}
	*ret_value = worst / 1e6;
	*ret_limit = t->prose;
	return r;
}

static int measure_texts(struct bench *b, const struct bench_figure *figure, struct texts *t,
			 struct err *err)
{
	struct bench_row row = { .name = figure->name, .unit = "MB/s" };
	char path[PATH_MAX];
	int r;

	bench_source(TOKENIZER, path);
	if (access(path, R_OK) < 0)
		return bench_skip(figure->name, "there is no '%s'; srcdir=DIR says where it is",
				  path);
	r = tokenizer_open(path, &t->tokenizer, err);
	if (r == 0)
		r = read_prose(t->text, err);
	if (r == 0)
		r = bench_rounds(b, TIMES, prose_once, t, &row);
	if (r < 0)
		return err_wrap(err, r, "%s", figure->name);
	bench_print(b, &row);

	t->prose = row.value;
	row.name = "tokenizer-worst";
	row.kind = LIMIT_WANTED;
	row.limit_name = "prose";
	r = bench_rounds(b, 1, worst_once, t, &row);
	if (r < 0)
		return err_wrap(err, r, "%s", row.name);
	bench_print(b, &row);
	return 0;
}

static int measure(struct bench *b, const struct bench_figure *figure, struct err *err)
{
	_cleanup_(freep) char *text = malloc(TEXT_BYTES);
	struct texts t = { .text = text };
	int r;

	if (!text)
		return err_wrap(err, -ENOMEM, "no memory for text");
	r = measure_texts(b, figure, &t, err);
	tokenizer_free(t.tokenizer);
	return r;
}

const struct bench_figure figures_tokenizer[] = {
	{ "tokenizer", "prose to ids, on one thread; and the worst of texts", measure, 0, false },
	{ 0 },
};
