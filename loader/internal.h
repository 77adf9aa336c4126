/*
 * internal.h: what the loader's files share. Nothing of this is exported.
 */
#ifndef RW_INTERNAL_H
#define RW_INTERNAL_H

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The library is compiled with -fvisibility=hidden; what the public header declares is the exception. */
#pragma GCC visibility push(default)
#include "receivewal.h"
#pragma GCC visibility pop

#include "core.h"

/* ---- texts.c: what the errmsg functions return ---- */

/* The texts of a handle's last error. A NULL stands for "", or for the status's name where memory ran out. */
typedef struct rw_texts
{
    receivewal_status status;
    char *message;
    char *sqlstate;
    char *detail;
    char *hint;
} rw_texts;

void rw_texts_clear(rw_texts *texts);

/* Formats the message; frees what was there before. Returns status. */
receivewal_status rw_texts_set(rw_texts *texts, receivewal_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The same in this thread's buffer, for calls that have no handle. clash: the handle that was in use elsewhere, or NULL. */
receivewal_status rw_thread_error(receivewal *clash, receivewal_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
receivewal_status rw_thread_verror(receivewal *clash, receivewal_status status, const char *format, va_list args)
    __attribute__((format(printf, 3, 0)));

/* This thread's text no longer speaks for the handle. */
void rw_thread_settled(receivewal *rw);

/* ---- structs.c: structs that may be of an older or a newer header ---- */

typedef struct rw_layout rw_layout;
extern const rw_layout rw_layout_connection, rw_layout_options, rw_layout_progress, rw_layout_system, rw_layout_slot,
    rw_layout_start_point;

#define RW_PROBLEM_MAX 256

/* Checks the size of a struct that the caller passed. Returns true, or false and a sentence in problem. */
bool rw_struct_check(const rw_layout *layout, const void *theirs, char problem[RW_PROBLEM_MAX]);

/* Fills ours, a struct of this library's size, with the INIT values overlaid with theirs. theirs has been checked. */
void rw_struct_in(const rw_layout *layout, const void *theirs, void *ours);

/* Copies ours to theirs, as far as theirs reaches; its size stays. theirs has been checked. */
void rw_struct_out(const rw_layout *layout, const void *ours, void *theirs);

/* Checks what the options say. Returns true, or false and a sentence. */
bool rw_options_check(const receivewal_options *options, char problem[RW_PROBLEM_MAX]);
bool rw_slot_name_check(const char *what, const char *name, char problem[RW_PROBLEM_MAX]);
bool rw_directory_check(const char *what, const char *directory, char problem[RW_PROBLEM_MAX]);
bool rw_segment_size_valid(uint32_t segment_size);

/* ---- handles.c: the table of handles ---- */

typedef struct rw_slot
{
    /* generation, open, busy and users in one word: see handles.c. The rest is written only while the slot is busy;
     * event_fd, stop_fd and core_id only while it is not open, so users may read them. */
    _Atomic uint64_t word;
    uint64_t core_id;
    int event_fd;
    int stop_fd;
    bool running; /* receivewal_start has begun a receive whose result nobody has taken yet */
    receivewal_events events;
    rw_texts texts;
} rw_slot;

/* Takes an unused slot, busy and not yet open. NULL if there is none. */
rw_slot *rw_slot_new(void);
/* Makes it a handle, not busy. */
receivewal *rw_slot_publish(rw_slot *slot);
/* Back to unused, from new or from retire. */
void rw_slot_free(rw_slot *slot);
/* A busy slot: no call finds it from now on; waits for the users in it to leave. */
void rw_slot_retire(rw_slot *slot);

/* For one call at a time: OK, HANDLE, CLOSED or BUSY. */
receivewal_status rw_slot_claim(receivewal *rw, rw_slot **slot);
void rw_slot_release(rw_slot *slot);

/* For calls that may come at any time; the slot stays until unuse. Async-signal-safe. OK, HANDLE or CLOSED. */
receivewal_status rw_slot_use(receivewal *rw, rw_slot **slot);
void rw_slot_unuse(rw_slot *slot);

/* ---- core.c: the Go core, its loading, its service thread ---- */

/* Whether this process is the child of one that had used the core. Async-signal-safe. */
bool rw_forked(void);

/* Loads the core if that has not happened yet. OK, or CORE, LIMIT or FORKED with the text in the thread's buffer. */
receivewal_status rw_core_need(void);

/* The core's functions, called on the service thread; rw_core_need has returned OK before. */
receivewal_status rw_core_open(int fd, int server_version, int event_fd, int stop_fd, uint64_t *id, char **text);
receivewal_status rw_core_begin(uint64_t id, rw_core_request *request, char **text);
receivewal_status rw_core_take(uint64_t id, rw_core_event **list);
receivewal_status rw_core_cancel(uint64_t id);
receivewal_status rw_core_progress(uint64_t id, receivewal_progress *progress);
int rw_core_usable(uint64_t id);
receivewal_status rw_core_close(uint64_t id);

/* ---- pump.c: waiting for a request, and telling the host what happened ---- */

/* A descriptor that is readable once something has been written to it. Close-on-exec, non-blocking. -1 and errno on failure. */
int rw_eventfd(void);

/*
 * Takes events and gives them to the callbacks until DONE, or until timeout milliseconds are over (negative: never).
 * Returns DONE, which the caller frees, or NULL: still running, or the process is now a forked child.
 */
rw_core_event *rw_pump(uint64_t core_id, int event_fd, const receivewal_events *events, int timeout);
void rw_event_free(rw_core_event *event);

#endif /* RW_INTERNAL_H */
