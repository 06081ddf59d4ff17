/*
 * The store at every write: kills, power cuts, failing disks, flipped bits. No
 * turn that was called saved is lost, none is half there, and it always opens.
 */
#include "tests/unit/store-world.h"

#include <fcntl.h>
#include <jansson.h>

#include "tests/unit/shim-vfs.h"

#define OPERATIONS_MAX 2000

/* What was told to have succeeded, and what was tried. */
struct told {
	uint32_t a, b; /* turns of the sessions a and b that were saved */
	uint32_t try_a, try_b;
	bool forked, removing;
};

static const char *const texts[] = { "one", "two", "three", "four", "five" };

/* Like say(), but may fail. */
static bool try_turn(struct store *s, const char *name, uint32_t *saved, uint32_t *tried)
{
	_cleanup_(store_begun_deinit) struct store_begun b = { 0 };
	const char *text = texts[*saved];

	*tried = *saved + 1;
	if (begin(s, &alice, name, text, &b, NULL) < 0)
		return false;
	if (commit(s, &b, text, 100 * *saved, 40, NULL) < 0)
		return false;
	++*saved;
	return true;
}

static bool try_fork(struct store *s)
{
	struct bytes out = { 0 };
	const int r = store_fork(s, &alice, SPAN("a"), SPAN("copy"), UINT32_MAX,
				 &(struct store_limits){ .max_sessions = 9 }, &out, NULL);

	bytes_deinit(&out);
	return r == 0;
}

static bool try_rm(struct store *s)
{
	struct bytes out = { 0 };
	const int r = store_rm(s, &alice, SPAN("copy"), &out, NULL);

	bytes_deinit(&out);
	return r == 0;
}

/* A life; with @go_on it does not end at the first failure. */
static void live(const struct folder *f, struct told *t, bool go_on)
{
	_cleanup_(store_begun_deinit) struct store_begun b = { 0 };
	_cleanup_(store_freep) struct store *s = NULL;
	bool removed = false;

	if (store_open(f->db, SHIM_VFS, &s, NULL) < 0)
		return;
	if (store_settle(s, NULL, 0, NULL) < 0 && !go_on)
		return;
	for (int i = 0; i < 2; i++)
		if (!try_turn(s, "a", &t->a, &t->try_a) && !go_on)
			return;
	if (!try_turn(s, "b", &t->b, &t->try_b) && !go_on)
		return;
	t->forked = try_fork(s);
	if (!t->forked && !go_on)
		return;
	if (store_checkpoint(s, true, NULL) < 0 && !go_on)
		return;
	if (!try_turn(s, "a", &t->a, &t->try_a) && !go_on)
		return;
	if (begin(s, &alice, "b", "never answered", &b, NULL) < 0 && !go_on)
		return;
	t->removing = true;
	removed = try_rm(s);
	if (removed)
		t->forked = false;
	if (!removed && !go_on)
		return;
	try_turn(s, "a", &t->a, &t->try_a);
}

static void assert_turns(struct store *s, const char *name, uint32_t saved, uint32_t tried)
{
	struct bytes out = { 0 };
	struct err err = { 0 };
	json_t *o, *turn;
	size_t i, n;
	int r;

	r = store_show(s, &alice, span_of(name), &out, &err);
	if (r == -ENOENT && saved == 0) {
		bytes_deinit(&out);
		return;
	}
	if (r < 0)
		fail_msg("%s", err.text);
	o = json_loadb(out.at, out.n, 0, NULL);
	n = json_array_size(json_object_get(o, "turn"));
	assert_in_range(n, saved, MAX(saved, tried));
	json_array_foreach(json_object_get(o, "turn"), i, turn) {
		const json_t *answer = json_object_get(turn, "answer");

		assert_int_equal(json_integer_value(json_object_get(turn, "n")), i + 1);
		assert_string_equal(json_string_value(json_object_get(answer, "content")),
				    texts[i]);
		assert_int_equal(json_integer_value(json_object_get(turn, "n_ids")), 40 * (i + 1));
	}
	json_decref(o);
	bytes_deinit(&out);
}

