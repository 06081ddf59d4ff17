/* The gateway's parts that need no connection: heads, fields, keys, ids, refusals, routes, text. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/gateway/conversation.h"
#include "client/gateway/fields.h"
#include "client/gateway/head.h"
#include "client/gateway/ident.h"
#include "client/gateway/keys.h"
#include "client/gateway/responses.h"
#include "client/gateway/routes.h"

static void text_is_quoted_as_json_reads_it(void **state)
{
	static const char all[] = "a\"b\\c\b\f\n\r\t\0\x01\x1f\x7f\xc3\xa4/";
	struct jsontext t = { 0 };
	json_t *back;

	(void)state;
	jsontext_quote(&t, all, sizeof(all) - 1);
	back = json_loadb(t.at, t.n, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
	assert_int_equal(json_string_length(back), sizeof(all) - 1);
	assert_memory_equal(json_string_value(back), all, sizeof(all) - 1);
	json_decref(back);
	jsontext_clear(&t);
	back = json_pack("{s:f, s:f, s:n}", "a", 0.1, "b", 1e300, "c");
	jsontext_value(&t, back);
	assert_string_equal(t.at, "{\"a\":0.1,\"b\":1e300,\"c\":null}");
	json_decref(back);
	jsontext_clear(&t);
	jsontext_logprob(&t, NAN);
	jsontext_put(&t, " ");
	jsontext_logprob(&t, -INFINITY);
	jsontext_put(&t, " ");
	jsontext_logprob(&t, -0.5f);
	assert_string_equal(t.at, "null -9999 -0.5");
	jsontext_deinit(&t);
}

static void every_length_of_text_is_kept(void **state)
{
	struct jsontext t = { 0 };

	(void)state;
	for (size_t i = 0; i < 5000; i++) {
		jsontext_add(&t, "x", 1);
		assert_int_equal(t.n, i + 1);
		assert_int_equal(t.at[t.n], '\0');
	}
	jsontext_format(&t, "%s", "");
	assert_int_equal(t.n, 5000);
	jsontext_clear(&t);
	jsontext_number(&t, 0);
	jsontext_number(&t, 10);
	jsontext_number(&t, UINT64_MAX);
	assert_string_equal(t.at, "01018446744073709551615");
	jsontext_deinit(&t);
}

static void fields_go_where_they_belong(void **state)
{
	static const char body[] =
		"{\"messages\":[{}],\"temperature\":0.5,\"top_k\":-1,\"max_tokens\":5,"
		"\"max_completion_tokens\":7.0,\"seed\":-1,\"stop\":[\"a\",\"b\"],"
		"\"logit_bias\":{\"5\":1.5},\"n\":2,\"user\":\"x\",\"top_p\":null,"
		"\"reasoning_effort\":\"none\",\"parallel_tool_calls\":false}";
	struct refusal no = { 0 };
	struct fields f;

	(void)state;
	assert_int_equal(fields_read(&f, FIELDS_CHAT, body, strlen(body), false, &no), 0);
	assert_true(f.g.temperature == 0.5 && isnan(f.g.top_p));
	assert_int_equal(f.g.top_k, 0);
	assert_int_equal(f.g.max_tokens, 7); /* the newer name wins */
	assert_true(f.g.has_seed && f.g.seed == UINT64_MAX);
	assert_int_equal(f.g.n_stop, 2);
	assert_string_equal(f.g.stop[1], "b");
	assert_int_equal(f.g.n_bias, 1);
	assert_true(f.g.bias_ids[0] == 5 && f.g.bias_values[0] == 1.5f);
	assert_int_equal(f.n, 2);
	assert_int_equal(f.think, 0);
	assert_true(f.one_call && !f.stream);
	fields_deinit(&f);
}

