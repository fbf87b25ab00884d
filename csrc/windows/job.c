/* Jobs: a child and all that it starts, ended and counted as one. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

/* Everyone who uses the handle without the lock is counted in `uses`, and so is the
 * table: ap_job_close, from another thread, closes it only after the last of them. */
struct ap_job {
  int64_t id;
  HANDLE handle;
  int flags;
  JOBOBJECT_EXTENDED_LIMIT_INFORMATION limits;
  int uses;
  bool in_news;
  ap_port *port; /* NULL: it has been closed */
  ap_job *next;  /* in its bucket */
  ap_job *next_news;
};

/* The table of all open jobs, by id. */
enum { BUCKETS = 64 };
static ap_job *buckets[BUCKETS];
static uintptr_t last_id;

/* The link to it, or the one at the end of its bucket. With the lock held. */
static ap_job **find(int64_t id) {
  ap_job **link = &buckets[(uint64_t)id % BUCKETS];
  while (*link && (*link)->id != id) link = &(*link)->next;
  return link;
}

static int64_t new_id(void) {
  lock();
  do
    last_id = (last_id + 1) & (UINTPTR_MAX >> KEY_BITS);
  while (!last_id || *find((int64_t)last_id));
  int64_t id = (int64_t)last_id;
  unlock();
  return id;
}

static ap_job *use(int64_t id) {
  lock();
  ap_job *job = *find(id);
  if (job) job->uses++;
  unlock();
  return job;
}

static void release(ap_job *job) {
  lock();
  bool unused = --job->uses == 0;
  unlock();
  if (!unused) return;
  CloseHandle(job->handle);
  free(job);
}

static int64_t active(HANDLE handle) {
  JOBOBJECT_BASIC_ACCOUNTING_INFORMATION accounting;
  if (!QueryInformationJobObject(handle, JobObjectBasicAccountingInformation,
                                 &accounting, sizeof accounting, NULL))
    return failure();
  return accounting.ActiveProcesses;
}

/* iocp: NULL ends an association, from Windows 8 on
 * ("JOBOBJECT_ASSOCIATE_COMPLETION_PORT structure"). */
static int associate(HANDLE handle, HANDLE iocp, int64_t id) {
  JOBOBJECT_ASSOCIATE_COMPLETION_PORT association = {
      .CompletionKey = (PVOID)(((ULONG_PTR)id << KEY_BITS) | KEY_JOB),
      .CompletionPort = iocp,
  };
  return SetInformationJobObject(handle, JobObjectAssociateCompletionPortInformation,
                                 &association, sizeof association)
             ? 0
             : failure();
}

static int set_limits(ap_job *job) {
  return SetInformationJobObject(job->handle, JobObjectExtendedLimitInformation,
                                 &job->limits, sizeof job->limits)
             ? 0
             : failure();
}

int64_t ap_job_open(ap_port *port, int flags) {
  int error = 0;
  int64_t id = new_id();
  ap_job *job = calloc(1, sizeof *job);
  if (!job) return -ERROR_NOT_ENOUGH_MEMORY;
  job->id = id;
  job->flags = flags;
  job->uses = 1;
  job->handle = CreateJobObjectW(NULL, NULL);
  if (!job->handle) {
    error = failure();
    goto finish;
  }
  if (flags & AP_KILL_ON_CLOSE) {
    job->limits.BasicLimitInformation.LimitFlags = JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE;
    error = set_limits(job);
  }
  if (!error) error = associate(job->handle, port->iocp, id);
  if (error) goto finish;
  lock();
  if (port->closing) {
    error = -ERROR_OPERATION_ABORTED;
  } else {
    ap_job **bucket = &buckets[(uint64_t)id % BUCKETS];
    job->next = *bucket;
    *bucket = job;
    job->port = port;
    port->live++;
    job = NULL;
  }
  unlock();

finish:
  if (job) {
    if (job->handle) CloseHandle(job->handle);
    free(job);
  }
  return error ? error : id;
}

int64_t ap_job_handle(int64_t id) {
  lock();
  ap_job *job = *find(id);
  int64_t handle = job ? (int64_t)(intptr_t)job->handle : -ERROR_INVALID_HANDLE;
  unlock();
  return handle;
}

int64_t ap_job_active(int64_t id) {
  ap_job *job = use(id);
  if (!job) return -ERROR_INVALID_HANDLE;
  int64_t result = active(job->handle);
  release(job);
  return result;
}

int ap_job_spare(int64_t id) {
  ap_job *job = use(id);
  if (!job) return -ERROR_INVALID_HANDLE;
  job->flags &= ~AP_KILL_ON_CLOSE;
  job->limits.BasicLimitInformation.LimitFlags &= ~(DWORD)JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE;
  int result = set_limits(job);
  release(job);
  return result;
}

