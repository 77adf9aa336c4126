/*
 * receivewal.h: receive PostgreSQL's write-ahead log over a connection that the program already holds.
 *
 * A host has connected to PostgreSQL with "replication=true" and authenticated. It hands the connection's
 * socket to libreceivewal, which drives the streaming replication protocol on it
 * (https://www.postgresql.org/docs/current/protocol-replication.html), writes WAL segments into a directory as
 * pg_receivewal does, and gives the connection back, idle and usable.
 *
 *     receivewal *rw;
 *     receivewal_connection c = RECEIVEWAL_CONNECTION_INIT;
 *     receivewal_options o = RECEIVEWAL_OPTIONS_INIT;
 *     c.fd = PQsocket(conn);
 *     o.directory = "/backup/wal";
 *     o.slot = "backup";
 *     if (receivewal_attach(&c, &rw) != RECEIVEWAL_OK || receivewal_receive(rw, &o) != RECEIVEWAL_OK)
 *         fprintf(stderr, "%s\n", receivewal_errmsg(rw));
 *     receivewal_detach(rw);
 *
 * Link with -lreceivewal. That library is small and holds no Go code: it loads libreceivewal-core.so.1, which lies in
 * its own folder, on the first call that needs it, so a process that only forks children which call it starts no thread.
 *
 * Rules that hold for every function:
 *
 *   Ownership  Everything passed in is copied before the call returns; the caller may free it. Strings given out belong to
 *              the library; each comment says how long they live. Nothing is ever printed, no environment variable is
 *              read, and no umask, working directory or signal handler of the host is changed, but that Go takes SIGSEGV, SIGBUS
 *              and SIGFPE when the core is loaded, and passes on to the host's handlers what does not come from its own code.
 *   Threads    A handle is used by one thread at a time. Only receivewal_stop, receivewal_confirm, receivewal_get_progress and the
 *              functions without a handle may be called at any time from any thread. A call that clashes with one in progress
 *              returns RECEIVEWAL_ERR_BUSY. Different handles are independent.
 *   Callbacks  run inside receivewal_receive, receivewal_wait or receivewal_dispatch, on the thread that called it, one at
 *              a time. Inside one, only receivewal_stop, receivewal_confirm and receivewal_get_progress may be called on the same
 *              handle; anything else returns RECEIVEWAL_ERR_BUSY.
 *   Fork       After fork, a child of a process that has made a call which needs the core gets
 *              RECEIVEWAL_ERR_FORKED from each of them at once. A child of a process that has not may use the library freely.
 *              fork closes the library's descriptors in the child: one that outlives its parent holds neither the directory's
 *              lock nor the connection. The host's own descriptor of the connection is for the host to close there.
 *   Units      LSNs are byte positions in the WAL. Times are in milliseconds, points in time in microseconds since
 *              1970-01-01 00:00:00 UTC; sizes are in bytes.
 *   Structs    that the caller fills, or that the library fills for the caller, begin with their size. Initialise them with
 *              their INIT macro. A program compiled with an older, smaller struct keeps working; one compiled with a newer,
 *              larger struct is refused with RECEIVEWAL_ERR_SIZE if it uses a field that this library does not know.
 *
 * BSD-3-Clause. See LICENSE.
 */
#ifndef RECEIVEWAL_H
#define RECEIVEWAL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this header. receivewal_version() gives the version of the library that runs. */
#define RECEIVEWAL_VERSION "0.1.0"
#define RECEIVEWAL_VERSION_NUM 100 /* major * 10000 + minor * 100 + patch */

/* ------------------------------------------------------------------------------------------------ types */

/* A handle: one connection that the library has been lent. It is not a pointer to memory: a stale or foreign one is
 * recognised and refused, never followed. NULL is never valid. */
typedef struct receivewal receivewal;

/* A position in the WAL, in bytes. PostgreSQL prints it as two hexadecimal numbers, "16/B374D848". 0 is no position. */
typedef uint64_t receivewal_lsn;

