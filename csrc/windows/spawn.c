/* CreateProcessW, on threads of our own: scanners of viruses make it take tens of
 * milliseconds, in which the loop shall not stand still. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

/* A child's description with everything that it needs: one block of memory, and
 * handles that nobody else closes. */
typedef struct ap_plan {
  struct ap_plan *next; /* in the queue */
  int64_t token;
  int flags;
  DWORD creation_flags, startup_flags;
  WORD show_window;
  HANDLE std[3]; /* with AP_STD_HANDLES: ours; NULL: there is none */
  HANDLE *handles;
  DWORD handle_count;
  HANDLE *jobs; /* duplicates */
  DWORD job_count;
  wchar_t *program, *command, *cwd, *environment;
} ap_plan;

enum {
  LONGEST_COMMAND = 32767, /* with its NUL ("CreateProcessW function") */
  MOST_THREADS = 4,
  IDLE_MILLISECONDS = 1000 /* then a thread without work ends */
};

static ap_plan *queue, **queue_end = &queue;
static CONDITION_VARIABLE work = CONDITION_VARIABLE_INIT;
static int threads, idle, queued;

/* Held exclusively while a child is made that inherits whatever can be inherited:
 * then no other child's handles may be among it. */
static SRWLOCK inheritance = SRWLOCK_INIT;

static void close_std(ap_plan *plan) {
  for (int i = 0; i < 3; i++) {
    if (plan->flags & AP_STD_HANDLES && plan->std[i]) CloseHandle(plan->std[i]);
    plan->std[i] = NULL;
  }
}

void plan_free(ap_plan *plan) {
  close_std(plan);
  for (DWORD i = 0; i < plan->job_count; i++) CloseHandle(plan->jobs[i]);
  free(plan);
}

static int duplicate(HANDLE source, HANDLE *result) {
  HANDLE self = GetCurrentProcess(), made = NULL;
  if (!DuplicateHandle(self, source, self, &made, 0, FALSE, DUPLICATE_SAME_ACCESS))
    return failure(); /* whatever is in `made` is not ours to close */
  *result = made;
  return 0;
}

static int duplicate_std(int number, int64_t source, HANDLE *result) {
  static const DWORD names[] = {STD_INPUT_HANDLE, STD_OUTPUT_HANDLE,
                                STD_ERROR_HANDLE};
  HANDLE handle = source ? to_handle(source) : GetStdHandle(names[number]);
  int64_t null;
  int error = -ERROR_INVALID_HANDLE;
  if (handle && handle != INVALID_HANDLE_VALUE) error = duplicate(handle, result);
  if (source || error != -ERROR_INVALID_HANDLE) return error;
  /* A program without a console has none, or the number of one that is closed
   * (python/cpython#48155). */
  error = ap_null_open(&null);
  if (!error) *result = to_handle(null);
  return error;
}

static void add_handle(ap_plan *plan, HANDLE handle) {
  /* CreateProcessW refuses a list that names one twice. */
  for (DWORD i = 0; i < plan->handle_count; i++)
    if (plan->handles[i] == handle) return;
  plan->handles[plan->handle_count++] = handle;
}

static wchar_t *take(wchar_t **at, const char **strings, int length) {
  if (length < 0) return NULL;
  wchar_t *start = *at;
  memcpy(start, *strings, (size_t)length * sizeof *start);
  start[length] = L'\0';
  *strings += ((size_t)length + 1) * sizeof *start;
  *at += length + 1;
  return start;
}

static size_t room(int length) {
  return length < 0 ? 0 : ((size_t)length + 1) * sizeof(wchar_t);
}

/* The length of a block of NAME=value strings, with the last one's NUL. */
static int block_length(const wchar_t *block) {
  const wchar_t *at = block;
  while (*at) at += wcslen(at) + 1;
  return (int)(at - block);
}

