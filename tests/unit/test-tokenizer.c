/* Encoding and decoding against the reference, for each tokenizer file; then what it has no cases for. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "client/wire/ownership.h"
#include "client/wire/utf8.h"
#include "daemon/text/tokenizer.h"
#include "tests/unit/golden.h"

static const char *const names[] = { "", "_mid", "_small", "_flags" };

static struct tokenizer *open_named(const char *name)
{
	char file[64], path[PATH_MAX];
	struct tokenizer *t = NULL;
	struct err err = { 0 };

	snprintf(file, sizeof(file), "tokenizer/tokenizer%s.json", name);
	golden_path(path, file);
	if (tokenizer_open(path, &t, &err) != 0)
		fail_msg("%s", err.text);
	return t;
}

static json_t *cases_of(const char *name)
{
	char file[64];

	snprintf(file, sizeof(file), "tokenizer/cases%s.json", name);
	return golden_load(file);
}

static struct span span_of_json(const json_t *string)
{
	return (struct span){ json_string_value(string), json_string_length(string) };
}

static void check_ids(const struct ids *ids, const json_t *wanted, const char *what, size_t i)
{
	assert_non_null(wanted);
	if (ids->n != json_array_size(wanted))
		fail_msg("%s of case %zu: %zu ids, not %zu", what, i, ids->n,
			 json_array_size(wanted));
	for (size_t k = 0; k < ids->n; k++)
		if (ids->at[k] != json_integer_value(json_array_get(wanted, k)))
			fail_msg("%s of case %zu: ids[%zu] is %u", what, i, k, ids->at[k]);
}

static void check_encode(const struct tokenizer *t, struct span text, enum tokenizer_added added,
			 const json_t *wanted, const char *what, size_t i)
{
	struct ids ids = { 0 };

	assert_int_equal(tokenizer_encode(t, text, added, &ids), 0);
	check_ids(&ids, wanted, what, i);
	ids_deinit(&ids);
}

static struct ids ids_of_json(const json_t *list)
{
	struct ids ids = { 0 };
	const json_t *id;
	size_t i;

	json_array_foreach(list, i, id) {
		const uint32_t value = json_integer_value(id);

		assert_int_equal(ids_append(&ids, &value, 1), 0);
	}
	return ids;
}

/* Decodes whole, and in a stream that must never show part of a character. */
static void check_decode(const struct tokenizer *t, const json_t *list, bool skip,
			 struct span wanted, size_t i)
{
	struct ids ids = ids_of_json(list);
	struct detokenizer d = { .skip_special = skip };
	char *text = NULL, *stream, *piece = malloc(1 << 16);
	size_t len = 0, n = 0;

	assert_int_equal(tokenizer_decode(t, ids.at, ids.n, skip, &text, &len), 0);
	if (len != wanted.len || memcmp(text, wanted.data, len) != 0)
		fail_msg("case %zu decodes to '%s', not '%.*s'", i, text, SPAN_ARG(wanted));

	stream = calloc(1, len + 64);
	for (size_t k = 0; k <= ids.n; k++) {
		const size_t got = k < ids.n ? detokenizer_push(&d, t, ids.at[k], piece)
					     : detokenizer_flush(&d, piece);

		assert_int_equal(utf8_valid_bytes((struct span){ piece, got }), got);
		assert_true(n + got <= len);
		memcpy(stream + n, piece, got);
		n += got;
	}
	assert_int_equal(n, len);
	assert_memory_equal(stream, text, len);
	free(stream);
	free(piece);
	free(text);
	ids_deinit(&ids);
}

static const json_t *or_else(const json_t *test, const char *name, const json_t *fallback)
{
	const json_t *value = json_object_get(test, name);

	return value ? value : fallback;
}

static void every_text_encodes_as_the_reference_does(void **state)
{
	(void)state;
	for (size_t f = 0; f < ARRAY_SIZE(names); f++) {
		struct tokenizer *t = open_named(names[f]);
		json_t *golden = cases_of(names[f]), *test;
		size_t i;

		assert_true(json_array_size(json_object_get(golden, "encode")) > 100);
		json_array_foreach(json_object_get(golden, "encode"), i, test) {
			const struct span text = span_of_json(json_object_get(test, "text"));
			const json_t *all = json_object_get(test, "ids");
			const json_t *plain = or_else(test, "ids_special_off", all);
			const json_t *whole = json_object_get(test, "ids_with_post_processor");
			struct ids ids = { 0 };

			check_encode(t, text, TOKENIZER_ADDED_ALL, all, "ids", i);
			check_encode(t, text, TOKENIZER_ADDED_PLAIN, plain, "ids_special_off", i);
			if (strcmp(names[f], "_flags") != 0)
				check_encode(t, text, TOKENIZER_ADDED_NONE,
					     or_else(test, "ids_all_added_off", plain),
					     "ids_all_added_off", i);
			assert_int_equal(tokenizer_encode_processed(t, text, &ids), 0);
			check_ids(&ids, whole ? whole : all, "ids_with_post_processor", i);
			ids_deinit(&ids);
		}
		json_decref(golden);
		tokenizer_free(t);
	}
}

