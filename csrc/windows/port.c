/* The port: an I/O completion port to which the ends of children, the threads that
 * create them, jobs, and all operations on pipes report. One thread sits in
 * ap_port_wait; it deals with the packets and collects the news for the loop's
 * thread, which takes them by ap_port_next. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

enum {
  BATCH = 64,
  LOOK_MILLISECONDS = 10 /* at children whose exit nothing will announce */
};

int ap_port_open(ap_port **result) {
  ap_port *port = calloc(1, sizeof *port);
  if (!port) return -ERROR_NOT_ENOUGH_MEMORY;
  port->iocp = CreateIoCompletionPort(INVALID_HANDLE_VALUE, NULL, 0, 1);
  if (!port->iocp) {
    int error = failure();
    free(port);
    return error;
  }
  port->child_news_end = &port->child_news;
  port->pipe_news_end = &port->pipe_news;
  *result = port;
  return 0;
}

/* A token in the three fields of a packet, two of which have 32 bits on 32-bit
 * Windows. */
void port_post(HANDLE iocp, ULONG_PTR key, int64_t token) {
  PostQueuedCompletionStatus(iocp, (DWORD)(token >> 32), key,
                             (LPOVERLAPPED)(ULONG_PTR)(uint32_t)token);
}

static int64_t posted_token(const OVERLAPPED_ENTRY *entry) {
  return ((int64_t)entry->dwNumberOfBytesTransferred << 32) |
         (uint32_t)(ULONG_PTR)entry->lpOverlapped;
}

/* -- exits */

/* In a thread of the system; UnregisterWaitEx waits for its end. */
static void CALLBACK child_ended(PVOID context, BOOLEAN timed_out) {
  ap_child *child = context;
  (void)timed_out;
  port_post(child->iocp, KEY_EXITED, child->token);
}

static void stop_watching(ap_child *child) {
  HANDLE wait = child->wait;
  child->wait = NULL;
  if (wait) UnregisterWaitEx(wait, INVALID_HANDLE_VALUE);
}

static void exited(ap_port *port, ap_child *child) {
  stop_watching(child);
  lock();
  child_look(child);
  /* From here on its number may be given to another. */
  CloseHandle(child->process);
  child->process = NULL;
  if (child->abandoned && !child->in_news) {
    child_unlink(child);
    child_free(child);
  } else {
    tell_child(port, child);
  }
  unlock();
}

/* CreateProcessW has returned. */
static void created(ap_port *port, ap_child *child) {
  lock();
  if (child->state == CHILD_FAILED) {
    if (child->abandoned) {
      child_unlink(child);
      child_free(child);
    } else {
      tell_child(port, child);
    }
    unlock();
    return;
  }
  tell_child(port, child);
  unlock();
  child->iocp = port->iocp;
  if (!RegisterWaitForSingleObject(&child->wait, child->process, child_ended, child,
                                   INFINITE,
                                   WT_EXECUTEINWAITTHREAD | WT_EXECUTEONLYONCE)) {
    child->wait = NULL;
    child->unwatched = true;
    port->unwatched++;
  }
}

/* Looks at the children that could not be watched. */
static void look(ap_port *port) {
  for (;;) {
    lock();
    ap_child *child = port->children;
    while (child && !(child->unwatched &&
                      WaitForSingleObject(child->process, 0) == WAIT_OBJECT_0))
      child = child->next;
    if (child) {
      child->unwatched = false;
      port->unwatched--;
    }
    unlock();
    if (!child) return;
    exited(port, child);
  }
}

/* -- the waiting thread */

static void handle(ap_port *port, const OVERLAPPED_ENTRY *entry) {
  ULONG_PTR key = entry->lpCompletionKey;
  if (key == KEY_PIPE) {
    lock();
    pipe_completed((ap_operation *)entry->lpOverlapped);
    unlock();
    return;
  }
  if (key == KEY_WAKE) return;
  if (is_job_key(key)) {
    lock();
    job_message(port, key, entry->dwNumberOfBytesTransferred);
    unlock();
    return;
  }
  lock();
  ap_child *child = child_find(posted_token(entry));
  bool ours = child && child->port == port;
  unlock();
  if (!ours) return;
  if (key == KEY_STARTED)
    created(port, child);
  else
    exited(port, child);
}

