/* File operations inside the sandbox, each run in a process of its own (child.c).
 *
 *   put MODE PATH      standard input becomes the file; parents are made
 *   get PATH           one record (see `record`), then the bytes of a regular file
 *   stat PATH          one record; a final link is not followed
 *   walk PATH LIMIT    records of everything below a directory, depth first, links not followed
 *   mkdir MODE PATH    with parents; an existing directory is fine
 *   symlink TARGET PATH    an existing link is replaced
 *   remove PATH        whole trees; what does not exist is fine
 *
 * Only regular files are read and written: never a device, a pipe, or anything of /proc and /sys. */
#define _GNU_SOURCE
#include "files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define PROC_MAGIC 0x9fa0
#define SYSFS_MAGIC 0x62656572
#define CGROUP_MAGIC 0x27e0eb
#define CGROUP2_MAGIC 0x63677270
#define MAX_DEPTH 256

static char block[1 << 16];

static int write_all(int fd, const void *data, size_t n) {
  const char *p = data;
  while (n) {
    ssize_t k = write(fd, p, n);
    if (k < 0 && errno == EINTR) continue;
    if (k < 0) return errno;
    p += k;
    n -= k;
  }
  return 0;
}

static int regular(int fd, struct stat *s) {
  struct statfs f;
  if (fstat(fd, s) || fstatfs(fd, &f)) return errno;
  if (S_ISDIR(s->st_mode)) return EISDIR;
  if (!S_ISREG(s->st_mode)) return EINVAL;
  switch ((uint32_t)f.f_type) {
  case PROC_MAGIC:
  case SYSFS_MAGIC:
  case CGROUP_MAGIC:
  case CGROUP2_MAGIC: return EACCES;
  }
  return 0;
}

static int make_dirs(char *path, mode_t mode) {
  for (char *p = path + 1; *p; p++) {
    if (*p != '/') continue;
    *p = 0;
    int r = mkdir(path, 0755);
    *p = '/';
    if (r && errno != EEXIST) return errno;
  }
  if (mkdir(path, mode)) {
    struct stat s;
    if (errno != EEXIST) return errno;
    return stat(path, &s) ? errno : S_ISDIR(s.st_mode) ? 0 : ENOTDIR;
  }
  return chmod(path, mode) ? errno : 0; /* the umask has no say */
}

static int make_parents(const char *path) {
  char parent[PATH_MAX];
  const char *slash = strrchr(path, '/');
  if (!slash || slash == path) return 0;
  if (slash - path >= PATH_MAX) return ENAMETOOLONG;
  memcpy(parent, path, slash - path);
  parent[slash - path] = 0;
  struct stat s;
  if (!stat(parent, &s)) return S_ISDIR(s.st_mode) ? 0 : ENOTDIR;
  return make_dirs(parent, 0755);
}

static int put(char **a) {
  mode_t mode = strtoul(a[0], 0, 8) & 07777;
  int e = make_parents(a[1]);
  if (e) return e;
  int fd = open(a[1], O_WRONLY | O_CREAT | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, mode & 0777);
  if (fd < 0) return errno;
  struct stat s;
  if ((e = regular(fd, &s))) return e;
  if (ftruncate(fd, 0)) return errno;
  ssize_t n;
  while ((n = read(0, block, sizeof block)) != 0) {
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    if ((e = write_all(fd, block, n))) return e;
  }
  if (fchmod(fd, mode)) return errno;
  return close(fd) ? errno : 0;
}

/* u8 kind (f d l o) | u32 mode | u64 size | i64 mtime | u16 path length | u16 link length | path | link */
static int record(FILE *out, const struct stat *s, const char *path, const char *link) {
  unsigned char h[25];
  h[0] = S_ISREG(s->st_mode) ? 'f' : S_ISDIR(s->st_mode) ? 'd' : S_ISLNK(s->st_mode) ? 'l' : 'o';
  uint32_t mode = s->st_mode & 07777;
  uint64_t size = s->st_size;
  int64_t mtime = s->st_mtime;
  uint16_t np = strlen(path), nl = strlen(link);
  memcpy(h + 1, &mode, 4);
  memcpy(h + 5, &size, 8);
  memcpy(h + 13, &mtime, 8);
  memcpy(h + 21, &np, 2);
  memcpy(h + 23, &nl, 2);
  if (fwrite(h, 1, sizeof h, out) != sizeof h) return EIO;
  if (fwrite(path, 1, np, out) != np || fwrite(link, 1, nl, out) != nl) return EIO;
  return 0;
}