/* What a call returns. The numbers never change; new ones may be added. The comment says what the host should do. */
typedef enum receivewal_status
{
    RECEIVEWAL_OK = 0,      /* done: for a receive, end_lsn was reached */
    RECEIVEWAL_PENDING = 1, /* receivewal_wait: still running when the time was up */

    /* The call was wrong. Nothing was done; mend the program. */
    RECEIVEWAL_ERR_INVALID = 10, /* an argument or option is NULL, out of range or unknown */
    RECEIVEWAL_ERR_SIZE = 11,    /* a struct's size is impossible, or its unknown tail is not zero */
    RECEIVEWAL_ERR_HANDLE = 12,  /* not a handle of this library */
    RECEIVEWAL_ERR_CLOSED = 13,  /* the handle was detached before */
    RECEIVEWAL_ERR_BUSY = 14,    /* another call is in progress on this handle, or there is none to wait for */

    /* The library cannot run in this process. */
    RECEIVEWAL_ERR_FORKED = 20, /* the parent had used the library before it forked; exec, or fork earlier */
    RECEIVEWAL_ERR_CORE = 21,   /* libreceivewal-core.so.1 is missing, or of another version; mend the installation */
    RECEIVEWAL_ERR_LIMIT = 22,  /* out of memory, descriptors or handles */

    /* The connection cannot be used. Connect anew, or mend what is named, and attach again. */
    RECEIVEWAL_ERR_BAD_FD = 30,        /* the descriptor is not open */
    RECEIVEWAL_ERR_NOT_SOCKET = 31,    /* the descriptor is not a stream socket */
    RECEIVEWAL_ERR_NOT_CONNECTED = 32, /* the socket has no peer */
    RECEIVEWAL_ERR_ENCRYPTED = 33,     /* the peer speaks TLS on this descriptor */
    RECEIVEWAL_ERR_CONNECTION = 34,    /* the connection was lost, or the server shut down: reconnect and call again */
    RECEIVEWAL_ERR_PROTOCOL = 35,      /* the peer sent what the protocol does not allow */

    /* The server refused. receivewal_sqlstate() tells why in its own terms. */
    RECEIVEWAL_ERR_SERVER = 40,      /* an error with an SQLSTATE that none of the following names */
    RECEIVEWAL_ERR_WAL_REMOVED = 41, /* the WAL asked for is no longer on the server: a new base backup is needed. The text says
                                        whether the slot keeps other WAL, was invalidated or has never kept any, as far as the
                                        server tells (from 18 on for certain) */
    RECEIVEWAL_ERR_NO_SLOT = 42,     /* the replication slot does not exist, or is not a physical one */
    RECEIVEWAL_ERR_SLOT_BUSY = 43,   /* the replication slot is in use by another process, whose PID is in the text */
    RECEIVEWAL_ERR_SLOT_EXISTS = 44, /* the replication slot exists already */
    RECEIVEWAL_ERR_UNSUPPORTED = 45, /* the server is too old for this, or the connection is not for physical replication */

    /* The directory cannot be used or written. What was reported flushed is safe; call again once mended. */
    RECEIVEWAL_ERR_NO_DIRECTORY = 50, /* it does not exist, or is not a directory */
    RECEIVEWAL_ERR_PERMISSION = 51,   /* it, or a file in it, may not be read or written */
    RECEIVEWAL_ERR_LOCKED = 52,       /* another receiver is writing to it */
    RECEIVEWAL_ERR_DISK_FULL = 53,    /* no space, quota or file size left */
    RECEIVEWAL_ERR_IO = 54,           /* reading, writing or syncing failed */
    RECEIVEWAL_ERR_NO_FILE = 55,      /* receivewal_restore: the directory has no such file */

    /* The WAL does not belong here. Nothing of it was kept; a person has to look. */
    RECEIVEWAL_ERR_GAP = 60,      /* the server's data does not continue where the last ended */
    RECEIVEWAL_ERR_FOREIGN = 61,  /* the WAL, or the directory's, is of another cluster or has another segment size */
    RECEIVEWAL_ERR_TIMELINE = 62, /* the timeline is not in the server's history */

    RECEIVEWAL_ERR_STOPPED = 70, /* receivewal_stop, or a callback, ended it: cleanly, everything written is flushed */

    RECEIVEWAL_ERR_INTERNAL = 90 /* a defect of this library; detach and report it */
} receivewal_status;

/* How important a log message is. */
typedef enum receivewal_log_level
{
    RECEIVEWAL_LOG_DEBUG = 10,   /* what pg_receivewal prints with --verbose: positions, segments, timelines */
    RECEIVEWAL_LOG_INFO = 20,    /* what pg_receivewal always prints, and notices of the server */
    RECEIVEWAL_LOG_WARNING = 30, /* something is not as it should be, but receiving goes on */
    RECEIVEWAL_LOG_ERROR = 40    /* the text of an error that ends the call */
} receivewal_log_level;

/* What a handle is doing. */
typedef enum receivewal_state
{
    RECEIVEWAL_STATE_IDLE = 0,      /* no call in progress */
    RECEIVEWAL_STATE_STARTING = 1,  /* asking the server, looking through the directory */
    RECEIVEWAL_STATE_STREAMING = 2, /* receiving */
    RECEIVEWAL_STATE_STOPPING = 3,  /* flushing, and bringing the connection back to idle */
    RECEIVEWAL_STATE_RECONNECTING = 4, /* waiting for a new connection (events.reconnect) */
    RECEIVEWAL_STATE_DISK_FULL = 5     /* waiting for room on the disk (on_disk_full) */
} receivewal_state;

/* ------------------------------------------------------------------------------------------- connection */

/*
 * How the host reads and writes a connection whose bytes are not plain on the descriptor, such as a TLS session.
 * receivewal_openssl.h makes one of an SSL *.
 *
 * The functions run inside receivewal_receive, receivewal_wait, receivewal_dispatch and the calls that ask the server, on the
 * thread that called, one at a time; the library itself only polls the descriptor. They must not block: the
 * descriptor is expected to be non-blocking, and where they would have to wait they say for what. Either may ask for either
 * direction (a TLS session may have to write in order to read). After RECEIVEWAL_IO_ERROR, or a number that makes no sense,
 * neither is called again.
 *
 * Bytes move only inside those calls. A host that receives in the background has to come back as often as
 * receivewal_event_fd asks for it: to the server and to the library, one that stays away is a connection that is silent.
 */
typedef struct receivewal_io
{
    size_t size; /* sizeof(receivewal_io) */
    void *ctx;   /* passed to each; the library doesn't touch it. Must live until receivewal_detach, or until
                    events.reconnect is asked for another connection */

    /* Reads up to length (> 0) bytes. Returns how many (> 0), 0 once the peer has closed, or one of RECEIVEWAL_IO_*. */
    ptrdiff_t (*read)(void *ctx, void *buffer, size_t length);

    /* Writes up to length (> 0) bytes. Returns how many (> 0), or one of RECEIVEWAL_IO_*. Where it has to be called again,
     * that is with the same buffer and the same length. */
    ptrdiff_t (*write)(void *ctx, const void *buffer, size_t length);

    /* At once after RECEIVEWAL_IO_ERROR, errno being what the failed function left: why, as a NUL-terminated sentence of at
     * most length bytes with the NUL. May be NULL. */
    void (*errmsg)(void *ctx, char *buffer, size_t length);
} receivewal_io;
#define RECEIVEWAL_IO_INIT { sizeof(receivewal_io), NULL, NULL, NULL, NULL }

