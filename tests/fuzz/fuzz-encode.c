/*
 * Any bytes as text, in a tokenizer of the 256 bytes and a few merges: without
 * added tokens the ids decode to the repaired text; streaming equals whole.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/wire/ownership.h"
#include "client/wire/utf8.h"
#include "daemon/text/bytes.h"
#include "daemon/text/codepoint.h"
#include "daemon/text/split.h"
#include "daemon/text/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char tail[] =
	"\"aa\":256,\"aaaa\":257,\"th\":258,\"the\":259,\"\xc4\xa0\xc4\xa0\":260},"
	"\"merges\":[\"a a\",\"aa aa\",\"t h\",\"th e\",\"\xc4\xa0 \xc4\xa0\"]},"
	"\"added_tokens\":["
	"{\"id\":261,\"content\":\"<a>\",\"special\":true},"
	"{\"id\":262,\"content\":\"<l>\",\"lstrip\":true,\"normalized\":true},"
	"{\"id\":263,\"content\":\"<r>\",\"rstrip\":true},"
	"{\"id\":264,\"content\":\"  \",\"rstrip\":true,\"lstrip\":true},"
	"{\"id\":265,\"content\":\"w\",\"single_word\":true}]}";

static void append_pattern(struct bytes *b)
{
	for (const char *p = SPLIT_PATTERN; *p; p++) {
		if (*p == '\\')
			bytes_append(b, "\\", 1);
		bytes_append(b, p, 1);
	}
}

static struct tokenizer *make(void)
{
	struct bytes b = { 0 };
	struct tokenizer *t = NULL;
	unsigned int next = 0x100;
	char item[32], key[4];

	bytes_append_string(
		&b, "{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":["
		    "{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":{\"Regex\":\"");
	append_pattern(&b);
	bytes_append_string(&b, "\"}},{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
				"\"use_regex\":false}]},\"decoder\":{\"type\":\"ByteLevel\"},"
				"\"model\":{\"type\":\"BPE\",\"vocab\":{");
	for (unsigned int i = 0; i < 256; i++) {
		const bool printable = (i >= 33 && i <= 126) || (i >= 161 && i != 173);
		const size_t n = codepoint_encode(printable ? i : next++, key);

		snprintf(item, sizeof(item), "\"%s%.*s\":%u,", i == '"' || i == '\\' ? "\\" : "",
			 (int)n, key, i);
		bytes_append_string(&b, item);
	}
	bytes_append_string(&b, tail);
	if (tokenizer_parse(b.at, b.n, &t, NULL) < 0)
		abort();
	bytes_deinit(&b);
	return t;
}

static void check(const struct tokenizer *t, struct span text, enum tokenizer_added added)
{
	struct detokenizer d = { 0 };
	struct ids ids = { 0 };
	char *decoded = NULL, *repaired = NULL, piece[64];
	size_t len, n = 0, wanted;

	if (tokenizer_encode(t, text, added, &ids) < 0 ||
	    tokenizer_decode(t, ids.at, ids.n, false, &decoded, &len) < 0 ||
	    utf8_repair(text, &repaired, &wanted) < 0)
		abort();
	if (added == TOKENIZER_ADDED_NONE && (len != wanted || memcmp(decoded, repaired, len) != 0))
		abort();
	for (size_t i = 0; i <= ids.n; i++) {
		const size_t got = i < ids.n ? detokenizer_push(&d, t, ids.at[i], piece)
					     : detokenizer_flush(&d, piece);

		if (n + got > len || memcmp(decoded + n, piece, got) != 0)
			abort();
		n += got;
	}
	if (n != len)
		abort();
	free(decoded);
	free(repaired);
	ids_deinit(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct tokenizer *t;
	const struct span text = { (const char *)data, size };

	if (!t)
		t = make();
	check(t, text, TOKENIZER_ADDED_NONE);
	check(t, text, TOKENIZER_ADDED_PLAIN);
	check(t, text, TOKENIZER_ADDED_ALL);
	return 0;
}
