/* The guest agent: first process of a sandbox. Runs programs and file operations for the host over one byte stream.
 *
 * Usage: agent [name=value ...]   the channel is fd 0 (in) and fd 1 (out); see wire.h and `settings`.
 *
 * One loop over poll(2), nothing in it blocks: pipes and the channel are non-blocking, standard input waiting for a slow
 * program is kept (bounded by STDIN_WINDOW, by agreement with the host), and output is read from a program only while
 * the host has given credit for it and our own buffer has room. A job ends with EXIT after its process has ended and its
 * pipes are empty; a background child that keeps the pipes open delays that by GRACE_MS at most.
 * When the channel closes, the agent ends, and with it (as pid 1) the whole sandbox. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "wire.h"

#define MAX_JOBS 256
#define CHUNK 65536
#define OUT_ROOM (256 << 10)
#define OUT_MAX (4 << 20)
#define GRACE_MS 200
#define KILL_MS 2000

struct settings settings;

struct job {
  struct job *next;
  uint32_t id;
  pid_t pid, program; /* our child (shepherd or builtin); the program itself */
  int builtin, in, out, err, failure, report;
  char *held; /* standard input that the program has not taken yet */
  size_t held_length, held_start;
  int closing; /* close the input when nothing is held any more */
  int64_t credit;
  uint32_t taken; /* input taken, not told to the host yet */
  int started, failed_errno, failed_stage, dead, status, reported;
  struct rusage usage;
  int64_t cut_at, kill_at; /* ms; 0: not set */
  int64_t left;            /* after cut_at: bytes that were still in the pipes; -1: not looked yet */
};

static struct job *jobs;
static int job_count;
static int chan_in, chan_out;
static char *input;
static size_t input_length;
static char *output;
static size_t output_length, output_start, output_size;

static int64_t now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

static _Noreturn void leave(int code) {
  if (getpid() != 1) kill_tree(getpid(), 0, 0);
  _exit(code);
}

static void shut(int *fd) {
  if (*fd >= 0) close(*fd);
  *fd = -1;
}

/* ---- the channel ---- */

static void flush_output(void) {
  while (output_start < output_length) {
    ssize_t n = write(chan_out, output + output_start, output_length - output_start);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return;
    if (n < 0) leave(3);
    output_start += n;
  }
  output_start = output_length = 0;
}

static char *reserve(size_t n) {
  if (output_length + n > output_size && output_start) {
    memmove(output, output + output_start, output_length - output_start);
    output_length -= output_start;
    output_start = 0;
  }
  if (output_length + n > output_size) {
    size_t size = output_size;
    while (output_length + n > size) size *= 2;
    if (size > OUT_MAX || !(output = realloc(output, size))) leave(5);
    output_size = size;
  }
  return output + output_length;
}

static void header(char *at, uint8_t type, uint32_t id, uint32_t n) {
  memcpy(at, &n, 4);
  at[4] = type;
  memcpy(at + 5, &id, 4);
}

static void send_frame(uint8_t type, uint32_t id, const void *data, uint32_t n) {
  char *at = reserve(HEADER + n);
  header(at, type, id, n);
  memcpy(at + HEADER, data, n);
  output_length += HEADER + n;
}

static int has_room(void) { return output_length - output_start < OUT_ROOM; }

/* ---- jobs ---- */

static struct job *find(uint32_t id) {
  for (struct job *j = jobs; j; j = j->next)
    if (j->id == id) return j;
  return 0;
}

static void send_failed(uint32_t id, int error, int stage) {
  char b[5];
  int32_t e = error;
  memcpy(b, &e, 4);
  b[4] = stage;
  send_frame(FAILED, id, b, 5);
}

static int nonblocking(int fd) { return fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); }

static int make_pipe(int p[2]) {
  if (!pipe2(p, O_CLOEXEC)) return 0;
  p[0] = p[1] = -1;
  return -1;
}

static void fork_job(struct job *j, struct command *c, int with_input) {
  int in[2] = {-1, -1}, out[2] = {-1, -1}, err[2] = {-1, -1}, failure[2] = {-1, -1}, report[2] = {-1, -1};
  int e = 0;
  if ((with_input && make_pipe(in)) || make_pipe(out) || make_pipe(err) || make_pipe(failure) || make_pipe(report)) e = errno;
  pid_t pid = -1;
  if (!e) {
    c->in = in[0], c->out = out[1], c->err = err[1], c->failure = failure[1], c->report = report[1];
    if ((pid = fork()) < 0) e = errno;
    if (!pid) {
      close(chan_in), close(chan_out);
      if (c->builtin) run_builtin(c);
      shepherd(c);
    }
  }
  shut(&in[0]), shut(&out[1]), shut(&err[1]), shut(&failure[1]), shut(&report[1]);
  j->pid = pid;
  j->in = in[1], j->out = out[0], j->err = err[0], j->failure = failure[0], j->report = report[0];
  if (e) {
    j->failed_errno = e, j->failed_stage = STAGE_FORK, j->dead = 1;
    return;
  }
  if (j->in >= 0) nonblocking(j->in);
  nonblocking(j->out), nonblocking(j->err), nonblocking(j->failure), nonblocking(j->report);
}