#define RECEIVEWAL_IO_ERROR (-1)      /* the connection is lost */
#define RECEIVEWAL_IO_WANT_READ (-2)  /* call again once the descriptor is readable */
#define RECEIVEWAL_IO_WANT_WRITE (-3) /* call again once the descriptor is writable */

/*
 * A connection that the host has established with replication=true and authenticated, and that is idle.
 * Messages of the authentication (ParameterStatus, BackendKeyData, ReadyForQuery) may still be unread on it.
 *
 * Or one on which the host has started a stream itself: it has sent START_REPLICATION and read CopyBothResponse, and no
 * more than that but into read_ahead. The first receive takes the stream over. It goes on with it as it is where
 * system_identifier and segment_size are given and stream_lsn is exactly where the directory ends (or the directory is
 * empty, and stream_lsn the first byte of a segment); otherwise it ends the stream and starts one at the right place.
 * libpq keeps to itself what it has read behind CopyBothResponse: a host with libpq leaves the start to the library.
 */
typedef struct receivewal_connection
{
    size_t size;        /* sizeof(receivewal_connection) */
    int fd;             /* the connected stream socket (TCP or Unix); it is duplicated, and stays the host's */
    int server_version; /* as PQserverVersion gives it, 150018 for 15.18; 0: not known */

    const receivewal_io *io; /* how to read and write; NULL: the descriptor's bytes are plain */

    const void *read_ahead;   /* what the host has read beyond what it has used; NULL: nothing */
    size_t read_ahead_length; /* bytes */

    int streaming;               /* non-zero: the host has started a stream, as the following says */
    uint32_t stream_timeline;    /* as in its START_REPLICATION */
    receivewal_lsn stream_lsn;   /* as in its START_REPLICATION */
    uint64_t system_identifier;  /* from IDENTIFY_SYSTEM; 0: not known */
    uint32_t segment_size;       /* wal_segment_size in bytes; 0: not known */
} receivewal_connection;
#define RECEIVEWAL_CONNECTION_INIT { sizeof(receivewal_connection), -1, 0, NULL, NULL, 0, 0, 0, 0, 0, 0 }

/*
 * Lends a connection to the library. No byte is sent or received by this call.
 *
 * The descriptor is duplicated and its flags stay as they are (blocking or not: both work). Until receivewal_detach, the host
 * must not read from it or write to it. Should it close it, or put another file in its place, the library neither reads, writes
 * nor waits for what is there then: it goes on with its duplicate or, where the bytes go through an io, counts the connection as lost.
 *
 * Returns RECEIVEWAL_OK and a handle in *rw; else *rw is NULL, and receivewal_errmsg(NULL) has the text:
 *   INVALID (connection or rw is NULL, or a field is out of range), SIZE, BAD_FD, NOT_SOCKET, NOT_CONNECTED, FORKED, CORE, LIMIT.
 */
receivewal_status receivewal_attach(const receivewal_connection *connection, receivewal **rw);

/*
 * Gives the connection back and ends the handle. Of a connection that was replaced (events.reconnect), that is the last one. If the last call ended with OK, STOPPED, one of the SERVER errors
 * (40 to 45), or an error before anything was sent, the connection is idle and the host may send its next command on it
 * (receivewal_connection_usable tells). Otherwise the host should close it.
 *
 * Returns OK; BUSY while a call is in progress (stop it first); HANDLE, CLOSED, FORKED. On BUSY the handle stays valid.
 */
receivewal_status receivewal_detach(receivewal *rw);

/*
 * Whether the connection is idle in ReadyForQuery, so that the host may go on using it: 1 or 0.
 * 0 too where the handle is not valid, or a call is in progress.
 */
int receivewal_connection_usable(receivewal *rw);

/* --------------------------------------------------------------------------------------------- progress */

#define RECEIVEWAL_NAME_MAX 64 /* room for a segment's file name with every suffix and a NUL */

/* Where a receive is. Also kept after it has ended, until the next one begins. */
typedef struct receivewal_progress
{
    size_t size;                       /* sizeof(receivewal_progress), set by the caller */
    receivewal_state state;
    uint32_t timeline;                 /* of the data being received; 0: not started yet */
    receivewal_lsn start_lsn;          /* where this receive began */
    receivewal_lsn written_lsn;        /* end of what has been written to a file, or waits to be compressed */
    receivewal_lsn flushed_lsn;        /* end of what is durable: it survives a power cut */
    receivewal_lsn server_lsn;         /* the server's end of WAL, as it said last */
    uint64_t bytes;                    /* WAL bytes received since the start */
    uint64_t segments;                 /* segments completed since the start */
    uint64_t reconnects;               /* connections after the first, since the start */
    int64_t server_time;               /* the server's clock in its last message, microseconds; 0: none yet */
    int64_t received_time;             /* our clock at that moment, microseconds; 0: none yet */
    char segment[RECEIVEWAL_NAME_MAX]; /* file name of the segment being written, ".gz" and the like included, without ".partial" */
    receivewal_lsn reported_lsn;       /* the flushed position that the server was told last; 0: none */
    receivewal_lsn confirmed_lsn;      /* what the host has confirmed last (receivewal_confirm); 0: nothing */
    uint64_t stored_bytes;             /* bytes written to files: as bytes, but less where segments are compressed */
    uint64_t lag;                      /* bytes that the server has, as it said last, and are not written yet */
    int64_t lag_time;                  /* milliseconds since written_lsn was last the server's end of WAL; 0: it is */
    uint64_t rate;                     /* bytes received per second, over the last seconds */
    int64_t catch_up_time;             /* milliseconds until lag is 0, as things go; 0: it is; -1: not as things go */
    int64_t flush_time;                /* microseconds that the last flush took; 0: there was none */
    int64_t flush_time_max;            /* and the slowest one since the start */
    uint32_t mirrors;                  /* of options.mirrors, those that are written in step */
    uint32_t mirrors_failed;           /* and those that are not, at the moment */
} receivewal_progress;
#define RECEIVEWAL_PROGRESS_INIT                                                                                       \
    {                                                                                                                  \
        sizeof(receivewal_progress), RECEIVEWAL_STATE_IDLE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, { 0 }, 0, 0, 0, 0, 0, 0, 0,  \
            0, 0, 0, 0                                                                                                 \
    }

