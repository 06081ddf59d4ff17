/* The settings table: reading, refusing, printing, reloading. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "daemon/base/peruser.h"
#include "daemon/base/settings.h"

static char dir[] = "/tmp/test-settings-XXXXXX";

static void write_file(const char *name, const char *text)
{
	char path[256];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	f = fopen(path, "w");
	assert_non_null(f);
	fputs(text, f);
	fclose(f);
}

static int read_text(const char *text, struct settings *s, struct err *err)
{
	char path[256];

	write_file("a.conf", text);
	snprintf(path, sizeof(path), "%s/a.conf", dir);
	assert_int_equal(settings_init(s), 0);
	return settings_read(s, path, true, NULL, err);
}

static void assert_refused(const char *text, const char *sentence)
{
	struct settings s;
	struct err err = { 0 };
	char want[512];

	assert_int_equal(read_text(text, &s, &err), -EINVAL);
	snprintf(want, sizeof(want), "%s/a.conf:%s", dir, sentence);
	assert_string_equal(err.text, want);
	settings_deinit(&s);
}

static void defaults_are_those_of_the_table(void **state)
{
	struct settings s;

	(void)state;
	assert_int_equal(settings_init(&s), 0);
	assert_int_equal(s.max_tokens, 4096);
	assert_int_equal(s.page_tokens, 64);
	assert_int_equal(s.socket_mode, 0600);
	assert_string_equal(s.isa, "auto");
	assert_true(isnan(s.temperature));
	assert_int_equal(s.top_k, UNSET_UINT);
	assert_string_equal(settings_origin(&s, "Isa"), "default");
	assert_null(settings_origin(&s, "Nonsense"));
	settings_deinit(&s);
}

static void every_kind_is_read(void **state)
{
	struct settings s;
	struct err err = { 0 };

	(void)state;
	assert_int_equal(
		read_text("; a comment\n[steamd]\nModel=/srv/a b;c\nKVCacheSize=3G\nTopK = 40\n"
			  "MinP=0.01\nIsa=ref\nSocketMode=0660\nResumeTimeout=5\n",
			  &s, &err),
		0);
	assert_string_equal(s.model, "/srv/a b;c");
	assert_true(s.kv_cache_size == 3ull << 30);
	assert_int_equal(s.top_k, 40);
	assert_true(s.min_p == 0.01);
	assert_string_equal(s.isa, "ref");
	assert_int_equal(s.socket_mode, 0660);
	assert_int_equal(s.resume_timeout, 5);
	assert_non_null(strstr(settings_origin(&s, "TopK"), "a.conf:5"));
	settings_deinit(&s);
}

static void what_is_wrong_is_named_with_its_line(void **state)
{
	(void)state;
	assert_refused("[steamd]\nModle=/x\n", "2: unknown key 'Modle'");
	assert_refused("[steamd]\n\nMaxBatch=65\n", "3: MaxBatch is '65'; from 1 to 64 is allowed");
	assert_refused("[steamd]\nMaxBatch=0\n", "2: MaxBatch is '0'; from 1 to 64 is allowed");
	assert_refused("[steamd]\nMaxBatch=-1\n", "2: MaxBatch is '-1'; a whole number is wanted");
	assert_refused("[steamd]\nKVCacheSize=4Q\n",
		       "2: KVCacheSize is '4Q'; a size such as 512M or 16G is wanted");
	assert_refused("[steamd]\nKVCacheSize=99999999999T\n",
		       "2: KVCacheSize is '99999999999T'; a size such as 512M or 16G is wanted");
	assert_refused(
		"[steamd]\nIsa=mmx\n",
		"2: Isa is 'mmx'; one of "
		"auto|ref|portable|avx2|avx512|avx512bf16|avx512bf16-emulated|amx is wanted");
	assert_refused(
		"[steamd]\nIsa=avx\n",
		"2: Isa is 'avx'; one of "
		"auto|ref|portable|avx2|avx512|avx512bf16|avx512bf16-emulated|amx is wanted");
	assert_refused("[steamd]\nTopP=1.5\n", "2: TopP is '1.5'; from 0 to 1 is allowed");
	assert_refused("[steamd]\nTopP=nan\n", "2: TopP is 'nan'; a number is wanted");
	assert_refused("[steamd]\nSocketMode=0888\n",
		       "2: SocketMode is '0888'; an octal mode such as 0660 is wanted");
	assert_refused("[steamd]\nPageTokens=12\n",
		       "2: PageTokens is '12'; a multiple of 8 is wanted");
	assert_refused("[steamd]\nUserWeights=1000:200 bob:50\n",
		       "2: UserWeights has 'bob:50'; UID:NUMBER with a number from 1 to 10000 is "
		       "wanted");
	assert_refused("[steamd]\nUserWeights=1000:0\n",
		       "2: UserWeights has '1000:0'; UID:NUMBER with a number from 1 to 10000 is "
		       "wanted");
	assert_refused("[steamd]\nUserWeights=1000:\n",
		       "2: UserWeights has '1000:'; UID:NUMBER with a number from 1 to 10000 is "
		       "wanted");
	assert_refused("[steamd]\nUserWeights=1000:10001\n",
		       "2: UserWeights has '1000:10001'; UID:NUMBER with a number from 1 to 10000 "
		       "is wanted");
	assert_refused("[steam]\nModel=/x\n",
		       "2: key 'Model' stands in section 'steam'; [steamd] is wanted");
	assert_refused("[steamd]\nModel\n", "2: neither a section, a comment nor Key=Value");
	assert_refused(
		"[steamd]\nModel=/x\n Isa=ref x\n",
		"3: Isa is 'ref x'; one of "
		"auto|ref|portable|avx2|avx512|avx512bf16|avx512bf16-emulated|amx is wanted");
}

static void a_line_beyond_the_buffer_is_refused(void **state)
{
	static char text[20000];

	(void)state;
	strcpy(text, "[steamd]\nModel=");
	memset(text + strlen(text), 'x', 9000);
	assert_refused(text, "2: the line is too long");
}

static void a_missing_file_matters_only_if_it_was_asked_for(void **state)
{
	struct settings s;
	struct err err = { 0 };

	(void)state;
	assert_int_equal(settings_init(&s), 0);
	assert_int_equal(
		settings_read(&s, "/nonexistent/steamd.conf", false, "/nonexistent/conf.d", &err),
		0);
	assert_int_equal(settings_read(&s, "/nonexistent/steamd.conf", true, NULL, &err), -ENOENT);
	assert_string_equal(err.text,
			    "cannot open '/nonexistent/steamd.conf': No such file or directory");
	settings_deinit(&s);
}

static void dropins_come_later_in_the_order_of_their_names(void **state)
{
	char path[256], dropins[256];
	struct settings s;
	struct err err = { 0 };

	(void)state;
	snprintf(path, sizeof(path), "%s/a.conf", dir);
	snprintf(dropins, sizeof(dropins), "%s/conf.d", dir);
	mkdir(dropins, 0700);
	write_file("a.conf", "[steamd]\nMaxBatch=1\nThreads=1\n");
	write_file("conf.d/20-b.conf", "[steamd]\nMaxBatch=20\n");
	write_file("conf.d/10-a.conf", "[steamd]\nMaxBatch=10\n");
	write_file("conf.d/ignored", "[steamd]\nMaxBatch=30\n");
	assert_int_equal(settings_init(&s), 0);
	assert_int_equal(settings_read(&s, path, true, dropins, &err), 0);
	assert_int_equal(s.max_batch, 20);
	assert_int_equal(s.threads, 1);
	settings_deinit(&s);
}

static void what_is_printed_reads_back_the_same(void **state)
{
	_cleanup_(freep) char *text = NULL;
	struct settings a, b;
	struct err err = { 0 };
	size_t len;
	FILE *f;

	(void)state;
	assert_int_equal(settings_init(&a), 0);
	assert_int_equal(settings_set(&a, "KVCacheSize=1536M", "--set", &err), 0);
	assert_int_equal(settings_set(&a, "Temperature=0.7", "--set", &err), 0);
	assert_int_equal(settings_set(&a, "ModelAliases=x y", "--set", &err), 0);
	f = open_memstream(&text, &len);
	settings_print(&a, f);
	fclose(f);
	assert_int_equal(read_text(text, &b, &err), 0);
	assert_true(b.kv_cache_size == 1536ull << 20);
	assert_true(b.temperature == 0.7);
	assert_int_equal(settings_apply(&a, &b, NULL, NULL), 0);
	settings_deinit(&a);
	settings_deinit(&b);
}

static void the_template_is_all_comments_and_valid(void **state)
{
	_cleanup_(freep) char *text = NULL;
	struct settings s;
	struct err err = { 0 };
	size_t len;
	FILE *f = open_memstream(&text, &len);

	(void)state;
	settings_print_template(f);
	fclose(f);
	assert_non_null(strstr(text, "\n#MaxTokens=4096\n"));
	assert_non_null(strstr(text, "\n#MinP=0.01\n"));
	assert_int_equal(read_text(text, &s, &err), 0);
	settings_deinit(&s);
}

static int n_kept;

static void on_kept(const char *key, enum setting_reload needs, void *userdata)
{
	(void)userdata;
	n_kept++;
	assert_string_equal(key, "Model");
	assert_int_equal(needs, SETTING_MODEL);
}

static void reload_takes_what_it_can_and_names_the_rest(void **state)
{
	struct settings a, b;
	struct err err = { 0 };

	(void)state;
	assert_int_equal(settings_init(&a), 0);
	assert_int_equal(settings_init(&b), 0);
	assert_int_equal(settings_set(&b, "Model=/new", "--set", &err), 0);
	assert_int_equal(settings_set(&b, "MaxTokens=9", "--set", &err), 0);
	assert_int_equal(settings_apply(&a, &b, on_kept, NULL), 1);
	assert_int_equal(n_kept, 1);
	assert_int_equal(a.max_tokens, 9);
	assert_string_equal(a.model, "");
	assert_string_equal(settings_origin(&a, "MaxTokens"), "--set");
	settings_deinit(&a);
	settings_deinit(&b);
}

static void an_assignment_without_equals_sign_is_refused(void **state)
{
	struct settings s;
	struct err err = { 0 };

	(void)state;
	assert_int_equal(settings_init(&s), 0);
	assert_int_equal(settings_set(&s, "Model", "--set", &err), -EINVAL);
	assert_string_equal(err.text, "--set: 'Model' has no '='; Key=Value is wanted");
	assert_int_equal(settings_set(&s, "MaxBatch=x", "--set", &err), -EINVAL);
	assert_string_equal(err.text, "--set: MaxBatch is 'x'; a whole number is wanted");
	settings_deinit(&s);
}

static void numbers_of_users_are_found(void **state)
{
	uint32_t n = 7;

	(void)state;
	assert_int_equal(peruser_find("", "K", 100, 5, &n, NULL), 0);
	assert_int_equal(peruser_find(" 4:1  5:20 55:3 ", "K", 100, 6, &n, NULL), 0);
	assert_int_equal(n, 7);
	assert_int_equal(peruser_find(" 4:1  5:20 55:3 ", "K", 100, 5, &n, NULL), 1);
	assert_int_equal(n, 20);
	assert_int_equal(peruser_find("5:20 5:21", "K", 100, 5, &n, NULL), 1);
	assert_int_equal(n, 21);
	assert_int_equal(peruser_find("4294967294:3", "K", 100, 4294967294u, &n, NULL), 1);
	assert_int_equal(peruser_find("4294967295:3", "K", 100, 5, &n, NULL), -EINVAL);
	assert_int_equal(peruser_find("5:20,6:3", "K", 100, 5, &n, NULL), -EINVAL);
	assert_int_equal(peruser_find("5 :20", "K", 100, 5, &n, NULL), -EINVAL);
	assert_int_equal(peruser_find("5:-1", "K", 100, 5, &n, NULL), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(numbers_of_users_are_found),
		cmocka_unit_test(defaults_are_those_of_the_table),
		cmocka_unit_test(every_kind_is_read),
		cmocka_unit_test(what_is_wrong_is_named_with_its_line),
		cmocka_unit_test(a_line_beyond_the_buffer_is_refused),
		cmocka_unit_test(a_missing_file_matters_only_if_it_was_asked_for),
		cmocka_unit_test(dropins_come_later_in_the_order_of_their_names),
		cmocka_unit_test(what_is_printed_reads_back_the_same),
		cmocka_unit_test(the_template_is_all_comments_and_valid),
		cmocka_unit_test(reload_takes_what_it_can_and_names_the_rest),
		cmocka_unit_test(an_assignment_without_equals_sign_is_refused),
	};

	if (!mkdtemp(dir))
		return 1;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