static char *take_string(char **p, char *end) {
  char *s = *p;
  if (s >= end) return 0;
  *p += strlen(s) + 1; /* the payload ends with a nul, checked */
  return s;
}

static void do_exec(uint32_t id, char *b, uint32_t n) {
  uint32_t flags, window;
  uint16_t argc, envc;
  if (find(id) || !id || n < 15 || b[n - 1]) return send_failed(id, EINVAL, STAGE_REQUEST);
  if (job_count >= MAX_JOBS) return send_failed(id, EAGAIN, STAGE_REQUEST);
  memcpy(&flags, b, 4), memcpy(&window, b + 4, 4), memcpy(&argc, b + 8, 2), memcpy(&envc, b + 10, 2);
  char *p = b + 12, *end = b + n;
  struct command c = {.builtin = !!(flags & FLAG_BUILTIN)};
  struct job *j = calloc(1, sizeof *j);
  c.argv = calloc(argc + 1, sizeof *c.argv), c.env = calloc(envc + 1, sizeof *c.env);
  int bad = !j || !c.argv || !c.env || !argc || !(c.user = take_string(&p, end)) || !(c.cwd = take_string(&p, end));
  for (int i = 0; !bad && i < argc; i++) bad = !(c.argv[i] = take_string(&p, end));
  for (int i = 0; !bad && i < envc; i++) bad = !(c.env[i] = take_string(&p, end));
  if (bad) {
    free(j);
    send_failed(id, EINVAL, STAGE_REQUEST);
  } else {
    j->id = id, j->builtin = c.builtin, j->credit = window, j->left = -1;
    fork_job(j, &c, flags & FLAG_STDIN);
    j->next = jobs, jobs = j, job_count++;
  }
  free(c.argv), free(c.env);
}

static void feed(struct job *j) {
  while (j->in >= 0 && j->held_length > j->held_start) {
    ssize_t n = write(j->in, j->held + j->held_start, j->held_length - j->held_start);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return;
    if (n < 0) { /* the program reads no more: swallow the rest, as a closed pipe would */
      shut(&j->in);
      break;
    }
    j->held_start += n;
    j->taken += n;
  }
  if (j->in < 0) j->taken += j->held_length - j->held_start;
  j->held_length = j->held_start = 0;
  if (j->closing) shut(&j->in);
}

static void hold(struct job *j, const char *b, size_t n) {
  if (j->in < 0 || j->closing) {
    j->taken += n;
    return;
  }
  if (!j->held && !(j->held = malloc(STDIN_WINDOW))) leave(5);
  if (j->held_start) {
    memmove(j->held, j->held + j->held_start, j->held_length -= j->held_start);
    j->held_start = 0;
  }
  if (j->held_length + n > STDIN_WINDOW) leave(4); /* the host broke the agreement */
  memcpy(j->held + j->held_length, b, n);
  j->held_length += n;
  feed(j);
}

static void kill_others(struct job *but_for) {
  pid_t spare[MAX_JOBS];
  int n = 0;
  for (struct job *j = jobs; but_for && j; j = j->next)
    if (j != but_for && !j->dead) spare[n++] = j->pid;
  kill_tree(getpid(), spare, n);
}

static void do_signal(uint32_t id, const char *b, uint32_t n) {
  int32_t signal;
  if (n < 5) return;
  memcpy(&signal, b, 4);
  if (signal < 1 || signal > 64) return;
  int tree = b[4];
  if (!id && tree) return kill_others(0);
  struct job *j = find(id);
  if (!j || j->dead || j->pid <= 0) return;
  if (j->builtin) kill(j->pid, SIGKILL);
  else if (tree) {
    kill(j->pid, KILL_TREE_SIGNAL);
    if (!j->kill_at) j->kill_at = now_ms() + KILL_MS;
  } else if (j->program > 0) kill(-j->program, signal);
}

