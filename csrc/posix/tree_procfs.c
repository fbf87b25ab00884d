/* All processes of a Linux system, by /proc. Two system calls are what it stands on:
 *
 * - getdents64 into a buffer for three names. The kernel goes on by number from where the
 *   last call has ended, so the listing is of now and not of a moment ago: with the C
 *   library's 32 KiB a process that forks and ends without a pause is never met alive.
 * - pidfd_send_signal takes a descriptor of /proc/PID as well (its commit, 3eb39f47934f):
 *   the process that was looked at through it is the one that gets the signal, whatever
 *   has become of its number. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "internal.h"

#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif

const bool processes_are_dated = true;

/* The descriptor is noted in *place for processes_close. */
static int open_noted(processes *all, int *place, int dir, const char *name, int flags) {
  int fd = openat(dir, name, O_RDONLY | O_CLOEXEC | flags);
  for (int i = 0; i < PROCESSES_SPARE && fd < 0; i++) {
    if ((errno != EMFILE && errno != ENFILE) || all->spare[i] < 0) continue;
    int spare = all->spare[i];
    all->spare[i] = -1;
    close(spare);
    fd = openat(dir, name, O_RDONLY | O_CLOEXEC | flags);
  }
  if (fd < 0) return -errno;
  *place = fd;
  return fd;
}

static void close_noted(processes *all, int *place) {
  int fd = *place;
  *place = -1;
  for (int i = 0; i < PROCESSES_SPARE; i++)
    if (all->spare[i] < 0 && dup3(all->proc, fd, O_CLOEXEC) == fd) {
      /* In one step: no other thread can take the place meanwhile. */
      all->spare[i] = fd;
      return;
    }
  close(fd);
}

/* Up to size - 1 bytes of a file, as a string. */
static int read_noted(processes *all, int dir, const char *name, char *text, size_t size) {
  int fd = open_noted(all, &all->file, dir, name, 0);
  if (fd < 0) return fd;
  ssize_t length;
  do
    length = read(fd, text, size - 1);
  while (length < 0 && errno == EINTR);
  int error = length < 0 ? -errno : 0;
  close_noted(all, &all->file);
  if (error == 0) text[length] = '\0';
  return error;
}

static int gone_or(int error) { return error == -ENOENT ? -ESRCH : error; }

/* /proc/PID/stat (proc_pid_stat(5)). The name, its second field, may have blanks and
 * parentheses in it; no field behind it has. */
static int parse(char *text, process_facts *facts) {
  enum { STATE = 3, PARENT, GROUP, SESSION, THREADS = 20, START = 22 };
  char *at = strrchr(text, ')');
  if (!at || at[1] != ' ' || !at[2]) return -EIO;
  char state = at[2];
  at += 3;
  uint64_t threads = 0;
  for (int field = STATE + 1; field <= START; field++) {
    if (*at != ' ') return -EIO;
    uint64_t value = strtoull(at, &at, 10);
    switch (field) {
      case PARENT: facts->parent = (pid_t)value; break;
      case GROUP: facts->group = (pid_t)value; break;
      case SESSION: facts->session = (pid_t)value; break;
      case THREADS: threads = value; break;
      case START: facts->start = value; break;
    }
  }
  /* The state is that of the first thread, which can end before the others. */
  bool zombie = state == 'Z' || state == 'X' || state == 'x';
  facts->alive = !zombie || threads > 1;
  facts->stopped = state == 'T';
  return 0;
}

static int facts_in(processes *all, int dir, const char *name, process_facts *facts) {
  char text[512]; /* 22 fields are less, with the longest name */
  int error = read_noted(all, dir, name, text, sizeof text);
  if (error < 0) return gone_or(error);
  return parse(text, facts);
}

/* Whether it has new memory (vsize), and in it no environment yet (env_end), which is written
 * at the end of an exec (create_elf_tables() in fs/binfmt_elf.c). One that is empty has an
 * end, and what has no memory is of the kernel, or about to have ended. */
static bool is_in_exec(processes *all, pid_t pid) {
  enum { STATE = 3, MEMORY = 23, ENVIRONMENT_END = 51 };
  char name[32], text[2048];
  snprintf(name, sizeof name, "%d/stat", (int)pid);
  if (read_noted(all, all->proc, name, text, sizeof text) < 0) return false;
  char *at = strrchr(text, ')');
  if (!at || at[1] != ' ' || !at[2]) return false;
  at += 3;
  bool has_memory = false;
  for (int field = STATE + 1; field <= ENVIRONMENT_END && *at == ' '; field++) {
    uint64_t value = strtoull(at, &at, 10);
    if (field == MEMORY) has_memory = value != 0;
    if (field == ENVIRONMENT_END) return has_memory && value == 0;
  }
  return false;
}

int processes_open(processes *all) {
  all->file = all->dir = -1;
  for (int i = 0; i < PROCESSES_SPARE; i++) all->spare[i] = -1;
  all->proc = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (all->proc < 0) return errno == ENOENT ? -ENOTSUP : -errno;
  /* It may be that of another pid namespace, with other numbers, and none of procfs. */
  char self[16];
  ssize_t length = readlinkat(all->proc, "self", self, sizeof self - 1);
  self[length < 0 ? 0 : length] = '\0';
  process_facts facts;
  int error = strtol(self, NULL, 10) == getpid() ? processes_facts(all, getpid(), &facts)
                                                 : -ENOTSUP;
  /* We have an environment; not every system that has a /proc says where. */
  all->tells_ends = error == 0 && !is_in_exec(all, getpid());
  for (int i = 0; i < PROCESSES_SPARE; i++)
    if (all->spare[i] < 0) all->spare[i] = fcntl(all->proc, F_DUPFD_CLOEXEC, 3);
  if (error < 0) processes_close(all);
  return error;
}

