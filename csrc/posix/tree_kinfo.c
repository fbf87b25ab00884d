/* All processes of macOS and the BSDs, by sysctl(3). There are no descriptors of processes
 * that a signal could go by: what is looked at is the number, just before. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
/* After sys/types.h. */
#include <sys/param.h>
#include <sys/proc.h>
#include <sys/sysctl.h>
#if defined(__FreeBSD__)
#include <sys/user.h>
#endif

#include "internal.h"

/* They start by the clock on the wall, which can be set back. */
const bool processes_are_dated = false;

#if defined(__APPLE__)

typedef struct kinfo_proc kinfo;
#define LIST {CTL_KERN, KERN_PROC, KERN_PROC_ALL}
#define ONE(pid) {CTL_KERN, KERN_PROC, KERN_PROC_PID, pid}
#define ENVIRONMENT(pid) {CTL_KERN, KERN_PROCARGS2, pid}

static pid_t pid_of(const kinfo *one) { return one->kp_proc.p_pid; }

static void facts_of(const kinfo *one, process_facts *facts) {
  facts->parent = one->kp_eproc.e_ppid;
  facts->group = one->kp_eproc.e_pgid;
  facts->session = getsid(one->kp_proc.p_pid);
  facts->start = (uint64_t)one->kp_proc.p_starttime.tv_sec * 1000000 +
                 (uint64_t)one->kp_proc.p_starttime.tv_usec;
  facts->alive = one->kp_proc.p_stat != SZOMB;
  facts->stopped = one->kp_proc.p_stat == SSTOP;
}

/* int argc, the path of the program, NULs, the arguments, the environment. Nothing is left
 * of that of programs under the system's protection. */
static const char *environment_in(const char *bytes, const char *end) {
  int strings;
  if (end - bytes < (ptrdiff_t)sizeof strings) return end;
  memcpy(&strings, bytes, sizeof strings);
  bytes += sizeof strings;
  bytes = memchr(bytes, '\0', (size_t)(end - bytes));
  while (bytes && bytes < end && !*bytes) bytes++;
  for (; bytes && bytes < end && strings > 0; strings--) {
    bytes = memchr(bytes, '\0', (size_t)(end - bytes));
    if (bytes) bytes++;
  }
  return bytes ? bytes : end;
}

#elif defined(__FreeBSD__) || defined(AIOPROC_KQUEUE)

typedef struct kinfo_proc kinfo;
#define LIST {CTL_KERN, KERN_PROC, KERN_PROC_PROC}
#define ONE(pid) {CTL_KERN, KERN_PROC, KERN_PROC_PID, pid}
#define ENVIRONMENT(pid) {CTL_KERN, KERN_PROC, KERN_PROC_ENV, pid}

static pid_t pid_of(const kinfo *one) { return one->ki_pid; }

static void facts_of(const kinfo *one, process_facts *facts) {
  facts->parent = one->ki_ppid;
  facts->group = one->ki_pgid;
  facts->session = one->ki_sid;
  facts->start =
      (uint64_t)one->ki_start.tv_sec * 1000000 + (uint64_t)one->ki_start.tv_usec;
  facts->alive = one->ki_stat != SZOMB;
  facts->stopped = one->ki_stat == SSTOP;
}

static const char *environment_in(const char *bytes, const char *end) {
  (void)end;
  return bytes;
}

#elif defined(__NetBSD__) || defined(__OpenBSD__)

#if defined(__NetBSD__)
typedef struct kinfo_proc2 kinfo;
#define PROCESSES KERN_PROC2
#define STATE(one) (one)->p_realstat
#else
typedef struct kinfo_proc kinfo;
#define PROCESSES KERN_PROC
#define STATE(one) (one)->p_stat
#endif
#define LIST {CTL_KERN, PROCESSES, KERN_PROC_ALL, 0, sizeof(kinfo), INT_MAX}
#define ONE(pid) {CTL_KERN, PROCESSES, KERN_PROC_PID, pid, sizeof(kinfo), 1}
#define ENVIRONMENT(pid) {CTL_KERN, KERN_PROC_ARGS, pid, KERN_PROC_ENV}

/* sys/proc.h has them for the kernel only, in some versions. */
enum { STOPPED = 4, ZOMBIE = 5, DEAD = 6 };

static pid_t pid_of(const kinfo *one) { return one->p_pid; }

static void facts_of(const kinfo *one, process_facts *facts) {
  facts->parent = one->p_ppid;
  facts->group = one->p__pgid;
  facts->session = one->p_sid;
  facts->start = (uint64_t)one->p_ustart_sec * 1000000 + one->p_ustart_usec;
  facts->alive = STATE(one) != ZOMBIE && STATE(one) != DEAD;
  facts->stopped = STATE(one) == STOPPED;
}

