/* Headers of safetensors files: what is accepted, and each refusal's sentence. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>
#include <sys/stat.h>

#include "daemon/exec/weights/safetensors.h"

static char dir[] = "/tmp/test-safetensors-XXXXXX";
static char path[64];

static int make_dir(void **state)
{
	(void)state;
	if (!mkdtemp(dir))
		return -1;
	snprintf(path, sizeof(path), "%s/m.safetensors", dir);
	return 0;
}

static int remove_dir(void **state)
{
	(void)state;
	unlink(path);
	return rmdir(dir);
}

/* Length, @header, then zeroes up to @file_bytes; the length may lie. */
static void write_file(uint64_t length, const char *header, uint64_t file_bytes)
{
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	assert_int_equal(fwrite(&length, 8, 1, f), 1);
	assert_int_equal(fwrite(header, 1, strlen(header), f), strlen(header));
	assert_int_equal(fflush(f), 0);
	assert_int_equal(ftruncate(fileno(f), (off_t)file_bytes), 0);
	fclose(f);
}

static void refused_file(const char *sentence)
{
	struct st_file *f = NULL;
	struct err err = { 0 };
	char wanted[512];

	assert_int_equal(st_file_open(path, &f, &err), -EBADMSG);
	assert_null(f);
	snprintf(wanted, sizeof(wanted), "'%s': %s", path, sentence);
	assert_string_equal(err.text, wanted);
}

static void refused(const char *header, uint64_t data_bytes, const char *sentence)
{
	struct st_file *f = NULL;
	struct err err = { 0 };

	assert_int_equal(st_header_parse(header, strlen(header), data_bytes, &f, &err), -EBADMSG);
	assert_null(f);
	assert_string_equal(err.text, sentence);
}

#define A(shape, from, to)                                                                         \
	"\"a\": {\"dtype\": \"BF16\", \"shape\": " shape ", \"data_offsets\": [" from ", " to "]}"
#define B(shape, from, to)                                                                         \
	"\"b\": {\"dtype\": \"F32\", \"shape\": " shape ", \"data_offsets\": [" from ", " to "]}"

static void tensors_are_found_by_name_and_by_offset(void **state)
{
	static const char header[] = "{\"__metadata__\": {\"format\": \"pt\"}, " B(
		"[]", "4", "8") ", " A("[1, 2]", "0", "4") "}  ";
	_cleanup_(st_file_closep) struct st_file *f = NULL;
	struct err err = { 0 };
	char text[64];

	(void)state;
	assert_int_equal(st_header_parse(header, strlen(header), 8, &f, &err), 0);
	assert_int_equal(st_file_count(f), 2);
	assert_string_equal(st_file_at(f, 0)->name, "a");
	assert_string_equal(st_file_at(f, 1)->name, "b");
	assert_int_equal(st_file_find(f, "a")->offset, 8 + strlen(header));
	assert_int_equal(st_file_find(f, "b")->rank, 0);
	assert_int_equal(st_file_find(f, "b")->type, DT_F32);
	assert_null(st_file_find(f, "c"));
	assert_null(st_file_find(f, "__metadata__"));
	assert_string_equal(st_tensor_describe(st_file_find(f, "a"), text, sizeof(text)),
			    "BF16 [1, 2]");
}

static void an_empty_tensor_and_an_unknown_type_are_accepted(void **state)
{
	static const char header[] =
		"{" A("[0, 5]", "0", "0") ", \"n\": {\"dtype\": \"F4\", "
					  "\"shape\": [3], \"data_offsets\": [0, 2]}}";
	_cleanup_(st_file_closep) struct st_file *f = NULL;

	(void)state;
	assert_int_equal(st_header_parse(header, strlen(header), 2, &f, NULL), 0);
	assert_int_equal(st_file_find(f, "n")->type, DT_NONE);
	assert_string_equal(st_file_find(f, "n")->type_name, "F4");
}

static void ranges_cover_the_data_exactly(void **state)
{
	(void)state;
	refused("{" A("[4]", "0", "8") ", " B("[2]", "6", "14") "}", 14,
		"tensors 'a' and 'b' overlap by 2 bytes");
	refused("{" A("[4]", "0", "8") ", " B("[2]", "10", "18") "}", 18,
		"2 bytes before tensor 'b' belong to no tensor");
	refused("{" A("[4]", "4", "12") "}", 12, "4 bytes before tensor 'a' belong to no tensor");
	refused("{" A("[4]", "0", "8") "}", 9, "the last 1 bytes belong to no tensor");
	refused("{" A("[4]", "0", "8") "}", 7,
		"tensor 'a' ends at byte 8 of the data, but the file has only 7: it is truncated");
}

static void a_shape_that_does_not_match_its_bytes_is_refused(void **state)
{
	(void)state;
	refused("{" A("[4, 2]", "0", "8") "}", 8,
		"tensor 'a': BF16 [4, 2] takes 16 bytes, but 'data_offsets' hold 8");
	refused("{" A("[4294967296, 4294967296]", "0", "8") "}", 8,
		"tensor 'a': 'shape' is larger than any file");
	refused("{" A("[-4]", "0", "8") "}", 8,
		"tensor 'a': 'shape' has something that is no size");
	refused("{" A("[1,1,1,1,1,1,1,1,4]", "0", "8") "}", 8,
		"tensor 'a': no 'shape' of at most 8 dimensions");
	refused("{" A("[4]", "8", "0") "}", 8,
		"tensor 'a': 'data_offsets' is no pair of rising offsets");
	refused("{\"a\": {\"shape\": [4], \"data_offsets\": [0, 8]}}", 8,
		"tensor 'a': no 'dtype' string");
	refused("{\"a\": 5}", 8, "tensor 'a': no 'dtype' string");
}

