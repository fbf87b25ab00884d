/* Has one system call of a program fail: inject PROGRAM ARGS...
 *
 * The program says which by a signal to itself, with the address of a struct fault, and by
 * another without asks what has become of it. In between, the calls of all its threads count,
 * and those of its children before their exec; then they are let go. By ptrace, so that calls
 * which pass the C library by are seen as well.
 *
 * Linux 5.3 or newer on x86_64. Ends as the program does. */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef __x86_64__
#error "how to change a system call is known here for x86_64 alone"
#endif

/* From here on the same in victim.py. */
enum { CALLS = 512, TELL = 50 /* a signal that nobody has a use for */ };
enum { PARENT = 0, CHILD = 1 };
enum {
  REFUSED = 0, /* it is not made, and fails */
  MADE = 1,    /* it is made, and fails all the same: close() with EIO */
  LATE = 2     /* clone() writes the pidfd's number, and is refused then */
};

struct fault {
  int64_t role, call, occurrence; /* the first is 1; 0: none is to fail */
  int64_t error, how;
  int64_t number; /* LATE: what is written, a descriptor of somebody else */
  /* Answers. */
  int64_t hits;
  int64_t bad_closes; /* of numbers that were not open, by the program itself */
  uint32_t counts[2][CALLS];
};

typedef struct {
  pid_t pid;
  int role;
  bool fails; /* the call that it is in */
  bool closes;
} tracee;

enum { MOST = 256 };
static tracee tracees[MOST];
static pid_t program;
static bool armed;
static struct fault fault;
static uintptr_t place; /* of the program's own */

static void die(const char *what) {
  perror(what);
  exit(125);
}

/* Whether it is a thread of the program. */
static int role_of(pid_t pid) {
  char path[64], line[256];
  int group = 0;
  snprintf(path, sizeof path, "/proc/%d/status", pid);
  FILE *file = fopen(path, "re");
  while (file && fgets(line, sizeof line, file))
    if (sscanf(line, "Tgid: %d", &group) == 1) break;
  if (file) fclose(file);
  return group == program ? PARENT : CHILD;
}

static tracee *find(pid_t pid) {
  tracee *room = NULL;
  for (int i = 0; i < MOST; i++) {
    if (tracees[i].pid == pid) return &tracees[i];
    if (!tracees[i].pid && !room) room = &tracees[i];
  }
  if (!room) {
    errno = ENFILE;
    die("tracees");
  }
  *room = (tracee){.pid = pid, .role = role_of(pid)};
  return room;
}

static void copy(bool in, void *ours, uintptr_t theirs, size_t size) {
  struct iovec here = {ours, size}, there = {(void *)theirs, size};
  ssize_t n = in ? process_vm_readv(program, &here, 1, &there, 1, 0)
                 : process_vm_writev(program, &here, 1, &there, 1, 0);
  if (n != (ssize_t)size) die("memory of the program");
}

static void change(pid_t pid, bool call, long value) {
  struct user_regs_struct registers;
  if (ptrace(PTRACE_GETREGS, pid, 0, &registers) < 0) return; /* killed meanwhile */
  if (call)
    registers.orig_rax = (unsigned long)value;
  else
    registers.rax = (unsigned long)value;
  ptrace(PTRACE_SETREGS, pid, 0, &registers);
}

static void told(uintptr_t address) {
  if (address) {
    place = address;
    copy(true, &fault, place, sizeof fault);
    armed = true;
    for (int i = 0; i < MOST; i++) /* are told to say what they call */
      if (tracees[i].pid) ptrace(PTRACE_INTERRUPT, tracees[i].pid, 0, 0);
  } else if (armed) {
    armed = false;
    copy(false, &fault, place, sizeof fault);
  }
}

/* What only asks for flags, or sets them, or ends something, wants nothing of the kernel. */
static bool can_fail(long call, const uint64_t *args) {
  if (call == SYS_epoll_ctl) return args[1] == EPOLL_CTL_ADD;
  if (call != SYS_fcntl) return true;
  return args[1] == F_DUPFD || args[1] == F_DUPFD_CLOEXEC || args[1] == F_SETPIPE_SZ;
}