static void dispatch(uint8_t type, uint32_t id, char *b, uint32_t n) {
  struct job *j;
  uint32_t amount;
  switch (type) {
  case EXEC: do_exec(id, b, n); break;
  case STDIN:
    if ((j = find(id))) hold(j, b, n);
    break;
  case STDIN_EOF:
    if ((j = find(id))) j->closing = 1, feed(j);
    break;
  case SIGNAL: do_signal(id, b, n); break;
  case CREDIT:
    if (n < 4) break;
    memcpy(&amount, b, 4);
    if ((j = find(id))) j->credit += amount;
    break;
  }
}

static void read_channel(void) {
  ssize_t n = read(chan_in, input + input_length, HEADER + MAX_FRAME - input_length);
  if (n < 0 && (errno == EINTR || errno == EAGAIN)) return;
  if (n <= 0) leave(0);
  input_length += n;
  size_t at = 0;
  while (input_length - at >= HEADER) {
    uint32_t length, id;
    memcpy(&length, input + at, 4), memcpy(&id, input + at + 5, 4);
    if (length > MAX_FRAME) leave(4);
    if (input_length - at < HEADER + length) break;
    dispatch(input[at + 4], id, input + at + HEADER, length);
    at += HEADER + length;
  }
  memmove(input, input + at, input_length -= at);
}

/* ---- what jobs say ---- */

static void drain(struct job *j, int *fd, uint8_t type) {
  if (*fd < 0 || j->credit <= 0 || !has_room()) return;
  size_t want = CHUNK;
  if (j->left >= 0 && (int64_t)want > j->left) want = j->left;
  if (!want) return;
  char *at = reserve(HEADER + want);
  ssize_t n = read(*fd, at + HEADER, want);
  if (n < 0 && (errno == EINTR || errno == EAGAIN)) return;
  if (n <= 0) return shut(fd);
  header(at, type, j->id, n);
  output_length += HEADER + n;
  j->credit -= n + FRAME_COST;
  if (j->left >= 0) j->left -= n;
}

static void look_at_start(struct job *j) {
  unsigned char b[5];
  if (j->failure < 0) return;
  ssize_t n = read(j->failure, b, sizeof b);
  if (n < 0 && (errno == EINTR || errno == EAGAIN)) return;
  shut(&j->failure);
  if (n == 5) {
    int32_t e;
    memcpy(&e, b, 4);
    j->failed_errno = e ? e : EIO, j->failed_stage = b[4];
  }
}

static void look_at_report(struct job *j) {
  int32_t word;
  while (j->report >= 0) {
    ssize_t n = read(j->report, &word, 4);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return;
    if (n < 4) {
      shut(&j->report);
    } else if (!j->program) j->program = word;
    else j->status = word, j->reported = 1;
  }
}

static void look_at_children(void) {
  int status;
  pid_t pid;
  struct rusage usage;
  while ((pid = wait4(-1, &status, WNOHANG, &usage)) > 0) {
    for (struct job *j = jobs; j; j = j->next) {
      if (j->pid != pid || j->dead) continue;
      look_at_start(j), look_at_report(j);
      if (!j->reported) j->status = status; /* a builtin, or a shepherd that was killed */
      j->dead = 1, j->usage = usage, j->left = -1, j->cut_at = now_ms() + GRACE_MS;
      shut(&j->in);
    }
  }
}

static int64_t micro(struct timeval t) { return t.tv_sec * 1000000LL + t.tv_usec; }

static void forget(struct job *j) {
  for (struct job **p = &jobs; *p; p = &(*p)->next)
    if (*p == j) {
      *p = j->next;
      break;
    }
  shut(&j->in), shut(&j->out), shut(&j->err), shut(&j->failure), shut(&j->report);
  free(j->held);
  free(j);
  job_count--;
}

static int pending(int fd) {
  int n = 0;
  return fd >= 0 && !ioctl(fd, FIONREAD, &n) ? n : 0;
}

static void report_job(struct job *j, int64_t now) {
  if (!j->started && !j->failed_errno && j->failure < 0 && (j->program || j->builtin)) {
    uint32_t pid = j->program ? j->program : j->pid;
    send_frame(STARTED, j->id, &pid, 4);
    j->started = 1;
  }
  if (j->taken && has_room()) {
    if (!j->dead) send_frame(CREDIT, j->id, &j->taken, 4);
    j->taken = 0;
  }
  if (!j->dead) {
    if (j->kill_at && now >= j->kill_at) { /* somebody stopped or killed the shepherd: strike from here */
      kill_others(j);
      j->kill_at = now + KILL_MS;
    }
    return;
  }
  if (j->failed_errno) {
    send_failed(j->id, j->failed_errno, j->failed_stage);
    return forget(j);
  }
  if (j->left < 0 && now >= j->cut_at) j->left = pending(j->out) + pending(j->err);
  if ((j->out >= 0 || j->err >= 0) && j->left != 0) return;
  char b[28];
  int32_t status = j->status;
  int64_t numbers[3] = {micro(j->usage.ru_utime), micro(j->usage.ru_stime), j->usage.ru_maxrss};
  memcpy(b, &status, 4), memcpy(b + 4, numbers, 24);
  send_frame(EXIT, j->id, b, sizeof b);
  forget(j);
}

