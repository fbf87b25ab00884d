/* All children of this process, their way from exec to exit, and the orphans:
 * children that outlived the port they were started on. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "internal.h"

pthread_mutex_t ap_lock = PTHREAD_MUTEX_INITIALIZER;

static ap_child *orphans;
static int orphan_count;

ap_child *child_new(void) {
  ap_child *child = calloc(1, sizeof *child);
  if (!child) return NULL;
  child->pidfd = child->exec_fd = child->output[0] = child->output[1] = -1;
  child->token = token_new(child);
  if (child->token) return child;
  free(child);
  return NULL;
}

void child_free(ap_child *child) {
  token_free(child->token);
  if (child->exec_fd >= 0) close(child->exec_fd);
  process_close(child);
  plan_free(child->plan);
  free(child);
}

void child_link(ap_child **list, ap_child *child) {
  child->prev = NULL;
  child->next = *list;
  if (*list) (*list)->prev = child;
  *list = child;
}

void child_unlink(ap_child **list, ap_child *child) {
  if (child->prev)
    child->prev->next = child->next;
  else
    *list = child->next;
  if (child->next) child->next->prev = child->prev;
}

/* Of a child without a pipe for it. */
static ssize_t report_in_memory(const ap_plan *plan, int32_t *report) {
  if (plan->in_use) {
    errno = EAGAIN;
    return -1;
  }
  *report = plan->report;
  return *report ? (ssize_t)sizeof *report : 0;
}

static int exec_result(ap_child *child) {
  int32_t report;
  ssize_t n = child->exec_fd < 0 ? report_in_memory(child->plan, &report)
                                 : read(child->exec_fd, &report, sizeof report);
  int error = n < 0 ? errno : EIO;
  if (n < 0 && (error == EAGAIN || error == EINTR)) {
    /* A sibling between its fork and its exec may have a copy of the writing end; what
     * a child that has ended had to say is there, though. */
    ap_completion out;
    if (!child->lazy || error == EINTR || process_peek(child, &out) == 0)
      return ADVANCE_NOTHING;
    n = 0;
  }
  unwatch_exec(child);
  if (n != 0 && n != (ssize_t)sizeof report) {
    /* No pipe reads like that: somebody has closed our descriptor, and the number is
     * theirs now. The child may not have come to its exec and still need the plan. */
    child->exec_fd = -1;
    child->error = error;
    child->step = AP_STEP_SETUP;
    child->state = CHILD_FAILING;
    process_signal(child, SIGKILL);
    return ADVANCE_FAILED;
  }
  if (child->exec_fd >= 0) close(child->exec_fd);
  child->exec_fd = -1;
  if (n) {
    /* It still runs on the plan's memory, on its way to _exit. */
    child->error = report & 0xffff;
    child->step = report >> 16;
    child->state = CHILD_FAILING;
    return ADVANCE_FAILED;
  }
  /* End of file: the kernel closed the writing end at exec, or at the death of
   * a child killed before; in both it leaves the memory first (begin_new_exec
   * and do_exit in the kernel's fs/exec.c and kernel/exit.c). */
  plan_free(child->plan);
  child->plan = NULL;
  child->rss_floor = own_peak_rss();
  child->state = CHILD_RUNNING;
  return ADVANCE_STARTED;
}

/* For a child that cannot be waited for, ECHILD: somebody else's wait took it, or
 * SIGCHLD is ignored. True when *status is final, -1 if nobody can tell it. */
static bool taken_status(ap_child *child, int *status) {
  return process_taken(child, status) != 0 || child->tries++ >= 20;
}

static int exit_result(ap_child *child, ap_completion *out) {
  memset(out, 0, sizeof *out);
  out->token = child->token;
  out->kind = child->state == CHILD_FAILING ? AP_FAILED : AP_EXITED;
  out->error = child->error;
  out->step = child->step;
  out->status = -1;
  out->max_rss = -1;

  /* One that was never a program of the user's is not worth it. */
  bool held = child->held && child->state == CHILD_RUNNING;
  int result = held ? process_end(child, out) : process_reap(child, out);
  if (result == 1) {
    if (out->max_rss <= child->rss_floor) out->max_rss = -1;
    return held ? ADVANCE_HELD : ADVANCE_ENDED;
  }
  /* Nothing to reap though an exit was announced: a debugger has the child first
   * (ptrace(2): the tracer's wait comes before the parent's), or the kernel was
   * early (port_kqueue.c). */
  if (result == 0 || result == -EINTR) return ADVANCE_LATER;
  return taken_status(child, &out->status) ? ADVANCE_ENDED : ADVANCE_LATER;
}

bool child_settle(ap_child *child) {
  return child->state != CHILD_STARTING || exec_result(child) != ADVANCE_NOTHING;
}

int child_advance(ap_child *child, ap_completion *out) {
  if (child->state == CHILD_STARTING) {
    int result = exec_result(child);
    /* What was told of a lazy one is its exit. */
    if (!child->lazy) return result;
    if (result == ADVANCE_NOTHING) return ADVANCE_LATER;
  }
  return exit_result(child, out);
}

int ap_hold(int64_t token) {
  pthread_mutex_lock(&ap_lock);
  ap_child *child = child_find(token);
  /* An orphan has nobody who would be told, and end the hold. */
  int result = child && child->port ? 0 : -ESRCH;
  if (result == 0) child->held = true;
  pthread_mutex_unlock(&ap_lock);
  return result;
}

