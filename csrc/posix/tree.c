/* Finding and ending what a child has started.
 *
 * A round goes through all processes once, for all trees. What it sees of those that can
 * be of interest is kept until the next round, in two tables that take turns, and with it,
 * in links, which trees they are members of. Members get their signals when all have been
 * seen: a process whose parent has ended does not tell any more whose child it was. Only
 * those that have come since the last round, and are known without a parent, get them the
 * moment they are found, since some do not live long. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "internal.h"

enum {
  ENTRIES = 1 << 16,
  SLOTS = 2 * ENTRIES,
  LINKS = 1 << 17,
  PAIRS = 2 * AP_TREES_MOST,
  CHASE = 200, /* looks at the youngest process in a round */
  GENERATIONS = 64 /* as far as parents are followed */
};

/* What this round knows of a process's environment. */
enum { UNREAD, READ, IN_EXEC };

/* One process. */
typedef struct {
  process_facts facts;
  uint32_t links; /* the first; 0: none */
  uint32_t slot;
  int8_t environment;
  bool was_others; /* it has been seen with another parent than us */
} entry;

typedef struct {
  int count;
  entry entries[ENTRIES];
  uint32_t slots[SLOTS]; /* by number: index of the entry, plus one */
} table;

/* The process is a member of the tree. */
typedef struct {
  uint32_t tree; /* its id */
  uint32_t next;
  int32_t step; /* the last whose signal it has */
} membership;

/* Trees by something of theirs, which several may have. */
typedef struct {
  uint64_t key;
  int32_t place; /* of the tree in this round, plus one; 0: free */
} pair;

typedef struct {
  pair pairs[PAIRS];
} finder;

struct ap_trees {
  processes all;
  pid_t self;
  table *now, *before;
  uint32_t last_id;
  uint32_t free_link, fresh_link;
  /* This round's. */
  ap_tree *const *trees;
  int n;
  uint32_t mask;   /* of the finders */
  uint64_t oldest; /* no process that started earlier can be a member */
  bool marks;      /* some tree has one */
  bool anchored[AP_TREES_MOST]; /* the number of leader and session are this tree's */
  bool fresh[AP_TREES_MOST];    /* its first round */
  bool overfull[AP_TREES_MOST]; /* it has members for which there were no links */
  finder by_id, by_leader, by_session, by_mark;
  entry stray; /* a process for which there was no entry */
  membership links[LINKS];
  table tables[2];
};

static uint32_t hash(uint64_t key) {
  return (uint32_t)(key * UINT64_C(0x9E3779B97F4A7C15) >> 32);
}

/* -- trees by a key */

static void finder_add(const ap_trees *t, finder *in, uint64_t key, int place) {
  uint32_t at = hash(key) & t->mask;
  while (in->pairs[at].place) at = (at + 1) & t->mask;
  in->pairs[at] = (pair){key, place + 1};
}

/* Gives one place after the other, then -1; *at is hash(key) at first. */
static int finder_next(const ap_trees *t, const finder *in, uint64_t key, uint32_t *at) {
  for (;;) {
    const pair *one = &in->pairs[(*at)++ & t->mask];
    if (!one->place) return -1;
    if (one->key == key) return one->place - 1;
  }
}

static int place_of(const ap_trees *t, uint32_t id) {
  uint32_t at = hash(id);
  return finder_next(t, &t->by_id, id, &at);
}

/* -- the tables */

static entry *table_find(table *in, pid_t pid) {
  for (uint32_t slot = hash((uint64_t)pid);; slot++) {
    uint32_t index = in->slots[slot % SLOTS];
    if (!index) return NULL;
    if (in->entries[index - 1].facts.pid == pid) return &in->entries[index - 1];
  }
}

/* NULL: it is full. */
static entry *table_add(table *in, pid_t pid) {
  if (in->count == ENTRIES) return NULL;
  uint32_t slot = hash((uint64_t)pid) % SLOTS;
  while (in->slots[slot]) slot = (slot + 1) % SLOTS;
  entry *new = &in->entries[in->count++];
  in->slots[slot] = (uint32_t)in->count;
  new->slot = slot;
  return new;
}

/* -- memberships */

static membership *link_of(ap_trees *t, const entry *of, uint32_t tree) {
  for (uint32_t at = of->links; at; at = t->links[at].next)
    if (t->links[at].tree == tree) return &t->links[at];
  return NULL;
}

