/* Preloaded into a command (LD_PRELOAD): counts the calls that change a file below a folder, and at a chosen one kills
 * the process, or lets the disk fail. See tests/torture/shim.py, which mirrors `struct control`.
 *
 * Not seen: stores into memory that is mapped from a file, what the C library's stdio writes out of its own buffers
 * (its fopen is seen), io_uring, and system calls that a program makes without the C library. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL_BEFORE, KILL_IN, FAIL_ONCE, FAIL_FROM };
enum { ALL, CALLER, LEADER };
enum { GO, HALF, FAIL };
enum { PLACE = 1, GROWS = 2, WRITES = 4 }; /* what a call does */
#define MOST 512

struct control {
  _Atomic long calls;
  long at;      /* the call that is struck, from 1; 0: none */
  int mode, whom, error;
  int leader;   /* process id; the starter does not collect it before this trial is over */
  int network;  /* also count what is sent to sockets */
  _Atomic int struck, dead, n_processes;
  int processes[MOST];
  char root[PATH_MAX];
  char trace[PATH_MAX]; /* a line for each call goes here, if set */
};

static struct control *shared;

static void enrol(void) {
  if (!shared) return;
  int place = atomic_fetch_add(&shared->n_processes, 1);
  if (place < MOST) shared->processes[place] = getpid();
}

void torture_arm(const char *path) {
  int file = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
  if (file < 0) return;
  void *found = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  syscall(SYS_close, file);
  if (found == MAP_FAILED) return;
  shared = found;
  enrol();
}

/* This process is the first of the command. */
void torture_lead(void) {
  if (shared) shared->leader = getpid();
}

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("TORTURE_CONTROL");
  int pthread_atfork(void (*)(void), void (*)(void), void (*)(void));
  pthread_atfork(NULL, NULL, enrol);
  if (path) torture_arm(path);
}

static void die(void) {
  for (;;) {
    syscall(SYS_kill, getpid(), SIGKILL);
    pause();
  }
}

/* Ends who is to be ended. Other processes of the command end when they make their next call: what a process does that
 * changes no file is of no importance. */
static void strike(void) {
  if (atomic_exchange(&shared->struck, 1) && shared->whom != ALL) return;
  int others = shared->leader > 1 && shared->leader != getpid();
  if (shared->whom == ALL) atomic_store(&shared->dead, 1);
  if (others && shared->whom != CALLER) syscall(SYS_kill, shared->leader, SIGKILL);
  if (!others || shared->whom != LEADER) die();
}

static int is_below(const char *path) {
  size_t n = strlen(shared->root);
  return n && !strncmp(path, shared->root, n) && (path[n] == '/' || !path[n]);
}

static int named(int folder, const char *path, char *out) {
  char base[PATH_MAX];
  if (!path) return 0;
  if (path[0] == '/') {
    snprintf(out, PATH_MAX, "%s", path);
  } else {
    char link[64];
    if (folder == AT_FDCWD)
      snprintf(link, sizeof link, "/proc/self/cwd");
    else
      snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t n = readlink(link, base, sizeof base - 1);
    if (n < 0) return 0;
    base[n] = 0;
    if (snprintf(out, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) return 0;
  }
  return is_below(out);
}

static int held(int file, char *out) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t n = readlink(link, out, PATH_MAX - 1);
  if (n < 0) return 0;
  out[n] = 0;
  return is_below(out);
}

static void write_trace(const char *name, const char *path, long number, size_t size) {
  char line[PATH_MAX + 64];
  int n = snprintf(line, sizeof line, "%ld\t%d\t%s\t%zu\t%s\n", number, getpid(), name, size, path);
  int file = syscall(SYS_openat, AT_FDCWD, shared->trace, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0) return;
  syscall(SYS_write, file, line, n);
  syscall(SYS_close, file);
}

/* What is to become of a call. */
static int judge(const char *name, const char *path, int what, size_t size) {
  if (atomic_load(&shared->dead)) die();
  long number = atomic_fetch_add(&shared->calls, 1) + 1;
  if (shared->trace[0]) write_trace(name, path, number, size);
  if (!shared->at || number < shared->at) return GO;
  if (shared->mode == FAIL_FROM) {
    if (!(what & GROWS)) return GO;
    return !atomic_exchange(&shared->struck, 1) && (what & WRITES) && size > 1 ? HALF : FAIL;
  }
  if (number > shared->at) return GO;
  if (shared->mode == KILL_BEFORE) strike();
  if (shared->mode == KILL_IN) return HALF;
  if (shared->mode == FAIL_ONCE) return atomic_store(&shared->struck, 1), FAIL;
  return GO;
}

static int failing(void) {
  errno = shared->error;
  return -1;
}

#define REAL(name) \
  static __typeof__(&name) real; \
  if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* A call that is done or not, never by half: killed "in" it, it is done. */
#define WHOLE(name, path, what, call) \
  do { \
    int verdict = judge(name, path, what, 0); \
    if (verdict == FAIL) return failing(); \
    __typeof__(call) done = call; \
    if (verdict == HALF && shared->mode == KILL_IN) strike(); \
    return done; \
  } while (0)

