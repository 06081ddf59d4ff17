/* Names of the instruction sets, and which of them this processor has. */
#include <errno.h>
#include <string.h>

#include "kernels/backend.h"

static const char *const names[ISA_N] = {
	[ISA_REF] = "ref",
	[ISA_PORTABLE] = "portable",
	[ISA_AVX2] = "avx2",
	[ISA_AVX512] = "avx512",
	[ISA_AVX512BF16] = "avx512bf16",
	[ISA_AVX512BF16_EMULATED] = "avx512bf16-emulated",
};

const char *isa_name(enum isa isa)
{
	return (unsigned)isa < ISA_N ? names[isa] : "unknown";
}

int isa_parse(const char *name, enum isa *ret)
{
	if (strcmp(name, "auto") == 0) {
		*ret = isa_best();
		return 0;
	}
	for (int i = 0; i < ISA_N; i++) {
		if (strcmp(name, names[i]) == 0) {
			*ret = (enum isa)i;
			return 0;
		}
	}
	return -EINVAL;
}

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
