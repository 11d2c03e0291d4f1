/* A disk that fails on order: loaded before the C library (LD_PRELOAD), it counts every call that changes something
 * below one folder, and makes an error of the n-th of them, or ends the process with it.
 *
 *   faults_arm(folder, at, error, how, mark)   begins to count at 1; `at` 0 only counts
 *   faults_diary(descriptor)                   from here on what is done is written down, for what follows if the power fails:
 *                                              call, path, from where, and the size that was synced or the number under
 *                                              which a file that lost its name is kept (mark.1, mark.2, ...)
 *
 * how: ONCE, the n-th call fails; ON, every one from there fails; HALF, as ON, but if the n-th is a write half of it is
 * done first, as a disk fills up; KILL, half of a write is done and the process ends by SIGKILL.
 *
 * mark: a file that does not exist yet; the process that is the first to be spoilt makes it and writes into it what was:
 * "fsync .genkit/journal.jsonl". Where it exists already the others are spared.
 *
 * A process that is not told by a call is told by its environment, FAULT_DIR, FAULT_AT, FAULT_ERROR, FAULT_HOW and
 * FAULT_MARK: so are workers.
 *
 * Compiled on the spot: cc -shared -fPIC -O1 -o faults.so faults.c -ldl
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { ONCE, ON, HALF, KILL };

static char folder[PATH_MAX], mark[PATH_MAX];
static size_t length;
static long at, count;
static int error, how, spoiling, diary = -1, kept;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

void faults_arm(const char *path, long n, int number, int manner, const char *file) {
    snprintf(folder, sizeof folder, "%s", path);
    snprintf(mark, sizeof mark, "%s", file);
    length = strlen(folder);
    at = n, error = number, how = manner, count = 0, spoiling = 0;
}

void faults_diary(int descriptor) { diary = descriptor; }

__attribute__((constructor)) static void from_environment(void) {
    const char *path = getenv("FAULT_DIR"), *n = getenv("FAULT_AT"), *e = getenv("FAULT_ERROR"),
               *h = getenv("FAULT_HOW"), *m = getenv("FAULT_MARK");
    if (path && n && e && h && m) faults_arm(path, atol(n), atoi(e), atoi(h), m);
}

/* Where below the folder a path is; NULL if it is not. */
static const char *within(const char *path) {
    if (strncmp(path, folder, length) || (path[length] && path[length] != '/')) return NULL;
    return path[length] ? path + length + 1 : ".";
}

static const char *below(int at_folder, const char *path, char *buffer) {
    size_t used = 0;
    if (!length) return NULL;
    if (path[0] != '/') {
        char link[64];
        ssize_t got;
        if (at_folder == AT_FDCWD) strcpy(link, "/proc/self/cwd");
        else snprintf(link, sizeof link, "/proc/self/fd/%d", at_folder);
        if ((got = readlink(link, buffer, PATH_MAX - 1)) < 0) return NULL;
        used = got;
        buffer[used++] = '/';
    }
    snprintf(buffer + used, PATH_MAX - used, "%s", path);
    return within(buffer);
}

static const char *below_open(int descriptor, char *buffer) {
    char link[64];
    if (!length) return NULL;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t got = readlink(link, buffer, PATH_MAX - 1);
    if (got < 0) return NULL;
    buffer[got] = 0;
    return within(buffer);
}

