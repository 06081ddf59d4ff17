/* What outlives a steamd: databases of older and newer ones, exported sessions whole and damaged. */
#include "tests/unit/store-world.h"

#include <fcntl.h>
#include <jansson.h>
#include <sqlite3.h>
#include <sys/wait.h>
#include <xxhash.h>

#include "daemon/session/export.h"

static char *read_all(const char *path, size_t *ret_len)
{
	FILE *file = fopen(path, "re");
	struct stat st;
	char *data;

	assert_non_null(file);
	fstat(fileno(file), &st);
	data = malloc((size_t)st.st_size + 1);
	*ret_len = fread(data, 1, (size_t)st.st_size, file);
	fclose(file);
	return data;
}

static void write_all(const char *path, const char *data, size_t len)
{
	FILE *file = fopen(path, "we");

	assert_non_null(file);
	assert_int_equal(fwrite(data, 1, len, file), len);
	fclose(file);
}

static json_t *show(struct store *s, const struct store_who *who, const char *name)
{
	struct bytes out = { 0 };
	struct err err = { 0 };

	if (store_show(s, who, span_of(name), &out, &err) < 0)
		fail_msg("%s", err.text);
	return load(&out);
}

static void execute(const char *path, const char *sql)
{
	sqlite3 *db;

	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
	sqlite3_close(db);
}

static void set_format(const char *path, int version, int written)
{
	char sql[128];

	snprintf(sql, sizeof(sql), "PRAGMA user_version=%d; UPDATE format SET n=%d", version,
		 written);
	execute(path, sql);
}

/* Whether turn @i of a session that was shown says what commit() said it cost, or nothing. */
static bool has_cost(const json_t *o, size_t i)
{
	const json_t *turn = json_array_get(json_object_get(o, "turn"), i);

	assert_non_null(json_object_get(turn, "finish"));
	if (!json_object_get(turn, "n_cached") && !json_object_get(turn, "n_reasoning"))
		return false;
	assert_int_equal(json_integer_value(json_object_get(turn, "n_cached")), 3);
	assert_int_equal(json_integer_value(json_object_get(turn, "n_reasoning")), 2);
	return true;
}

/* With a database as a steamd of that time left it. */
static void folder_of_format(struct folder *f, int format)
{
	_cleanup_(freep) char *data = NULL;
	const char *srcdir = getenv("srcdir");
	char path[512];
	size_t len;

	snprintf(path, sizeof(path), "%s/tests/unit/state-format-%d.db", srcdir ? srcdir : ".",
		 format);
	data = read_all(path, &len);
	folder_open(f);
	write_all(f->db, data, len);
}

/* Two turns and one that was never answered, a pinned session, another user's; from format 2 on a fork. */
static void keep_sessions_of(int format)
{
	_cleanup_(store_begun_deinit) struct store_begun b = { 0 };
	struct store_counts counts;
	struct err err = { 0 };
	struct folder f;
	struct store *s;
	json_t *o;

	folder_of_format(&f, format);
	for (int life = 0; life < 2; life++) {
		s = open_store(&f);
		assert_int_equal(store_check(s, &err), 0);
		assert_int_equal(store_settle(s, NULL, 0, &err), 0);
		store_count(s, &counts);
		assert_int_equal(counts.n_unfinished, life == 0);
		assert_int_equal(counts.n_damaged, 0);
		o = show(s, &alice, "cold");
		assert_true(json_is_true(json_object_get(o, "pinned")));
		assert_true(json_real_value(json_object_get(json_object_get(o, "defaults"),
							    "temperature")) == 0);
		json_decref(o);
		if (format >= 2) {
			o = show(s, &alice, "copy");
			assert_string_equal(json_string_value(json_object_get(o, "forked_from")),
					    "d0a023501975663f");
			assert_int_equal(json_array_size(json_object_get(o, "turn")), 1);
			json_decref(o);
		}
		o = show(s, &bob, "his");
		assert_int_equal(json_array_size(json_object_get(o, "turn")), 1);
		json_decref(o);
		s = store_free(s);
	}
	s = open_store(&f);
	assert_int_equal(begin(s, &alice, "talk", "on", &b, &err), 0);
	assert_int_equal(b.turn, 3);
	assert_int_equal(b.n_ids, 10);
	assert_int_equal(b.ids[0], 10);
	assert_int_equal(b.ids[9], 25);
	assert_non_null(strstr(b.conversation, "\"yes\""));
	assert_int_equal(commit(s, &b, "fine", 26, 4, &err), 0);
	s = store_free(s);
	s = open_store(&f);
	o = show(s, &alice, "talk");
	assert_false(has_cost(o, 0));
	assert_true(has_cost(o, 2));
	json_decref(o);
	s = store_free(s);
	folder_close(&f);
}