static void every_list_of_ids_decodes_as_the_reference_does(void **state)
{
	(void)state;
	for (size_t f = 0; f < ARRAY_SIZE(names); f++) {
		struct tokenizer *t = open_named(names[f]);
		json_t *golden = cases_of(names[f]), *test;
		size_t i;

		json_array_foreach(json_object_get(golden, "encode"), i, test) {
			const json_t *ids = json_object_get(test, "ids");
			const json_t *whole = or_else(test, "decoded",
						      json_object_get(test, "text"));

			check_decode(t, ids, false, span_of_json(whole), i);
			check_decode(t, ids, true,
				     span_of_json(or_else(test, "decoded_skip_special", whole)), i);
		}
		json_array_foreach(json_object_get(golden, "decode"), i, test) {
			const json_t *ids = json_object_get(test, "ids");

			check_decode(t, ids, false, span_of_json(json_object_get(test, "text")), i);
			check_decode(t, ids, true,
				     span_of_json(json_object_get(test, "text_skip_special")), i);
		}
		json_decref(golden);
		tokenizer_free(t);
	}
}

static void every_id_has_the_bytes_of_the_reference(void **state)
{
	(void)state;
	for (size_t f = 0; f < 3; f++) {
		struct tokenizer *t = open_named(names[f]);
		json_t *golden = cases_of(names[f]);
		const json_t *list = json_object_get(golden, "token_bytes_hex"), *hex;
		char seen[4096];
		size_t i;

		assert_int_equal(tokenizer_size(t), json_array_size(list));
		json_array_foreach(list, i, hex) {
			const struct span bytes = tokenizer_bytes(t, i);

			assert_true(bytes.len * 2 < sizeof(seen));
			seen[0] = '\0';
			for (size_t k = 0; k < bytes.len; k++)
				sprintf(seen + 2 * k, "%02x", (uint8_t)bytes.data[k]);
			assert_string_equal(seen, json_string_value(hex));
		}
		json_decref(golden);
		tokenizer_free(t);
	}
}

static void added_tokens_are_told_apart(void **state)
{
	struct tokenizer *t = open_named("");

	(void)state;
	assert_int_equal(tokenizer_size(t), 6036);
	assert_int_equal(tokenizer_added_id(t, "<|endoftext|>"), 6000);
	assert_int_equal(tokenizer_added_id(t, "<|endoftext"), UINT32_MAX);
	assert_true(tokenizer_is_added(t, 6000));
	assert_true(tokenizer_is_special(t, 6000));
	assert_true(tokenizer_is_added(t, tokenizer_added_id(t, "<think>")));
	assert_false(tokenizer_is_special(t, tokenizer_added_id(t, "<think>")));
	assert_false(tokenizer_is_added(t, 5999));
	assert_false(tokenizer_is_added(t, 6036));
	assert_int_equal(tokenizer_bytes(t, 6036).len, 0);
	assert_int_equal(tokenizer_bytes(t, UINT32_MAX).len, 0);
	tokenizer_free(t);
}

static void invalid_bytes_are_encoded_as_replacement_characters(void **state)
{
	struct tokenizer *t = open_named("");
	struct ids bad = { 0 }, good = { 0 };

	(void)state;
	assert_int_equal(
		tokenizer_encode(t, SPAN("a\xe4\xbd z\xff\xc0\x80"), TOKENIZER_ADDED_ALL, &bad), 0);
	assert_int_equal(
		tokenizer_encode(t, SPAN("a\xef\xbf\xbd z\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"),
				 TOKENIZER_ADDED_ALL, &good),
		0);
	assert_int_equal(bad.n, good.n);
	assert_memory_equal(bad.at, good.at, good.n * sizeof(*good.at));
	ids_deinit(&bad);
	ids_deinit(&good);
	tokenizer_free(t);
}

static void encoding_appends_behind_what_is_there(void **state)
{
	struct tokenizer *t = open_named("");
	struct ids ids = { 0 };
	const uint32_t first = 7;

	(void)state;
	assert_int_equal(ids_append(&ids, &first, 1), 0);
	assert_int_equal(tokenizer_encode(t, SPAN(""), TOKENIZER_ADDED_ALL, &ids), 0);
	assert_int_equal(tokenizer_encode(t, SPAN("a"), TOKENIZER_ADDED_ALL, &ids), 0);
	assert_int_equal(ids.n, 2);
	assert_int_equal(ids.at[0], 7);
	assert_int_equal(ids.at[1], 64);
	ids_deinit(&ids);
	tokenizer_free(t);
}

