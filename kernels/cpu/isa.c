/* Which instruction sets this processor has. */
#include <stddef.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels/backend.h"

#if defined(__x86_64__)
#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_XTILEDATA 18

/* The processor has it, and the kernel lets this process use it: asking is what gets the permission. */
static bool has_amx(void)
{
	const unsigned bits = bit_AMX_BF16 | bit_AMX_TILE | bit_AMX_INT8;
	unsigned a, b, c, d;

	return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & bits) == bits &&
	       syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

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
	case ISA_AMX:
		return has_avx512() && __builtin_cpu_supports("avx512bf16") && has_amx();
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
	static const enum isa by_speed[] = { ISA_AMX, ISA_AVX512BF16, ISA_AVX512, ISA_AVX2 };

	for (size_t i = 0; i < sizeof(by_speed) / sizeof(*by_speed); i++)
		if (isa_supported(by_speed[i]))
			return by_speed[i];
	return ISA_PORTABLE;
}
