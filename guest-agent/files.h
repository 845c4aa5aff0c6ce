#ifndef SHEM_FILES_H
#define SHEM_FILES_H

/* A file operation: takes its arguments, moves bytes over fds 0 and 1, returns 0 or an errno. Null when there is none of
 * that name that takes so many arguments. */
int (*find_builtin(const char *name, int arguments))(char **);

#endif