/* A short English name of a state, "streaming". Static. Any value is allowed. */
const char *receivewal_state_name(receivewal_state state);

/* Fills *progress. Any thread, at any time. Returns OK, INVALID, SIZE, HANDLE, CLOSED, FORKED. */
receivewal_status receivewal_get_progress(receivewal *rw, receivewal_progress *progress);

/* ----------------------------------------------------------------------------------------------- events */

/* A segment, as events tell of it. Everything in it is valid only during the callback. */
typedef struct receivewal_segment
{
    size_t size;             /* of this struct, set by the library */
    const char *name;        /* file name within the directory: "0000000100000000000000A7", compressed with ".gz", ".lz4" or ".zst"
                                behind, and then ".partial" while open */
    receivewal_lsn lsn;      /* its first byte */
    receivewal_lsn end_lsn;  /* the byte after its last: lsn + segment_size */
    uint32_t timeline;
    uint32_t segment_size;   /* bytes */
} receivewal_segment;

/* A step to the next timeline, after a promotion. Valid only during the callback. */
typedef struct receivewal_timeline_switch
{
    size_t size;               /* of this struct, set by the library */
    uint32_t old_timeline;
    uint32_t new_timeline;
    receivewal_lsn switch_lsn; /* where the new timeline begins, as the server said */
    receivewal_lsn start_lsn;  /* where streaming goes on: the first byte of the segment that holds switch_lsn */
} receivewal_timeline_switch;

/* What is wrong with a directory. */
typedef enum receivewal_problem_kind
{
    RECEIVEWAL_PROBLEM_MISSING = 10,      /* segments between the oldest and the newest are not there: a hole */
    RECEIVEWAL_PROBLEM_WRONG_SIZE = 20,   /* a file with a complete segment's name has not a segment's size, or a partial one is longer */
    RECEIVEWAL_PROBLEM_WRONG_PAGE = 21,   /* its first page is another cluster's, another segment's or another timeline's */
    RECEIVEWAL_PROBLEM_DAMAGED = 22,      /* a compressed segment cannot be decompressed */
    RECEIVEWAL_PROBLEM_NO_HISTORY = 30,   /* a timeline has segments, but no history file */
    RECEIVEWAL_PROBLEM_BAD_HISTORY = 31,  /* a history file cannot be read */
    RECEIVEWAL_PROBLEM_FOREIGN_FILE = 40, /* a file with a segment's name that fits no segment of this size */
    RECEIVEWAL_PROBLEM_LEFTOVER = 50      /* a file that an interrupted receiver left and nobody needs: harmless */
} receivewal_problem_kind;

/* What became of a problem. */
typedef enum receivewal_problem_state
{
    RECEIVEWAL_PROBLEM_FOUND = 0,    /* told of each */
    RECEIVEWAL_PROBLEM_REPAIRED = 1, /* then, of missing segments: they were fetched from the server; a mirror's, copied from the
                                        first directory */
    RECEIVEWAL_PROBLEM_LOST = 2      /* or: the server no longer has them; a mirror's, the first directory does not have them */
} receivewal_problem_state;

/* Something that is wrong with a directory. Valid only during the callback. */
typedef struct receivewal_problem
{
    size_t size; /* of this struct, set by the library */
    receivewal_problem_kind kind;
    receivewal_problem_state state;
    uint32_t timeline;      /* 0 where it is not about WAL, and so the LSNs */
    receivewal_lsn lsn;     /* a recovery that needs the WAL from lsn */
    receivewal_lsn end_lsn; /* to end_lsn on this timeline fails, unless it is a LEFTOVER or REPAIRED */
    const char *file;       /* file name within the directory; "" where it is about a range */
    const char *text;       /* a sentence */
    const char *directory;  /* which one: options.directory or a mirror, as it was given but absolute */
} receivewal_problem;

/* The disk is full, or has room again (on_disk_full). Valid only during the callback. */
typedef struct receivewal_disk_full
{
    size_t size;        /* of this struct, set by the library */
    int full;           /* 1: it is; 0: no longer */
    int64_t waited;     /* milliseconds since it was full first */
    const char *errmsg; /* what could not be done; "" when full is 0 */
} receivewal_disk_full;

/* What became of a mirror. */
typedef enum receivewal_mirror_state
{
    RECEIVEWAL_MIRROR_FAILED = 1,  /* it is not written any more; it is tried again */
    RECEIVEWAL_MIRROR_RESTORED = 2 /* it is written in step again, and has what it had missed, unless a problem was told */
} receivewal_mirror_state;

/* A mirror failed, or is back (options.mirrors). Valid only during the callback. */
typedef struct receivewal_mirror
{
    size_t size; /* of this struct, set by the library */
    receivewal_mirror_state state;
    receivewal_status status; /* why it failed: one of the directory's (50 to 62); OK when it is back */
    const char *directory;    /* as it was given, but absolute */
    const char *errmsg;       /* why it failed, in a sentence; "" when it is back */
} receivewal_mirror;

