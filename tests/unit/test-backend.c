/* Instruction sets, threads and memory of a device. */
#include <errno.h>
#include <math.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <dirent.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/backend.h"
#include "kernels/cpu/dpbf16.h"
#include "kernels/cpu/topology.h"

struct visits {
	_Atomic uint32_t calls[8];
	uint32_t n_threads;
	_Atomic uint32_t denormals;
};

static void visit(void *userdata, uint32_t thread, uint32_t n_threads)
{
	struct visits *v = userdata;
	volatile float tiny = 1e-38f;

	v->calls[thread]++;
	if (tiny * 0.01f != 0)
		v->denormals++;
	if (thread == 0)
		v->n_threads = n_threads;
}

static void names_are_read_back(void **state)
{
	enum isa isa;

	(void)state;
	for (int i = 0; i < ISA_N; i++) {
		assert_int_equal(isa_parse(isa_name(i), &isa), 0);
		assert_int_equal(isa, i);
	}
	assert_int_equal(isa_parse("avx512bf16-emulated", &isa), 0);
	assert_int_equal(isa, ISA_AVX512BF16_EMULATED);
	assert_int_equal(isa_parse("auto", &isa), 0);
	assert_int_equal(isa, isa_best());
	assert_int_equal(isa_parse("AVX2", &isa), -EINVAL);
	assert_int_equal(isa_parse("", &isa), -EINVAL);
}

static void the_best_instruction_set_is_a_supported_and_real_one(void **state)
{
	(void)state;
	assert_true(isa_supported(isa_best()));
	assert_true(isa_best() != ISA_REF && isa_best() != ISA_AVX512BF16_EMULATED);
	assert_true(isa_supported(ISA_REF) && isa_supported(ISA_PORTABLE));
	assert_false(isa_supported(ISA_N));
}

static void a_missing_instruction_set_is_refused(void **state)
{
	struct dev *dev = NULL;
	int missing = 0;

	(void)state;
	for (int isa = 0; isa <= ISA_N; isa++) {
		if (isa_supported(isa))
			continue;
		assert_int_equal(dev_open(isa, 1, &dev), -ENOTSUP);
		assert_null(dev);
		missing++;
	}
	assert_true(missing >= 1); /* ISA_N itself */
}

static void work_runs_once_on_every_thread_each_time(void **state)
{
	(void)state;
	for (uint32_t threads = 1; threads <= 5; threads++) {
		struct visits v = { 0 };
		struct dev *dev;

		assert_int_equal(dev_open(ISA_PORTABLE, threads, &dev), 0);
		assert_int_equal(dev_threads(dev), threads);
		for (int i = 0; i < 200; i++)
			dev_run(dev, visit, &v);
		assert_int_equal(v.n_threads, threads);
		for (uint32_t t = 0; t < 8; t++)
			assert_int_equal(v.calls[t], t < threads ? 200 : 0);
		assert_int_equal(v.denormals, 0);
		dev_close(dev);
	}
}

static void note_cpus(void *userdata, uint32_t thread, uint32_t n_threads)
{
	cpu_set_t *cpus = userdata;

	(void)n_threads;
	sched_getaffinity(0, sizeof(*cpus), &cpus[thread]);
}

static void threads_may_use_all_processors_and_the_caller_gets_its_own_back(void **state)
{
	cpu_set_t before, after, of[2];
	volatile float tiny = 1e-38f;
	struct topology topology;
	struct dev *dev;

	(void)state;
	sched_getaffinity(0, sizeof(before), &before);
	topology_read(&before, &topology);
	assert_int_equal(dev_open(ISA_PORTABLE, 0, &dev), 0);
	assert_int_equal(dev_threads(dev), topology_threads(&topology));
	dev_close(dev);

	assert_int_equal(dev_open(ISA_PORTABLE, 2, &dev), 0);
	dev_run(dev, note_cpus, of);
	for (uint32_t i = 0; topology.n_nodes == 1 && i < 2; i++)
		assert_true(CPU_EQUAL(&of[i], &before));
	dev_close(dev);
	sched_getaffinity(0, sizeof(after), &after);
	assert_true(CPU_EQUAL(&before, &after));
	assert_true(tiny * 0.01f != 0);
}

static void note_thread(void *userdata, uint32_t thread, uint32_t n_threads)
{
	(void)n_threads;
	((pid_t *)userdata)[thread] = gettid();
}

/* All on one processor, the others wait until the caller waits; it does not. */
static void a_run_waits_for_no_thread_that_has_not_begun(void **state)
{
	cpu_set_t before, one;
	uint32_t alone = 0;
	struct dev *dev;
	int cpu = 0;

	(void)state;
	sched_getaffinity(0, sizeof(before), &before);
	while (!CPU_ISSET(cpu, &before))
		cpu++;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	sched_setaffinity(0, sizeof(one), &one);
	assert_int_equal(dev_open(ISA_PORTABLE, 3, &dev), 0);
	for (int i = 0; i < 200; i++) {
		pid_t by[3] = { 0 };

		dev_run(dev, note_thread, by);
		assert_true(by[0] == gettid() && by[1] != 0 && by[2] != 0);
		alone += by[1] == gettid() && by[2] == gettid();
	}
	assert_in_range(alone, 100, 200);
	dev_close(dev);
	sched_setaffinity(0, sizeof(before), &before);
}

/* Voluntary context switches of all threads of this process but the calling one. */
static long wake_ups(void)
{
	char path[300], line[128];
	struct dirent *entry;
	long total = 0, n;
	DIR *tasks = opendir("/proc/self/task");

	while ((entry = readdir(tasks))) {
		FILE *f;

		if (atoi(entry->d_name) == 0 || atoi(entry->d_name) == gettid())
			continue;
		snprintf(path, sizeof(path), "/proc/self/task/%s/status", entry->d_name);
		f = fopen(path, "re");
		while (f && fgets(line, sizeof(line), f))
			if (sscanf(line, "voluntary_ctxt_switches: %ld", &n) == 1)
				total += n;
		if (f)
			fclose(f);
	}
	closedir(tasks);
	return total;
}