static void each_bound_is_named(void **state)
{
	static const struct {
		const char *member, *param;
		bool ok;
	} cases[] = {
		{ "\"temperature\":100", "", true },
		{ "\"temperature\":100.1", "temperature", false },
		{ "\"temperature\":-0.1", "temperature", false },
		{ "\"top_p\":1", "", true },
		{ "\"top_p\":1.01", "top_p", false },
		{ "\"n\":8", "", true },
		{ "\"n\":9", "n", false },
		{ "\"n\":0", "n", false },
		{ "\"top_k\":-2", "top_k", false },
		{ "\"max_tokens\":2147483647", "", true },
		{ "\"max_tokens\":2147483648", "max_tokens", false },
		{ "\"logprobs\":true,\"top_logprobs\":20", "", true },
		{ "\"logprobs\":true,\"top_logprobs\":21", "top_logprobs", false },
		{ "\"seed\":1e3", "seed", false },
		{ "\"nobody\":1", "nobody", false },
		{ "\"stop\":\"a\\u0000b\"", "stop", false },
		{ "\"logit_bias\":{\"-1\":1}", "logit_bias", false },
		{ "\"logit_bias\":{\"4294967296\":1}", "logit_bias", false },
		{ "\"model\":\"a\\u0000\"", "model", false },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct refusal no = { 0 };
		struct fields f;
		char body[256];
		int r;

		snprintf(body, sizeof(body), "{\"messages\":[{}],%s}", cases[i].member);
		r = fields_read(&f, FIELDS_CHAT, body, strlen(body), false, &no);
		assert_int_equal(r == 0, cases[i].ok);
		assert_string_equal(no.param, cases[i].param);
		assert_int_equal(no.status, cases[i].ok ? 0 : 400);
		fields_deinit(&f);
	}
}

static void every_beginning_of_a_body_is_refused(void **state)
{
	static const char body[] = "{\"prompt\":[\"a\",\"\\u00e4\"],\"logit_bias\":{\"1\":2.5},"
				   "\"stop\":[\"x\"],\"stream_options\":{\"include_usage\":true}}";
	struct refusal no;
	struct fields f;

	(void)state;
	for (size_t n = 0; n < sizeof(body) - 1; n++) {
		assert_int_equal(fields_read(&f, FIELDS_TEXT, body, n, false, &no), -EINVAL);
		assert_int_equal(no.status, 400);
		fields_deinit(&f);
	}
	for (size_t i = 0; i < 8 * (sizeof(body) - 1); i++) {
		char flipped[sizeof(body)];

		memcpy(flipped, body, sizeof(body));
		flipped[i / 8] ^= (char)(1 << i % 8);
		no.text[0] = 'x';
		if (fields_read(&f, FIELDS_TEXT, flipped, sizeof(body) - 1, false, &no) < 0)
			assert_true(no.status == 400 && no.text[0]);
		fields_deinit(&f);
	}
}

static void ids_of_responses_are_read_back(void **state)
{
	static const char *const wrong[] = {
		"",
		"resp_",
		"resp_0123456789abcdef0000100000000x",
		"resp_0123456789abcdef000010000000",
		"resp_0123456789ABCDEF0000100000000",
		"resp_0123456789abcdef0000000000000",
		"rasp_0123456789abcdef0000100000000",
		"resp_0123456789abcdef 000100000000",
	};
	struct response_id id = { .session = "response-0123456789abcdef",
				  .turn = 65536,
				  .instructions = 0xdeadbeef },
			   back;
	char digits[32], text[40];

	(void)state;
	response_id_write(&id, digits);
	assert_string_equal(digits, "0123456789abcdef10000deadbeef");
	snprintf(text, sizeof(text), "resp_%s", digits);
	assert_int_equal(response_id_parse(text, &back), 0);
	assert_string_equal(back.session, id.session);
	assert_int_equal(back.turn, 65536);
	assert_int_equal(back.instructions, 0xdeadbeef);
	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++)
		assert_int_equal(response_id_parse(wrong[i], &back), -EINVAL);
	assert_int_equal(responses_hash(NULL), 0);
	assert_int_equal(responses_hash(""), 0);
	assert_int_not_equal(responses_hash("a"), responses_hash("b"));
}

static void keys_are_found_whole_and_alone(void **state)
{
	char path[] = "/tmp/test-gateway-XXXXXX";
	const int fd = mkstemp(path);
	static const char file[] = "# keys\n\nalice 0123456789abcdef\n  bob\t0123456789abcdefg  \n";
	struct keys *k = NULL;
	struct err err = { 0 };

	(void)state;
	assert_int_equal(write(fd, file, strlen(file)), (ssize_t)strlen(file));
	assert_int_equal(keys_read(path, &k, &err), 0);
	assert_string_equal(keys_label(k, "0123456789abcdef"), "alice");
	assert_string_equal(keys_label(k, "0123456789abcdefg"), "bob");
	assert_null(keys_label(k, "0123456789abcde"));
	assert_null(keys_label(k, "0123456789abcdefgh"));
	assert_null(keys_label(k, ""));
	keys_free(k);
	assert_int_equal(ftruncate(fd, 0), 0);
	assert_int_equal(keys_read(path, &k, &err), -EBADMSG);
	assert_int_equal(pwrite(fd, "a short\n", 8, 0), 8);
	assert_int_equal(keys_read(path, &k, &err), -EBADMSG);
	assert_non_null(strstr(err.text, "line 1: the key of label 'a' has 5 bytes"));
	close(fd);
	unlink(path);
	assert_int_equal(keys_read(path, &k, &err), -ENOENT);
}

