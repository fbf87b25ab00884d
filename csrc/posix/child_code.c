/* The child's code: what runs between clone and exec.
 *
 * The child shares the running parent's memory, and its thread-local storage
 * (errno!) with the thread that made it. So everything it does here is inline
 * system calls on data that belongs to it alone: no libc function, no stack
 * protector, no call by the procedure linkage table, none that the compiler
 * makes up (memset). Its functions are in a section of their own, and
 * tests/test_child_code.py disassembles them and finds no way out.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "child_code.h"

/* Where there are two, the plain ones take ids of 16 bits (i386, 32-bit ARM). */
#ifdef SYS_setgroups32
#define SET_GROUPS SYS_setgroups32
#define SET_GID SYS_setregid32
#define SET_UID SYS_setreuid32
#else
#define SET_GROUPS SYS_setgroups
#define SET_GID SYS_setregid
#define SET_UID SYS_setreuid
#endif

#if defined(__clang__)
#define CHILD_ATTRIBUTES                                                \
  __attribute__((noinline, section(".text.ap_child"), used,             \
                 no_builtin("memset", "memcpy", "memmove", "strlen"),   \
                 no_sanitize("address", "undefined", "thread")))
#define CHILD_STACK __attribute__((no_stack_protector))
#else
#define CHILD_ATTRIBUTES                                                     \
  __attribute__((noinline, section(".text.ap_child"), used,                  \
                 optimize("no-tree-loop-distribute-patterns"),               \
                 no_sanitize("address"), no_sanitize("undefined"),           \
                 no_sanitize("thread"), no_instrument_function))
#if __GNUC__ >= 11
#define CHILD_STACK __attribute__((no_stack_protector))
#else
#define CHILD_STACK __attribute__((optimize("no-stack-protector")))
#endif
#endif
#define CHILD_CODE CHILD_ATTRIBUTES CHILD_STACK

#if INLINE_SYSCALLS
CHILD_CODE static long ap_child_call(long n, long a, long b, long c, long d, long e) {
  SYSCALL_DECL(n);
  ARG1;
  ARG2;
  ARG3;
  ARG4;
  ARG5;
  SYSCALL_ASM;
}
#else
/* Not written for this architecture: the parent's thread waits meanwhile (CLONE_EXTRA
 * in spawn_clone.c). */
static long ap_child_call(long n, long a, long b, long c, long d, long e) {
  long result = syscall(n, a, b, c, d, e);
  return result < 0 ? -errno : result;
}
#endif

#define CALL1(n, a) ap_child_call(n, (long)(a), 0, 0, 0, 0)
#define CALL2(n, a, b) ap_child_call(n, (long)(a), (long)(b), 0, 0, 0)
#define CALL3(n, a, b, c) ap_child_call(n, (long)(a), (long)(b), (long)(c), 0, 0)
/* The fifth is 0, which some want (prctl). */
#define CALL4(n, a, b, c, d) \
  ap_child_call(n, (long)(a), (long)(b), (long)(c), (long)(d), 0)

enum { LAST_SIGNAL = 64 };

/* The kernel's sigaction, whose first word is the handler on every architecture
 * but mips; zeroes in the rest mean SIG_DFL without flags everywhere. */
typedef struct {
  unsigned long handler;
  unsigned long rest[7];
} kernel_sigaction;

CHILD_CODE static void ap_child_default_signal(int signal) {
  kernel_sigaction action;
  action.handler = 0;
  /* volatile: or the compiler makes it a memset */
  for (volatile unsigned long *word = action.rest; word < action.rest + 7; word++)
    *word = 0;
  CALL4(SYS_rt_sigaction, signal, &action, 0, KERNEL_SIGSET_SIZE);
}

/* Handlers of the parent must not run in the child, not even between the moment
 * the signal mask is restored and the exec. Ignored signals stay ignored, as
 * exec leaves them. */
