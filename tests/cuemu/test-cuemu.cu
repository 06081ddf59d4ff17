/* The emulator itself: what it computes, and that it finds what is planted. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

extern "C" {
#include <cmocka.h>
}

#include "kernels/cuda/ptx.h"
#include "tests/cuemu/cuemu.h"

template <typename... P, typename... A>
static cudaError_t run(void (*k)(P...), dim3 grid, dim3 block, size_t shared_bytes, A... args)
{
	cudaLaunchConfig_t config = {};

	config.gridDim = grid;
	config.blockDim = block;
	config.dynamicSmemBytes = shared_bytes;
	return cudaLaunchKernelEx(&config, k, static_cast<P>(args)...);
}

template <typename T> static T *device(size_t n)
{
	T *at;

	assert_int_equal(cudaMalloc(&at, n * sizeof(T)), cudaSuccess);
	return at;
}

template <typename T> static void up(T *to, const T *from, size_t n)
{
	assert_int_equal(cudaMemcpy(to, from, n * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
}

template <typename T> static void down(T *to, const T *from, size_t n)
{
	assert_int_equal(cudaMemcpy(to, from, n * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
}

static uint16_t narrow(float value)
{
	uint32_t bits;

	memcpy(&bits, &value, sizeof(bits));
	return (uint16_t)(bits >> 16);
}

static float widen(uint16_t half)
{
	const uint32_t bits = (uint32_t)half << 16;
	float value;

	memcpy(&value, &bits, sizeof(value));
	return value;
}

/* c[16x8] = a[16x16] b[16x8], a through load_matrices(), b row-major through the transposed form. */
static __global__ void k_product(float *c, const uint16_t *a, const uint16_t *b)
{
	uint16_t *to_a = shared_memory<uint16_t>(), *to_b = to_a + 256;
	const uint32_t lane = threadIdx.x;
	uint32_t fa[4], fb[4], first[2];
	float d[4] = { 0, 0, 0, 0 };

	for (uint32_t i = lane; i < 256; i += 32)
		to_a[i] = a[i];
	for (uint32_t i = lane; i < 128; i += 32)
		to_b[i] = b[i];
	__syncwarp();
	load_matrices(fa, to_a + lane % 16 * 16 + lane / 16 * 8);
	load_matrices_transposed(fb, to_b + lane % 16 * 8);
	first[0] = fb[0];
	first[1] = fb[1];
	mma_bf16(d, fa, first);
	c[lane / 4 * 8 + lane % 4 * 2] = d[0];
	c[lane / 4 * 8 + lane % 4 * 2 + 1] = d[1];
	c[(lane / 4 + 8) * 8 + lane % 4 * 2] = d[2];
	c[(lane / 4 + 8) * 8 + lane % 4 * 2 + 1] = d[3];
}

static void a_product_of_fragments_is_the_plain_product(void **)
{
	uint16_t a[256], b[128], *on_a = device<uint16_t>(256), *on_b = device<uint16_t>(128);
	float c[128], *on_c = device<float>(128);

	for (int i = 0; i < 256; i++)
		a[i] = narrow((float)(i * 37 % 101 - 50));
	for (int i = 0; i < 128; i++)
		b[i] = narrow((float)(i * 53 % 89 - 44));
	up(on_a, a, 256);
	up(on_b, b, 128);
	assert_int_equal(run(k_product, 1, 32, 768, on_c, on_a, on_b), cudaSuccess);
	down(c, on_c, 128);
	for (int i = 0; i < 16; i++) {
		for (int j = 0; j < 8; j++) {
			float sum = 0;

			for (int k = 0; k < 16; k++)
				sum += widen(a[i * 16 + k]) * widen(b[k * 8 + j]);
			assert_true(c[i * 8 + j] == sum);
		}
	}
	cudaFree(on_a);
	cudaFree(on_b);
	cudaFree(on_c);
}

