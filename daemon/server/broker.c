/* From options to a running server, and back to an exit code. */
#include "daemon/server/broker.h"

#include <errno.h>
#include <malloc.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "daemon/base/fdstore.h"
#include "daemon/base/log.h"
#include "daemon/base/settings.h"
#include "daemon/exec/weights/checkpoint.h"
#include "daemon/server/health.h"
#include "daemon/server/planning.h"
#include "daemon/server/server.h"

#ifndef STEAMD_SYSCONFDIR
#define STEAMD_SYSCONFDIR "/etc/steamd"
#endif
#ifndef STEAMD_LIBEXECDIR
#define STEAMD_LIBEXECDIR "/usr/libexec/steamd"
#endif

#ifndef STEAMD_DATADIR
#define STEAMD_DATADIR "/usr/share/steamd"
#endif

#define LARGE_BYTES (256 << 10) /* what is larger is given back to the machine when it is freed */

static int apply_sets(struct settings *s, const struct options *o, struct err *err)
{
	for (uint32_t i = 0; i < o->n_sets; i++) {
		_cleanup_(freep) char *assignment = NULL;
		int r;

		if (o->sets[i].key)
			r = asprintf(&assignment, "%s=%s", o->sets[i].key, o->sets[i].value);
		else
			r = asprintf(&assignment, "%s", o->sets[i].value);
		if (r < 0) {
			assignment = NULL;
			return -ENOMEM;
		}
		r = settings_set(s, assignment, "command line", err);
		if (r < 0)
			return r;
	}
	return 0;
}

/* The files of the user who runs steamd, over the model that came with it. Either may be missing. */
static int read_user_settings(struct settings *ret, struct err *err)
{
	const char *config = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
	_cleanup_(freep) char *path = NULL, *dropins = NULL;
	const bool named = config && config[0] == '/';
	int r;

	r = settings_set(ret, "Model=" STEAMD_DATADIR "/models/steamd-tiny", "comes with steamd",
			 err);
	if (r < 0)
		return r;
	if (!named && (!home || home[0] != '/'))
		return err_set(err, -EINVAL,
			       "--user wants $XDG_CONFIG_HOME or $HOME, an absolute path");
	if (asprintf(&path, "%s%s/steamd/steamd.conf", named ? config : home,
		     named ? "" : "/.config") < 0 ||
	    asprintf(&dropins, "%s%s/steamd/conf.d", named ? config : home,
		     named ? "" : "/.config") < 0)
		return err_set(err, -ENOMEM, "out of memory");
	return settings_read(ret, path, false, dropins, err);
}

static int read_settings(struct settings *ret, void *userdata, struct err *err)
{
	const struct options *o = userdata;
	int r;

	r = settings_init(ret);
	if (r < 0)
		return err_set(err, r, "out of memory");
	if (o->config)
		r = settings_read(ret, o->config, true, NULL, err);
	else if (o->user)
		r = read_user_settings(ret, err);
	else if (!o->has_model)
		r = settings_read(ret, STEAMD_SYSCONFDIR "/steamd.conf", false,
				  STEAMD_SYSCONFDIR "/conf.d", err);
	return r < 0 ? r : apply_sets(ret, o, err);
}

static int inspect(const struct options *o)
{
	_cleanup_(settings_deinit) struct settings s = { 0 };
	struct err err = { 0 };
	char size[64];

	if (o->memory) {
		/* the size is written as those of the settings are */
		snprintf(size, sizeof(size), "KVCacheSize=%s", o->memory);
		if (settings_init(&s) < 0 || settings_set(&s, size, "--memory", &err) < 0) {
			fprintf(stderr, "steamd: --memory: %s\n", err.text);
			return BROKER_USAGE;
		}
	}
	if (checkpoint_inspect(o->inspect, s.kv_cache_size, stdout, &err) < 0) {
		fflush(stdout);
		fprintf(stderr, "steamd: %s\n", err.text);
		return BROKER_REFUSED;
	}
	return BROKER_OK;
}

