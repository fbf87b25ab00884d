/* Unpacks a request into one block that owns everything a child reads; and where the
 * environment is that children inherit. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __APPLE__
#include <crt_externs.h>
#endif

#include "internal.h"

#ifdef __APPLE__
/* `environ` is the main program's there, not to be linked to by others (environ(7)). */
char ***ap_environ(void) { return _NSGetEnviron(); }
#else
extern char **environ;

char ***ap_environ(void) { return &environ; }
#endif

/* Writes pointers to the `count` NUL-terminated strings at *text, and a NULL, to *place.
 * Moves both behind what was used. */
static char **point_at(char ***place, char **text, int count) {
  char **first = *place;
  for (int i = 0; i < count; i++) {
    *(*place)++ = *text;
    *text += strlen(*text) + 1;
  }
  *(*place)++ = NULL;
  return first;
}

static size_t strings_size(const char *strings, int count) {
  const char *end = strings;
  while (count-- > 0) end += strlen(end) + 1;
  return (size_t)(end - strings);
}

void *plan_new(size_t stack_size, const ap_request *request,
               const char *strings, const int32_t *pass_fds,
               const uint32_t *groups, ap_plan **result) {
  size_t pointers = (size_t)request->program_count + (size_t)request->arg_count +
                    (size_t)request->env_count + 3;
  size_t text_size =
      strings_size(strings, request->program_count + request->arg_count +
                                request->env_count + (request->has_cwd ? 1 : 0));
  size_t fds = (size_t)request->pass_count, ids = (size_t)request->group_count;
  size_t size = stack_size + sizeof(ap_plan) + pointers * sizeof(char *) +
                (fds + fds + 1) * sizeof(int32_t) + ids * sizeof(uint32_t) +
                text_size;
  char *memory = malloc(size);
  if (!memory) return NULL;

  ap_plan *plan = (ap_plan *)(void *)(memory + stack_size);
  char **place = (char **)(void *)(plan + 1);
  int32_t *numbers = (int32_t *)(void *)(place + pointers);
  uint32_t *own_groups = (uint32_t *)(numbers + fds + fds + 1);
  char *text = (char *)(own_groups + ids);
  memcpy(text, strings, text_size);

  *plan = (ap_plan){
      .flags = request->flags,
      .process_group = request->process_group,
      .file_mode_mask = (unsigned)request->file_mode_mask,
      .gid = request->gid,
      .uid = request->uid,
      .fds = {request->fds[0], request->fds[1], request->fds[2]},
      .pass_fds = numbers,
      .pass_count = request->pass_count,
      .keep = numbers + fds,
      .groups = own_groups,
      .group_count = request->group_count,
      .result_fd = -1,
      .open_files = "/proc/self/fd",
  };
  plan->programs = (const char *const *)point_at(&place, &text,
                                                 request->program_count);
  plan->argv = point_at(&place, &text, request->arg_count);
  plan->envp = point_at(&place, &text, request->env_count);
  if (request->has_cwd) plan->cwd = text;
  if (fds) memcpy(numbers, pass_fds, fds * sizeof *numbers);
  if (ids) memcpy(own_groups, groups, ids * sizeof *own_groups);
  *result = plan;
  return memory;
}

void plan_keep(ap_plan *plan, int result_fd) {
  int32_t *keep = (int32_t *)plan->keep;
  int n = 0;
  bool placed = false;
  for (int i = 0; i < plan->pass_count; i++) {
    int32_t fd = plan->pass_fds[i];
    if (fd < 3) continue;
    if (!placed && result_fd < fd) {
      keep[n++] = result_fd;
      placed = true;
    }
    keep[n++] = fd;
    if (fd == result_fd) placed = true;
  }
  if (!placed) keep[n++] = result_fd;
  plan->keep_count = n;
  plan->result_fd = result_fd;
}
