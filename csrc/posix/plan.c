/* Unpacks a request into one block that owns everything a child reads; and where the
 * environment is that children inherit. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

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

/* Blocks that the next plans get, up to MOST_KEPT or MOST_BYTES of them: a new one has to
 * be mapped, and the kernel fills each of its pages with zeroes first. With ap_lock. */
enum { MOST_KEPT = 32, MOST_BYTES = 1 << 20, PAGE = 4096 };

typedef struct kept_block kept_block;
struct kept_block {
  kept_block *next;
  size_t size;
};

static kept_block *kept;
static int kept_count;
static size_t kept_bytes;
static int given_count; /* that are in use */

/* At least *size bytes, and in *size how many. NULL: no memory. From mmap and not from
 * malloc: a child runs in it, and whoever watches over a heap (proot, valgrind) has no
 * part in that. */
static void *block_take(size_t *size) {
  pthread_mutex_lock(&ap_lock);
  for (kept_block **link = &kept; *link; link = &(*link)->next) {
    kept_block *block = *link;
    if (block->size < *size) continue;
    *link = block->next;
    kept_count--;
    kept_bytes -= block->size;
    given_count++;
    pthread_mutex_unlock(&ap_lock);
    *size = block->size;
    return block;
  }
  given_count++;
  pthread_mutex_unlock(&ap_lock);
  *size = (*size + PAGE - 1) & ~(size_t)(PAGE - 1);
  void *fresh = mmap(NULL, *size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
  if (fresh != MAP_FAILED) return fresh;
  pthread_mutex_lock(&ap_lock);
  given_count--;
  pthread_mutex_unlock(&ap_lock);
  return NULL;
}

static void block_give(void *memory, size_t size) {
  given_count--;
  if (kept_count == MOST_KEPT || kept_bytes + size > MOST_BYTES) {
    munmap(memory, size);
    return;
  }
  kept_block *block = memory;
  *block = (kept_block){.next = kept, .size = size};
  kept = block;
  kept_count++;
  kept_bytes += size;
}

/* By malloc: the child reads it, and does not run on it as on the rest. */
char *ap_text_new(int64_t size) { return malloc(size > 0 ? (size_t)size : 1); }

void ap_text_free(char *text) { free(text); }

ap_plan *plan_new(size_t stack_size, ap_request *request, const char *strings,
                  const int32_t *pass_fds,
                  const uint32_t *groups) {
  size_t pointers = (size_t)request->program_count + (size_t)request->arg_count +
                    (size_t)request->env_count + 3;
  size_t text_size = 0;
  if (!request->text)
    text_size = strings_size(strings, request->program_count + request->arg_count +
                                          request->env_count + (request->has_cwd ? 1 : 0));
  size_t fds = (size_t)request->pass_count, ids = (size_t)request->group_count;
  bool limited = request->limits || request->flags & AP_DIE_WITH_PARENT;
  size_t size = stack_size + sizeof(ap_plan) + pointers * sizeof(char *) +
                (fds + fds + 1) * sizeof(int32_t) + ids * sizeof(uint32_t) +
                text_size;
  if (limited) size += sizeof(plan_limits);
  char *memory = block_take(&size);
  if (!memory) return NULL;

  ap_plan *plan = (ap_plan *)(void *)(memory + stack_size);
  plan_limits *limits = (plan_limits *)(void *)(plan + 1);
  char **place = limited ? (char **)(void *)(limits + 1) : (char **)(void *)limits;
  int32_t *numbers = (int32_t *)(void *)(place + pointers);
  uint32_t *own_groups = (uint32_t *)(numbers + fds + fds + 1);
  char *text = (char *)(own_groups + ids);
  if (text_size) memcpy(text, strings, text_size);

  *plan = (ap_plan){
      .memory = memory,
      .memory_size = size,
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
      .own_text = request->text,
      .limits = limited ? limits : NULL,
      .open_files = "/proc/self/fd",
  };
  if (limited) limits_fill(limits, request);
  if (request->text) {
    text = request->text;
    request->text = NULL;
  }
  plan->programs = (const char *const *)point_at(&place, &text,
                                                 request->program_count);
  plan->argv = point_at(&place, &text, request->arg_count);
  plan->envp = point_at(&place, &text, request->env_count);
  if (request->has_cwd) plan->cwd = text;
  if (fds) memcpy(numbers, pass_fds, fds * sizeof *numbers);
  if (ids) memcpy(own_groups, groups, ids * sizeof *own_groups);
  return plan;
}

void plan_free(ap_plan *plan) {
  if (!plan) return;
  free(plan->own_text);
  block_give(plan->memory, plan->memory_size);
}

void plan_keep(ap_plan *plan, int result_fd) {
  int32_t *keep = (int32_t *)plan->keep;
  int n = 0;
  bool placed = result_fd < 0;
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

int ap_count_plans(void) {
  pthread_mutex_lock(&ap_lock);
  int count = given_count;
  pthread_mutex_unlock(&ap_lock);
  return count;
}
