/* Unpacks a request into a plan, which owns what a child is made of: texts and handles. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

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

void plan_close_std(ap_plan *plan) {
  for (int i = 0; i < 3; i++) {
    if (plan->flags & AP_STD_HANDLES && plan->std[i]) CloseHandle(plan->std[i]);
    plan->std[i] = NULL;
  }
}

void plan_free(ap_plan *plan) {
  plan_close_std(plan);
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

void plan_add_handle(ap_plan *plan, HANDLE handle) {
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

static size_t text_size(int length) {
  return length < 0 ? 0 : ((size_t)length + 1) * sizeof(wchar_t);
}

/* The length of a block of NAME=value strings, with the last one's NUL. */
static int block_length(const wchar_t *block) {
  const wchar_t *at = block;
  while (*at) at += wcslen(at) + 1;
  return (int)(at - block);
}

int plan_new(const ap_request *request, const char *strings, const int64_t *handles,
             const int64_t *jobs, ap_plan **result) {
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
  size += text_size(request->program_length) + text_size(request->command_length) +
          text_size(request->cwd_length) + text_size(environment_length);
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
    plan_add_handle(plan, to_handle(handles[i]));
  *result = plan;
  plan = NULL;

finish:
  if (inherited) FreeEnvironmentStringsW(inherited);
  if (plan) plan_free(plan);
  return error;
}
