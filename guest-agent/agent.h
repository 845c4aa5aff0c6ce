#ifndef SHEM_AGENT_H
#define SHEM_AGENT_H

#include <stdint.h>
#include <sys/types.h>

/* What the driver told us on the command line, as name=value. 0: not limited. */
struct settings {
  uint64_t nproc, nofile, fsize, data;
  int one_user; /* the sandbox has a single uid: run everything as it */
};
extern struct settings settings;

struct command {
  char *user, *cwd, **argv, **env;
  int builtin;
  int in, out, err;   /* what becomes fd 0, 1, 2; in may be -1 */
  int failure, report; /* pipes to the agent: why it did not start; pid, then wait status */
};

/* child.c: the two processes between the agent and a program. Neither returns. */
_Noreturn void shepherd(struct command *c);
_Noreturn void run_builtin(struct command *c);

/* tree.c: kill all descendants of `root`, but no descendant of `spare`. Returns how many were found. */
int kill_tree(pid_t root, const pid_t *spare, int spares);

#define KILL_TREE_SIGNAL (SIGRTMIN + 5)

#endif
