/* For CPUs, whose operations do not fail. */
#include "tests/gpu/faults.h"

#include <errno.h>

int faults_check(void)
{
	return -ENOTSUP;
}
