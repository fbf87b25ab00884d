/* Linux process descriptors, by system call: C libraries wrap them late. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "internal.h"

/* The same numbers on every architecture (asm-generic/unistd.h and the unified
 * tables since Linux 5.1), but for alpha and x32. */
#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

#define WAIT_BY_PIDFD 3 /* P_PIDFD; an enum member in newer C libraries */

/* include/uapi/linux/pidfd.h, Linux 6.13; PIDFD_INFO_EXIT since 6.15. */
#define INFO_EXIT (1u << 3)
struct info {
  uint64_t mask;
  uint64_t cgroup;
  uint32_t ids[11];
  int32_t exit_code;
};
#define GET_INFO _IOWR(0xFF, 11, struct info)

int sys_pidfd_open(pid_t pid) {
  int fd = (int)syscall(SYS_pidfd_open, pid, 0);
  return fd < 0 ? -errno : fd;
}

int sys_pidfd_signal(int pidfd, int signal) {
  return syscall(SYS_pidfd_send_signal, pidfd, signal, NULL, 0) < 0 ? -errno : 0;
}

/* 1: reaped, out has status and usage. 0: not ended. -errno. The raw call, since
 * only it has the fifth argument, rusage (waitid(2), "C library/kernel
 * differences"). */
int sys_waitid_pidfd(int pidfd, int options, ap_completion *out) {
  siginfo_t info;
  struct rusage usage;
  memset(&info, 0, sizeof info);
  if (syscall(SYS_waitid, WAIT_BY_PIDFD, pidfd, &info, options, &usage) < 0)
    return -errno;
  if (info.si_pid == 0) return 0;
  switch (info.si_code) {
    case CLD_EXITED: out->status = (info.si_status & 0xff) << 8; break;
    case CLD_DUMPED: out->status = info.si_status | 0x80; break;
    default: out->status = info.si_status; break;
  }
  note_usage(out, &usage);
  return 1;
}

/* The status of a process that somebody else has reaped. 1: *status is set. 0:
 * the kernel knows this call, but has no status yet. -errno: it does not. */
int sys_pidfd_exit_status(int pidfd, int *status) {
  struct info info;
  memset(&info, 0, sizeof info);
  info.mask = INFO_EXIT;
  if (ioctl(pidfd, GET_INFO, &info) < 0) return -errno;
  if (!(info.mask & INFO_EXIT)) return 0;
  *status = info.exit_code;
  return 1;
}

int process_probe(const char **what) {
  ap_completion out;
  *what = "pidfd_open";
  int pidfd = sys_pidfd_open(getpid());
  if (pidfd < 0) return pidfd;
  *what = "pidfd_send_signal";
  int error = sys_pidfd_signal(pidfd, 0);
  if (error == 0) {
    *what = "waitid(P_PIDFD)";
    /* We are not our own child: ECHILD is the right answer. */
    int waited = sys_waitid_pidfd(pidfd, WEXITED | WNOHANG, &out);
    error = waited == -ECHILD ? 0 : waited < 0 ? waited : -EINVAL;
  }
  close(pidfd);
  return error;
}

int process_open(ap_child *child) {
  int pidfd = sys_pidfd_open(child->pid);
  if (pidfd < 0) return pidfd;
  child->pidfd = pidfd;
  return 0;
}

void process_close(ap_child *child) {
  if (child->pidfd >= 0) close(child->pidfd);
}

int process_reap(ap_child *child, ap_completion *out) {
  if (child->pidfd < 0) return -ECHILD;
  return sys_waitid_pidfd(child->pidfd, WEXITED | WNOHANG, out);
}

int process_peek(ap_child *child, ap_completion *out) {
  if (child->pidfd < 0) return -ECHILD;
  return sys_waitid_pidfd(child->pidfd, WEXITED | WNOHANG | WNOWAIT, out);
}

/* The kernel keeps the status with the descriptor since Linux 6.15. It appears a
 * moment after the wait, at release_task(). ESRCH: the process went between the
 * question for the status and that for the process. */
int process_taken(ap_child *child, int *status) {
  int result = sys_pidfd_exit_status(child->pidfd, status);
  return result == -ESRCH ? 0 : result;
}

int process_end(ap_child *child, ap_completion *out) {
  return process_peek(child, out);
}

bool process_has_number(const ap_child *child) {
  ap_completion out;
  if (child->pidfd < 0) return false;
  return sys_waitid_pidfd(child->pidfd, WEXITED | WNOHANG | WNOWAIT, &out) >= 0;
}

/* PIDFD_SIGNAL_PROCESS_GROUP in include/uapi/linux/pidfd.h, Linux 6.9. It reaches the group
 * when its leader has been reaped, and cannot reach another. EPERM may be seccomp's. */
int process_signal_group(ap_child *child, int signal) {
  if (child->pidfd < 0) return -ENOTSUP;
  if (syscall(SYS_pidfd_send_signal, child->pidfd, signal, NULL, 1u << 2) == 0) return 0;
  return errno == EINVAL || errno == ENOSYS || errno == EPERM ? -ENOTSUP : -errno;
}

int process_signal(ap_child *child, int signal) {
  return child->pidfd < 0 ? -ESRCH : sys_pidfd_signal(child->pidfd, signal);
}
