/*
 * The message table put to work: one description of every field, one encoder
 * and one decoder that walk it, and the pass over raw bytes before msgpack-c
 * may see them (it reserves memory for whatever count a header declares).
 */
#include "client/wire/msg.h"

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <msgpack.h>

#include "client/wire/frame.h"
#include "client/wire/ownership.h"
#include "client/wire/utf8.h"

#define HEADER_ROOM 9 /* bytes of the longest header, and of the longest number */

enum kind { KIND_BOOL, KIND_U32, KIND_U64, KIND_F64, KIND_STR, KIND_BIN, KIND_STRS };
enum need { NEED_OPT, NEED_REQ };
enum direction { DIR_UP = 1, DIR_DOWN = 2, DIR_BOTH = 3 };

struct field {
	const char *name;
	size_t name_len;
	enum kind kind;
	enum need need;
	uint64_t most;	  /* the bound of integers and of bytes */
	double magnitude; /* the bound of F64 */
	size_t has_at, at;
};

struct kind_of_message {
	uint32_t number;
	const char *name;
	enum direction direction;
	const struct field *fields;
	size_t n_fields;
};

#define FIELD(m, k, f, bound, n)                                                                   \
	{ .name = #f,                                                                              \
	  .name_len = sizeof(#f) - 1,                                                              \
	  .kind = KIND_##k,                                                                        \
	  .need = NEED_##n,                                                                        \
	  .most = (uint64_t)(bound),                                                               \
	  .magnitude = (double)(bound),                                                            \
	  .has_at = offsetof(struct msg_##m, has_##f),                                             \
	  .at = offsetof(struct msg_##m, f) },
#define FIELD_TABLE(number, TYPE, name, direction)                                                 \
	static const struct field name##_fields[] = { TYPE##_FIELDS(FIELD, name) };                \
	_Static_assert(ARRAY_SIZE(name##_fields) <= MSG_FIELDS_MAX, "too many fields in " #name);
#define MESSAGE_ROW(n, TYPE, m, dir) { n, #m, DIR_##dir, m##_fields, ARRAY_SIZE(m##_fields) },

MESSAGES(FIELD_TABLE)

static const struct kind_of_message kinds[] = { MESSAGES(MESSAGE_ROW) };

static const struct kind_of_message *find_kind(uint32_t number)
{
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
		if (kinds[i].number == number)
			return &kinds[i];
	return NULL;
}

const char *msg_name(enum msg_type type)
{
	const struct kind_of_message *k = find_kind(type);

	return k ? k->name : "?";
}

static bool *has(const struct msg *m, const struct field *f)
{
	return (bool *)((char *)&m->hello + f->has_at);
}

static void *value(const struct msg *m, const struct field *f)
{
	return (char *)&m->hello + f->at;
}

/* Bounds: the same for what we send and for what we got. */

/* A field and the message that it is in, for sentences about it. */
struct place {
	const struct kind_of_message *k;
	const struct field *f;
	int code; /* of a field at fault */
	struct err *err;
};

#define WHERE "%s.%s"
#define WHERE_ARG(p) (p)->k->name, (p)->f->name

static int check_bytes(const struct place *p, struct span s, bool text)
{
	size_t good;

	if (s.len > p->f->most)
		return err_set(p->err, p->code,
			       WHERE " has %zu bytes; at most %" PRIu64 " are allowed",
			       WHERE_ARG(p), s.len, p->f->most);
	good = text ? utf8_valid_bytes(s) : s.len;
	if (good < s.len)
		return err_set(p->err, p->code, WHERE " is not UTF-8 at byte %zu", WHERE_ARG(p),
			       good);
	return 0;
}

static int check_strs(const struct place *p, const struct strs *strs)
{
	uint64_t bytes = 0;

	if (strs->n > MSG_STRS_MAX)
		return err_set(p->err, p->code, WHERE " has %u strings; at most %u are allowed",
			       WHERE_ARG(p), strs->n, MSG_STRS_MAX);
	for (uint32_t i = 0; i < strs->n; i++) {
		const int r = check_bytes(p, strs->at[i], true);

		if (r < 0)
			return r;
		bytes += strs->at[i].len;
	}
	if (bytes > p->f->most)
		return err_set(p->err, p->code,
			       WHERE " has %" PRIu64 " bytes; at most %" PRIu64 " are allowed",
			       WHERE_ARG(p), bytes, p->f->most);
	return 0;
}

static int check_integer(const struct place *p, uint64_t u)
{
	if (u > p->f->most)
		return err_set(p->err, p->code,
			       WHERE " is %" PRIu64 "; at most %" PRIu64 " is allowed",
			       WHERE_ARG(p), u, p->f->most);
	return 0;
}

static int check_number(const struct place *p, double d)
{
	const double most = p->f->magnitude;

	if (!isfinite(d))
		return err_set(p->err, p->code, WHERE " is not finite", WHERE_ARG(p));
	if (d > most)
		return err_set(p->err, p->code, WHERE " is %g; at most %g is allowed", WHERE_ARG(p),
			       d, most);
	if (d < -most)
		return err_set(p->err, p->code, WHERE " is %g; at least %g is allowed",
			       WHERE_ARG(p), d, -most);
	return 0;
}

static int check_field(const struct place *p, const struct msg *m)
{
	const void *v = value(m, p->f);

	if (!*has(m, p->f)) {
		if (p->f->need == NEED_REQ)
			return err_set(p->err, p->code, WHERE " is missing", WHERE_ARG(p));
		return 0;
	}
	switch (p->f->kind) {
	case KIND_BOOL:
		return 0;
	case KIND_U32:
		return check_integer(p, *(const uint32_t *)v);
	case KIND_U64:
		return check_integer(p, *(const uint64_t *)v);
	case KIND_F64:
		return check_number(p, *(const double *)v);
	case KIND_STR:
	case KIND_BIN:
		return check_bytes(p, *(const struct span *)v, p->f->kind == KIND_STR);
	case KIND_STRS:
		return check_strs(p, v);
	}
	return 0;
}

static int check_fields(const struct kind_of_message *k, const struct msg *m, int code,
			struct err *err)
{
	for (size_t i = 0; i < k->n_fields; i++) {
		const struct place p = { k, &k->fields[i], code, err };
		const int r = check_field(&p, m);

		if (r < 0)
			return r;
	}
	return 0;
}

/* Encoding. */

static int pack_str(msgpack_packer *p, struct span s)
{
	int r = msgpack_pack_str(p, s.len);

	return r == 0 && s.len > 0 ? msgpack_pack_str_body(p, s.data, s.len) : r;
}

static int pack_bin(msgpack_packer *p, struct span s)
{
	int r = msgpack_pack_bin(p, s.len);

	return r == 0 && s.len > 0 ? msgpack_pack_bin_body(p, s.data, s.len) : r;
}

static int pack_strs(msgpack_packer *p, const struct strs *strs)
{
	int r = msgpack_pack_array(p, strs->n);

	for (uint32_t i = 0; r == 0 && i < strs->n; i++)
		r = pack_str(p, strs->at[i]);
	return r;
}

static int pack_value(msgpack_packer *p, enum kind kind, const void *v)
{
	switch (kind) {
	case KIND_BOOL:
		return *(const bool *)v ? msgpack_pack_true(p) : msgpack_pack_false(p);
	case KIND_U32:
		return msgpack_pack_uint32(p, *(const uint32_t *)v);
	case KIND_U64:
		return msgpack_pack_uint64(p, *(const uint64_t *)v);
	case KIND_F64:
		return msgpack_pack_double(p, *(const double *)v);
	case KIND_STR:
		return pack_str(p, *(const struct span *)v);
	case KIND_BIN:
		return pack_bin(p, *(const struct span *)v);
	case KIND_STRS:
		return pack_strs(p, v);
	}
	return -1;
}

static int pack_message(msgpack_packer *p, const struct kind_of_message *k, const struct msg *m)
{
	size_t n = 0;
	int r;

	for (size_t i = 0; i < k->n_fields; i++)
		n += *has(m, &k->fields[i]);
	r = msgpack_pack_array(p, 3) || msgpack_pack_uint32(p, k->number) ||
	    msgpack_pack_uint64(p, m->id) || msgpack_pack_map(p, n);
	for (size_t i = 0; r == 0 && i < k->n_fields; i++) {
		const struct field *f = &k->fields[i];

		if (*has(m, f))
			r = pack_str(p, (struct span){ f->name, f->name_len }) ||
			    pack_value(p, f->kind, value(m, f));
	}
	return r;
}

/* The room that a value needs at most, with the longest header there is. */
static size_t value_room(enum kind kind, const void *v)
{
	const struct strs *strs = v;
	size_t bytes = HEADER_ROOM;

	if (kind == KIND_STR || kind == KIND_BIN)
		return bytes + ((const struct span *)v)->len;
	for (uint32_t i = 0; kind == KIND_STRS && i < strs->n; i++)
		bytes += HEADER_ROOM + strs->at[i].len;
	return bytes;
}

static size_t message_room(const struct kind_of_message *k, const struct msg *m)
{
	size_t bytes = FRAME_HEADER_BYTES + 4 * HEADER_ROOM;

	for (size_t i = 0; i < k->n_fields; i++) {
		const struct field *f = &k->fields[i];

		if (*has(m, f))
			bytes += HEADER_ROOM + f->name_len + value_room(f->kind, value(m, f));
	}
	return bytes;
}

/* Looks at what is to be sent. Returns how many bytes a frame of it takes at most. */
static ssize_t prepare(const struct msg *m, const struct kind_of_message **ret, struct err *err)
{
	const struct kind_of_message *k = find_kind(m->type);
	size_t room;
	int r;

	if (!k)
		return err_set(err, -EINVAL, "message type %u is unknown", (unsigned)m->type);
	r = check_fields(k, m, -EINVAL, err);
	if (r < 0)
		return r;
	room = message_room(k, m);
	if (room - FRAME_HEADER_BYTES > UINT32_MAX)
		return err_set(err, -EINVAL, "%s is larger than a frame can be", k->name);
	*ret = k;
	return (ssize_t)room;
}

static int append(void *userdata, const char *bytes, size_t n)
{
	char **at = userdata;

	memcpy(*at, bytes, n);
	*at += n;
	return 0;
}

/* Returns the bytes written to @to, which has the room. */
static size_t write_frame(char *to, const struct kind_of_message *k, const struct msg *m)
{
	char *at = to + FRAME_HEADER_BYTES;
	msgpack_packer p;
	uint32_t length;

	msgpack_packer_init(&p, &at, append);
	pack_message(&p, k, m); /* fails only if append() does */
	length = htole32((uint32_t)(at - to) - FRAME_HEADER_BYTES);
	memcpy(to, &length, sizeof(length));
	return (size_t)(at - to);
}

int msg_encode(const struct msg *m, char **ret, size_t *ret_len, struct err *err)
{
	const struct kind_of_message *k;
	const ssize_t room = prepare(m, &k, err);
	char *frame;

	if (room < 0)
		return (int)room;
	frame = malloc((size_t)room);
	if (!frame)
		return -ENOMEM;
	*ret_len = write_frame(frame, k, m);
	*ret = frame;
	return 0;
}

int msg_queue(const struct msg *m, struct frame_out *out, struct err *err)
{
	const struct kind_of_message *k;
	const ssize_t room = prepare(m, &k, err);
	char *to;

	if (room < 0)
		return (int)room;
	to = frame_out_room(out, (size_t)room);
	if (!to)
		return -ENOMEM;
	frame_out_fill(out, write_frame(to, k, m));
	return 0;
}

/* The pass over raw bytes: what one header says follows it. */

struct head {
	size_t bytes;	   /* of the header itself */
	uint64_t body;	   /* bytes that follow and are no values */
	uint64_t children; /* values that follow */
};

/* Big-endian unsigned of @n bytes. */
static uint64_t read_be(const unsigned char *s, size_t n)
{
	uint64_t v = 0;

	while (n-- > 0)
		v = v << 8 | *s++;
	return v;
}

/* Returns 1; 0 if the header itself is cut off; -EBADMSG for a type that is not ours. */
static int read_head(const unsigned char *s, size_t left, struct head *ret)
{
	/* from 0xc0: bytes of the length or of the number itself; 0xff: refused */
	static const unsigned char width[32] = {
		0, 0xff, 0, 0, 1,    2,	   4,	 0xff, 0xff, 0xff, 4, 8, 1, 2, 4, 8,
		1, 2,	 4, 8, 0xff, 0xff, 0xff, 0xff, 0xff, 1,	   2, 4, 2, 4, 2, 4,
	};
	const unsigned char c = s[0];
	uint64_t n;
	size_t w;

	*ret = (struct head){ .bytes = 1 };
	if (c < 0x80 || c >= 0xe0)
		return 1;
	if (c < 0x90) {
		ret->children = 2 * (c & 0x0f);
		return 1;
	}
	if (c < 0xa0) {
		ret->children = c & 0x0f;
		return 1;
	}
	if (c < 0xc0) {
		ret->body = c & 0x1f;
		return 1;
	}

	w = width[c - 0xc0];
	if (w == 0xff)
		return -EBADMSG;
	if (w >= left)
		return 0;
	ret->bytes += w;
	n = read_be(s + 1, w);
	if ((c >= 0xc4 && c <= 0xc6) || (c >= 0xd9 && c <= 0xdb))
		ret->body = n;
	else if (c == 0xdc || c == 0xdd)
		ret->children = n;
	else if (c == 0xde || c == 0xdf)
		ret->children = 2 * n;
	return 1;
}

static int check_bytes_linear(const unsigned char *s, size_t len, struct err *err)
{
	uint64_t open[MSG_DEPTH_MAX + 1] = { 1 }; /* values still to come at each level */
	size_t at = 0, depth = 0, n_values = 0;

	for (;;) {
		struct head h;
		int r;

		while (open[depth] == 0) {
			if (depth == 0) {
				if (at < len)
					return err_set(err, -EBADMSG,
						       "%zu bytes follow the message", len - at);
				return 0;
			}
			depth--;
		}
		if (at == len)
			return err_set(err, -EBADMSG, "the message is cut off at byte %zu", at);
		if (++n_values > MSG_NODES_MAX)
			return err_set(err, -EBADMSG, "the message has more than %d values",
				       MSG_NODES_MAX);
		r = read_head(s + at, len - at, &h);
		if (r < 0)
			return err_set(err, -EBADMSG,
				       "byte %zu is 0x%02x, a type that is not used here", at,
				       s[at]);
		if (r == 0)
			return err_set(err, -EBADMSG, "the message is cut off at byte %zu", len);
		open[depth]--;
		if (h.body + h.children > len - at - h.bytes)
			return err_set(err, -EBADMSG,
				       "the value at byte %zu declares %" PRIu64
				       " %s; %zu bytes follow",
				       at, h.body + h.children, h.body ? "bytes" : "values",
				       len - at - h.bytes);
		at += h.bytes + h.body;
		if (h.children > 0) {
			if (depth == MSG_DEPTH_MAX)
				return err_set(err, -EBADMSG, "the message nests deeper than %d",
					       MSG_DEPTH_MAX);
			open[++depth] = h.children;
		}
	}
}

/* Decoding what msgpack-c unpacked. */

static const char *kind_name(enum kind kind)
{
	static const char *const names[] = {
		[KIND_BOOL] = "a boolean",
		[KIND_U32] = "an integer from 0",
		[KIND_U64] = "an integer from 0",
		[KIND_F64] = "a number",
		[KIND_STR] = "a string",
		[KIND_BIN] = "binary",
		[KIND_STRS] = "an array of strings",
	};

	return names[kind];
}

static bool read_strs(const msgpack_object *o, struct strs *ret)
{
	ret->n = o->via.array.size;
	for (uint32_t i = 0; i < MIN(ret->n, (uint32_t)MSG_STRS_MAX); i++) {
		const msgpack_object *item = &o->via.array.ptr[i];

		if (item->type != MSGPACK_OBJECT_STR)
			return false;
		ret->at[i] = (struct span){ item->via.str.ptr, item->via.str.size };
	}
	return true;
}

static bool read_number(const msgpack_object *o, double *ret)
{
	switch (o->type) {
	case MSGPACK_OBJECT_FLOAT32:
	case MSGPACK_OBJECT_FLOAT64:
		*ret = o->via.f64;
		return true;
	case MSGPACK_OBJECT_POSITIVE_INTEGER:
		*ret = o->via.u64;
		return true;
	case MSGPACK_OBJECT_NEGATIVE_INTEGER:
		*ret = o->via.i64;
		return true;
	default:
		return false;
	}
}

/* False if @o is of another type than the field. U32 is read wide, so that its check sees it all. */
static bool read_value(const msgpack_object *o, enum kind kind, void *ret, uint64_t *ret_wide)
{
	switch (kind) {
	case KIND_BOOL:
		if (o->type != MSGPACK_OBJECT_BOOLEAN)
			return false;
		*(bool *)ret = o->via.boolean;
		return true;
	case KIND_U32:
	case KIND_U64:
		if (o->type != MSGPACK_OBJECT_POSITIVE_INTEGER)
			return false;
		*ret_wide = o->via.u64;
		if (kind == KIND_U32)
			*(uint32_t *)ret = o->via.u64;
		else
			*(uint64_t *)ret = o->via.u64;
		return true;
	case KIND_F64:
		return read_number(o, ret);
	case KIND_STR:
		if (o->type != MSGPACK_OBJECT_STR)
			return false;
		*(struct span *)ret = (struct span){ o->via.str.ptr, o->via.str.size };
		return true;
	case KIND_BIN:
		if (o->type != MSGPACK_OBJECT_BIN)
			return false;
		*(struct span *)ret = (struct span){ o->via.bin.ptr, o->via.bin.size };
		return true;
	case KIND_STRS:
		return o->type == MSGPACK_OBJECT_ARRAY && read_strs(o, ret);
	}
	return false;
}

static const struct field *find_field(const struct kind_of_message *k, struct span name)
{
	for (size_t i = 0; i < k->n_fields; i++)
		if (name.len == k->fields[i].name_len &&
		    memcmp(name.data, k->fields[i].name, name.len) == 0)
			return &k->fields[i];
	return NULL;
}

static int read_field(const struct kind_of_message *k, const msgpack_object_kv *kv, struct msg *m,
		      struct err *err)
{
	struct place p = { .k = k, .code = -EBADMSG, .err = err };
	const struct field *f;
	uint64_t wide = 0;
	struct span name;

	if (kv->key.type != MSGPACK_OBJECT_STR)
		return err_set(err, -EBADMSG, "%s has a field whose name is no string", k->name);
	name = (struct span){ kv->key.via.str.ptr, kv->key.via.str.size };
	f = find_field(k, name);
	if (!f)
		return err_set(err, -EBADMSG, "%s has no field '%.*s'", k->name,
			       (int)MIN(name.len, 64u), name.data);
	p.f = f;
	if (*has(m, f))
		return err_set(err, -EBADMSG, WHERE " is given twice", WHERE_ARG(&p));
	if (!read_value(&kv->val, f->kind, value(m, f), &wide))
		return err_set(err, -EBADMSG, WHERE " is not %s", WHERE_ARG(&p),
			       kind_name(f->kind));
	*has(m, f) = true;
	return f->kind == KIND_U32 ? check_integer(&p, wide) : 0;
}

static int read_fields(const struct kind_of_message *k, const msgpack_object *map, struct msg *m,
		       struct err *err)
{
	int r;

	for (uint32_t i = 0; i < map->via.map.size; i++) {
		r = read_field(k, &map->via.map.ptr[i], m, err);
		if (r < 0)
			return r;
	}
	return check_fields(k, m, -EBADMSG, err);
}

static int read_message(const msgpack_object *o, bool up, struct msg *m, struct err *err)
{
	const struct kind_of_message *k;
	const msgpack_object *part;

	if (o->type != MSGPACK_OBJECT_ARRAY || o->via.array.size != 3)
		return err_set(err, -EBADMSG, "the message is not an array of three");
	part = o->via.array.ptr;
	if (part[0].type != MSGPACK_OBJECT_POSITIVE_INTEGER || part[0].via.u64 > UINT16_MAX)
		return err_set(err, -EBADMSG,
			       "the message's type is not an integer from 0 to 65535");
	if (part[1].type != MSGPACK_OBJECT_POSITIVE_INTEGER)
		return err_set(err, -EBADMSG, "the message's id is not an integer from 0");
	m->type = part[0].via.u64;
	m->id = part[1].via.u64;

	k = find_kind(m->type);
	if (!k)
		return err_set(err, -EBADMSG, "message type %u is unknown", (unsigned)m->type);
	if (!(k->direction & (up ? DIR_UP : DIR_DOWN)))
		return err_set(err, -EBADMSG, "%s is not for a %s to send", k->name,
			       up ? "client" : "daemon");
	if (up && (m->id == 0) != (m->type == MSG_HELLO))
		return err_set(err, -EBADMSG,
			       "%s has id %" PRIu64 "; id 0 is for hello, and only for it", k->name,
			       m->id);
	if (part[2].type != MSGPACK_OBJECT_MAP)
		return err_set(err, -EBADMSG, "the fields of %s are not a map", k->name);
	return read_fields(k, &part[2], m, err);
}

static void zonep(msgpack_unpacked *u)
{
	msgpack_unpacked_destroy(u);
}

int msg_decode(const char *data, size_t len, bool up, struct msg *ret, struct err *err)
{
	_cleanup_(zonep) msgpack_unpacked u;
	size_t offset = 0;
	int r;

	msgpack_unpacked_init(&u);
	memset(ret, 0, sizeof(*ret));
	r = check_bytes_linear((const unsigned char *)data, len, err);
	if (r < 0)
		return r;
	if (msgpack_unpack_next(&u, data, len, &offset) != MSGPACK_UNPACK_SUCCESS)
		return err_set(err, -EBADMSG, "the message is not msgpack");
	return read_message(&u.data, up, ret, err);
}