/* A new life on what is there: nothing is refused, nothing is half, and it goes on. */
static void assert_holds(const struct folder *f, const struct told *t, bool in_order)
{
	_cleanup_(store_freep) struct store *s = open_store(f);
	struct store_counts counts;
	struct bytes out = { 0 };
	struct err err = { 0 };

	if (store_check(s, &err) != 0)
		fail_msg("set aside: %s", err.text);
	assert_int_equal(store_settle(s, NULL, 0, &err), 0);
	store_count(s, &counts);
	assert_int_equal(counts.n_damaged, 0);
	assert_int_equal(counts.n_set_aside, counts.n_log_lost > 0);
	if (in_order)
		assert_int_equal(counts.n_log_lost, 0);
	assert_turns(s, "a", t->a, t->try_a);
	assert_turns(s, "b", t->b, t->try_b);
	if (t->forked && !t->removing)
		assert_turns(s, "copy", 2, 2);
	assert_int_equal(store_list(s, &alice, &out, &err), 0);
	bytes_deinit(&out);
	say(s, &alice, "a", "later", "fine", 1, 4);
	say(s, &alice, "new", "later", "fine", 1, 4);
}

static void a_kill_or_a_power_cut_at_any_write_loses_nothing_saved(void **state)
{
	uint32_t n_most = 0;
	bool hit = true;

	(void)state;
	for (uint64_t at = 1; hit; at++) {
		assert_true(at < OPERATIONS_MAX);
		for (int image = 0; image < SHIM_IMAGES; image++) {
			struct told told = { 0 };
			struct folder f;

			folder_open(&f);
			shim_reset(SHIM_CUT, at);
			live(&f, &told, false);
			hit = shim_was_hit();
			shim_restore((enum shim_image)image, at);
			/* writes that came to the disk in another order may look like damage */
			assert_holds(&f, &told, image != SHIM_SOME);
			n_most = MAX(n_most, told.a);
			folder_close(&f);
		}
	}
	assert_int_equal(n_most, 4);
}

static void a_disk_that_fails_once_at_any_write_costs_what_it_failed_at(void **state)
{
	bool hit = true;

	(void)state;
	for (uint64_t at = 1; hit; at++) {
		struct told told = { 0 };
		struct folder f;

		assert_true(at < OPERATIONS_MAX);
		folder_open(&f);
		shim_reset(SHIM_FAIL, at);
		live(&f, &told, true);
		hit = shim_was_hit();
		assert_holds(&f, &told, true);
		folder_close(&f);
	}
}

/* That a turn begins is not worth a sync; the shim shows it, so it would show a missing one too. */
static void what_was_not_synced_is_lost_in_a_power_cut(void **state)
{
	_cleanup_(store_begun_deinit) struct store_begun b = { 0 };
	struct store *s = NULL;
	struct bytes out = { 0 };
	struct err err = { 0 };
	struct folder f;

	(void)state;
	folder_open(&f);
	shim_reset(SHIM_NONE, 0);
	assert_int_equal(store_open(f.db, SHIM_VFS, &s, &err), 0);
	say(s, &alice, "a", "one", "one", 0, 40);
	assert_int_equal(begin(s, &alice, "b", "not answered yet", &b, &err), 0);
	shim_cut_now();
	s = store_free(s);
	shim_restore(SHIM_SYNCED, 0);
	s = open_store(&f);
	assert_int_equal(store_show(s, &alice, SPAN("a"), &out, &err), 0);
	assert_int_equal(store_show(s, &alice, SPAN("b"), &out, &err), -ENOENT);
	bytes_deinit(&out);
	store_free(s);
	folder_close(&f);
}

/* Bits. */