static void keys_that_are_not_beyond_doubt_are_refused(void **state)
{
	static char long_comment[4096] = "# ";
	/* what lies behind the first kilobyte of a comment is no line of its own */
	static const char hidden[] = " eve 0123456789abcdef\nbob 0123456789abcdefg\n";
	static const struct {
		const char *file;
		size_t n;
		const char *says;
	} wrong[] = {
#define FILE_OF(text) text, sizeof(text) - 1
		{ FILE_OF("a 0123456789abcdef\nb 0123456789abcdef\n"),
		  "line 2: the key of label 'b' is that of label 'a', too" },
		{ FILE_OF("a 0123456789abcdef\n\0b 0123456789abcdefg\n"),
		  "line 2: it holds a NUL" },
		{ FILE_OF("a 0123456789abcdef\nb\x01 0123456789abcdefg"), "line 2: the label has" },
		{ FILE_OF("\xff 0123456789abcdef\n"), "line 1: the label has" },
		{ FILE_OF("\xc2\x80 0123456789abcdef\n"), "line 1: the label has" },
#undef FILE_OF
	};
	char path[] = "/tmp/test-gateway-XXXXXX";
	const int fd = mkstemp(path);
	struct keys *k = NULL;
	struct err err = { 0 };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		assert_int_equal(ftruncate(fd, 0), 0);
		assert_int_equal(pwrite(fd, wrong[i].file, wrong[i].n, 0), (ssize_t)wrong[i].n);
		assert_int_equal(keys_read(path, &k, &err), -EBADMSG);
		assert_non_null(strstr(err.text, wrong[i].says));
	}
	memset(long_comment + 2, 'x', 1021);
	strcat(long_comment, hidden);
	assert_int_equal(ftruncate(fd, 0), 0);
	assert_int_equal(pwrite(fd, long_comment, strlen(long_comment), 0),
			 (ssize_t)strlen(long_comment));
	assert_int_equal(keys_read(path, &k, &err), 0);
	assert_null(keys_label(k, "0123456789abcdef"));
	assert_string_equal(keys_label(k, "0123456789abcdefg"), "bob");
	k = keys_free(k);
	close(fd);
	unlink(path);
	assert_int_equal(keys_read("/tmp", &k, &err), -EISDIR);
}

static void refusals_have_openais_form(void **state)
{
	const struct steamd_error busy = { -EAGAIN, "busy", "too many", 1, 1500 },
				  odd = { -EINVAL, "bad-request",
					  "generate.top_p is 3; at most 1 is allowed", 0, 0 };
	struct jsontext t = { 0 };
	struct refusal no;

	(void)state;
	refusal_of(&no, &busy);
	assert_int_equal(no.status, 429);
	assert_int_equal(refusal_retry_s(&no), 2);
	refusal_write(&no, &t);
	assert_string_equal(t.at,
			    "{\"error\":{\"message\":\"too many\",\"type\":\"rate_limit_error\","
			    "\"param\":null,\"code\":\"busy\"}}");
	refusal_of(&no, &odd);
	assert_int_equal(no.status, 400);
	assert_int_equal(refusal_retry_s(&no), 0);
	assert_string_equal(no.param, "top_p");
	assert_string_equal(no.text, "top_p is 3; at most 1 is allowed");
	refusal_set(&no, 400, "x", NULL, "a\nb\x7f");
	assert_string_equal(no.text, "a?b?");
	refusal_set(&no, 400, "x", NULL, "'%.4s' \xff\xc3\xa4",
		    "abc\xc3\xa4"); /* cut in a character */
	assert_string_equal(no.text, "'abc?' ?\xc3\xa4");
	jsontext_deinit(&t);
}

