/* Which instruction sets this processor has. */
#include <stddef.h>

#include "kernels/backend.h"

#if defined(__x86_64__)
static bool has_avx2(void)
{
	return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
	       __builtin_cpu_supports("f16c");
}

static bool has_avx512(void)
{
	return has_avx2() && __builtin_cpu_supports("avx512f") &&
	       __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
	       __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}

bool isa_supported(enum isa isa)
{
	__builtin_cpu_init();
	switch (isa) {
	case ISA_REF:
	case ISA_PORTABLE:
		return true;
	case ISA_AVX2:
		return has_avx2();
	case ISA_AVX512:
	case ISA_AVX512BF16_EMULATED:
		return has_avx512();
	case ISA_AVX512BF16:
		return has_avx512() && __builtin_cpu_supports("avx512bf16");
	case ISA_CUDA:
	case ISA_N:
		break;
	}
	return false;
}
#else
bool isa_supported(enum isa isa)
{
	return isa == ISA_REF || isa == ISA_PORTABLE;
}
#endif

enum isa isa_best(void)
{
	static const enum isa by_speed[] = { ISA_AVX512BF16, ISA_AVX512, ISA_AVX2 };

	for (size_t i = 0; i < sizeof(by_speed) / sizeof(*by_speed); i++)
		if (isa_supported(by_speed[i]))
			return by_speed[i];
	return ISA_PORTABLE;
}