static char *read_all(const char *path, size_t *ret_len)
{
	FILE *file = fopen(path, "re");
	struct stat st;
	char *data;

	assert_non_null(file);
	fstat(fileno(file), &st);
	data = malloc((size_t)st.st_size);
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

/* Whatever is given is what was said; returns how many turns were given whole. */
static uint32_t count_whole(struct store *s, const char *name)
{
	struct bytes out = { 0 };
	uint32_t n = 0;
	json_t *o, *turn;
	size_t i;

	if (store_show(s, &alice, span_of(name), &out, NULL) < 0) {
		bytes_deinit(&out);
		return 0;
	}
	o = json_loadb(out.at, out.n, 0, NULL);
	assert_non_null(o);
	assert_string_equal(json_string_value(json_object_get(o, "name")), name);
	json_array_foreach(json_object_get(o, "turn"), i, turn) {
		const json_t *answer = json_object_get(turn, "answer");
		const int at = (int)json_integer_value(json_object_get(turn, "n"));

		if (!answer)
			continue;
		assert_in_range(at, 1, 5);
		assert_string_equal(json_string_value(json_object_get(answer, "content")),
				    texts[at - 1]);
		n++;
	}
	json_decref(o);
	bytes_deinit(&out);
	return n;
}

static void assert_begin_is_right_or_refused(struct store *s, const char *name)
{
	_cleanup_(store_begun_deinit) struct store_begun b = { 0 };
	struct err err = { 0 };
	const int r = store_begin(s, &alice, span_of(name), false,
				  &(struct store_limits){ .max_sessions = 9 }, request_of("x"),
				  VOCAB, &b, &err);

	if (r < 0) {
		assert_true(err.text[0]);
		return;
	}
	for (size_t i = 0; i < b.n_ids; i++)
		assert_int_equal(b.ids[i], 100 * (i / 40) + i % 40);
	assert_int_equal(b.n_ids, 40 * (b.turn - 1));
}

static void a_flipped_bit_is_found_and_costs_one_turn_at_most(void **state)
{
	uint32_t n_found = 0, n_set_aside = 0, n_whole = 0, n_flips = 0;
	struct told told = { 0 };
	struct folder f;
	uint64_t random = 88172645463325252ull;
	char *data;
	size_t len;

	(void)state;
	folder_open(&f);
	shim_reset(SHIM_NONE, 0);
	live(&f, &told, false);
	assert_int_equal(told.a, 4);
	data = read_all(f.db, &len);
	for (size_t round = 0; round < 300; round++) {
		struct store *s = NULL;
		struct store_counts counts;
		struct err err = { 0 };
		uint32_t whole;
		size_t byte;

		random ^= random << 13;
		random ^= random >> 7;
		random ^= random << 17;
		byte = random % len;
		folder_empty(&f);
		data[byte] ^= (char)(1 << (random >> 40) % 8);
		write_all(f.db, data, len);
		data[byte] ^= (char)(1 << (random >> 40) % 8);
		if (store_open(f.db, NULL, &s, &err) < 0)
			fail_msg("byte %zu: %s", byte, err.text);
		if (store_check(s, &err) < 0)
			fail_msg("byte %zu: %s", byte, err.text);
		store_count(s, &counts);
		whole = count_whole(s, "a") + count_whole(s, "b");
		n_flips++;
		n_whole += whole;
		n_found += counts.n_damaged > 0;
		n_set_aside += counts.n_set_aside > 0;
		/* what is not whole was told of */
		if (whole < 5)
			assert_true(counts.n_damaged + counts.n_set_aside > 0);
		assert_begin_is_right_or_refused(s, "a");
		assert_begin_is_right_or_refused(s, "b");
		say(s, &bob, "his", "goes", "on", 1, 4);
		store_free(s);
	}
	free(data);
	print_message("%u flips: %u found in rows, %u databases set aside, %u of %u turns kept\n",
		      n_flips, n_found, n_set_aside, n_whole, 5 * n_flips);
	assert_true(n_found > 0 && n_set_aside > 0);
	assert_true(n_whole >= 4 * n_flips);
	folder_close(&f);
}

/* What a killed process leaves: the database as it was made, and all that was said in its log. */
struct killed {
	char *db, *log;
	size_t db_len, log_len;
};

#define LOG_FRAME (24 + 4096)

static void leave_log(struct folder *f, struct killed *k)
{
	char path[128];
	struct store *s;

	folder_open(f);
	snprintf(path, sizeof(path), "%s-wal", f->db);
	s = open_store(f);
	store_checkpoint(s, true, NULL);
	for (uint32_t i = 0; i < 5; i++)
		say(s, &alice, "a", texts[i], texts[i], 100 * i, 40);
	k->db = read_all(f->db, &k->db_len);
	k->log = read_all(path, &k->log_len);
	store_free(s);
	assert_true(k->log_len > 5 * LOG_FRAME && (k->log_len - 32) % LOG_FRAME == 0);
}

/* A life on that, with @damage at @at; how many turns it gives. */
static uint32_t live_on_log(struct folder *f, const struct killed *k, size_t at, const char *damage,
			    size_t len, struct store_counts *ret)
{
	_cleanup_(freep) char *log = malloc(k->log_len);
	struct err err = { 0 };
	struct store *s = NULL;
	char path[128];
	uint32_t n;

	snprintf(path, sizeof(path), "%s-wal", f->db);
	folder_empty(f);
	memcpy(log, k->log, k->log_len);
	for (size_t i = 0; i < len; i++)
		log[at + i] ^= damage[i];
	write_all(f->db, k->db, k->db_len);
	write_all(path, log, k->log_len);
	if (store_open(f->db, NULL, &s, &err) < 0 || store_check(s, &err) < 0)
		fail_msg("byte %zu: %s", at, err.text);
	store_count(s, ret);
	n = count_whole(s, "a");
	say(s, &bob, "his", "goes", "on", 1, 4);
	store_free(s);
	return n;
}

/* What cannot be read once is no damage: nothing goes aside for it. */
static void a_disk_that_fails_once_at_any_read_sets_nothing_aside(void **state)
{
	uint32_t n_failed = 0;
	struct killed k;
	struct folder f;
	bool hit = true;
	char path[128];

	(void)state;
	leave_log(&f, &k);
	snprintf(path, sizeof(path), "%s-wal", f.db);
	for (uint64_t at = 1; hit; at++) {
		struct store *s = NULL;
		struct store_counts n;
		struct err err = { 0 };
		int r;

		assert_true(at < OPERATIONS_MAX);
		folder_empty(&f);
		write_all(f.db, k.db, k.db_len);
		write_all(path, k.log, k.log_len);
		shim_reset(SHIM_READ, at);
		for (int i = 0; i < 2; i++) {
			if (!s)
				r = store_open(f.db, SHIM_VFS, &s, &err);
			if (s)
				r = store_check(s, &err);
			n_failed += r < 0;
			if (r < 0 && (i > 0 || !err_may_pass(r)))
				fail_msg("read %d: %s", (int)at, err.text);
		}
		hit = shim_was_hit();
		store_count(s, &n);
		if (n.n_set_aside + n.n_damaged + n.n_log_lost > 0)
			fail_msg("read %d: %d set aside, %d damaged", (int)at, (int)n.n_set_aside,
				 (int)n.n_damaged);
		assert_int_equal(count_whole(s, "a"), 5);
		store_free(s);
	}
	assert_true(n_failed > 5);
	free(k.db);
	free(k.log);
	folder_close(&f);
}

/* One wrong bit in every byte of the headers, and in some of the pages. */
static void a_flipped_bit_of_the_log_is_put_right_or_told(void **state)
{
	uint32_t n_flips = 0, n_mended = 0, n_whole = 0;
	uint64_t random = 88172645463325252ull;
	struct store_counts n;
	struct killed k;
	struct folder f;

	(void)state;
	leave_log(&f, &k);
	assert_int_equal(live_on_log(&f, &k, 0, "", 0, &n), 5);
	assert_int_equal(n.n_log_mended + n.n_log_lost, 0);
	for (size_t at = 0; at < k.log_len; n_flips++) {
		const size_t in_frame = at < 32 ? 0 : (at - 32) % LOG_FRAME;
		uint32_t whole;
		char bit;

		random ^= random << 13;
		random ^= random >> 7;
		random ^= random << 17;
		bit = (char)(1 << random % 8);
		whole = live_on_log(&f, &k, at, &bit, 1, &n);
		n_mended += n.n_log_mended == 1;
		n_whole += whole;
		/* nothing is lost, or it is told */
		if (n.n_log_mended + n.n_log_lost != 1 || n.n_set_aside != n.n_log_lost ||
		    n.n_damaged > 0 || whole < 5 - n.n_log_lost)
			fail_msg("bit 0x%02x of byte %zu: %d mended, %d lost, %u turns", bit & 0xff,
				 at, (int)n.n_log_mended, (int)n.n_log_lost, whole);
		if (at < 32)
			at++;
		else if (in_frame < 23)
			at += 1 + random % 9;
		else
			at += MIN(LOG_FRAME - in_frame, 1 + random % 5000);
	}
	print_message("%u flips: %u put right, %u of %u turns kept\n", n_flips, n_mended, n_whole,
		      5 * n_flips);
	assert_true(n_mended > n_flips * 2 / 3);
	free(k.db);
	free(k.log);
	folder_close(&f);
}

/* Cut anywhere, and overwritten with anything at several places. */
static void whatever_the_log_is_the_database_opens(void **state)
{
	uint64_t random = 0x9e3779b97f4a7c15ull;
	struct killed k;
	struct folder f;
	char path[128];

	(void)state;
	leave_log(&f, &k);
	snprintf(path, sizeof(path), "%s-wal", f.db);
	for (size_t round = 0; round < 100; round++) {
		_cleanup_(freep) char *log = malloc(k.log_len);
		size_t len = round < 60 ? round : k.log_len;
		struct store *s = NULL;
		struct err err = { 0 };

		memcpy(log, k.log, k.log_len);
		for (size_t i = 0; round >= 60 && i < round % 20; i++) {
			random ^= random << 13;
			random ^= random >> 7;
			random ^= random << 17;
			/* every fourth in the headers at the beginning */
			log[random % (i % 4 ? k.log_len : 80)] = (char)(random >> 40);
			len -= random >> 60 == 0 ? random % len : 0;
		}
		folder_empty(&f);
		write_all(f.db, k.db, k.db_len);
		write_all(path, log, len);
		if (store_open(f.db, NULL, &s, &err) < 0 || store_check(s, &err) < 0)
			fail_msg("round %zu: %s", round, err.text);
		assert_in_range(count_whole(s, "a"), 0, 5);
		assert_begin_is_right_or_refused(s, "a");
		say(s, &bob, "his", "goes", "on", 1, 4);
		store_free(s);
	}
	free(k.db);
	free(k.log);
	folder_close(&f);
}

/* A sector of the log that is lost looks like a power cut: what was written before it is there, and it is told. */
static void more_damage_to_the_log_is_told_and_takes_what_came_after(void **state)
{
	struct store_counts n;
	struct killed k;
	struct folder f;
	char sector[512];
	uint32_t n_before = 0;

	(void)state;
	memset(sector, 0x5a, sizeof(sector));
	leave_log(&f, &k);
	for (size_t at = 32; at < k.log_len; at += LOG_FRAME) {
		const uint32_t whole = live_on_log(&f, &k, at + 3000, sector, 512, &n);

		assert_int_equal(n.n_set_aside + n.n_log_lost, 0);
		assert_int_equal(n.n_log_torn, 1);
		assert_in_range(whole, n_before, 4);
		n_before = whole;
	}
	assert_int_equal(n_before, 4);
	free(k.db);
	free(k.log);
	folder_close(&f);
}

static void a_damaged_turn_is_named_and_rewinding_goes_on_without_it(void **state)
{
	_cleanup_(store_begun_deinit) struct store_begun b = { 0 };
	struct store *s;
	struct bytes out = { 0 };
	struct err err = { 0 };
	struct folder f;
	char *data, *at;
	size_t len;

	(void)state;
	folder_open(&f);
	s = open_store(&f);
	say(s, &alice, "a", "first question", "one", 0, 4);
	say(s, &alice, "a", "second question", "two", 4, 4);
	say(s, &alice, "a", "third question", "three", 8, 4);
	store_free(s);
	data = read_all(f.db, &len);
	at = memmem(data, len, "second question", 15);
	assert_non_null(at);
	*at ^= 1;
	write_all(f.db, data, len);
	free(data);

	s = open_store(&f);
	assert_int_equal(store_check(s, &err), 0);
	assert_int_equal(begin(s, &alice, "a", "x", &b, &err), -EUCLEAN);
	assert_string_equal(err.text, "turn 2 of session 'a' is damaged: rewind to turn 1 to go on "
				      "without it");
	assert_int_equal(store_rewind(s, &alice, SPAN("a"), 1, &out, &err), 0);
	bytes_deinit(&out);
	assert_int_equal(begin(s, &alice, "a", "x", &b, &err), 0);
	assert_int_equal(b.turn, 2);
	assert_int_equal(b.n_ids, 4);
	store_free(s);
	folder_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_kill_or_a_power_cut_at_any_write_loses_nothing_saved),
		cmocka_unit_test(a_disk_that_fails_once_at_any_write_costs_what_it_failed_at),
		cmocka_unit_test(what_was_not_synced_is_lost_in_a_power_cut),
		cmocka_unit_test(a_flipped_bit_is_found_and_costs_one_turn_at_most),
		cmocka_unit_test(a_flipped_bit_of_the_log_is_put_right_or_told),
		cmocka_unit_test(a_disk_that_fails_once_at_any_read_sets_nothing_aside),
		cmocka_unit_test(whatever_the_log_is_the_database_opens),
		cmocka_unit_test(more_damage_to_the_log_is_told_and_takes_what_came_after),
		cmocka_unit_test(a_damaged_turn_is_named_and_rewinding_goes_on_without_it),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
