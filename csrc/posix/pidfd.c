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

static int64_t microseconds(const struct timeval *time) {
  return (int64_t)time->tv_sec * 1000000 + time->tv_usec;
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
  out->has_usage = 1;
  out->user_time = microseconds(&usage.ru_utime);
  out->system_time = microseconds(&usage.ru_stime);
  out->max_rss = usage.ru_maxrss;
  out->minor_faults = usage.ru_minflt;
  out->major_faults = usage.ru_majflt;
  out->blocks_in = usage.ru_inblock;
  out->blocks_out = usage.ru_oublock;
  out->switches_voluntary = usage.ru_nvcsw;
  out->switches_involuntary = usage.ru_nivcsw;
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
