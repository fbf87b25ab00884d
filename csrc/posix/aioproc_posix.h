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
  AP_COPY = 4      /* AP_CLONE on a copy of our memory, for tracers' sake (ap_tracer) */
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
  AP_STEP_EXEC = 3,
  /* Of ap_limits. */
  AP_STEP_NICE = 16,
  AP_STEP_CPUS = 17,
  AP_STEP_OOM = 18,
  AP_STEP_NO_NEW_PRIVS = 19,
  AP_STEP_DIE = 20, /* AP_DIE_WITH_PARENT */
  AP_STEP_RLIMIT = 64 /* and the number of the limit */
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
  AP_SETUID = 128,
  AP_LAZY = 256, /* no completion tells that the exec has worked, see ap_look */
  AP_COLLECT = 512, /* what it writes is read at its end, see ap_completion.collected */
  AP_TERMINAL = 1 << 20, /* fds are a terminal, which comes to control the session: with
                         * AP_SETSID. What its keys send is not ignored */
  /* Linux: SIGKILL for the child when this process ends. With AP_PORTABLE: -ENOTSUP. */
  AP_DIE_WITH_PARENT = 1 << 16,
  /* The same where it can be had, and costs nothing: AP_CLONE and AP_COPY, in the main
   * thread. */
  AP_DIE_IF_MAIN = 1 << 17
};

/* What the child may use and do, from its program's first instruction. Linux; with
 * AP_PORTABLE: -ENOTSUP. */
enum {
  AP_SET_NICE = 1,
  AP_SET_CPUS = 2,
  AP_SET_OOM = 4,
  AP_NO_NEW_PRIVS = 8
};

enum { AP_RLIMITS_MOST = 24, AP_CPUS_MOST = 8192 };

typedef struct {
  int32_t set;           /* AP_SET_NICE...: which of the following count */
  int32_t nice;          /* not an increment; in a session of its own also of its autogroup */
  int32_t oom_score_adj; /* makes AP_COPY of AP_CLONE */
  int32_t cpu_count;
  const int32_t *cpus;   /* all below AP_CPUS_MOST */
  int32_t rlimit_count;
  int32_t resources[AP_RLIMITS_MOST]; /* RLIMIT_* */
  uint64_t soft[AP_RLIMITS_MOST];     /* as prlimit64 takes them: all ones is infinity */
  uint64_t hard[AP_RLIMITS_MOST];
} ap_limits;

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

/* What the child gets as a standard stream, if it is no descriptor. */
enum {
  AP_PIPE = -1,    /* one that is opened here; our end does not block */
  AP_INHERIT = -2, /* what we have */
  AP_NULL = -3     /* /dev/null */
};

/* One child to be. `strings` is one block of NUL-terminated strings, back to
 * back: the candidates for the program's path, the arguments, the environment
 * (NAME=value), and the working directory where has_cwd is set. A request is not used
 * after ap_port_spawn has returned. */
typedef struct {
  int32_t strategy;
  int32_t flags;
  int32_t program_count;
  int32_t arg_count;
  int32_t env_count;
  int32_t has_cwd;
  int32_t fds[3];     /* what the child gets as 0, 1, 2: a descriptor, or AP_PIPE... */
  int32_t err_to_out; /* instead of fds[2]: what it has as stdout */
  int32_t ours[3];    /* -1. Set by ap_port_spawn: our ends of AP_PIPEs, the caller's */
  int32_t pipe_size;  /* of each AP_PIPE, in bytes, where the system has that; 0: its own */
  int32_t pass_count; /* pass_fds is sorted and has no value twice */
  int32_t group_count;
  int32_t process_group;
  int32_t file_mode_mask;
  uint32_t gid;
  uint32_t uid;
  /* Instead of `strings`, for long ones: by ap_text_new. Taken by ap_port_spawn, which
   * then sets it to NULL. */
  char *text;
  /* Written into the AP_PIPE of stdin, whose other end is closed if all of it fits; or
   * NULL. */
  const char *input;
  int64_t input_size;
  const ap_limits *limits; /* or NULL */
  /* Filled in by ap_port_spawn. */
  int64_t input_taken;
  int32_t null_fd;
  int32_t orphans;    /* as ap_orphan_count */
  int32_t pid;
  /* 1: the exec is known to have worked, no AP_STARTED comes. With -errno: there was a child
   * that could not be watched; it and its group have been killed. */
  int32_t started;
  int32_t step;    /* AP_STEP_*, where -errno is returned */
  int64_t token;   /* the result, for callers that are interrupted before they get it */
} ap_request;

