/* aioproc's C layer on Windows: a port starts children, moves what goes through
 * their pipes, and tells of their exits, and of whole trees of processes by jobs. A
 * port is one I/O completion port.
 *
 * This file is read twice: by the C compiler, and, without the lines that begin
 * with '#', by cffi as its cdef (csrc/build_native.py). Keep it plain C.
 *
 * Every function returns a value >= 0, or -error, where error is one of Windows'
 * numbers ("System Error Codes" in Microsoft's documentation). None of them calls
 * Python; none waits for a child, and only ap_port_wait waits at all. All may be
 * called from any thread, unless they say that they belong to the port's loop.
 *
 * Handles are given as int64_t.
 */
#ifndef AIOPROC_WINDOWS_H
#define AIOPROC_WINDOWS_H

#include <stdint.h>

/* What a completion tells. */
enum {
  AP_STARTED = 1, /* CreateProcessW worked */
  AP_FAILED = 2,  /* it did not; the token is gone */
  AP_EXITED = 3,  /* the child has ended, the token is gone */
  AP_READ = 4,    /* ap_pipe_read has a result */
  AP_WRITTEN = 5, /* ap_pipe_write may be called again */
  AP_JOB_EMPTY = 6 /* a job has no process; or had none a moment ago */
};

/* What ap_port_wait returns. */
enum {
  AP_NOTHING = 0, /* the time is over, or somebody called ap_port_wake */
  AP_NEWS = 1,    /* ap_port_next has something to tell */
  AP_CLOSED = 2   /* the port has been closed and freed */
};

/* ap_request.flags */
enum {
  AP_CLOSE_FDS = 1,   /* inherit nothing but the handles that are named */
  AP_STD_HANDLES = 2, /* duplicates of std[] are the child's; else std[] goes into
                       * STARTUPINFO as it is */
  AP_STDERR_TO_STDOUT = 4, /* with AP_STD_HANDLES: std[2] counts for nothing */
  AP_LAST_JOB_IF_POSSIBLE = 8 /* without the last of the jobs, if Windows cannot nest it */
};

/* ap_pipe_open: what we do with our end. */
enum { AP_WE_READ = 1, AP_WE_WRITE = 2 };

/* ap_job_open */
enum { AP_KILL_ON_CLOSE = 1 };

/* -AP_PENDING: not yet (ERROR_IO_PENDING). */
enum { AP_PENDING = 997 };

typedef struct ap_port ap_port;
typedef struct ap_pipe ap_pipe;

/* One child to be. `strings` is one block of UTF-16, in this order: the program,
 * the command line, the working directory, the environment (NAME=value, each with
 * its NUL, sorted); each is followed by a NUL, as long as said here, in 16-bit units
 * and without that NUL, and not there at all where the length is -1. Nothing of a
 * request is used after ap_port_spawn returned, but for the handles that the
 * caller's handle list names: a child gets them under the very same numbers. */
typedef struct {
  int32_t flags;
  int32_t program_length;
  int32_t command_length;
  int32_t cwd_length;
  int32_t environment_length;
  uint32_t creation_flags;
  uint32_t startup_flags; /* STARTUPINFO.dwFlags */
  uint32_t show_window;   /* STARTUPINFO.wShowWindow */
  int64_t std[3];         /* 0 with AP_STD_HANDLES: what we have, else NUL */
  int32_t handle_count;   /* inheritable handles to pass on */
  int32_t job_count;      /* jobs that the child is a member of from the start */
  /* Filled in by ap_port_spawn. */
  int64_t token; /* the result, for callers that are interrupted before they get it */
} ap_request;

typedef struct {
  int64_t token;      /* of a pipe: the key that it was opened with; of a
                       * job: its id */
  int32_t kind;       /* AP_STARTED and so on */
  int32_t result;     /* AP_STARTED: how many jobs it was not put into. AP_FAILED: -error.
                       * AP_READ: as ap_pipe_read returns it */
  uint32_t pid;       /* AP_STARTED */
  uint32_t exit_code; /* AP_EXITED */
  int64_t has_usage;
  int64_t user_time; /* microseconds */
  int64_t system_time;
  int64_t max_rss; /* KiB; -1: unknown */
} ap_completion;

/* Opens a port. On success *port is set, and a thread has to call ap_port_wait
 * again and again. */
int ap_port_open(ap_port **port);

/* Waits until there is something to report, and handles packets meanwhile; to be called
 * by one thread. Returns AP_NEWS once until ap_port_next has been called. The port must
 * not be used after AP_CLOSED. */
int ap_port_wait(ap_port *port, uint32_t milliseconds);

/* Makes ap_port_wait return. */
int ap_port_wake(ap_port *port);

/* Fills in up to n completions and returns how many. Does not block. */
int ap_port_next(ap_port *port, ap_completion *completions, int n);

/* How many children and pipes the port has, abandoned and closed ones too, and how
 * many open jobs. */