/* WAL that was received, for a host that ships it elsewhere. Valid only during the callback. */
typedef struct receivewal_data
{
    size_t size; /* of this struct, set by the library */
    uint32_t timeline;
    receivewal_lsn lsn;        /* of the first byte. Continues where the last ended, but at the start of a receive, after a lost connection
                                  and after a timeline's end: there it begins anew, at the first byte of a segment */
    receivewal_lsn server_lsn; /* the server's end of WAL, as it said last */
    const void *data;
    size_t length; /* bytes; never beyond the end of a segment */
} receivewal_data;

/* A connection was lost: what events.reconnect is told. Valid only during the callback. */
typedef struct receivewal_reconnection
{
    size_t size;              /* of this struct, set by the library */
    int attempt;              /* counts from 1 since data was last received */
    receivewal_status status; /* why: RECEIVEWAL_ERR_CONNECTION */
    const char *errmsg;       /* why, in a sentence */
    const char *sqlstate;     /* the server's, or "" */
} receivewal_reconnection;

/*
 * What the host wants to hear of. Each may be NULL. Those that return int go on with 0; any other value stops the
 * receive cleanly, as receivewal_stop does. A callback must return: no longjmp, no C++ exception through it.
 */
typedef struct receivewal_events
{
    void *ctx; /* passed to each; the library doesn't touch it */

    /* A message for the host's log: one line, UTF-8 or the server's encoding, no newline at its end. */
    void (*log)(void *ctx, receivewal_log_level level, const char *text);

    /* A segment's .partial is visible in the directory and being filled. Not called for a segment that was complete
     * before its turn came, as happens while catching up. */
    int (*segment_opened)(void *ctx, const receivewal_segment *segment);

    /* A segment is complete, durable and has its final name. In order, each exactly once. */
    int (*segment_completed)(void *ctx, const receivewal_segment *segment);

    /* The server's timeline ended and the next one's history file is in the directory. */
    int (*timeline_switched)(void *ctx, const receivewal_timeline_switch *timeline_switch);

    /* At most once per progress_interval, only when something has changed. */
    int (*progress)(void *ctx, const receivewal_progress *progress);

    /*
     * The connection was lost. The host fills *connection, which is initialised, with a new one that is
     * established and authenticated, as for receivewal_attach, and returns 0; or leaves its fd at -1 to be asked again later.
     * What io and read_ahead point to must stay until the next callback, so not on this one's stack. Any other
     * value gives up: the receive ends with RECEIVEWAL_ERR_CONNECTION. The old connection is the host's to close, during
     * the callback or after. The library waits before it asks: from 1 second at first to 1 minute, with a part left to chance;
     * receivewal_stop ends the wait at once. NULL: the receive ends when the connection is lost.
     */
    int (*reconnect)(void *ctx, const receivewal_reconnection *reconnection, receivewal_connection *connection);

    /* Something is wrong with the directory, as was found at the start of the receive; and what became of it. */
    int (*problem)(void *ctx, const receivewal_problem *problem);

    /* The disk is full, and is waited for; or has room again. */
    int (*disk_full)(void *ctx, const receivewal_disk_full *disk_full);

    /* A mirror failed, or is back. */
    int (*mirror)(void *ctx, const receivewal_mirror *mirror);

    /*
     * Data was received and written. Each byte once, in order, but not what is fetched to fill a hole (see problem). The server is not
     * told that it is flushed before the callback has returned 0. A host that comes for it slowly holds up the stream: 8 MiB wait, and
     * no more; the connection is kept alive meanwhile, with an io only between the callbacks. After a non-zero answer it is not
     * called again; a stop otherwise waits for what was received already to be told.
     */
    int (*data)(void *ctx, const receivewal_data *data);

    void (*reserved[6])(void); /* must be NULL */
} receivewal_events;

/* ---------------------------------------------------------------------------------------------- options */

/* What to do about segments that are missing between complete ones (options.repair). */
typedef enum receivewal_repair
{
    RECEIVEWAL_REPAIR = 0,      /* fetch them from the server first, oldest first; go on without those that it no longer has */
    RECEIVEWAL_REPAIR_STOP = 1, /* the same, but end with RECEIVEWAL_ERR_GAP if it no longer has some */
    RECEIVEWAL_REPAIR_OFF = 2   /* only tell of them */
} receivewal_repair;

/* What to do when the disk is full (options.on_disk_full). */
typedef enum receivewal_on_disk_full
{
    RECEIVEWAL_DISK_FULL_FAIL = 0, /* end with RECEIVEWAL_ERR_DISK_FULL */
    RECEIVEWAL_DISK_FULL_WAIT = 1  /* stop reading, keep the connection alive, look again every few seconds and go on */
} receivewal_on_disk_full;

/* How new segments are stored (options.compression). */
typedef enum receivewal_compression
{
    RECEIVEWAL_COMPRESSION_NONE = 0, /* as they are */
    RECEIVEWAL_COMPRESSION_GZIP = 1, /* .gz, level 1 to 9 */
    RECEIVEWAL_COMPRESSION_LZ4 = 2,  /* .lz4, level 1 to 12 */
    RECEIVEWAL_COMPRESSION_ZSTD = 3  /* .zst, level 1 to 19, by default 1; pg_receivewal doesn't know it */
} receivewal_compression;