typedef struct {
  int64_t token;
  int32_t kind;   /* AP_STARTED, AP_FAILED, AP_EXITED */
  int32_t error;  /* AP_FAILED: errno */
  int32_t step;   /* AP_FAILED: AP_STEP_* */
  int32_t status; /* AP_EXITED: as from waitpid(); -1: it is lost */
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
  /* AP_COLLECT, and nobody else had its pipes open when it ended: 1. `output` is what it
   * had written to stdout and then to stderr, `sizes` how much; it stays there until the next
   * ap_port_next. A pipe that has been read to its end is closed; `open` has a bit for each
   * other. */
  int32_t collected;
  int32_t open;
  int32_t sizes[2];
  const char *output;
  int32_t held; /* AP_COLLECT, and somebody had: as after ap_hold */
} ap_completion;

/* AP_CLONE, AP_PORTABLE, AP_COPY: the strategies of this system, as bits. */
int ap_strategies(void);

/* Linux: the pid of the process that traces this one by ptrace, such as a debugger. 0:
 * there is none, or none that can be seen from here. Tracers take a child on our memory
 * (AP_CLONE) for the result of a fork: gdb removes its breakpoints from it, proot has it
 * share what it knows about our heap. */
int ap_tracer(void);

/* Tests whether a strategy can be used here, by trying it, since containers refuse calls
 * by seccomp. 0, or -errno with what[0] naming the call that failed. */
int ap_probe(int strategy, const char **what);

/* AP_HAS_* bits of this kernel and C library. */
int ap_features(void);

/* Where the C library keeps `environ`, which exec() passes on: ap_environ()[0] is its
 * value, and may be NULL. No other thread may call setenv() while the caller reads it. */
char ***ap_environ(void);

/* Opens a port. On success *port is set and owned by the caller. */
int ap_port_open(ap_port **port);

/* A descriptor that is readable while ap_port_next has something to tell. It
 * belongs to the port. */
int ap_port_fd(const ap_port *port);

/* Memory for the strings of a request, to be written by the caller. NULL: there is
 * none. */
char *ap_text_new(int64_t size);
void ap_text_free(char *text);

/* Starts a child. > 0: its token; completions will name it. -errno: there is no
 * child. -ENOTSUP: this strategy cannot do what the request asks. */
int64_t ap_port_spawn(ap_port *port, ap_request *request, const char *strings,
                      const int32_t *pass_fds, const uint32_t *groups);

/* Linux: AP_DIE_WITH_PARENT in a thread that is not the main one has the child made by a thread
 * of ours, since the kernel takes the end of the thread that has made it for the parent's. It
 * lasts until the process ends; after a fork there is another. The child takes nice value, CPUs
 * and signal mask from the caller's thread, all else from that one, which has it from the
 * thread that first called here. Returns its number, as gettid(); -ENOTSUP: not Linux. */
int ap_spawn_thread(void);

/* To be called in a forked process, before its exec: what AP_NO_NEW_PRIVS and
 * AP_DIE_WITH_PARENT do; `parent` is the pid of its parent. 0, -ENOTSUP or -errno. */
int ap_no_new_privs(void);
int ap_die_with(int32_t parent);

/* For a child that was started with AP_LAZY. 1: its exec is known to have worked; 0: it is
 * not known yet, or it has failed, which a completion will tell; -ESRCH: the token is
 * gone. */
int ap_look(int64_t token);

/* Ends AP_COLLECT: the caller reads the pipes itself, and may close them. To be called before
 * either. They do not block from then on, whether the token is gone or not; but not those that
 * a completion with `collected` has told of, which nobody can write to. 0; -ESRCH: gone. */
int ap_keep_output(int64_t token);

/* Watches a running, unreaped child of this process that somebody else started.
 * > 0: its token; only AP_EXITED will come for it. On -errno the child is as it
 * was. */
int64_t ap_port_adopt(ap_port *port, int32_t pid);

/* Fills in up to n completions and returns how many. Does not block. */
int ap_port_next(ap_port *port, ap_completion *completions, int n);

/* Gives up a child, whether its port is open or closed: no completions come for it any
 * more. It is killed, reaped and its descriptors closed in the background. */
int ap_abandon(int64_t token);

/* Sends a signal. -ESRCH when the child has been reaped. Valid also after its
 * port was closed. */
int ap_signal(int64_t token, int signal);

/* Keeps a child from being reaped when it has ended, so that its number stays its own and
 * its group's: AP_EXITED tells the end as ever, and the token stays. 0; -ESRCH: it has been
 * reaped already. */
int ap_hold(int64_t token);

/* Ends that. 1: the child had ended; it has been reaped, `out` has the usage, the token is
 * gone. 0: it lives. -ESRCH: the token is gone. */
int ap_release(int64_t token, ap_completion *out);

/* Sends a signal to the process group that the child leads, also when it has ended and is
 * held; to the child alone as long as it has not come to lead one. It never reaches another
 * group. `by` says how: AP_BY_PIDFD takes it from the kernel (Linux 6.9), AP_BY_NUMBER is
 * killpg() while the number is the child's; 0: the first that is to be had. -ESRCH: nobody
 * is there. */
