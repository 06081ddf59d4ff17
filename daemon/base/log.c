/* Lines to the journal or to stderr. */
#include "daemon/base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <systemd/sd-journal.h>
#include <unistd.h>

#include "daemon/base/clock.h"

static struct {
	const char *identifier;
	int max_level;
	bool journal;
} logger = { "steamd", LOG_INFO, false };

/* systemd names the device and inode of the stream that it gave us as stderr. */
static bool is_journal(void)
{
	const char *name = getenv("JOURNAL_STREAM");
	unsigned long long dev, ino;
	struct stat st;

	return name && sscanf(name, "%llu:%llu", &dev, &ino) == 2 &&
	       fstat(STDERR_FILENO, &st) == 0 && st.st_dev == dev && st.st_ino == ino;
}

void log_init(const char *identifier, int max_level)
{
	logger.identifier = identifier;
	logger.max_level = max_level;
	logger.journal = is_journal();
}

void log_set_level(int max_level)
{
	logger.max_level = max_level;
}

int log_level_of(const char *name)
{
	static const struct {
		const char *name;
		int level;
	} levels[] = { { "error", LOG_ERR }, { "warning", LOG_WARNING }, { "debug", LOG_DEBUG } };

	for (size_t i = 0; i < ARRAY_SIZE(levels); i++)
		if (strcmp(name, levels[i].name) == 0)
			return levels[i].level;
	return LOG_INFO;
}

void log_at(int level, const char *format, ...)
{
	char text[2048];
	va_list ap;

	if (level > logger.max_level)
		return;
	va_start(ap, format);
	vsnprintf(text, sizeof(text), format, ap);
	va_end(ap);
	if (logger.journal) {
		sd_journal_send("MESSAGE=%s", text, "PRIORITY=%d", level, "SYSLOG_IDENTIFIER=%s",
				logger.identifier, NULL);
		return;
	}
	for (char *c = text; *c; c++)
		if ((unsigned char)*c < 0x20)
			*c = ' ';
	fprintf(stderr, "%s: %s\n", logger.identifier, text);
}

bool log_allowed(struct log_limit *limit, uint32_t burst)
{
	const uint64_t now = clock_us();

	if (now - limit->window_us >= US_PER_S) {
		if (limit->left_out)
			log_at(LOG_NOTICE, "%u lines of the same kind were left out",
			       limit->left_out);
		*limit = (struct log_limit){ .window_us = now };
	}
	if (limit->n >= burst) {
		limit->left_out++;
		return false;
	}
	limit->n++;
	return true;
}