int ap_signal_group(int64_t token, int signal, int by) {
  pthread_mutex_lock(&ap_lock);
  ap_child *child = child_find(token);
  int result = -ESRCH;
  if (!child) goto finish;
  result = by == AP_BY_NUMBER ? -ENOTSUP : process_signal_group(child, signal);
  if (result == -ENOTSUP && by != AP_BY_PIDFD) {
    result = -ESRCH;
    if (process_has_number(child)) result = kill(-child->pid, signal) < 0 ? -errno : 0;
  }
  /* It has not made its group yet. */
  if (result == -ESRCH && !child->told) result = process_signal(child, signal);

finish:
  pthread_mutex_unlock(&ap_lock);
  return result;
}

void child_keep_output(ap_child *child) {
  if (!child->collects) return;
  child->collects = false;
  for (int i = 0; i < OUTPUT_COUNT; i++)
    if (child->output[i] >= 0) fcntl(child->output[i], F_SETFL, O_NONBLOCK);
}

void orphan_adopt(ap_child *child) {
  child->port = NULL;
  child_keep_output(child);
  child_link(&orphans, child);
  orphan_count++;
}

void orphan_release(ap_child *child) {
  child_unlink(&orphans, child);
  orphan_count--;
}

/* Moves an orphan on. True when it has ended, and was freed. */
static bool orphan_ended(ap_child *child, ap_completion *out) {
  if (!child_settle(child)) return false;
  if (child_advance(child, out) != ADVANCE_ENDED) return false;
  orphan_release(child);
  child_free(child);
  return true;
}

int ap_orphan_count(void) {
  pthread_mutex_lock(&ap_lock);
  int count = orphan_count;
  pthread_mutex_unlock(&ap_lock);
  return count;
}

int ap_count_children(void) {
  int count = 0;
  pthread_mutex_lock(&ap_lock);
  for (uint32_t i = 1; i <= token_slots(); i++)
    if (child_in_slot(i)) count++;
  pthread_mutex_unlock(&ap_lock);
  return count;
}

int ap_reap_orphans(ap_completion *completions, int n) {
  ap_child *last = NULL;
  int count = 0, looks = n;
  pthread_mutex_lock(&ap_lock);
  for (ap_child *child = orphans, *next; child && looks > 0; child = next, looks--) {
    bool tell = !child->abandoned;
    next = child->next;
    if (!orphan_ended(child, &completions[count]))
      last = child;
    else if (tell)
      count++;
  }
  /* Those that were looked at go to the back, so that looking at a few of them at each
   * spawn reaches all of them in turn. */
  if (last && last->next) {
    ap_child *head = orphans, *rest = last->next, *tail = rest;
    while (tail->next) tail = tail->next;
    last->next = NULL;
    rest->prev = NULL;
    tail->next = head;
    head->prev = tail;
    orphans = rest;
  }
  pthread_mutex_unlock(&ap_lock);
  return count;
}

int ap_signal(int64_t token, int signal) {
  pthread_mutex_lock(&ap_lock);
  ap_child *child = child_find(token);
  int result = -ESRCH;
  if (child) result = process_signal(child, signal);
  pthread_mutex_unlock(&ap_lock);
  return result;
}

int ap_look(int64_t token) {
  pthread_mutex_lock(&ap_lock);
  ap_child *child = child_find(token);
  int result = -ESRCH;
  if (child) result = child_settle(child) && child->state == CHILD_RUNNING;
  pthread_mutex_unlock(&ap_lock);
  return result;
}

int ap_keep_output(int64_t token) {
  pthread_mutex_lock(&ap_lock);
  ap_child *child = child_find(token);
  if (child) child_keep_output(child);
  pthread_mutex_unlock(&ap_lock);
  return child ? 0 : -ESRCH;
}

int ap_abandon(int64_t token) {
  pthread_mutex_lock(&ap_lock);
  ap_child *child = child_find(token);
  int result = -ESRCH;
  if (child && child->port && port_is_foreign(child->port)) {
    result = -ECHILD;
  } else if (child) {
    child->abandoned = true;
    child->held = false;
    child_keep_output(child);
    result = process_signal(child, SIGKILL);
    if (child->told) look_later(child->port, child, SOON);
  }
  pthread_mutex_unlock(&ap_lock);
  return result;
}

int ap_poll(int64_t token, ap_completion *out) {
  pthread_mutex_lock(&ap_lock);
  ap_child *child = child_find(token);
  int result = -ESRCH;
  if (child) result = child->port ? 0 : orphan_ended(child, out);
  pthread_mutex_unlock(&ap_lock);
  return result;
}

int ap_peek(int64_t token, ap_completion *out) {
  pthread_mutex_lock(&ap_lock);
  ap_child *child = child_find(token);
  int result = child ? 0 : -ESRCH;
  if (child && child->lazy) child_settle(child);
  if (child && child->state == CHILD_RUNNING) {
    out->status = -1;
    result = process_peek(child, out);
    if (result == -ECHILD) result = taken_status(child, &out->status);
    if (result < 0) result = 0;
  }
  pthread_mutex_unlock(&ap_lock);
  return result;
}

void children_forget(void) {
  for (uint32_t i = 1; i <= token_slots(); i++) {
    ap_child *child = child_in_slot(i);
    if (child) child_free(child);
  }
  orphans = NULL;
  orphan_count = 0;
}