static void a_body_is_weighed_before_it_is_parsed(void **state)
{
	enum { N = 1 << 20 };
	char *body = calloc(1, N + 64);
	struct refusal no = { 0 };
	json_t *ret = NULL;
	size_t n;

	(void)state;
	/* what stands in a string is no list, whatever is escaped in it */
	n = (size_t)sprintf(body, "{\"a\\\"\\\\\":\"");
	memset(body + n, '[', N);
	memcpy(body + n + N, "\"}", 3);
	assert_int_equal(fields_parse(body, n + N + 2, &ret, &no), 0);
	json_decref(ret);
	n = (size_t)sprintf(body, "{\"a\":");
	memset(body + n, '[', N);
	assert_int_equal(fields_parse(body, n + N, &ret, &no), -EINVAL);
	assert_int_equal(no.status, 400);
	assert_string_equal(no.code, "too-long");
	free(body);
}

static void paths_are_matched_whole(void **state)
{
	char allowed[ROUTES_ALLOWED_BYTES];
	char id[128];

	(void)state;
	assert_non_null(routes_find("GET", "/v1/models", id, sizeof(id), allowed));
	assert_non_null(routes_find("HEAD", "/v1/models", id, sizeof(id), allowed));
	assert_non_null(
		routes_find("GET", "/v1/responses/abc/input_items", id, sizeof(id), allowed));
	assert_string_equal(id, "abc");
	assert_null(routes_find("GET", "/v1/models/", id, sizeof(id), allowed));
	assert_null(routes_find("GET", "/v1/models/a/b", id, sizeof(id), allowed));
	assert_null(routes_find("GET", "/v1/modelsx", id, sizeof(id), allowed));
	assert_string_equal(allowed, "");
	assert_null(routes_find("PUT", "/v1/models", id, sizeof(id), allowed));
	assert_string_equal(allowed, "GET");
	assert_null(routes_find("PUT", "/v1/responses/abc", id, sizeof(id), allowed));
	assert_string_equal(allowed, "GET, DELETE");
	assert_null(routes_find("GET", "/v1/models/0123456789", id, 10, allowed));
}

static void items_become_messages(void **state)
{
	static const char input[] =
		"[{\"role\":\"developer\",\"content\":\"a\"},"
		"{\"type\":\"message\",\"role\":\"user\",\"content\":[{\"type\":\"input_text\","
		"\"text\":\"b\"},"
		"{\"type\":\"input_text\",\"text\":\"c\"}]},"
		"{\"type\":\"reasoning\",\"summary\":[],\"content\":[{\"type\":\"reasoning_text\","
		"\"text\":\"r\"}]},"
		"{\"role\":\"assistant\",\"content\":[{\"type\":\"output_text\",\"text\":\"d\"}]},"
		"{\"type\":\"function_call\",\"call_id\":\"1\",\"name\":\"f\",\"arguments\":\"{}\"}"
		","
		"{\"type\":\"function_call\",\"call_id\":\"2\",\"name\":\"g\",\"arguments\":\"{}\"}"
		","
		"{\"type\":\"function_call_output\",\"call_id\":\"1\",\"output\":\"x\"},"
		"{\"role\":\"assistant\",\"content\":\"e\"},{\"role\":\"assistant\",\"content\":"
		"\"f\"}]";
	static const char wanted[] =
		"[{\"role\":\"system\",\"content\":\"a\"},{\"role\":\"user\",\"content\":\"bc\"},"
		"{\"role\":\"assistant\",\"content\":\"d\",\"reasoning_content\":\"r\",\"tool_"
		"calls\":["
		"{\"id\":\"1\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{"
		"}\"}},"
		"{\"id\":\"2\",\"type\":\"function\",\"function\":{\"name\":\"g\",\"arguments\":\"{"
		"}\"}}]},"
		"{\"role\":\"tool\",\"tool_call_id\":\"1\",\"content\":\"x\"},"
		"{\"role\":\"assistant\",\"content\":\"e\"},{\"role\":\"assistant\",\"content\":"
		"\"f\"}]";
	json_t *items = json_loads(input, 0, NULL), *to = json_array();
	struct refusal no = { 0 };
	struct jsontext t = { 0 };

	(void)state;
	assert_int_equal(conversation_add_items(to, items, &no), 0);
	jsontext_value(&t, to);
	assert_string_equal(t.at, wanted);
	jsontext_deinit(&t);
	json_decref(items);
	json_decref(to);
}

static void a_unix_socket_tells_its_user(void **state)
{
	int pair[2];
	uid_t uid;

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	assert_int_equal(ident_of_unix(pair[0], &uid), 0);
	assert_int_equal(uid, geteuid());
	assert_true(ident_of_tcp(pair[0], &uid) < 0);
	close(pair[0]);
	close(pair[1]);
}

