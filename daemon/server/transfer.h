/*
 * A session's file on its way in pieces, with the KV of its pages: out of the
 * cache page by page, as fast as the client reads; and into it, each page when
 * it was found to be whole, the session's own, and of the model in service.
 *
 * One page lies in memory at a time, and the file's text; both are counted in
 * the user's held bytes. No page of the cache is held between two of them: what
 * goes meanwhile is left out, and said so. The form of the file is in
 * daemon/session/export.h. Belongs to the loop's thread; sums are taken on the worker.
 */
#pragma once

#include "daemon/server/request.h"

#define TRANSFER_PIECE_BYTES (256u << 10)
#define TRANSFER_WANT_BYTES (1u << 20) /* at most under way to us */

struct transfer;

/* SESSION_EXPORT: @text is the file without KV, @ids the last turn's; both are taken over. */
int transfer_send(struct request *q, struct bytes *text, uint32_t *ids, size_t n_ids,
		  struct err *err);
/* Its peer may have room again. */
void transfer_pump(struct request *q);

/* SESSION_IMPORT in pieces: asks for the first. */
int transfer_receive(struct request *q, struct err *err);
/* A piece came; none: the file has ended. */
int transfer_take(struct request *q, struct span data, struct err *err);
/* The session is in the store: @json is what there is to say, @ids those of its last turn; taken over. */
int transfer_stored(struct request *q, struct bytes *json, uint32_t *ids, size_t n_ids,
		    struct err *err);

/* The request goes. */
void transfer_forget(struct request *q);