/* How to receive. Zero or NULL is the default wherever nothing else is said. */
typedef struct receivewal_options
{
    size_t size;               /* sizeof(receivewal_options) */
    const char *directory;     /* where segments are written; it must exist. Locked (flock) while a receive runs */
    const char *slot;          /* a physical replication slot that exists; NULL: none */
    receivewal_lsn start_lsn;  /* where to start if the directory has no WAL yet, rounded down to a segment; 0: the slot's
                                  position, else the server's */
    uint32_t start_timeline;   /* the timeline of start_lsn; 0: the server's. Only with start_lsn */
    receivewal_lsn end_lsn;    /* stop once a position beyond it has been received; 0: never */
    int status_interval;       /* milliseconds between status updates to the server; INIT sets 10000; 0: only when it asks */
    int progress_interval;     /* milliseconds between progress events, at least; INIT sets 1000 */
    int synchronous;           /* non-zero: flush WAL as soon as it arrives and tell the server at once */
    int no_sync;               /* non-zero: never wait for the disk. Faster, and NOT safe: "flushed" then means nothing.
                                  Not together with synchronous */
    uint32_t file_mode;        /* permission bits of new files; 0: 0600, or 0640 where the server's data_directory_mode
                                  allows group access. The umask does not apply */
    int receive_timeout;       /* milliseconds that the server may be silent: after half of it, it is asked for a reply, after all of
                                  it the connection is lost. 0: twice the server's wal_sender_timeout, or 60000 where
                                  that is off or cannot be read; negative: for ever */
    int flush_interval;        /* milliseconds; without synchronous: make WAL durable, and report it, at the latest so long after
                                  it was written. 0: only at a segment's end and when the server asks */
    receivewal_repair repair;  /* missing segments */
    receivewal_on_disk_full on_disk_full;
    int check_pages;           /* non-zero: check the header of each WAL page, not only of each segment's first; costs about 1.4 ms of
                                  processor time per GiB */
    receivewal_events events;
    receivewal_compression compression; /* of new segments; older ones stay as they are */
    int compression_level;              /* 0: the method's default */
    int compression_workers;            /* segments that are compressed at a time, each by a thread. 0: 1. One has up to 4 MiB of data waiting;
                                           two or more a segment each, 256 MiB at most in all. Each needs 1 MiB besides for gzip, less for LZ4, for
                                           Zstandard 2 MiB at level 1, 37 MiB from level 10 on */
    const char *const *suffixes;        /* what other programs may have added to the name of a complete segment, such as ".enc": it counts
                                           as complete. Each begins with a dot. Besides .gz .lz4 .zst .zstd .bz2 .xz .aes .gpg .enc .age */
    size_t suffix_count;
    const char *const *mirrors;         /* directories that are written in step with the first. Each is locked, and has holes and
                                           errors of its own, told by events.problem and events.mirror. It gets what it lacks from the first
                                           directory. Up to 64 MiB of WAL wait in memory for those that are slower, for all together */
    size_t mirror_count;                /* 16 at most */
    int mirror_required;                /* non-zero: a mirror's error ends the receive, flushed means in each of them, and segment_completed
                                           waits for them. Else the receive goes on without it, tries it again every 10 seconds, and
                                           at its end waits 10 seconds at most for one that hangs */
    int confirm;                        /* non-zero: the flushed position is not told to the server beyond receivewal_confirm, and none
                                           before the first; a server that shuts down waits for all to be confirmed */
    int slot_wait;                      /* milliseconds to wait for a slot that is in use, asking each second; 0: don't; negative: for ever */
} receivewal_options;
#define RECEIVEWAL_OPTIONS_INIT                                                                                        \
    {                                                                                                                  \
        sizeof(receivewal_options), NULL, NULL, 0, 0, 0, 10000, 1000, 0, 0, 0, 0, 0, RECEIVEWAL_REPAIR,                \
            RECEIVEWAL_DISK_FULL_FAIL, 0,                                                                              \
            { NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,                                        \
              { NULL, NULL, NULL, NULL, NULL, NULL } },                                                                \
            RECEIVEWAL_COMPRESSION_NONE, 0, 0, NULL, 0, NULL, 0, 0, 0, 0                                               \
    }

/* ---------------------------------------------------------------------------------------------- receive */

/*
 * Receives WAL into options->directory until end_lsn, receivewal_stop, a callback's non-zero answer or an error.
 * Blocks; callbacks run on this thread; signal handlers of the host run as usual.
 *
 * Where it starts: the directory's newest segment decides, as in pg_receivewal (FindStreamingStart in pg_receivewal.c): after a complete
 * segment, or again at the first byte of a partial one. A directory without WAL starts at start_lsn, else at the slot's
 * restart_lsn (server 15 and newer), else at the server's current position; always at the first byte of a segment.
 * It follows the server from timeline to timeline and keeps their history files.
 *
 * The position reported to the server as flushed (with a slot, or synchronous; otherwise none is) never exceeds what
 * is durable.
 *
 * Returns OK (end_lsn reached), STOPPED, or INVALID, SIZE, HANDLE, CLOSED, BUSY, FORKED, ENCRYPTED, CONNECTION, PROTOCOL, any of SERVER
 * (40 to 45), any of the directory (50 to 54), GAP, FOREIGN, TIMELINE, LIMIT, INTERNAL. In every case all that was
 * written is left in a state that the next receive, or pg_receivewal, continues.
 */
receivewal_status receivewal_receive(receivewal *rw, const receivewal_options *options);

/*
 * The same in the background: begins and returns at once. Callbacks run only inside receivewal_wait and
 * receivewal_dispatch. Returns OK, INVALID, SIZE, HANDLE, CLOSED, BUSY, FORKED.
 */
receivewal_status receivewal_start(receivewal *rw, const receivewal_options *options);

/*
 * Waits until what receivewal_start began has ended, running callbacks. timeout is in milliseconds; negative: for ever.
 * Returns PENDING if it still runs, BUSY if nothing was started, else what receivewal_receive would have returned.
 */
receivewal_status receivewal_wait(receivewal *rw, int timeout);

/*
 * A descriptor for poll, epoll or an event loop: readable when receivewal_dispatch has something to do. It belongs to the
 * library; don't read from it or close it. Valid until receivewal_detach. -1 if the handle is not valid.
 */
int receivewal_event_fd(receivewal *rw);