/* The executor @name beside this program in a build tree, or where both were installed. */
static void find_executor(const char *name, char *path, size_t size)
{
	static const char *const beside[] = { "", "exec/", "daemon/exec/", "../libexec/steamd/" };
	char self[PATH_MAX] = "";
	const ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	char *slash = n > 0 ? strrchr(self, '/') : NULL;

	for (size_t i = 0; slash && i < ARRAY_SIZE(beside); i++) {
		slash[1] = '\0';
		if ((size_t)snprintf(path, size, "%s%s%s", self, beside[i], name) < size &&
		    access(path, X_OK) == 0)
			return;
	}
	snprintf(path, size, "%s/%s", STEAMD_LIBEXECDIR, name);
}

/*
 * Which executor Executor= means. For auto the one for GPUs if it is installed
 * and a driver is loaded; what is asked for by name is not second-guessed.
 */
static const char *choose_executor(const struct settings *settings)
{
	char path[PATH_MAX];

	if (strcmp(settings->executor, "cuda") == 0)
		return "steamd-exec-cuda";
	find_executor("steamd-exec-cuda", path, sizeof(path));
	if (strcmp(settings->executor, "auto") == 0 && access(path, X_OK) == 0 &&
	    access("/proc/driver/nvidia/version", F_OK) == 0)
		return "steamd-exec-cuda";
	return "steamd-exec-cpu";
}

/* The socket of the executor's own unit, where the service manager runs us both. */
static const char *find_unit_socket(const char *name, char *path, size_t size)
{
	const char *runtime = getenv("XDG_RUNTIME_DIR");

	if (!getenv("NOTIFY_SOCKET"))
		return NULL;
	snprintf(path, size, "%s/%s.sock", runtime && runtime[0] ? runtime : "/run", name);
	return access(path, F_OK) == 0 ? path : NULL;
}

static int on_reload_signal(sd_event_source *source, const struct signalfd_siginfo *si,
			    void *userdata)
{
	_cleanup_(freep) char *json = NULL;
	struct err err = { 0 };

	(void)source, (void)si;
	if (server_reload(userdata, &json, &err) < 0)
		log_error("not reloaded: %s", err.text);
	return 0;
}

static int on_stop_signal(sd_event_source *source, const struct signalfd_siginfo *si,
			  void *userdata)
{
	(void)source, (void)si;
	server_stop(userdata);
	return 0;
}

static void on_ready(void *userdata)
{
	(void)userdata;
	if (!getenv("NOTIFY_SOCKET"))
		fputs("ready\n", stderr);
}

static int block_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGCHLD);
	signal(SIGPIPE, SIG_IGN);
	return sigprocmask(SIG_BLOCK, &set, NULL) < 0 ? -errno : 0;
}

static int open_loop(sd_event **ret)
{
	int r;

	r = block_signals();
	if (r >= 0)
		r = sd_event_default(ret);
	return r;
}

/* A folder of one's own, and those above it; what cannot be made is told by who wants to use it. */
static void make_folders(char *path)
{
	for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = '\0';
		mkdir(path, 0700);
		*slash = '/';
	}
	mkdir(path, 0700);
}

/*
 * Where state is kept: StateDirectory=, else what systemd made for the unit,
 * else the user's folder for state. NULL: nowhere.
 */
static char *find_state_dir(const struct settings *settings)
{
	const char *systemd = getenv("STATE_DIRECTORY"), *xdg = getenv("XDG_STATE_HOME"),
		   *home = getenv("HOME");
	char *path = NULL;
	int r = 0;

	if (settings->state_directory[0])
		path = strdup(settings->state_directory);
	else if (systemd && systemd[0] == '/')
		path = strndup(systemd, strcspn(systemd, ":"));
	else if (xdg && xdg[0] == '/')
		r = asprintf(&path, "%s/steamd", xdg);
	else if (home && home[0] == '/')
		r = asprintf(&path, "%s/.local/state/steamd", home);
	if (r < 0 || !path)
		return NULL;
	make_folders(path);
	return path;
}