static __global__ void k_matrices(uint32_t *plain, uint32_t *transposed)
{
	uint16_t *m = shared_memory<uint16_t>();
	uint32_t r[4];

	for (uint32_t i = threadIdx.x; i < 256; i += 32)
		m[i] = (uint16_t)i;
	__syncwarp();
	load_matrices(r, m + threadIdx.x * 8);
	for (int i = 0; i < 4; i++)
		plain[threadIdx.x * 4 + i] = r[i];
	load_matrices_transposed(r, m + threadIdx.x * 8);
	for (int i = 0; i < 4; i++)
		transposed[threadIdx.x * 4 + i] = r[i];
}

static void matrices_come_as_fragments(void **)
{
	uint32_t got[256], *on_got = device<uint32_t>(256);

	assert_int_equal(run(k_matrices, 1, 32, 512, on_got, on_got + 128), cudaSuccess);
	down(got, on_got, 256);
	/* lane 5: row 1, columns 2 and 3 of each matrix of 64 */
	assert_int_equal(got[5 * 4], 10 | 11 << 16);
	assert_int_equal(got[5 * 4 + 3], 202 | 203 << 16);
	/* transposed: rows 2 and 3, column 1 */
	assert_int_equal(got[128 + 5 * 4], 17 | 25 << 16);
	assert_int_equal(got[128 + 5 * 4 + 2], 145 | 153 << 16);
	cudaFree(on_got);
}

static __global__ void k_shuffles(uint32_t *y)
{
	const uint32_t lane = threadIdx.x % 32, all = 0xffffffffu;
	uint32_t *to = y + threadIdx.x * 8;

	to[0] = __shfl_sync(all, lane * 3, 5);
	to[1] = __shfl_xor_sync(all, lane, 16);
	to[2] = __shfl_up_sync(all, lane, 2);
	to[3] = __shfl_down_sync(all, lane, 3, 8);
	to[4] = __ballot_sync(all, lane % 3 == 0);
	to[5] = __reduce_add_sync(all, lane);
	if (lane < 16) /* a part of the warp */
		to[6] = __shfl_xor_sync(0xffffu, lane, 1);
	else
		to[6] = __reduce_max_sync(0xffff0000u, lane);
	to[7] = __syncthreads_count(lane == 0);
}

static void lanes_exchange_values(void **)
{
	uint32_t got[64 * 8], *on_got = device<uint32_t>(64 * 8);

	assert_int_equal(run(k_shuffles, 1, 64, 0, on_got), cudaSuccess);
	down(got, on_got, 64 * 8);
	for (uint32_t t = 0; t < 64; t++) {
		const uint32_t lane = t % 32, *of = got + t * 8;

		assert_int_equal(of[0], 15);
		assert_int_equal(of[1], lane ^ 16);
		assert_int_equal(of[2], lane < 2 ? lane : lane - 2);
		assert_int_equal(of[3], lane % 8 < 5 ? lane + 3 : lane);
		assert_int_equal(of[4], 0x49249249u);
		assert_int_equal(of[5], 496);
		assert_int_equal(of[6], lane < 16 ? lane ^ 1 : 31);
		assert_int_equal(of[7], 2);
	}
	cudaFree(on_got);
}

/* The sum over the grid, by the block that comes last, in the order of blocks. */
static __global__ void k_last_sums(float *y, float *parts, uint32_t *arrived)
{
	__shared__ uint32_t last;

	if (threadIdx.x == 0) {
		parts[blockIdx.x] = 1.0f / (float)(blockIdx.x + 3);
		__threadfence();
		last = atomicAdd(arrived, 1) == gridDim.x - 1;
	}
	__syncthreads();
	if (last && threadIdx.x == 0) {
		float sum = 0;

		for (uint32_t i = 0; i < gridDim.x; i++)
			sum += parts[i];
		*y = sum;
		*arrived = 0;
	}
}

static void blocks_run_in_every_order(void **)
{
	const uint32_t zero = 0;
	uint32_t *arrived = device<uint32_t>(1);
	float *y = device<float>(1), *parts = device<float>(50), got[CUEMU_ORDERS];

	up(arrived, &zero, 1);
	for (int order = 0; order < CUEMU_ORDERS; order++) {
		cuemu_set_order((enum cuemu_order)order);
		assert_int_equal(run(k_last_sums, 50, 64, 0, y, parts, arrived), cudaSuccess);
		down(&got[order], y, 1);
	}
	cuemu_set_order(CUEMU_FORWARDS);
	assert_memory_equal(&got[0], &got[1], sizeof(float));
	assert_memory_equal(&got[0], &got[2], sizeof(float));
	cudaFree(arrived);
	cudaFree(y);
	cudaFree(parts);
}