static void links_free(ap_trees *t, entry *of) {
  while (of->links) {
    uint32_t at = of->links;
    of->links = t->links[at].next;
    t->links[at].next = t->free_link;
    t->free_link = at;
  }
}

/* From the last round's entry of the same process; without those of trees that are
 * gone. */
static void links_move(ap_trees *t, entry *from, entry *to) {
  while (from->links) {
    uint32_t at = from->links;
    from->links = t->links[at].next;
    uint32_t *list = place_of(t, t->links[at].tree) < 0 ? &t->free_link : &to->links;
    t->links[at].next = *list;
    *list = at;
  }
}

/* As far as starts say so here. */
static bool is_older(const process_facts *one, uint64_t start) {
  return processes_are_dated && one->start < start;
}

/* Whether it was not one before. */
static bool join(ap_trees *t, entry *one, int place) {
  ap_tree *tree = t->trees[place];
  if (is_older(&one->facts, tree->start)) return false;
  if (link_of(t, one, tree->id)) return false;
  uint32_t at = t->free_link;
  if (at) {
    t->free_link = t->links[at].next;
  } else if (t->fresh_link < LINKS) {
    at = t->fresh_link++;
  } else {
    if (one->facts.alive) t->overfull[place] = true;
    if (tree->signal == SIGKILL)
      processes_signal(&t->all, &one->facts, UINT64_C(1) << (SIGKILL - 1), false);
    return false;
  }
  t->links[at] = (membership){.tree = tree->id, .next = one->links};
  one->links = at;
  if (one->facts.alive) tree->newcomers++;
  return true;
}

/* -- what makes a process a member */

static bool join_by_leader(ap_trees *t, entry *one) {
  bool joined = false;
  uint64_t key = (uint64_t)one->facts.pid;
  uint32_t at = hash(key);
  for (int place; (place = finder_next(t, &t->by_leader, key, &at)) >= 0;)
    if (t->anchored[place] && t->trees[place]->start == one->facts.start)
      joined |= join(t, one, place);
  return joined;
}

static bool join_by_session(ap_trees *t, entry *one) {
  bool joined = false;
  uint64_t key = (uint64_t)one->facts.session;
  uint32_t at = hash(key);
  for (int place; (place = finder_next(t, &t->by_session, key, &at)) >= 0;)
    if (t->anchored[place]) joined |= join(t, one, place);
  return joined;
}

static bool join_by_parent(ap_trees *t, entry *one) {
  entry *parent = table_find(t->now, one->facts.parent);
  if (!parent || !parent->links) return false;
  bool joined = false, checked = false;
  for (uint32_t at = parent->links; at; at = t->links[at].next) {
    uint32_t tree = t->links[at].tree;
    if (link_of(t, one, tree)) continue;
    if (!checked) {
      /* The same before and after: it was so when the other named it as its parent. */
      process_facts facts;
      if (processes_facts(&t->all, parent->facts.pid, &facts) < 0) return false;
      if (facts.start != parent->facts.start) return false;
      checked = true;
    }
    joined |= join(t, one, place_of(t, tree));
  }
  return joined;
}

static const char NAME[] = "AIOPROC_TREE=";
enum { IN_NAME_END = sizeof NAME - 1, ELSEWHERE = -1, DIGITS = 16 };

typedef struct {
  ap_trees *t;
  entry *one;
  int at;     /* how much of NAME has been seen; ELSEWHERE: another name */
  int digits; /* of a mark; more than DIGITS: it is none */
  uint64_t mark;
  bool joined;
} reader;

static void mark_ends(reader *r) {
  if (r->digits == DIGITS) {
    uint32_t at = hash(r->mark);
    for (int place; (place = finder_next(r->t, &r->t->by_mark, r->mark, &at)) >= 0;)
      r->joined |= join(r->t, r->one, place);
  }
  r->digits = 0;
  r->mark = 0;
}

static void read_piece(void *argument, const char *bytes, size_t length) {
  reader *r = argument;
  const char *end = bytes + length;
  while (bytes < end) {
    if (r->at == ELSEWHERE) {
      bytes = memchr(bytes, '\0', (size_t)(end - bytes));
      if (!bytes) return;
      bytes++;
      r->at = 0;
      continue;
    }
    char byte = *bytes++;
    if (r->at < IN_NAME_END) {
      r->at = byte == NAME[r->at] ? r->at + 1 : byte ? ELSEWHERE : 0;
    } else if (byte == ':' || byte == '\0') {
      mark_ends(r);
      if (!byte) r->at = 0;
    } else {
      int digit = byte >= '0' && byte <= '9' ? byte - '0'
                : byte >= 'a' && byte <= 'f' ? byte - 'a' + 10 : -1;
      r->digits = digit < 0 || r->digits >= DIGITS ? DIGITS + 1 : r->digits + 1;
      r->mark = r->mark << 4 | (uint64_t)(digit & 15);
    }
  }
}

