/* aioproc's C layer on POSIX: a port starts children and tells of their exits.
 *
 * This file is read twice: by the C compiler, and, without the lines that begin
 * with '#', by cffi as its cdef (csrc/build_native.py). Keep it plain C.
 *
 * Every function returns a value >= 0, or -errno; none of them calls Python, and
 * none waits for a child. All functions may be called from any thread.
 */
#ifndef AIOPROC_POSIX_H
#define AIOPROC_POSIX_H

#include <stdint.h>

/* How a child is made. */
enum {
  AP_CLONE = 1,    /* Linux: our own child on clone(), which does not wait for exec */
  AP_PORTABLE = 2, /* posix_spawn; waits for exec */
  AP_COPY = 4      /* AP_CLONE on a copy of our memory, for those who look on (ap_tracer) */
};

/* What a completion tells. */
enum {
  AP_STARTED = 1, /* the exec worked */
  AP_FAILED = 2,  /* it did not; the child has been reaped, the token is gone */
  AP_EXITED = 3   /* the child has ended and was reaped, the token is gone */
};

/* What a child was doing when it failed. */
enum {
  AP_STEP_NONE = 0,
  AP_STEP_SETUP = 1, /* descriptors, session, groups, ids */
  AP_STEP_CHDIR = 2,
  AP_STEP_EXEC = 3
};

/* ap_request.flags */
enum {
  AP_CLOSE_FDS = 1,
  AP_RESTORE_SIGNALS = 2,
  AP_SETSID = 4,
  AP_SETPGID = 8,
  AP_UMASK = 16,
  AP_SETGROUPS = 32,
  AP_SETGID = 64,
  AP_SETUID = 128
};

/* ap_features() */
enum {
  AP_HAS_CLOSE_RANGE = 1,
  AP_HAS_PIDFD_INFO = 2, /* PIDFD_GET_INFO tells a stolen exit status */
  AP_HAS_ADDCHDIR = 4,
  AP_HAS_ADDCLOSEFROM = 8,
  AP_INLINE_SYSCALLS = 16, /* else the clone strategy adds CLONE_VFORK */
  AP_HAS_CLOEXEC_DEFAULT = 32,
  AP_HAS_SETSID = 64, /* of posix_spawn */
  AP_HAS_KQUEUE = 128, /* exits come by a kqueue, else by pidfds */
  AP_KEEPS_ENVIRON = 256 /* setenv() neither frees nor changes a string of environ */
};

typedef struct ap_port ap_port;

/* One child to be. `strings` is one block of NUL-terminated strings, back to
 * back: the candidates for the program's path, the arguments, the environment
 * (NAME=value), and the working directory where has_cwd is set. Nothing of a
 * request is used after ap_port_spawn returned. */
typedef struct {
  int32_t strategy;
  int32_t flags;
  int32_t program_count;
  int32_t arg_count;
  int32_t env_count;
  int32_t has_cwd;
  int32_t fds[3];     /* what the child gets as 0, 1, 2; -1: inherit */
  int32_t pass_count; /* pass_fds is sorted and has no value twice */
  int32_t group_count;
  int32_t process_group;
  int32_t file_mode_mask;
  uint32_t gid;
  uint32_t uid;
  /* Filled in by ap_port_spawn. */
  int32_t pid;
  int32_t started; /* 1: the exec is known to have worked, no AP_STARTED comes */
  int32_t step;    /* AP_STEP_*, where -errno is returned */
  int64_t token;   /* what is returned, for callers that may be interrupted then */
} ap_request;