static const char *environment_in(const char *bytes, const char *end) {
#if defined(__OpenBSD__)
  /* Pointers to the strings, NULL, the strings. */
  for (char *pointer = (char *)-1; pointer && end - bytes >= (ptrdiff_t)sizeof pointer;
       bytes += sizeof pointer)
    memcpy(&pointer, bytes, sizeof pointer);
#else
  (void)end;
#endif
  return bytes;
}

#else
#define NOBODY_LOOKS
#endif

#ifndef NOBODY_LOOKS

/* As lazily given as the scanner's own memory. What a list has beyond that is not seen. */
enum { LIST_SIZE = 16 << 20, ENVIRONMENT_SIZE = 2 << 20 };

static int ask(int *name, size_t length, void *answer, size_t *size) {
  return sysctl(name, (unsigned)length, answer, size, NULL, 0) < 0 ? -errno : 0;
}
#define ASK(name, answer, size) ask(name, sizeof(name) / sizeof *(name), answer, size)

int processes_open(processes *all) {
  void *memory = mmap(NULL, LIST_SIZE + ENVIRONMENT_SIZE, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANON, -1, 0);
  if (memory == MAP_FAILED) return -errno;
  all->list = memory;
  process_facts facts;
  int error = processes_facts(all, getpid(), &facts);
  if (error < 0) processes_close(all);
  return error < 0 ? -ENOTSUP : 0;
}

void processes_close(processes *all) {
  if (all->list) munmap(all->list, LIST_SIZE + ENVIRONMENT_SIZE);
  all->list = NULL;
}

int processes_begin(processes *all) {
  int name[] = LIST;
  size_t size = 0;
  int error = ASK(name, NULL, &size);
  if (error < 0) return error;
  /* There may be more of them in a moment. */
  size += size / 4;
  if (size > LIST_SIZE) size = LIST_SIZE;
  error = ASK(name, all->list, &size);
  if (error < 0 && error != -ENOMEM) return error; /* ENOMEM: these, and more */
  all->at = 0;
  all->end = size / sizeof(kinfo);
  return 0;
}

pid_t processes_next(processes *all) {
  const kinfo *list = (const kinfo *)(const void *)all->list;
  while (all->at < all->end) {
    pid_t pid = pid_of(&list[all->at++]);
    if (pid > 0) return pid;
  }
  return 0;
}

int processes_facts(processes *all, pid_t pid, process_facts *facts) {
  (void)all;
  int name[] = ONE(pid);
  kinfo one;
  size_t size = sizeof one;
  int error = ASK(name, &one, &size);
  if (error < 0) return error;
  /* No answer is no error on some of them. */
  if (size < sizeof one || pid_of(&one) != pid) return -ESRCH;
  facts->pid = pid;
  facts_of(&one, facts);
  return 0;
}

int processes_environment(processes *all, pid_t pid, processes_piece *take, void *argument) {
  int name[] = ENVIRONMENT(pid);
  char *bytes = all->list + LIST_SIZE;
  size_t size = ENVIRONMENT_SIZE;
  int error = ASK(name, bytes, &size);
  /* p_candebug() in FreeBSD's sys/kern/kern_prot.c, of a process with P_INEXEC. */
  if (error == -EBUSY) return PROCESS_IN_EXEC;
  if (error < 0) return error;
  const char *start = environment_in(bytes, bytes + size);
  take(argument, start, (size_t)(bytes + size - start));
  return 0;
}

int processes_signal(processes *all, const process_facts *who, uint64_t signals, bool resume) {
  process_facts now;
  int error = processes_facts(all, who->pid, &now);
  if (error < 0) return error;
  if (now.start != who->start || !now.alive) return -ESRCH;
  for (int signal = 1; signal <= 64 && error == 0; signal++)
    if (signals & UINT64_C(1) << (signal - 1) && kill(who->pid, signal) < 0) error = -errno;
  if (error == 0 && resume && now.stopped && kill(who->pid, SIGCONT) < 0) error = -errno;
  return error;
}

#else

int processes_open(processes *all) {
  (void)all;
  return -ENOTSUP;
}

void processes_close(processes *all) { (void)all; }

int processes_begin(processes *all) {
  (void)all;
  return -ENOTSUP;
}

pid_t processes_next(processes *all) {
  (void)all;
  return 0;
}

int processes_facts(processes *all, pid_t pid, process_facts *facts) {
  (void)all, (void)pid, (void)facts;
  return -ENOTSUP;
}

int processes_environment(processes *all, pid_t pid, processes_piece *take, void *argument) {
  (void)all, (void)pid, (void)take, (void)argument;
  return -ENOTSUP;
}

int processes_signal(processes *all, const process_facts *who, uint64_t signals, bool resume) {
  (void)all, (void)who, (void)signals, (void)resume;
  return -ENOTSUP;
}

#endif

/* Numbers are not given in order everywhere. */
pid_t processes_youngest(processes *all) {
  (void)all;
  return 0;
}

bool processes_is_own_thread(processes *all, pid_t number) {
  (void)all, (void)number;
  return false;
}

bool processes_we_adopt(void) { return true; }
