/* All children of this process, and what anybody can do to one of them at any time,
 * whether its port is open or not. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

#define PSAPI_VERSION 2 /* its functions in kernel32 */
#include <psapi.h>

SRWLOCK ap_lock = SRWLOCK_INIT;

ap_child *child_new(void) {
  ap_child *child = calloc(1, sizeof *child);
  if (!child) return NULL;
  child->token = token_new(child);
  if (child->token) return child;
  free(child);
  return NULL;
}

void child_free(ap_child *child) {
  token_free(child->token);
  if (child->process) CloseHandle(child->process);
  if (child->plan) plan_free(child->plan);
  free(child);
}

void child_link(ap_port *port, ap_child *child) {
  child->port = port;
  child->prev = NULL;
  child->next = port->children;
  if (child->next) child->next->prev = child;
  port->children = child;
  port->live++;
}

void child_unlink(ap_child *child) {
  ap_port *port = child->port;
  if (child->prev)
    child->prev->next = child->next;
  else
    port->children = child->next;
  if (child->next) child->next->prev = child->prev;
  child->port = NULL;
  port->live--;
}

static int64_t microseconds(const FILETIME *time) {
  /* FILETIME counts in 100 ns. */
  return (((int64_t)time->dwHighDateTime << 32) | time->dwLowDateTime) / 10;
}

bool child_look(ap_child *child) {
  if (child->state == CHILD_ENDED) return true;
  /* Not by GetExitCodeProcess alone: STILL_ACTIVE is an exit code like others. */
  if (child->state != CHILD_RUNNING ||
      WaitForSingleObject(child->process, 0) != WAIT_OBJECT_0)
    return false;
  ap_completion *end = &child->end;
  FILETIME created, exited, kernel, user;
  PROCESS_MEMORY_COUNTERS memory;
  DWORD code = UINT32_MAX; /* should the call fail: not 0, which means success */
  end->token = child->token;
  end->kind = AP_EXITED;
  end->pid = child->pid;
  GetExitCodeProcess(child->process, &code);
  end->exit_code = code;
  if (GetProcessTimes(child->process, &created, &exited, &kernel, &user)) {
    end->has_usage = 1;
    end->user_time = microseconds(&user);
    end->system_time = microseconds(&kernel);
  }
  end->max_rss = -1;
  if (K32GetProcessMemoryInfo(child->process, &memory, sizeof memory) &&
      memory.PeakWorkingSetSize)
    end->max_rss = (int64_t)(memory.PeakWorkingSetSize / 1024);
  child->state = CHILD_ENDED;
  return true;
}

/* Kills it if it runs, or is about to. */
static int terminate(ap_child *child) {
  DWORD code;
  if (child->state == CHILD_CREATING) child->doomed = true;
  if (child->state != CHILD_RUNNING || TerminateProcess(child->process, 1)) return 0;
  int error = failure();
  /* Access is denied when it has ended, or is about to, with a code already. */
  if (GetExitCodeProcess(child->process, &code) && code != STILL_ACTIVE) return 0;
  return WaitForSingleObject(child->process, 0) == WAIT_OBJECT_0 ? 0 : error;
}

int ap_terminate(int64_t token) {
  lock();
  ap_child *child = child_find(token);
  int result = child ? terminate(child) : -ERROR_INVALID_PARAMETER;
  unlock();
  return result;
}

int ap_console_event(int64_t token, uint32_t event) {
  int result = 0;
  lock();
  ap_child *child = child_find(token);
  if (!child)
    result = -ERROR_INVALID_PARAMETER;
  else if (child->state == CHILD_RUNNING &&
           !GenerateConsoleCtrlEvent(event, child->pid))
    result = failure();
  unlock();
  return result;
}

/* Nobody knows the token any more. With the lock held. */
static void let_go(ap_child *child) {
  child->abandoned = true;
  /* A child that is being created belongs to the thread that does it, one of an open
   * port to that. */
  if (child->port && child->state == CHILD_CREATING) child_unlink(child);
  if (!child->port && child->state != CHILD_CREATING) child_free(child);
}

int ap_abandon(int64_t token) {
  int result = -ERROR_INVALID_PARAMETER;
  lock();
  ap_child *child = child_find(token);
  if (child) {
    result = terminate(child);
    let_go(child);
  }
  unlock();
  return result;
}

/* Whether it is for others than its port to look. */
static bool is_orphan(const ap_child *child) {
  return !child->port || child->port->closing;
}

int ap_poll(int64_t token, ap_completion *out) {
  int result = -ERROR_INVALID_PARAMETER;
  lock();
  ap_child *child = child_find(token);
  if (child && !child->abandoned) {
    result = is_orphan(child) && child_look(child);
    if (result) {
      *out = child->end;
      let_go(child);
    }
  }
  unlock();
  return result;
}

int ap_peek(int64_t token, ap_completion *out) {
  int result = -ERROR_INVALID_PARAMETER;
  lock();
  ap_child *child = child_find(token);
  if (child && !child->abandoned) {
    result = child_look(child);
    if (result) *out = child->end;
  }
  unlock();
  return result;
}