int ap_port_live(ap_port *port);

/* Closes a port: the next ap_port_wait cancels what is pending and frees it. Its
 * children are orphans from now on; its pipes can only be closed; its jobs stay as they
 * are, but nothing is reported about them any more. */
int ap_port_close(ap_port *port);

/* Starts a child, by a thread of ours. > 0: its token; completions will name it.
 * -error: there will be no child. */
int64_t ap_port_spawn(ap_port *port, ap_request *request,
                      const char *strings, const int64_t *handles,
                      const int64_t *jobs);

/* Gives up a child: it is killed, even if it is only about to start, and what it holds is
 * closed. Also for orphans. */
int ap_abandon(int64_t token);

/* TerminateProcess with exit code 1; once it is there, of a child that is only about to
 * start. -ERROR_INVALID_PARAMETER, which stands for an
 * unknown process in Windows too, for a token that is gone. 0 for a child that has
 * ended and not been told of. */
int ap_terminate(int64_t token);

/* GenerateConsoleCtrlEvent for the process group that the child leads. As
 * ap_terminate. */
int ap_console_event(int64_t token, uint32_t event);

/* Checks an orphan: 1 when it has ended (out is filled in, the token is gone),
 * 0 when it lives or is no orphan. */
int ap_poll(int64_t token, ap_completion *out);

/* As ap_poll, for any child, but without consequences: the token stays. */
int ap_peek(int64_t token, ap_completion *out);

/* Makes a pipe. *ours belongs to the caller until ap_pipe_close; *theirs, which
 * blocks and is not inheritable, to be closed by ap_handle_close. `size`: how many bytes
 * the system is to buffer. */
int ap_pipe_open(ap_port *port, int64_t key, int what, uint32_t size,
                 ap_pipe **ours, int64_t *theirs);

/* The following belong to the thread of the port's loop, but for ap_pipe_close. */

/* Reads up to `size` bytes: returns how many there are at ap_pipe_data now, 0 at
 * the end. -AP_PENDING: AP_READ will come, with the same. What was there before is
 * overwritten. On a pipe that we write to the result is 0 when nobody holds the
 * other end any more. */
int ap_pipe_read(ap_pipe *pipe, uint32_t size);

/* What was read, until the next read. */
char *ap_pipe_data(ap_pipe *pipe);

/* Of a read that AP_READ is to tell of: 1 if that is on its way, since the system has ended
 * the read (or a write of no bytes has, and it is about to go on). */
int ap_pipe_arriving(ap_pipe *pipe);

/* Takes up to n bytes and returns how many. -AP_PENDING: what was taken before has
 * not gone out; AP_WRITTEN will come. -error: it never will. */
int ap_pipe_write(ap_pipe *pipe, const char *data, uint32_t n);

/* 1 while what was taken has not gone out. */
int ap_pipe_writing(ap_pipe *pipe);

/* The number of our end, for messages. */
int64_t ap_pipe_handle(const ap_pipe *pipe);

/* Frees the pipe. What was taken still goes out, as long as the port is open. */
void ap_pipe_close(ap_pipe *pipe);

/* Makes a job object, with no process in it and a handle that is not inheritable. > 0:
 * its id, which no other job gets; completions will name it.
 *
 * AP_JOB_EMPTY is a hint: it comes when the last process has ended, unless Windows
 * loses the message, and there may be another one by then. So ap_job_active is to be
 * asked. A job that never had a process is not told of.
 *
 * AP_KILL_ON_CLOSE: the system ends its processes when the last handle is closed, be it
 * because our process ends.
 *
 * The functions on a job are for any thread, also when the port is closed:
 * -ERROR_INVALID_HANDLE after ap_job_close. */
int64_t ap_job_open(ap_port *port, int flags);

/* Ends AP_KILL_ON_CLOSE: whoever is in it is left alone from now on. */
int ap_job_spare(int64_t id);

/* What all its processes may have together: bytes of committed memory, and how many there may
 * be; 0: any. To be called once, with no process in it. */
int ap_job_limit(int64_t id, uint64_t memory, uint32_t processes);

/* Of the time of all CPUs, in hundredths of a per cent: at most so much. */
int ap_job_limit_cpu(int64_t id, uint32_t rate);

/* The handle, which stays ours. */
int64_t ap_job_handle(int64_t id);

/* How many processes it has, including those of jobs nested in it. */
int64_t ap_job_active(int64_t id);

/* TerminateJobObject: ends all its processes. */
int ap_job_terminate(int64_t id, uint32_t exit_code);

/* The ids of its processes, at most n of them; returns how many these are. */
int ap_job_pids(int64_t id, uint32_t *pids, int n);

/* Closes the handle; with AP_KILL_ON_CLOSE the processes end with exit code 1. */
int ap_job_close(int64_t id);

/* NUL, for reading and writing; not inheritable. */
int ap_null_open(int64_t *handle);
int ap_handle_close(int64_t handle);

#endif
