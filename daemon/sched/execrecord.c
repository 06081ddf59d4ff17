/* One struct in a memfd. */
#include "daemon/sched/execrecord.h"

#include <errno.h>
#include <sys/mman.h>

#include "client/wire/ownership.h"
#include "daemon/base/fdstore.h"

#define EXECRECORD_NAME "exec-ready"
#define EXECRECORD_VERSION (CONTROL_VERSION << 8 | 3)

void execrecord_park(int fd)
{
	fdstore_remove(EXECRECORD_NAME);
	if (fd >= 0)
		fdstore_put(EXECRECORD_NAME, fd, 0);
}

int execrecord_new(const struct execrecord *record)
{
	const int fd = memfd_create("steamd-ready", MFD_CLOEXEC);

	if (fd < 0)
		return -errno;
	execrecord_park(fd);
	execrecord_write(fd, record);
	return fd;
}

/* Without a record that is true a later broker starts afresh: it would wait for what was said already. */
void execrecord_write(int fd, const struct execrecord *record)
{
	struct execrecord copy = *record;

	copy.version = EXECRECORD_VERSION;
	if (fd >= 0 && pwrite(fd, &copy, sizeof(copy), 0) != (ssize_t)sizeof(copy))
		fdstore_remove(EXECRECORD_NAME);
}

int execrecord_read(int fd, struct execrecord *ret)
{
	struct execrecord record;
	const ssize_t n = pread(fd, &record, sizeof(record), 0);

	if (n < 0)
		return -errno;
	if (n != (ssize_t)sizeof(record) || record.version != EXECRECORD_VERSION ||
	    record.state < EXECRECORD_LOADING || record.state > EXECRECORD_GONE)
		return -EBADMSG;
	record.ready.isa[sizeof(record.ready.isa) - 1] = '\0';
	record.ready.device[sizeof(record.ready.device) - 1] = '\0';
	record.ready.products[sizeof(record.ready.products) - 1] = '\0';
	*ret = record;
	return 0;
}