static __global__ void k_copies(uint32_t *y, const uint32_t *x, int mistake)
{
	uint32_t *s = shared_memory<uint32_t>();

	copy_async(s + threadIdx.x * 4, x + threadIdx.x * 4);
	copy_async_commit();
	copy_async(s + 256 + threadIdx.x * 4, x + threadIdx.x * 4);
	copy_async_commit();
	if (mistake != 1)
		copy_async_wait<1>();
	if (mistake != 2)
		__syncthreads();
	y[threadIdx.x] = s[threadIdx.x];
	if (mistake == 3)
		y[threadIdx.x] = s[256 + threadIdx.x];
	copy_async_wait<0>();
}

/* The fault that @k makes, which has to begin with @want; then all is well again. */
template <typename... P, typename... A>
static void expect(const char *want, void (*k)(P...), dim3 block, size_t shared_bytes, A... args)
{
	cuemu_set_loud(false);
	if (run(k, 1, block, shared_bytes, args...) != cudaErrorIllegalAddress)
		fail_msg("nothing is found, but %s is wrong", want);
	assert_int_equal(cudaDeviceSynchronize(), cudaErrorIllegalAddress);
	assert_non_null(cuemu_fault());
	if (strncmp(cuemu_fault(), want, strlen(want)) != 0)
		fail_msg("the fault is '%s', not '%s…'", cuemu_fault(), want);
	cuemu_forget();
	cuemu_set_loud(true);
	assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
}

static void copies_arrive_when_they_are_waited_for(void **)
{
	uint32_t x[256], got[64], *on_x = device<uint32_t>(256), *y = device<uint32_t>(64);

	for (uint32_t i = 0; i < 256; i++)
		x[i] = i * i;
	up(on_x, x, 256);
	assert_int_equal(run(k_copies, 1, 64, 2048, y, on_x, 0), cudaSuccess);
	down(got, y, 64);
	for (uint32_t i = 0; i < 64; i++)
		assert_int_equal(got[i], x[i]);
	expect("reads shared memory", k_copies, 64, 2048, y, on_x, 1); /* no wait */
	expect("", k_copies, 64, 2048, y, on_x, 2);		       /* no barrier */
	expect("reads shared memory", k_copies, 64, 2048, y, on_x, 3); /* a later group */
	cudaFree(on_x);
	cudaFree(y);
}

static __global__ void k_race(uint32_t *y, int kind)
{
	__shared__ uint32_t s[64];
	uint32_t *d = shared_memory<uint32_t>();
	const uint32_t t = threadIdx.x;

	s[t] = t;
	d[t] = t;
	if (kind == 0) /* another warp reads without a barrier */
		y[t] = s[t ^ 32];
	__syncthreads();
	if (kind == 1 && (t == 3 || t == 40))
		s[7] = t;
	if (kind == 2) { /* a neighbour in the warp reads without __syncwarp() */
		d[t] = 2 * t;
		y[t] = d[t ^ 1];
	}
	if (kind == 3) { /* read, then written by another warp */
		y[t] = s[t];
		s[t ^ 32] = 1;
	}
	if (kind == 4) { /* in order: nothing is wrong */
		d[t] = 2 * t;
		__syncwarp();
		y[t] = d[t ^ 1];
		__syncwarp();
		d[t] = 3;
		__syncthreads();
		y[t] += d[t ^ 32];
		atomicAdd(&s[0], 1u);
	}
	if (kind == 5) {
		atomicAdd(&s[0], 1u);
		y[t] = s[0];
	}
}