/* Of a process that looks @key up and ends; 0: processes cannot be traced here. */
static unsigned long instructions_of(const struct keys *k, const char *key)
{
	static char same_place[64];
	unsigned long n = 0;
	int status;
	pid_t pid;

	snprintf(same_place, sizeof(same_place), "%s", key);
	pid = fork();
	if (pid == 0) {
		if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
			_exit(2);
		raise(SIGSTOP);
		_exit(keys_label(k, same_place) ? 1 : 0);
	}
	while (waitpid(pid, &status, 0) == pid && WIFSTOPPED(status)) {
		n++;
		ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL);
	}
	return WIFEXITED(status) && WEXITSTATUS(status) < 2 ? n : 0;
}

static void a_key_takes_as_long_however_much_of_it_is_right(void **state)
{
	static const char *const wrong[] = { "zzzzzzzzzzzzzzzz", "0zzzzzzzzzzzzzzz",
					     "0123456789abcdez", "a123456789abcdez",
					     "b12345678zzzzzzz" };
	static const char *const right[] = { "0123456789abcdef", "a123456789abcdef",
					     "b123456789abcdef" };
	static const char file[] = "x 0123456789abcdef\ny a123456789abcdef\nz b123456789abcdef\n";
	char path[] = "/tmp/test-gateway-XXXXXX";
	const int fd = mkstemp(path);
	struct keys *k = NULL;
	unsigned long n;

	(void)state;
	assert_int_equal(write(fd, file, sizeof(file) - 1), sizeof(file) - 1);
	close(fd);
	assert_int_equal(keys_read(path, &k, NULL), 0);
	unlink(path);
	n = instructions_of(k, wrong[0]);
	if (n < 2) {
		keys_free(k);
		skip();
	}
	/* all bytes of all keys, as they are laid out */
	assert_true(n > 3 * KEYS_BYTES_MAX);
	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++)
		assert_int_equal(instructions_of(k, wrong[i]), n);
	/* taking the label down is all that there is more */
	for (size_t i = 0; i < ARRAY_SIZE(right); i++)
		assert_in_range(instructions_of(k, right[i]), n - 8, n + 8);
	keys_free(k);
}

static int head_of(const char *text, struct refusal *no)
{
	memset(no, 0, sizeof(*no));
	return head_check(text, strlen(text), no);
}

static void a_head_is_whole_or_wrong_or_more_is_to_come(void **state)
{
	static const struct {
		const char *text;
		unsigned status;
	} refused[] = {
		{ "\x16\x03\x01", 400 },
		{ " GET / HTTP/1.1", 400 },
		{ "GET/", 400 },
		{ "hello\r\n", 400 },
		{ "GET /health\r\n", 400 },
		{ "GET  HTTP/1.1\r\n", 400 },
		{ "GET /a\tb HTTP/1.1\r\n", 400 },
		{ "GET / HTTP/1.1 \r\n", 400 },
		{ "GET / http/1.1\r\n", 400 },
		{ "GET / HTTP/11\r\n", 400 },
		{ "GET / HTTP/2.0\r\n", 505 },
		{ "\r\n\r\n\r\n\r\n\r\n", 400 },
		{ "ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFG", 400 },
		{ "GET / HTTP/1.1\r\nno colon\r\n", 400 },
		{ "GET / HTTP/1.1\r\n: x\r\n", 400 },
		{ "GET / HTTP/1.1\r\nHost : x\r\n", 400 },
		{ "GET / HTTP/1.1\r\nContent-Length: 5 \r\n", 400 },
		{ "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\t\r\n", 400 },
		{ "GET / HTTP/1.1\r\nA: b\r\n c\r\n", 400 },
		{ "GET / HTTP/1.1\r\nA: b\x01\r\n", 400 },
		{ "GET / HTTP/1.1\r\nA: b\rX: y\r\n", 400 },
		{ "GET / HTTP/1.1\r\nContent-Length:\r\n", 400 },
		{ "GET / HTTP/1.1\r\ncontent-length: -1\r\n", 400 },
		{ "GET / HTTP/1.1\r\nContent-Length: 1,1\r\n", 400 },
		{ "GET / HTTP/1.1\r\nContent-Length: 12345678901234567890\r\n", 400 },
		{ "GET / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n", 501 },
	};
	static const char fine[] = "\r\nPOST http://localhost/v1 HTTP/1.1\r\nHost: localhost\r\n"
				   "X-Empty:\r\nX-Latin: \xe9\tx \r\nContent-Length: 5\r\n\r\n";
	struct refusal no;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(refused); i++) {
		assert_int_equal(head_of(refused[i].text, &no), -EINVAL);
		assert_int_equal(no.status, refused[i].status);
		assert_true(no.text[0] != '\0');
	}
	for (size_t n = 0; n < sizeof(fine) - 1; n++)
		assert_int_equal(head_check(fine, n, &no), 0);
	assert_int_equal(head_check(fine, sizeof(fine) - 1, &no), 1);
	assert_int_equal(head_of("GET / HTTP/1.0\n\n", &no), 1);
	assert_int_equal(
		head_of("DELETE / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\nbody", &no), 1);
}

