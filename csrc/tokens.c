#include "tokens.h"

#include <stddef.h>
#include <stdlib.h>

enum { FIRST_SLOTS = 64, MOST_USES = 0x3fffffff };

typedef struct {
  struct ap_child *child;
  int64_t token;
  uint32_t uses;
  uint32_t next_free; /* slot number; 0: none */
} slot;

static slot *slots;
static uint32_t slot_count, first_free;

static int more_slots(void) {
  uint32_t count = slot_count ? slot_count * 2 : FIRST_SLOTS;
  slot *grown = realloc(slots, count * sizeof *slots);
  if (!grown) return 0;
  slots = grown;
  for (uint32_t i = count; i-- > slot_count;) {
    slots[i] = (slot){.next_free = first_free};
    first_free = i + 1;
  }
  slot_count = count;
  return 1;
}

int64_t token_new(struct ap_child *child) {
  if (!first_free && !more_slots()) return 0;
  uint32_t number = first_free;
  slot *own = &slots[number - 1];
  first_free = own->next_free;
  own->uses = (own->uses + 1) & MOST_USES;
  own->child = child;
  own->token = ((int64_t)own->uses << 32) | number;
  return own->token;
}

struct ap_child *child_in_slot(uint32_t number) {
  return number && number <= slot_count ? slots[number - 1].child : NULL;
}

struct ap_child *child_find(int64_t token) {
  struct ap_child *child = token > 0 ? child_in_slot((uint32_t)token) : NULL;
  return child && slots[(uint32_t)token - 1].token == token ? child : NULL;
}

uint32_t token_slots(void) { return slot_count; }

void token_free(int64_t token) {
  uint32_t number = (uint32_t)token;
  slots[number - 1].child = NULL;
  slots[number - 1].next_free = first_free;
  first_free = number;
}