static void a_planted_race_is_found(void **)
{
	uint32_t *y = device<uint32_t>(64);

	for (int order = 0; order < CUEMU_ORDERS; order++) {
		cuemu_set_order((enum cuemu_order)order);
		expect("", k_race, 64, 256, y, 0);
		expect("race: writes shared memory", k_race, 64, 256, y, 1);
		expect("race: ", k_race, 64, 256, y, 2);
		expect("race: ", k_race, 64, 256, y, 3);
		assert_int_equal(run(k_race, 1, 64, 256, y, 4), cudaSuccess);
		expect("race: ", k_race, 64, 256, y, 5);
	}
	cuemu_set_order(CUEMU_FORWARDS);
	cudaFree(y);
}

static __global__ void k_wild(uint32_t *y, uint32_t *host, int kind)
{
	__shared__ uint32_t s[4];

	if (kind == -1) /* or the compiler knows what it holds */
		s[threadIdx.x] = 1;
	if (kind == 0)
		y[threadIdx.x + 1] = 1;
	if (kind == 1)
		y[0] = y[64];
	if (kind == 2)
		y[0] = s[threadIdx.x % 4];
	if (kind == 3)
		y[0] = shared_memory<uint32_t>()[3];
	if (kind == 4)
		y[0] = *host;
	if (kind == 5)
		*reinterpret_cast<uint4 *>(y + 1) = make_uint4(1, 2, 3, 4);
	if (kind == 6)
		shared_memory<uint32_t>()[4] = 1;
	if (kind == 7 && threadIdx.x < 32)
		__syncthreads();
	if (kind == 8 && threadIdx.x < 8)
		__syncwarp();
	if (kind == 9 && threadIdx.x != 40)
		__syncthreads(); /* thread 40 has ended: it counts as arrived */
}

static void wild_accesses_are_found(void **)
{
	uint32_t *y = device<uint32_t>(64), here = 1;

	expect("writes 4 bytes at byte 256 of an allocation of 256", k_wild, 64, 16, y, &here, 0);
	expect("reads 4 bytes at byte 256 of an allocation of 256", k_wild, 1, 16, y, &here, 1);
	expect("reads shared memory", k_wild, 1, 16, y, &here, 2);
	expect("reads shared memory", k_wild, 1, 16, y, &here, 3);
	expect("reads 4 bytes at", k_wild, 1, 16, y, &here, 4);
	expect("16 bytes at", k_wild, 1, 16, y, &here, 5);
	expect("writes 4 bytes at byte 16 of 16 of shared memory", k_wild, 1, 16, y, &here, 6);
	expect("8 of 64 threads", k_wild, 64, 16, y, &here, 8);
	assert_int_equal(run(k_wild, 1, 64, 16, y, &here, 9), cudaSuccess);
	cudaFree(y);
	expect("writes 4 bytes at", k_wild, 1, 16, y, &here, 0); /* freed */
}

static __global__ void k_overlapped(uint32_t *y, const uint32_t *x, int kind)
{
	if (kind == 0) {
		const uint32_t early = x[1];

		pdl_wait();
		y[0] = early;
	}
	if (kind == 1) {
		y[0] = 1;
		pdl_wait();
	}
	if (kind == 2) {
		pdl_release();
		pdl_wait();
		y[0] = x[0];
	}
	if (kind == 4) {
		pdl_wait();
		y[0] = __ldg(x);
	}
}

static void what_begins_early_has_to_wait(void **)
{
	uint32_t *y = device<uint32_t>(4), *x = device<uint32_t>(4), words[4] = { 1, 2, 3, 4 };
	cudaLaunchAttribute pdl = {};
	cudaLaunchConfig_t config = {};
	const char *const want[] = { "reads 4 bytes at", "writes 4 bytes at", NULL,
				     "a kernel launched with LAUNCH_PDL", "loads 4 bytes at" };

	up(x, words, 4);
	config.attrs = &pdl;
	config.numAttrs = 1;
	pdl.id = cudaLaunchAttributeProgrammaticStreamSerialization;
	pdl.val.programmaticStreamSerializationAllowed = 1;
	assert_int_equal(cudaLaunchKernelEx(&config, k_overlapped, y, (const uint32_t *)x, 0), cudaSuccess);
	assert_int_equal(run(k_wild, 1, 1, 16, x, x, 0), cudaSuccess); /* writes x */
	for (int kind = 0; kind < 5; kind++) {
		cuemu_set_loud(false);
		if (kind == 4) /* writes x */
			assert_int_equal(run(k_wild, 1, 1, 16, x, x, 0), cudaSuccess);
		assert_int_equal(cudaLaunchKernelEx(&config, k_overlapped, y, (const uint32_t *)x, kind),
				 want[kind] ? cudaErrorIllegalAddress : cudaSuccess);
		if (want[kind])
			assert_memory_equal(cuemu_fault(), want[kind], strlen(want[kind]));
		cuemu_forget();
		cuemu_set_loud(true);
	}
	cudaFree(y);
	cudaFree(x);
}