/* Cancels what is pending and frees the port. Waits only for packets that are on their
 * way. */
static void finish(ap_port *port) {
  lock();
  while (port->children) {
    ap_child *child = port->children;
    if (child->wait) {
      unlock();
      stop_watching(child);
      lock();
    }
    child_unlink(child);
    child->in_news = false;
    if (child->abandoned && child->state != CHILD_CREATING) child_free(child);
  }
  jobs_detach(port);
  pipes_detach(port);
  while (port->pending) {
    OVERLAPPED_ENTRY entries[BATCH];
    ULONG count = 0;
    unlock();
    if (!GetQueuedCompletionStatusEx(port->iocp, entries, BATCH, &count, INFINITE, FALSE))
      count = 0;
    lock();
    for (ULONG i = 0; i < count; i++)
      if (entries[i].lpCompletionKey == KEY_PIPE)
        pipe_completed((ap_operation *)entries[i].lpOverlapped);
  }
  unlock();
  CloseHandle(port->iocp);
  free(port);
}

int ap_port_wait(ap_port *port, uint32_t milliseconds) {
  bool over = false;
  for (;;) {
    OVERLAPPED_ENTRY entries[BATCH];
    ULONG count = 0;
    lock();
    bool closing = port->closing;
    bool news = !closing && has_news(port) && !port->notified;
    if (news) port->notified = true;
    unlock();
    if (closing) {
      finish(port);
      return AP_CLOSED;
    }
    if (news) return AP_NEWS;
    if (over) return AP_NOTHING;

    DWORD most = milliseconds;
    if (port->unwatched && most > LOOK_MILLISECONDS) most = LOOK_MILLISECONDS;
    if (!GetQueuedCompletionStatusEx(port->iocp, entries, BATCH, &count, most, FALSE)) {
      if (GetLastError() != WAIT_TIMEOUT) return failure();
      over = most == milliseconds;
      count = 0; /* Wine says 1 here */
    }
    for (ULONG i = 0; i < count; i++) {
      over |= entries[i].lpCompletionKey == KEY_WAKE;
      handle(port, &entries[i]);
    }
    if (port->unwatched) look(port);
  }
}

int ap_port_wake(ap_port *port) {
  port_post(port->iocp, KEY_WAKE, 0);
  return 0;
}

/* -- the loop's thread */

static int next_of_child(ap_port *port, ap_child *child, ap_completion *out) {
  memset(out, 0, sizeof *out);
  out->token = child->token;
  if (child->abandoned) {
    if (child->process) return 0; /* the waiting thread will see to it */
  } else if (child->state == CHILD_FAILED) {
    out->kind = AP_FAILED;
    out->result = -(int32_t)child->error;
  } else if (!child->started) {
    child->started = true;
    out->kind = AP_STARTED;
    out->pid = child->pid;
    out->result = (int32_t)child->jobs_left_out;
    /* It may have ended by now. */
    if (!child->process) tell_child(port, child);
    return 1;
  } else if (!child->process) {
    *out = child->end;
  } else {
    return 0;
  }
  bool told = !child->abandoned;
  child_unlink(child);
  child_free(child);
  return told;
}

int ap_port_next(ap_port *port, ap_completion *completions, int n) {
  int count = 0;
  lock();
  while (count < n && port->child_news) {
    ap_child *child = next_child_news(port);
    count += next_of_child(port, child, &completions[count]);
  }
  while (count < n && port->pipe_news) {
    ap_pipe *pipe = next_pipe_news(port);
    count += pipe_next(pipe, &completions[count]);
  }
  while (count < n && port->job_news) job_next(port, &completions[count++]);
  port->notified = has_news(port);
  unlock();
  return count;
}

int ap_port_live(ap_port *port) {
  lock();
  int live = port->live;
  unlock();
  return live;
}

int ap_port_close(ap_port *port) {
  lock();
  port->closing = true;
  port_post(port->iocp, KEY_WAKE, 0);
  unlock();
  return 0;
}