typedef struct {
  int64_t token;
  int32_t kind;   /* AP_STARTED, AP_FAILED, AP_EXITED */
  int32_t error;  /* AP_FAILED: errno */
  int32_t step;   /* AP_FAILED: AP_STEP_* */
  int32_t status; /* AP_EXITED: as from waitpid(); -1: nobody knows it any more */
  /* AP_EXITED: resource usage, as struct rusage; times in microseconds.
   * has_usage is 0 where another waitpid() took it. */
  int64_t has_usage;
  int64_t user_time;
  int64_t system_time;
  int64_t max_rss; /* as ru_maxrss: KiB, on macOS bytes; -1 where the number is the
                    * parent's, not the child's */
  int64_t minor_faults;
  int64_t major_faults;
  int64_t blocks_in;
  int64_t blocks_out;
  int64_t switches_voluntary;
  int64_t switches_involuntary;
} ap_completion;

/* AP_CLONE, AP_PORTABLE, AP_COPY: the strategies of this system, as bits. */
int ap_strategies(void);

/* Linux: the number of the process that traces this one (ptrace), a debugger, say. 0:
 * there is none, or none that can be seen from here. Tools that trace take a child on
 * our memory (AP_CLONE) for a fork: gdb takes its breakpoints out of it, proot shares
 * what it knows of our heap with it. */
int ap_tracer(void);

/* Can this strategy be used here? Tries it, since containers refuse calls by
 * seccomp. 0, or -errno with what[0] naming the call that failed. */
int ap_probe(int strategy, const char **what);

/* AP_HAS_* bits of this kernel and C library. */
int ap_features(void);

/* Where the C library keeps `environ`, what exec() passes on: ap_environ()[0] is its
 * value, and may be NULL. Whoever reads it must keep others from setenv(). */
char ***ap_environ(void);

/* Opens a port. On success *port is set and owned by the caller. */
int ap_port_open(ap_port **port);

/* A descriptor that is readable while ap_port_next has something to tell. It
 * belongs to the port. */
int ap_port_fd(const ap_port *port);

/* Starts a child. > 0: its token; completions will name it. -errno: there is no
 * child. -ENOTSUP: this strategy cannot do what the request asks. */
int64_t ap_port_spawn(ap_port *port, ap_request *request, const char *strings,
                      const int32_t *pass_fds, const uint32_t *groups);

/* Watches a running, unreaped child of this process that somebody else started.
 * > 0: its token; only AP_EXITED will come for it. On -errno the child is as it
 * was. */
int64_t ap_port_adopt(ap_port *port, int32_t pid);

/* Fills in up to n completions and returns how many. Does not block. */
int ap_port_next(ap_port *port, ap_completion *completions, int n);

/* The caller wants to hear no more of this child, be its port open or closed. It is
 * killed, reaped and its descriptors closed in the background. */
int ap_abandon(int64_t token);

/* Sends a signal. -ESRCH when the child has been reaped. Valid also after its
 * port was closed. */
int ap_signal(int64_t token, int signal);

/* Asks after one child without a port's help: 1 when it has ended (out is
 * filled in, the token is gone), 0 when it lives. For children whose port was
 * closed. -ESRCH for a token that is gone. */
int ap_poll(int64_t token, ap_completion *out);

/* As ap_poll, for children of any port: only looks. The child is not reaped, the
 * port still tells of it, and of out only the status counts. */
int ap_peek(int64_t token, ap_completion *out);

/* Gives a port an orphan back, so that its completions come again; 1: its exec is
 * known to have worked, so that no AP_STARTED is among them. 0 or -errno. */
int ap_port_rejoin(ap_port *port, int64_t token);

/* How many children the port has, abandoned ones too. */
int ap_port_live(const ap_port *port);

/* Closes a port. Children that are still alive become orphans of the process:
 * they can be signalled, and somebody has to ask after them from time to time. */
void ap_port_close(ap_port *port);

/* How many orphans there are. */
int ap_orphan_count(void);

/* Asks after up to n orphans, going round. Fills in a completion (AP_EXITED,
 * AP_FAILED) for each that has ended, but for those that were abandoned, and
 * returns how many. Does not block. */
int ap_reap_orphans(ap_completion *completions, int n);

/* To be called in the child after a fork(): closes our numbers and forgets
 * everything, leaving the parent's children and registrations alone. All ports
 * are gone then. */
void ap_after_fork_in_child(void);

#endif
