/* The main strategy on Linux: our own child on clone(CLONE_VM | CLONE_PIDFD),
 * without CLONE_VFORK. The caller goes on at once; the exec happens on another
 * core, and its result comes by a CLOEXEC pipe: end of file when it worked, four
 * bytes when it did not. AP_COPY is the same without CLONE_VM. Here is the parent's
 * side; what the child does is in child_code.c. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "child_code.h"

#ifndef CLONE_PIDFD
#define CLONE_PIDFD 0x1000
#endif
/* The child's own frames need less than 2 KiB (most in ap_child_close_listed);
 * no signal handler runs on this stack. */
enum { STACK_SIZE = 16 * 1024 };

size_t clone_stack_size(void) { return STACK_SIZE; }

typedef struct {
  int (*entry)(void *);
  void *argument; /* it runs on the stack below */
  int flags;
  uint64_t *mask; /* gets that of the calling thread */
  volatile int32_t *in_use;
  int pidfd; /* the child's descriptor; -1 where the kernel knows none */
  int result; /* its pid, or -errno */
} clone_call;

/* Makes the child of a clone_call. */
static void clone_now(void *argument) {
  clone_call *call = argument;
  uint64_t all = ~(uint64_t)0;
  int made = -1, flags = call->flags | CLONE_PIDFD | SIGCHLD;
  void *stack = (void *)((uintptr_t)call->argument & ~(uintptr_t)15);
  call->pidfd = -1;
  /* By system call: libc's leaves out its own signals 32 and 33, whose handlers
   * must not run in a child either. */
  if (syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, call->mask, KERNEL_SIGSET_SIZE) < 0) {
    call->result = -errno;
    return;
  }
  if (call->in_use) flags |= CLONE_CHILD_CLEARTID;
  int pid = clone(call->entry, stack, flags, call->argument, &made, NULL,
                  (void *)(uintptr_t)call->in_use);
  call->result = pid < 0 ? -errno : pid;
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, call->mask, NULL, KERNEL_SIGSET_SIZE);
  /* What a pids cgroup refuses is refused late (cgroup_can_fork): copy_process() in
   * the kernel's kernel/fork.c has written a number by then, and taken it back. It
   * may be another thread's. */
  if (pid >= 0) call->pidfd = made;
}

int clone_pipe(ap_child *child, ap_plan *plan) {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC | O_NONBLOCK) < 0) return -errno;
  child->exec_fd = fds[0];
  if (fds[1] < 3) {
    /* Our parent has closed its stdio; the child is about to fill it. */
    int higher = fcntl(fds[1], F_DUPFD_CLOEXEC, 3);
    int error = errno;
    close(fds[1]);
    if (higher < 0) return -error;
    fds[1] = higher;
  }
  plan_keep(plan, fds[1]);
  return 0;
}

#if INLINE_SYSCALLS
enum { CLONE_EXTRA = 0 };
#else
/* Not written for this architecture: with CLONE_VFORK the parent's thread waits
 * until the exec, so that libc's wrapper may use its errno. */
enum { CLONE_EXTRA = CLONE_VFORK };
#endif

static int memory_flags(bool copy) { return copy ? 0 : CLONE_VM | CLONE_EXTRA; }

/* Whose end the child is to be ended by: this thread's, or spawn_thread's. */
int clone_parent(ap_plan *plan) {
  if (!(plan->flags & (AP_DIE_WITH_PARENT | AP_DIE_IF_MAIN))) return 0;
  bool main_thread = syscall(SYS_gettid) == getpid();
  if (!main_thread && !(plan->flags & AP_DIE_WITH_PARENT)) return 0;
  plan->parent = getpid();
  if (main_thread) return 0;
  plan->by_thread = true;
  int result = spawn_thread_start();
  return result < 0 ? result : spawn_thread_imitate(plan->limits);
}

bool clone_shares(const ap_plan *plan, int strategy) {
  /* A change of ids must not share memory with the parent: for a moment the new
   * user could reach into it (ptrace). The same child, on a copy. */
  int ids = plan->flags & (AP_SETGROUPS | AP_SETGID | AP_SETUID);
  /* And this one would be ours as well (see ap_child_limit). */
  bool oom = plan->limits && plan->limits->wanted.set & AP_SET_OOM;
  return !ids && !oom && strategy != AP_COPY;
}