int ap_job_limit(int64_t id, uint64_t memory, uint32_t processes) {
  ap_job *job = use(id);
  if (!job) return -ERROR_INVALID_HANDLE;
  DWORD *flags = &job->limits.BasicLimitInformation.LimitFlags;
  if (memory) *flags |= JOB_OBJECT_LIMIT_JOB_MEMORY;
  if (processes) *flags |= JOB_OBJECT_LIMIT_ACTIVE_PROCESS;
  job->limits.JobMemoryLimit = memory < SIZE_MAX ? (SIZE_T)memory : SIZE_MAX;
  job->limits.BasicLimitInformation.ActiveProcessLimit = processes;
  int result = set_limits(job);
  release(job);
  return result;
}

int ap_job_limit_cpu(int64_t id, uint32_t rate) {
  ap_job *job = use(id);
  if (!job) return -ERROR_INVALID_HANDLE;
  JOBOBJECT_CPU_RATE_CONTROL_INFORMATION control;
  memset(&control, 0, sizeof control);
  control.ControlFlags =
      JOB_OBJECT_CPU_RATE_CONTROL_ENABLE | JOB_OBJECT_CPU_RATE_CONTROL_HARD_CAP;
  control.CpuRate = rate;
  int result = SetInformationJobObject(job->handle, JobObjectCpuRateControlInformation,
                                       &control, sizeof control)
                   ? 0
                   : failure();
  release(job);
  return result;
}

int ap_job_terminate(int64_t id, uint32_t exit_code) {
  ap_job *job = use(id);
  if (!job) return -ERROR_INVALID_HANDLE;
  int result = TerminateJobObject(job->handle, exit_code) ? 0 : failure();
  release(job);
  return result;
}

int ap_job_pids(int64_t id, uint32_t *pids, int n) {
  int result;
  JOBOBJECT_BASIC_PROCESS_ID_LIST *list = NULL;
  ap_job *job = use(id);
  if (!job) return -ERROR_INVALID_HANDLE;
  DWORD size = (DWORD)(sizeof *list + (size_t)n * sizeof list->ProcessIdList[0]);
  list = calloc(1, size);
  if (!list) {
    result = -ERROR_NOT_ENOUGH_MEMORY;
    goto finish;
  }
  if (!QueryInformationJobObject(job->handle, JobObjectBasicProcessIdList, list, size,
                                 NULL) &&
      GetLastError() != ERROR_MORE_DATA) {
    result = failure();
    goto finish;
  }
  for (result = 0; result < n && result < (int)list->NumberOfProcessIdsInList; result++)
    pids[result] = (uint32_t)list->ProcessIdList[result];

finish:
  free(list);
  release(job);
  return result;
}

/* With the lock held. */
static void detach(ap_job *job) {
  ap_port *port = job->port;
  if (!port) return;
  if (job->in_news) {
    ap_job **link = &port->job_news;
    while (*link != job) link = &(*link)->next_news;
    *link = job->next_news;
    job->in_news = false;
  }
  job->port = NULL;
  port->live--;
}

int ap_job_close(int64_t id) {
  lock();
  ap_job **link = find(id);
  ap_job *job = *link;
  if (job) {
    *link = job->next;
    detach(job);
  }
  unlock();
  if (!job) return -ERROR_INVALID_HANDLE;
  /* The system would end them with 0, as if they had succeeded. */
  if (job->flags & AP_KILL_ON_CLOSE) TerminateJobObject(job->handle, 1);
  /* Others may have handles of it. */
  associate(job->handle, NULL, id);
  release(job);
  return 0;
}

/* -- the port */

void job_message(ap_port *port, ULONG_PTR key, DWORD message) {
  if (message != JOB_OBJECT_MSG_ACTIVE_PROCESS_ZERO) return;
  /* It may have been closed since. */
  ap_job *job = *find((int64_t)(key >> KEY_BITS));
  if (!job || job->port != port || job->in_news || active(job->handle)) return;
  job->in_news = true;
  job->next_news = port->job_news;
  port->job_news = job;
}

void job_next(ap_port *port, ap_completion *out) {
  ap_job *job = port->job_news;
  port->job_news = job->next_news;
  job->in_news = false;
  memset(out, 0, sizeof *out);
  out->token = job->id;
  out->kind = AP_JOB_EMPTY;
}

void jobs_detach(ap_port *port) {
  for (int i = 0; i < BUCKETS; i++)
    for (ap_job *job = buckets[i]; job; job = job->next)
      if (job->port == port) {
        detach(job);
        associate(job->handle, NULL, job->id);
      }
}
