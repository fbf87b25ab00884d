/* What the ports of all platforms share: numbers for the children of this process. */
#ifndef AIOPROC_TOKENS_H
#define AIOPROC_TOKENS_H

#include <stdint.h>

struct ap_child;

/* A token is a slot's number and how often the slot was used, so that a stale event or a
 * late signal never reaches the slot's next child. All of these with the lock held that
 * the platform has for its children. */

/* > 0: the child's token, until token_free. 0: no memory. */
int64_t token_new(struct ap_child *child);
/* NULL: the token is gone, or never was. */
struct ap_child *child_find(int64_t token);
/* By the low half of a token, the number of a slot from 1 on; NULL: nobody is there. */
struct ap_child *child_in_slot(uint32_t number);
/* The highest number of a slot. */
uint32_t token_slots(void);
void token_free(int64_t token);

#endif