static void old_databases_keep_their_sessions(void **state)
{
	(void)state;
	for (int format = 1; format < STORE_FORMAT; format++)
		keep_sessions_of(format);
}

/* From then on all of it is covered by the sums. */
static void an_old_session_s_row_is_summed_anew(void **state)
{
	struct store_counts counts;
	struct err err = { 0 };
	struct folder f;
	struct store *s;

	(void)state;
	folder_of_format(&f, 2);
	s = open_store(&f);
	s = store_free(s);
	execute(f.db, "UPDATE session SET used=used+1 WHERE name='copy'");
	s = open_store(&f);
	assert_int_equal(store_check(s, &err), 0);
	store_count(s, &counts);
	assert_int_equal(counts.n_damaged, 1);
	s = store_free(s);
	folder_close(&f);
}

static void a_newer_database_is_refused_and_left_alone(void **state)
{
	_cleanup_(freep) char *before = NULL, *after = NULL;
	struct err err = { 0 };
	size_t before_len, after_len;
	char wanted[256];
	struct store *s;
	struct folder f;

	(void)state;
	folder_open(&f);
	s = open_store(&f);
	say(s, &alice, "talk", "a", "b", 1, 2);
	s = store_free(s);
	set_format(f.db, STORE_FORMAT + 1, STORE_FORMAT + 1);
	before = read_all(f.db, &before_len);
	assert_int_equal(store_open(f.db, NULL, &s, &err), -ENOTSUP);
	snprintf(wanted, sizeof(wanted),
		 "the session database '%s' has format %d, from a newer steamd; this one knows "
		 "formats up to %d",
		 f.db, STORE_FORMAT + 1, STORE_FORMAT);
	assert_string_equal(err.text, wanted);
	after = read_all(f.db, &after_len);
	assert_int_equal(after_len, before_len);
	assert_memory_equal(after, before, after_len);
	set_format(f.db, STORE_FORMAT, STORE_FORMAT);
	s = open_store(&f);
	json_decref(show(s, &alice, "talk"));
	s = store_free(s);
	folder_close(&f);
}

/* Of one of the two numbers, bit after bit: none is a newer steamd's, and nothing is lost. */
static void a_flipped_bit_of_the_format_is_no_newer_format(void **state)
{
	struct store_counts counts;
	struct err err = { 0 };
	struct folder f;
	struct store *s;

	(void)state;
	folder_open(&f);
	s = open_store(&f);
	say(s, &alice, "talk", "a", "b", 1, 2);
	s = store_free(s);
	for (int bit = 0; bit < 31; bit++) {
		const int flipped = (int)(STORE_FORMAT ^ 1u << bit);
		const bool in_table = bit % 3 == 2;

		set_format(f.db, in_table ? STORE_FORMAT : flipped,
			   in_table ? flipped : STORE_FORMAT);
		s = open_store(&f);
		store_count(s, &counts);
		assert_int_equal(counts.n_damaged, 1);
		assert_int_equal(counts.n_set_aside, 0);
		assert_int_equal(store_check(s, &err), 0);
		json_decref(show(s, &alice, "talk"));
		s = store_free(s);
	}
	s = open_store(&f);
	store_count(s, &counts);
	assert_int_equal(counts.n_damaged, 0);
	s = store_free(s);
	folder_close(&f);
}