static int get(char **a) {
  int fd = open(a[0], O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  if (fd < 0) return errno;
  struct stat s;
  int e = regular(fd, &s);
  if (e || (e = record(stdout, &s, "", ""))) return e;
  if (fflush(stdout)) return errno;
  ssize_t n;
  while ((n = read(fd, block, sizeof block)) != 0) {
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    if ((e = write_all(1, block, n))) return e;
  }
  return 0;
}

static int link_target(int dir, const char *name, const struct stat *s, char *target) {
  *target = 0;
  if (!S_ISLNK(s->st_mode)) return 0;
  ssize_t n = readlinkat(dir, name, target, PATH_MAX - 1);
  if (n < 0) return errno;
  target[n] = 0;
  return 0;
}

static int stat_one(char **a) {
  struct stat s;
  char target[PATH_MAX];
  if (lstat(a[0], &s)) return errno;
  int e = link_target(AT_FDCWD, a[0], &s, target);
  return e ? e : record(stdout, &s, "", target) ? EIO : fflush(stdout) ? errno : 0;
}

static long entries_left;

static int walk_dir(int fd, char *path, size_t length, int depth) {
  DIR *d = fdopendir(fd);
  if (!d) {
    close(fd);
    return errno;
  }
  struct dirent *e;
  int error = 0;
  while (!error && (e = readdir(d))) {
    if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
    struct stat s;
    char target[PATH_MAX];
    size_t n = strlen(e->d_name);
    if (length + n + 2 > PATH_MAX) { error = ENAMETOOLONG; break; }
    if (fstatat(dirfd(d), e->d_name, &s, AT_SYMLINK_NOFOLLOW)) continue; /* gone meanwhile */
    if (link_target(dirfd(d), e->d_name, &s, target)) continue;
    size_t at = length;
    if (at) path[at++] = '/';
    memcpy(path + at, e->d_name, n + 1);
    if (--entries_left < 0) error = EOVERFLOW;
    else error = record(stdout, &s, path, target);
    if (!error && S_ISDIR(s.st_mode)) {
      int sub = depth < MAX_DEPTH ? openat(dirfd(d), e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : -1;
      if (depth >= MAX_DEPTH) error = ELOOP;
      else if (sub >= 0) error = walk_dir(sub, path, at + n, depth + 1);
      else if (errno != ENOENT && errno != ENOTDIR) error = errno;
    }
    path[length] = 0;
  }
  closedir(d);
  return error;
}

static int walk(char **a) {
  static char path[PATH_MAX];
  entries_left = strtol(a[1], 0, 10);
  int fd = open(a[0], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return errno;
  int e = walk_dir(fd, path, 0, 0);
  return e ? e : fflush(stdout) ? errno : 0;
}

static int make_dir(char **a) {
  char path[PATH_MAX];
  if (strlen(a[1]) >= sizeof path) return ENAMETOOLONG;
  strcpy(path, a[1]);
  for (size_t n = strlen(path); n > 1 && path[n - 1] == '/'; n--) path[n - 1] = 0;
  return make_dirs(path, strtoul(a[0], 0, 8) & 07777);
}

static int make_link(char **a) {
  struct stat s;
  int e = make_parents(a[1]);
  if (e) return e;
  if (!lstat(a[1], &s) && S_ISLNK(s.st_mode)) unlink(a[1]);
  return symlink(a[0], a[1]) ? errno : 0;
}

static int remove_at(int dir, const char *name, int depth) {
  if (!unlinkat(dir, name, 0) || errno == ENOENT) return 0;
  if (errno != EISDIR && errno != EPERM) return errno;
  int first = errno;
  int fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0) return errno == ENOTDIR ? first : errno;
  if (depth >= MAX_DEPTH) return close(fd), ELOOP;
  DIR *d = fdopendir(fd);
  if (!d) return close(fd), errno;
  struct dirent *e;
  int error = 0;
  while (!error && (e = readdir(d)))
    if (strcmp(e->d_name, ".") && strcmp(e->d_name, "..")) error = remove_at(dirfd(d), e->d_name, depth + 1);
  closedir(d);
  if (!error && unlinkat(dir, name, AT_REMOVEDIR) && errno != ENOENT) error = errno;
  return error;
}

static int remove_tree(char **a) { return remove_at(AT_FDCWD, a[0], 0); }

int (*find_builtin(const char *name, int arguments))(char **) {
  static const struct {
    const char *name;
    int arguments;
    int (*run)(char **);
  } all[] = {{"put", 2, put},       {"get", 1, get},           {"stat", 1, stat_one},     {"walk", 2, walk},
             {"mkdir", 2, make_dir}, {"symlink", 2, make_link}, {"remove", 1, remove_tree}};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++)
    if (!strcmp(name, all[i].name) && arguments == all[i].arguments) return all[i].run;
  return 0;
}