static int plan_new(const ap_request *request, const char *strings,
                    const int64_t *handles, const int64_t *jobs, ap_plan **result) {
  int error = 0;
  wchar_t *inherited = NULL;
  ap_plan *plan = NULL;
  int environment_length = request->environment_length;
  const char *environment = NULL;
  if (environment_length < 0) {
    /* Ours as it is now, and not when a thread comes to it. */
    inherited = GetEnvironmentStringsW();
    if (!inherited) return -ERROR_NOT_ENOUGH_MEMORY;
    environment_length = block_length(inherited);
    environment = (const char *)inherited;
  }
  size_t size = sizeof *plan;
  size += ((size_t)request->handle_count + 3) * sizeof(HANDLE);
  size += (size_t)request->job_count * sizeof(HANDLE);
  size += room(request->program_length) + room(request->command_length) +
          room(request->cwd_length) + room(environment_length);
  plan = calloc(1, size);
  if (!plan) {
    error = -ERROR_NOT_ENOUGH_MEMORY;
    goto finish;
  }
  plan->flags = request->flags;
  plan->creation_flags = request->creation_flags;
  plan->startup_flags = request->startup_flags;
  plan->show_window = (WORD)request->show_window;
  plan->handles = (HANDLE *)(plan + 1);
  plan->jobs = plan->handles + request->handle_count + 3;
  wchar_t *at = (wchar_t *)(plan->jobs + request->job_count);
  plan->program = take(&at, &strings, request->program_length);
  plan->command = take(&at, &strings, request->command_length);
  plan->cwd = take(&at, &strings, request->cwd_length);
  if (!environment) environment = strings;
  plan->environment = take(&at, &environment, environment_length);

  for (int i = 0; i < 3; i++) {
    if (i == 2 && plan->flags & AP_STDERR_TO_STDOUT)
      error = duplicate(plan->std[1], &plan->std[2]);
    else if (plan->flags & AP_STD_HANDLES)
      error = duplicate_std(i, request->std[i], &plan->std[i]);
    else
      plan->std[i] = to_handle(request->std[i]);
    if (error) goto finish;
  }
  for (int i = 0; i < request->job_count; i++) {
    error = duplicate(to_handle(jobs[i]), &plan->jobs[i]);
    if (error) goto finish;
    plan->job_count++;
  }
  for (int i = 0; i < request->handle_count; i++)
    add_handle(plan, to_handle(handles[i]));
  *result = plan;
  plan = NULL;

finish:
  if (inherited) FreeEnvironmentStringsW(inherited);
  if (plan) plan_free(plan);
  return error;
}

static int attribute(LPPROC_THREAD_ATTRIBUTE_LIST list, DWORD_PTR name, HANDLE *values,
                     DWORD count) {
  if (!count) return 0;
  return UpdateProcThreadAttribute(list, 0, name, values, count * sizeof *values, NULL,
                                   NULL)
             ? 0
             : failure();
}

static int create(ap_plan *plan, PROCESS_INFORMATION *created) {
  STARTUPINFOEXW startup;
  SIZE_T size = 0;
  int error = 0;
  bool only_listed = plan->handle_count > 0;
  bool initialized = false, exclusive = false;
  memset(&startup, 0, sizeof startup);
  startup.StartupInfo.cb = sizeof startup;
  startup.StartupInfo.dwFlags = plan->startup_flags;
  startup.StartupInfo.wShowWindow = plan->show_window;
  if (plan->flags & AP_STD_HANDLES) {
    startup.StartupInfo.dwFlags |= STARTF_USESTDHANDLES;
    only_listed |= (plan->flags & AP_CLOSE_FDS) != 0;
  }
  if (plan->flags & AP_STD_HANDLES && only_listed)
    for (int i = 0; i < 3; i++) add_handle(plan, plan->std[i]);
  startup.StartupInfo.hStdInput = plan->std[0];
  startup.StartupInfo.hStdOutput = plan->std[1];
  startup.StartupInfo.hStdError = plan->std[2];
  bool inherits = only_listed || !(plan->flags & AP_CLOSE_FDS);
  exclusive = inherits && !only_listed;

  InitializeProcThreadAttributeList(NULL, 2, 0, &size);
  startup.lpAttributeList = malloc(size);
  if (!startup.lpAttributeList) return -ERROR_NOT_ENOUGH_MEMORY;
  if (!InitializeProcThreadAttributeList(startup.lpAttributeList, 2, 0, &size)) {
    error = failure();
    goto finish;
  }
  initialized = true;
  error = attribute(startup.lpAttributeList, PROC_THREAD_ATTRIBUTE_HANDLE_LIST,
                    plan->handles, plan->handle_count);
  if (!error)
    error = attribute(startup.lpAttributeList, PROC_THREAD_ATTRIBUTE_JOB_LIST,
                      plan->jobs, plan->job_count);
  if (error) goto finish;

  if (exclusive)
    AcquireSRWLockExclusive(&inheritance);
  else
    AcquireSRWLockShared(&inheritance);
  for (int i = 0; plan->flags & AP_STD_HANDLES && i < 3; i++)
    if (!SetHandleInformation(plan->std[i], HANDLE_FLAG_INHERIT, HANDLE_FLAG_INHERIT))
      error = failure();
  if (!error &&
      !CreateProcessW(plan->program, plan->command, NULL, NULL, inherits,
                      plan->creation_flags | CREATE_UNICODE_ENVIRONMENT |
                          EXTENDED_STARTUPINFO_PRESENT,
                      plan->environment, plan->cwd, &startup.StartupInfo, created))
    error = failure();
  close_std(plan);
  if (exclusive)
    ReleaseSRWLockExclusive(&inheritance);
  else
    ReleaseSRWLockShared(&inheritance);
  if (!error) CloseHandle(created->hThread);

finish:
  if (initialized) DeleteProcThreadAttributeList(startup.lpAttributeList);
  free(startup.lpAttributeList);
  return error;
}

