/* What the files of csrc/posix share among themselves, from the bottom up. A file calls
 * those above it in this list, none below it:
 *
 *   tokens.c, usage.c, limits.c, plan.c, stdio.c
 *   port_epoll.c or port_kqueue.c    the poller: what a port waits for
 *   looks.c                          children to be looked at without an event
 *   output.c                         what a child has written by its end
 *   pidfd.c or pid.c                 one child, as the kernel knows it
 *   children.c                       all children, from their exec to their end
 *   child_code.c, spawn_thread.c, spawn_clone.c   making a child: on Linux
 *   spawn_posix.c                    making a child: everywhere
 *   port.c                           ports and what they tell
 *   spawn.c                          children of our own, on a port
 *   tree_procfs.c or tree_kinfo.c    all processes of the system
 *   tree.c                           what a child has started, among them
 *
 * Where it says "or", a platform has one of them. */
#ifndef AIOPROC_INTERNAL_H
#define AIOPROC_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/resource.h>
#include <sys/types.h>
#include <unistd.h>

#include "../tokens.h"
#include "aioproc_posix.h"

/* Linux has clone(), process descriptors and epoll; elsewhere there are posix_spawn(),
 * process numbers and a kqueue. The tests build the latter on Linux, with
 * tests/shim. */
#if defined(__linux__) && !defined(AIOPROC_KQUEUE)
#define AP_LINUX 1
#else
#define AP_LINUX 0
#endif

typedef enum {
  CHILD_STARTING, /* the exec's result is not known yet */
  CHILD_FAILING,  /* the exec failed; to be reaped, then AP_FAILED */
  CHILD_RUNNING
} child_state;

typedef struct ap_child ap_child;
struct ap_child {
  int64_t token;
  child_state state;
  pid_t pid;
  int pidfd;        /* Linux; -1: another wait took the child before we could open it */
  int exec_fd;      /* CHILD_STARTING: reading end of the exec-result pipe */
  struct ap_plan *plan; /* what the child runs on and reads until its exec */
  bool lazy;        /* its exec's result is not watched: its exit tells that, too */
  bool abandoned;   /* nobody wants its completions */
  bool collects;    /* what it has written is read at its end, from `output` */
  int output[2];    /* our ends of its stdout and stderr; -1: none. Not ours to close but there */
  bool held;        /* is not to be reaped */
  bool told;        /* has ended while it was held, and that was told of */
  int error, step;  /* CHILD_FAILING */
  int tries;        /* looks at a status that has not appeared yet */
  int looks;        /* for a child whose announced exit had no status yet */
  int64_t rss_floor; /* ru_maxrss up to here is the parent's */
  ap_port *port;    /* NULL: an orphan */
  ap_child *next, *prev;             /* among the children of the port */
  ap_child *retry_next;              /* among those to be looked at again */
  bool retrying;
  bool watched;     /* the poller will name it */
#if !AP_LINUX
  bool announced;     /* it has been, and with it came */
  int status;         /* the status; -1: none */
  bool ended;         /* reaped before the port told of it, with */
  int end_status;
  struct rusage end_usage;
#endif
};

struct ap_port {
  int fd;    /* the epoll or kqueue descriptor */
  int timer; /* port_epoll.c */
  pid_t owner;
  int live;
  ap_child *children;
  ap_child *retry; /* those that are owed a look */
  char *memory;    /* for what children have written: OUTPUT_MEMORY bytes */
  size_t memory_used;
  ap_port *next, *prev;
};

/* After a fork the child shares the parent's epoll instance, so that a DEL there
 * would take away the parent's registration. ap_after_fork_in_child makes this
 * true by forgetting all ports; a fork that ran no hooks is noticed here. */
static inline bool port_is_foreign(const ap_port *port) {
  return port->owner != getpid();
}

/* One lock for everything below, held for microseconds and never across
 * anything that blocks. fork() takes it too (ap_port_open). */
extern pthread_mutex_t ap_lock;

/* usage.c: what struct rusage tells. */

/* ru_maxrss of this process. */
int64_t own_peak_rss(void);
/* Fills in the usage of a completion. */
void note_usage(ap_completion *out, const struct rusage *usage);

/* limits.c: what a child may use and do, made ready to be set by system calls alone. */
enum { CPU_WORDS = AP_CPUS_MOST / 8 / sizeof(unsigned long) };