static void a_name_twice_or_no_json_is_refused(void **state)
{
	(void)state;
	refused("{" A("[4]", "0", "8") ", " A("[4]", "8", "16") "}", 16,
		"the header has a name twice: duplicate object key near '\"a\"'");
	refused("[]", 0, "the header does not begin with '{'");
	refused("{\"a\"", 0, "the header is not JSON: ':' expected near end of file");
}

static void a_header_that_lies_about_its_length_is_refused(void **state)
{
	(void)state;
	write_file(100000001, "{}", 200000000);
	refused_file("a header of 100000001 bytes, wanted at most 100000000");
	write_file(UINT64_MAX, "{}", 100);
	refused_file("a header of 18446744073709551615 bytes, wanted at most 100000000");
	write_file(50, "{}", 20);
	refused_file("a header of 50 bytes, but the file has only 20: it is truncated");
	write_file(0, "", 5);
	refused_file("5 bytes, wanted at least the 8 of the header's length: it is truncated");
	write_file(0, "", 8);
	refused_file("the header does not begin with '{'");
}

static void a_pointer_of_git_lfs_is_explained(void **state)
{
	static const char text[] = "version https://git-lfs.github.com/spec/v1\noid sha256:00\n";
	uint64_t first;

	(void)state;
	memcpy(&first, text, 8);
	write_file(first, text + 8, sizeof(text) - 1);
	refused_file("a Git LFS pointer, wanted the file itself (git lfs pull)");
}

static void a_file_that_got_shorter_or_was_written_is_noticed(void **state)
{
	static const char header[] = "{" A("[4]", "0", "8") "}";
	_cleanup_(st_file_closep) struct st_file *f = NULL;
	const struct timespec later[2] = { { 2000000000, 0 }, { 2000000000, 0 } };
	struct err err = { 0 };
	char buffer[8], wanted[256];

	(void)state;
	write_file(strlen(header), header, 8 + strlen(header) + 8);
	assert_int_equal(st_file_open(path, &f, &err), 0);
	assert_int_equal(st_file_read(f, st_file_at(f, 0), buffer, &err), 0);
	assert_int_equal(st_file_unchanged(f, &err), 0);
	assert_int_equal(utimensat(AT_FDCWD, path, later, 0), 0);
	assert_int_equal(st_file_unchanged(f, &err), -EBADMSG);
	snprintf(wanted, sizeof(wanted), "'%s' was written to since it was opened", path);
	assert_string_equal(err.text, wanted);

	assert_int_equal(truncate(path, (off_t)strlen(header) + 12), 0);
	assert_int_equal(st_file_read(f, st_file_at(f, 0), buffer, &err), -EIO);
	snprintf(wanted, sizeof(wanted),
		 "'%s': tensor 'a': the file has nothing at byte %zu, wanted all up to %zu: it got "
		 "shorter",
		 path, strlen(header) + 12, strlen(header) + 16);
	assert_string_equal(err.text, wanted);
	assert_int_equal(st_file_unchanged(f, &err), -EBADMSG);
}

static void every_truncation_of_a_header_is_refused(void **state)
{
	static const char header[] = "{" A("[4]", "0", "8") ", " B("[2]", "8", "16") "}";
	struct st_file *f;

	(void)state;
	for (size_t n = 0; n < strlen(header); n++)
		assert_int_equal(st_header_parse(header, n, 16, &f, NULL), -EBADMSG);
}

static void an_index_names_plain_files_only(void **state)
{
	static const struct {
		const char *text, *sentence;
	} cases[] = {
		{ "{\"weight_map\": {\"a\": \"../m.safetensors\"}}",
		  "weight_map names the file '../m.safetensors', wanted a plain name without '/' "
		  "and '..'" },
		{ "{\"weight_map\": {\"a\": \"d/m\"}}",
		  "weight_map names the file 'd/m', wanted a plain name without '/' and '..'" },
		{ "{\"weight_map\": {\"a\": \"\"}}",
		  "weight_map names the file '', wanted a plain name without '/' and '..'" },
		{ "{\"weight_map\": {\"a\": 3}}", "weight_map: 'a' names no file" },
		{ "{\"weight_map\": {}}", "weight_map has 0 tensors, wanted 1 to 4000000" },
		{ "{}", "no object 'weight_map'" },
		{ "{", "not JSON: string or '}' expected near end of file in line 1" },
	};
	static const char good[] = "{\"weight_map\": {\"a\": \"x\", \"b\": \"y\", \"c\": \"x\"}}";
	_cleanup_(st_index_freep) struct st_index *x = NULL;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct err err = { 0 };

		assert_int_equal(st_index_parse(cases[i].text, strlen(cases[i].text), &x, &err),
				 -EBADMSG);
		assert_string_equal(err.text, cases[i].sentence);
	}
	assert_int_equal(st_index_parse(good, strlen(good), &x, NULL), 0);
	assert_int_equal(x->n_files, 2);
	assert_int_equal(x->n_tensors, 3);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(tensors_are_found_by_name_and_by_offset),
		cmocka_unit_test(an_empty_tensor_and_an_unknown_type_are_accepted),
		cmocka_unit_test(ranges_cover_the_data_exactly),
		cmocka_unit_test(a_shape_that_does_not_match_its_bytes_is_refused),
		cmocka_unit_test(a_name_twice_or_no_json_is_refused),
		cmocka_unit_test(a_header_that_lies_about_its_length_is_refused),
		cmocka_unit_test(a_pointer_of_git_lfs_is_explained),
		cmocka_unit_test(a_file_that_got_shorter_or_was_written_is_noticed),
		cmocka_unit_test(every_truncation_of_a_header_is_refused),
		cmocka_unit_test(an_index_names_plain_files_only),
	};

	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
