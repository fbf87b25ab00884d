/* One child by its number, where the kernel has nothing better. The number is the
 * child's until it was reaped, which only we do, under the lock that signals take as
 * well. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "internal.h"

/* As process_reap, into the child. */
static int end_of(ap_child *child) {
  if (child->ended) return 1;
  pid_t pid = wait4(child->pid, &child->end_status, WNOHANG, &child->end_usage);
  if (pid == 0) return 0;
  if (pid < 0) return -errno;
  child->ended = true;
  return 1;
}

/* For callers other than the port. It may not have been told yet, and once the zombie is
 * gone the kernel may never tell it. */
static int end_before_told(ap_child *child) {
  /* It is not to be reaped; so its end is known when it is announced. */
  if (child->held && !child->ended) return child->announced;
  bool known = child->ended;
  int result = end_of(child);
  if (result == 1 && !known && child->port) look_later(child->port, child, SOON);
  return result;
}

int process_open(ap_child *child) {
  (void)child;
  return 0;
}

void process_close(ap_child *child) { (void)child; }

int process_reap(ap_child *child, ap_completion *out) {
  int result = end_of(child);
  if (result == 1) {
    out->status = child->end_status;
    note_usage(out, &child->end_usage);
  }
  return result;
}

/* waitid() with WNOWAIT would leave the zombie, but on macOS CPython has trusted it only
 * since 3.13 (os.waitid). So the child is reaped, and how it ended is kept. */
int process_peek(ap_child *child, ap_completion *out) {
  int result = end_before_told(child);
  if (result == 1) out->status = child->ended ? child->end_status : child->status;
  return result;
}

/* What it has used is known when it is reaped. One that had ended before it was watched is
 * not announced (kqueue(2), ESRCH). */
int process_end(ap_child *child, ap_completion *out) {
  if (child->ended) return process_reap(child, out);
  if (!child->announced) {
    siginfo_t info = {0};
    if (waitid(P_PID, (id_t)child->pid, &info, WEXITED | WNOHANG | WNOWAIT) < 0) return -errno;
    if (info.si_pid == 0) return 0;
    int core = info.si_code == CLD_DUMPED ? 0x80 : 0;
    child->status = info.si_code == CLD_EXITED ? (info.si_status & 0xff) << 8
                                               : info.si_status | core;
    child->announced = true;
  }
  out->status = child->status;
  return 1;
}

bool process_has_number(const ap_child *child) {
  siginfo_t info;
  if (child->ended) return false;
  return waitid(P_PID, (id_t)child->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0;
}

int process_signal_group(ap_child *child, int signal) {
  (void)child, (void)signal;
  return -ENOTSUP;
}

/* Takes the events out of a kqueue. The children they are about get a look soon. */
static void gather(ap_port *port) {
  int64_t tokens[POLLER_BATCH];
  int count = poller_wait(port, tokens, POLLER_BATCH);
  for (int i = 0; i < count; i++) {
    ap_child *child = child_find(tokens[i]);
    if (child)
      look_later(port, child, SOON);
    else if (tokens[i] == TIMER)
      arm_timer(port, SOON);
  }
}

/* The announcement has the status, also where another wait was first. */
int process_taken(ap_child *child, int *status) {
  if (!child->announced && child->watched) gather(child->port);
  if (!child->announced) return child->watched ? 0 : -ESRCH;
  if (child->status < 0) return -ESRCH;
  *status = child->status;
  return 1;
}

int process_signal(ap_child *child, int signal) {
  int result = end_before_told(child);
  if (result == 1) return 0; /* as kill(2) of a zombie */
  if (result < 0) return result == -ECHILD ? -ESRCH : result;
  return kill(child->pid, signal) < 0 ? -errno : 0;
}
