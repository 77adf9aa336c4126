/* health.h: the program's state in files for monitoring: --status-file and --metrics-file. */
#ifndef HEALTH_H
#define HEALTH_H

#include <receivewal.h>
#include <stdio.h>

typedef struct health_files
{
    const char *status;  /* JSON; NULL: none */
    const char *metrics; /* Prometheus' text format; NULL: none */
    const char *directory, *slot; /* what they say of the program; slot may be NULL */
    void (*warn)(const char *file, const char *problem); /* a file cannot be written; once, until it can be again */
} health_files;

/* Writes the files once a second from now on, on a thread of its own, and a last time when the program exits. What files points to
 * must stay. Returns 0, or an errno. */
int health_start(const health_files *files);

/* Which receive is in progress; NULL: none any more, and what it came to counts from now on. Call it with NULL before the handle is
 * detached. */
void health_receives(receivewal *rw);

/* The last error. */
void health_error(const char *text);

/* The exit code; 1 unless told. */
void health_result(int exit_code);

/* Writes a string as JSON has it. What is not UTF-8 becomes U+FFFD. */
void json_string(FILE *out, const char *text);

#endif /* HEALTH_H */
