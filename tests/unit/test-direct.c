/* Reads past the page cache and out of it, at every alignment, and at the end of a file. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/exec/weights/direct.h"

#define FILE_BYTES (40u * DIRECT_ALIGN + 777)

static uint8_t byte_at(uint64_t at)
{
	return (uint8_t)(at * 131 + at / 4096);
}

static void fill(int fd)
{
	uint8_t *bytes = malloc(FILE_BYTES);

	for (uint64_t i = 0; i < FILE_BYTES; i++)
		bytes[i] = byte_at(i);
	assert_int_equal(pwrite(fd, bytes, FILE_BYTES, 0), FILE_BYTES);
	fdatasync(fd);
	free(bytes);
}

/* In the build directory, which more often than /tmp is on a file system with a disk. */
static int file_new(void)
{
	char path[] = "test-direct-XXXXXX";
	const int fd = mkstemp(path);

	assert_true(fd >= 0);
	unlink(path);
	fill(fd);
	return fd;
}

static void check(const struct direct *d, uint64_t at, size_t bytes)
{
	const size_t left = at < FILE_BYTES ? FILE_BYTES - at : 0,
		     there = bytes < left ? bytes : left;
	void *room = aligned_alloc(DIRECT_ALIGN,
				   (DIRECT_ROOM(bytes) + DIRECT_ALIGN - 1) & ~(DIRECT_ALIGN - 1ul));
	void *data = NULL;

	assert_int_equal(direct_read(d, at, bytes, room, &data), there);
	for (size_t i = 0; i < there; i++)
		assert_int_equal(((uint8_t *)data)[i], byte_at(at + i));
	free(room);
}

static void check_all(const struct direct *d, int fd)
{
	static const uint64_t begins[] = { 0, 1, 4095, 4096, 4097, 8192, 20000, FILE_BYTES - 1 };
	static const size_t sizes[] = {
		1, 100, 4095, 4096, 4097, 50000, FILE_BYTES, 2 * FILE_BYTES
	};

	for (size_t i = 0; i < 8; i++)
		for (size_t k = 0; k < 8; k++) {
			posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
			check(d, begins[i], sizes[k]);
			check(d, begins[i], sizes[k]); /* now perhaps out of the cache */
		}
	check(d, FILE_BYTES, 1);
	check(d, FILE_BYTES + 100000, 5000);
}

static void every_range_of_a_file_is_read(void **state)
{
	const int fd = file_new();
	struct direct d;

	(void)state;
	direct_init(&d, fd);
	check_all(&d, fd);
	direct_deinit(&d);
	direct_deinit(&d);
	close(fd);
}

static void a_file_half_in_the_page_cache_is_whole(void **state)
{
	const int fd = file_new();
	struct direct d;
	char byte;

	(void)state;
	direct_init(&d, fd);
	for (int page = 0; page < 40; page++) {
		posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
		for (int i = 0; i <= page; i++)
			assert_int_equal(pread(fd, &byte, 1, (off_t)i * DIRECT_ALIGN), 1);
		check(&d, 5, FILE_BYTES - 9);
	}
	direct_deinit(&d);
	close(fd);
}

static void a_file_that_knows_no_direct_reads_is_read_all_the_same(void **state)
{
	const int fd = memfd_create("test", MFD_CLOEXEC);
	struct direct d;

	(void)state;
	fill(fd);
	direct_init(&d, fd);
	check_all(&d, fd);
	direct_deinit(&d);
	d = (struct direct){ fd, -1 };
	check_all(&d, fd);
	close(fd);
}

static void a_descriptor_that_cannot_be_read_says_so(void **state)
{
	const int fd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	_Alignas(DIRECT_ALIGN) static char room[3 * DIRECT_ALIGN];
	struct direct d;
	void *data;

	(void)state;
	direct_init(&d, fd);
	assert_int_equal(direct_read(&d, 0, 100, room, &data), -EISDIR);
	direct_deinit(&d);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_range_of_a_file_is_read),
		cmocka_unit_test(a_file_half_in_the_page_cache_is_whole),
		cmocka_unit_test(a_file_that_knows_no_direct_reads_is_read_all_the_same),
		cmocka_unit_test(a_descriptor_that_cannot_be_read_says_so),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
