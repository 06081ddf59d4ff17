/* The codec: what goes in comes out, and nothing else gets through. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <math.h>
#include <msgpack.h>
#include <sys/socket.h>

#include "client/wire/frame.h"
#include "client/wire/msg.h"
#include "client/wire/ownership.h"

/* A message with a field of every kind. */
static struct msg full_message(void)
{
	static const uint32_t ids[] = { 1, 2, 0xffffffff };
	struct msg m = { .type = MSG_GENERATE, .id = 0x123456789abcdefull };

	MSG_SET(&m.generate, prompt, SPAN("a\0b \xe2\x82\xac"));
	MSG_SET(&m.generate, ids, (struct span){ (const char *)ids, sizeof(ids) });
	MSG_SET(&m.generate, temperature, 0.75);
	MSG_SET(&m.generate, frequency_penalty, -1e6);
	MSG_SET(&m.generate, top_k, 0x7fffffff);
	MSG_SET(&m.generate, seed, UINT64_MAX);
	MSG_SET(&m.generate, ignore_eos, true);
	m.generate.has_stop = true;
	m.generate.stop.n = 2;
	m.generate.stop.at[0] = SPAN("\n\n");
	m.generate.stop.at[1] = SPAN("");
	return m;
}

static void encode(const struct msg *m, char **ret, size_t *ret_len)
{
	struct err err = { 0 };

	assert_int_equal(msg_encode(m, ret, ret_len, &err), 0);
}

static void what_goes_in_comes_out(void **state)
{
	const struct msg m = full_message();
	_cleanup_(freep) char *frame = NULL;
	const struct msg_generate *g;
	struct err err = { 0 };
	struct msg got;
	uint32_t length;
	size_t len;

	(void)state;
	encode(&m, &frame, &len);
	memcpy(&length, frame, 4);
	assert_int_equal(length, len - 4);
	assert_int_equal(msg_decode(frame + 4, len - 4, true, &got, &err), 0);
	g = &got.generate;
	assert_int_equal(got.type, MSG_GENERATE);
	assert_true(got.id == 0x123456789abcdefull);
	assert_int_equal(g->prompt.len, 7);
	assert_memory_equal(g->prompt.data, "a\0b \xe2\x82\xac", 7);
	assert_int_equal(g->ids.len, 12);
	assert_memory_equal(g->ids.data, m.generate.ids.data, 12);
	assert_true(g->temperature == 0.75 && g->frequency_penalty == -1e6);
	assert_true(g->top_k == 0x7fffffff && g->seed == UINT64_MAX && g->ignore_eos);
	assert_int_equal(g->stop.n, 2);
	assert_true(span_is(g->stop.at[0], "\n\n") && g->stop.at[1].len == 0);
	assert_false(g->has_messages || g->has_top_p || g->has_logprobs || g->has_bias_ids);
}