static bool join_by_mark(ap_trees *t, entry *one) {
  reader r = {.t = t, .one = one};
  int result = processes_environment(&t->all, one->facts.pid, read_piece, &r);
  one->environment = result == PROCESS_IN_EXEC ? IN_EXEC : result == 0 ? READ : UNREAD;
  /* It may be another user's, who does not let us read it. */
  if (result < 0) return r.joined;
  if (r.at == IN_NAME_END) mark_ends(&r);
  return r.joined;
}

/* -- who is in the midst of an exec */

/* Whether it is given children whose parents have ended, as far as that can be told. */
static bool may_adopt(ap_trees *t, pid_t pid) {
  if (pid <= 1) return true;
  if (pid == t->self) return processes_we_adopt();
  pid_t ancestor = getppid();
  for (int i = 0; i < GENERATIONS && ancestor > 1; i++) {
    process_facts facts;
    if (ancestor == pid || processes_facts(&t->all, ancestor, &facts) < 0) return true;
    ancestor = facts.parent;
  }
  return false;
}

/* It has no mark to be read. Who has lost his parent is given to the first process, or to an
 * ancestor of him that is a member, we or an ancestor of ours. With any other parent, which
 * is no member, he is none; on a busy machine there is one of those at any time. */
static bool may_be_member(ap_trees *t, const ap_tree *tree, const entry *one) {
  if (is_older(&one->facts, tree->start) || link_of(t, one, tree->id)) return false;
  for (int i = 0; i < GENERATIONS; i++) {
    process_facts parent;
    pid_t pid = one->facts.parent;
    if (may_adopt(t, pid) || processes_facts(&t->all, pid, &parent) < 0) return true;
    if (is_older(&one->facts, parent.start)) return true; /* another one has the number now */
    if (is_older(&parent, tree->start)) return false;
    const entry *known = table_find(t->now, pid);
    if (!known || known->facts.start != parent.start || link_of(t, known, tree->id)) return true;
    if (known->environment != IN_EXEC) return known->environment == UNREAD;
    one = known;
  }
  return true;
}

static void count_in_exec(ap_trees *t, const entry *one) {
  if (one->environment != IN_EXEC || !one->facts.alive) return;
  for (int i = 0; i < t->n; i++)
    if (t->trees[i]->mark && may_be_member(t, t->trees[i], one)) t->trees[i]->in_exec++;
}

/* -- signals */

static bool has_it(const ap_tree *tree, const process_facts *who) {
  if (tree->flags & AP_TREE_LEADER_HAS_IT && who->pid == tree->leader) return true;
  return tree->group && who->group == tree->group &&
         (!processes_are_dated || who->start <= tree->group_time);
}

/* at_once: before all have been seen. */
static void act(ap_trees *t, entry *on, bool at_once) {
  const uint64_t KILL = UINT64_C(1) << (SIGKILL - 1);
  process_facts *who = &on->facts;
  if (!who->alive) return;
  uint64_t signals = 0;
  bool resume = false;
  for (uint32_t at = on->links; at; at = t->links[at].next) {
    int place = place_of(t, t->links[at].tree);
    const ap_tree *tree = t->trees[place];
    if (at_once && t->fresh[place]) continue;
    if (tree->signal == SIGKILL) {
      signals |= KILL;
    } else if (tree->signal > 0 && on != &t->stray) {
      if (t->links[at].step != tree->step && !has_it(tree, who))
        signals |= UINT64_C(1) << (tree->signal - 1);
      if (tree->flags & AP_TREE_RESUME) resume = true;
    }
  }
  if (signals & KILL) signals = KILL;
  if (!signals && !(resume && who->stopped)) return;
  int error = processes_signal(&t->all, who, signals, resume);
  if (error == -ESRCH) who->alive = false;
  for (uint32_t at = on->links; at; at = t->links[at].next) {
    int place = place_of(t, t->links[at].tree);
    ap_tree *tree = t->trees[place];
    if (tree->signal <= 0 || (at_once && t->fresh[place])) continue;
    if (error == 0 || error == -EPERM) t->links[at].step = tree->step;
    if (error == 0 && signals) tree->signalled++;
    if (error < 0 && error != -ESRCH) tree->denied++;
  }
}

