/* The processes between the agent and a program.
 *
 * agent -> shepherd -> program. The shepherd is a subreaper: whatever the program starts, even what calls setsid and is
 * orphaned, stays below it, so that one job can be killed whole while others run. It reports the program's pid, then
 * its wait status, and leaves; what still runs then becomes the agent's own child.
 *
 * File operations (builtins) run in one forked process too: a slow disk or a strange file never blocks the agent. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "files.h"
#include "wire.h"

extern char **environ;

static int failure_fd;

static _Noreturn void fail(int error, int stage) {
  unsigned char b[5];
  int32_t e = error;
  memcpy(b, &e, 4);
  b[4] = stage;
  ssize_t ignored = write(failure_fd, b, sizeof b);
  (void)ignored;
  _exit(127);
}

static void close_from(int first) {
  if (!syscall(SYS_close_range, first, ~0U, 0)) return;
  for (int fd = first; fd < 4096; fd++) close(fd);
}

/* Put the three standard streams and two more descriptors at 0..4 and close everything else (our channel first). */
static void arrange(struct command *c, int *fourth, int *fifth) {
  int fds[5] = {c->in, c->out, c->err, fourth ? *fourth : -1, fifth ? *fifth : -1};
  for (int i = 0; i < 5; i++) {
    if (fds[i] < 0 && i < 3) fds[i] = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (fds[i] >= 0) fds[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 16); /* out of the way of the targets */
  }
  for (int i = 0; i < 5; i++) {
    if (fds[i] >= 0) dup2(fds[i], i);
    else close(i);
  }
  if (fourth) fcntl(*fourth = 3, F_SETFD, FD_CLOEXEC);
  if (fifth) fcntl(*fifth = 4, F_SETFD, FD_CLOEXEC);
  close_from(5);
}

static void default_signals(void) {
  struct sigaction sa = {.sa_handler = SIG_DFL};
  for (int s = 1; s < 32; s++) sigaction(s, &sa, 0);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, 0);
}

static void write_text(const char *path, const char *text) {
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) return;
  ssize_t ignored = write(fd, text, strlen(text));
  (void)ignored;
  close(fd);
}

static void limit(int resource, uint64_t value) {
  struct rlimit r;
  if (!value || getrlimit(resource, &r)) return;
  if (r.rlim_max != RLIM_INFINITY && value > r.rlim_max) value = r.rlim_max;
  r.rlim_cur = r.rlim_max = value;
  setrlimit(resource, &r);
}

static int number(const char *text, long *out) {
  if (!*text) return 0;
  char *end;
  errno = 0;
  *out = strtol(text, &end, 10);
  return !*end && !errno && *out >= 0 && *out < UINT_MAX;
}

static void become(char *spec, const char **home) {
  long uid = 0, gid = 0;
  char *group = strchr(spec, ':');
  if (group) *group++ = 0;
  struct passwd *p;
  if (!*spec) p = getpwuid(0);
  else if (number(spec, &uid)) p = getpwuid(uid);
  else if ((p = getpwnam(spec))) uid = p->pw_uid;
  else fail(ENOENT, STAGE_USER);
  static char kept[PATH_MAX];
  if (p) {
    gid = p->pw_gid;
    snprintf(kept, sizeof kept, "%s", p->pw_dir);
    *home = kept;
  }
  const char *name = p ? strdup(p->pw_name) : 0;
  if (group && *group) {
    struct group *g;
    if (!number(group, &gid)) {
      if (!(g = getgrnam(group))) fail(ENOENT, STAGE_USER);
      gid = g->gr_gid;
    }
  }
  if (settings.one_user) return;
  /* An explicit group replaces the user's other groups, as docker has it. */
  if (group || !name ? setgroups(0, 0) : initgroups(name, gid))
    if (errno != EPERM && errno != EINVAL) fail(errno, STAGE_USER);
  if (setresgid(gid, gid, gid) || setresuid(uid, uid, uid)) fail(errno, STAGE_USER);
}

static _Noreturn void program(struct command *c) {
  failure_fd = c->failure;
  setsid();
  arrange(c, &failure_fd, 0);
  default_signals();
  prctl(PR_SET_DUMPABLE, 1);
  write_text("/proc/self/oom_score_adj", "500"); /* the program goes before the agent does */
  const char *home = "/";
  environ = c->env;
  become(c->user, &home);
  if (!getenv("PATH")) putenv("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
  if (!getenv("HOME")) setenv("HOME", home, 1);
  limit(RLIMIT_NOFILE, settings.nofile);
  limit(RLIMIT_FSIZE, settings.fsize);
  limit(RLIMIT_DATA, settings.data);
  limit(RLIMIT_NPROC, settings.nproc);
  struct rlimit no_core = {0, 0};
  setrlimit(RLIMIT_CORE, &no_core);
  if (chdir(*c->cwd ? c->cwd : "/")) fail(errno, STAGE_CWD);
  execvp(c->argv[0], c->argv);
  fail(errno, STAGE_EXEC);
}

_Noreturn void shepherd(struct command *c) {
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGCHLD);
  sigaddset(&set, KILL_TREE_SIGNAL);
  sigprocmask(SIG_SETMASK, &set, 0);
  pid_t child = fork();
  if (!child) program(c);
  if (child < 0) {
    failure_fd = c->failure;
    fail(errno, STAGE_FORK);
  }
  setsid();
  int report = c->report;
  struct command nothing = {.in = -1, .out = -1, .err = -1};
  arrange(&nothing, &report, 0);
  int32_t word = child;
  ssize_t ignored = write(report, &word, 4);
  int killing = 0, done = 0;
  while (!done) {
    struct timespec again = {0, 2000000};
    int s = killing ? sigtimedwait(&set, 0, &again) : sigwaitinfo(&set, 0);
    if (s == KILL_TREE_SIGNAL) killing = 1;
    int status, found = 0;
    pid_t p;
    if (killing) found = kill_tree(getpid(), 0, 0);
    while ((p = waitpid(-1, &status, WNOHANG)) > 0)
      if (p == child) word = status, child = -1;
    done = child < 0 && (!killing || !found);
  }
  ignored = write(report, &word, 4);
  (void)ignored;
  _exit(0);
}

_Noreturn void run_builtin(struct command *c) {
  failure_fd = c->failure;
  setsid();
  arrange(c, &failure_fd, 0);
  default_signals();
  write_text("/proc/self/oom_score_adj", "500");
  limit(RLIMIT_FSIZE, settings.fsize);
  signal(SIGXFSZ, SIG_IGN);
  int arguments = 0;
  while (c->argv[arguments + 1]) arguments++;
  int (*run)(char **) = find_builtin(c->argv[0], arguments);
  if (!run) fail(ENOSYS, STAGE_EXEC);
  close(failure_fd);
  int32_t e = run(c->argv + 1);
  if (e) {
    ssize_t ignored = write(2, &e, 4);
    (void)ignored;
  }
  _exit(e ? 1 : 0);
}