/* The textbook: the pair of the earliest merge, leftmost, again and again, over a whole piece. */
static size_t merge_slowly(const struct tokenizer *t, const json_t *merges, struct span piece,
			   uint32_t *out)
{
	struct part {
		size_t at, len;
	} *parts = calloc(piece.len, sizeof(*parts));
	size_t n = piece.len, i;
	json_t *rank_of = json_object(), *merge;
	char key[512];

	json_array_foreach(merges, i, merge) {
		snprintf(key, sizeof(key), "%s", json_string_value(merge));
		json_object_set_new(rank_of, key, json_integer(i));
	}
	for (i = 0; i < n; i++)
		parts[i] = (struct part){ i, 1 };
	for (;;) {
		json_int_t best = -1;
		size_t at = 0;

		for (i = 0; i + 1 < n; i++) {
			const json_t *rank;

			snprintf(key, sizeof(key), "%.*s %.*s", (int)parts[i].len,
				 piece.data + parts[i].at, (int)parts[i + 1].len,
				 piece.data + parts[i + 1].at);
			rank = json_object_get(rank_of, key);
			if (rank && (best < 0 || json_integer_value(rank) < best)) {
				best = json_integer_value(rank);
				at = i;
			}
		}
		if (best < 0)
			break;
		parts[at].len += parts[at + 1].len;
		n--;
		memmove(&parts[at + 1], &parts[at + 2], (n - at - 1) * sizeof(*parts));
	}
	for (i = 0; i < n; i++) {
		uint32_t id = 0;

		while (tokenizer_is_added(t, id) || tokenizer_bytes(t, id).len != parts[i].len ||
		       memcmp(tokenizer_bytes(t, id).data, piece.data + parts[i].at, parts[i].len))
			id++;
		out[i] = id;
	}
	json_decref(rank_of);
	free(parts);
	return n;
}

static void long_pieces_merge_like_the_textbook(void **state)
{
	struct tokenizer *t = open_named("_mid");
	json_t *file = golden_load("tokenizer/tokenizer_mid.json");
	const json_t *merges = json_object_get(json_object_get(file, "model"), "merges");
	static const char *const alphabets[] = { "a", "ab", "etaoinshr",
						 "abcdefghijklmnopqrstuvwxyz" };
	uint32_t wanted[400], seed = 1;
	char piece[400];

	(void)state;
	for (size_t round = 0; round < 24; round++) {
		const char *alphabet = alphabets[round % 4];
		const size_t len = 40 + round * 15;
		struct ids ids = { 0 };

		for (size_t i = 0; i < len; i++) {
			seed = seed * 1664525 + 1013904223;
			piece[i] = alphabet[(seed >> 16) % strlen(alphabet)];
		}
		assert_int_equal(tokenizer_encode(t, (struct span){ piece, len },
						  TOKENIZER_ADDED_NONE, &ids),
				 0);
		assert_int_equal(ids.n,
				 merge_slowly(t, merges, (struct span){ piece, len }, wanted));
		assert_memory_equal(ids.at, wanted, ids.n * sizeof(*wanted));
		ids_deinit(&ids);
	}
	json_decref(file);
	tokenizer_free(t);
}

static void the_end_of_a_stream_gives_up_half_a_character(void **state)
{
	struct tokenizer *t = open_named("");
	struct detokenizer d = { 0 };
	static const uint32_t ids[] = { 172, 253, 236 }; /* three of the four bytes of U+1F389 */
	char out[64];

	(void)state;
	for (size_t i = 0; i < 3; i++)
		assert_int_equal(detokenizer_push(&d, t, ids[i], out), 0);
	assert_int_equal(detokenizer_flush(&d, out), 3);
	assert_memory_equal(out, "\xef\xbf\xbd", 3);
	assert_int_equal(detokenizer_flush(&d, out), 0);
	tokenizer_free(t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_text_encodes_as_the_reference_does),
		cmocka_unit_test(every_list_of_ids_decodes_as_the_reference_does),
		cmocka_unit_test(every_id_has_the_bytes_of_the_reference),
		cmocka_unit_test(added_tokens_are_told_apart),
		cmocka_unit_test(invalid_bytes_are_encoded_as_replacement_characters),
		cmocka_unit_test(encoding_appends_behind_what_is_there),
		cmocka_unit_test(long_pieces_merge_like_the_textbook),
		cmocka_unit_test(the_end_of_a_stream_gives_up_half_a_character),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