void processes_close(processes *all) {
  int *fds[] = {&all->file, &all->dir, &all->spare[0], &all->spare[1], &all->proc};
  for (size_t i = 0; i < sizeof fds / sizeof *fds; i++) {
    if (*fds[i] >= 0) close(*fds[i]);
    *fds[i] = -1;
  }
}

int processes_begin(processes *all) {
  all->at = all->end = 0;
  return lseek(all->proc, 0, SEEK_SET) < 0 ? -errno : 0;
}

/* struct linux_dirent64 (getdents(2)). */
enum { ENTRY_LENGTH = 16, ENTRY_NAME = 19 };

pid_t processes_next(processes *all) {
  for (;;) {
    if (all->at == all->end) {
      /* EINVAL: there is a name that needs more. */
      size_t size = PROCESSES_BITE;
      long length = syscall(SYS_getdents64, all->proc, all->entries, size);
      if (length < 0 && errno == EINVAL)
        length = syscall(SYS_getdents64, all->proc, all->entries, sizeof all->entries);
      if (length <= 0) return length < 0 ? -errno : 0;
      all->at = 0;
      all->end = (int)length;
    }
    const char *entry = all->entries + all->at;
    uint16_t length;
    memcpy(&length, entry + ENTRY_LENGTH, sizeof length);
    all->at += length;
    const char *name = entry + ENTRY_NAME;
    if (*name >= '1' && *name <= '9') return (pid_t)strtol(name, NULL, 10);
  }
}

int processes_facts(processes *all, pid_t pid, process_facts *facts) {
  char name[32];
  snprintf(name, sizeof name, "%d/stat", (int)pid);
  facts->pid = pid;
  return facts_in(all, all->proc, name, facts);
}

/* How many pieces there were, or -errno. */
static int read_environment(processes *all, pid_t pid, processes_piece *take, void *argument) {
  char name[32];
  snprintf(name, sizeof name, "%d/environ", (int)pid);
  int fd = open_noted(all, &all->file, all->proc, name, 0);
  if (fd < 0) return gone_or(fd);
  int error = 0, pieces = 0;
  /* The most that an exec takes is 6 MiB (execve(2)). */
  while (pieces < (16 << 20) / (int)sizeof all->piece) {
    ssize_t length = read(fd, all->piece, sizeof all->piece);
    if (length < 0 && errno == EINTR) continue;
    if (length < 0) error = -errno;
    if (length <= 0) break;
    take(argument, all->piece, (size_t)length);
    pieces++;
  }
  close_noted(all, &all->file);
  return error < 0 ? gone_or(error) : pieces;
}

int processes_environment(processes *all, pid_t pid, processes_piece *take, void *argument) {
  for (int tries = 0; tries < 2; tries++) {
    int pieces = read_environment(all, pid, take, argument);
    if (pieces != 0) return pieces < 0 ? pieces : 0;
    if (all->tells_ends && is_in_exec(all, pid)) return PROCESS_IN_EXEC;
    /* It has come to the end of that meanwhile, or there is none. */
  }
  return 0;
}

/* By the descriptor; by the number, which has just been checked, where there is no such
 * call. EPERM is the answer of a seccomp filter as well. */
static int send_one(int dir, pid_t pid, int signal) {
  if (dir >= 0 && syscall(SYS_pidfd_send_signal, dir, signal, NULL, 0) == 0) return 0;
  if (dir >= 0 && errno == ESRCH) return -ESRCH;
  return kill(pid, signal) < 0 ? -errno : 0;
}

int processes_signal(processes *all, const process_facts *who, uint64_t signals, bool resume) {
  char name[16];
  snprintf(name, sizeof name, "%d", (int)who->pid);
  int dir = open_noted(all, &all->dir, all->proc, name, O_DIRECTORY);
  if (dir == -ENOENT) return -ESRCH;
  process_facts now = {.pid = who->pid};
  int result = dir < 0 ? processes_facts(all, who->pid, &now) : facts_in(all, dir, "stat", &now);
  if (result == 0 && (now.start != who->start || !now.alive)) result = -ESRCH;
  for (int signal = 1; signal <= 64 && result == 0; signal++)
    if (signals & UINT64_C(1) << (signal - 1)) result = send_one(dir, who->pid, signal);
  if (result == 0 && resume && now.stopped) result = send_one(dir, who->pid, SIGCONT);
  if (dir >= 0) close_noted(all, &all->dir);
  return result;
}

pid_t processes_youngest(processes *all) {
  char text[128];
  if (read_noted(all, all->proc, "loadavg", text, sizeof text) < 0) return 0;
  const char *last = strrchr(text, ' '); /* proc_loadavg(5) */
  return last ? (pid_t)strtol(last, NULL, 10) : 0;
}

bool processes_is_own_thread(processes *all, pid_t number) {
  char name[32];
  snprintf(name, sizeof name, "self/task/%d", (int)number);
  return faccessat(all->proc, name, F_OK, 0) == 0;
}

bool processes_we_adopt(void) {
  int adopts = 0;
  return prctl(PR_GET_CHILD_SUBREAPER, &adopts, 0, 0, 0) < 0 || adopts;
}