/* Runs the callbacks that are due, on this thread, and returns without waiting: as receivewal_wait(rw, 0). */
receivewal_status receivewal_dispatch(receivewal *rw);

/*
 * Asks the call in progress on this handle to end: the receive flushes, tells the server, brings the connection back to idle and
 * returns RECEIVEWAL_ERR_STOPPED. Returns at once. Any thread, at any time, also in a signal handler
 * (it only writes to an eventfd) and inside callbacks. If no call is in progress, the next one ends at once instead.
 * Returns OK, HANDLE, CLOSED, FORKED. Leaves errno and receivewal_errmsg as they were.
 */
receivewal_status receivewal_stop(receivewal *rw);

/*
 * With options.confirm: the host has made all WAL before lsn safe elsewhere. The server is told so at once where it waits for that
 * (options.synchronous, a keepalive that asks), and at the latest with the next status update. What was confirmed stays so, but for what
 * lies beyond the end of a timeline that is left; a lower lsn changes nothing. It doesn't carry over to the next receive.
 * Any thread, at any time, also inside callbacks; not in a signal handler.
 * Returns OK, INVALID (lsn is beyond what was received, or no receive with options.confirm runs), HANDLE, CLOSED, FORKED.
 */
receivewal_status receivewal_confirm(receivewal *rw, receivewal_lsn lsn);

/* --------------------------------------------------------------------------------------- ask the server */

/* What IDENTIFY_SYSTEM and SHOW tell about a server. */
typedef struct receivewal_system
{
    size_t size;                   /* sizeof(receivewal_system), set by the caller */
    uint64_t system_identifier;    /* of the cluster, the same on primary and standbys */
    uint32_t timeline;             /* the server's current one */
    uint32_t segment_size;         /* wal_segment_size, bytes */
    receivewal_lsn lsn;            /* the server's flushed position */
    uint32_t data_directory_mode;  /* permission bits, 0700 or 0750 */
} receivewal_system;
#define RECEIVEWAL_SYSTEM_INIT { sizeof(receivewal_system), 0, 0, 0, 0, 0 }

/* A physical replication slot. */
typedef struct receivewal_slot
{
    size_t size;                /* sizeof(receivewal_slot), set by the caller */
    receivewal_lsn restart_lsn; /* the oldest WAL that the slot keeps; 0: it keeps none yet */
    uint32_t restart_timeline;  /* the timeline of restart_lsn; 0 with it, or where the server doesn't say */
} receivewal_slot;
#define RECEIVEWAL_SLOT_INIT { sizeof(receivewal_slot), 0, 0 }

/* Flags of receivewal_create_slot and receivewal_drop_slot. */
#define RECEIVEWAL_SLOT_RESERVE_WAL 1u   /* create: keep WAL from now on, not only from the first connection on */
#define RECEIVEWAL_SLOT_TEMPORARY 2u     /* create: the slot goes with this connection */
#define RECEIVEWAL_SLOT_IF_NOT_EXISTS 4u /* create: a slot of this name that exists already is no error */
#define RECEIVEWAL_SLOT_WAIT 8u          /* drop: wait until the slot is no longer in use */

/*
 * These send a command and wait for its answer; no callbacks. Slot names have 1 to 63 of a-z, 0-9 and _, as
 * PostgreSQL demands (ReplicationSlotValidateName in slot.c); others are INVALID, and nothing is sent.
 *
 * All return OK, INVALID, SIZE, HANDLE, CLOSED, BUSY, FORKED, ENCRYPTED, CONNECTION, PROTOCOL, SERVER, UNSUPPORTED, STOPPED, INTERNAL.
 */

/* Who the server is. */
receivewal_status receivewal_identify(receivewal *rw, receivewal_system *system);

/* Creates a physical slot. slot may be NULL, else it gets the slot's position (0 without RESERVE_WAL). Also SLOT_EXISTS. */
receivewal_status receivewal_create_slot(receivewal *rw, const char *name, uint32_t flags, receivewal_slot *slot);

/* Drops a slot. Also NO_SLOT, SLOT_BUSY. */
receivewal_status receivewal_drop_slot(receivewal *rw, const char *name, uint32_t flags);

/* Reads a slot (server 15 and newer, else UNSUPPORTED). Also NO_SLOT. */
receivewal_status receivewal_read_slot(receivewal *rw, const char *name, receivewal_slot *slot);

/* ------------------------------------------------------------------------------------ ask the directory */

/* Where a receive into a directory would start. */
typedef struct receivewal_start_point
{
    size_t size;                       /* sizeof(receivewal_start_point), set by the caller */
    receivewal_lsn lsn;                /* first byte of a segment; 0: there is no WAL in the directory */
    uint32_t timeline;
    uint32_t segment_size;             /* bytes */
    char segment[RECEIVEWAL_NAME_MAX]; /* the file that decided it; "" where none did */
} receivewal_start_point;
#define RECEIVEWAL_START_POINT_INIT { sizeof(receivewal_start_point), 0, 0, 0, { 0 } }

/*
 * Looks through a directory, without a connection, without a lock and without changing anything.
 * segment_size is the server's wal_segment_size in bytes; 0: as the files in the directory say.
 * Returns OK (also where there is nothing: lsn is 0), INVALID, SIZE, NO_DIRECTORY, PERMISSION, IO, FOREIGN (files of different
 * segment sizes), FORKED, CORE; the text is at receivewal_errmsg(NULL).
 */
receivewal_status receivewal_find_start(const char *directory, uint32_t segment_size, receivewal_start_point *start);

