/* One message, as the daemon and as a client would read it: what is accepted can be sent again. */
#include <assert.h>
#include <errno.h>

#include "client/wire/msg.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_as(const uint8_t *data, size_t size, bool up)
{
	_cleanup_(freep) char *frame = NULL;
	struct err err = { 0 };
	struct msg m, again;
	size_t len;
	int r;

	r = msg_decode((const char *)data, size, up, &m, &err);
	assert(r == 0 || (r == -EBADMSG && err.text[0]));
	if (r < 0)
		return;
	assert(msg_encode(&m, &frame, &len, &err) == 0);
	assert(msg_decode(frame + 4, len - 4, up, &again, &err) == 0);
	assert(again.type == m.type && again.id == m.id);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	read_as(data, size, true);
	read_as(data, size, false);
	return 0;
}