typedef struct {
  ap_limits wanted; /* `cpus` is not used */
  int nice_step, cpus_step; /* what a failure is told as */
  unsigned long cpus[CPU_WORDS];
  unsigned long have[CPU_WORDS]; /* room for the child */
  /* No text in child code. */
  const char *oom_file, *autogroup_file; /* the latter NULL: has none of its own */
  char oom_text[12], nice_text[12];
} plan_limits;

/* request->limits may be NULL. */
void limits_fill(plan_limits *limits, const ap_request *request);

/* plan.c */

/* A child's description with everything in one place, made by plan_new. */
typedef struct ap_plan {
  void *memory; /* of all of it, and of the child's stack */
  size_t memory_size;
  const char *const *programs;
  char *const *argv;
  char *const *envp;
  const char *cwd;
  int fds[3];
  const int32_t *keep; /* what stays open of 3 and above, sorted */
  int keep_count;
  const int32_t *pass_fds;
  int pass_count;
  const uint32_t *groups;
  int group_count;
  int flags;
  int process_group;
  unsigned file_mode_mask;
  uint32_t gid, uid;
  int result_fd; /* where the exec's failure is written; -1: into `report` */
  int32_t report;
  /* Not 0 until the child has left this memory: the kernel clears it at the exec and at the
   * exit (CLONE_CHILD_CLEARTID, clone(2)). For those without a result_fd. */
  volatile int32_t in_use;
  char *own_text; /* ap_text_new's */
  plan_limits *limits; /* NULL: none */
  pid_t parent;        /* this process, if the child is to end with it; 0: it is not */
  bool by_thread;      /* it is to be made by spawn_thread */
  const char *open_files; /* the directory that lists them; no text in child code */
  uint64_t signal_mask; /* the caller's, to be restored before exec */
} ap_plan;

/* One block of memory: stack_size bytes, then the plan and all it points to; but
 * request->text stays where it is, and becomes the plan's.
 * NULL: no memory. Without ap_lock, which it takes. */
ap_plan *plan_new(size_t stack_size, ap_request *request,
                  const char *strings, const int32_t *pass_fds,
                  const uint32_t *groups);
/* With ap_lock, once no child runs in it any more; NULL is none. The next plan may get the
 * block. */
void plan_free(ap_plan *plan);

/* Notes the writing end of the exec-result pipe, -1 where there is none, and with it what
 * the child leaves open. */
void plan_keep(ap_plan *plan, int result_fd);

/* stdio.c: the pipes of a child to be. */

/* Opens what the request asks for; fds are all descriptors then, or AP_INHERIT. 0, or
 * -errno with none open. */
int stdio_open(ap_request *request, int *theirs);
/* There is a child, or none: closes theirs, and ours if there is none. */
void stdio_close(ap_request *request, int *theirs, bool made);
enum { STDIO_COUNT = 3 };

/* port_epoll.c or port_kqueue.c: the poller, which is what a port waits for. With
 * ap_lock held, but for poller_open. */

/* Opens the port's descriptors; 0, or -errno with none open. */
int poller_open(ap_port *port);
/* Closes what this process has of them. */
void poller_close(ap_port *port, bool ours);
/* poller_wait will name the child once when its exec's result has come. 0 or -errno. */
int watch_exec(ap_port *port, ap_child *child);
void unwatch_exec(ap_child *child);
/* poller_wait will name the child once when it has ended. 0; -ESRCH: it has
 * ended; -errno. */
int watch_exit(ap_port *port, ap_child *child);
/* What it was last watched for, which was announced too early. */
int watch_again(ap_port *port, ap_child *child);
void unwatch(ap_port *port, ap_child *child);
/* poller_wait will name TIMER, once, after that time. */
void arm_timer(ap_port *port, long nanoseconds);
/* What is ready: up to n tokens, at most POLLER_BATCH. Does not block. */
int poller_wait(ap_port *port, int64_t *tokens, int n);
enum { TIMER = 0 /* no token is 0 */, POLLER_BATCH = 64 };

/* looks.c: looks that are owed to children, by the port's timer. With ap_lock held. */