/* A database of the second format, whose number is written once only. */
static void a_flipped_bit_of_an_old_format_is_no_newer_format(void **state)
{
	struct store_counts counts;
	struct folder f;
	struct store *s;
	json_t *o;

	(void)state;
	folder_of_format(&f, 2);
	execute(f.db, "PRAGMA user_version=66");
	s = open_store(&f);
	store_count(s, &counts);
	assert_int_equal(counts.n_damaged, 1);
	assert_int_equal(counts.n_set_aside, 0);
	o = show(s, &alice, "talk");
	assert_int_equal(json_array_size(json_object_get(o, "turn")), 3);
	json_decref(o);
	s = store_free(s);
	folder_close(&f);
}

/* Each column of a session's row, sum and all. */
static void every_column_of_a_session_is_covered_by_its_sum(void **state)
{
	static const char *const columns[] = { "uid",	      "label", "name",	 "defaults",
					       "created",     "used",  "pinned", "implicit",
					       "forked_from", "sum" };
	struct store_counts counts;
	struct bytes out = { 0 };
	struct err err = { 0 };
	struct folder f;
	struct store *s;
	char sql[128];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(columns); i++) {
		folder_open(&f);
		s = open_store(&f);
		say(s, &alice, "talk", "a", "b", 1, 2);
		assert_int_equal(store_check(s, &err), 0);
		store_count(s, &counts);
		assert_int_equal(counts.n_damaged, 0);
		s = store_free(s);
		snprintf(sql, sizeof(sql), "UPDATE session SET %s=CAST(%s AS INTEGER)+1",
			 columns[i], columns[i]);
		execute(f.db, sql);
		s = open_store(&f);
		assert_int_equal(store_check(s, &err), 0);
		store_count(s, &counts);
		if (counts.n_damaged != 1)
			fail_msg("%s is not covered", columns[i]);
		assert_true(store_show(s, &alice, SPAN("talk"), &out, &err) < 0);
		bytes_deinit(&out);
		s = store_free(s);
		folder_close(&f);
	}
}

static void what_a_turn_cost_is_covered_by_its_sum(void **state)
{
	static const char *const changes[] = { "n_cached=4", "n_reasoning=3", "n_cached=-1",
					       "n_reasoning=-1", "n_cached=2, n_reasoning=3" };
	struct store_counts counts;
	struct err err = { 0 };
	struct folder f;
	struct store *s;
	char sql[128];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(changes); i++) {
		folder_open(&f);
		s = open_store(&f);
		say(s, &alice, "talk", "a", "b", 1, 2);
		s = store_free(s);
		snprintf(sql, sizeof(sql), "UPDATE turn SET %s", changes[i]);
		execute(f.db, sql);
		s = open_store(&f);
		assert_int_equal(store_check(s, &err), 0);
		store_count(s, &counts);
		if (counts.n_damaged != 1)
			fail_msg("%s is not seen", changes[i]);
		s = store_free(s);
		folder_close(&f);
	}
}

static void a_damaged_one_of_an_older_format_keeps_its_turns(void **state)
{
	struct store_counts counts;
	struct folder f;
	struct store *s;
	json_t *o;

	(void)state;
	folder_of_format(&f, 3);
	execute(f.db, "CREATE TABLE of_nobody(x)");
	set_format(f.db, 99, 98);
	s = open_store(&f);
	store_count(s, &counts);
	assert_int_equal(counts.n_set_aside, 1);
	o = show(s, &alice, "talk");
	assert_int_equal(json_array_size(json_object_get(o, "turn")), 3);
	assert_false(has_cost(o, 1));
	json_decref(o);
	s = store_free(s);
	folder_close(&f);
}

static void a_database_has_one_daemon(void **state)
{
	struct store *s, *second = NULL;
	struct err err = { 0 };
	struct folder f;
	pid_t child;
	int status;

	(void)state;
	folder_open(&f);
	s = open_store(&f);
	say(s, &alice, "talk", "a", "b", 1, 2);
	child = fork(); /* locks are a process's */
	if (child == 0)
		_exit(store_open(f.db, NULL, &second, &err) == -EBUSY &&
				      strstr(err.text, "in use by another process")
			      ? 0
			      : 1);
	waitpid(child, &status, 0);
	assert_int_equal(status, 0);
	s = store_free(s);
	folder_close(&f);
}

