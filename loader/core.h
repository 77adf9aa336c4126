/*
 * core.h: the private contract between libreceivewal.so.1 (the loader, plain C) and libreceivewal-core.so.1 (Go).
 *
 * Both are built from one source tree and say so to each other (RW_CORE_HANDSHAKE), so nothing here is kept stable.
 *
 * Every function of the core is quick and never waits for the network or the disk. What takes time is a request: begin hands it
 * over, a goroutine runs it, and what comes of it arrives as events; the last one is RW_CORE_DONE. The event_fd
 * that open was given is readable while events wait.
 *
 * The functions run on the loader's service thread only (core.c), one at a time: no thread of the host ever enters Go.
 */
#ifndef RW_CORE_H
#define RW_CORE_H

#include "receivewal.h"

/* The build passes a hash of the headers that both sides compile, so that two builds of one version don't mix either. */
#ifndef HEADER_HASH
#define HEADER_HASH unknown
#endif
#define RW_CORE_STRING_(x) #x
#define RW_CORE_STRING(x) RW_CORE_STRING_(x)

/* What receivewal_core_version() of a core that fits this loader returns. Change the number with this file's meaning. */
#define RW_CORE_HANDSHAKE RECEIVEWAL_VERSION " (core interface 1, headers " RW_CORE_STRING(HEADER_HASH) ")"

typedef enum rw_core_op
{
    RW_CORE_IDENTIFY = 1,
    RW_CORE_CREATE_SLOT,
    RW_CORE_DROP_SLOT,
    RW_CORE_READ_SLOT,
    RW_CORE_FIND_START, /* for a handle that was opened with fd -1 */
    RW_CORE_CHECK,      /* the same */
    RW_CORE_RESTORE,    /* the same */
    RW_CORE_RECEIVE,
    RW_CORE_SETTLE /* reads what a relay has read ahead: only messages that may come at any time */
} rw_core_op;

/* Which events the host has callbacks for: the core doesn't collect others. */
#define RW_CORE_WANT_LOG 1u
#define RW_CORE_WANT_OPENED 2u
#define RW_CORE_WANT_COMPLETED 4u
#define RW_CORE_WANT_TIMELINE 8u
#define RW_CORE_WANT_PROGRESS 16u
#define RW_CORE_WANT_RECONNECT 32u
#define RW_CORE_WANT_PROBLEM 64u
#define RW_CORE_WANT_DISK_FULL 128u
#define RW_CORE_WANT_MIRROR 256u
#define RW_CORE_WANT_DATA 512u

/* Valid, with all that it points to, only until begin returns: the core copies. */
typedef struct rw_core_request
{
    rw_core_op op;
    uint32_t wanted;                   /* RECEIVE */
    uint32_t flags;                    /* CREATE_SLOT, DROP_SLOT; CHECK: whether to decode */
    uint32_t segment_size;             /* FIND_START, CHECK */
    uint64_t passed;                   /* SETTLE: bytes that the relay has passed to the core, since it began */
    const char *name;                  /* *_SLOT: the slot; RESTORE: the file */
    const char *target;                /* RESTORE: absolute where possible */
    const char *directory;             /* FIND_START, CHECK, RESTORE, RECEIVE: absolute where possible */
    const char *const *suffixes;       /* CHECK */
    size_t suffix_count;
    const receivewal_options *options; /* RECEIVE: normalised, its mirrors absolute; its directory and events are not looked at */
} rw_core_request;

typedef enum rw_core_kind
{
    RW_CORE_LOG = 1,   /* level, text */
    RW_CORE_OPENED,    /* segment, text */
    RW_CORE_COMPLETED, /* segment, text */
    RW_CORE_TIMELINE,  /* timeline_switch */
    RW_CORE_PROGRESS,  /* progress */
    RW_CORE_PROBLEM,   /* problem, directory, file, text */
    RW_CORE_DISK_FULL, /* disk_full, text */
    RW_CORE_MIRROR,    /* mirror, directory, status, text */
    RW_CORE_DATA,      /* data; to be answered by taken, once the callback has returned 0 */
    RW_CORE_RECONNECT, /* attempt, status, text, sqlstate; to be answered by reconnect */
    RW_CORE_DONE       /* status, text, sqlstate, detail, hint; system, slot, start or check where the request asked for it */
} rw_core_kind;

