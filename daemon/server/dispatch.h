/* From a message to the handler that its type has in the table; errors to ERROR frames. */
#pragma once

#include "daemon/server/peer.h"

/* Takes one frame's payload. */
void dispatch(struct peer *p, struct span payload);