/* One plan, from the queue to the child's port. Called with the lock held, which it
 * lets go of meanwhile. */
static void carry_out(ap_plan *plan) {
  PROCESS_INFORMATION created;
  int error = -ERROR_CANCELLED;
  memset(&created, 0, sizeof created);
  if (!child_find(plan->token)->abandoned) {
    unlock();
    error = create(plan, &created);
    lock();
  }
  ap_child *child = child_find(plan->token);
  child->plan = NULL;
  if (error) {
    child->state = CHILD_FAILED;
    child->error = (DWORD)-error;
  } else {
    child->state = CHILD_RUNNING;
    child->process = created.hProcess;
    child->pid = created.dwProcessId;
  }
  if (child->abandoned) {
    if (child->process) TerminateProcess(child->process, 1);
    child_free(child);
  } else if (child->port) {
    port_post(child->port->iocp, KEY_STARTED, child->token);
  }
  plan_free(plan);
}

static DWORD WINAPI work_through(LPVOID unused) {
  (void)unused;
  lock();
  for (;;) {
    if (queue) {
      ap_plan *plan = queue;
      queue = plan->next;
      if (!queue) queue_end = &queue;
      queued--;
      carry_out(plan);
      continue;
    }
    idle++;
    BOOL woken = SleepConditionVariableSRW(&work, &ap_lock, IDLE_MILLISECONDS, 0);
    idle--;
    if (!woken && !queue) break;
  }
  threads--;
  unlock();
  return 0;
}

/* With the lock held. False: there is no thread, and none can be had. */
static bool get_thread(void) {
  if (idle >= queued) {
    WakeConditionVariable(&work);
    return true;
  }
  if (threads >= MOST_THREADS) return true;
  HANDLE thread = CreateThread(NULL, 0, work_through, NULL, 0, NULL);
  if (!thread) return threads > 0;
  threads++;
  CloseHandle(thread);
  return true;
}

int64_t ap_port_spawn(ap_port *port, ap_request *request, const char *strings,
                      const int64_t *handles, const int64_t *jobs) {
  ap_plan *plan = NULL;
  /* As Windows does, though not Wine. */
  if (request->command_length >= LONGEST_COMMAND) return -ERROR_FILENAME_EXCED_RANGE;
  int error = plan_new(request, strings, handles, jobs, &plan);
  if (error) return error;

  lock();
  ap_child *child = port->closing ? NULL : child_new();
  if (!child) {
    plan_free(plan);
    unlock();
    return -ERROR_NOT_ENOUGH_MEMORY;
  }
  int64_t token = plan->token = child->token;
  child->plan = plan;
  child_link(port, child);
  *queue_end = plan;
  queue_end = &plan->next;
  queued++;
  if (!get_thread()) {
    ap_plan **link = &queue;
    while (*link != plan) link = &(*link)->next;
    *link = plan->next;
    if (!*link) queue_end = link;
    queued--;
    child_unlink(child);
    child_free(child);
    token = -ERROR_NOT_ENOUGH_MEMORY;
  }
  unlock();
  request->token = token;
  return token;
}

int ap_null_open(int64_t *handle) {
  HANDLE null = CreateFileW(L"NUL", GENERIC_READ | GENERIC_WRITE,
                            FILE_SHARE_READ | FILE_SHARE_WRITE, NULL, OPEN_EXISTING, 0,
                            NULL);
  if (null == INVALID_HANDLE_VALUE) return failure();
  *handle = (int64_t)(intptr_t)null;
  return 0;
}

int ap_handle_close(int64_t handle) {
  return CloseHandle(to_handle(handle)) ? 0 : failure();
}
