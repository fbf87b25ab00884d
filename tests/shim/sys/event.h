/* kqueue(2) on Linux, as far as csrc/posix/port_kqueue.c needs it, so that the files of
 * macOS and the BSDs are run somewhere by every change: EVFILT_PROC with NOTE_EXIT by a
 * pidfd, EVFILT_TIMER by a timerfd, both in an epoll descriptor.
 *
 * Like the real thing: ESRCH for a process that has ended already, the exit status in
 * the event, one event per exit, no kqueue in a forked process. It shows that our side is
 * right, not what a kernel does. For one file to include; not for threads without a
 * lock, but for kqueue() itself. */
#ifndef SHIM_SYS_EVENT_H
#define SHIM_SYS_EVENT_H

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define EVFILT_PROC (-5)
#define EVFILT_TIMER (-7)
#define EV_ADD 0x1
#define EV_DELETE 0x2
#define EV_ONESHOT 0x10
#define EV_EOF 0x8000
#define NOTE_EXIT 0x80000000u
#define NOTE_EXITSTATUS 0x04000000u

struct kevent {
  uintptr_t ident;
  int16_t filter;
  uint16_t flags;
  uint32_t fflags;
  intptr_t data;
  void *udata;
};

#define EV_SET(event, a, b, c, d, e, f)                               \
  (*(event) = (struct kevent){.ident = (a), .filter = (b), .flags = (c), \
                              .fflags = (d), .data = (e), .udata = (f)})

/* What is registered, for all kqueues of the process. */
typedef struct shim_note {
  int queue, fd;
  struct kevent event;
  struct shim_note *next;
} shim_note;

/* Those that were opened, so that a forked process loses them. */
typedef struct shim_queue {
  int fd;
  struct shim_queue *next;
} shim_queue;

static shim_note *shim_notes;
static shim_queue *shim_queues;
static pthread_mutex_t shim_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t shim_once = PTHREAD_ONCE_INIT;

static void shim_drop(shim_note *note) {
  shim_note **link = &shim_notes;
  while (*link != note) link = &(*link)->next;
  *link = note->next;
  close(note->fd);
  free(note);
}

static void shim_forked(void) {
  /* Only the numbers: the epoll instances are the parent's. */
  while (shim_notes) shim_drop(shim_notes);
  while (shim_queues) {
    shim_queue *queue = shim_queues;
    shim_queues = queue->next;
    close(queue->fd);
    free(queue);
  }
  pthread_mutex_init(&shim_lock, NULL);
}

static void shim_start(void) { pthread_atfork(NULL, NULL, shim_forked); }

static int kqueue(void) {
  pthread_once(&shim_once, shim_start);
  shim_queue *queue = malloc(sizeof *queue);
  if (!queue) {
    errno = ENOMEM;
    return -1;
  }
  /* CLOEXEC already: no child of fork() and exec is to inherit it. */
  queue->fd = epoll_create1(EPOLL_CLOEXEC);
  if (queue->fd < 0) {
    free(queue);
    return -1;
  }
  pthread_mutex_lock(&shim_lock);
  queue->next = shim_queues;
  shim_queues = queue;
  pthread_mutex_unlock(&shim_lock);
  return queue->fd;
}

/* close() of a kqueue ends what is registered with it. */
static int shim_close(int fd) {
  pthread_mutex_lock(&shim_lock);
  for (shim_queue **link = &shim_queues; *link; link = &(*link)->next) {
    shim_queue *queue = *link;
    if (queue->fd != fd) continue;
    *link = queue->next;
    free(queue);
    break;
  }
  pthread_mutex_unlock(&shim_lock);
  for (shim_note *note = shim_notes, *next; note; note = next) {
    next = note->next;
    if (note->queue == fd) shim_drop(note);
  }
  return close(fd);
}