CHILD_CODE static void ap_child_reset_signals(int flags) {
  kernel_sigaction action;
  for (int signal = 1; signal <= LAST_SIGNAL; signal++) {
    if (signal == SIGKILL || signal == SIGSTOP) continue;
    if (CALL4(SYS_rt_sigaction, signal, 0, &action, KERNEL_SIGSET_SIZE) < 0)
      continue;
    if (action.handler > 1) ap_child_default_signal(signal);
  }
  if (flags & AP_RESTORE_SIGNALS) { /* as _Py_RestoreSignals does */
    ap_child_default_signal(SIGPIPE);
    ap_child_default_signal(SIGXFSZ);
  }
  if (flags & AP_TERMINAL) {
    /* As a shell has them for what runs in its background: with these ignored, there would be
     * no Ctrl-C and no end of the terminal. */
    ap_child_default_signal(SIGHUP);
    ap_child_default_signal(SIGINT);
    ap_child_default_signal(SIGQUIT);
    ap_child_default_signal(SIGTSTP);
    ap_child_default_signal(SIGTTIN);
    ap_child_default_signal(SIGTTOU);
  }
}

CHILD_CODE static long ap_child_inherit(int fd) {
  long flags = CALL2(SYS_fcntl, fd, F_GETFD);
  if (flags < 0) return flags;
  if (!(flags & FD_CLOEXEC)) return 0;
  return CALL3(SYS_fcntl, fd, F_SETFD, flags & ~FD_CLOEXEC);
}

CHILD_CODE static long ap_child_stdio(const ap_plan *plan) {
  int from[3];
  long result;
  /* A source among 0..2 would be overwritten before its turn: all up first. */
  for (int i = 0; i < 3; i++) {
    from[i] = plan->fds[i];
    if (from[i] < 0 || from[i] > 2 || from[i] == i) continue;
    result = CALL3(SYS_fcntl, from[i], F_DUPFD_CLOEXEC, 3);
    if (result < 0) return result;
    from[i] = (int)result;
  }
  for (int i = 0; i < 3; i++) {
    if (from[i] < 0) continue;
    if (from[i] == i)
      result = ap_child_inherit(i); /* dup3 refuses it, dup2 would leave CLOEXEC */
    else
      result = CALL3(SYS_dup3, from[i], i, 0);
    if (result < 0) return result;
  }
  return 0;
}

CHILD_CODE static int ap_child_keeps(const ap_plan *plan, long fd) {
  if (fd < 3) return 1;
  for (int i = 0; i < plan->keep_count; i++)
    if (plan->keep[i] == fd) return 1;
  return 0;
}

typedef struct {
  uint64_t inode;
  int64_t offset;
  uint16_t length;
  uint8_t type;
  char name[];
} kernel_dirent;

