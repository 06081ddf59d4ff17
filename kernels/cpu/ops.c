/* Which of the ops-<isa>.c serves an instruction set, and the scratch that the operations need. */
#include "kernels/cpu/ops.h"

#include "kernels/cpu/cpu.h"

const struct ops_kernels *ops_kernels(enum isa isa)
{
#if defined(__x86_64__)
	switch (isa) {
	case ISA_AVX512:
	case ISA_AVX512BF16:
	case ISA_AVX512BF16_EMULATED:
	case ISA_AMX:
		return &ops_avx512;
	case ISA_AVX2:
		return &ops_avx2;
	default:
		break;
	}
#else
	(void)isa;
#endif
	return &ops_portable;
}

/*
 * The router keeps its logits there, attention the parts of rows that are too
 * few to occupy the threads. Attention does without if a batch has more.
 */
size_t ops_scratch(uint32_t n_threads, const struct op_limits *limits)
{
	const size_t logits = (size_t)limits->tokens * limits->experts * sizeof(double);
	const size_t chunks = ((size_t)limits->max_context + ATTEND_CHUNK - 1) / ATTEND_CHUNK;
	const size_t group = limits->kv_heads ? limits->heads / limits->kv_heads : 0;
	const size_t items = limits->kv_heads * ((group + ATTEND_ROWS_MAX - 1) / ATTEND_ROWS_MAX);
	const size_t parts = n_threads > 1 ? items * chunks * sizeof(struct attend_part) : 0;

	return (logits > parts ? logits : parts) + 64;
}