enum { SOON = 1 }; /* nanoseconds */
/* One look is owed to this child, though no event will ask for it. */
void look_later(ap_port *port, ap_child *child, long nanoseconds);
/* Nanoseconds until the next look at a child whose exit was announced too early. */
long patience(ap_child *child);
/* None is owed any more. */
void look_cancel(ap_port *port, ap_child *child);
/* Those that are owed a look, linked by retry_next. The port has none then. */
ap_child *looks_take(ap_port *port);
/* The rest of that list, for a look soon. */
void looks_put_back(ap_port *port, ap_child *list);
/* The child has been through its exec: the port is to hear of its exit. */
void expect_exit(ap_port *port, ap_child *child);

/* output.c: what a child has written by its end. With ap_lock held. */

enum { OUTPUT_COUNT = 2, OUTPUT_MEMORY = 1 << 17 };
/* Whether nobody can write any more: no process that the child has left behind. */
bool output_has_ended(const ap_child *child);
/* Then: reads it into the port's memory, and closes what has been read to its end. */
void output_read(ap_port *port, ap_child *child, ap_completion *out);

/* pidfd.c on Linux, pid.c elsewhere: one child. With ap_lock held, so that a signal
 * and the reaping exclude each other. */

/* Can exits be noticed here? 0, or -errno with *what naming the call that is not to be
 * had. Of kqueue's files it is in the poller, which knows what that takes. */
int process_probe(const char **what);
/* For a child of ours that has just been made. -ESRCH: another wait has taken it
 * already; -errno. */
int process_open(ap_child *child);
/* Frees what process_open took. */
void process_close(ap_child *child);
/* 1: reaped; the status and usage of *out are set. 0: it lives, or a debugger has it
 * first. -ECHILD: another wait has taken it. */
int process_reap(ap_child *child, ap_completion *out);
/* The same, but leaves the child for process_reap. */
int process_peek(ap_child *child, ap_completion *out);
/* After -ECHILD. 1: the status all the same. 0: it may still appear. -errno: nobody
 * knows it. */
int process_taken(ap_child *child, int *status);
/* 0 or -errno; also 0 for a child that has ended and was not told of yet. */
int process_signal(ap_child *child, int signal);
/* As process_reap, but the child stays a zombie; where the system does not say what it has
 * used before it is reaped, that is left out. For one that is held. */
int process_end(ap_child *child, ap_completion *out);
/* Whether the number is the child's yet: no other wait has taken it. */
bool process_has_number(const ap_child *child);
/* The group that has the child's number, be it the child's own or gone: see
 * ap_signal_group. -ENOTSUP: the kernel cannot. */
int process_signal_group(ap_child *child, int signal);

/* pidfd.c: system calls that C libraries do not all wrap. */
int sys_pidfd_open(pid_t pid);
int sys_pidfd_signal(int pidfd, int signal);
int sys_waitid_pidfd(int pidfd, int options, ap_completion *out);
int sys_pidfd_exit_status(int pidfd, int *status);

/* children.c: all children of this process. */
ap_child *child_new(void);
void child_free(ap_child *child); /* closes and frees all it holds */
/* What it writes is read by others from now on, if it was not yet. */
void child_keep_output(ap_child *child);
void child_link(ap_child **list, ap_child *child);
void child_unlink(ap_child **list, ap_child *child);

/* Result of child_advance. */
enum {
  ADVANCE_NOTHING = 0, /* not ready */
  ADVANCE_STARTED = 1, /* now CHILD_RUNNING */
  ADVANCE_FAILED = 2,  /* now CHILD_FAILING */
  ADVANCE_ENDED = 3,   /* reaped; out is filled in */
  ADVANCE_LATER = 4,   /* an exit was announced, its status is not there yet */
  ADVANCE_HELD = 5     /* it has ended, out is filled in, and is not to be reaped */
};

/* Notes the exec's result if it is known by now; true when the child is not
 * CHILD_STARTING. */
bool child_settle(ap_child *child);

/* Moves a child on as far as it is, by one step; a lazy one by two. Does not block. When the exec's result
 * is known, unregisters and closes exec_fd and frees the plan. A child whose result
 * cannot be known any more is killed, and fails. */
int child_advance(ap_child *child, ap_completion *out);

void orphan_adopt(ap_child *child);
void orphan_release(ap_child *child);
/* After a fork, without the lock: frees all of them. */
void children_forget(void);

/* spawn_thread.c, on Linux: see ap_spawn_thread. With ap_lock held, so that no fork comes in
 * between. */