static __global__ void k_vectors(float *y, const float *x)
{
	const float4 v = *reinterpret_cast<const float4 *>(x + threadIdx.x * 4);
	const uint4 w = *(const uint4 *)(x + threadIdx.x * 4);

	y[threadIdx.x] = v.x + v.y * v.z - v.w + (float)(w.x + w.y);
}

static __global__ void k_reads(float *y, const float *x, uint32_t step)
{
	y[threadIdx.x] = x[threadIdx.x * step] + x[threadIdx.x * step + 1];
}

static void requests_and_sectors_are_counted(void **)
{
	float *y = device<float>(64), *x = device<float>(1024);
	struct cuemu_counts n;

	cudaMemset(x, 0, 4096);
	cuemu_count(true);
	assert_int_equal(run(k_reads, 1, 64, 0, y, x, 8u), cudaSuccess);
	n = cuemu_counted();
	assert_int_equal(n.read_bytes, 64 * 8);
	assert_int_equal(n.read_requests, 4);
	assert_int_equal(n.read_sectors, 4 * 32);
	assert_int_equal(n.written_bytes, 256);
	assert_int_equal(n.written_requests, 2);
	assert_int_equal(n.written_sectors, 8);
	cuemu_count(true);
	assert_int_equal(run(k_vectors, 1, 32, 0, y, x), cudaSuccess);
	n = cuemu_counted();
	assert_int_equal(n.read_bytes, 32 * 32);
	assert_int_equal(n.read_requests, 2);
	assert_int_equal(n.read_sectors, 32);
	cuemu_count(false);
	cudaFree(y);
	cudaFree(x);
}

static void a_recorded_stream_is_replayed(void **)
{
	uint32_t *y = device<uint32_t>(1), zero = 0, got;
	cudaGraphExec_t exec;
	cudaStream_t stream;
	cudaGraph_t graph;
	cudaLaunchConfig_t config = {};

	up(y, &zero, 1);
	assert_int_equal(cudaStreamCreate(&stream), cudaSuccess);
	assert_int_equal(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
	config.stream = stream;
	assert_int_equal(cudaLaunchKernelEx(&config, +[](uint32_t *at) { *at += 5; }, y), cudaSuccess);
	assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaSuccess);
	down(&got, y, 1);
	assert_int_equal(got, 0);
	assert_int_equal(cudaGraphInstantiate(&exec, graph), cudaSuccess);
	for (int i = 0; i < 3; i++)
		assert_int_equal(cudaGraphLaunch(exec, stream), cudaSuccess);
	down(&got, y, 1);
	assert_int_equal(got, 15);
	cudaGraphDestroy(graph);
	cudaGraphExecDestroy(exec);
	cudaStreamDestroy(stream);
	cudaFree(y);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_product_of_fragments_is_the_plain_product),
		cmocka_unit_test(matrices_come_as_fragments),
		cmocka_unit_test(lanes_exchange_values),
		cmocka_unit_test(blocks_run_in_every_order),
		cmocka_unit_test(copies_arrive_when_they_are_waited_for),
		cmocka_unit_test(a_planted_race_is_found),
		cmocka_unit_test(wild_accesses_are_found),
		cmocka_unit_test(what_begins_early_has_to_wait),
		cmocka_unit_test(requests_and_sectors_are_counted),
		cmocka_unit_test(a_recorded_stream_is_replayed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
