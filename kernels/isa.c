/* Names of the instruction sets. */
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
	[ISA_AMX] = "amx",
	[ISA_CUDA] = "cuda",
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