/* Its number, or -errno. */
int spawn_thread_start(void);
/* Has it call that, and waits. To be called after spawn_thread_start. */
void spawn_thread_run(void (*function)(void *), void *argument);
/* In a forked process: it is not there. */
void spawn_thread_forget(void);
/* Has a child of that thread get what it would have of the calling one. 0 or -errno. */
int spawn_thread_imitate(plan_limits *limits);

/* spawn_clone.c, on Linux: our own child, whose code is in child_code.c.
 *
 * clone_pipe makes the exec-result pipe, whose reading end the poller then watches, so
 * that nothing can fail once there is a child; a lazy child that shares our memory
 * (clone_shares) needs none. clone_start makes the child, by AP_CLONE
 * or AP_COPY. Both with ap_lock held: no other child may be made in between and carry
 * our writing end along. 0 or -errno; clone_start always closes the writing end. */
bool clone_shares(const ap_plan *plan, int strategy);
/* To be called first: which thread is to make it, and whether it is to end with that. 0 or
 * -errno. */
int clone_parent(ap_plan *plan);
int clone_pipe(ap_child *child, ap_plan *plan);
int clone_start(ap_child *child, ap_plan *plan, int strategy);
/* As ap_probe. */
int clone_probe(int strategy, const char **what);
size_t clone_stack_size(void);
/* AP_HAS_* bits. */
int linux_features(void);

/* spawn_posix.c. Fills in child->pid and, on Linux, pidfd. 0, or -errno with
 * request->step set. Called without the lock: it waits for the exec. */
int spawn_posix(ap_child *child, ap_request *request, const char *strings,
                const int32_t *pass_fds);
/* AP_HAS_* bits. */
int portable_features(void);

/* port.c: what all ports do. With ap_lock held. */

/* The child is the port's from now on. Returns its token. */
int64_t port_take(ap_port *port, ap_child *child);

/* tree_procfs.c or tree_kinfo.c: all processes of the system. Without a lock: one thread a
 * struct, which is the caller's memory. */

typedef struct {
  pid_t pid, parent, group, session;
  uint64_t start; /* with the number it is what a process is known by */
  bool alive;     /* no zombie */
  bool stopped;   /* by a signal; not by a debugger */
} process_facts;

enum { PROCESSES_SPARE = 2, PROCESSES_BITE = 96 };

typedef struct {
#if AP_LINUX
  int proc;                   /* /proc */
  bool tells_ends;            /* of memory, such as env_end */
  int spare[PROCESSES_SPARE]; /* given up when no other descriptor is to be had; -1: is */
  int file, dir;              /* open just now; -1: none */
  int at, end;
  _Alignas(8) char entries[1024];
  char piece[1 << 15];
#else
  char *list; /* of kinfo structures; and room for an environment */
  size_t at, end;
#endif
} processes;

/* Whether the start of a process says which of two is older. */
extern const bool processes_are_dated;

/* 0; -ENOTSUP: they cannot be seen here; -errno. */
int processes_open(processes *all);
/* Also in a forked process, even if the fork came in the midst of a call below. */
void processes_close(processes *all);
/* 0 or -errno. Then processes_next gives one number after the other; 0: that was all. */
int processes_begin(processes *all);
pid_t processes_next(processes *all);
/* 0; -ESRCH: there is none; -errno. */
int processes_facts(processes *all, pid_t pid, process_facts *facts);
/* Calls with one piece of the environment (NAME=value strings, each with its NUL) after
 * the other. 0; PROCESS_IN_EXEC: it has none just now, as far as that can be told (Linux);
 * -errno. */
enum { PROCESS_IN_EXEC = 1 };
typedef void processes_piece(void *argument, const char *bytes, size_t length);
int processes_environment(processes *all, pid_t pid, processes_piece *take, void *argument);
/* Sends the signals in that set (bit N - 1 is signal N), and SIGCONT if it is stopped and
 * `resume`. 0; -ESRCH: it has ended, or the number is another's; -errno. */
int processes_signal(processes *all, const process_facts *who, uint64_t signals, bool resume);
/* The last number that was given to a process or a thread; 0: not to be had. */
pid_t processes_youngest(processes *all);
/* Whether it is that of a thread of this process. */
bool processes_is_own_thread(processes *all, pid_t number);
/* Whether what our children leave behind becomes ours, if we are not the first process. */
bool processes_we_adopt(void);

#endif
