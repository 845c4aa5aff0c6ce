/* Killing a process tree in a pid namespace where everything may fork, setsid and fight back.
 *
 * /proc is read into a table of (pid, parent). Descendants are first stopped, again and again until a pass finds no new
 * ones, so that nobody forks away between the look and the blow; then all are killed. */
#include "agent.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_PROCESSES 32768
#define MAX_DEPTH 4096
#define MAX_PASSES 64

static struct {
  pid_t pid, parent;
  char state;
} table[MAX_PROCESSES];
static int filled;

static int read_stat(const char *pid, pid_t *parent, char *state) {
  char path[64], text[512];
  snprintf(path, sizeof path, "/proc/%s/stat", pid);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  ssize_t n = read(fd, text, sizeof text - 1);
  close(fd);
  if (n <= 0) return -1;
  text[n] = 0;
  char *end = strrchr(text, ')'); /* the name before it may hold anything */
  int p;
  if (!end || sscanf(end + 1, " %c %d", state, &p) != 2) return -1;
  *parent = p;
  return 0;
}

static void snapshot(void) {
  filled = 0;
  DIR *d = opendir("/proc");
  if (!d) return;
  struct dirent *e;
  while ((e = readdir(d)) && filled < MAX_PROCESSES) {
    if (!isdigit((unsigned char)*e->d_name)) continue;
    if (read_stat(e->d_name, &table[filled].parent, &table[filled].state)) continue;
    table[filled++].pid = atoi(e->d_name);
  }
  closedir(d);
}

static pid_t parent_of(pid_t pid) {
  for (int i = 0; i < filled; i++)
    if (table[i].pid == pid) return table[i].parent;
  return 0;
}

static int below(pid_t pid, pid_t root, const pid_t *spare, int spares) {
  for (int depth = 0; pid > 0 && depth < MAX_DEPTH; depth++) {
    for (int i = 0; i < spares; i++)
      if (pid == spare[i]) return 0;
    if (pid == root) return depth > 0;
    pid = parent_of(pid);
  }
  return 0;
}

int kill_tree(pid_t root, const pid_t *spare, int spares) {
  pid_t self = getpid();
  int found = 0;
  for (int pass = 0; pass < MAX_PASSES; pass++) {
    int running = 0;
    found = 0;
    snapshot();
    for (int i = 0; i < filled; i++) {
      char s = table[i].state;
      if (table[i].pid == self || s == 'Z' || s == 'X' || !below(table[i].pid, root, spare, spares)) continue;
      found++;
      if (s == 'T' || s == 't') continue;
      kill(table[i].pid, SIGSTOP);
      running++;
    }
    if (!running) break;
  }
  for (int i = 0; i < filled; i++)
    if (table[i].pid != self && below(table[i].pid, root, spare, spares)) kill(table[i].pid, SIGKILL);
  return found;
}
