/* The command line. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "daemon/server/options.h"

#define PARSE(o, err, ...)                                                                         \
	({                                                                                         \
		char *argv[] = { "steamd", __VA_ARGS__ };                                          \
		options_parse(ARRAY_SIZE(argv), argv, (o), (err));                                 \
	})

static void the_tests_form_is_understood(void **state)
{
	struct options o;
	struct err err = { 0 };

	(void)state;
	assert_int_equal(
		PARSE(&o, &err, "--model", "m", "--socket=s", "--state", "d", "--set", "Isa=ref"),
		0);
	assert_int_equal(o.action, OPTIONS_SERVE);
	assert_true(o.has_model);
	assert_int_equal(o.n_sets, 4);
	assert_string_equal(o.sets[0].key, "Model");
	assert_string_equal(o.sets[1].value, "s");
	assert_string_equal(o.sets[2].key, "StateDirectory");
	assert_null(o.sets[3].key);
	assert_string_equal(o.sets[3].value, "Isa=ref");
}

static void what_is_wrong_is_named(void **state)
{
	struct options o;
	struct err err = { 0 };

	(void)state;
	assert_int_equal(PARSE(&o, &err, "--modle", "m"), -EINVAL);
	assert_string_equal(err.text, "no option '--modle'; see --help");
	assert_int_equal(PARSE(&o, &err, "--model"), -EINVAL);
	assert_string_equal(err.text, "--model wants DIR");
	assert_int_equal(PARSE(&o, &err, "--help=yes"), -EINVAL);
	assert_string_equal(err.text, "--help takes no value");
	assert_int_equal(PARSE(&o, &err, "--memory", "8G"), -EINVAL);
	assert_string_equal(err.text, "--memory goes with --inspect");
	assert_int_equal(PARSE(&o, &err, "--vram", "96GB"), -EINVAL);
	assert_string_equal(err.text, "--vram goes with --plan");
	assert_int_equal(PARSE(&o, &err, "--gpus=2"), -EINVAL);
	assert_string_equal(err.text, "--gpus goes with --plan");
	assert_int_equal(PARSE(&o, &err, "--plan", "--vram=96GB"), -EINVAL);
	assert_string_equal(err.text, "--plan wants --model DIR and --vram SIZE");
	assert_int_equal(PARSE(&o, &err, "--plan", "--model=air"), -EINVAL);
	assert_string_equal(err.text, "--plan wants --model DIR and --vram SIZE");
}

static void a_plan_is_asked_for_with_model_and_memory(void **state)
{
	struct options o;
	struct err err = { 0 };

	(void)state;
	assert_int_equal(
		PARSE(&o, &err, "--plan", "--model", "air", "--vram", "24GB", "--gpus", "4"), 0);
	assert_int_equal(o.action, OPTIONS_PLAN);
	assert_string_equal(o.vram, "24GB");
	assert_string_equal(o.gpus, "4");
}

static void help_names_every_option(void **state)
{
	static const char *const names[] = { "--model DIR",	"--socket PATH",  "--state DIR",
					     "--set KEY=VALUE", "--config FILE",  "--user",
					     "--check-config",	"--print-config", "--inspect DIR",
					     "--memory SIZE",	"--plan",	  "--vram SIZE",
					     "--gpus N",	"--version",	  "--help" };
	char text[8192] = "";
	FILE *f = fmemopen(text, sizeof(text) - 1, "w");

	(void)state;
	assert_non_null(f);
	options_print_help(f);
	fclose(f);
	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		assert_non_null(strstr(text, names[i]));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_tests_form_is_understood),
		cmocka_unit_test(what_is_wrong_is_named),
		cmocka_unit_test(a_plan_is_asked_for_with_model_and_memory),
		cmocka_unit_test(help_names_every_option),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