static void what_is_no_database_is_set_aside(void **state)
{
	static const char text[] =
		"This is a letter and no database, and long enough for a header. "
		"It goes on for a while so that a page of it can be read.";
	struct store_counts counts;
	struct store *s;
	struct folder f;
	char aside[128];

	(void)state;
	folder_open(&f);
	snprintf(aside, sizeof(aside), "%s.damaged-1", f.db);
	for (int i = 1; i <= 2; i++) {
		write_all(f.db, text, sizeof(text));
		s = open_store(&f);
		store_count(s, &counts);
		assert_int_equal(counts.n_set_aside, 1);
		say(s, &alice, "talk", "a", "b", 1, 2);
		s = store_free(s);
		aside[strlen(aside) - 1] = (char)('0' + i);
		assert_int_equal(access(aside, F_OK), 0);
	}
	folder_close(&f);
}

/* What cannot even be set aside: a thousand were before it. Nothing is stored, and nothing falls over. */
static void a_damaged_database_that_has_to_stay_is_told_of(void **state)
{
	_cleanup_(store_begun_deinit) struct store_begun b = { 0 };
	struct store_counts counts;
	struct err err = { 0 };
	char aside[128], *data;
	struct store *s;
	struct folder f;
	size_t len;

	(void)state;
	folder_open(&f);
	s = open_store(&f);
	say(s, &alice, "talk", "a", "b", 1, 2);
	s = store_free(s);
	data = read_all(f.db, &len);
	memset(data + len - 2 * 4096, 0xa5, 4096); /* a page of an index */
	write_all(f.db, data, len);
	free(data);
	for (int i = 1; i <= 1000; i++) { /* folders, which no file takes the place of */
		snprintf(aside, sizeof(aside), "%s.damaged-%d", f.db, i);
		assert_int_equal(mkdir(aside, 0700), 0);
	}
	s = open_store(&f);
	assert_true(store_check(s, &err) < 0);
	assert_true(begin(s, &alice, "talk", "c", &b, &err) < 0);
	assert_non_null(strstr(err.text, "is damaged, and cannot be mended now: "));
	assert_true(store_checkpoint(s, true, &err) < 0);
	store_count(s, &counts);
	assert_int_equal(counts.n_set_aside, 0);
	s = store_free(s);
	for (int i = 1; i <= 1000; i++) {
		snprintf(aside, sizeof(aside), "%s.damaged-%d", f.db, i);
		rmdir(aside);
	}
	folder_close(&f);
}

/* Files. */

static void three_turns(struct store *s)
{
	say(s, &alice, "talk", "one", "eins", 10, 4);
	say(s, &alice, "talk", "two", "zwei", 20, 6);
	say(s, &alice, "talk", "three", "drei", 30, 2);
}

static void assert_turns(struct store *s, const char *name, size_t n, uint32_t n_ids)
{
	static const char *const answers[] = { "eins", "zwei", "drei" };
	_cleanup_(store_begun_deinit) struct store_begun b = { 0 };
	struct err err = { 0 };
	json_t *o = show(s, &bob, name), *turn;
	size_t i;

	assert_int_equal(json_array_size(json_object_get(o, "turn")), n);
	json_array_foreach(json_object_get(o, "turn"), i, turn)
		assert_string_equal(json_string_value(json_object_get(
					    json_object_get(turn, "answer"), "content")),
				    answers[i]);
	json_decref(o);
	assert_int_equal(begin(s, &bob, name, "on", &b, &err), 0);
	assert_int_equal(b.n_ids, n_ids);
	assert_int_equal(store_abort(s, b.session, b.turn, &err), 0);
}