/* -- orphans */

/* Where orphans are given to us (we are process 1 of a container, or have asked for them, see
 * PR_SET_CHILD_SUBREAPER in prctl(2)) nobody else waits for a member that has ended. The
 * leader is waited for by whoever has made it; where nobody knows it, it is told by this, that
 * it has never had another parent. */
static void reap_orphan(ap_trees *t, const entry *one) {
  const process_facts *who = &one->facts;
  if (who->alive || who->parent != t->self || !one->links) return;
  bool is_orphan = one->was_others;
  for (uint32_t at = one->links; at; at = t->links[at].next) {
    const ap_tree *tree = t->trees[place_of(t, t->links[at].tree)];
    if (who->pid == tree->leader) return;
    is_orphan |= tree->leader >= 0;
  }
  if (is_orphan) waitpid(who->pid, NULL, WNOHANG);
}

/* -- a round */

static void count(ap_trees *t, const entry *one) {
  if (!one->facts.alive) return;
  for (uint32_t at = one->links; at; at = t->links[at].next) {
    ap_tree *tree = t->trees[place_of(t, t->links[at].tree)];
    if (tree->alive < AP_TREE_PIDS) tree->pids[tree->alive] = one->facts.pid;
    tree->alive++;
  }
}

static void visit(ap_trees *t, pid_t pid) {
  if (pid == 1 || pid == t->self) return;
  process_facts facts;
  int error = processes_facts(&t->all, pid, &facts);
  entry *before = table_find(t->before, pid);
  if (error == -ESRCH || (error < 0 && !before)) return;
  if (error == 0 && is_older(&facts, t->oldest)) return;
  entry *one = table_add(t->now, pid);
  if (!one) one = &t->stray;
  one->facts = error < 0 ? before->facts : facts;
  one->links = 0;
  one->environment = UNREAD;
  one->was_others = one->facts.parent != t->self;
  if (before && before->facts.start == one->facts.start) {
    links_move(t, before, one);
    one->was_others |= before->was_others;
  }
  if (error == 0) {
    join_by_leader(t, one);
    join_by_parent(t, one);
    bool came = join_by_session(t, one);
    /* With one tree, who is a member has no further question to answer. */
    if (t->marks && one->facts.alive && !(t->n == 1 && one->links))
      came |= join_by_mark(t, one);
    if (came) act(t, one, true);
  }
  if (one == &t->stray) {
    act(t, one, false);
    count(t, one);
    count_in_exec(t, one);
    links_free(t, one);
  }
}

/* A member that was in the session before vouches for its number when the leader is gone. */
static void anchor_by_members(ap_trees *t) {
  for (int i = 0; i < t->now->count; i++) {
    const entry *one = &t->now->entries[i];
    for (uint32_t at = one->links; at && one->facts.alive; at = t->links[at].next) {
      int place = place_of(t, t->links[at].tree);
      int32_t session = t->trees[place]->session;
      if (session && one->facts.session == session) t->anchored[place] = true;
    }
  }
}

/* What the order of the numbers has hidden: children that were seen before their
 * parents. */
static void join_the_rest(ap_trees *t) {
  for (bool more = true; more;) {
    more = false;
    for (int i = 0; i < t->now->count; i++) {
      entry *one = &t->now->entries[i];
      bool joined = join_by_session(t, one);
      if (join_by_parent(t, one) || joined) more = true;
    }
  }
}

/* Ends those that are younger than this one, if they have the mark of a tree that is to be
 * killed. The more processes there are, the longer a round takes, and the less likely it
 * is that one which forks and ends without a pause is met by it; but that is the youngest.
 * They are kept like others: the next round sees what has become of them. */