static void loopp(sd_event **loop)
{
	sd_event_unref(*loop);
}

/*
 * A core file would hold what people asked. Under systemd the units say so, and
 * a drop-in may say otherwise; by hand nobody does. The executor inherits it.
 * One byte, for with 0 the kernel still pipes a dump to a handler that core_pattern names.
 */
static void keep_no_cores(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_CORE, &limit) < 0)
		return;
	limit.rlim_cur = limit.rlim_max < 1 ? 0 : 1;
	setrlimit(RLIMIT_CORE, &limit);
}

static int watch_signals(sd_event *loop, struct server *server, struct err *err)
{
	int r;

	r = sd_event_add_signal(loop, NULL, SIGHUP, on_reload_signal, server);
	if (r >= 0)
		r = sd_event_add_signal(loop, NULL, SIGTERM, on_stop_signal, server);
	if (r >= 0)
		r = sd_event_add_signal(loop, NULL, SIGINT, on_stop_signal, server);
	return r < 0 ? err_set(err, r, "signals cannot be watched: %s", strerror(-r)) : 0;
}

static int serve(const struct options *o, struct settings *settings, struct err *err)
{
	_cleanup_(loopp) sd_event *loop = NULL;
	_cleanup_(freep) char *state_dir = find_state_dir(settings);
	_cleanup_(server_freep) struct server *server = NULL;
	const char *executor = choose_executor(settings);
	char program[PATH_MAX], unit_socket[PATH_MAX];
	struct server_options options = {
		.settings = settings,
		.program = program,
		.state_dir = state_dir,
		.foreground = !getenv("NOTIFY_SOCKET"),
		.reread = read_settings,
		.on_ready = on_ready,
		.userdata = (void *)o,
	};
	int r;

	if (options.foreground)
		keep_no_cores();
	find_executor(executor, program, sizeof(program));
	options.unit_socket = find_unit_socket(executor, unit_socket, sizeof(unit_socket));

	fdstore_init();
	r = open_loop(&loop);
	if (r < 0)
		return err_set(err, r, "no event loop: %s", strerror(-r));
	r = server_new(loop, &options, &server, err);
	if (r < 0)
		return r;
	r = watch_signals(loop, server, err);
	if (r < 0)
		return r;
	r = server_listen(server, err);
	if (r < 0)
		return r;
	r = server_load(server, err);
	if (r < 0)
		return r;
	health_ready(server->health);

	r = sd_event_loop(loop);
	if (r < 0)
		return err_set(err, r, "the event loop failed: %s", strerror(-r));
	return r;
}

int broker_run(const struct options *o)
{
	_cleanup_(settings_deinit) struct settings settings = { 0 };
	struct err err = { 0 };
	int r;

	if (o->action == OPTIONS_INSPECT)
		return inspect(o);
	if (read_settings(&settings, (void *)o, &err) < 0) {
		fprintf(stderr, "steamd: %s\n", err.text);
		return BROKER_CONFIG;
	}
	if (o->action == OPTIONS_CHECK_CONFIG)
		return BROKER_OK;
	if (o->action == OPTIONS_PLAN)
		return planning_run(o, &settings);
	if (o->action == OPTIONS_PRINT_CONFIG) {
		settings_print(&settings, stdout);
		return BROKER_OK;
	}
	log_init("steamd", log_level_of(settings.log_level));
	/* left alone, the library keeps as much as the longest prompt took */
	mallopt(M_MMAP_THRESHOLD, LARGE_BYTES);
	r = serve(o, &settings, &err);
	if (r >= 0)
		return r;
	log_error("%s", err.text);
	return BROKER_SYSTEM;
}