/* ---- the loop ---- */

static void add(struct pollfd *set, int *n, int fd, short events) {
  if (fd >= 0) set[(*n)++] = (struct pollfd){fd, events, 0};
}

static void wait_for_something(const sigset_t *during) {
  static struct pollfd set[2 + 5 * MAX_JOBS];
  int n = 0;
  int64_t wake = -1, now = now_ms();
  add(set, &n, chan_in, POLLIN);
  if (output_start < output_length) add(set, &n, chan_out, POLLOUT);
  for (struct job *j = jobs; j; j = j->next) {
    if (j->held_length > j->held_start) add(set, &n, j->in, POLLOUT);
    if (j->credit > 0 && has_room()) add(set, &n, j->out, POLLIN), add(set, &n, j->err, POLLIN);
    add(set, &n, j->failure, POLLIN), add(set, &n, j->report, POLLIN);
    int64_t at = j->dead ? (j->left < 0 ? j->cut_at : -1) : j->kill_at ? j->kill_at : -1;
    if (at >= 0 && (wake < 0 || at < wake)) wake = at;
  }
  int64_t ms = wake < now ? 0 : wake - now;
  struct timespec t = {ms / 1000, ms % 1000 * 1000000};
  ppoll(set, n, wake < 0 ? 0 : &t, during);
}

static void on_child(int s) { (void)s; }

static void open_channel(void) {
  chan_in = fcntl(0, F_DUPFD_CLOEXEC, 64), chan_out = fcntl(1, F_DUPFD_CLOEXEC, 64);
  if (chan_in < 0 || chan_out < 0) _exit(2);
  int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  for (int fd = 0; fd < 3; fd++)
    if (null < 0) close(fd);
    else if (null != fd) dup2(null, fd);
  if (null > 2) close(null);
  nonblocking(chan_in), nonblocking(chan_out);
}

static void parse_settings(char **argv) {
  static const struct {
    const char *name;
    uint64_t *value;
  } known[] = {{"nproc=", &settings.nproc}, {"nofile=", &settings.nofile}, {"fsize=", &settings.fsize}, {"data=", &settings.data}};
  for (; *argv; argv++) {
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
      size_t n = strlen(known[i].name);
      if (!strncmp(*argv, known[i].name, n)) *known[i].value = strtoull(*argv + n, 0, 10);
    }
    if (!strcmp(*argv, "one_user=1")) settings.one_user = 1;
  }
}

int main(int argc, char **argv) {
  parse_settings(argv + !!argc);
  open_channel();
  prctl(PR_SET_DUMPABLE, 0); /* programs of the same uid must not read our descriptors or memory */
  if (getpid() != 1) prctl(PR_SET_CHILD_SUBREAPER, 1);
  signal(SIGPIPE, SIG_IGN);
  struct sigaction sa = {.sa_handler = on_child};
  sigaction(SIGCHLD, &sa, 0);
  sigset_t blocked, during;
  sigemptyset(&blocked);
  sigaddset(&blocked, KILL_TREE_SIGNAL); /* born blocked in every shepherd */
  during = blocked;
  sigaddset(&blocked, SIGCHLD);
  sigprocmask(SIG_SETMASK, &blocked, 0);
  umask(022);
  struct rlimit files;
  if (!getrlimit(RLIMIT_NOFILE, &files)) files.rlim_cur = files.rlim_max, setrlimit(RLIMIT_NOFILE, &files);
  input = malloc(HEADER + MAX_FRAME), output = malloc(output_size = 1 << 19);
  if (!input || !output) _exit(5);
  uint32_t version = VERSION;
  send_frame(HELLO, 0, &version, 4);
  for (;;) {
    flush_output();
    wait_for_something(&during);
    look_at_children();
    read_channel();
    int64_t now = now_ms();
    for (struct job *j = jobs, *next; j; j = next) {
      next = j->next;
      look_at_start(j), look_at_report(j);
      feed(j);
      drain(j, &j->out, OUT), drain(j, &j->err, ERR);
      report_job(j, now);
    }
  }
}