/* Before Linux 5.9, or where seccomp refuses close_range: ask which are open. */
CHILD_CODE static int ap_child_close_listed(const ap_plan *plan) {
  uint64_t buffer[128];
  long dir = CALL4(SYS_openat, AT_FDCWD, plan->open_files,
                   O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
  if (dir < 0) return 0;
  for (;;) {
    long size = CALL3(SYS_getdents64, dir, buffer, sizeof buffer);
    if (size < 0) return 0;
    if (size == 0) break;
    for (long at = 0; at < size;) {
      const kernel_dirent *entry = (const void *)((const char *)buffer + at);
      long fd = 0;
      const char *digit = entry->name;
      for (; *digit >= '0' && *digit <= '9'; digit++) fd = fd * 10 + (*digit - '0');
      if (digit != entry->name && fd != dir && !ap_child_keeps(plan, fd))
        CALL1(SYS_close, fd);
      at += entry->length;
    }
  }
  CALL1(SYS_close, dir);
  return 1;
}

/* Without /proc: every number there can be. */
CHILD_CODE static void ap_child_close_all(const ap_plan *plan) {
  struct {
    uint64_t now, most;
  } limit;
  long end = 65536;
  if (CALL4(SYS_prlimit64, 0, 7 /* RLIMIT_NOFILE */, 0, &limit) == 0 &&
      limit.now < (1u << 30))
    end = (long)limit.now;
  for (long fd = 3; fd < end; fd++)
    if (!ap_child_keeps(plan, fd)) CALL1(SYS_close, fd);
}

CHILD_CODE static void ap_child_close_fds(const ap_plan *plan) {
  unsigned start = 3;
  for (int i = 0; i <= plan->keep_count; i++) {
    unsigned end = i < plan->keep_count ? (unsigned)plan->keep[i] : ~0u;
    unsigned last = i < plan->keep_count ? end - 1 : end;
    if (end > start && CALL3(SYS_close_range, start, last, 0) < 0) {
      if (!ap_child_close_listed(plan)) ap_child_close_all(plan);
      return;
    }
    start = end + 1;
  }
}

CHILD_CODE static long ap_child_write(const char *file, const char *text) {
  long size = 0;
  while (text[size]) size++;
  long fd = CALL4(SYS_openat, AT_FDCWD, file, O_WRONLY | O_CLOEXEC, 0);
  if (fd < 0) return fd;
  long result = CALL3(SYS_write, fd, text, size);
  CALL1(SYS_close, fd);
  return result < 0 ? result : 0;
}

/* The kernel leaves out what is not there, or not for us, and says nothing as long as
 * something is left (sched_setaffinity(2)). */
CHILD_CODE static long ap_child_set_cpus(plan_limits *limits) {
  long result = CALL3(SYS_sched_setaffinity, 0, sizeof limits->cpus, limits->cpus);
  if (result < 0) return result;
  long known = CALL3(SYS_sched_getaffinity, 0, sizeof limits->have, limits->have);
  if (known < 0) return known;
  for (int i = 0; i < CPU_WORDS; i++) {
    unsigned long have = (unsigned long)i * sizeof have < (unsigned long)known
                             ? limits->have[i] : 0;
    if (have != limits->cpus[i]) return -EINVAL;
  }
  return 0;
}

/* What the kernel keeps where, and so who else would feel it:
 *
 *   oom_score_adj  in the signal_struct, of this process alone; but the write goes to all
 *                  processes on the same memory that have not been made by vfork
 *                  (__set_oom_adj in the kernel's fs/proc/base.c): hence clone_shares()
 *   autogroup      one of each session, with its own nice value: to be set in a new one only
 *   nice, CPUs     in the task: this thread's own
 *   rlimits        in the signal_struct, which is a copy without CLONE_THREAD
 *   no_new_privs, PDEATHSIG   in the task
 *
 * With root's rights, if we have them, and so before the ids; after all descriptors have
 * been opened and closed. */
CHILD_CODE static long ap_child_limit(plan_limits *limits, int *step) {
  const ap_limits *wanted = &limits->wanted;
  long result;
  if (wanted->set & AP_SET_OOM) {
    *step = AP_STEP_OOM;
    result = ap_child_write(limits->oom_file, limits->oom_text);
    if (result < 0) return result;
  }
  if (wanted->set & AP_SET_NICE) {
    *step = limits->nice_step;
    result = CALL3(SYS_setpriority, 0 /* PRIO_PROCESS */, 0, wanted->nice);
    if (result < 0) return result;
    /* It counts within the session; between sessions that of their autogroups does
     * (sched(7)). Not everywhere to be had, and not always: the kernel takes one in 100 ms
     * from those who are not root (EAGAIN, kernel/sched/autogroup.c). */
    if (limits->autogroup_file) ap_child_write(limits->autogroup_file, limits->nice_text);
  }
  if (wanted->set & AP_SET_CPUS) {
    *step = limits->cpus_step;
    result = ap_child_set_cpus(limits);
    if (result < 0) return result;
  }
  for (int i = 0; i < wanted->rlimit_count; i++) {
    struct {
      uint64_t soft, hard;
    } limit;
    limit.soft = wanted->soft[i];
    limit.hard = wanted->hard[i];
    *step = AP_STEP_RLIMIT + wanted->resources[i];
    result = CALL4(SYS_prlimit64, 0, wanted->resources[i], &limit, 0);
    if (result < 0) return result;
  }
  return 0;
}

/* After the change of ids, which would take it back. */
CHILD_CODE static long ap_child_die_with(pid_t parent, int flags) {
  long result = CALL4(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0);
  if (result < 0) return flags & AP_DIE_IF_MAIN ? 0 : result;
  /* Too late, if the parent has ended before: whoever has us now is no parent, be it process
   * 1 or a subreaper. 0: it is in another namespace (unshare(CLONE_NEWPID)). */
  long now = CALL1(SYS_getppid, 0);
  if (now != parent && now != 0) CALL1(SYS_exit_group, 127);
  return 0;
}

/* What comes between clone and exec, in CPython's order (child_exec in
 * Modules/_posixsubprocess.c), but for descriptors, which are closed sooner. 0 or -errno;
 * *step tells what was tried. */
CHILD_CODE static long ap_child_setup(const ap_plan *plan, int *step) {
  long result;
  *step = AP_STEP_SETUP;
  for (int i = 0; i < plan->pass_count; i++) {
    result = ap_child_inherit(plan->pass_fds[i]);
    if (result < 0) return result;
  }
  result = ap_child_stdio(plan);
  if (result < 0) return result;
  if (plan->cwd) {
    *step = AP_STEP_CHDIR;
    result = CALL1(SYS_chdir, plan->cwd);
    if (result < 0) return result;
    *step = AP_STEP_SETUP;
  }
  if (plan->flags & AP_UMASK) CALL1(SYS_umask, plan->file_mode_mask);
  if (plan->flags & AP_SETSID) {
    result = CALL1(SYS_setsid, 0);
    if (result < 0) return result;
  }
  if (plan->flags & AP_TERMINAL) {
    result = CALL3(SYS_ioctl, 0, TIOCSCTTY, 0);
    if (result < 0) return result;
  }
  if (plan->flags & AP_SETPGID) {
    result = CALL2(SYS_setpgid, 0, plan->process_group);
    if (result < 0) return result;
  }
  if (plan->flags & AP_CLOSE_FDS) ap_child_close_fds(plan);
  if (plan->limits) {
    result = ap_child_limit(plan->limits, step);
    if (result < 0) return result;
    *step = AP_STEP_SETUP;
  }
  /* The raw calls, of this thread only: libc's would try to tell all threads. */
  if (plan->flags & AP_SETGROUPS) {
    result = CALL2(SET_GROUPS, plan->group_count, plan->groups);
    if (result < 0) return result;
  }
  if (plan->flags & AP_SETGID) {
    result = CALL2(SET_GID, plan->gid, plan->gid);
    if (result < 0) return result;
  }
  if (plan->flags & AP_SETUID) {
    result = CALL2(SET_UID, plan->uid, plan->uid);
    if (result < 0) return result;
  }
  if (plan->limits && plan->limits->wanted.set & AP_NO_NEW_PRIVS) {
    *step = AP_STEP_NO_NEW_PRIVS;
    result = CALL4(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0);
    if (result < 0) return result;
  }
  if (plan->parent) {
    *step = AP_STEP_DIE;
    result = ap_child_die_with(plan->parent, plan->flags);
    if (result < 0) return result;
  }
  return 0;
}

/* Tries the candidates as the shell and CPython do: a refusal is remembered over
 * a miss. Returns -errno, or does not return. */
CHILD_CODE static long ap_child_exec(const ap_plan *plan) {
  long refusal = 0, result = -ENOENT;
  for (const char *const *program = plan->programs; *program; program++) {
    result = CALL3(SYS_execve, *program, plan->argv, plan->envp);
    if (result != -ENOENT && result != -ENOTDIR && !refusal) refusal = result;
  }
  return refusal ? refusal : result;
}

CHILD_CODE int ap_child_main(void *argument) {
  ap_plan *plan = argument;
  int step;
  int32_t report;
  ap_child_reset_signals(plan->flags);
  long result = ap_child_setup(plan, &step);
  if (result == 0) {
    step = AP_STEP_EXEC;
    /* The caller's mask, as late as can be. */
    CALL4(SYS_rt_sigprocmask, SIG_SETMASK, &plan->signal_mask, 0,
          KERNEL_SIGSET_SIZE);
    result = ap_child_exec(plan);
  }
  report = (int32_t)-result | step << 16;
  if (plan->result_fd >= 0)
    CALL3(SYS_write, plan->result_fd, &report, sizeof report);
  else
    plan->report = report;
  CALL1(SYS_exit_group, 127);
  return 127;
}

CHILD_CODE int ap_child_probe(void *argument) {
  ((probe_mark *)argument)->seen = 1;
  CALL1(SYS_exit_group, 7);
  return 7;
}