static void chase(ap_trees *t, pid_t last) {
  bool kills = false;
  for (int i = 0; i < t->n; i++)
    if (t->trees[i]->signal == SIGKILL && t->trees[i]->mark) kills = true;
  for (int looks = 0; kills && looks < CHASE; looks++) {
    pid_t youngest = processes_youngest(&t->all);
    if (youngest == last) return;
    /* After the highest number that there can be the lowest that is free comes. */
    pid_t pid = last < youngest && last > youngest - 3 ? last + 1 : youngest - 2;
    for (; pid <= youngest; pid++) {
      entry *one = &t->stray;
      one->links = 0;
      if (pid <= 1 || pid == t->self) continue;
      if (table_find(t->now, pid) || processes_facts(&t->all, pid, &one->facts) < 0) continue;
      if (!one->facts.alive) continue;
      if (!join_by_mark(t, one)) {
        count_in_exec(t, one);
        continue;
      }
      /* Threads have files as well, which are not listed. */
      if (!processes_is_own_thread(&t->all, pid)) {
        act(t, one, false);
        count(t, one);
        one->was_others = one->facts.parent != t->self;
        entry *kept = table_add(t->now, pid);
        if (kept) {
          uint32_t slot = kept->slot;
          *kept = *one;
          kept->slot = slot;
          one->links = 0;
        }
      }
      links_free(t, one);
    }
    last = youngest;
  }
}

static void begin(ap_trees *t, ap_tree *const *trees, int n) {
  t->trees = trees;
  t->n = n;
  t->mask = 7;
  while (t->mask + 1 < 2 * (uint32_t)n) t->mask = 2 * t->mask + 1;
  finder *finders[] = {&t->by_id, &t->by_leader, &t->by_session, &t->by_mark};
  for (size_t i = 0; i < sizeof finders / sizeof *finders; i++)
    memset(finders[i]->pairs, 0, (t->mask + 1) * sizeof(pair));
  t->oldest = UINT64_MAX;
  t->marks = false;
  for (int i = 0; i < n; i++) {
    ap_tree *tree = trees[i];
    tree->alive = tree->newcomers = tree->signalled = tree->denied = tree->in_exec = 0;
    t->fresh[i] = !tree->id;
    if (!tree->id) tree->id = ++t->last_id;
    process_facts leader;
    t->overfull[i] = false;
    t->anchored[i] = tree->leader > 0 && processes_facts(&t->all, tree->leader, &leader) == 0;
    if (t->anchored[i] && tree->start)
      t->anchored[i] = leader.start == tree->start;
    else if (t->anchored[i] && tree->born && processes_are_dated)
      t->anchored[i] = leader.start <= tree->born;
    if (t->anchored[i]) tree->start = leader.start;
    if (tree->start < t->oldest) t->oldest = tree->start;
    finder_add(t, &t->by_id, tree->id, i);
    if (tree->leader > 0) finder_add(t, &t->by_leader, (uint64_t)tree->leader, i);
    if (tree->session) finder_add(t, &t->by_session, (uint64_t)tree->session, i);
    if (tree->mark) finder_add(t, &t->by_mark, tree->mark, i);
    if (tree->mark) t->marks = true;
  }
}

int ap_trees_round(ap_trees *t, ap_tree *const *trees, int n) {
  if (n > AP_TREES_MOST) return -E2BIG;
  int error = processes_begin(&t->all);
  if (error < 0) return error;
  begin(t, trees, n);
  pid_t youngest = processes_youngest(&t->all);
  int seen = 0;
  for (pid_t pid; (pid = processes_next(&t->all)) > 0; seen++) visit(t, pid);
  anchor_by_members(t);
  join_the_rest(t);
  for (int i = 0; i < t->now->count; i++) {
    act(t, &t->now->entries[i], false);
    count(t, &t->now->entries[i]);
    count_in_exec(t, &t->now->entries[i]);
    reap_orphan(t, &t->now->entries[i]);
  }
  for (int i = 0; i < n; i++)
    if (t->overfull[i]) trees[i]->alive++;
  chase(t, youngest);
  table *past = t->before;
  for (int i = 0; i < past->count; i++) {
    links_free(t, &past->entries[i]);
    past->slots[past->entries[i].slot] = 0;
  }
  past->count = 0;
  t->before = t->now;
  t->now = past;
  return seen;
}

int ap_trees_open(ap_trees **trees) {
  ap_trees *t = mmap(NULL, sizeof *t, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANON, -1, 0);
  if (t == MAP_FAILED) return -errno;
  int error = processes_open(&t->all);
  if (error < 0) {
    munmap(t, sizeof *t);
    return error;
  }
  t->self = getpid();
  t->now = &t->tables[0];
  t->before = &t->tables[1];
  t->fresh_link = 1;
  *trees = t;
  return 0;
}

void ap_trees_close(ap_trees *trees) {
  processes_close(&trees->all);
  munmap(trees, sizeof *trees);
}
