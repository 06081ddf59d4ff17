/*
 * Messages as structs, and their msgpack form. The table in messages.def
 * makes both; nothing here knows what a message is for.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "client/wire/err.h"
#include "client/wire/messages.def"
#include "client/wire/span.h"

#define MSG_PROTO 1
#define MSG_STRS_MAX 16
#define MSG_FIELDS_MAX 64
#define MSG_DEPTH_MAX 8	     /* nesting; ours is 3 */
#define MSG_NODES_MAX 4096   /* values in one message; ours has fewer than 150 */

struct frame_out;

struct strs {
	uint32_t n;
	struct span at[MSG_STRS_MAX];
};

#define MSG_C_BOOL bool
#define MSG_C_U32 uint32_t
#define MSG_C_U64 uint64_t
#define MSG_C_F64 double
#define MSG_C_STR struct span
#define MSG_C_BIN struct span
#define MSG_C_STRS struct strs

#define MSG_MEMBER(m, kind, name, bound, need)                                                     \
	bool has_##name;                                                                           \
	MSG_C_##kind name;
#define MSG_STRUCT(number, TYPE, name, direction)                                                  \
	struct msg_##name {                                                                        \
		TYPE##_FIELDS(MSG_MEMBER, name)                                                    \
	};
#define MSG_NUMBER(number, TYPE, name, direction) MSG_##TYPE = number,
#define MSG_UNION(number, TYPE, name, direction) struct msg_##name name;

MESSAGES(MSG_STRUCT)

enum msg_type { MESSAGES(MSG_NUMBER) };

/* Spans point into the buffer that was decoded, or at what the caller put in. */
struct msg {
	enum msg_type type;
	uint64_t id; /* chosen by the client; 0 only for hello */
	union {
		MESSAGES(MSG_UNION)
	};
};

/* Sets field @name of @sub (a struct msg_…) and marks it as present. */
#define MSG_SET(sub, name, ...) ((sub)->has_##name = true, (sub)->name = (__VA_ARGS__))

/*
 * Packs @m into [type, id, {…}] with the fields marked present. *@ret is
 * malloc'd, preceded by its u32 little-endian length, ready to send.
 *
 * Returns 0, -EINVAL if a field exceeds its bound or a required one is not
 * present, -ENOMEM.
 */
int msg_encode(const struct msg *m, char **ret, size_t *ret_len, struct err *err);

/* The same straight into a queue, which allocates only when it grows. */
int msg_queue(const struct msg *m, struct frame_out *out, struct err *err);

/*
 * Reads one message from the @len bytes of a frame's payload (without the
 * length). Before anything is unpacked a linear pass checks nesting, declared
 * counts against the bytes left, and the number of values. Nothing is copied:
 * spans in *@ret point into @data, which must outlive them.
 *
 * @up	true in the daemon: only messages a client may send are known
 *
 * Returns 0, or -EBADMSG with a sentence such as "generate.top_p is 1.5; at
 * most 1 is allowed". If type and id could be read, they are set in *@ret
 * even then, else they are 0.
 */
int msg_decode(const char *data, size_t len, bool up, struct msg *ret, struct err *err);

/* The message's name in the table, or "?". */
const char *msg_name(enum msg_type type);
