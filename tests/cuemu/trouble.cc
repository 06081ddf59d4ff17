/* What befalls the device: told by a file that the environment names, so that it can change while a program runs. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/cuemu/parts.h"

enum trouble trouble_now(void)
{
	static const char *const names[] = { "", "hang", "lost", "ecc", "fail" };
	const char *path = getenv("CUEMU_TROUBLE");
	char text[16] = "";
	int fd;

	if (!path || (fd = open(path, O_RDONLY | O_CLOEXEC)) < 0)
		return TROUBLE_NONE;
	if (read(fd, text, sizeof(text) - 1) < 0)
		text[0] = '\0';
	close(fd);
	for (int i = 0; i < TROUBLES; i++)
		if (strcmp(text, names[i]) == 0)
			return (enum trouble)i;
	return TROUBLE_NONE;
}