/* A call that writes `size` bytes, of which `half` does the first half. */
#define WRITE(name, path, size, call, half) \
  do { \
    int verdict = judge(name, path, PLACE | GROWS | WRITES, size); \
    if (verdict == FAIL) return failing(); \
    if (verdict == HALF) { \
      ssize_t done = half; \
      if (shared->mode == KILL_IN) strike(); \
      return done; \
    } \
    return call; \
  } while (0)

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    REAL(name); \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = va_arg(rest, mode_t); \
    va_end(rest); \
    char full[PATH_MAX]; \
    if (shared && (flags & (O_CREAT | O_TRUNC)) && named(AT_FDCWD, path, full)) \
      WHOLE("open", full, GROWS, real(path, flags, mode)); \
    return real(path, flags, mode); \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
  int name(int folder, const char *path, int flags, ...) { \
    REAL(name); \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = va_arg(rest, mode_t); \
    va_end(rest); \
    char full[PATH_MAX]; \
    if (shared && (flags & (O_CREAT | O_TRUNC)) && named(folder, path, full)) \
      WHOLE("open", full, GROWS, real(folder, path, flags, mode)); \
    return real(folder, path, flags, mode); \
  }
OPENAT(openat)
OPENAT(openat64)

#define CREAT(name) \
  int name(const char *path, mode_t mode) { \
    REAL(name); \
    char full[PATH_MAX]; \
    if (shared && named(AT_FDCWD, path, full)) WHOLE("open", full, GROWS, real(path, mode)); \
    return real(path, mode); \
  }
CREAT(creat)
CREAT(creat64)

#define FOPEN(name) \
  FILE *name(const char *path, const char *mode) { \
    REAL(name); \
    char full[PATH_MAX]; \
    if (shared && mode[0] != 'r' && named(AT_FDCWD, path, full)) { \
      int verdict = judge("fopen", full, GROWS, 0); \
      if (verdict == FAIL) return failing(), NULL; \
      FILE *done = real(path, mode); \
      if (verdict == HALF && shared->mode == KILL_IN) strike(); \
      return done; \
    } \
    return real(path, mode); \
  }
FOPEN(fopen)
FOPEN(fopen64)

static int is_sent(int file) {
  if (!shared->network) return 0;
  struct sockaddr_storage address;
  socklen_t size = sizeof address;
  return !getpeername(file, (struct sockaddr *)&address, &size) &&
         (address.ss_family == AF_INET || address.ss_family == AF_INET6);
}

ssize_t write(int file, const void *data, size_t size) {
  REAL(write);
  char full[PATH_MAX];
  if (shared && held(file, full)) WRITE("write", full, size, real(file, data, size), real(file, data, size / 2));
  return real(file, data, size);
}

#define PWRITE(name, offset_t) \
  ssize_t name(int file, const void *data, size_t size, offset_t at) { \
    REAL(name); \
    char full[PATH_MAX]; \
    if (shared && held(file, full)) \
      WRITE("pwrite", full, size, real(file, data, size, at), real(file, data, size / 2, at)); \
    return real(file, data, size, at); \
  }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

static size_t total(const struct iovec *parts, int count) {
  size_t size = 0;
  for (int i = 0; i < count; i++) size += parts[i].iov_len;
  return size;
}

/* The first half of some parts; returns how many parts that are. */
static int halved(const struct iovec *parts, int count, struct iovec *out) {
  size_t left = total(parts, count) / 2;
  int n = 0;
  for (; n < count && n < 64 && left; n++) {
    out[n] = parts[n];
    if (out[n].iov_len > left) out[n].iov_len = left;
    left -= out[n].iov_len;
  }
  return n;
}

ssize_t writev(int file, const struct iovec *parts, int count) {
  REAL(writev);
  char full[PATH_MAX];
  struct iovec half[64];
  if (shared && held(file, full))
    WRITE("writev", full, total(parts, count), real(file, parts, count), real(file, half, halved(parts, count, half)));
  return real(file, parts, count);
}

#define PWRITEV(name, offset_t) \
  ssize_t name(int file, const struct iovec *parts, int count, offset_t at) { \
    REAL(name); \
    char full[PATH_MAX]; \
    struct iovec half[64]; \
    if (shared && held(file, full)) \
      WRITE("pwritev", full, total(parts, count), real(file, parts, count, at), \
            real(file, half, halved(parts, count, half), at)); \
    return real(file, parts, count, at); \
  }
PWRITEV(pwritev, off_t)
PWRITEV(pwritev64, off64_t)

#define SENDFILE(name, offset_t) \
  ssize_t name(int out, int in, offset_t *at, size_t size) { \
    REAL(name); \
    char full[PATH_MAX]; \
    if (shared && held(out, full)) { \
      struct stat about; /* Python asks for up to a gigabyte: half of that would be everything */ \
      size_t some = !fstat(in, &about) && (size_t)about.st_size < size ? (size_t)about.st_size : size; \
      WRITE("sendfile", full, some, real(out, in, at, size), real(out, in, at, some / 2)); \
    } \
    return real(out, in, at, size); \
  }
