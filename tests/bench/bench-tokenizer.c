/*
 * Seconds to read a tokenizer, and megabytes per second that it encodes:
 * English prose, and 2 MB of what would be quadratic in a careless one, with
 * the time per byte over that of prose.
 *
 *	bench-tokenizer TOKENIZER.json PROSE.txt
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "client/wire/ownership.h"
#include "daemon/text/tokenizer.h"

#define TEXT_BYTES (2u << 20)
#define ROUNDS 5

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return now.tv_sec + now.tv_nsec * 1e-9;
}

/* Fills @text by repeating the file; false if there is nothing to read. */
static bool read_prose(const char *path, char *text)
{
	_cleanup_(fclosep) FILE *f = fopen(path, "re");
	size_t n = f ? fread(text, 1, TEXT_BYTES, f) : 0;

	for (size_t i = n; n > 0 && i < TEXT_BYTES; i++)
		text[i] = text[i - n];
	return n > 0;
}

/* Best of some rounds. */
static double encode(const struct tokenizer *t, const char *text, size_t *ret_ids)
{
	double best = 1e9;

	for (int i = 0; i < ROUNDS; i++) {
		struct ids ids = { 0 };
		const double begin = seconds();

		if (tokenizer_encode(t, (struct span){ text, TEXT_BYTES }, TOKENIZER_ADDED_ALL,
				     &ids) < 0)
			return 0;
		best = MIN(best, seconds() - begin);
		*ret_ids = ids.n;
		ids_deinit(&ids);
	}
	return best;
}

static void report(const struct tokenizer *t, const char *name, const char *text, double *prose)
{
	size_t n_ids = 0;
	const double took = encode(t, text, &n_ids);

	if (*prose == 0)
		*prose = took;
	printf("%-18s %8.1f MB/s  %9zu ids  %5.2f of prose's time\n", name,
	       TEXT_BYTES / took * 1e-6, n_ids, took / *prose);
}

int main(int argc, char **argv)
{
	static const char *const repeated[] = { "a", "7", " ", "\n", "!", "\xe4\xbd\xa0", "ab" };
	static char text[TEXT_BYTES];
	_cleanup_(tokenizer_freep) struct tokenizer *t = NULL;
	struct err err = { 0 };
	double begin = seconds(), prose = 0;
	uint32_t seed = 1;

	if (argc != 3 || !read_prose(argv[2], text)) {
		fprintf(stderr, "usage: bench-tokenizer TOKENIZER.json PROSE.txt\n");
		return 64;
	}
	if (tokenizer_open(argv[1], &t, &err) < 0) {
		fprintf(stderr, "%s\n", err.text);
		return 65;
	}
	printf("%u tokens read in %.3f s\n", tokenizer_size(t), seconds() - begin);
	report(t, "prose", text, &prose);
	for (size_t i = 0; i < ARRAY_SIZE(repeated); i++) {
		for (size_t k = 0; k < TEXT_BYTES; k++)
			text[k] = repeated[i][k % strlen(repeated[i])];
		report(t, repeated[i][0] == '\n' ? "newlines" : repeated[i], text, &prose);
	}
	for (size_t k = 0; k < TEXT_BYTES; k++) {
		seed = seed * 1664525 + 1013904223;
		text[k] = 'a' + (seed >> 16) % 26;
	}
	report(t, "random letters", text, &prose);
	return 0;
}