int clone_start(ap_child *child, ap_plan *plan, int strategy) {
  clone_call call = {.entry = ap_child_main,
                     .argument = plan,
                     .flags = memory_flags(!clone_shares(plan, strategy)),
                     .mask = &plan->signal_mask};
  if (plan->result_fd < 0) {
    plan->in_use = 1;
    call.in_use = &plan->in_use;
  }
  if (plan->by_thread) {
    uint64_t its_own;
    call.mask = &its_own;
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, NULL, &plan->signal_mask, KERNEL_SIGSET_SIZE);
    spawn_thread_run(clone_now, &call);
  } else {
    clone_now(&call);
  }
  if (plan->result_fd >= 0) close(plan->result_fd);
  child->pidfd = call.pidfd;
  if (call.result < 0) return call.result;
  child->pid = call.result;
  return 0;
}

/* ---- the probe ---------------------------------------------------------- */

/* One child that marks our memory and ends. CLONE_VM does not share memory under
 * QEMU's user mode and WSL1, CLONE_PIDFD is ignored before Linux 5.2, and seccomp
 * may refuse any of the rest. */
int clone_probe(int strategy, const char **what) {
  bool copy = strategy == AP_COPY;
  char *memory = malloc(STACK_SIZE + sizeof(probe_mark));
  probe_mark *mark = (probe_mark *)(void *)(memory + STACK_SIZE);
  uint64_t mask;
  int pidfd = -1, error = 0;
  *what = "malloc";
  if (!memory) return -ENOMEM;
  mark->seen = 0;

  /* For the children of preexec_fn. */
  *what = "pidfd_open";
  int self = sys_pidfd_open(getpid());
  if (self < 0) {
    error = self;
    goto finish;
  }
  close(self);

  *what = copy ? "clone(CLONE_PIDFD)" : "clone(CLONE_VM | CLONE_PIDFD)";
  clone_call call = {
      .entry = ap_child_probe, .argument = mark, .flags = memory_flags(copy), .mask = &mask};
  clone_now(&call);
  int pid = call.result;
  pidfd = call.pidfd;
  if (pid < 0) {
    error = pid;
    goto finish;
  }
  if (pidfd < 0) {
    /* No descriptor: Linux before 5.2. Plain waiting is safe, it ends at once. */
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) continue;
    error = -ENOSYS;
    goto finish;
  }
  *what = "poll(pidfd)";
  struct pollfd ready = {.fd = pidfd, .events = POLLIN};
  int polled;
  do polled = poll(&ready, 1, 5000);
  while (polled < 0 && errno == EINTR);
  if (polled != 1) {
    error = polled < 0 ? -errno : -ETIMEDOUT;
    kill(pid, SIGKILL);
  }
  /* ESRCH or success are both the call at work. */
  int signalled = sys_pidfd_signal(pidfd, 0);
  ap_completion out;
  int waited = sys_waitid_pidfd(pidfd, WEXITED, &out);
  if (waited < 0 && waited != -ECHILD) {
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) continue;
  }
  if (error) goto finish;
  if (waited < 0 && waited != -ECHILD) {
    *what = "waitid(P_PIDFD)";
    error = waited;
  } else if (signalled < 0 && signalled != -ESRCH) {
    *what = "pidfd_send_signal";
    error = signalled;
  } else if (!copy && !mark->seen) {
    *what = "clone(CLONE_VM): memory is not shared";
    error = -ENOSYS;
  }

finish:
  if (pidfd >= 0) close(pidfd);
  free(memory);
  return error;
}

int ap_tracer(void) {
  static const char field[] = "\nTracerPid:";
  char status[4096]; /* the field is among the first */
  int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  ssize_t size = read(fd, status, sizeof status - 1);
  close(fd);
  if (size <= 0) return 0;
  status[size] = '\0';
  const char *found = strstr(status, field);
  return found ? atoi(found + sizeof field - 1) : 0;
}

int linux_features(void) {
  int features = 0, status;
  /* An empty range is refused with EINVAL where the call is known. */
  if (syscall(SYS_close_range, 1u, 0u, 0) == 0 || errno == EINVAL)
    features |= AP_HAS_CLOSE_RANGE;
  int self = sys_pidfd_open(getpid());
  if (self >= 0) {
    if (sys_pidfd_exit_status(self, &status) >= 0) features |= AP_HAS_PIDFD_INFO;
    close(self);
  }
  if (INLINE_SYSCALLS) features |= AP_INLINE_SYSCALLS;
  return features;
}