static int shim_has_ended(pid_t pid, siginfo_t *info) {
  memset(info, 0, sizeof *info);
  return waitid(P_PID, (id_t)pid, info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
         info->si_pid != 0;
}

static int shim_open_limited(const struct kevent *change) {
  siginfo_t info;
  if (change->filter == EVFILT_TIMER)
    return timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
  if (shim_has_ended((pid_t)change->ident, &info)) {
    errno = ESRCH;
    return -1;
  }
  return (int)syscall(SYS_pidfd_open, (pid_t)change->ident, 0);
}

/* A real kqueue needs no descriptors for what is registered: never EMFILE. */
static int shim_open(const struct kevent *change) {
  struct rlimit before, lifted;
  getrlimit(RLIMIT_NOFILE, &before);
  lifted = before;
  lifted.rlim_cur = lifted.rlim_max;
  int fd = shim_open_limited(change);
  if (fd < 0 && errno == EMFILE) {
    setrlimit(RLIMIT_NOFILE, &lifted);
    fd = shim_open_limited(change);
    int error = errno;
    setrlimit(RLIMIT_NOFILE, &before);
    errno = error;
  }
  return fd;
}

static void shim_set_timer(const shim_note *note) {
  struct itimerspec when = {
      .it_value = {.tv_sec = note->event.data / 1000,
                   .tv_nsec = note->event.data % 1000 * 1000000}};
  timerfd_settime(note->fd, 0, &when, NULL);
}

static int shim_change(int queue, const struct kevent *change) {
  shim_note *note = shim_notes;
  while (note && (note->queue != queue || note->event.ident != change->ident ||
                  note->event.filter != change->filter))
    note = note->next;
  if (change->flags & EV_DELETE) {
    if (!note) {
      errno = ENOENT;
      return -1;
    }
    epoll_ctl(queue, EPOLL_CTL_DEL, note->fd, NULL);
    shim_drop(note);
    return 0;
  }
  if (!note) {
    note = calloc(1, sizeof *note);
    if (!note) return -1;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = note};
    note->fd = shim_open(change);
    if (note->fd < 0 || epoll_ctl(queue, EPOLL_CTL_ADD, note->fd, &event) < 0) {
      int error = errno;
      if (note->fd >= 0) close(note->fd);
      free(note);
      errno = error;
      return -1;
    }
    note->queue = queue;
    note->next = shim_notes;
    shim_notes = note;
  }
  note->event = *change;
  if (change->filter == EVFILT_TIMER) shim_set_timer(note);
  return 0;
}

/* The status as wait(2) gives it. Where somebody else was first, Linux tells it since
 * 6.15 (PIDFD_GET_INFO: include/uapi/linux/pidfd.h); else -1. */
static intptr_t shim_status(const shim_note *note) {
  struct {
    uint64_t mask, group;
    uint32_t ids[11];
    int32_t status;
  } kept = {.mask = 1 << 3};
  siginfo_t info;
  if (!shim_has_ended((pid_t)note->event.ident, &info)) {
    for (int i = 0; i < 50; i++) { /* appears a moment after the wait */
      kept.mask = 1 << 3;
      if (ioctl(note->fd, _IOWR(0xFF, 11, kept), &kept) < 0) return -1;
      if (kept.mask & 1 << 3) return kept.status;
      usleep(100);
    }
    return -1;
  }
  switch (info.si_code) {
    case CLD_EXITED: return (info.si_status & 0xff) << 8;
    case CLD_DUMPED: return info.si_status | 0x80;
    default: return info.si_status;
  }
}

static int kevent(int queue, const struct kevent *changes, int change_count,
                  struct kevent *events, int event_count,
                  const struct timespec *timeout) {
  struct epoll_event ready[64];
  (void)timeout; /* never waits */
  for (int i = 0; i < change_count; i++)
    if (shim_change(queue, &changes[i]) < 0) return -1;
  if (event_count <= 0) return 0;
  int count = epoll_wait(queue, ready, event_count < 64 ? event_count : 64, 0);
  for (int i = 0; i < count; i++) {
    shim_note *note = ready[i].data.ptr;
    events[i] = note->event;
    events[i].data = 1;
    if (note->event.filter == EVFILT_PROC) {
      events[i].flags |= EV_EOF;
      events[i].data = shim_status(note);
    }
    epoll_ctl(queue, EPOLL_CTL_DEL, note->fd, NULL);
    shim_drop(note);
  }
  return count;
}

#define close(fd) shim_close(fd)

#endif