static void entered(tracee *who, const struct __ptrace_syscall_info *info) {
  const uint64_t *args = info->entry.args;
  long call = (long)info->entry.nr;
  if (!armed || call < 0 || call >= CALLS || !can_fail(call, args)) return;
  uint32_t count = ++fault.counts[who->role][call];
  who->closes = call == SYS_close && who->role == PARENT;
  if (who->role != fault.role || call != fault.call || count != fault.occurrence) return;
  if (fault.how == LATE) {
    /* A clone without a pidfd has no late failure of this kind. */
    if (call != SYS_clone || !(args[0] & CLONE_PIDFD)) return;
    int32_t number = (int32_t)fault.number;
    copy(false, &number, (uintptr_t)args[2], sizeof number);
  }
  if (fault.how != MADE) change(who->pid, true, -1);
  who->fails = true;
  fault.hits++;
}

static void left(tracee *who, const struct __ptrace_syscall_info *info) {
  if (who->fails)
    change(who->pid, false, (long)-fault.error);
  else if (who->closes && armed && info->exit.rval == -EBADF)
    fault.bad_closes++;
  who->fails = who->closes = false;
}

static void at_call(tracee *who) {
  struct __ptrace_syscall_info info;
  memset(&info, 0, sizeof info);
  if (ptrace(PTRACE_GET_SYSCALL_INFO, who->pid, sizeof info, &info) <= 0) return;
  if (info.op == PTRACE_SYSCALL_INFO_ENTRY)
    entered(who, &info);
  else if (info.op == PTRACE_SYSCALL_INFO_EXIT)
    left(who, &info);
}

static bool is_for_us(pid_t pid, int signal, uintptr_t *address) {
  siginfo_t info;
  if (signal != TELL || ptrace(PTRACE_GETSIGINFO, pid, 0, &info) < 0) return false;
  *address = (uintptr_t)info.si_value.sival_ptr;
  return true;
}

/* What the tracee goes on by, and with which signal. */
static int stopped(tracee *who, int status, int *signal) {
  int what = WSTOPSIG(status), event = status >> 16;
  uintptr_t address;
  *signal = 0;
  if (event == 0 && what == (SIGTRAP | 0x80))
    at_call(who);
  else if (event == 0 && is_for_us(who->pid, what, &address))
    told(address);
  else if (event == 0)
    *signal = what;
  else if (event == PTRACE_EVENT_STOP && what != SIGTRAP)
    return PTRACE_LISTEN; /* stopped by a signal, and neither new nor interrupted by us */
  /* What a child does after its exec is its own. */
  if (who->role == CHILD && (!armed || event == PTRACE_EVENT_EXEC)) return PTRACE_DETACH;
  return armed ? PTRACE_SYSCALL : PTRACE_CONT;
}

static void start(char **argv) {
  int go[2];
  if (pipe2(go, 0) < 0) die("pipe");
  program = fork();
  if (program < 0) die("fork");
  if (program == 0) {
    char byte;
    close(go[1]);
    while (read(go[0], &byte, 1) < 0 && errno == EINTR) continue;
    close(go[0]);
    execvp(argv[0], argv);
    perror(argv[0]);
    _exit(126);
  }
  close(go[0]);
  long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK |
                 PTRACE_O_TRACEVFORK | PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL;
  if (ptrace(PTRACE_SEIZE, program, 0, options) < 0) die("ptrace");
  if (ptrace(PTRACE_INTERRUPT, program, 0, 0) < 0) die("ptrace");
  close(go[1]);
}

int main(int argc, char **argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: inject PROGRAM ARGS...\n");
    return 125;
  }
  start(argv + 1);
  for (;;) {
    int status, signal;
    pid_t pid = waitpid(-1, &status, __WALL);
    if (pid < 0 && errno == EINTR) continue;
    if (pid < 0) die("waitpid");
    tracee *who = find(pid);
    if (!WIFSTOPPED(status)) {
      who->pid = 0;
      if (pid != program) continue;
      /* The rest is ended with us (PTRACE_O_EXITKILL). */
      return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    int how = stopped(who, status, &signal);
    if (how == PTRACE_DETACH) who->pid = 0;
    ptrace(how, pid, 0, signal);
  }
}