static void a_session_goes_out_and_comes_in_whole(void **state)
{
	struct bytes file = { 0 };
	struct err err = { 0 };
	struct store *s;
	struct folder f;
	json_t *o;

	(void)state;
	folder_open(&f);
	s = open_store(&f);
	three_turns(s);
	export(s, &file);
	assert_memory_equal(file.at, "STEAMDSN\1\0\0\0\7\0\0\0", 16);
	assert_int_equal(import(s, bytes_span(&file), "", VOCAB, 100, &o, &err), 0);
	assert_string_equal(json_string_value(json_object_get(o, "name")), "talk");
	assert_int_equal(not_taken(o, NULL, NULL), 0);
	json_decref(o);
	assert_turns(s, "talk", 3, 12);
	assert_int_equal(import(s, bytes_span(&file), "", VOCAB, 100, &o, &err), 0);
	assert_string_equal(json_string_value(json_object_get(o, "name")), "talk-2");
	json_decref(o);
	assert_int_equal(import(s, bytes_span(&file), "mine", VOCAB, 100, &o, &err), 0);
	assert_string_equal(json_string_value(json_object_get(o, "name")), "mine");
	json_decref(o);
	bytes_deinit(&file);
	s = store_free(s);
	folder_close(&f);
}

static void ids_that_mean_nothing_here_stay_behind(void **state)
{
	struct bytes file = { 0 };
	struct err err = { 0 };
	struct store *s;
	struct folder f;
	json_t *o;

	(void)state;
	folder_open(&f);
	s = open_store(&f);
	three_turns(s);
	export(s, &file);
	assert_int_equal(import(s, bytes_span(&file), "other", VOCAB + 1, 100, &o, &err), 0);
	not_taken(o, "ids from turn 1 on", "the ids are of another tokenizer; the text was taken");
	json_decref(o);
	assert_turns(s, "other", 3, 0);
	assert_int_equal(import(s, bytes_span(&file), "small", VOCAB, 31, &o, &err), 0);
	not_taken(o, "ids from turn 3 on", "an id is beyond the vocabulary; the text was taken");
	json_decref(o);
	assert_turns(s, "small", 3, 0);
	bytes_deinit(&file);
	s = store_free(s);
	folder_close(&f);
}

static void add_section(struct bytes *file, uint32_t kind, uint32_t version)
{
	struct {
		struct export_section head;
		char payload[5];
	} section = { { kind, version, 5, 0 }, "later" };
	char summed[16 + 5];
	struct export_head head;

	memcpy(summed, &section, 16);
	memcpy(summed + 16, section.payload, 5);
	section.head.sum = XXH3_64bits(summed, sizeof(summed));
	bytes_append(file, (const char *)&section, sizeof(section.head) + 5);
	memcpy(&head, file->at, sizeof(head));
	head.n_sections++;
	head.sum = XXH3_64bits(&head, 16);
	memcpy(file->at, &head, sizeof(head));
}

static void sections_of_later_steamds_are_named_and_passed_over(void **state)
{
	static const struct {
		uint32_t kind, version;
		const char *what, *why;
	} later[] = {
		{ EXPORT_KVPG, 1, "section 'kvpg'",
		  "KV comes in only where the file comes in pieces" },
		{ EXPORT_KIND('n', 'e', 'w', 's'), 3, "section 'news'",
		  "this steamd does not know its kind" },
		{ EXPORT_TURN, 2, "turn 4 and what follows", "a section is not where it belongs" },
	};
	struct store *s;
	struct folder f;

	(void)state;
	folder_open(&f);
	s = open_store(&f);
	three_turns(s);
	for (size_t i = 0; i < ARRAY_SIZE(later); i++) {
		struct bytes file = { 0 };
		struct err err = { 0 };
		json_t *o;

		export(s, &file);
		add_section(&file, later[i].kind, later[i].version);
		assert_int_equal(import(s, bytes_span(&file), "", VOCAB, 100, &o, &err), 0);
		assert_int_equal(not_taken(o, later[i].what, later[i].why), 1);
		json_decref(o);
		bytes_deinit(&file);
	}
	s = store_free(s);
	folder_close(&f);
}

