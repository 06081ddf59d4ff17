/* The shim: SQLite's own file system with a log of what has not been synced. */
#include "tests/unit/shim-vfs.h"

#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILES_MAX 8

struct shim_write {
	struct shim_write *next;
	int64_t at; /* < 0: truncated to len */
	size_t len;
	char data[];
};

struct shim_file {
	char path[256];
	bool exists; /* on the disk, whatever the power does */
	char *synced;
	size_t synced_bytes, synced_cap;
	struct shim_write *first, **last; /* since the last sync */
};

struct shim_handle {
	sqlite3_file base;
	struct shim_file *file;
	sqlite3_file *real; /* behind this struct */
};

static struct {
	sqlite3_vfs vfs, *real;
	enum shim_fault fault;
	uint64_t at, n;
	bool hit;
	struct shim_file files[FILES_MAX];
	int n_files;
} shim;

static void forget_writes(struct shim_file *f)
{
	struct shim_write *w;

	while ((w = f->first)) {
		f->first = w->next;
		free(w);
	}
	f->last = &f->first;
}

static bool is_dark(void)
{
	return shim.fault == SHIM_CUT && shim.hit;
}

/* Counts one operation; true: it fails. */
static bool fails(void)
{
	if (is_dark())
		return true;
	if (shim.fault == SHIM_READ || ++shim.n != shim.at || shim.fault == SHIM_NONE)
		return false;
	shim.hit = true;
	return true;
}

static void read_synced(struct shim_file *f)
{
	FILE *file = fopen(f->path, "re");
	struct stat st;

	free(f->synced);
	f->synced = NULL;
	f->synced_bytes = f->synced_cap = 0;
	f->exists = file != NULL;
	if (!file)
		return;
	fstat(fileno(file), &st);
	f->synced_cap = (size_t)st.st_size + 1;
	f->synced = malloc(f->synced_cap);
	f->synced_bytes = fread(f->synced, 1, (size_t)st.st_size, file);
	fclose(file);
}

/* What was written since is on the disk from now on; nobody else writes into the file. */
static void sync_writes(struct shim_file *f)
{
	for (struct shim_write *w = f->first; w; w = w->next) {
		const size_t end = w->at < 0 ? w->len : (size_t)w->at + w->len;

		if (end > f->synced_cap) {
			f->synced_cap = 2 * end;
			f->synced = realloc(f->synced, f->synced_cap);
			if (!f->synced)
				abort();
		}
		if (end > f->synced_bytes)
			memset(f->synced + f->synced_bytes, 0, end - f->synced_bytes);
		if (w->at < 0 || end > f->synced_bytes)
			f->synced_bytes = end;
		if (w->at >= 0)
			memcpy(f->synced + w->at, w->data, w->len);
	}
	f->exists = true;
	forget_writes(f);
}

static struct shim_file *find_file(const char *path)
{
	struct shim_file *f;

	for (int i = 0; i < shim.n_files; i++)
		if (strcmp(shim.files[i].path, path) == 0)
			return &shim.files[i];
	if (shim.n_files == FILES_MAX)
		abort();
	f = &shim.files[shim.n_files++];
	memset(f, 0, sizeof(*f));
	snprintf(f->path, sizeof(f->path), "%s", path);
	f->last = &f->first;
	read_synced(f);
	return f;
}

static void log_write(struct shim_file *f, int64_t at, const void *data, size_t len)
{
	struct shim_write *w = malloc(sizeof(*w) + (data ? len : 0));

	*w = (struct shim_write){ .at = at, .len = len };
	if (data)
		memcpy(w->data, data, len);
	*f->last = w;
	f->last = &w->next;
}

#define REAL(file) (((struct shim_handle *)(file))->real)
#define CALL(file, method, ...) REAL(file)->pMethods->method(REAL(file), ##__VA_ARGS__)

static int on_close(sqlite3_file *file)
{
	return CALL(file, xClose);
}

static int on_read(sqlite3_file *file, void *to, int n, sqlite3_int64 at)
{
	if (shim.fault == SHIM_READ && ++shim.n == shim.at) {
		shim.hit = true;
		return SQLITE_IOERR_READ;
	}
	return is_dark() ? SQLITE_IOERR_READ : CALL(file, xRead, to, n, at);
}

static int on_write(sqlite3_file *file, const void *from, int n, sqlite3_int64 at)
{
	if (fails())
		return shim.n % 2 ? SQLITE_IOERR_WRITE : SQLITE_FULL;
	log_write(((struct shim_handle *)file)->file, at, from, (size_t)n);
	return CALL(file, xWrite, from, n, at);
}

static int on_truncate(sqlite3_file *file, sqlite3_int64 size)
{
	if (fails())
		return SQLITE_IOERR_TRUNCATE;
	log_write(((struct shim_handle *)file)->file, -1, NULL, (size_t)size);
	return CALL(file, xTruncate, size);
}