/* How closely receivewal_check_directory looks, and whom it tells. */
typedef struct receivewal_check_options
{
    size_t size;           /* sizeof(receivewal_check_options) */
    uint32_t segment_size; /* the server's wal_segment_size in bytes; 0: as the files say, or PostgreSQL's default if none does */
    int decode;            /* non-zero: decompress each compressed segment to its end */
    void *ctx;             /* passed to problem */
    int (*problem)(void *ctx, const receivewal_problem *problem); /* each problem; non-zero: no more of them. May be NULL */
    const char *const *suffixes; /* as in receivewal_options */
    size_t suffix_count;
} receivewal_check_options;
#define RECEIVEWAL_CHECK_OPTIONS_INIT { sizeof(receivewal_check_options), 0, 0, NULL, NULL, NULL, 0 }

/* What receivewal_check_directory has found. */
typedef struct receivewal_check
{
    size_t size;                /* sizeof(receivewal_check), set by the caller */
    uint64_t segments;          /* complete ones, whatever their suffix */
    uint64_t problems;          /* all but leftovers */
    uint64_t leftovers;
    uint64_t system_identifier; /* whose WAL it is; 0: no segment says */
    uint32_t segment_size;      /* bytes; 0: no segment says, and the default of 16 MiB does not fit the names */
    uint32_t timeline;          /* of lsn */
    receivewal_lsn oldest_lsn;  /* first byte of the oldest complete segment; 0: there is none */
    receivewal_lsn lsn;         /* where a receive would start; 0: there is no WAL */
    int segment_size_assumed;   /* 1: no file tells segment_size, for instance because all are encrypted: it is the default */
} receivewal_check;
#define RECEIVEWAL_CHECK_INIT { sizeof(receivewal_check), 0, 0, 0, 0, 0, 0, 0, 0, 0 }

/*
 * Checks a directory of WAL, without a connection, without a lock and without changing anything: holes between complete segments
 * (compressed ones, and those with the suffix of another program such as .zst or .aes, count as complete), sizes, the first page of each
 * plain or partial segment, history files. Callbacks run on this thread. options may be NULL.
 *
 * Returns OK whether there are problems or not: see check->problems. Else INVALID, SIZE, NO_DIRECTORY, PERMISSION, IO,
 * FOREIGN (its newest files are of different segment sizes), FORKED, CORE, LIMIT; the text is at receivewal_errmsg(NULL).
 */
receivewal_status receivewal_check_directory(const char *directory, const receivewal_check_options *options, receivewal_check *check);

/*
 * Writes a file of a directory of WAL to target, as PostgreSQL's restore_command asks for it (its %f and %p). name is a segment's 24 digits,
 * or another file's name, "00000002.history". A segment comes whole, however it is stored there: plain, compressed by gzip, LZ4 or
 * Zstandard, or as the .partial of one that is not complete: what was never received is zeros, and recovery goes as far as there is
 * WAL. What is at target is replaced; it is never half written. Nothing in the directory changes, and no lock is taken.
 *
 * Returns OK; NO_FILE: there is none, as at the end of all WAL. Everything else is not the end, and a recovery should stop there: IO (also a
 * segment that is damaged, or has the suffix of another program), INVALID, NO_DIRECTORY (also target's), PERMISSION, DISK_FULL, FORKED, CORE,
 * LIMIT, INTERNAL. The text is at receivewal_errmsg(NULL).
 */
receivewal_status receivewal_restore(const char *directory, const char *name, const char *target);

/* ----------------------------------------------------------------------------------------------- errors */

/*
 * The last error of this handle in a sentence, or "" if its last call succeeded. With NULL, or a handle that is not valid: the last
 * error on this thread of a call that had no valid handle. Never NULL. Valid until the next call on the handle (with NULL: on the thread).
 */
const char *receivewal_errmsg(receivewal *rw);

/* The server's five-character SQLSTATE behind the last error of this handle; "" if the server did not send one. */
const char *receivewal_sqlstate(receivewal *rw);

/* The server's DETAIL and HINT behind the last error of this handle; "" where there was none. */
const char *receivewal_errdetail(receivewal *rw);
const char *receivewal_errhint(receivewal *rw);

/* A short English name of a status, "connection lost". Static. Any value is allowed. */
const char *receivewal_strerror(receivewal_status status);

/* ---------------------------------------------------------------------------------------------- helpers */

/* The version of the library that runs: RECEIVEWAL_VERSION_NUM and RECEIVEWAL_VERSION of its own header. Static. */
int receivewal_version(void);
const char *receivewal_version_string(void);

#define RECEIVEWAL_LSN_LEN 18          /* "FFFFFFFF/FFFFFFFF" and a NUL */
#define RECEIVEWAL_SEGMENT_NAME_LEN 25 /* 24 digits and a NUL */

/* Reads "16/B374D848" as pg_lsn does: two numbers of 1 to 8 hexadecimal digits, and nothing else. Returns OK or INVALID. */
receivewal_status receivewal_lsn_parse(const char *text, receivewal_lsn *lsn);

/* Writes lsn as "16/B374D848" into buffer and returns buffer. */
char *receivewal_lsn_format(receivewal_lsn lsn, char buffer[RECEIVEWAL_LSN_LEN]);

/* Writes the file name of the segment that holds lsn. segment_size is a power of two from 1 MiB to 1 GiB.
 * Returns OK or INVALID. */
receivewal_status receivewal_segment_name(uint32_t timeline, receivewal_lsn lsn, uint32_t segment_size,
                                          char buffer[RECEIVEWAL_SEGMENT_NAME_LEN]);

/* Reads a segment's file name (24 upper-case hexadecimal digits). timeline and lsn may be NULL. Returns OK or INVALID. */
receivewal_status receivewal_segment_parse(const char *name, uint32_t segment_size, uint32_t *timeline, receivewal_lsn *lsn);

#ifdef __cplusplus
}
#endif

#endif /* RECEIVEWAL_H */