static void a_file_cut_anywhere_gives_whole_turns_or_a_sentence(void **state)
{
	size_t n_taken = 0, n_refused = 0;
	struct bytes file = { 0 };
	struct store *s;
	struct folder f;

	(void)state;
	folder_open(&f);
	s = open_store(&f);
	three_turns(s);
	export(s, &file);
	for (size_t len = 0; len < file.n; len++) {
		_cleanup_(freep) char *cut = malloc(len + 1); /* exact, for the sanitizer */
		struct err err = { 0 };
		char name[32];
		json_t *o;
		int turns;

		snprintf(name, sizeof(name), "cut-%zu", len);
		memcpy(cut, file.at, len);
		if (import(s, (struct span){ cut, len }, name, VOCAB, 100, &o, &err) < 0) {
			assert_true(err.text[0]);
			n_refused++;
			continue;
		}
		turns = (int)json_integer_value(json_object_get(o, "turns"));
		assert_in_range(turns, 0, 2);
		assert_true(not_taken(o, NULL, NULL) > 0);
		json_decref(o);
		assert_turns(s, name, (size_t)turns, turns == 0 ? 0 : turns == 1 ? 4 : 10);
		n_taken++;
		if (n_taken % 500 == 0) { /* room for more */
			struct bytes out = { 0 };

			assert_int_equal(store_gc(s, &bob, 0, &out, &err), 0);
			bytes_deinit(&out);
		}
	}
	assert_true(n_taken > 100 && n_refused > 100);
	bytes_deinit(&file);
	s = store_free(s);
	folder_close(&f);
}

static void a_flipped_bit_anywhere_is_found(void **state)
{
	struct bytes file = { 0 };
	struct store *s;
	struct folder f;

	(void)state;
	folder_open(&f);
	s = open_store(&f);
	three_turns(s);
	export(s, &file);
	for (size_t at = 0; at < file.n; at++) {
		struct err err = { 0 };
		struct bytes out = { 0 };
		char name[32];
		json_t *o;

		snprintf(name, sizeof(name), "bit-%zu", at);
		file.at[at] ^= (char)(1 << at % 8);
		if (import(s, bytes_span(&file), name, VOCAB, 100, &o, &err) >= 0) {
			const int turns = (int)json_integer_value(json_object_get(o, "turns"));

			assert_in_range(turns, 0, 2);
			assert_true(not_taken(o, NULL, NULL) > 0);
			assert_turns(s, name, (size_t)turns, turns == 0 ? 0 : turns == 1 ? 4 : 10);
			json_decref(o);
			assert_int_equal(store_rm(s, &bob, span_of(name), &out, &err), 0);
			bytes_deinit(&out);
		}
		file.at[at] ^= (char)(1 << at % 8);
	}
	bytes_deinit(&file);
	s = store_free(s);
	folder_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(old_databases_keep_their_sessions),
		cmocka_unit_test(an_old_session_s_row_is_summed_anew),
		cmocka_unit_test(a_newer_database_is_refused_and_left_alone),
		cmocka_unit_test(what_a_turn_cost_is_covered_by_its_sum),
		cmocka_unit_test(a_damaged_one_of_an_older_format_keeps_its_turns),
		cmocka_unit_test(a_database_has_one_daemon),
		cmocka_unit_test(a_flipped_bit_of_the_format_is_no_newer_format),
		cmocka_unit_test(a_flipped_bit_of_an_old_format_is_no_newer_format),
		cmocka_unit_test(every_column_of_a_session_is_covered_by_its_sum),
		cmocka_unit_test(what_is_no_database_is_set_aside),
		cmocka_unit_test(a_damaged_database_that_has_to_stay_is_told_of),
		cmocka_unit_test(a_session_goes_out_and_comes_in_whole),
		cmocka_unit_test(ids_that_mean_nothing_here_stay_behind),
		cmocka_unit_test(sections_of_later_steamds_are_named_and_passed_over),
		cmocka_unit_test(a_file_cut_anywhere_gives_whole_turns_or_a_sentence),
		cmocka_unit_test(a_flipped_bit_anywhere_is_found),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