static int on_sync(sqlite3_file *file, int flags)
{
	struct shim_file *f = ((struct shim_handle *)file)->file;

	(void)flags; /* what the real one costs is not what this is about */
	if (fails())
		return SQLITE_IOERR_FSYNC;
	sync_writes(f);
	return SQLITE_OK;
}

static int on_size(sqlite3_file *file, sqlite3_int64 *ret)
{
	return is_dark() ? SQLITE_IOERR_FSTAT : CALL(file, xFileSize, ret);
}

static int on_lock(sqlite3_file *file, int kind)
{
	return CALL(file, xLock, kind);
}

static int on_unlock(sqlite3_file *file, int kind)
{
	return CALL(file, xUnlock, kind);
}

static int on_check_lock(sqlite3_file *file, int *ret)
{
	return CALL(file, xCheckReservedLock, ret);
}

static int on_control(sqlite3_file *file, int op, void *arg)
{
	return op == SQLITE_FCNTL_SIZE_HINT || op == SQLITE_FCNTL_CHUNK_SIZE
		       ? SQLITE_NOTFOUND
		       : CALL(file, xFileControl, op, arg);
}

static int on_sector_size(sqlite3_file *file)
{
	return CALL(file, xSectorSize);
}

/* Promises nothing: neither that writes are atomic nor that they come in order. */
static int on_characteristics(sqlite3_file *file)
{
	(void)file;
	return 0;
}

static const sqlite3_io_methods methods = {
	.iVersion = 1,
	.xClose = on_close,
	.xRead = on_read,
	.xWrite = on_write,
	.xTruncate = on_truncate,
	.xSync = on_sync,
	.xFileSize = on_size,
	.xLock = on_lock,
	.xUnlock = on_unlock,
	.xCheckReservedLock = on_check_lock,
	.xFileControl = on_control,
	.xSectorSize = on_sector_size,
	.xDeviceCharacteristics = on_characteristics,
};

static int on_open(sqlite3_vfs *vfs, const char *path, sqlite3_file *file, int flags,
		   int *ret_flags)
{
	struct shim_handle *h = (struct shim_handle *)file;
	int r;

	(void)vfs;
	h->base.pMethods = NULL;
	if (!path)
		return SQLITE_CANTOPEN; /* temporary files are not used */
	if (fails())
		return SQLITE_CANTOPEN;
	h->file = find_file(path);
	h->real = (sqlite3_file *)(h + 1);
	r = shim.real->xOpen(shim.real, path, h->real, flags, ret_flags);
	if (r == SQLITE_OK)
		h->base.pMethods = &methods;
	return r;
}

static int on_delete(sqlite3_vfs *vfs, const char *path, int sync)
{
	struct shim_file *f = find_file(path);
	int r;

	(void)vfs;
	if (fails())
		return SQLITE_IOERR_DELETE;
	r = shim.real->xDelete(shim.real, path, sync);
	forget_writes(f);
	read_synced(f);
	return r;
}

void shim_reset(enum shim_fault fault, uint64_t at)
{
	for (int i = 0; i < shim.n_files; i++) {
		forget_writes(&shim.files[i]);
		free(shim.files[i].synced);
	}
	memset(&shim, 0, sizeof(shim));
	shim.fault = fault;
	shim.at = at;
	shim.real = sqlite3_vfs_find(NULL);
	shim.vfs = *shim.real;
	shim.vfs.pNext = NULL;
	shim.vfs.zName = SHIM_VFS;
	shim.vfs.szOsFile = (int)sizeof(struct shim_handle) + shim.real->szOsFile;
	shim.vfs.xOpen = on_open;
	shim.vfs.xDelete = on_delete;
	sqlite3_vfs_register(&shim.vfs, 0);
}

uint64_t shim_count(void)
{
	return shim.n;
}

bool shim_was_hit(void)
{
	return shim.hit;
}

void shim_cut_now(void)
{
	shim.fault = SHIM_CUT;
	shim.hit = true;
}

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void restore_file(struct shim_file *f, enum shim_image image, uint64_t *random)
{
	FILE *file;

	if (!f->exists && (image == SHIM_SYNCED || !f->first)) {
		unlink(f->path);
		return;
	}
	file = fopen(f->path, "we");
	if (!file)
		abort();
	if (f->synced && fwrite(f->synced, 1, f->synced_bytes, file) != f->synced_bytes)
		abort();
	for (struct shim_write *w = f->first; w && image == SHIM_SOME; w = w->next) {
		if (next_random(random) % 3 == 0)
			continue;
		fflush(file);
		if (w->at < 0) {
			if (ftruncate(fileno(file), (off_t)w->len) < 0)
				abort();
		} else {
			fseek(file, (long)w->at, SEEK_SET);
			fwrite(w->data, 1, w->len, file);
		}
	}
	fclose(file);
}

void shim_restore(enum shim_image image, uint64_t seed)
{
	uint64_t random = seed * 2 + 1;

	for (int i = 0; i < shim.n_files && image != SHIM_KILLED; i++)
		restore_file(&shim.files[i], image, &random);
}
