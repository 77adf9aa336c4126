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
extern const rw_layout rw_layout_connection, rw_layout_io, rw_layout_options, rw_layout_progress, rw_layout_system, rw_layout_slot,
    rw_layout_start_point, rw_layout_check_options, rw_layout_check;

#define RW_PROBLEM_MAX 256
#define RW_MIRRORS_MAX 16 /* options.mirrors */

/* Checks the size of a struct that the caller passed. Returns true, or false and a sentence in problem. */
bool rw_struct_check(const rw_layout *layout, const void *theirs, char problem[RW_PROBLEM_MAX]);

/* Fills ours, a struct of this library's size, with the INIT values overlaid with theirs. theirs has been checked. */
void rw_struct_in(const rw_layout *layout, const void *theirs, void *ours);

/* Copies ours to theirs, as far as theirs reaches; its size stays. theirs has been checked. */
void rw_struct_out(const rw_layout *layout, const void *ours, void *theirs);

/* Checks what the options say. Returns true, or false and a sentence. */
/* What is wrong with a list of suffixes; NULL: nothing. */
const char *rw_suffixes_complaint(const char *const *suffixes, size_t count);
bool rw_options_check(const receivewal_options *options, char problem[RW_PROBLEM_MAX]);
bool rw_slot_name_check(const char *what, const char *name, char problem[RW_PROBLEM_MAX]);
bool rw_directory_check(const char *what, const char *directory, char problem[RW_PROBLEM_MAX]);
bool rw_segment_size_valid(uint32_t segment_size);

/* ---- pump.c: waiting for a request, and telling the host what happened ---- */

typedef struct rw_relay rw_relay;

/* What the thread that waits for a request works with. */
typedef struct rw_pump
{
    uint64_t core_id;    /* 0: not opened */
    int event_fd;        /* the core's: readable while events wait */
    int poll_fd;         /* an epoll descriptor that watches event_fd, and what the relay waits for */
    rw_relay *relay;     /* NULL: the core has the host's socket itself */
    rw_core_event *done; /* of a request that has ended, while the relay is settled */
    int settling;        /* how often that was begun */
    bool due;            /* events may wait */
    bool cancelled;      /* a callback wanted to stop */
    bool refused;        /* it was that of data, which gets no more */
    uint64_t taken;      /* bytes of data that it has returned 0 for, and the core does not know of */
    int64_t told;        /* when the core was told last */
} rw_pump;

/* What poll_fd says that is ready. */
enum { RW_WATCH_CORE, RW_WATCH_HOST, RW_WATCH_PAIR };

/* Makes the descriptors. Returns true, or false and errno. */
bool rw_pump_open(rw_pump *p);
/* Closes them, and the relay. */
void rw_pump_close(rw_pump *p);

/*
 * Takes events and gives them to the callbacks until DONE, or until timeout milliseconds are over (negative: never).
 * Returns DONE, which the caller frees, or NULL: still running, or the process is now a forked child.
 */
rw_core_event *rw_pump_run(rw_pump *p, const receivewal_events *events, int timeout);

/* A request has begun that nobody waits for yet. */
void rw_pump_started(const rw_pump *p);

/* Whether the connection is idle, and no byte of it is left in the relay. */
bool rw_pump_usable(const rw_pump *p);

void rw_event_free(rw_core_event *event);

/* fd, or a duplicate of it in its place if it has the number of a standard descriptor: a host that has closed those may write
 * its messages there. -1 stays -1, with errno. */
int rw_not_standard(int fd);

/* A descriptor that is readable once something has been written to it. Close-on-exec, non-blocking, ours (descriptors.c). -1 and
 * errno on failure. */
int rw_eventfd(void);
/* Writes to it. Async-signal-safe. */
void rw_signal(int event_fd);

/* ---- relay.c: the bytes of a connection that the host reads and writes itself ---- */

/* A relay for a connection with io, and the descriptor that the core is to use in place of the connection's. NULL and errno
 * on failure. */
rw_relay *rw_relay_new(const receivewal_connection *connection, int *core_end);
void rw_relay_free(rw_relay *relay, int poll_fd);
/* Whose connection it is: before the first work. */
void rw_relay_serve(rw_relay *relay, uint64_t core_id);

/* Moves bytes, as far as that goes without waiting, but not for ever. Returns true if it could go on at once. */
bool rw_relay_work(rw_relay *relay);
/* Makes poll_fd watch what the relay waits for. false and errno on failure. */
bool rw_relay_watch(rw_relay *relay, int poll_fd);
/* The host's descriptor has become ready. */
void rw_relay_ready(rw_relay *relay, uint32_t events);

/* How many bytes have been read from the host so far. */
uint64_t rw_relay_passed(const rw_relay *relay);
/* Whether none is in it, in either direction. */
bool rw_relay_empty(const rw_relay *relay);
/* Whether the connection has neither ended nor failed. */
bool rw_relay_open(const rw_relay *relay);

/* ---- connection.c: a connection that a host lends ---- */

/* A receivewal_connection of this library's size; its io points to this struct's. */
typedef struct rw_connection
{
    receivewal_connection connection;
    receivewal_io io;
} rw_connection;

/* OK; else why it cannot be lent: SIZE, INVALID, BAD_FD, NOT_SOCKET, NOT_CONNECTED, and a sentence. */
receivewal_status rw_connection_check(const receivewal_connection *theirs, rw_connection *ours, char problem[RW_PROBLEM_MAX]);

/* Gives it to the core: a new session's, or in answer to RW_CORE_RECONNECT. OK; else a sentence. */
receivewal_status rw_connection_lend(const rw_connection *lent, rw_pump *p, int stop_fd, char problem[RW_PROBLEM_MAX]);

/* ---- descriptors.c: which descriptors are ours ---- */

/* One bit for each descriptor number up to a million. */
#define RW_DESCRIPTOR_WORDS 16384
extern _Atomic uint64_t rw_descriptors[RW_DESCRIPTOR_WORDS];

/* Makes the entry of a descriptor that was just opened. Returns it. */
int rw_own(int fd);
/* Takes it away and closes the descriptor; not in a forked child, where rw_close_copies has done that. errno stays. */
void rw_close(int fd);
/* In a forked child: closes all. Async-signal-safe. */
void rw_close_copies(void);

/* ---- handles.c: the table of handles ---- */

typedef struct rw_slot
{
    /* generation, open, busy and users in one word: see handles.c. The rest is written only while the slot is busy;
     * stop_fd and the pump's core_id and descriptors only while it is not open, so users may read them. */
    _Atomic uint64_t word;
    rw_pump pump;
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
receivewal_status rw_core_open(int fd, const receivewal_connection *connection, int event_fd, int stop_fd, uint64_t *id, char **text);
receivewal_status rw_core_begin(uint64_t id, rw_core_request *request, char **text);
receivewal_status rw_core_take(uint64_t id, rw_core_event **list);
receivewal_status rw_core_cancel(uint64_t id);
receivewal_status rw_core_reconnect(uint64_t id, rw_core_answer answer, int fd, const receivewal_connection *connection, char **text);
receivewal_status rw_core_lost(uint64_t id, const char *reason);
receivewal_status rw_core_taken(uint64_t id, uint64_t bytes);
receivewal_status rw_core_confirm(uint64_t id, receivewal_lsn lsn, char **text);
receivewal_status rw_core_progress(uint64_t id, receivewal_progress *progress);
int rw_core_usable(uint64_t id);
receivewal_status rw_core_close(uint64_t id);

#endif /* RW_INTERNAL_H */