static void idle_threads_do_not_wake_up(void **state)
{
	const struct timespec settle = { .tv_nsec = 50000000 }, idle = { .tv_nsec = 500000000 };
	struct visits v = { 0 };
	struct dev *dev;
	long before;

	(void)state;
	assert_int_equal(dev_open(ISA_PORTABLE, 4, &dev), 0);
	dev_run(dev, visit, &v);
	nanosleep(&settle, NULL);
	before = wake_ups();
	nanosleep(&idle, NULL);
	assert_int_equal(wake_ups() - before, 0);
	dev_run(dev, visit, &v);
	assert_int_equal(v.calls[3], 2);
	dev_close(dev);
}

static void memory_is_backed_zeroed_given_back_and_sealed(void **state)
{
	const size_t mib = 1 << 20;
	struct dev *dev;
	uint8_t *at;

	(void)state;
	assert_int_equal(dev_open(ISA_PORTABLE, 1, &dev), 0);
	at = dev_reserve(dev, 64 * mib);
	assert_non_null(at);
	assert_int_equal(dev_back(dev, at + 8 * mib, 4 * mib), 0);
	assert_int_equal(at[8 * mib] | at[12 * mib - 1], 0);
	at[9 * mib] = 7;
	assert_int_equal(dev_unback(dev, at + 8 * mib, 4 * mib), 0);
	assert_int_equal(dev_back(dev, at + 8 * mib, 4 * mib), 0);
	assert_int_equal(at[9 * mib], 0);
	assert_int_equal(dev_seal(dev, at + 8 * mib, 4 * mib), 0);
	/* a read into sealed memory fails in the kernel, without a signal */
	assert_int_equal(getcwd((char *)at + 8 * mib, 4096) != NULL || errno != EFAULT, 0);
	assert_int_equal(dev_back(dev, at + 63 * mib, 2 * mib), -EINVAL);
	assert_int_equal(dev_back(dev, at, 0), 0);
	assert_null(dev_reserve(dev, SIZE_MAX / 2));
	assert_null(dev_reserve(dev, SIZE_MAX));
	dev_close(dev);
}

static void large_memory_begins_where_a_huge_page_can(void **state)
{
	const size_t huge = 2 << 20;
	struct dev *dev;

	(void)state;
	assert_int_equal(dev_open(ISA_PORTABLE, 1, &dev), 0);
	for (int i = 0; i < 8; i++) {
		char *at = dev_reserve(dev, huge + 4096 * (size_t)i);

		assert_int_equal((uintptr_t)at % huge, 0);
		assert_int_equal(dev_back(dev, at, huge + 4096 * (size_t)i), 0);
		at[huge - 1] = 1;
		assert_int_equal(dev_back(dev, at, huge + 4096 * (size_t)i + 1), -EINVAL);
		assert_non_null(dev_reserve(dev, 4096)); /* and the next is not by chance */
	}
	dev_close(dev);
}

static void the_cache_is_bf16_but_for_the_reference(void **state)
{
	struct dev *dev;

	(void)state;
	assert_int_equal(dev_open(ISA_REF, 1, &dev), 0);
	assert_int_equal(dev_kv_type(dev), DT_F32);
	assert_int_equal(dev_isa(dev), ISA_REF);
	dev_close(dev);
	assert_int_equal(dev_open(ISA_PORTABLE, 1, &dev), 0);
	assert_int_equal(dev_kv_type(dev), DT_BF16);
	dev_close(dev);
}

static void the_bf16_dot_product_adds_high_then_low_and_flushes_denormals(void **state)
{
	(void)state;
	/* 2 * 3 + 4 * 5 + 1 */
	assert_true(dpbf16(1, 0x40004080, 0x404040a0) == 27);
	/* 2^24 + 1 is 2^24, to even, so adding -2^24 after the 1 gives 0, before it 1 */
	assert_true(dpbf16(16777216.0f, 0x3f80cb80, 0x3f803f80) == 0);
	assert_true(dpbf16(16777216.0f, 0xcb803f80, 0x3f803f80) == 1);
	/* a denormal weight times 2^100, a denormal sum, a denormal result */
	assert_true(dpbf16(0, 0x0040, 0x7180) == 0);
	assert_true(dpbf16(1e-40f, 0, 0) == 0);
	assert_true(dpbf16(0, 0x0080, 0x3f00) == 0);
	assert_true(dpbf16(0, 0x0080, 0x3f80) == 0x1p-126f);
	assert_true(isnan(dpbf16(0, 0x7fc0, 0x3f80)));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(names_are_read_back),
		cmocka_unit_test(the_best_instruction_set_is_a_supported_and_real_one),
		cmocka_unit_test(a_missing_instruction_set_is_refused),
		cmocka_unit_test(work_runs_once_on_every_thread_each_time),
		cmocka_unit_test(threads_may_use_all_processors_and_the_caller_gets_its_own_back),
		cmocka_unit_test(a_run_waits_for_no_thread_that_has_not_begun),
		cmocka_unit_test(idle_threads_do_not_wake_up),
		cmocka_unit_test(memory_is_backed_zeroed_given_back_and_sealed),
		cmocka_unit_test(large_memory_begins_where_a_huge_page_can),
		cmocka_unit_test(the_cache_is_bf16_but_for_the_reference),
		cmocka_unit_test(the_bf16_dot_product_adds_high_then_low_and_flushes_denormals),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