/* Whether this process is the one that is spoilt. */
static int chosen(const char *name, const char *place) {
    if (spoiling) return 1;
    int file = REAL(open)(mark, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
    if (file < 0) return 0;
    char text[PATH_MAX + 32];
    int size = snprintf(text, sizeof text, "%s %s", name, place);
    spoiling = REAL(write)(file, text, size) == size;
    close(file);
    return spoiling;
}

enum { GO_ON, FAIL, HALF_FAIL, HALF_DIE };

/* Counts a call and says what is to become of it. */
static int spoilt(const char *name, const char *place) {
    if (!place) return GO_ON;
    long n = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
    if (!at || n < at || (n > at && how == ONCE) || !chosen(name, place)) return GO_ON;
    return how == KILL ? HALF_DIE : how == HALF && n == at ? HALF_FAIL : FAIL;
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* For calls that are done or not: one that is to die does so before. */
static int refused(const char *name, const char *place) {
    int what = spoilt(name, place);
    if (what == HALF_DIE) die();
    if (what) errno = error;
    return what;
}

static int tell(int result, const char *name, const char *place, const char *from, long number) {
    int before = errno;
    if (!result && diary >= 0 && place) dprintf(diary, "%s\t%s\t%s\t%ld\n", name, place, from ? from : "", number);
    errno = before;
    return result;
}

/* A second name for a file that is about to lose its own. */
static int keep(const char *place, int directory, const char *path) {
    char name[PATH_MAX + 16];
    int before = errno;
    if (diary < 0 || !place) return 0;
    snprintf(name, sizeof name, "%s.%d", mark, kept + 1);
    int failed = REAL(linkat)(directory, path, AT_FDCWD, name, 0);
    errno = before;
    return failed ? 0 : ++kept;
}

static long size_of(int descriptor) {
    struct stat status;
    return fstat(descriptor, &status) ? 0 : (long)status.st_size;
}

#define WRITER(name, arguments, pass, half, size, descriptor)                                           \
    ssize_t name arguments {                                                                            \
        char buffer[PATH_MAX];                                                                          \
        int what = spoilt(#name, below_open(descriptor, buffer));                                       \
        if (what == GO_ON) return REAL(name) pass;                                                      \
        ssize_t done = what != FAIL && size > 1 ? (ssize_t)REAL(name) half : -1;                        \
        if (what == HALF_DIE) die();                                                                    \
        if (done <= 0) errno = error, done = -1;                                                        \
        return done;                                                                                    \
    }

WRITER(write, (int fd, const void *data, size_t n), (fd, data, n), (fd, data, n / 2), n, fd)
WRITER(pwrite, (int fd, const void *data, size_t n, off_t o), (fd, data, n, o), (fd, data, n / 2, o), n, fd)
WRITER(pwrite64, (int fd, const void *data, size_t n, off64_t o), (fd, data, n, o), (fd, data, n / 2, o), n, fd)
WRITER(writev, (int fd, const struct iovec *v, int n), (fd, v, n), (fd, v, n / 2), n, fd)
WRITER(copy_file_range, (int in, off64_t *i, int out, off64_t *o, size_t n, unsigned flags), (in, i, out, o, n, flags),
       (in, i, out, o, n / 2, flags), n, out)

#define ON_OPEN(name, arguments, pass, descriptor)                                                      \
    int name arguments {                                                                                \
        char buffer[PATH_MAX];                                                                          \
        const char *place = below_open(descriptor, buffer);                                             \
        if (refused(#name, place)) return -1;                                                           \
        return tell(REAL(name) pass, #name, place, NULL, size_of(descriptor));                          \
    }

ON_OPEN(fsync, (int fd), (fd), fd)
ON_OPEN(fdatasync, (int fd), (fd), fd)
ON_OPEN(ftruncate, (int fd, off_t n), (fd, n), fd)
ON_OPEN(ftruncate64, (int fd, off64_t n), (fd, n), fd)

#define ON_PATH(name, told, arguments, pass, directory, path)                                           \
    int name arguments {                                                                                \
        char buffer[PATH_MAX];                                                                          \
        const char *place = below(directory, path, buffer);                                             \
        if (refused(#name, place)) return -1;                                                           \
        int number = keep(place, directory, path);                                                      \
        return tell(REAL(name) pass, told, place, NULL, number);                                        \
    }

ON_PATH(unlink, "unlink", (const char *a), (a), AT_FDCWD, a)
ON_PATH(unlinkat, "unlink", (int x, const char *a, int f), (x, a, f), x, a)
ON_PATH(rmdir, "unlink", (const char *a), (a), AT_FDCWD, a)
ON_PATH(mkdir, "mkdir", (const char *a, mode_t m), (a, m), AT_FDCWD, a)
ON_PATH(mkdirat, "mkdir", (int x, const char *a, mode_t m), (x, a, m), x, a)

#define ON_TWO(name, told, arguments, pass, here, from, there, to)                                      \
    int name arguments {                                                                                \
        char buffer[PATH_MAX], other[PATH_MAX];                                                         \
        const char *place = below(there, to, buffer);                                                   \
        if (refused(#name, place)) return -1;                                                           \
        int number = keep(place, there, to);                                                            \
        return tell(REAL(name) pass, told, place, below(here, from, other), number);                    \
    }

ON_TWO(rename, "rename", (const char *a, const char *b), (a, b), AT_FDCWD, a, AT_FDCWD, b)
ON_TWO(renameat, "rename", (int x, const char *a, int y, const char *b), (x, a, y, b), x, a, y, b)
ON_TWO(renameat2, "rename", (int x, const char *a, int y, const char *b, unsigned f), (x, a, y, b, f), x, a, y, b)
ON_TWO(link, "link", (const char *a, const char *b), (a, b), AT_FDCWD, a, AT_FDCWD, b)
ON_TWO(linkat, "link", (int x, const char *a, int y, const char *b, int f), (x, a, y, b, f), x, a, y, b)

/* Opening counts where it may make a file. */
#define OPENER(name, arguments, pass, directory)                                                        \
    int name arguments {                                                                                \
        char buffer[PATH_MAX];                                                                          \
        const char *place = NULL;                                                                       \
        mode_t mode = 0;                                                                                \
        int there = 1;                                                                                  \
        if (flags & (O_CREAT | __O_TMPFILE)) {                                                          \
            va_list rest;                                                                               \
            va_start(rest, flags);                                                                      \
            mode = va_arg(rest, mode_t);                                                                \
            va_end(rest);                                                                               \
            place = below(directory, path, buffer);                                                     \
            there = !place || !faccessat(directory, path, F_OK, 0);                                     \
            if (refused(#name, place)) return -1;                                                       \
        }                                                                                               \
        int file = REAL(name) pass;                                                                     \
        if (file >= 0 && !there) tell(0, "create", place, NULL, 0);                                     \
        return file;                                                                                    \
    }

OPENER(open, (const char *path, int flags, ...), (path, flags, mode), AT_FDCWD)
OPENER(open64, (const char *path, int flags, ...), (path, flags, mode), AT_FDCWD)
OPENER(openat, (int x, const char *path, int flags, ...), (x, path, flags, mode), x)
OPENER(openat64, (int x, const char *path, int flags, ...), (x, path, flags, mode), x)