/* Every message of the table, with no field but the required ones. */
static void every_message_survives_a_round_trip(void **state)
{
	int n = 0;

	(void)state;
#define FILL_REQ(sub, kind, name) FILL_##kind(sub, name)
#define FILL_OPT(sub, kind, name)
#define FILL_BOOL(sub, name) MSG_SET(sub, name, true);
#define FILL_U32(sub, name) MSG_SET(sub, name, 7);
#define FILL_U64(sub, name) MSG_SET(sub, name, 7);
#define FILL_STR(sub, name) MSG_SET(sub, name, SPAN("seven"));
#define FILL_BIN(sub, name) MSG_SET(sub, name, SPAN("7777"));
#define FILL(m, kind, name, bound, need) FILL_##need(&full.m, kind, name)
#define ROUND_TRIP(number, TYPE, name, direction)                                                  \
	{                                                                                          \
		struct msg full = { .type = MSG_##TYPE, .id = number == 1 ? 0 : 9 }, got;          \
		_cleanup_(freep) char *frame = NULL;                                               \
		struct err err = { 0 };                                                            \
		size_t len;                                                                        \
                                                                                                   \
		TYPE##_FIELDS(FILL, name) encode(&full, &frame, &len);                             \
		assert_int_equal(msg_decode(frame + 4, len - 4, UP_##direction, &got, &err), 0);   \
		assert_int_equal(got.type, number);                                                \
		assert_string_equal(msg_name(got.type), #name);                                    \
		n++;                                                                               \
	}
#define UP_UP true
#define UP_DOWN false
#define UP_BOTH true
	MESSAGES(ROUND_TRIP)
	assert_int_equal(n, 38);
	assert_string_equal(msg_name(99), "?");
}

static void every_truncation_is_refused(void **state)
{
	const struct msg m = full_message();
	_cleanup_(freep) char *frame = NULL;
	size_t len;

	(void)state;
	encode(&m, &frame, &len);
	for (size_t n = 0; n + 4 < len; n++) {
		_cleanup_(freep) char *cut = malloc(n + 1); /* exact, for the sanitizer */
		struct err err = { 0 };
		struct msg got;

		memcpy(cut, frame + 4, n);
		assert_int_equal(msg_decode(cut, n, true, &got, &err), -EBADMSG);
		assert_true(err.text[0]);
	}
}

static void a_queue_gets_the_same_bytes(void **state)
{
	const struct msg m = full_message();
	struct msg empty = { .type = MSG_STATUS, .id = 5 };
	const struct msg *const both[] = { &m, &empty };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(both); i++) {
		_cleanup_(freep) char *frame = NULL;
		struct frame_out out;
		struct err err = { 0 };
		char got[4096];
		size_t len;
		int fds[2];

		encode(both[i], &frame, &len);
		frame_out_init(&out);
		assert_int_equal(msg_queue(both[i], &out, &err), 0);
		assert_int_equal(out.queued_bytes, len);
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
		assert_int_equal(frame_out_flush(&out, fds[0], SIZE_MAX), 1);
		assert_int_equal(recv(fds[1], got, sizeof(got), MSG_DONTWAIT), len);
		assert_memory_equal(got, frame, len);
		empty.type = 9999; /* refused, and nothing of it is queued */
		assert_int_equal(msg_queue(&empty, &out, &err), -EINVAL);
		assert_int_equal(out.queued_bytes, 0);
		empty.type = MSG_STATUS;
		frame_out_deinit(&out);
		close(fds[0]);
		close(fds[1]);
	}
}

static void every_flipped_bit_is_refused_or_makes_a_valid_message(void **state)
{
	const struct msg m = full_message();
	_cleanup_(freep) char *frame = NULL;
	size_t len, n_refused = 0;

	(void)state;
	encode(&m, &frame, &len);
	for (size_t bit = 0; bit < 8 * (len - 4); bit++) {
		_cleanup_(freep) char *again = NULL;
		struct err err = { 0 };
		struct msg got;
		size_t n;
		int r;

		frame[4 + bit / 8] ^= 1 << bit % 8;
		r = msg_decode(frame + 4, len - 4, true, &got, &err);
		if (r < 0) {
			assert_int_equal(r, -EBADMSG);
			assert_true(err.text[0]);
			n_refused++;
		} else {
			assert_int_equal(msg_encode(&got, &again, &n, &err), 0);
		}
		frame[4 + bit / 8] ^= 1 << bit % 8;
	}
	assert_true(n_refused > 8 * len / 4);
}

static void expect_refusal(const char *bytes, size_t len, const char *sentence)
{
	_cleanup_(freep) char *exact = malloc(len + 1);
	struct err err = { 0 };
	struct msg got;

	memcpy(exact, bytes, len);
	assert_int_equal(msg_decode(exact, len, true, &got, &err), -EBADMSG);
	assert_string_equal(err.text, sentence);
}

#define REFUSED(bytes, sentence) expect_refusal(bytes, sizeof(bytes) - 1, sentence)

static void hostile_bytes_are_refused_before_memory_is_spent(void **state)
{
	static char many[5 + 4097];

	(void)state;
	REFUSED("\xdd\xff\x00\x00\x00",
		"the value at byte 0 declares 4278190080 values; 0 bytes follow");
	REFUSED("\xdf\xff\xff\xff\xff",
		"the value at byte 0 declares 8589934590 values; 0 bytes follow");
	REFUSED("\xc6\xff\xff\xff\xff"
		"x",
		"the value at byte 0 declares 4294967295 bytes; 1 bytes follow");
	REFUSED("", "the message is cut off at byte 0");
	REFUSED("\xdd\xff", "the message is cut off at byte 2");
	REFUSED("\x91\x91\x91\x91\x91\x91\x91\x91\x91\x01", "the message nests deeper than 8");
	REFUSED("\x93\x16\x01\x80\xc0", "1 bytes follow the message");
	REFUSED("\x93\x16\x01\xd4\x00\x00", "byte 3 is 0xd4, a type that is not used here");
	REFUSED("\x93\x16\x01\xc1", "byte 3 is 0xc1, a type that is not used here");
	memcpy(many, "\xdd\x00\x00\x10\x01", 5);
	expect_refusal(many, sizeof(many), "the message has more than 4096 values");
}

static void what_is_no_message_is_named(void **state)
{
	(void)state;
	REFUSED("\x92\x16\x01", "the message is not an array of three");
	REFUSED("\xc0", "the message is not an array of three");
	REFUSED("\x93\xff\x01\x80", "the message's type is not an integer from 0 to 65535");
	REFUSED("\x93\xce\x00\x01\x00\x00\x01\x80",
		"the message's type is not an integer from 0 to 65535");
	REFUSED("\x93\x16\xa1x\x80", "the message's id is not an integer from 0");
	REFUSED("\x93\x63\x01\x80", "message type 99 is unknown");
	REFUSED("\x93\x02\x01\x80", "done is not for a client to send");
	REFUSED("\x93\x16\x00\x80", "status has id 0; id 0 is for hello, and only for it");
	REFUSED("\x93\x16\x01\x90", "the fields of status are not a map");
	REFUSED("\x93\x16\x01\x81\xa1x\x01", "status has no field 'x'");
	REFUSED("\x93\x16\x01\x81\x01\x01", "status has a field whose name is no string");
	REFUSED("\x93\x1a\x01\x80", "cancel_turn.turn is missing");
	REFUSED("\x93\x1a\x01\x81\xa4turn\xff", "cancel_turn.turn is not an integer from 0");
	REFUSED("\x93\x1a\x01\x82\xa4turn\x01\xa4turn\x01", "cancel_turn.turn is given twice");
	REFUSED("\x93\x13\x01\x81\xa4text\xa1\xff", "tokenize.text is not UTF-8 at byte 0");
	REFUSED("\x93\x13\x01\x81\xa4text\xc4\x01x", "tokenize.text is not a string");
	REFUSED("\x93\x13\x01\x81\xa5plain\x01", "tokenize.plain is not a boolean");
	REFUSED("\x93\x14\x01\x81\xa3ids\xa1x", "detokenize.ids is not binary");
	REFUSED("\x93\x10\x01\x81\xa4stop\x91\x01", "generate.stop is not an array of strings");
	REFUSED("\x93\x10\x01\x81\xa5top_p\xa1x", "generate.top_p is not a number");
}

static void type_and_id_are_told_even_if_the_fields_are_wrong(void **state)
{
	static const char bytes[] = "\x93\x10\x07\x81\xa1x\x01";
	struct err err = { 0 };
	struct msg got;

	(void)state;
	assert_int_equal(msg_decode(bytes, sizeof(bytes) - 1, true, &got, &err), -EBADMSG);
	assert_int_equal(got.type, MSG_GENERATE);
	assert_int_equal(got.id, 7);
	assert_int_equal(msg_decode("\xc1", 1, true, &got, &err), -EBADMSG);
	assert_int_equal(got.type, 0);
	assert_int_equal(got.id, 0);
}

/* [16, 1, {name: …}], packed by hand: the encoder would refuse it. */
static int decode_field(const char *name, void (*pack)(msgpack_packer *, double), double value,
			struct err *err)
{
	msgpack_sbuffer buffer;
	msgpack_packer p;
	struct msg got;
	int r;

	msgpack_sbuffer_init(&buffer);
	msgpack_packer_init(&p, &buffer, msgpack_sbuffer_write);
	msgpack_pack_array(&p, 3);
	msgpack_pack_int(&p, MSG_GENERATE);
	msgpack_pack_int(&p, 1);
	msgpack_pack_map(&p, 1);
	msgpack_pack_str(&p, strlen(name));
	msgpack_pack_str_body(&p, name, strlen(name));
	pack(&p, value);
	*err = (struct err){ 0 };
	r = msg_decode(buffer.data, buffer.size, true, &got, err);
	msgpack_sbuffer_destroy(&buffer);
	return r;
}

static void pack_real(msgpack_packer *p, double v)
{
	msgpack_pack_double(p, v);
}

static void pack_integer(msgpack_packer *p, double v)
{
	if (v < 0)
		msgpack_pack_int64(p, v);
	else
		msgpack_pack_uint64(p, v);
}

static void pack_string(msgpack_packer *p, double v)
{
	_cleanup_(freep) char *text = malloc(v + 1);

	memset(text, 'x', v);
	msgpack_pack_str(p, v);
	msgpack_pack_str_body(p, text, v);
}

static void pack_bytes(msgpack_packer *p, double v)
{
	_cleanup_(freep) char *text = calloc(1, v + 1);

	msgpack_pack_bin(p, v);
	msgpack_pack_bin_body(p, text, v);
}

static void pack_strings(msgpack_packer *p, double v)
{
	msgpack_pack_array(p, v);
	for (int i = 0; i < v; i++) {
		msgpack_pack_str(p, 256);
		msgpack_pack_str_body(p, (const char[256]){ "" }, 256);
	}
}

static void each_bound_holds_and_one_past_it_is_named(void **state)
{
	static const struct {
		const char *name;
		void (*pack)(msgpack_packer *, double);
		double good, bad;
		const char *sentence;
	} cases[] = {
		{ "top_p", pack_real, 1, 1.5, "generate.top_p is 1.5; at most 1 is allowed" },
		{ "min_p", pack_real, -1, -1.5, "generate.min_p is -1.5; at least -1 is allowed" },
		{ "temperature", pack_real, 1e6, 2e6,
		  "generate.temperature is 2e+06; at most 1e+06 is allowed" },
		{ "temperature", pack_real, 0, NAN, "generate.temperature is not finite" },
		{ "temperature", pack_integer, 1, INFINITY,
		  "generate.temperature is 1.84467e+19; at most 1e+06 is allowed" },
		{ "top_k", pack_integer, 2147483647, 2147483648.0,
		  "generate.top_k is 2147483648; at most 2147483647 is allowed" },
		{ "top_k", pack_integer, 0, 4294967296.0,
		  "generate.top_k is 4294967296; at most 2147483647 is allowed" },
		{ "top_k", pack_integer, 1, -1, "generate.top_k is not an integer from 0" },
		{ "n_top", pack_integer, 20, 21, "generate.n_top is 21; at most 20 is allowed" },
		{ "credit", pack_integer, 4294967295.0, 4294967296.0,
		  "generate.credit is 4294967296; at most 4294967295 is allowed" },
		{ "model", pack_string, 256, 257,
		  "generate.model has 257 bytes; at most 256 are allowed" },
		{ "attached", pack_string, 16, 17,
		  "generate.attached has 17 bytes; at most 16 are allowed" },
		{ "stop_ids", pack_bytes, 64, 65,
		  "generate.stop_ids has 65 bytes; at most 64 are allowed" },
		{ "bias_ids", pack_bytes, 4096, 4097,
		  "generate.bias_ids has 4097 bytes; at most 4096 are allowed" },
		{ "stop", pack_strings, 16, 17,
		  "generate.stop has 17 strings; at most 16 are allowed" },
	};
	struct err err;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		const double bad = isinf(cases[i].bad) ? 18446744073709549568.0 : cases[i].bad;

		assert_int_equal(decode_field(cases[i].name, cases[i].pack, cases[i].good, &err),
				 0);
		assert_int_equal(decode_field(cases[i].name, cases[i].pack, bad, &err), -EBADMSG);
		assert_string_equal(err.text, cases[i].sentence);
	}
}

static void all_strings_of_a_list_share_its_bound(void **state)
{
	static char text[4097];
	struct msg m = { .type = MSG_GENERATE, .id = 1 };
	_cleanup_(freep) char *frame = NULL;
	struct err err = { 0 };
	size_t len;

	(void)state;
	memset(text, 'x', sizeof(text));
	m.generate.has_stop = true;
	m.generate.stop.n = 2;
	m.generate.stop.at[0] = (struct span){ text, 2048 };
	m.generate.stop.at[1] = (struct span){ text, 2049 };
	assert_int_equal(msg_encode(&m, &frame, &len, &err), -EINVAL);
	assert_string_equal(err.text, "generate.stop has 4097 bytes; at most 4096 are allowed");
	m.generate.stop.at[1].len = 2048;
	assert_int_equal(msg_encode(&m, &frame, &len, &err), 0);
}

static void the_encoder_keeps_the_same_rules(void **state)
{
	struct msg m = { .type = MSG_CREDIT, .id = 1 };
	_cleanup_(freep) char *frame = NULL;
	struct err err = { 0 };
	size_t len;

	(void)state;
	assert_int_equal(msg_encode(&m, &frame, &len, &err), -EINVAL);
	assert_string_equal(err.text, "credit.n_tokens is missing");
	m = (struct msg){ .type = MSG_GENERATE, .id = 1 };
	MSG_SET(&m.generate, top_p, 1.5);
	assert_int_equal(msg_encode(&m, &frame, &len, &err), -EINVAL);
	assert_string_equal(err.text, "generate.top_p is 1.5; at most 1 is allowed");
	m = (struct msg){ .type = 99, .id = 1 };
	assert_int_equal(msg_encode(&m, &frame, &len, &err), -EINVAL);
	assert_string_equal(err.text, "message type 99 is unknown");
	assert_null(frame);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_goes_in_comes_out),
		cmocka_unit_test(every_message_survives_a_round_trip),
		cmocka_unit_test(every_truncation_is_refused),
		cmocka_unit_test(a_queue_gets_the_same_bytes),
		cmocka_unit_test(every_flipped_bit_is_refused_or_makes_a_valid_message),
		cmocka_unit_test(hostile_bytes_are_refused_before_memory_is_spent),
		cmocka_unit_test(what_is_no_message_is_named),
		cmocka_unit_test(type_and_id_are_told_even_if_the_fields_are_wrong),
		cmocka_unit_test(each_bound_holds_and_one_past_it_is_named),
		cmocka_unit_test(all_strings_of_a_list_share_its_bound),
		cmocka_unit_test(the_encoder_keeps_the_same_rules),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
