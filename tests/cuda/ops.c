#include "tests/cuda/ops.h"

#define ORDERS 3
#define GUARD 4096
#define GUARD_BYTE 0x5c

struct dev *dev;
struct stream *st;

/* Of the emulator; a GPU takes blocks as it likes. */
void cuemu_set_order(int order) __attribute__((weak));

struct piece {
	struct piece *next;
	uint8_t *base, *at;
	size_t bytes, room;
};
static struct piece *pieces;

int open_device(void **state)
{
	const struct op_limits limits = {
		.tokens = 256,
		.dim = 512,
		.heads = 96,
		.kv_heads = 8,
		.head_dim = 256,
		.ffn_dim = 512,
		.experts = 16,
		.top_k = 8,
		.vocab = 1024,
		.max_context = 4096,
	};

	(void)state;

	if (!isa_supported(ISA_CUDA)) {
		fprintf(stderr, "skip: there is no GPU\n");
		exit(77);
	}
	assert_int_equal(dev_open(ISA_CUDA, 1, &dev), 0);
	assert_int_equal(st_open(dev, op_scratch(dev, &limits), &st), 0);
	return 0;
}

int close_device(void **state)
{
	(void)state;

	assert_null(pieces);
	st = st_close(st);
	dev = dev_close(dev);
	return 0;
}

void *device_new(size_t bytes)
{
	struct piece *p = calloc(1, sizeof(*p));
	const size_t chunk = (size_t)2 << 20;
	uint8_t *guard;

	assert_non_null(p);
	p->bytes = bytes;
	p->room = (bytes + 63 + GUARD + chunk - 1) / chunk * chunk;
	p->base = dev_reserve(dev, p->room);
	assert_non_null(p->base);
	assert_int_equal(dev_back(dev, p->base, p->room), 0);
	p->at = p->base + (p->room - bytes) / 64 * 64;
	guard = malloc(GUARD + 64);
	assert_non_null(guard);
	memset(guard, GUARD_BYTE, GUARD + 64);
	assert_int_equal(dev_write(dev, p->at - GUARD, guard, GUARD), 0);
	assert_int_equal(dev_write(dev, p->at + bytes, guard, p->base + p->room - p->at - bytes), 0);
	free(guard);
	p->next = pieces;
	pieces = p;
	return p->at;
}

static void check_guard(const uint8_t *at, size_t bytes, const char *where)
{
	uint8_t guard[GUARD];

	assert_int_equal(st_read(st, guard, at, bytes), 0);
	for (size_t i = 0; i < bytes; i++)
		if (guard[i] != GUARD_BYTE)
			fail_msg("byte %zu %s a buffer was written", i, where);
}

void device_free(void *at)
{
	struct piece **link = &pieces, *p;

	while (*link && (*link)->at != at)
		link = &(*link)->next;
	p = *link;
	assert_non_null(p);
	check_guard(p->at - GUARD, GUARD, "before");
	check_guard(p->at + p->bytes, p->base + p->room - p->at - p->bytes, "behind");
	*link = p->next;
	assert_int_equal(dev_unback(dev, p->base, p->room), 0);
	free(p);
}

void *device_copy(const void *from, size_t bytes)
{
	void *at = device_new(bytes);

	assert_int_equal(dev_write(dev, at, from, bytes), 0);
	return at;
}

float noise(uint32_t *seed)
{
	*seed = *seed * 1664525 + 1013904223;
	return (float)(*seed >> 8) / (1 << 23) - 1;
}

struct tensor host_tensor(uint32_t a, uint32_t b, uint32_t c, float scale, uint32_t seed)
{
	struct tensor t = { .type = DT_F32, .shape = { a, b, c } };
	float *data = malloc((tensor_elements(&t) + 1) * sizeof(float));

	assert_non_null(data);
	for (size_t i = 0; i < tensor_elements(&t); i++)
		data[i] = scale * noise(&seed);
	t.data = data;
	return t;
}

struct tensor device_tensor(const struct tensor *host)
{
	struct tensor t = *host;

	t.data = device_copy(host->data, tensor_elements(host) * dtype_bytes(host->type));
	return t;
}

void read_back(const struct tensor *host, const struct tensor *device)
{
	assert_int_equal(st_read(st, host->data, device->data,
				 tensor_elements(host) * dtype_bytes(host->type)),
			 0);
}

void compare(const struct tensor *got, const struct tensor *want, double tolerance)
{
	for (size_t i = 0; i < tensor_elements(want); i++) {
		const double a = ((float *)got->data)[i], b = ((float *)want->data)[i];

		if (!(fabs(a - b) <= tolerance))
			fail_msg("element %zu is %.9g, not %.9g", i, a, b);
	}
}

void in_every_order(int (*queue)(void *userdata), void *userdata, const struct tensor *host,
		    const struct tensor *y)
{
	const size_t bytes = tensor_elements(y) * dtype_bytes(y->type);
	void *first = malloc(bytes + 1), *nan = malloc(bytes + 1);

	assert_true(first && nan);
	memset(nan, 0xff, bytes);
	for (int order = 0; order < ORDERS; order++) {
		if (cuemu_set_order)
			cuemu_set_order(order);
		assert_int_equal(dev_write(dev, y->data, nan, bytes), 0);
		assert_int_equal(queue(userdata), 0);
		read_back(host, y);
		if (order == 0)
			memcpy(first, host->data, bytes);
		assert_memory_equal(first, host->data, bytes);
	}
	if (cuemu_set_order)
		cuemu_set_order(0);
	free(first);
	free(nan);
}