SENDFILE(sendfile, off_t)
SENDFILE(sendfile64, off64_t)

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags) {
  REAL(copy_file_range);
  char full[PATH_MAX];
  if (shared && held(out, full))
    WRITE("copy_file_range", full, size, real(in, from, out, to, size, flags), real(in, from, out, to, size / 2, flags));
  return real(in, from, out, to, size, flags);
}

ssize_t send(int file, const void *data, size_t size, int flags) {
  REAL(send);
  if (shared && is_sent(file)) WRITE("send", "", size, real(file, data, size, flags), real(file, data, size / 2, flags));
  return real(file, data, size, flags);
}

ssize_t sendmsg(int file, const struct msghdr *message, int flags) {
  REAL(sendmsg);
  if (shared && is_sent(file)) WHOLE("sendmsg", "", GROWS, real(file, message, flags));
  return real(file, message, flags);
}

#define ON_PATH(name, what, parameters, path, ...) \
  int name parameters { \
    REAL(name); \
    char full[PATH_MAX]; \
    if (shared && named(AT_FDCWD, path, full)) WHOLE(#name, full, what, real(__VA_ARGS__)); \
    return real(__VA_ARGS__); \
  }
#define ON_PATH_AT(name, what, parameters, folder, path, ...) \
  int name parameters { \
    REAL(name); \
    char full[PATH_MAX]; \
    if (shared && named(folder, path, full)) WHOLE(#name, full, what, real(__VA_ARGS__)); \
    return real(__VA_ARGS__); \
  }
#define ON_FILE(name, what, parameters, ...) \
  int name parameters { \
    REAL(name); \
    char full[PATH_MAX]; \
    if (shared && held(file, full)) WHOLE(#name, full, what, real(__VA_ARGS__)); \
    return real(__VA_ARGS__); \
  }

ON_PATH(rename, GROWS, (const char *from, const char *to), to, from, to)
ON_PATH_AT(renameat, GROWS, (int a, const char *from, int b, const char *to), b, to, a, from, b, to)
ON_PATH_AT(renameat2, GROWS, (int a, const char *from, int b, const char *to, unsigned flags), b, to, a, from, b, to, flags)
ON_PATH(unlink, PLACE, (const char *path), path, path)
ON_PATH_AT(unlinkat, PLACE, (int folder, const char *path, int flags), folder, path, folder, path, flags)
ON_PATH(remove, PLACE, (const char *path), path, path)
ON_PATH(rmdir, PLACE, (const char *path), path, path)
ON_PATH(mkdir, GROWS, (const char *path, mode_t mode), path, path, mode)
ON_PATH_AT(mkdirat, GROWS, (int folder, const char *path, mode_t mode), folder, path, folder, path, mode)
ON_PATH(link, GROWS, (const char *from, const char *to), to, from, to)
ON_PATH_AT(linkat, GROWS, (int a, const char *from, int b, const char *to, int flags), b, to, a, from, b, to, flags)
ON_PATH(symlink, GROWS, (const char *from, const char *to), to, from, to)
ON_PATH_AT(symlinkat, GROWS, (const char *from, int b, const char *to), b, to, from, b, to)
ON_PATH(chmod, PLACE, (const char *path, mode_t mode), path, path, mode)
ON_PATH_AT(fchmodat, PLACE, (int folder, const char *path, mode_t mode, int flags), folder, path, folder, path, mode, flags)
ON_PATH(truncate, GROWS, (const char *path, off_t size), path, path, size)
ON_PATH(truncate64, GROWS, (const char *path, off64_t size), path, path, size)
ON_FILE(fchmod, PLACE, (int file, mode_t mode), file, mode)
ON_FILE(ftruncate, GROWS, (int file, off_t size), file, size)
ON_FILE(ftruncate64, GROWS, (int file, off64_t size), file, size)
ON_FILE(fallocate, GROWS, (int file, int mode, off_t at, off_t size), file, mode, at, size)
ON_FILE(fallocate64, GROWS, (int file, int mode, off64_t at, off64_t size), file, mode, at, size)
/* Returns the error instead of setting it. */
#define POSIX_FALLOCATE(name, offset_t) \
  int name(int file, offset_t at, offset_t size) { \
    REAL(name); \
    char full[PATH_MAX]; \
    if (!shared || !held(file, full)) return real(file, at, size); \
    int verdict = judge(#name, full, GROWS, 0); \
    if (verdict == FAIL) return shared->error; \
    int done = real(file, at, size); \
    if (verdict == HALF && shared->mode == KILL_IN) strike(); \
    return done; \
  }
POSIX_FALLOCATE(posix_fallocate, off_t)
POSIX_FALLOCATE(posix_fallocate64, off64_t)
ON_FILE(fsync, GROWS, (int file), file)
ON_FILE(fdatasync, GROWS, (int file), file)
