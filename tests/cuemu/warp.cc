/* What ptx.h and the intrinsics do beyond meeting: matrices and copies in the background. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/cuemu/parts.h"

#define ALL 0xffffffffu

static float widen(uint32_t half)
{
	const uint32_t bits = half << 16;
	float value;

	memcpy(&value, &bits, sizeof(value));
	return value;
}

/* Lane l has of each 8x8 matrix the row l / 4, columns 2 (l % 4) and on; transposed: swapped. */
void cuemu_matrices(uint32_t (&r)[4], const void *row, bool transposed)
{
	const void *pc = __builtin_return_address(0);
	uint64_t rows[32];
	uint32_t lane;

	if ((uintptr_t)row % 16)
		fault_in_kernel(pc, "a matrix row at %p is not aligned to 16", row);
	if (!shadow_covers(row))
		fault_in_kernel(pc, "a matrix row at %p is not in shared memory", row);
	lane = cuemu_gather(ALL, transposed ? "load_matrices_transposed()" : "load_matrices()",
			    (uint64_t)(uintptr_t)row, rows);
	for (int m = 0; m < 4; m++) {
		if (transposed) {
			uint16_t half[2];

			for (int i = 0; i < 2; i++) {
				const char *at = (const char *)rows[m * 8 + lane % 4 * 2 + i] + lane / 4 * 2;

				memory_access(at, 2, ACCESS_READ, pc);
				memcpy(&half[i], at, 2);
			}
			r[m] = half[0] | (uint32_t)half[1] << 16;
		} else {
			const char *at = (const char *)rows[m * 8 + lane / 4] + lane % 4 * 4;

			memory_access(at, 4, ACCESS_READ, pc);
			memcpy(&r[m], at, 4);
		}
	}
}

struct mma {
	float *d;
	const uint32_t *a, *b;
};

/*
 * a: lane l has rows l/4 and l/4 + 8, columns 2 (l%4) + {0,1} and 8 on; b: those as rows, column
 * l/4; d: rows l/4 and l/4 + 8, columns 2 (l%4) + {0,1}.
 */
static void multiply(const uint64_t lanes[32])
{
	float a[16][16], b[8][16];

	for (uint32_t l = 0; l < 32; l++) {
		const struct mma *of = (const struct mma *)lanes[l];
		const uint32_t k = l % 4 * 2;

		for (int i = 0; i < 4; i++) {
			a[l / 4 + i % 2 * 8][k + i / 2 * 8] = widen(of->a[i] & 0xffff);
			a[l / 4 + i % 2 * 8][k + i / 2 * 8 + 1] = widen(of->a[i] >> 16);
		}
		for (int i = 0; i < 2; i++) {
			b[l / 4][k + i * 8] = widen(of->b[i] & 0xffff);
			b[l / 4][k + i * 8 + 1] = widen(of->b[i] >> 16);
		}
	}
	for (uint32_t l = 0; l < 32; l++) {
		float *d = ((const struct mma *)lanes[l])->d;

		for (int i = 0; i < 4; i++) {
			const float *row = a[l / 4 + i / 2 * 8], *column = b[l % 4 * 2 + i % 2];
			double sum = d[i];

			for (int k = 0; k < 16; k++)
				sum += (double)row[k] * column[k];
			d[i] = (float)sum;
		}
	}
}

void cuemu_mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2])
{
	struct mma mine = { d, a, b };

	cuemu_meet("mma_bf16()", (uint64_t)(uintptr_t)&mine, multiply);
}

void cuemu_copy_async(void *shared, const void *global, uint32_t bytes, uint32_t bytes_read)
{
	const void *pc = __builtin_return_address(0);
	struct thread *t = block_self();

	if ((uintptr_t)shared % bytes || (uintptr_t)global % bytes)
		fault_in_kernel(pc, "a copy of %u bytes from %p to %p is not aligned", bytes, global,
				shared);
	if (!shadow_covers(shared))
		fault_in_kernel(pc, "a copy to %p, which is not in shared memory", shared);
	memory_access(global, bytes_read, ACCESS_READ, pc);
	shadow_copy_begins(shared, bytes, pc);
	memset(shared, 0xff, bytes);
	if (t->n_copies == t->copies_room) {
		t->copies_room = t->copies_room ? 2 * t->copies_room : 64;
		t->copies = (struct copy *)realloc(t->copies, t->copies_room * sizeof(*t->copies));
		if (!t->copies)
			abort();
	}
	t->copies[t->n_copies++] = { shared, global, bytes, bytes_read, t->groups_committed };
}

void cuemu_copy_commit(void)
{
	block_self()->groups_committed++;
}

/* Copies that nobody committed are waited for by nothing but the thread's end. */
static void finish(struct thread *t, uint32_t groups, const void *pc)
{
	uint32_t left = 0;

	for (uint32_t i = 0; i < t->n_copies; i++) {
		const struct copy *c = &t->copies[i];

		if (c->group >= groups) {
			t->copies[left++] = *c;
			continue;
		}
		shadow_copy_ends(c->to, c->bytes, pc);
		memset(c->to, 0, c->bytes);
		memcpy(c->to, c->from, c->bytes_read);
	}
	t->n_copies = left;
}

void cuemu_copy_wait(uint32_t n_left)
{
	struct thread *t = block_self();

	if (t->groups_committed > n_left)
		finish(t, t->groups_committed - n_left, __builtin_return_address(0));
}

void copies_end(void)
{
	finish(block_self(), UINT32_MAX, NULL);
}
