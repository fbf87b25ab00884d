/* What the files of csrc/windows share among themselves, from the bottom up. A file calls
 * those above it in this list, none below it:
 *
 *   tokens.c
 *   plan.c        what a child is made of
 *   children.c    all children, and what anybody may do to one
 *   news.c        what a port has to tell
 *   pipe.c        pipes
 *   job.c         jobs
 *   port.c        ports, and the thread that waits for their packets
 *   spawn.c       children of our own, on threads of our own
 */
#ifndef AIOPROC_INTERNAL_H
#define AIOPROC_INTERNAL_H

#ifndef _WIN32_WINNT
#define _WIN32_WINNT 0x0A00
#endif
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include <stdbool.h>
#include <stddef.h>

#include "../tokens.h"
#include "aioproc_windows.h"

typedef enum {
  CHILD_CREATING, /* waits for a thread, or is in CreateProcessW */
  CHILD_FAILED,   /* CreateProcessW did not work */
  CHILD_RUNNING,
  CHILD_ENDED
} child_state;

/* A child's description with everything that it needs: one block of memory, and
 * handles that nobody else closes. */
typedef struct ap_plan ap_plan;
struct ap_plan {
  ap_plan *next; /* in spawn.c's queue */
  int64_t token;
  int flags;
  DWORD creation_flags, startup_flags;
  WORD show_window;
  HANDLE std[3]; /* with AP_STD_HANDLES: ours; NULL: there is none */
  HANDLE *handles;
  DWORD handle_count;
  HANDLE *jobs; /* duplicates */
  DWORD job_count;
  DWORD jobs_left_out; /* of the last ones */
  wchar_t *program, *command, *cwd, *environment;
};

/* A child of an open port is freed by that port's two threads only: by the one in
 * ap_port_wait when nobody wants to hear of it, else by the loop's in ap_port_next.
 * Until then the waiting thread may use it without the lock. */
typedef struct ap_child ap_child;
struct ap_child {
  int64_t token;
  child_state state;
  ap_plan *plan;        /* CHILD_CREATING */
  HANDLE process;       /* CHILD_RUNNING */
  HANDLE wait;          /* registered, see port.c */
  HANDLE iocp;          /* where its callback posts to */
  DWORD pid;
  DWORD jobs_left_out;
  DWORD error;     /* CHILD_FAILED */
  bool doomed;     /* to be killed as soon as it is there */
  bool abandoned;  /* nobody wants its completions; dead, or about to be */
  bool started;    /* AP_STARTED has been told */
  bool unwatched;  /* nothing will announce its exit */
  bool in_news;
  ap_completion end; /* CHILD_ENDED: what will be told */
  ap_port *port;     /* NULL: an orphan */
  ap_child *next, *prev; /* among the children of the port */
  ap_child *next_news;
};

/* One overlapped operation. It and the buffer live until its packet has arrived,
 * also after CancelIoEx and after the handle was closed. */
typedef struct {
  OVERLAPPED overlapped; /* first: a packet names it */
  ap_pipe *pipe;
  char *buffer;
  uint32_t allocated;
  uint32_t size;
  bool pending; /* a packet will come */
  bool told;    /* what came of it is among the news */
  int result;
} ap_operation;

struct ap_pipe {
  int64_t key;
  HANDLE handle; /* INVALID_HANDLE_VALUE: closed */
  ap_port *port; /* NULL: it has been closed */
  bool skips;    /* no packet comes for what succeeds at once */
  bool closed;   /* by ap_pipe_close */
  bool in_news;
  ap_operation read, write;
  ap_pipe *next, *prev; /* among the pipes of the port */
  ap_pipe *next_news;
};

typedef struct ap_job ap_job;

struct ap_port {
  HANDLE iocp;
  bool closing;
  bool notified;    /* AP_NEWS was returned, ap_port_next has not been called */
  int live;         /* children, pipes and jobs */
  int pending;      /* operations */
  int unwatched;    /* children; the waiting thread's own */
  ap_child *children;
  ap_pipe *pipes;
  ap_child *child_news, **child_news_end;
  ap_pipe *pipe_news, **pipe_news_end;
  ap_job *job_news;
};

/* One lock for all of it, held for microseconds, never across anything that
 * waits. */
extern SRWLOCK ap_lock;
static inline void lock(void) { AcquireSRWLockExclusive(&ap_lock); }
static inline void unlock(void) { ReleaseSRWLockExclusive(&ap_lock); }

/* What a packet is about, in the lower bits of its key; of a job's the id is in the
 * others. */
enum {
  KEY_PIPE = 1,
  KEY_STARTED = 2,
  KEY_EXITED = 3,
  KEY_WAKE = 4,
  KEY_JOB = 5,
  KEY_BITS = 3
};
static inline bool is_job_key(ULONG_PTR key) {
  return (key & ((1 << KEY_BITS) - 1)) == KEY_JOB;
}

static inline HANDLE to_handle(int64_t number) {
  return (HANDLE)(intptr_t)number;
}

static inline int failure(void) {
  int error = (int)GetLastError();
  return error ? -error : -ERROR_GEN_FAILURE;
}

/* plan.c */

/* 0 or -error. */
int plan_new(const ap_request *request, const char *strings, const int64_t *handles,
             const int64_t *jobs, ap_plan **result);
void plan_free(ap_plan *plan);
/* The handles std[], where they are ours: the child has its own. */
void plan_close_std(ap_plan *plan);
/* The child is to inherit this one. */
void plan_add_handle(ap_plan *plan, HANDLE handle);

/* children.c: all children of this process. With the lock held. */

ap_child *child_new(void);
void child_free(ap_child *child); /* closes and frees all it holds */
void child_link(ap_port *port, ap_child *child);
void child_unlink(ap_child *child);
/* Notes how it ended. True where it had. */
bool child_look(ap_child *child);

/* news.c: the news of a port, with the lock held. */

void tell_child(ap_port *port, ap_child *child);
void tell_pipe(ap_port *port, ap_pipe *pipe);
bool has_news(const ap_port *port);
/* The first, which is among the news no more. There has to be one. */
ap_child *next_child_news(ap_port *port);
ap_pipe *next_pipe_news(ap_port *port);

/* pipe.c: with the lock held. */

/* An operation's packet has come. */
void pipe_completed(ap_operation *operation);
/* Fills in what is to be told of a pipe. 0 or 1. */
int pipe_next(ap_pipe *pipe, ap_completion *out);
/* Cancels and detaches all pipes of a port, as far as their packets have come;
 * the rest by pipe_completed. */
void pipes_detach(ap_port *port);

/* job.c: with the lock held. */

/* What a job's packet says. */
void job_message(ap_port *port, ULONG_PTR key, DWORD message);
/* Fills in the next of a port's news of jobs. */
void job_next(ap_port *port, ap_completion *out);
/* The port is about to go. */
void jobs_detach(ap_port *port);

/* port.c */

/* Posts a packet that names a child. */
void port_post(HANDLE iocp, ULONG_PTR key, int64_t token);

#endif