int ap_signal_group(int64_t token, int signal, int by);
enum { AP_BY_PIDFD = 1, AP_BY_NUMBER = 2 };

/* Checks one child whose port has been closed: 1 when it has ended (out is filled in, the
 * token is gone), 0 while it lives. 0 for a child of an open port. -ESRCH for a token
 * that is gone. */
int ap_poll(int64_t token, ap_completion *out);

/* As ap_poll, for children of any port, but without consequences: the token stays, the
 * port still reports the child, and only the status in `out` counts. */
int ap_peek(int64_t token, ap_completion *out);

/* Gives an orphan to a port, so that its completions come again. 1: its exec is known to
 * have worked, and no AP_STARTED comes. 0 or -errno. */
int ap_port_rejoin(ap_port *port, int64_t token);

/* How many children the port has, abandoned ones too. */
int ap_port_live(const ap_port *port);

/* Closes a port. Children that are still alive become orphans of the process: they can
 * be signalled, and have to be asked for (ap_reap_orphans, ap_poll) from time to time. */
void ap_port_close(ap_port *port);

/* How many orphans there are. */
int ap_orphan_count(void);

/* Checks up to n orphans, in turn. Fills in a completion (AP_EXITED, AP_FAILED) for each
 * that has ended, except those that were abandoned, and returns how many. Does not
 * block. */
int ap_reap_orphans(ap_completion *completions, int n);

/* What there is of us, for those who look for leaks: children that have a token, and blocks of
 * memory that children were made in and may be running in. */
int ap_count_children(void);
int ap_count_plans(void);

/* To be called in the child after a fork(): closes our descriptors and forgets
 * everything, without touching the parent's children and registrations. No port may be
 * used afterwards. */
void ap_after_fork_in_child(void);

/* Trees: a child and all that it has started, found among the processes of the system
 * and signalled. A member of a tree is
 *
 *   - the child itself, its leader;
 *   - who is in the leader's session, if that was made for it;
 *   - a child of a member;
 *   - who has the tree's mark in its environment: AIOPROC_TREE=mark:mark..., where a mark
 *     is 16 lower-case hexadecimal digits;
 *   - who was one in an earlier round.
 *
 * A process is known by its number and its start, so that a number that was given to
 * another is no member. What is checked is what is signalled: by a descriptor of the process,
 * where there are such. This process and process 1 are never members. */
typedef struct ap_trees ap_trees;

enum {
  AP_TREES_MOST = 4096, /* trees in a round */
  AP_TREE_PIDS = 256    /* members that are named */
};

/* ap_tree.flags */
enum {
  AP_TREE_RESUME = 1,       /* SIGCONT for stopped members, once they have the signal */
  AP_TREE_LEADER_HAS_IT = 2 /* the signal; it came another way */
};

typedef struct {
  /* The tree. */
  int32_t leader;  /* its pid; 0: it has been reaped; -1: nobody knows it */
  int32_t session; /* 0: none was made. Counts while its number is known to be taken: by the
                    * leader, or by a member that was in it before */
  uint64_t mark;   /* 0: none */
  uint64_t start;  /* the leader's; 0 at first, noted by the first round that finds it. On
                    * Linux in clock ticks since the boot */
  uint64_t born;   /* who started after this is not the leader, but has got its number since;
                    * 0: not known */
  /* What to do with members in the next round. */
  int32_t signal; /* 0: look only. SIGKILL goes to each of them in every round, another to
                   * each once a step */
  int32_t step;   /* counts the signals, from 1 */
  int32_t flags;  /* AP_TREE_* */
  int32_t group;  /* 0, or a process group that has the signal of this step: those in it ... */
  uint64_t group_time; /* ... that had started by then; not looked at but on Linux */
  /* What the round found. */
  int32_t alive;     /* members that have not ended; zombies have */
  int32_t newcomers; /* those of them that no earlier round has seen */
  int32_t signalled; /* who got a signal in this round */
  int32_t denied;    /* who could not be given one */
  int32_t in_exec;   /* who may be a member: in the midst of an exec it has no mark to be read */
  int32_t pids[AP_TREE_PIDS]; /* the first of those alive */
  uint32_t id;       /* the scanner's own; 0 at first */
} ap_tree;

/* Opens a scanner: the memory that rounds need, so that none can fail for want of it. Of
 * the processes that have no room in it only leaders, sessions and marks are found, and no
 * signal but SIGKILL goes to them. 0; -ENOTSUP: processes cannot be seen here; -errno. */
int ap_trees_open(ap_trees **trees);

/* One look at all processes, for all trees under way; a tree that is not among them is
 * forgotten. In one thread a time; takes 5 to 20 us a process. Returns how many processes
 * were looked at, or -errno, with nothing changed. */
int ap_trees_round(ap_trees *trees, ap_tree *const *under_way, int n);

/* Also for a forked process, with the parent's. */
void ap_trees_close(ap_trees *trees);

#endif
