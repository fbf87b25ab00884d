/* CreateProcessW, on threads of our own: virus scanners make it take tens of
 * milliseconds, during which the loop must not block. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

enum {
  LONGEST_COMMAND = 32767, /* with its NUL ("CreateProcessW function") */
  MOST_THREADS = 4,
  IDLE_MILLISECONDS = 1000 /* after which a thread without work ends */
};

static ap_plan *queue, **queue_end = &queue;
static CONDITION_VARIABLE work = CONDITION_VARIABLE_INIT;
static int threads, idle, queued;

/* Held exclusively while a child is made that inherits whatever can be inherited:
 * then no other child's handles may be among it. */
static SRWLOCK inheritance = SRWLOCK_INIT;

static int attribute(LPPROC_THREAD_ATTRIBUTE_LIST list, DWORD_PTR name, HANDLE *values,
                     DWORD count) {
  if (!count) return 0;
  return UpdateProcThreadAttribute(list, 0, name, values, count * sizeof *values, NULL,
                                   NULL)
             ? 0
             : failure();
}

/* Frees a list of attributes. Returns NULL. */
static LPPROC_THREAD_ATTRIBUTE_LIST free_attributes(LPPROC_THREAD_ATTRIBUTE_LIST list) {
  if (list) DeleteProcThreadAttributeList(list);
  free(list);
  return NULL;
}

/* What the child inherits, and the first of its jobs. */
static int make_attributes(const ap_plan *plan, DWORD job_count,
                           LPPROC_THREAD_ATTRIBUTE_LIST *result) {
  SIZE_T size = 0;
  InitializeProcThreadAttributeList(NULL, 2, 0, &size);
  LPPROC_THREAD_ATTRIBUTE_LIST list = malloc(size);
  if (!list) return -ERROR_NOT_ENOUGH_MEMORY;
  if (!InitializeProcThreadAttributeList(list, 2, 0, &size)) {
    int error = failure();
    free(list);
    return error;
  }
  int error = attribute(list, PROC_THREAD_ATTRIBUTE_HANDLE_LIST, plan->handles,
                        plan->handle_count);
  if (!error)
    error = attribute(list, PROC_THREAD_ATTRIBUTE_JOB_LIST, plan->jobs, job_count);
  *result = error ? free_attributes(list) : list;
  return error;
}

/* What Windows says of a job that it cannot nest ("Nested Jobs"); and of other things. */
static bool may_be_the_job(int error) {
  return error == -ERROR_ACCESS_DENIED || error == -ERROR_NOT_SUPPORTED;
}

static int create(ap_plan *plan, PROCESS_INFORMATION *created) {
  STARTUPINFOEXW startup;
  int error = 0;
  bool only_listed = plan->handle_count > 0;
  memset(&startup, 0, sizeof startup);
  startup.StartupInfo.cb = sizeof startup;
  startup.StartupInfo.dwFlags = plan->startup_flags;
  startup.StartupInfo.wShowWindow = plan->show_window;
  if (plan->flags & AP_STD_HANDLES) {
    startup.StartupInfo.dwFlags |= STARTF_USESTDHANDLES;
    only_listed |= (plan->flags & AP_CLOSE_FDS) != 0;
  }
  if (plan->flags & AP_STD_HANDLES && only_listed)
    for (int i = 0; i < 3; i++) plan_add_handle(plan, plan->std[i]);
  startup.StartupInfo.hStdInput = plan->std[0];
  startup.StartupInfo.hStdOutput = plan->std[1];
  startup.StartupInfo.hStdError = plan->std[2];
  bool inherits = only_listed || !(plan->flags & AP_CLOSE_FDS);
  bool exclusive = inherits && !only_listed;

  if (exclusive)
    AcquireSRWLockExclusive(&inheritance);
  else
    AcquireSRWLockShared(&inheritance);
  for (int i = 0; plan->flags & AP_STD_HANDLES && i < 3; i++)
    if (!SetHandleInformation(plan->std[i], HANDLE_FLAG_INHERIT, HANDLE_FLAG_INHERIT))
      error = failure();
  bool again = plan->flags & AP_LAST_JOB_IF_POSSIBLE && plan->job_count;
  while (!error) {
    error = make_attributes(plan, plan->job_count - plan->jobs_left_out,
                            &startup.lpAttributeList);
    if (!error &&
        !CreateProcessW(plan->program, plan->command, NULL, NULL, inherits,
                        plan->creation_flags | CREATE_UNICODE_ENVIRONMENT |
                            EXTENDED_STARTUPINFO_PRESENT,
                        plan->environment, plan->cwd, &startup.StartupInfo, created))
      error = failure();
    startup.lpAttributeList = free_attributes(startup.lpAttributeList);
    if (!again || !may_be_the_job(error)) break;
    again = false;
    plan->jobs_left_out = 1;
    error = 0;
  }
  plan_close_std(plan);
  if (exclusive)
    ReleaseSRWLockExclusive(&inheritance);
  else
    ReleaseSRWLockShared(&inheritance);
  if (!error) CloseHandle(created->hThread);
  return error;
}

/* Carries out one plan, up to the packet for the child's port. Called with the lock held,
 * which it releases meanwhile. */
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
    child->jobs_left_out = plan->jobs_left_out;
  }
  if (child->process && child->doomed) TerminateProcess(child->process, 1);
  if (child->abandoned) {
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
