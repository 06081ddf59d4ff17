/*
 * Whose frame is taken next. A frame that came while nobody waits is taken at
 * once; the others one by one, user after user, and each user's connections in
 * turn. So nobody waits for more than one frame of each other user, however
 * many those have sent on however many connections.
 */
#pragma once

#include "daemon/server/peer.h"

int taking_open(struct server *s);
void taking_close(struct server *s); /* when there are no peers */

/* @p has read what may be whole frames: the first is taken now, or in turn. */
void taking_began(struct peer *p);
/* @p could not take the frames that it has, and may be able to. */
void taking_goes_on(struct peer *p);
void taking_forget(struct peer *p);