static void a_head_has_room_for_so_much_and_no_more(void **state)
{
	static char text[HEAD_BYTES_MAX + 100];
	static const char line[] = "GET / HTTP/1.1\r\n";
	struct jsontext many = { 0 };
	struct refusal no;

	(void)state;
	memset(text, 'x', sizeof(text));
	memcpy(text, "GET /", 5);
	assert_int_equal(head_check(text, HEAD_BYTES_MAX - 1, &no), 0);
	assert_int_equal(head_check(text, HEAD_BYTES_MAX, &no), -EINVAL);
	assert_int_equal(no.status, 414);
	memcpy(text, line, sizeof(line) - 1);
	memcpy(text + sizeof(line) - 1, "A: ", 3);
	assert_int_equal(head_check(text, HEAD_BYTES_MAX - 1, &no), 0);
	assert_int_equal(head_check(text, sizeof(text), &no), -EINVAL);
	assert_int_equal(no.status, 431);
	memcpy(text + HEAD_BYTES_MAX - 4, "\r\n\r\n", 4);
	assert_int_equal(head_check(text, HEAD_BYTES_MAX, &no), 1);
	jsontext_put(&many, line);
	for (int i = 0; i < HEAD_FIELDS_MAX; i++)
		jsontext_put(&many, "A:\r\n");
	assert_int_equal(head_check(many.at, many.n, &no), 0);
	jsontext_put(&many, "A:\r\n");
	assert_int_equal(head_check(many.at, many.n, &no), -EINVAL);
	assert_int_equal(no.status, 431);
	/* arguments and cookies are kept like headers */
	jsontext_clear(&many);
	jsontext_put(&many, "GET /?");
	for (int i = 0; i < HEAD_FIELDS_MAX - 10; i++)
		jsontext_put(&many, "a&");
	jsontext_put(&many, " HTTP/1.1\r\nCookie: a=b; c=d; e=f\r\n");
	assert_int_equal(head_check(many.at, many.n, &no), 0);
	jsontext_put(&many, "Cookie: a=b; c=d; e=f\r\nA:;;\r\n");
	assert_int_equal(head_check(many.at, many.n, &no), 0);
	jsontext_put(&many, "A:\r\nB:\r\n");
	assert_int_equal(head_check(many.at, many.n, &no), -EINVAL);
	assert_int_equal(no.status, 431);
	jsontext_clear(&many);
	head_write_refusal(&no, &many);
	assert_int_equal(strncmp(many.at, "HTTP/1.1 431 Request Header Fields Too Large\r\n", 46),
			 0);
	jsontext_deinit(&many);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(text_is_quoted_as_json_reads_it),
		cmocka_unit_test(every_length_of_text_is_kept),
		cmocka_unit_test(fields_go_where_they_belong),
		cmocka_unit_test(each_bound_is_named),
		cmocka_unit_test(every_beginning_of_a_body_is_refused),
		cmocka_unit_test(ids_of_responses_are_read_back),
		cmocka_unit_test(keys_are_found_whole_and_alone),
		cmocka_unit_test(keys_that_are_not_beyond_doubt_are_refused),
		cmocka_unit_test(a_key_takes_as_long_however_much_of_it_is_right),
		cmocka_unit_test(a_head_is_whole_or_wrong_or_more_is_to_come),
		cmocka_unit_test(a_head_has_room_for_so_much_and_no_more),
		cmocka_unit_test(refusals_have_openais_form),
		cmocka_unit_test(a_body_is_weighed_before_it_is_parsed),
		cmocka_unit_test(paths_are_matched_whole),
		cmocka_unit_test(items_become_messages),
		cmocka_unit_test(a_unix_socket_tells_its_user),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
