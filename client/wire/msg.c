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

#include "client/wire/ownership.h"
#include "client/wire/utf8.h"

enum kind { KIND_BOOL, KIND_U32, KIND_U64, KIND_F64, KIND_STR, KIND_BIN, KIND_STRS };
enum need { NEED_OPT, NEED_REQ };
enum direction { DIR_UP = 1, DIR_DOWN = 2, DIR_BOTH = 3 };

struct field {
	const char *name;
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

static int check_bytes(const char *where, const struct field *f, struct span s, bool text, int code,
		       struct err *err)
{
	size_t good;

	if (s.len > f->most)
		return err_set(err, code, "%s has %zu bytes; at most %" PRIu64 " are allowed",
			       where, s.len, f->most);
	good = text ? utf8_valid_bytes(s) : s.len;
	if (good < s.len)
		return err_set(err, code, "%s is not UTF-8 at byte %zu", where, good);
	return 0;
}

static int check_strs(const char *where, const struct field *f, const struct strs *strs, int code,
		      struct err *err)
{
	uint64_t bytes = 0;

	if (strs->n > MSG_STRS_MAX)
		return err_set(err, code, "%s has %u strings; at most %u are allowed", where,
			       strs->n, MSG_STRS_MAX);
	for (uint32_t i = 0; i < strs->n; i++) {
		const int r = check_bytes(where, f, strs->at[i], true, code, err);

		if (r < 0)
			return r;
		bytes += strs->at[i].len;
	}
	if (bytes > f->most)
		return err_set(err, code,
			       "%s has %" PRIu64 " bytes; at most %" PRIu64 " are allowed", where,
			       bytes, f->most);
	return 0;
}

static int check_integer(const char *where, const struct field *f, uint64_t u, int code,
			 struct err *err)
{
	if (u > f->most)
		return err_set(err, code, "%s is %" PRIu64 "; at most %" PRIu64 " is allowed",
			       where, u, f->most);
	return 0;
}

static int check_number(const char *where, const struct field *f, double d, int code,
			struct err *err)
{
	if (!isfinite(d))
		return err_set(err, code, "%s is not finite", where);
	if (d > f->magnitude)
		return err_set(err, code, "%s is %g; at most %g is allowed", where, d,
			       f->magnitude);
	if (d < -f->magnitude)
		return err_set(err, code, "%s is %g; at least %g is allowed", where, d,
			       -f->magnitude);
	return 0;
}

static int check_field(const struct kind_of_message *k, const struct field *f, const struct msg *m,
		       int code, struct err *err)
{
	const void *v = value(m, f);
	char where[64];

	snprintf(where, sizeof(where), "%s.%s", k->name, f->name);
	if (!*has(m, f)) {
		if (f->need == NEED_REQ)
			return err_set(err, code, "%s is missing", where);
		return 0;
	}
	switch (f->kind) {
	case KIND_BOOL:
		return 0;
	case KIND_U32:
		return check_integer(where, f, *(const uint32_t *)v, code, err);
	case KIND_U64:
		return check_integer(where, f, *(const uint64_t *)v, code, err);
	case KIND_F64:
		return check_number(where, f, *(const double *)v, code, err);
	case KIND_STR:
	case KIND_BIN:
		return check_bytes(where, f, *(const struct span *)v, f->kind == KIND_STR, code,
				   err);
	case KIND_STRS:
		return check_strs(where, f, v, code, err);
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
			r = pack_str(p, span_of(f->name)) || pack_value(p, f->kind, value(m, f));
	}
	return r;
}

int msg_encode(const struct msg *m, char **ret, size_t *ret_len, struct err *err)
{
	const struct kind_of_message *k = find_kind(m->type);
	uint32_t length = 0;
	msgpack_sbuffer buffer;
	msgpack_packer p;
	int r;

	if (!k)
		return err_set(err, -EINVAL, "message type %u is unknown", (unsigned)m->type);
	for (size_t i = 0; i < k->n_fields; i++) {
		r = check_field(k, &k->fields[i], m, -EINVAL, err);
		if (r < 0)
			return r;
	}

	msgpack_sbuffer_init(&buffer);
	msgpack_packer_init(&p, &buffer, msgpack_sbuffer_write);
	r = msgpack_sbuffer_write(&buffer, (const char *)&length, sizeof(length)) ||
	    pack_message(&p, k, m);
	if (r != 0 || buffer.size - sizeof(length) > UINT32_MAX) {
		msgpack_sbuffer_destroy(&buffer);
		return r != 0 ? -ENOMEM
			      : err_set(err, -EINVAL, "%s is larger than a frame can be", k->name);
	}
	length = htole32(buffer.size - sizeof(length));
	memcpy(buffer.data, &length, sizeof(length));
	*ret_len = buffer.size;
	*ret = msgpack_sbuffer_release(&buffer);
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
		if (span_is(name, k->fields[i].name))
			return &k->fields[i];
	return NULL;
}

static int read_field(const struct kind_of_message *k, const msgpack_object_kv *kv, struct msg *m,
		      struct err *err)
{
	const struct field *f;
	uint64_t wide = 0;
	char where[64];
	struct span name;

	if (kv->key.type != MSGPACK_OBJECT_STR)
		return err_set(err, -EBADMSG, "%s has a field whose name is no string", k->name);
	name = (struct span){ kv->key.via.str.ptr, kv->key.via.str.size };
	f = find_field(k, name);
	if (!f)
		return err_set(err, -EBADMSG, "%s has no field '%.*s'", k->name,
			       (int)MIN(name.len, 64u), name.data);
	snprintf(where, sizeof(where), "%s.%s", k->name, f->name);
	if (*has(m, f))
		return err_set(err, -EBADMSG, "%s is given twice", where);
	if (!read_value(&kv->val, f->kind, value(m, f), &wide))
		return err_set(err, -EBADMSG, "%s is not %s", where, kind_name(f->kind));
	*has(m, f) = true;
	if (f->kind == KIND_U32)
		return check_integer(where, f, wide, -EBADMSG, err);
	return 0;
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
	for (size_t i = 0; i < k->n_fields; i++) {
		r = check_field(k, &k->fields[i], m, -EBADMSG, err);
		if (r < 0)
			return r;
	}
	return 0;
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