/* One event. Each, and each string in it, is malloc'ed by the core and freed by the loader. A string may be NULL. */
typedef struct rw_core_event
{
    struct rw_core_event *next;
    rw_core_kind kind;
    receivewal_log_level level;
    receivewal_status status;
    char *text; /* LOG: the line; OPENED, COMPLETED: the file name; RECONNECT, DONE: the error */
    char *file;
    char *directory;
    char *sqlstate;
    char *detail;
    char *hint;
    void *data; /* DATA: the bytes */
    union
    {
        receivewal_segment segment; /* its name is NULL: see text */
        receivewal_timeline_switch timeline_switch;
        receivewal_progress progress;
        receivewal_problem problem;     /* its strings are NULL: see directory, file and text */
        receivewal_disk_full disk_full; /* its errmsg is NULL: see text */
        receivewal_mirror mirror;       /* its strings are NULL: see directory and text; its status is not set */
        receivewal_data data;
        int attempt;
        receivewal_check check;
        receivewal_system system;
        receivewal_slot slot;
        receivewal_start_point start;
    } u;
} rw_core_event;

/* The answer to RW_CORE_RECONNECT. */
typedef enum rw_core_answer
{
    RW_CORE_CONNECTED = 1,
    RW_CORE_LATER,
    RW_CORE_GIVE_UP
} rw_core_answer;

/* The core's functions, by the names that it exports them under: receivewal_core_<member>. */
typedef struct rw_core
{
    /* RW_CORE_HANDSHAKE of the core's build. Plain C, so that a core that doesn't fit is not entered. */
    const char *(*version)(void);

    /*
     * Duplicates fd (unless it is -1) and stop_fd (unless -1) and begins a session on fd, which is the connection's own or, where
     * that has an io, a relay's. event_fd stays the loader's, and open until close has returned. On failure *text is a malloc'ed
     * sentence, or NULL.
     */
    receivewal_status (*open)(int fd, const receivewal_connection *connection, int event_fd, int stop_fd, uint64_t *id, char **text);

    /* Starts a request. The loader sees to it that none is running. */
    receivewal_status (*begin)(uint64_t id, rw_core_request *request, char **text);

    /* Gives all events that wait, oldest first, and empties event_fd. */
    receivewal_status (*take)(uint64_t id, rw_core_event **list);

    /* Asks the running request to end, as a write to stop_fd does. */
    receivewal_status (*cancel)(uint64_t id);

    /* Answers a RW_CORE_RECONNECT; CONNECTED comes with fd and connection as for open. STOPPED if nobody waits for it any more. */
    receivewal_status (*reconnect)(uint64_t id, rw_core_answer answer, int fd, const receivewal_connection *connection, char **text);

    /* A relay's connection is lost, and why: before the core can see its end. */
    receivewal_status (*lost)(uint64_t id, const char *reason);

    /* The host has taken the next so many bytes of RW_CORE_DATA. */
    receivewal_status (*taken)(uint64_t id, uint64_t bytes);

    /* receivewal_confirm. On failure *text is a malloc'ed sentence, or NULL. */
    receivewal_status (*confirm)(uint64_t id, receivewal_lsn lsn, char **text);

    receivewal_status (*progress)(uint64_t id, receivewal_progress *progress);

    /* 1 if the connection is idle in ReadyForQuery, else 0. */
    int (*usable)(uint64_t id);

    /* Ends the session, after its last request's DONE was taken; its goroutines and descriptors are gone on return. */
    receivewal_status (*close)(uint64_t id);

    /* Before any of the above: where the core marks each descriptor that it has open, one bit for each number (descriptors.c).
     * Plain C, as version is. */
    void (*share)(_Atomic uint64_t *descriptors, size_t words);
} rw_core;

/*
 * The core exports one more for tests, which they find with dlsym:
 *     int64_t receivewal_core_alive(void);    handles open plus goroutines of ours
 */

#endif /* RW_CORE_H */
